"""A hostile broker, as a proxy in front of the service's socket: it reads all, and forges, replays, reorders, drops.

It cannot sit in front of the devices' listener without the broker's TLS key, and need not: whatever a broker can do to
a message, it can do here, between itself and the bridge, in both directions.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

Direction = Literal["up", "down"]

_CONNECT, _PUBLISH, _PUBACK = 0x10, 0x30, 0x40  # MQTT 3.1.1 section 2.2.1
_CLIENT = b"service:bridge"


@dataclass(frozen=True, slots=True)
class Passing:
    """A message on its way: `up` from a device to the service, `down` to a device."""

    direction: Direction
    topic: str
    payload: bytes


Mischief = Callable[[Passing], Iterable[Passing]]
"""What passes on in place of a message: nothing, the same, another, several."""


def honest(message: Passing) -> Iterable[Passing]:
    """No mischief."""
    return (message,)


def drop_every(count: int) -> Mischief:
    """Each `count`-th message is lost, though its sender gets a receipt."""
    seen = 0

    def mischief(message: Passing) -> Iterable[Passing]:
        nonlocal seen
        seen += 1
        return () if seen % count == 0 else (message,)

    return mischief


def replay(most: int = 50) -> Mischief:
    """Behind each message comes every message that passed before, in its direction."""
    kept: list[Passing] = []

    def mischief(message: Passing) -> Iterable[Passing]:
        again = [old for old in kept if old.direction == message.direction]
        kept.append(message)
        del kept[:-most]
        return (message, message, *again)

    return mischief


def reorder() -> Mischief:
    """Messages of one direction change places in pairs; the second of a pair comes first."""
    held: dict[Direction, Passing] = {}

    def mischief(message: Passing) -> Iterable[Passing]:
        first = held.pop(message.direction, None)
        if first is None:
            held[message.direction] = message
            return ()
        return (message, first)

    return mischief


def forge() -> Mischief:
    """Before each message come its forgeries: each with a byte changed, cut, empty, or meant for another device."""

    def mischief(message: Passing) -> Iterable[Passing]:
        payload = message.payload
        middle = len(payload) // 2
        changed = payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :] if payload else b"x"
        other = f"muster/v1/d-of-somebody-else/{message.direction}"
        forged = [replace(message, payload=data) for data in (changed, payload[:middle], b"", b"{}", b"\xff" * 1000)]
        return (*forged, replace(message, topic=other), message)

    return mischief


class HostileBroker:
    """Puts itself in the place of the broker's socket; the bridge meets it at its next connection.

    `mischief` may be exchanged while it runs. `seen` are the messages that came by, before the mischief.
    """

    def __init__(self, socket: Path, mischief: Mischief = honest) -> None:
        self.mischief = mischief
        self.seen: list[Passing] = []
        self._socket = socket
        self._true = socket.with_name("true.sock")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hostile broker", daemon=True)
        self._server: asyncio.Server | None = None
        self._targets: dict[Direction, asyncio.StreamWriter] = {}

    def __enter__(self) -> Self:
        """Step in between."""
        self._thread.start()
        self._socket.rename(self._true)
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.disconnect()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the broker its socket back."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._socket.unlink(missing_ok=True)
        self._true.rename(self._socket)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def disconnect(self) -> None:
        """End the bridge's present connection, by claiming its client id; it comes again, and meets us."""
        asyncio.run_coroutine_threadsafe(self._take_over(), self._loop).result(10)

    def inject(self, messages: Iterable[Passing]) -> None:
        """Send these now, out of nothing."""
        self._loop.call_soon_threadsafe(self._inject, tuple(messages))

    def _inject(self, messages: tuple[Passing, ...]) -> None:
        for message in messages:
            if (target := self._targets.get(message.direction)) is not None:
                target.write(_publish(message, None))

    async def _listen(self) -> None:
        with _near(self._socket) as path:
            self._server = await asyncio.start_unix_server(self._carry, path)

    async def _take_over(self) -> None:
        with _near(self._true) as path:
            reader, writer = await asyncio.open_unix_connection(path)
        flags = b"\x80"  # a user name, and the session that is there stays
        name = len(_CLIENT).to_bytes(2, "big") + _CLIENT
        body = b"\x00\x04MQTT\x04" + flags + b"\x00\x0a" + name + name
        writer.write(bytes([_CONNECT, len(body)]) + body)
        await reader.readexactly(4)
        writer.close()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with _near(self._true) as path:
            true_reader, true_writer = await asyncio.open_unix_connection(path)
        self._targets = {"down": true_writer, "up": writer}
        ways = (
            self._one_way("down", reader, true_writer, writer),
            self._one_way("up", true_reader, writer, true_writer),
        )
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            writer.close()
            true_writer.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one_way(
        self,
        direction: Direction,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        while True:
            kind, body = await _packet(source)
            if kind & 0xF0 != _PUBLISH:
                target.write(_framed(kind, body))
                continue
            message, packet_id = _parse(direction, kind, body)
            self.seen.append(message)
            results = list(self.mischief(message))
            for result in results:
                kept = packet_id if result is message and packet_id is not None else None
                if kept is not None:
                    packet_id = None  # the true one goes once under its own id; its copies have none
                target.write(_publish(result, kept))
            if packet_id is not None:
                back.write(_framed(_PUBACK, packet_id))
            await target.drain()


@contextlib.contextmanager
def _near(socket: Path) -> Iterator[str]:
    """A path short enough for a Unix address, however deep the folder lies."""
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)


async def _packet(source: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await source.readexactly(1))[0]
    length = shift = 0
    while True:
        digit = (await source.readexactly(1))[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            return kind, await source.readexactly(length)


def _framed(kind: int, body: bytes) -> bytes:
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | 0x80 if length else digit)
        if not length:
            return bytes([kind]) + bytes(digits) + body


def _parse(direction: Direction, kind: int, body: bytes) -> tuple[Passing, bytes | None]:
    end = 2 + int.from_bytes(body[:2], "big")
    topic, rest = body[2:end].decode(), body[end:]
    if kind & 0x06:
        return Passing(direction, topic, rest[2:]), rest[:2]
    return Passing(direction, topic, rest), None


def _publish(message: Passing, packet_id: bytes | None) -> bytes:
    topic = message.topic.encode()
    head = len(topic).to_bytes(2, "big") + topic
    if packet_id is None:
        return _framed(_PUBLISH, head + message.payload)
    return _framed(_PUBLISH | 0x02, head + packet_id + message.payload)
