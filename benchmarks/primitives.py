"""What limits are made of: seconds of one piece of work, by a clock that the caller chooses, and of a durable row."""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROUNDS, TIMES, ROWS_A_COMMIT = 5, 200, 30


def each(work: Callable[[], object], times: int = TIMES, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one, the median of a few rounds. `clock`: elapsed, or processor time (`time.process_time`)."""
    taken = []
    for _ in range(ROUNDS):
        start = clock()
        for _ in range(times):
            work()
        taken.append((clock() - start) / times)
    return median(taken)


def row_each(folder: Path, clock: Callable[[], float] = time.perf_counter) -> float:
    """One row of 1 KiB, thirty in a commit, each commit on the disk of `folder` before the next."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        connection = sqlite3.connect(Path(name) / "bench.db", isolation_level=None)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("create table row (id integer primary key, content blob)")
        rows = [(bytes(1024),)] * ROWS_A_COMMIT

        def commit() -> None:
            connection.execute("begin")
            connection.executemany("insert into row (content) values (?)", rows)
            connection.execute("commit")

        taken = each(commit, 20, clock) / ROWS_A_COMMIT
        connection.close()
    return taken
