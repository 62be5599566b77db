"""A listener of ours on a real socket, with routes and limits that a test chooses; and a client that speaks bytes."""

import asyncio
import socket
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

from provisioning.access.rates import Rate, RateTable
from provisioning.config import Config, Limits
from provisioning.http.exchange import Dispatcher
from provisioning.http.listener import Listener

FAST = Rate(100_000, 100_000)
PATIENCE_SECONDS = 20
"""How long a test waits for what must happen; no test asserts on a time."""


def limits(**changes):
    """Deadlines of a second, room for everybody."""
    short = {
        "header_deadline_seconds": 1,
        "body_deadline_seconds": 1,
        "idle_seconds": 1,
        "handshake_deadline_seconds": 1,
    }
    return Limits(**{**short, **changes})


def service(bounds):
    """What a handler and the dispatcher need of a service."""
    return SimpleNamespace(
        config=Config("muster.test", limits=bounds), clock=lambda: datetime.now(UTC), entropy=lambda n: b"\x01" * n
    )


@contextmanager
def no_loose_ends():
    """Fails where a callback of the event loop raised: asyncio would only log it."""
    seen = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: seen.append(context))
    yield
    loop.set_exception_handler(None)
    assert seen == []


@asynccontextmanager
async def listening(*routes, bounds=None, tls=None, rate=FAST):
    """A listener on a free port of loopback; gives the listener with `.port`."""
    bounds = bounds or limits()
    rates = RateTable(rate)
    listener = Listener("test", Dispatcher("test", service(bounds), routes, rates), limits=bounds, rates=rates, tls=tls)
    bound = socket.create_server(("127.0.0.1", 0))
    listener.port = bound.getsockname()[1]
    with no_loose_ends():
        listener.start(bound)
        try:
            yield listener
        finally:
            await listener.stop(1.0)
            await asyncio.sleep(0)
        assert listener.connections == 0


async def connect(port, **options):
    """A connection in bytes."""
    return await asyncio.open_connection("127.0.0.1", port, **options)


async def until_closed(reader):
    """Everything up to the other side's end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def exchange(port, data, **options):
    """Send bytes, read until the other side closes."""
    reader, writer = await connect(port, **options)
    writer.write(data)
    answer = await until_closed(reader)
    writer.close()
    return answer


async def answer(reader):
    """One answer: `(status, headers, body)`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body


def post(path, body=b"", *headers, close=True):
    """A request's bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    lines += ["Connection: close"] * close
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
