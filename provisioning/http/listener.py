"""Accepts connections: how many, from whom, and how long a TLS handshake may take.

Where there is no room, the connection that has kept us waiting longest makes it: somebody who opens a thousand
connections and says nothing loses his own, and shuts nobody out.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

import structlog
from aiohttp import web

from provisioning.access.rates import RateTable, source_key
from provisioning.config import Limits
from provisioning.http.connection import Connection, Server

BACKLOG = 1024
TLS_SHUTDOWN_SECONDS = 2.0
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_SECONDS = 0.2

_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Slot:
    source: str
    connection: Connection
    handshake: "asyncio.Task[None] | None" = None

    def drop(self) -> None:
        if self.handshake is not None:
            self.handshake.cancel()
        else:
            self.connection.abort()


class Listener:
    """One listening socket and its connections."""

    def __init__(
        self,
        name: str,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        limits: Limits,
        rates: RateTable,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self._limits = limits
        self._rates = rates
        self._tls = tls
        self._server = Server(handle, limits=limits)
        self._slots: dict[_Slot, None] = {}  # in the order of their age
        self._by_source: dict[str, dict[_Slot, None]] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None

    def use(self, tls: ssl.SSLContext) -> None:
        """New connections are served with this context from now on."""
        self._tls = tls

    def start(self, listening: socket.socket) -> None:
        """Serve a bound socket; it belongs to the listener from now on."""
        listening.setblocking(False)  # noqa: FBT003  the standard library's own signature
        listening.listen(BACKLOG)
        self._socket = listening
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listening), name=f"accept {self.name}")

    async def stop(self, grace_seconds: float) -> None:
        """Take no more connections, finish the requests that run, then close."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        for slot in list(self._slots):
            if slot.handshake is not None:
                slot.handshake.cancel()
        self._server.pre_shutdown()
        await self._server.shutdown(grace_seconds)

    @property
    def connections(self) -> int:
        """How many there are, those in the handshake included."""
        return len(self._slots)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    _log.error("http.out_of_descriptors", listener=self.name, connections=len(self._slots))
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue  # else the peer gave up while it waited (accept(2) reports its network's errors)
            source = source_key(address[0])
            if self._rates.wait_seconds(source, monotonic()) > 0 or not self._has_room(source):
                accepted.close()
                continue
            self._open(accepted, source)

    def _open(self, accepted: socket.socket, source: str) -> None:
        slot = _Slot(source, self._server())
        slot.connection.opened_for(source, lambda: self._release(slot))
        self._slots[slot] = None
        self._by_source.setdefault(source, {})[slot] = None
        slot.handshake = asyncio.get_running_loop().create_task(self._establish(accepted, slot.connection))
        slot.handshake.add_done_callback(lambda task: self._established(task, slot, accepted))

    async def _establish(self, accepted: socket.socket, connection: Connection) -> None:
        secured = self._tls is not None  # asyncio refuses TLS deadlines where there is no TLS
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: connection,
            accepted,
            ssl=self._tls,
            ssl_handshake_timeout=self._limits.handshake_deadline_seconds if secured else None,
            ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS if secured else None,
        )

    def _established(self, task: "asyncio.Task[None]", slot: _Slot, accepted: socket.socket) -> None:
        slot.handshake = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return
        accepted.close()  # nobody else does where the task was dropped before its first step
        self._release(slot)
        if not isinstance(error, OSError | asyncio.CancelledError):  # not TLS, the wrong TLS, too slow, gone, dropped
            _log.error("http.connection_defect", listener=self.name, exc_info=error)

    def _release(self, slot: _Slot) -> None:
        self._slots.pop(slot, None)
        if (own := self._by_source.get(slot.source)) is not None:
            own.pop(slot, None)
            if not own:
                del self._by_source[slot.source]

    def _has_room(self, source: str) -> bool:
        own = self._by_source.get(source, {})
        if len(own) >= self._limits.connections_per_address:
            return self._make_room(own)
        return len(self._slots) < self._limits.connections or self._make_room(self._slots)

    def _make_room(self, slots: dict[_Slot, None]) -> bool:
        for slot in slots:
            if slot.handshake is not None or slot.connection.waiting:
                slot.drop()
                self._release(slot)
                return True
        return False
