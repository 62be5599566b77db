"""One request and its answer: the route table, the body with its cap and deadline, the reply."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, TypeVar, cast

from aiohttp import HttpVersion10, HttpVersion11, web
from prometheus_client import Counter

from provisioning.access.rates import RateTable, retry_after
from provisioning.http import problems
from provisioning.http.connection import Connection
from provisioning.refusals import (
    MethodNotAllowed,
    NotFound,
    Refusal,
    RequestMalformed,
    RequestTooLarge,
    TooManyRequests,
    TooSlow,
    UnsupportedMediaType,
)
from provisioning.service import Service
from wire.codec import MalformedMessage, decode, encode

T = TypeVar("T")

JSON = "application/json"
PARTS_MOST = 2048
"""Texts, brackets and commas of a message from who may be anybody: evidence over four banks has some 400."""
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._~-]{0,127}"
"""What a variable part of a path may be: nothing that is encoded, hidden, or climbs."""
_BASE64 = r"[A-Za-z0-9+/=%]{1,2048}"
"""What OCSP puts into a path (RFC 6960 appendix A.1); slashes in it are its own."""
_VERSIONS = frozenset({HttpVersion10, HttpVersion11})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NO_STORE = {"Cache-Control": "no-store", **problems.SERVER}
_PLAIN_HEADERS = {"Content-Type": JSON, **NO_STORE}

REQUESTS = Counter("muster_http_requests", "Requests answered", ["listener", "route", "status"])


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as a handler sees it."""

    service: Service
    request: web.BaseRequest
    path: Mapping[str, str]
    """The variable parts of the path, each matched by its pattern."""
    source: str
    arrived: datetime
    """When the request's head was complete: what expiry is judged by, however slow the body is."""

    @property
    def connection(self) -> Connection:
        """The connection that it came by."""
        return cast("Connection", self.request.protocol)

    async def read(self, most: int) -> bytes:
        """The body, at most `most` bytes, within its deadline. Raises: RequestTooLarge, TooSlow, RequestMalformed."""
        self._judge_head(most)
        content, seconds = self.request.content, self.service.config.limits.body_deadline_seconds
        if content.is_eof():  # it came with the head: no timer
            return self._within(most, content.read_nowait(-1))
        body = bytearray()
        with self._reading(seconds):
            async with asyncio.timeout(seconds):
                await self._invite()
                while len(body) <= most and (chunk := await content.readany()):
                    body += chunk
        return self._within(most, bytes(body))

    async def pieces(self, most: int) -> AsyncIterator[bytes]:
        """The body piece by piece, each within the deadline. Raises: as `read`."""
        self._judge_head(most)
        content, seconds = self.request.content, self.service.config.limits.body_deadline_seconds
        length = 0
        with self._reading(seconds):
            await self._invite()
            while True:
                async with asyncio.timeout(seconds):
                    piece = await content.readany()
                if not piece:
                    return
                length += len(piece)
                if length > most:
                    raise RequestTooLarge(expected=f"at most {most} bytes", actual="more")
                yield piece

    async def message(self, cls: type[T], most: int, *, parts: int | None = PARTS_MOST) -> T:
        """The body as a message. Raises: as `read`, UnsupportedMediaType, MalformedMessage."""
        return (await self.message_and_bytes(cls, most, parts=parts))[1]

    async def message_and_bytes(self, cls: type[T], most: int, *, parts: int | None = PARTS_MOST) -> tuple[bytes, T]:
        """The same, with the body as it came."""
        if self.request.content_type != JSON:
            raise UnsupportedMediaType(expected=JSON, actual=self.request.content_type[:100])
        body = await self.read(most)
        return body, decode(cls, body, limit=most, parts=parts)

    def _judge_head(self, most: int) -> None:
        if self.request.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedMediaType(expected="identity", actual="a content encoding")
        if (self.request.content_length or 0) > most:
            raise RequestTooLarge(expected=f"at most {most} bytes", actual=self.request.content_length)

    async def _invite(self) -> None:
        """Answer `Expect: 100-continue` (RFC 9110 section 10.1.1), once the head was judged."""
        if self.request.headers.get("Expect", "").lower() == "100-continue":
            await self.request.writer.write(_CONTINUE)
            self.request.writer.output_size = 0  # the answer proper has not begun

    @contextmanager
    def _reading(self, seconds: int) -> Iterator[None]:
        self.connection.reading_body = True
        try:
            yield
        except TimeoutError as error:
            raise TooSlow(expected=f"a body within {seconds} s", actual="less of it") from error
        except web.RequestPayloadError as error:
            raise RequestMalformed(expected="a whole body", actual="broken off or badly framed") from error
        finally:
            self.connection.reading_body = False

    @staticmethod
    def _within(most: int, body: bytes) -> bytes:
        if len(body) > most:
            raise RequestTooLarge(expected=f"at most {most} bytes", actual="more")
        return body


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path. `{name}` stands for one segment, `{name...}` for one to four, `{name*}` for base64."""

    method: str
    path: str
    handler: Handler
    detailed: bool = False
    """May its caller read expected and actual? Operators may, and stations, who must mend their own rows."""


class Dispatcher:
    """Finds the route, calls it, and turns every refusal into a problem document. What is not listed is not there."""

    def __init__(
        self, listener: str, service: Service, routes: Sequence[Route], rates: RateTable, *, challenge: str = "Bearer"
    ) -> None:
        self._listener = listener
        self._service = service
        self._rates = rates
        self._challenge = challenge
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        self._counters: dict[tuple[str, int], Any] = {}
        for route in routes:
            self._add(route)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        arrived = self._service.clock()
        label, detailed = "unlisted", False
        try:
            source = cast("Connection", request.protocol).source
            if request.version not in _VERSIONS:  # the parser also takes 0.9, whose answers have no head
                raise RequestMalformed(expected="HTTP/1.1", actual="another version")
            if (wait := self._rates.wait_seconds(source, monotonic())) > 0:
                raise too_many(wait)
            route, parameters = self._find(request.method, request.rel_url.raw_path)
            label, detailed = route.path, route.detailed
            answer = await route.handler(Call(self._service, request, parameters, source, arrived))
        except (Refusal, MalformedMessage) as error:
            refusal = problems.as_refusal(error)
            answer = problems.response(refusal, detailed=detailed, headers=self._extra(refusal))
        self._count(label, answer.status)
        return answer

    def _find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        methods = self._exact.get(path)
        parameters: Mapping[str, str] = {}
        if methods is None:
            methods, parameters = self._match(path)
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            raise MethodNotAllowed(expected=", ".join(sorted(methods)), actual=method[:16])
        return route, parameters

    def _match(self, path: str) -> tuple[dict[str, Route], Mapping[str, str]]:
        for pattern, methods in self._patterns:
            if (match := pattern.fullmatch(path)) is not None:
                return methods, match.groupdict()
        raise NotFound(actual=path[:200])

    def _add(self, route: Route) -> None:
        if "{" not in route.path:
            self._exact.setdefault(route.path, {})[route.method] = route
            return
        pattern = re.compile(_pattern(route.path))
        for known, methods in self._patterns:
            if known.pattern == pattern.pattern:
                methods[route.method] = route
                return
        self._patterns.append((pattern, {route.method: route}))

    def _extra(self, refusal: Refusal) -> dict[str, str]:
        if isinstance(refusal, MethodNotAllowed):  # RFC 9110 section 15.5.6: a 405 names what is allowed
            return {"Allow": refusal.expected}
        if problems.STATUS[refusal.problem] == 401:  # noqa: PLR2004  RFC 9110 section 15.5.2: a 401 names a scheme
            return {"WWW-Authenticate": self._challenge}
        return {}

    def _count(self, label: str, status: int) -> None:
        counter = self._counters.get((label, status))
        if counter is None:
            counter = self._counters[label, status] = REQUESTS.labels(self._listener, label, str(status))
        counter.inc()


def reply(message: object, status: int = 200) -> web.Response:
    """A message as the answer."""
    return web.Response(status=status, body=encode(message), headers=_PLAIN_HEADERS)


def query(request: web.BaseRequest, *names: str) -> dict[str, str]:
    """The query's fields, each at most once and each one that the route knows. Raises: RequestMalformed."""
    fields: dict[str, str] = {}
    for name, value in request.rel_url.query.items():
        if name not in names or name in fields:
            raise RequestMalformed(expected=f"once each: {', '.join(names) or 'no query'}", actual=name[:64])
        fields[name] = value
    return fields


def _pattern(path: str) -> str:
    parts = []
    for part in path.split("/"):
        if part.startswith("{") and part.endswith("...}"):
            parts.append(f"(?P<{part[1:-4]}>{_SEGMENT}(?:/{_SEGMENT}){{0,3}})")
        elif part.startswith("{") and part.endswith("*}"):
            parts.append(f"(?P<{part[1:-2]}>{_BASE64})")
        elif part.startswith("{"):
            parts.append(f"(?P<{part[1:-1]}>{_SEGMENT})")
        else:
            parts.append(re.escape(part))
    return "/".join(parts)


def too_many(wait: float) -> TooManyRequests:
    """The refusal of who asks too often, with the time to wait."""
    refusal = TooManyRequests()
    refusal.retry_after_seconds = retry_after(wait)
    return refusal
