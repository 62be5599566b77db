"""The one way to read: plain functions on read-only connections, in threads, with a deadline."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError

from provisioning.refusals import StorageUnavailable

T = TypeVar("T")
Read = Callable[[Connection], T]

READ_THREADS = 4
READ_DEADLINE_SECONDS = 5.0


class Store:
    """Runs reads. A read sees one consistent state of the database, and can change nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="store")
        self._of_thread = threading.local()

    async def read(self, read: Read[T]) -> T:
        """The result of `read(connection)`. Raises: what `read` raises; StorageUnavailable."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                return await loop.run_in_executor(self._threads, self.read_now, read)
        except TimeoutError as error:
            raise StorageUnavailable(expected=f"an answer in {READ_DEADLINE_SECONDS} s", actual="none") from error

    def read_now(self, read: Read[T]) -> T:
        """The same for a caller without a loop."""
        try:
            with self._engine.connect() as connection:
                return read(connection)
        except DBAPIError as error:
            raise StorageUnavailable(expected="a readable database", actual=type(error.orig).__name__) from error

    def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown(wait=True)
        self._engine.dispose()


def open_sqlite(path: Path, *, read_only: bool) -> Engine:
    """An engine on one SQLite file: WAL, every commit durable (synchronous=FULL)."""
    mode, begin = ("ro", "BEGIN") if read_only else ("rwc", "BEGIN IMMEDIATE")
    engine = create_engine(
        f"sqlite:///file:{path}?mode={mode}&uri=true",
        connect_args={"check_same_thread": False, "timeout": 10, "isolation_level": None},
        pool_size=READ_THREADS + 1,
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
