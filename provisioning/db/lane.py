"""A thread that does what waits in groups and answers each group at once. Database and HSM are behind such threads.

A hand-over between threads costs more than a short statement or a signature does: the event loop is woken once a
group, not once a job (measured: a third of an enrollment).
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

MOST_AT_ONCE = 256


class LaneFull(Exception):
    """More waits than may."""


class Job:
    """One piece of work, and what came of it. Whoever does it sets `result` or `error`."""

    __slots__ = ("done", "error", "future", "result", "work")

    def __init__(self, work: Any, future: "asyncio.Future[Any] | None") -> None:  # noqa: ANN401  its lane knows
        self.work = work
        self.future = future
        self.done = None if future is not None else threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Lane:
    """One thread. `carry_out` gets the waiting jobs, in order, and must not raise: a failure is a job's `error`."""

    def __init__(self, name: str, carry_out: Callable[[Sequence[Job]], None], waiting_at_most: int = 10_000) -> None:
        self._carry_out = carry_out
        self._waiting_at_most = waiting_at_most
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait, about."""
        return self._waiting.qsize()

    async def do(self, work: object) -> Any:  # noqa: ANN401  the caller knows what its work returns
        """The result, or the error raised. A caller that is cancelled leaves its job to be done. Raises: LaneFull."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(Job(work, future))
        return await future

    def do_now(self, work: object) -> Any:  # noqa: ANN401  as above
        """The same for a caller without a loop."""
        job = Job(work, None)
        self._put(job)
        assert job.done is not None  # noqa: S101  for mypy: there is no future
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result

    def close(self, wait_seconds: float | None = None) -> None:
        """Do what waits, then end the thread. One that hangs for longer is left behind."""
        self._waiting.put(None)
        self._thread.join(wait_seconds)

    def _put(self, job: Job) -> None:
        if self._waiting.qsize() >= self._waiting_at_most:
            raise LaneFull
        self._waiting.put(job)

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            group = []
            while job is not None:
                group.append(job)
                if len(group) == MOST_AT_ONCE or self._waiting.empty():
                    break
                job = self._waiting.get()
            try:
                self._carry_out(group)
            except BaseException as error:  # noqa: BLE001  a thread that died would leave everybody waiting for ever
                for waiting in group:
                    waiting.error = waiting.error or error
            _answer(group)
            if job is None:
                return


def _answer(group: Sequence[Job]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in group:
        if job.future is not None:
            by_loop.setdefault(job.future.get_loop(), []).append(job)
        elif job.done is not None:
            job.done.set()
    for loop, jobs in by_loop.items():
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
            loop.call_soon_threadsafe(_deliver, jobs)


def _deliver(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.future is None or job.future.done():
            continue
        if isinstance(job.error, StopIteration):  # which no future takes
            job.future.set_exception(RuntimeError("the work raised StopIteration"))
        elif job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
