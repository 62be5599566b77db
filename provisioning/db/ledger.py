"""The one way to write: plain functions on one thread, many in one commit, the answer after the commit."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from provisioning.refusals import StorageUnavailable

T = TypeVar("T")
Write = Callable[[Connection], T]

DEFECTS = (IntegrityError, ProgrammingError, DataError)
"""What a database refuses because the write was wrong. Everything else is the database's own trouble."""
MOST_IN_ONE_COMMIT = 256
WAITING_AT_MOST = 10_000


@dataclass(slots=True)
class _Waiting:
    write: Write[Any]
    answer: "Future[Any]"
    result: Any = None


class Ledger:
    """Runs writes in groups.

    A write touches nothing but its connection and decides before it writes: if one of a group raises, the whole
    group is rolled back and run again one by one, so that one bad row fails nobody else.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    async def write(self, write: Write[T]) -> T:
        """The result of `write(tx)`, once it is durable.

        Raises: what `write` raises; StorageUnavailable where the database cannot write.
        """
        return await asyncio.wrap_future(self.submit(write))

    def write_now(self, write: Write[T]) -> T:
        """The same for a caller without a loop (`muster init`)."""
        return self.submit(write).result()

    def submit(self, write: Write[T]) -> "Future[T]":
        """Queue a write. Raises: StorageUnavailable where too many wait."""
        if self._waiting.qsize() >= WAITING_AT_MOST:
            raise StorageUnavailable(expected=f"at most {WAITING_AT_MOST} waiting writes", actual="more")
        waiting: _Waiting = _Waiting(write, Future())
        self._waiting.put(waiting)
        return waiting.answer

    def close(self) -> None:
        """Commit what waits, then stop."""
        self._waiting.put(None)
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            group = []
            while waiting is not None:
                if waiting.answer.set_running_or_notify_cancel():
                    group.append(waiting)
                if len(group) == MOST_IN_ONE_COMMIT or self._waiting.empty():
                    break
                waiting = self._waiting.get()
            self._commit(group)
            if waiting is None:
                return

    def _commit(self, group: list[_Waiting]) -> None:
        try:
            with self._engine.begin() as tx:
                for waiting in group:
                    waiting.result = waiting.write(tx)
        except BaseException as error:  # noqa: BLE001  any failure goes to the caller whose write it was
            if len(group) == 1:
                _fail(group[0], error)
                return
            for waiting in group:
                self._commit([waiting])
            return
        for waiting in group:
            waiting.answer.set_result(waiting.result)


def _fail(waiting: _Waiting, error: BaseException) -> None:
    if isinstance(error, DBAPIError) and not isinstance(error, DEFECTS):
        refusal = StorageUnavailable(expected="a durable write", actual=type(error.orig).__name__)
        refusal.__cause__ = error
        waiting.answer.set_exception(refusal)
        return
    waiting.answer.set_exception(error)
