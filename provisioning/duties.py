"""What runs once per installation, in the process that holds the lease: bridge, outbox, CRL, log, trust, expiry.

A duty is a function and a period. One that fails is logged once, tried again after a pause, and disturbs no other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import Counter, Gauge
from sqlalchemy import Connection

from ota.files import replace_file
from ota.repository import refresh_online
from provisioning import journal, outbox, revoking, rotation
from provisioning.db import commands, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.refusals import Refusal
from provisioning.service import Service
from provisioning.transparency import Checkpoint, Tree, append, checkpoint_text, root_of, signed_note
from wire.codec import parse_json, parse_rfc3339

LEASE = "duties"
LEASE_SECONDS = 15
LEASE_RENEWAL_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 30.0
OUTBOX_SECONDS = 0.2
CRL_SECONDS = 0.5
CHECKPOINT_SECONDS = 1.0
EXPIRY_SECONDS = 60.0
STRANGERS_SECONDS = 60.0
TRUST_SECONDS = 600.0
TRUST_LEFT = timedelta(days=6)
"""The online roles of the trust repository are signed again when less than this is left of their week."""
TIMESTAMP_MOST = 64 * 1024
BROKER_RELOADED_SECONDS = (0.4, 1.2)
"""When sessions are ended after a CRL: the broker reads it within the first of them; a device that slipped in again
before that meets the second. Together well within two seconds."""
LEAVES_AT_ONCE = 4096
HASH_OCTETS = 32
LOG_KEY, TRUST_KEY = "log", "trust-online"

RUNS = Counter("muster_duty_runs", "Runs of a duty", ["duty", "outcome"])
HOLDER = Gauge("muster_duty_holder", "1 where this process holds the lease")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Duty:
    """`run` every `period_seconds`, and at once where `wake` is set."""

    name: str
    period_seconds: float
    run: Callable[[], Awaitable[None]]
    wake: asyncio.Event = field(default_factory=asyncio.Event)


Receive = Callable[[str, bytes], Awaitable[None]]
"""`(device, envelope)`. Raises: Refusal."""


class Wire(Protocol):
    """The way to the devices (`messaging.Bridge`)."""

    @property
    def connected(self) -> bool:
        """Is there a broker at the other end?"""

    def start(self) -> None:
        """Connect, now or as soon as the broker answers."""

    async def stop(self) -> None:
        """Say goodbye."""

    def publish(self, topic: str, envelope: bytes) -> bool:
        """Hand an envelope over. False: it was not taken."""

    async def end_session(self, device: str) -> None:
        """Throw a device off. Raises: OSError."""


async def hold(service: Service, holder: str, wire_for: Callable[[Receive], Wire]) -> None:
    """Carry out the duties whenever this process has the lease. Ends only by being cancelled."""
    while True:
        if await _lease(service, holder):
            _log.info("duties.taken", holder=holder)
            HOLDER.set(1)
            try:
                await _carry_out(service, holder, wire_for)
            finally:
                HOLDER.set(0)
        await asyncio.sleep(LEASE_RENEWAL_SECONDS)


async def _carry_out(service: Service, holder: str, wire_for: Callable[[Receive], Wire]) -> None:
    """Until the lease is lost."""
    wake = asyncio.Event()
    wire = wire_for(lambda device, envelope: _receive(service, wake, device, envelope))
    wire.start()
    table = duties(service, wire, wake)
    running = [asyncio.create_task(repeat(duty), name=duty.name) for duty in table]
    try:
        while await _lease(service, holder):  # noqa: ASYNC110  nothing tells us that a lease was lost but asking
            await asyncio.sleep(LEASE_RENEWAL_SECONDS)
        _log.warning("duties.lost", holder=holder)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await wire.stop()


def duties(service: Service, wire: Wire, wake: asyncio.Event) -> Sequence[Duty]:
    """The table."""
    crl = CrlDuty(service, wire)
    return (
        Duty("outbox", OUTBOX_SECONDS, lambda: pump(service, wire), wake),
        Duty("crl", CRL_SECONDS, crl.run),
        Duty("log", CHECKPOINT_SECONDS, lambda: sequence(service)),
        Duty("trust", TRUST_SECONDS, lambda: refresh_trust(service)),
        Duty("expiry", EXPIRY_SECONDS, lambda: outbox.expire(service)),
        Duty("strangers", STRANGERS_SECONDS, lambda: journal.note_strangers(service)),
    )


async def repeat(duty: Duty) -> None:
    """Run a duty until cancelled. A failure lengthens the pause, up to `LONGEST_PAUSE_SECONDS`."""
    failures = 0
    while True:
        duty.wake.clear()
        try:
            await duty.run()
            if failures:
                _log.info("duty.recovered", duty=duty.name, failures=failures)
            failures = 0
            RUNS.labels(duty.name, "ok").inc()
        except Exception as error:  # noqa: BLE001  the outer edge of the duties: one must not end the others
            failures += 1
            RUNS.labels(duty.name, "failed").inc()
            if failures == 1:
                _log_failure(duty, error)
        pause = duty.period_seconds if not failures else min(duty.period_seconds * 2**failures, LONGEST_PAUSE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await duty.wake.wait()


async def pump(service: Service, wire: Wire) -> None:
    """Send what is due. Without a broker nothing is due: a try would be counted that was none."""
    if not wire.connected:
        return
    await outbox.send_due(service, wire.publish)


class CrlDuty:
    """Revokes what is due, signs the CRL, publishes it, ends the sessions of whom it lists."""

    def __init__(self, service: Service, wire: Wire) -> None:
        self._service = service
        self._wire = wire
        self._published: int | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """One round."""
        first = self._published is None
        await revoking.end_grace(self._service)
        signed = await revoking.sign_due_crl(self._service)
        await self._publish()
        thrown_off = set(() if signed is None else signed[1])
        if first:  # a crash may have come between a CRL and the end of the sessions that it lists
            thrown_off |= await self._service.store.read(lambda tx: still_live(tx, self._service.clock()))
        if thrown_off:
            # Beside the duty: the next revocation does not wait for these sessions to end.
            task = asyncio.create_task(self._end_sessions(sorted(thrown_off)))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _publish(self) -> None:
        # Out of the database, so that a crash between the signature and the file costs nothing.
        row = await self._service.store.read(lambda tx: enrollments.newest_crl(tx, revoking.ISSUER))
        if row is not None and row.number != self._published:
            await asyncio.to_thread(_replace, self._service.directory.ca / "issuing.crl", row.der)
            self._published = row.number
            _log.info("crl.published", number=row.number)

    async def _end_sessions(self, devices: Sequence[str]) -> None:
        for pause in BROKER_RELOADED_SECONDS:
            await asyncio.sleep(pause)
            for device in devices:
                try:
                    await self._wire.end_session(device)
                except OSError as error:  # without a broker there are no sessions; TimeoutError is one of these
                    _log.warning("mqtt.session_not_ended", device=device, why=str(error))
        _log.info("mqtt.sessions_ended", devices=len(devices))


def _replace(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def still_live(tx: Connection, now: datetime) -> set[str]:
    """Devices whose last session was opened with a certificate that is revoked."""
    found = set()
    for row in enrollments.revoked(tx, revoking.ISSUER, int(now.timestamp())):
        certificate = enrollments.certificate_by_serial(tx, row.serial)
        device = None if certificate is None else certificate.device_id
        session = None if device is None else commands.session_of(tx, device)
        if session is not None and session.certificate_serial == row.serial:
            found.add(session.device_id)
    return found


async def sequence(service: Service) -> None:
    """Number the leaves that wait, and sign the tree that they make (RFC 6962 section 2.1, C2SP tlog-checkpoint)."""
    head, waiting = await service.store.read(_unsequenced)
    if not waiting and head is not None:
        return
    before = tree_of(head)
    tree = append(before, [row.hash for row in waiting])
    root = root_of(tree)
    text = checkpoint_text(Checkpoint(log_origin(service), tree.size, root))
    signature = await service.keys.sign(LOG_KEY, text)
    public = service.keys.public(LOG_KEY).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    note = signed_note(text, log_origin(service), public, signature).decode()
    at = int(service.clock().timestamp())

    def write(tx: Connection) -> None:
        if tree_of(leaves.newest_checkpoint(tx)) != before:
            return  # another holder was faster; its tree holds
        leaves.number(tx, {row.id: place for place, row in enumerate(waiting, before.size)})
        leaves.add_checkpoint(tx, size=tree.size, root=root, frontier=b"".join(tree.peaks), note=note, now=at)

    await service.ledger.write(write)


def tree_of(head: Record | None) -> Tree:
    """The compact tree behind a stored checkpoint; the empty one where there is none."""
    if head is None:
        return Tree()
    peaks = range(0, len(head.frontier), HASH_OCTETS)
    return Tree(head.size, tuple(head.frontier[start : start + HASH_OCTETS] for start in peaks))


def log_origin(service: Service) -> str:
    """The log's name, in its checkpoints and of its key."""
    return f"{service.config.service_name}/log"


def _unsequenced(tx: Connection) -> tuple[Record | None, list[Record]]:
    return leaves.newest_checkpoint(tx), leaves.unnumbered(tx, LEAVES_AT_ONCE)


async def refresh_trust(service: Service) -> None:
    """Sign snapshot and timestamp of the trust repository again, well before they expire."""
    directory, now = service.directory.trust, service.clock()
    if await asyncio.to_thread(_expires, directory) - now < TRUST_LEFT:
        await asyncio.to_thread(refresh_online, directory, service.keys.key(TRUST_KEY), now)
        _log.info("trust.refreshed")


def _expires(repository: Path) -> datetime:
    data = (repository / "metadata" / "timestamp.json").read_bytes()
    return parse_rfc3339(parse_json(data, limit=TIMESTAMP_MOST)["signed"]["expires"])


async def _receive(service: Service, wake: asyncio.Event, device: str, envelope: bytes) -> None:
    try:
        await rotation.receive(service, device, envelope)
    finally:
        wake.set()  # what it ordered is due at once


async def _lease(service: Service, holder: str) -> bool:
    now = int(service.clock().timestamp())
    try:
        return await service.ledger.write(
            lambda tx: commands.take_lease(tx, LEASE, holder, now=now, until=now + LEASE_SECONDS)
        )
    except Refusal as refusal:
        _log.error("duties.no_lease", code=refusal.code, actual=refusal.actual)
        return False


def _log_failure(duty: Duty, error: Exception) -> None:
    if isinstance(error, Refusal):
        _log.warning("duty.refused", duty=duty.name, code=error.code, expected=error.expected, actual=error.actual)
    else:
        _log.error("duty.failed", duty=duty.name, exc_info=error)
