"""The one way to write: plain functions on one thread, many in one commit, the answer after the commit."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from provisioning.db.lane import Job, Lane, LaneFull
from provisioning.refusals import StorageUnavailable

T = TypeVar("T")
Write = Callable[[Connection], T]

DEFECTS = (IntegrityError, ProgrammingError, DataError)
"""What a database refuses because the write was wrong. Everything else is the database's own trouble."""


class Ledger:
    """Runs writes in groups.

    A write touches nothing but its connection and decides before it writes: if one of a group raises, the whole
    group is rolled back and run again one by one, so that one bad row fails nobody else.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lane = Lane("ledger", self._commit)

    async def write(self, write: Write[T]) -> T:
        """The result of `write(tx)`, once it is durable.

        Raises: what `write` raises; StorageUnavailable where the database cannot write, or too many wait.
        """
        try:
            return cast("T", await self._lane.do(write))
        except LaneFull as error:
            raise StorageUnavailable(expected="room for a write", actual="too many wait") from error

    def write_now(self, write: Write[T]) -> T:
        """The same for a caller without a loop (`muster init`)."""
        return cast("T", self._lane.do_now(write))

    def close(self) -> None:
        """Commit what waits, then stop."""
        self._lane.close()
        self._engine.dispose()

    def _commit(self, group: Sequence[Job]) -> None:
        try:
            with self._engine.begin() as tx:
                for job in group:
                    job.result = job.work(tx)
        except BaseException as error:  # noqa: BLE001  any failure goes to the caller whose write it was
            if len(group) == 1:
                group[0].error = _named(error)
                return
            for job in group:
                self._commit([job])


def _named(error: BaseException) -> BaseException:
    if not isinstance(error, DBAPIError) or isinstance(error, DEFECTS):
        return error
    refusal = StorageUnavailable(expected="a durable write", actual=type(error.orig).__name__)
    refusal.__cause__ = error
    return refusal
