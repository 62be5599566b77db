"""Signed objects as files: TUF repositories, CA certificates, the CRL. Nothing here needs to be secret or vouched for.

A path is matched against an allow-list before it meets the file system (the route table's pattern: no hidden name, no
climbing, nothing encoded), and the last step does not follow a link.
"""

import asyncio
import errno
import os
import re
import stat
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from aiohttp import web

from provisioning.http.exchange import Call
from provisioning.http.problems import SERVER
from provisioning.refusals import Busy, NotFound

CHUNK = 256 * 1024
"""Bytes; a file of at most that is read and sent in one piece."""
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


@dataclass(frozen=True, slots=True)
class _Open:
    descriptor: int
    size: int
    etag: str
    modified: str


async def send_file(
    request: web.BaseRequest, root: Path, name: str, *, content_type: str, max_age_seconds: int
) -> web.StreamResponse:
    """A regular file under `root`, whole or the range that is asked for (RFC 9110 section 14). Raises: NotFound."""
    opened = await asyncio.to_thread(_open, root / name)
    try:
        headers = {
            "Content-Type": content_type,
            "ETag": opened.etag,
            "Last-Modified": opened.modified,
            "Accept-Ranges": "bytes",
            "Cache-Control": f"max-age={max_age_seconds}",
            "X-Content-Type-Options": "nosniff",
            **SERVER,
        }
        if opened.etag in (tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")):
            return web.Response(status=304, headers=headers)
        return await _send(request, opened, headers)
    finally:
        os.close(opened.descriptor)


async def receive_file(call: Call, path: Path, most: int) -> None:
    """The request's body as a file: whole, or not at all. Each piece has the body's deadline.

    Raises: RequestTooLarge, TooSlow, RequestMalformed, Busy (the disk).
    """
    beside = path.with_name(f".{path.name}.{call.service.entropy(8).hex()}")
    descriptor = await asyncio.to_thread(_create, beside)
    try:
        async for piece in call.pieces(most):
            await asyncio.to_thread(_write, descriptor, piece)
        await asyncio.to_thread(_finish, descriptor, beside, path)
    except OSError as error:
        raise Busy(expected="room on the disk", actual=error.strerror) from error
    finally:
        os.close(descriptor)
        beside.unlink(missing_ok=True)


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and length out of a Range header of one range; None: send the whole (RFC 9110 lets a server ignore it).

    Raises: ValueError where no byte of it exists.
    """
    match = _RANGE.fullmatch(header)
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise ValueError(header)
        return size - length, length
    start, end = int(first), min(int(last or size - 1), size - 1)
    if start >= size:
        raise ValueError(header)
    return (start, end - start + 1) if end >= start else None


async def _send(request: web.BaseRequest, opened: _Open, headers: dict[str, str]) -> web.StreamResponse:
    status, start, length = 200, 0, opened.size
    if "Range" in request.headers and request.headers.get("If-Range", opened.etag) == opened.etag:
        try:
            part = wanted_range(request.headers["Range"], opened.size)
        except ValueError:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{opened.size}", **SERVER})
        if part is not None:
            start, length = part
            status = 206
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{opened.size}"
    if length <= CHUNK:
        body = await asyncio.to_thread(os.pread, opened.descriptor, length, start)
        return web.Response(status=status, headers=headers, body=body)
    return await _stream(request, opened.descriptor, start, length, web.StreamResponse(status=status, headers=headers))


async def _stream(
    request: web.BaseRequest, descriptor: int, start: int, length: int, answer: web.StreamResponse
) -> web.StreamResponse:
    answer.content_length = length
    await answer.prepare(request)
    if request.method == "HEAD":
        return answer
    while length > 0:
        chunk = await asyncio.to_thread(os.pread, descriptor, min(CHUNK, length), start)
        if not chunk:  # cut while it was sent; the length that was announced tells the client
            raise ConnectionResetError("the file became shorter")
        await answer.write(chunk)
        start, length = start + len(chunk), length - len(chunk)
    return answer


def _open(path: Path) -> _Open:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise NotFound(actual=path.name) from error
        raise Busy(expected="a readable file", actual=error.strerror) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotFound(actual=path.name)
    # Files are replaced by renaming: another content is another inode.
    etag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'
    return _Open(descriptor, status.st_size, etag, formatdate(status.st_mtime, usegmt=True))


def _create(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _finish(descriptor: int, beside: Path, path: Path) -> None:
    os.fsync(descriptor)
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
