"""How a command ends that does not end well: one line on standard error, and the exit status."""

import errno
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provisioning.cli.output import clean
from provisioning.config import ConfigurationRefused
from provisioning.refusals import Finding, Refusal

REFUSED, USAGE, UNREACHABLE = 1, 2, 3
_CURES = {
    errno.ENOSPC: "free some space and repeat",
    errno.EDQUOT: "free some space and repeat",
    errno.EACCES: "run as the owner, or mend the permissions",
    errno.EPERM: "run as the owner, or mend the permissions",
    errno.EROFS: "the file system is read-only: take another --data-dir",
    errno.ENOENT: "check the name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "check the name",
    errno.ENAMETOOLONG: "take a shorter path",
}


class Failed(Exception):
    """A command was refused. Each line says what, where and the cure."""

    status = REFUSED

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Mistaken(Failed):
    """The command line itself is wrong."""

    status = USAGE


class Unreachable(Failed):
    """Nobody answers."""

    status = UNREACHABLE


def described(error: BaseException) -> tuple[int, tuple[str, ...]]:
    """The exit status and the lines for whatever ended a command. No secret is in any of these errors."""
    from hsm.errors import HsmError
    from ota.refusals import UpdateRefused

    if isinstance(error, Failed):
        return error.status, error.lines
    if isinstance(error, Refusal):
        return REFUSED, (refusal_line(error),)
    if isinstance(error, ConfigurationRefused | UpdateRefused):
        return REFUSED, (str(error),)
    if isinstance(error, HsmError):
        return REFUSED, (f"HSM: {error}; look: muster doctor",)
    if isinstance(error, OSError):
        return REFUSED, (os_line(error),)
    origin = getattr(error, "orig", error)
    if isinstance(origin, sqlite3.Error):
        return REFUSED, (f"database: {origin}; look: muster doctor",)
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return REFUSED, (f"defect: {type(error).__name__}: {str(error)[:200]} ({place}); report it, with the command",)


@contextmanager
def naming(path: object) -> Iterator[None]:
    """A failed system call that names no file (a full disk does not) is said to be about this one. Raises: Failed."""
    try:
        yield
    except OSError as error:
        raise Failed(os_line(error, error.filename or path)) from error


def os_line(error: OSError, what: object = None) -> str:
    """One line for a failed system call: file, what, cure."""
    name = what or error.filename
    where = f"{name}: " if name else ""
    cure = _CURES.get(error.errno or 0, "")
    return f"{where}{error.strerror or error}" + (f"; {cure}" if cure else "")


def refusal_line(refusal: Refusal) -> str:
    """A refusal that was raised here, as the client shows those of the service."""
    parts = [
        f"expected {refusal.expected}" if refusal.expected else "",
        f"actual {refusal.actual}" if refusal.actual else "",
        *map(_finding, refusal.findings),
        refusal.cure,
    ]
    detail = "; ".join(part for part in parts if part)
    return f"{refusal.title} ({refusal.code})" + (f": {detail}" if detail else "")


def _finding(finding: Finding) -> str:
    return clean(f"{finding.what}: expected {finding.expected}, actual {finding.actual}")
