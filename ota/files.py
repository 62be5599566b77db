"""Files that are there whole or not at all: what a power cut or a concurrent reader may see."""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`: a reader, or a device that lost power, finds the old bytes or the new ones.

    Written aside, flushed, renamed; then the folder is flushed, so that the name itself survives (rename(2), fsync(2)).
    """
    aside = path.with_name(f".{path.name}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # the umask, or an older file of that name, does not decide
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Take `path` away if it is there, for good."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_at_most(path: Path, limit: int) -> bytes | None:
    """The file's bytes, or None where there is none; of a larger file `limit + 1`, so that its decoder refuses it."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        return None
