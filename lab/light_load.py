"""Load: light devices that enroll over HTTPS, many connections in one thread, and what they measured.

A thread or a coroutine a connection would cost more than the work itself; so this is one loop over non-blocking TLS
sockets, and just as much HTTP/1.1 as the service speaks.
"""

import contextlib
import multiprocessing
import selectors
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from time import monotonic

from cryptography import x509

from lab.light import LightDevice
from lab.light_fleet import load_fleet
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
    """Where to enroll. The server's certificate must chain to `ca_pem` and name `host`."""

    host: str
    port: int
    ca_pem: str


@dataclass(slots=True)
class Report:
    """One run. `identities`: certificate serial and device id. `lost` counts devices by reason.

    `began` and `ended` are seconds of the machine's monotonic clock; `latencies` are seconds from the first byte sent
    to the certificate.
    """

    began: float = 0.0
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)
    identities: list[tuple[int, str]] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        """Enrollments completed a second."""
        return len(self.latencies) / (self.ended - self.began) if self.ended > self.began else 0.0

    def percentile_ms(self, percent: float) -> float:
        """The latency that so many per cent stayed below, in milliseconds."""
        if not self.latencies:
            return 0.0
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which devices of a fleet's folder enroll where, over how many connections, out of how many processes."""

    directory: Path
    first: int
    devices: int
    target: Target
    connections: int = 32
    processes: int = 2
    new_tls: bool = False


def run_plan(plan: Plan) -> Report:
    """Enroll every device of the plan once. Keys, requests and processes are made before the clock.

    Raises: LoadFailed.
    """
    spawn = multiprocessing.get_context("spawn")
    shares = [
        replace(
            plan,
            first=plan.first + plan.devices * number // plan.processes,
            devices=plan.devices * (number + 1) // plan.processes - plan.devices * number // plan.processes,
            connections=max(1, plan.connections // plan.processes),
        )
        for number in range(plan.processes)
    ]
    barrier = spawn.Barrier(plan.processes)
    with ProcessPoolExecutor(plan.processes, spawn, _keep_barrier, (barrier,)) as pool:
        reports = list(pool.map(_run_share, shares))
    return Report(
        min(report.began for report in reports),
        max(report.ended for report in reports),
        [latency for report in reports for latency in report.latencies],
        [identity for report in reports for identity in report.identities],
        sum((report.lost for report in reports), Counter()),
    )


def run_load(
    devices: Iterable[LightDevice],
    target: Target,
    *,
    connections: int,
    new_tls: bool = False,
    ready: Callable[[], object] = lambda: None,
) -> Report:
    """Enroll every device once, in this process; `ready` is called when all is prepared. Raises: LoadFailed."""
    waiting: deque[tuple[LightDevice, bytes]] = deque()
    for device in devices:
        device.warm_up()
        device.prepare()
        waiting.append((device, _post("/v1/enrollments", target, encode(device.request()))))
    run = _Run(target, waiting, Report(), new_tls, ssl.create_default_context(cadata=target.ca_pem))
    lanes = [_Lane(run) for _ in range(min(connections, len(waiting)))]
    ready()
    run.report.began = monotonic()
    for lane in lanes:
        lane.next_device()
    while run.busy:
        events = run.selector.select(STALL_SECONDS)
        if not events:
            raise LoadFailed(f"no answer within {STALL_SECONDS} s; {len(waiting)} devices are still waiting")
        for key, _ in events:
            key.data.on_ready()
    run.report.ended = monotonic()
    for lane in lanes:
        lane.close()
    run.selector.close()
    run.report.identities = [_identity(device, body) for device, body in run.answers]
    return run.report


def verify_identities(report: Report) -> None:
    """No two devices share a certificate or an identity. Raises: LoadFailed."""
    serials, names = ({each[part] for each in report.identities} for part in (0, 1))
    if not len(serials) == len(names) == len(report.identities):
        raise LoadFailed(f"{len(report.identities)} answers, {len(serials)} serials, {len(names)} identities")


def _identity(device: LightDevice, body: bytes) -> tuple[int, str]:
    """Serial and id of what was issued, once it is over the device's key. Raises: LoadFailed."""
    issued = decode(Issued, body, limit=RESPONSE_MOST, ignore_unknown=True)
    if not issued.certificate.strip(b"\0"):  # the null service's
        return len(body), issued.device_id
    certificate = x509.load_der_x509_certificate(issued.certificate)
    if device.device_key is None or certificate.public_key() != device.device_key.private.public_key():
        raise LoadFailed(f"{device.serial} got a certificate over another key")
    return certificate.serial_number, issued.device_id


_barriers: list[Barrier] = []
"""The worker process's one barrier: it cannot travel with a task."""


def _keep_barrier(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _run_share(share: Plan) -> Report:
    devices = load_fleet(share.directory, share.first, share.devices)
    try:
        ready = partial(_barriers[0].wait, STALL_SECONDS)
        return run_load(devices, share.target, connections=share.connections, new_tls=share.new_tls, ready=ready)
    except BrokenBarrierError as error:
        raise LoadFailed("another process of the load did not start") from error


@dataclass(slots=True)
class _Run:
    target: Target
    waiting: deque[tuple[LightDevice, bytes]]
    report: Report
    new_tls: bool
    context: ssl.SSLContext
    answers: list[tuple[LightDevice, bytes]] = field(default_factory=list)
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
        self._began = monotonic()
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
        self._sock = self._run.context.wrap_socket(plain, server_hostname=target.host, do_handshake_on_connect=False)

    def _exchange(self) -> None:
        """Send what waits, else read; never both, so that no lane goes twice before the others had their turn."""
        sock = self._sock
        if sock is None:
            return
        try:
            if self._out:
                while self._out:  # the handshake happens with the first byte
                    self._out = self._out[sock.send(self._out) :]
                self._watch(selectors.EVENT_READ)
                return
            while (response := self._response()) is None:
                piece = sock.recv(_CHUNK)
                if not piece:
                    raise ConnectionResetError("the service closed the connection")
                self._in += piece
        except ssl.SSLWantReadError:
            self._watch(selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(selectors.EVENT_READ | selectors.EVENT_WRITE)
        else:
            self._handler(*response)

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
        self._run.report.latencies.append(monotonic() - self._began)
        self._run.answers.append((self._device, body))
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
