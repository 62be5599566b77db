"""One agent at a time on one state folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another agent holds the lock; the message is one line."""


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Holds the lock until the block, or the process, ends. Raises: AlreadyRunning."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"{path}: another muster-agent works here: stop it first") from error
        yield
    finally:
        os.close(descriptor)
