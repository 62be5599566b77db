"""One HTTP connection with a deadline for everything a peer can be slow at. aiohttp parses; the deadlines are ours.

| what the peer is slow at | deadline |
| --- | --- |
| a request's head | `header_deadline_seconds`, from the connection or from the head's first byte |
| the next request | `idle_seconds` (aiohttp's keep-alive time-out) |
| a request's body | `body_deadline_seconds` (`exchange.Call.read`) |
| taking the answer | `WRITE_SECONDS` for each buffer, `CLOSING_SECONDS` for the last one |
"""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from provisioning.config import Limits
from provisioning.http import problems
from provisioning.refusals import Busy, RequestMalformed

WRITE_SECONDS = 15.0
CLOSING_SECONDS = 5.0
LINGERING_SECONDS = 2.0
HEAD_LINE_MOST = 8190
HEAD_FIELDS_MOST = 64

_log = structlog.get_logger()


class Connection(RequestHandler):
    """A connection that a slow or hostile peer cannot hold for longer than the deadlines say."""

    __slots__ = ("_head_timer", "_limits", "_lost", "_on_lost", "identity", "reading_body", "source")

    def __init__(self, server: "Server", *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=server.limits.idle_seconds,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp spells "no access log"
            lingering_time=LINGERING_SECONDS,
            max_line_size=HEAD_LINE_MOST,
            max_field_size=HEAD_LINE_MOST,
            max_headers=HEAD_FIELDS_MOST,
            # A compressed body is refused, not unpacked: sizes are judged on the bytes that arrive.
            auto_decompress=False,
        )
        self._limits = server.limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._on_lost: Callable[[], None] | None = None
        self.source = ""
        """The peer's address, as the limits count it."""
        self.identity: Any = None
        """What the client certificate says; parsed once a connection (`auth`)."""
        self.reading_body = False

    def opened_for(self, source: str, on_lost: Callable[[], None]) -> "Connection":
        """Say whose connection this is, and what to call once when it ends."""
        self.source, self._on_lost = source, on_lost
        return self

    @property
    def waiting(self) -> bool:
        """Is it the peer's turn? Such a connection may be dropped where room is needed."""
        return self.reading_body or self.transport is None or self._awaits_head()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over: the first head is due."""
        super().connection_made(transport)
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and keep the clock of an unfinished head."""
        parsed = self._request_count
        super().data_received(data)
        if self._request_count != parsed:
            self._stop_head_timer()
        elif self._head_timer is None and self._awaits_head():
            self._start_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Free what the connection held."""
        self._lost = True
        self._stop_head_timer()
        try:
            super().connection_lost(exc)
        finally:
            if self._on_lost is not None:
                on_lost, self._on_lost = self._on_lost, None
                on_lost()

    def force_close(self) -> None:
        """Close; what the peer does not take in time is dropped."""
        transport = self.transport
        super().force_close()
        self._abort_if_not_taken(transport)

    def abort(self) -> None:
        """End it now, without goodbye."""
        if self.transport is not None:
            self.transport.abort()

    async def start(self) -> None:
        """Serve requests until one side has enough."""
        await super().start()
        self._abort_if_not_taken(self.transport)

    async def _drain_helper(self) -> None:
        # Every write of every answer waits here and nowhere else, so this is the one place for the deadline.
        if not self.writing_paused:
            return
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await super()._drain_helper()
        except TimeoutError:
            self.abort()
            raise ConnectionResetError("the peer does not take its answer") from None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The outer edge: bad HTTP is refused without a word in the log, a defect is logged once."""
        if request.writer.output_size > 0:  # part of an answer is on its way: nothing can be said any more
            raise ConnectionResetError("the answer had begun") from exc
        if status < 500:  # noqa: PLR2004  aiohttp's class for a request that it could not parse
            answer = problems.response(RequestMalformed(expected="HTTP/1.1", actual=message), detailed=False)
            answer.force_close()
            return answer
        _log.error("http.defect", route=request.path[:200], method=request.method[:16], exc_info=exc)
        if exc is None:  # a TimeoutError that nobody named
            return problems.response(Busy(), detailed=False)
        return problems.defect()

    def _awaits_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _start_head_timer(self) -> None:
        self._head_timer = self._loop.call_later(self._limits.header_deadline_seconds, self.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _abort_if_not_taken(self, transport: asyncio.Transport | None) -> None:
        # A transport that is gone cannot even be asked.
        if not self._lost and transport is not None and transport.get_write_buffer_size() > 0:
            self._loop.call_later(CLOSING_SECONDS, transport.abort)


class Server(web.Server):
    """Makes the connections of one listener."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], *, limits: Limits) -> None:
        super().__init__(handler)
        self.limits = limits

    def __call__(self) -> Connection:
        """One more connection."""
        return Connection(self, loop=self._loop)
