"""The one way to read: plain functions on read-only connections, on a thread of their own, with a deadline."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from provisioning.db.lane import Job, Lane, LaneFull, LaneSlow, free
from provisioning.db.prepared import driver_refusal
from provisioning.refusals import StorageUnavailable

T = TypeVar("T")
Read = Callable[[Connection], T]

READ_LANES = 2
READ_DEADLINE_SECONDS = 5.0
BUSY_SECONDS = 3
"""How long a write waits where another process writes. Nobody here holds the database for longer than a commit."""


class Store:
    """Runs reads. A read sees one consistent state of the database, and can change nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lanes = [
            Lane(f"store {number}", self._read, deadline_seconds=READ_DEADLINE_SECONDS) for number in range(READ_LANES)
        ]

    async def read(self, read: Read[T]) -> T:
        """The result of `read(connection)`. Raises: what `read` raises; StorageUnavailable."""
        try:
            return cast("T", await free(self._lanes).do(read))
        except (LaneSlow, LaneFull) as error:
            raise StorageUnavailable(expected=f"an answer in {READ_DEADLINE_SECONDS} s", actual="none") from error

    def read_now(self, read: Read[T]) -> T:
        """The same for a caller without a loop."""
        return cast("T", self._lanes[0].do_now(read))

    def close(self) -> None:
        """End the threads and connections."""
        for lane in self._lanes:
            lane.close()
        self._engine.dispose()

    def _read(self, group: Sequence[Job]) -> None:
        try:
            with self._engine.begin() as connection:
                for job in group:
                    try:
                        job.result = job.work(connection)
                    except BaseException as error:  # noqa: BLE001  it goes to the caller whose read it was
                        job.error = self._named(error)
        except BaseException as error:  # noqa: BLE001  no connection: nobody was served
            for job in group:
                job.error = self._named(error)

    def _named(self, error: BaseException) -> BaseException:
        if (name := driver_refusal(self._engine, error)) is None:
            return error
        refusal = StorageUnavailable(expected="a readable database", actual=name)
        refusal.__cause__ = error
        return refusal


def watched(path: Path) -> Callable[[], bool]:
    """Asked later: is the file at this path still the one that is there now? No, where it was deleted or replaced."""
    opened = path.stat()

    def is_there() -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)

    return is_there


def open_sqlite(path: Path, *, read_only: bool) -> Engine:
    """An engine on one SQLite file: WAL, every commit durable (synchronous=FULL)."""
    mode, begin = ("ro", "BEGIN") if read_only else ("rwc", "BEGIN IMMEDIATE")
    engine = create_engine(
        f"sqlite:///file:{path}?mode={mode}&uri=true",
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS, "isolation_level": None},
        pool_size=READ_LANES + 1,
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: DBAPIConnection, _record: object) -> None:
        for pragma in ["journal_mode=WAL"] * (not read_only) + ["foreign_keys=ON", "synchronous=FULL"]:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # The driver would begin at the first write, after the reads that decide it.
        connection.exec_driver_sql(begin)

    return engine
