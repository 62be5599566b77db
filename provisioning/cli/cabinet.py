"""Microsoft's cabinets (TrustedTpm.cab): judged by their own directory first, then unpacked by cabextract.

What the directory says is believed for sizes and names only, and cabextract is held to it: one cabinet, cut to its
own length, in a folder of its own, with limits on file size, processor time and wall time.
"""

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from provisioning.cli.failures import Failed
from provisioning.cli.output import clean

MAGIC = b"MSCF"
CABINET_MOST = 64 * 1024 * 1024
"""Bytes of the cabinet, and of all that is in it."""
MEMBERS_MOST = 20_000
SECONDS = 60
_HEADER, _ENTRY = 36, 16
_PREVIOUS, _NEXT = 0x0001, 0x0002


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a cabinet, as its directory has it."""

    name: str
    size: int


def members_of(data: bytes) -> tuple[int, tuple[Member, ...]]:
    """The cabinet's own length and its files ([MS-CAB] 2.1, 2.4). Raises: ValueError, with the reason."""
    if len(data) < _HEADER or data[:4] != MAGIC:
        raise ValueError("is no cabinet")
    length, at = int.from_bytes(data[8:12], "little"), int.from_bytes(data[16:20], "little")
    count, flags = int.from_bytes(data[28:30], "little"), int.from_bytes(data[30:32], "little")
    if not _HEADER <= length <= len(data) or not _HEADER <= at <= length:
        raise ValueError("is a cabinet that is cut or broken")
    if flags & (_PREVIOUS | _NEXT):
        raise ValueError("is one of several cabinets that belong together")
    if count > MEMBERS_MOST:
        raise ValueError(f"holds more than {MEMBERS_MOST} files")
    members: list[Member] = []
    for _ in range(count):
        end = data.find(b"\0", at + _ENTRY, length)
        if end < 0:
            raise ValueError("is a cabinet whose directory is cut")
        size = int.from_bytes(data[at : at + 4], "little")
        members.append(Member(data[at + _ENTRY : end].decode("utf-8", "replace").replace("\\", "/"), size))
        at = end + 1
    return length, tuple(members)


def escapes(name: str) -> bool:
    """Would this name leave the folder that it is unpacked into, or hide in it?"""
    path = PurePosixPath(name)
    unsound = any(part in ("", ".", "..") for part in name.split("/"))
    return path.is_absolute() or unsound or ":" in name or not name.isprintable()


@contextmanager
def unpacked(data: bytes, what: str) -> Iterator[tuple[Path, frozenset[str], list[str]]]:
    """A temporary folder with the cabinet's files, their names, and the names that lead out of it.

    cabextract takes the climbing out of such names; what it made of them is not among the names, and not read.
    Raises: Failed, OSError.
    """
    try:
        length, members = members_of(data)
    except ValueError as error:
        raise Failed(f"{what}: {error}; download it again") from error
    if sum(one.size for one in members) > CABINET_MOST:
        raise Failed(f"{what}: holds more than {CABINET_MOST // 2**20} MiB; is it a cabinet of certificates?")
    tool = shutil.which("cabextract")
    if tool is None:
        raise Failed(f"{what}: is a cabinet, and cabextract is missing; install it: apt-get install cabextract")
    climbing = [one.name for one in members if escapes(one.name)]
    with tempfile.TemporaryDirectory(prefix="muster-cab-") as folder:
        cabinet, inside = Path(folder) / "in.cab", Path(folder) / "out"
        cabinet.write_bytes(data[:length])
        inside.mkdir()
        _extract([tool, "--quiet", "--single", "--directory", str(inside), str(cabinet)], what)
        yield inside, frozenset(one.name for one in members) - frozenset(climbing), climbing


def _extract(argv: list[str], what: str) -> None:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            preexec_fn=_limited,  # this command has one thread
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{what}: was not unpacked within {SECONDS} s; is it a cabinet of certificates?") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = clean(said[-1].removeprefix(argv[-1]))[:200] if said else f"status {done.returncode}"
        raise Failed(f"{what}: cabextract refused it ({reason}); download it again")


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (CABINET_MOST, CABINET_MOST))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
