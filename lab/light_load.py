"""Load: light devices that enroll over HTTPS, many connections in one thread, and what they measured.

A thread or a coroutine a connection would cost more than the work itself; so this is one loop over non-blocking TLS
sockets, and just as much HTTP/1.1 as the service speaks.
"""

import contextlib
import selectors
import socket
import ssl
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lab.light import LightDevice
from wire.codec import MalformedMessage, decode, encode
from wire.messages import Challenge, Issued

STALL_SECONDS = 60
"""No answer at all for so long: the run fails."""
RESPONSE_MOST = 64 * 1024
_CHUNK = 64 * 1024
_CREATED = 201
_OK = 200


class LoadFailed(RuntimeError):
    """The run says nothing about the service's speed; the message is one line."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to enroll. The server's certificate is verified against `context` for `host`."""

    host: str
    port: int
    context: ssl.SSLContext


@dataclass(slots=True)
class Report:
    """One run. `latencies` in seconds, from the first byte sent to the certificate. `lost` counts devices by reason."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: list[tuple[LightDevice, bytes]] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        """Enrollments completed a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float:
        """The latency that so many per cent stayed below, in milliseconds."""
        if not self.latencies:
            return 0.0
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def run_load(devices: Iterable[LightDevice], target: Target, *, connections: int, new_tls: bool = False) -> Report:
    """Enroll every device once; `new_tls` opens a connection for each. Keys and requests are made before the clock.

    Raises: LoadFailed.
    """
    waiting: deque[tuple[LightDevice, bytes]] = deque()
    for device in devices:
        device.prepare()
        waiting.append((device, _post("/v1/enrollments", target, encode(device.request()))))
    run = _Run(target, waiting, Report(), new_tls)
    lanes = [_Lane(run) for _ in range(min(connections, len(waiting)))]
    began = perf_counter()
    for lane in lanes:
        lane.next_device()
    while run.busy:
        ready = run.selector.select(STALL_SECONDS)
        if not ready:
            raise LoadFailed(f"no answer within {STALL_SECONDS} s; {len(waiting)} devices are still waiting")
        for key, _ in ready:
            key.data.on_ready()
    run.report.seconds = perf_counter() - began
    for lane in lanes:
        lane.close()
    run.selector.close()
    return run.report


def verify_answers(report: Report) -> None:
    """Every certificate is over its device's key, and no two devices share an identity. Raises: LoadFailed."""
    serials: set[int] = set()
    names: set[str] = set()
    for device, body in report.answers:
        issued = decode(Issued, body, limit=RESPONSE_MOST, ignore_unknown=True)
        certificate = x509.load_der_x509_certificate(issued.certificate)
        assert device.device_key is not None  # noqa: S101  it enrolled
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if certificate.public_key().public_bytes(*spki) != device.device_key.private.public_key().public_bytes(*spki):
            raise LoadFailed(f"{device.serial} got a certificate over another key")
        serials.add(certificate.serial_number)
        names.add(issued.device_id)
    if not len(serials) == len(names) == len(report.answers):
        raise LoadFailed(f"{len(report.answers)} answers, {len(serials)} serials, {len(names)} identities")


@dataclass(slots=True)
class _Run:
    target: Target
    waiting: deque[tuple[LightDevice, bytes]]
    report: Report
    new_tls: bool
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    busy: int = 0


class _Lane:
    """One connection at a time, and the device that speaks on it."""

    __slots__ = ("_began", "_device", "_events", "_handler", "_in", "_out", "_run", "_sock")

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._sock: ssl.SSLSocket | None = None
        self._events = 0
        self._in = bytearray()
        self._out = b""
        self._device: LightDevice | None = None
        self._began = 0.0
        self._handler = self._on_challenge
        run.busy += 1

    def next_device(self) -> None:
        """Let the next device begin, or rest."""
        if self._run.new_tls:
            self.close()
        if not self._run.waiting:
            self._run.busy -= 1
            self._watch(0)
            return
        self._device, self._out = self._run.waiting.popleft()
        self._handler = self._on_challenge
        self._began = perf_counter()
        if self._sock is None:
            self._open()
        self.on_ready()

    def on_ready(self) -> None:
        """Send what waits, read what came, and answer a whole response."""
        try:
            self._exchange()
        except (OSError, ValueError, MalformedMessage) as error:
            self._lose(f"{type(error).__name__}: {error}"[:200])

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._sock is not None:
            self._watch(0)
            with contextlib.suppress(OSError):
                self._sock.close()
            self._sock = None
        self._in.clear()

    def _open(self) -> None:
        target = self._run.target
        try:
            plain = socket.create_connection((target.host, target.port), timeout=10)
        except OSError as error:
            raise LoadFailed(f"{target.host}:{target.port}: {error}") from error
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setblocking(False)  # noqa: FBT003  the name says it
        self._sock = target.context.wrap_socket(plain, server_hostname=target.host, do_handshake_on_connect=False)

    def _exchange(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            while self._out:  # the handshake happens with the first byte
                self._out = self._out[sock.send(self._out) :]
            while True:
                piece = sock.recv(_CHUNK)
                if not piece:
                    raise ConnectionResetError("the service closed the connection")
                self._in += piece
                if (response := self._response()) is not None:
                    self._handler(*response)
                    return
        except ssl.SSLWantReadError:
            self._watch(selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _response(self) -> tuple[int, bytes] | None:
        """Status and body, once all of it is here."""
        head_end = self._in.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        head = bytes(self._in[:head_end]).lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            raise ValueError("a response without Content-Length")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        if length > RESPONSE_MOST:
            raise ValueError(f"a response of {length} bytes")
        end = head_end + 4 + length
        if len(self._in) < end:
            return None
        body = bytes(self._in[head_end + 4 : end])
        del self._in[:end]
        return int(head[9:12]), body

    def _on_challenge(self, status: int, body: bytes) -> None:
        if status != _CREATED:
            self._lose(f"{status} {body[:300].decode(errors='replace')}")
            return
        device = self._device
        assert device is not None  # noqa: S101  it asked
        challenge = decode(Challenge, body, limit=RESPONSE_MOST, ignore_unknown=True)
        path = f"/v1/enrollments/{challenge.enrollment_id}/evidence"
        self._out = _post(path, self._run.target, encode(device.answer(challenge)))
        self._handler = self._on_issued
        self._exchange()

    def _on_issued(self, status: int, body: bytes) -> None:
        if status != _OK:
            self._lose(f"{status} {body[:300].decode(errors='replace')}")
            return
        assert self._device is not None  # noqa: S101  it asked
        self._run.report.latencies.append(perf_counter() - self._began)
        self._run.report.answers.append((self._device, body))
        self.next_device()

    def _lose(self, why: str) -> None:
        self._run.report.lost[why] += 1
        self.close()
        self.next_device()

    def _watch(self, events: int) -> None:
        """Tell the selector what this lane waits for, only where that changed."""
        if events == self._events or self._sock is None:
            return
        if not events:
            self._run.selector.unregister(self._sock)
        elif self._events:
            self._run.selector.modify(self._sock, events, self)
        else:
            self._run.selector.register(self._sock, events, self)
        self._events = events


def _post(path: str, target: Target, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
