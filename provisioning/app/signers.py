"""The threads that call into one token. One that hangs keeps nobody else waiting; what nobody waits for is not done.

All threads take from one queue, so nothing stands behind a call that hangs while another thread is free. A hand-over
between threads costs more than a P-256 signature does: the event loop hands over once a turn, wakes one thread where
the token is fast and several where it is slow, and gets its answers in groups.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from hsm.errors import TokenUnavailable
from provisioning.db.lane import Job, answer

T = TypeVar("T")

WAITING_MOST = 10_000
ANSWER_AFTER_SECONDS = 0.002
"""So long a thread collects answers while more work waits."""
FAST_SECONDS = 0.0005
"""Calls that are faster than this are one thread's: several would wait for the interpreter, and not for the token."""
LATE_SECONDS = 0.05
"""A call that takes this long may hang: another thread is woken beside it."""
_FORGET = 1.0005
"""The fastest call counts less with each that was slower. The mean would say how busy the interpreter is."""


class _Call(Job):
    """A call into the token. Whoever waits for it without a loop may give it up."""

    __slots__ = ("given_up",)

    def __init__(self, work: Callable[[], object], future: "asyncio.Future[Any] | None") -> None:
        super().__init__(work, future)
        self.given_up = False

    @property
    def is_wanted(self) -> bool:
        """Does somebody still wait for it?"""
        return not self.given_up and super().is_wanted


class Signers:
    """`count` threads; one job each at a time. `deadline_seconds`: a call that takes longer counts as hanging."""

    def __init__(self, name: str, count: int, deadline_seconds: float) -> None:
        self._deadline = deadline_seconds
        self._waiting: deque[_Call] = deque()
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._handing_over: asyncio.AbstractEventLoop | None = None
        self._looking_again: asyncio.AbstractEventLoop | None = None
        self._fastest_seconds = 0.0
        self._begun: list[float | None] = [None] * count
        self._at_work = [False] * count
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"hsm {name} {number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def hangs(self) -> bool:
        """Is every thread in a call that takes too long?"""
        if None in self._begun:  # asked for each signature
            return False
        oldest_good = time.monotonic() - self._deadline
        return all(begun is not None and begun < oldest_good for begun in self._begun)

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returned or raised, on one of the threads. A caller that is cancelled leaves it undone.

        Raises: TokenUnavailable, at once: all threads hang, or too many wait.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._admit(_Call(work, future))
        if self._handing_over is not loop:
            self._handing_over = loop
            loop.call_soon(self._hand_over, loop)
        return await future

    def do_within(self, work: Callable[[], T], seconds: float) -> T:
        """The same for a caller without a loop. Raises: TokenUnavailable, after `seconds` too."""
        job = _Call(work, None)
        self._admit(job)
        self._wakes.put(True)  # noqa: FBT003  go on
        assert job.done is not None  # noqa: S101  for mypy: there is no future
        if not job.done.wait(seconds):
            job.given_up = True
            raise TokenUnavailable(f"no answer within {seconds:g} s")
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def begin(self, work: Callable[[], object]) -> None:
        """Do this when a thread is free; nobody waits for it. What it raises is nobody's."""
        with suppress(TokenUnavailable):
            self._admit(_Call(work, None))
            self._wakes.put(True)  # noqa: FBT003  go on

    def close(self, wait_seconds: float) -> None:
        """Do what waits, then end the threads. One that hangs for longer is left behind."""
        for _ in self._threads:
            self._wakes.put(False)  # noqa: FBT003  no more
        deadline = time.monotonic() + wait_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _admit(self, job: _Call) -> None:
        if self.hangs:
            raise TokenUnavailable(f"its module has not answered for {self._deadline:g} s")
        if len(self._waiting) >= WAITING_MOST:
            raise TokenUnavailable("too many wait for it")
        self._waiting.append(job)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of a turn of the loop: wake as many threads as there is work, or see to it that one works."""
        self._handing_over = None
        late = sum(begun is not None and begun < time.monotonic() - LATE_SECONDS for begun in list(self._begun))
        slow = self._fastest_seconds > FAST_SECONDS
        wanted = len(self._waiting) if slow else 1 - (sum(self._at_work) - late)
        for _ in range(min(len(self._threads), wanted)):
            self._wakes.put(True)  # noqa: FBT003  go on
        if self._looking_again is not loop:  # the one at work may be in a call that hangs
            self._looking_again = loop
            loop.call_later(LATE_SECONDS, self._look_again, loop)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking_again = None
        if self._waiting:
            self._hand_over(loop)

    def _run(self, number: int) -> None:
        goes_on = True
        while goes_on:
            goes_on = self._wakes.get()
            while self._waiting:  # asked again after it is known that nobody works: what came in between is not left
                self._at_work[number] = True
                self._work_off(number)
                self._at_work[number] = False

    def _work_off(self, number: int) -> None:
        """Do what waits, one job after another; whatever waits behind one that hangs is another thread's."""
        answered: list[_Call] = []
        answer_at = 0.0
        while self._waiting:
            try:
                job = self._waiting.popleft()
            except IndexError:  # another thread was faster
                break
            if not job.is_wanted:
                continue
            begun = self._begun[number] = time.monotonic()
            answer_at = answer_at if answered else begun + ANSWER_AFTER_SECONDS
            try:
                job.result = job.work()
            except BaseException as error:  # noqa: BLE001  it goes to the caller whose work it was
                job.error = error
            self._begun[number] = None
            ended = time.monotonic()
            self._fastest_seconds = min(ended - begun, self._fastest_seconds * _FORGET or ended - begun)
            answered.append(job)
            if ended >= answer_at:
                answer(answered, _deliver)
                answered = []
        answer(answered, _deliver)


def _deliver(_: asyncio.AbstractEventLoop, jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.settle()
