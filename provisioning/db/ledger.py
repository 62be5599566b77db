"""The one way to write: plain functions on one thread, many in one commit, the answer after the commit."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from sqlalchemy import Connection, Engine

from provisioning.db.lane import Job, Lane, LaneFull, LaneSlow
from provisioning.db.prepared import driver_refusal
from provisioning.refusals import StorageUnavailable

T = TypeVar("T")
Write = Callable[[Connection], T]

WRITE_DEADLINE_SECONDS = 15.0
"""Longer than the driver waits for another writer. What was not answered by then may be written still: a caller that
asks again finds it."""


class Ledger:
    """Runs writes in groups.

    A write touches nothing but its connection and decides before it writes: if one of a group raises, the whole
    group is rolled back and run again without it, so that one bad row fails nobody else, and costs nobody the group.
    """

    def __init__(self, engine: Engine, is_there: Callable[[], bool] = lambda: True) -> None:
        """`is_there`: is the database still where the next process will look for it? Asked behind each commit."""
        self._engine = engine
        self.is_there = is_there
        self._lane = Lane("ledger", self._commit, deadline_seconds=WRITE_DEADLINE_SECONDS)

    async def write(self, write: Write[T]) -> T:
        """The result of `write(tx)`, once it is durable.

        Raises: what `write` raises; StorageUnavailable where the database cannot write or is slow, or too many wait.
        """
        try:
            return cast("T", await self._lane.do(write))
        except LaneFull as error:
            raise StorageUnavailable(expected="room for a write", actual="too many wait") from error
        except LaneSlow as error:
            raise StorageUnavailable(expected=f"a commit in {WRITE_DEADLINE_SECONDS} s", actual="none") from error

    def write_now(self, write: Write[T]) -> T:
        """The same for a caller without a loop (`muster init`)."""
        return cast("T", self._lane.do_now(write))

    def close(self) -> None:
        """Commit what waits, then stop."""
        self._lane.close()
        self._engine.dispose()

    def _commit(self, group: Sequence[Job]) -> None:
        waiting = [list(group)]
        while waiting:
            some = waiting.pop()
            at = -1
            try:
                with self._engine.begin() as tx:
                    for at, job in enumerate(some):  # noqa: B007  where it came to
                        job.result = job.work(tx)
                    at = len(some)
                if not self.is_there():  # the driver goes on writing to a file that has no name any more
                    lost = StorageUnavailable(expected="the database file that was opened", actual="none, or another")
                    for job in some:
                        job.error = lost
            except BaseException as error:  # noqa: BLE001  any failure goes to the caller whose write it was
                if at < 0 or len(some) == 1:  # nothing was begun: the database is held or gone, for all of them
                    for job in some:
                        job.error = self._named(error)
                elif at == len(some):  # the commit failed: the rows may fit one by one
                    waiting += [[job] for job in reversed(some)]
                else:
                    waiting += [piece for piece in (some[at + 1 :], [some[at]], some[:at]) if piece]

    def _named(self, error: BaseException) -> BaseException:
        if (name := driver_refusal(self._engine, error)) is None:
            return error
        refusal = StorageUnavailable(expected="a durable write", actual=name)
        refusal.__cause__ = error
        return refusal
