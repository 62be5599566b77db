"""Requests to the service: sizes and deadlines first, problem documents as named refusals. Nothing is redirected."""

import http.client
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from socket import SHUT_RDWR, socket
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import HTTPResponse

from device_agent.tls import ServiceContext
from wire.codec import MalformedMessage, encode, load, parse_json
from wire.problems import MEDIA_TYPE, REACTION, Problem, ProblemDocument, Reaction, problem_of

T = TypeVar("T")

CONNECT_SECONDS = 10.0
READ_SECONDS = 20.0
DEADLINE_SECONDS = 60.0
ANSWER_MOST = 128 * 1024
PROBLEM_MOST = 16 * 1024
RETRY_AFTER_MOST = 3600
_PIECE = 64 * 1024
_OK, _CREATED, _ACCEPTED, _NO_CONTENT, _PARTIAL = 200, 201, 202, 204, 206
_NOT_FOUND, _TOO_MANY, _SERVER_ERRORS = 404, 429, 500


class HttpFailure(Exception):
    """A request had no good answer."""


class ServiceUnreachable(HttpFailure):
    """Nobody answered, or not in time: the network, an address, a service that is down. Try again later."""


class ServiceNotAuthentic(HttpFailure):
    """Somebody answered who is not the service of the anchor and the trust bundle. Nothing was sent."""


class AnswerMalformed(HttpFailure):
    """The answer is not what the protocol says."""


class NotFound(HttpFailure):
    """The service has nothing there."""


class ApprovalPending(HttpFailure):
    """The evidence passed, but a person must approve first."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("waits for an operator's approval")
        self.retry_after = retry_after


class ServiceRefused(HttpFailure):
    """The service said no: `problem` is its class, None where this agent knows none of that name."""

    def __init__(self, status: int, document: ProblemDocument | None, retry_after: float) -> None:
        self.problem: Problem | None = None if document is None else problem_of(document.type)
        self.code = "" if document is None else document.code
        self.instance = None if document is None else document.instance
        self.status = status
        self.retry_after = retry_after
        title = f"status {status}" if document is None else document.title
        super().__init__(f"{title} ({self.code})" if self.code else title)

    @property
    def reaction(self) -> Reaction:
        """What to do about it. A class that this agent does not know is retried only where the status says so."""
        if self.problem is not None:
            return REACTION[self.problem]
        passing = self.status == _TOO_MANY or self.status >= _SERVER_ERRORS
        return Reaction.RETRY if passing else Reaction.STOP


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer's status and whole body."""

    status: int
    body: bytes
    retry_after: float


class ServiceClient:
    """One listener of the service. It keeps one connection and dials again when that is gone. Not for two threads."""

    def __init__(self, url: str, context: ServiceContext | None) -> None:
        """`context` is None for the public listener without TLS, which serves only signed objects."""
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._context = context
        self._connection: HTTPConnection | None = None

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str, most: int) -> bytes:
        """The body, of at most `most` bytes. Raises: HttpFailure (`NotFound` for 404)."""
        return self._request("GET", path, None, {}, most).body

    def post(self, path: str, message: bytes, kind: type[T], most: int = ANSWER_MOST) -> T:
        """Sends JSON, takes a message of `kind`. Raises: HttpFailure, ApprovalPending."""
        answer = self._request("POST", path, message, {"Content-Type": "application/json"}, most)
        if answer.status == _ACCEPTED:
            raise ApprovalPending(answer.retry_after)
        return parse_answer(kind, answer.body, most)

    def put(self, path: str, content: bytes) -> None:
        """Uploads bytes. Raises: HttpFailure."""
        self._request("PUT", path, content, {"Content-Type": "application/octet-stream"}, ANSWER_MOST)

    def stream(self, path: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """A body in pieces, from `offset` on where the service can; gives the offset at which it starts.

        Its length and its rate are the caller's to watch. Raises: HttpFailure.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._failures():
            response = self._send("GET", path, None, headers)
            if response.status not in (_OK, _PARTIAL):
                self._refuse(response)
            return (offset if response.status == _PARTIAL else 0), self._pieces(response)

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str], most: int) -> Answer:
        try:
            with self._failures(), self._deadline():
                response = self._send(method, path, body, headers)
                if response.status not in (_OK, _CREATED, _ACCEPTED, _NO_CONTENT):
                    self._refuse(response)
                return Answer(response.status, _whole(response, most), _retry_after(response))
        except HttpFailure as failure:
            if not isinstance(failure, ServiceRefused | NotFound):
                self.close()
            raise

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> HTTPResponse:
        fresh = self._connection is None
        connection = self._connection or self._dial()
        sent = {"Accept": f"application/json, {MEDIA_TYPE}, */*;q=0.1", "User-Agent": "muster-agent", **headers}
        try:
            return _exchange(connection, method, self._prefix + path, body, sent)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
            self.close()
            if fresh:
                raise
        # A kept connection may have been closed by the service meanwhile: once more, on a new one.
        return _exchange(self._dial(), method, self._prefix + path, body, sent)

    def _dial(self) -> HTTPConnection:
        if self._secure and self._context is not None:
            connection: HTTPConnection = HTTPSConnection(
                self._host, self._port, timeout=CONNECT_SECONDS, ssl_context=self._context, cert_reqs="CERT_REQUIRED"
            )
        elif self._secure:
            raise ServiceNotAuthentic("a TLS listener is reached only with the trust bundle's roots")
        else:
            connection = HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(READ_SECONDS)
        self._connection = connection
        return connection

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        """Ends the connection when the whole answer takes too long, however steadily it drips."""
        timer = threading.Timer(DEADLINE_SECONDS, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        connection = self._connection
        sock = None if connection is None else connection.sock
        if isinstance(sock, socket):
            socket.shutdown(sock, SHUT_RDWR)  # not SSLSocket's own: the reading thread still uses its TLS state

    @contextmanager
    def _failures(self) -> Iterator[None]:
        where = f"{self._host}:{self._port}"
        try:
            yield
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            self.close()
            if isinstance(found := _cause(error, ssl.SSLCertVerificationError), ssl.SSLCertVerificationError):
                reason = found.verify_message if hasattr(found, "verify_message") else str(found)
                raise ServiceNotAuthentic(f"{where} is not the service of the anchor: {reason}") from error
            if isinstance(refused := _cause(error, ssl.SSLError), ssl.SSLError):
                raise ServiceUnreachable(f"TLS with {where}: {refused.reason or refused}") from error
            raise ServiceUnreachable(f"{where}: {_short(error)}") from error

    def _refuse(self, response: HTTPResponse) -> None:
        retry_after = _retry_after(response)
        kind = response.headers.get("Content-Type", "").split(";")[0].strip()
        try:
            body = _whole(response, PROBLEM_MOST)
            document = None if kind != MEDIA_TYPE else parse_answer(ProblemDocument, body, PROBLEM_MOST)
        except AnswerMalformed:
            self.close()
            document = None
        if response.status == _NOT_FOUND and (document is None or problem_of(document.type) is Problem.NOT_FOUND):
            raise NotFound(f"{self._host}:{self._port} has nothing there")
        raise ServiceRefused(response.status, document, retry_after)

    def _pieces(self, response: HTTPResponse) -> Iterator[bytes]:
        with self._failures():
            yield from response.stream(_PIECE, decode_content=False)


def parse_answer(kind: type[T], body: bytes, most: int) -> T:
    """A response of this kind. Unknown fields are ignored, but those that the response calls critical are refused.

    Raises: AnswerMalformed.
    """
    try:
        value = parse_json(body, limit=most)
        critical = value.get("crit", []) if isinstance(value, dict) else []
        known = {one.name for one in fields(kind)}  # type: ignore[arg-type]  # every message is a dataclass
        if not isinstance(critical, list) or not all(isinstance(name, str) and name in known for name in critical):
            raise AnswerMalformed("the answer calls a field critical that this agent does not know: update the agent")
        return load(kind, value, ignore_unknown=True)
    except MalformedMessage as error:
        raise AnswerMalformed(f"the answer is not a {kind.__name__}: {error}") from error


def to_body(message: object) -> bytes:
    """A message as the JSON of a request."""
    return encode(message)


def _exchange(
    connection: HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> HTTPResponse:
    connection.request(method, path, body=body, headers=headers, preload_content=False, decode_content=False)
    return connection.getresponse()


def _whole(response: HTTPResponse, most: int) -> bytes:
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > most:
        raise AnswerMalformed(f"the answer has {announced} bytes, more than {most}")
    content = bytearray()
    while piece := response.read(min(_PIECE, most + 1 - len(content)), decode_content=False):
        content += piece
        if len(content) > most:
            raise AnswerMalformed(f"the answer has more than {most} bytes")
    return bytes(content)


def _retry_after(response: HTTPResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(min(int(text), RETRY_AFTER_MOST)) if text.isdecimal() and len(text) < 10 else 0.0  # noqa: PLR2004  digits


def _cause(error: BaseException, kind: type[BaseException]) -> Any:  # noqa: ANN401  an instance of `kind` or None
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        arguments = found.args[0] if found.args else None
        found = found.__cause__ or found.__context__ or (arguments if isinstance(arguments, BaseException) else None)
    return found


def _short(error: BaseException) -> str:
    text = str(error)
    return text.rsplit(": ", 1)[-1] if isinstance(error, urllib3.exceptions.NewConnectionError) else text
