"""A thread that does what waits in groups and answers each group at once. Database and HSM are behind such threads.

A hand-over between threads costs more than a short statement or a signature does, because both sides wait for the
interpreter. So the event loop gathers as long as each of its turns brings more, and while the lane is busy, hands over
all at once, and is woken once a group, not once a job (measured: a third of an enrollment, and an eighth of the rest
for gathering over more than one turn).
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

MOST_AT_ONCE = 256
GATHER_SECONDS = 0.004
"""So long at most a group waits for more. Whoever asks alone waits for a turn of the loop."""


class LaneFull(Exception):
    """More waits than may."""


class LaneSlow(Exception):
    """It was not done in time. It may be done still."""


class Job:
    """One piece of work, and what came of it. Whoever does it sets `result` or `error`."""

    __slots__ = ("done", "due", "error", "future", "result", "work")

    def __init__(self, work: Any, future: "asyncio.Future[Any] | None") -> None:  # noqa: ANN401  its lane knows
        self.work = work
        self.future = future
        self.due = 0.0
        self.done = None if future is not None else threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def is_wanted(self) -> bool:
        """Does somebody still wait for it?"""
        return self.future is None or not self.future.done()

    def settle(self) -> None:
        """Tell the event loop's caller, on its loop."""
        if self.future is None or self.future.done():
            return
        if isinstance(self.error, StopIteration):  # which no future takes
            self.future.set_exception(RuntimeError("the work raised StopIteration"))
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def answer(group: Sequence[Job], deliver: Callable[[asyncio.AbstractEventLoop, Sequence[Job]], None]) -> None:
    """Tell who waits for these: threads at once, an event loop by one call of `deliver` on it for the group."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in group:
        if job.future is not None:
            by_loop.setdefault(job.future.get_loop(), []).append(job)
        elif job.done is not None:
            job.done.set()
    for loop, jobs in by_loop.items():
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
            loop.call_soon_threadsafe(deliver, loop, jobs)


class Lane:
    """One thread. `carry_out` gets the waiting jobs, in order, and must not raise: a failure is a job's `error`."""

    def __init__(
        self,
        name: str,
        carry_out: Callable[[Sequence[Job]], None],
        *,
        deadline_seconds: float,
        waiting_at_most: int = 10_000,
    ) -> None:
        self._carry_out = carry_out
        self._deadline = deadline_seconds
        self._waiting_at_most = waiting_at_most
        self._handed_over: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        # The rest is the event loop's alone: no lock.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gathered: list[Job] = []
        self._seen = 0
        """How many were gathered when the loop was last asked whether it brings more."""
        self._busy = False
        self._unanswered = 0
        self._awaited: deque[Job] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs of the loop wait or are being done."""
        return self._unanswered

    @property
    def busy(self) -> bool:
        """Is it at work for the loop?"""
        return self._busy

    async def do(self, work: object) -> Any:  # noqa: ANN401  the caller knows what its work returns
        """The result, or the error raised. A caller that is cancelled leaves its job to be done.

        Raises: LaneFull, LaneSlow.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # an ended loop takes no answers, and asks for nothing any more
            self._loop, self._gathered, self._busy, self._unanswered = loop, [], False, 0
            self._awaited, self._timer, self._seen = deque(), None, 0
        if self._unanswered >= self._waiting_at_most:
            raise LaneFull
        future: asyncio.Future[Any] = loop.create_future()
        if not self._gathered and not self._busy:
            loop.call_soon(self._hand_over, loop)
        self._unanswered += 1
        job = Job(work, future)
        job.due = loop.time() + self._deadline
        self._gathered.append(job)
        self._awaited.append(job)
        if self._timer is None:  # one for all: a timer a job would cost more than the job
            self._timer = loop.call_at(job.due, self._expire, loop)
        return await future

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell whoever waits too long, and come again for the next."""
        while self._awaited and (self._awaited[0].due <= loop.time() or not self._awaited[0].is_wanted):
            job = self._awaited.popleft()
            if job.future is not None and not job.future.done():
                job.future.set_exception(LaneSlow())
        self._timer = loop.call_at(self._awaited[0].due, self._expire, loop) if self._awaited else None

    def do_now(self, work: object) -> Any:  # noqa: ANN401  as above
        """The same for a caller without a loop."""
        job = Job(work, None)
        self._handed_over.put([job])
        assert job.done is not None  # noqa: S101  for mypy: there is no future
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result

    def close(self, wait_seconds: float | None = None) -> None:
        """Do what waits, then end the thread. One that hangs for longer is left behind."""
        self._handed_over.put(self._gathered)
        self._handed_over.put(None)
        self._gathered = []
        self._thread.join(wait_seconds)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._gathered or self._busy:
            return
        before, self._seen = self._seen, len(self._gathered)
        if before < self._seen < MOST_AT_ONCE and loop.time() < self._gathered[0].due - self._deadline + GATHER_SECONDS:
            self._after_a_turn(loop)
            return
        self._seen, self._busy = 0, True
        group, self._gathered = self._gathered[:MOST_AT_ONCE], self._gathered[MOST_AT_ONCE:]
        self._handed_over.put(group)

    def _after_a_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Behind those whose turn is now, so that what they ask for goes along."""
        loop.call_soon(loop.call_soon, self._hand_over, loop)

    def _run(self) -> None:
        while (group := self._handed_over.get()) is not None:
            try:
                self._carry_out(group)
            except BaseException as error:  # noqa: BLE001  a thread that died would leave everybody waiting for ever
                for job in group:
                    job.error = job.error or error
            answer(group, self._deliver)

    def _deliver(self, loop: asyncio.AbstractEventLoop, jobs: Sequence[Job]) -> None:
        if loop is self._loop:
            self._busy = False
            self._unanswered -= len(jobs)
        for job in jobs:
            job.settle()
        while self._awaited and not self._awaited[0].is_wanted:
            self._awaited.popleft()
        if self._gathered:
            self._after_a_turn(loop)


def free(lanes: Sequence[Lane]) -> Lane:
    """The lane for one more job: the first that is not at work, so that the jobs of a turn go together."""
    return next((lane for lane in lanes if not lane.busy), None) or min(lanes, key=lambda lane: lane.waiting)
