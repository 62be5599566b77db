"""Files that survive power loss: a reader sees old or new content, never half of it. Mode 0600, folders 0700."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import TypeVar

from device_agent import log
from wire.codec import MalformedMessage, decode, encode

T = TypeVar("T")

_PARTIAL = ".partial"


class StateDamaged(Exception):
    """A state file cannot be believed; the message is one line: which file, what is wrong, how to mend it."""


def private_folder(path: Path) -> None:
    """A folder for this user alone, durable; made where it is missing."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        private_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    sync_folder(path.parent)


def atomic_write(path: Path, content: bytes) -> None:
    """Replaces a file: write beside it, fsync, rename, fsync the folder. Raises: OSError; the old file then stands."""
    partial = path.with_name(path.name + _PARTIAL)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError:  # a full disk: nothing half-written stays
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the folder's names durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file durably; one that is gone already is fine."""
    if path.exists():
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Removes a folder with what it holds."""
    shutil.rmtree(path)
    sync_folder(path.parent)


def read(path: Path, limit: int) -> bytes | None:
    """The file's content, None where there is none. `limit` is in bytes. Raises: StateDamaged, OSError."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        return None
    if len(content) > limit:
        raise StateDamaged(f"{path}: is larger than {limit} bytes: remove it")
    return content


def read_value(cls: type[T], path: Path, limit: int) -> T | None:
    """A value that `write_value` stored. Fields of a newer agent are passed over: a release may be rolled back.

    Raises: StateDamaged, OSError.
    """
    content = read(path, limit)
    if content is None:
        return None
    try:
        return decode(cls, content, limit=limit, ignore_unknown=True)
    except MalformedMessage as error:
        raise StateDamaged(f"{path}: {error}: remove it") from error


def read_or_drop(cls: type[T], path: Path, limit: int) -> T | None:
    """As `read_value`, for a step that can be begun anew: a damaged file is removed, and as good as none."""
    try:
        return read_value(cls, path, limit)
    except StateDamaged as damage:
        log.warning("state-dropped", reason=damage)
        remove(path)
        return None


def write_value(path: Path, value: object) -> None:
    """Stores a value as canonical JSON, atomically."""
    atomic_write(path, encode(value))
