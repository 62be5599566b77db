"""Fetch one signed target: resumed, bounded in length and in slowness, hashed as it comes, durable before it counts.

The transport is a callable. Its own time-outs bound how long it may stay silent; here only bytes that arrive are
judged.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ota import refusals
from ota.files import remove_file, sync_folder
from ota.source import SourceUnavailable

OpenStream = Callable[[int], tuple[int, Iterator[bytes]]]
"""`(offset) -> (where the first byte stands, the pieces)`. A server that knows no ranges starts at 0.

Raises, at the call or from the iterator: SourceUnavailable, NotFoundAtSource.
"""
_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow, and how often broken, a download may be.

    Slower is refused: it is a way to keep a device from updating.
    """

    least_bytes_per_second: int = 1024
    window_seconds: float = 30.0
    attempts: int = 6
    pause_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What the signed metadata says of the bytes."""

    name: str
    length: int
    sha256: bytes


def download(
    open_stream: OpenStream,
    destination: Path,
    expected: Expected,
    *,
    pace: Pace,
    monotonic: Callable[[], float],
    pause: Callable[[float], None],
) -> None:
    """Leave exactly the expected bytes at `destination`, or nothing there.

    What came before a break stays beside it (`.part`) and is gone on with, also in a later call; it is believed no more
    than the rest: the hash is taken over all of it.

    Raises: LengthWrong, TargetTampered, TooSlow, DownloadBroken, NoSpace, NotFoundAtSource.
    """
    part = destination.with_name(destination.name + ".part")
    if _is_whole(destination, expected):
        return
    for resumed in (part.exists(), False):
        try:
            digest = _fill(open_stream, part, expected, _Watch(pace, monotonic), pause)
        except OSError as error:
            raise _named(error, expected) from error
        except refusals.LengthWrong:
            remove_file(part)
            raise
        if digest == expected.sha256:
            part.replace(destination)
            sync_folder(destination.parent)
            return
        remove_file(part)
        if not resumed:  # what was resumed may have been spoiled on this side: then once more from the start
            break
    raise refusals.TargetTampered(expected.name, expected=expected.sha256, actual=digest)


class _Watch:
    """The rate floor: each window of time must bring its bytes, over all connections of one download."""

    def __init__(self, pace: Pace, monotonic: Callable[[], float]) -> None:
        self.pace = pace
        self._monotonic = monotonic
        self._start = monotonic()
        self._seen = 0

    def rest(self, pause: Callable[[float], None], seconds: float) -> None:
        """Wait before the next connection; that time is not the source's."""
        before = self._monotonic()
        pause(seconds)
        self._start += self._monotonic() - before

    def saw(self, count: int) -> None:
        self._seen += count
        elapsed = self._monotonic() - self._start
        if elapsed < self.pace.window_seconds:
            return
        if self._seen < elapsed * self.pace.least_bytes_per_second:
            least = f"{self.pace.least_bytes_per_second} bytes/s"
            raise refusals.TooSlow(expected=least, actual=f"{self._seen / elapsed:.0f} bytes/s")
        self._start, self._seen = self._monotonic(), 0


def _fill(
    open_stream: OpenStream, part: Path, expected: Expected, watch: _Watch, pause: Callable[[float], None]
) -> bytes:
    """Bring `part` to its full length; the SHA-256 of what is in it."""
    with part.open("a+b") as file:
        hasher = hashlib.sha256()
        have = _rehash(file, hasher, expected.length)
        for attempt in range(watch.pace.attempts):
            if have == expected.length:
                break
            if attempt:
                watch.rest(pause, watch.pace.pause_seconds * 2**attempt)
            try:
                start, pieces = open_stream(have)
                if start == 0 and have:
                    file.truncate(0)
                    hasher, have = hashlib.sha256(), 0
                if start != have:
                    raise refusals.LengthWrong(expected.name, expected=f"bytes from {have}", actual=f"from {start}")
                for piece in pieces:
                    have += len(piece)
                    if have > expected.length:
                        raise refusals.LengthWrong(expected.name, expected=expected.length, actual=f"{have} or more")
                    file.write(piece)
                    hasher.update(piece)
                    watch.saw(len(piece))
            except SourceUnavailable:
                continue
            finally:
                file.flush()
        if have != expected.length:
            raise refusals.DownloadBroken(expected.name, expected=f"{expected.length} bytes", actual=f"{have} bytes")
        os.fsync(file.fileno())
        return hasher.digest()


def _rehash(file: BinaryIO, hasher: "hashlib._Hash", length: int) -> int:
    """Take what is there into the hash. More than the length is not of this target: it is dropped."""
    if file.seek(0, os.SEEK_END) > length:
        file.truncate(0)
    file.seek(0)
    return _hash_rest(file, hasher)


def _is_whole(path: Path, expected: Expected) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        if _hash_rest(file, hasher) == expected.length and hasher.digest() == expected.sha256:
            return True
    remove_file(path)
    return False


def _hash_rest(file: BinaryIO, hasher: "hashlib._Hash") -> int:
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return file.tell()


def _named(error: OSError, expected: Expected) -> Exception:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return refusals.NoSpace(expected.name, expected=f"{expected.length} bytes", actual=error.strerror or "less")
    return error
