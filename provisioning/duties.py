"""What runs once per installation, in the process that holds the lease: bridge, outbox, CRL, log, trust, expiry.

A duty is a function and a period. One that fails is logged once, tried again after a pause, and disturbs no other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import Counter, Gauge
from sqlalchemy import Connection

from ota.files import replace_file
from ota.repository import refresh_online
from provisioning import crls, journal, linting, ocsp, outbox, reattesting, recalling, retention, revoking, rotation
from provisioning.authorities import LOG
from provisioning.db import commands, leaves, revocations
from provisioning.db.devices import Record
from provisioning.refusals import Refusal
from provisioning.rollover.upkeep import Upkeep
from provisioning.service import Service
from provisioning.transparency import Checkpoint, Tree, append, checkpoint_text, root_of, signed_note
from wire.codec import parse_json, parse_rfc3339

LEASE = "duties"
LEASE_SECONDS = 15
LEASE_RENEWAL_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 30.0
OUTBOX_SECONDS = 0.2
REVOKED_SECONDS = 0.2
CRL_SECONDS = 0.5
RESPONDER_SECONDS = 2.0
ATTEST_SECONDS = 1.0
RECALL_SECONDS = 1.0
CHECKPOINT_SECONDS = 1.0
EXPIRY_SECONDS = 60.0
STRANGERS_SECONDS = 60.0
LINT_SECONDS = 60.0
RETENTION_SECONDS = 60.0
TRUST_SECONDS = 600.0
ROLLOVER_SECONDS = 1.0
TRUST_LEFT = timedelta(days=6)
"""The online roles of the trust repository are signed again when less than this is left of their week."""
TIMESTAMP_MOST = 64 * 1024
BROKER_RELOADED_SECONDS = (0.3, 0.6)
"""When sessions are ended after a change: the broker reads rights and CRL within the first of them; a device that
slipped in again before that meets the second. Together well within two seconds."""
END_AGAIN_SECONDS = 1.0
"""How often a device is thrown off that no CRL lists yet."""
LEAVES_AT_ONCE = 4096
HASH_OCTETS = 32
TRUST_KEY = "trust-online"

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
    revoked, upkeep = Revoked(service, wire), Upkeep(service, wire.end_session)
    nightly, walk = linting.Nightly(service.clock()), retention.Walk()
    return (
        Duty("outbox", OUTBOX_SECONDS, lambda: pump(service, wire), wake),
        Duty("revoked", REVOKED_SECONDS, revoked.follow),
        Duty("crl", CRL_SECONDS, revoked.sign, revoked.wake_crl),
        Duty("ocsp", RESPONDER_SECONDS, lambda: ocsp.renew_responder(service)),
        Duty("attest", ATTEST_SECONDS, lambda: _ask_due(service, wake)),
        Duty("recall", RECALL_SECONDS, lambda: _recall(service)),
        Duty("log", CHECKPOINT_SECONDS, lambda: sequence(service)),
        Duty("rollover", ROLLOVER_SECONDS, upkeep.look_after),
        Duty("trust", TRUST_SECONDS, lambda: refresh_trust(service)),
        Duty("expiry", EXPIRY_SECONDS, lambda: outbox.expire(service)),
        Duty("strangers", STRANGERS_SECONDS, lambda: journal.note_strangers(service)),
        Duty("lint", LINT_SECONDS, lambda: nightly.run(service)),
        Duty("retention", RETENTION_SECONDS, lambda: walk.go_on(service)),
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


class Revoked:
    """What follows a revocation: rights and live sessions end at once, then the CRL says it.

    Two duties, because the first must not wait for the HSM. A device that no CRL of the broker lists yet has no rights
    there (`denied`), and is thrown off again and again: without a CRL nothing else keeps it from connecting.
    """

    def __init__(self, service: Service, wire: Wire) -> None:
        self._service = service
        self._wire = wire
        self._seen: int | None = None
        self._denied: set[str] | None = None
        self._remedial: set[str] = set()
        self._unwritten = False
        self._published: dict[str, int] = {}
        self._adopted = False
        self._ending: dict[asyncio.Task[None], set[str]] = {}
        self._end_again_at = 0.0
        self.wake_crl = asyncio.Event()

    async def follow(self) -> None:
        """One round of what the HSM has no part in."""
        service = self._service
        await revoking.end_grace(service)
        changes, unlisted, leaving, newest = await service.store.read(self._changes)
        remedial = await service.store.read(revocations.with_quarantine_certificate)
        denied = {change.device_id for change in unlisted if change.device_id is not None}
        leaving |= (self._denied or set()) - denied  # the CRL lists them now; they may have come in again before
        if (denied, remedial) != (self._denied, self._remedial):
            await self._deny(denied, remedial)
        if denied and monotonic() >= self._end_again_at:
            leaving |= denied
        self._seen = newest
        self._throw_off(leaving)
        if changes:
            self.wake_crl.set()

    async def sign(self) -> None:
        """One round of CRLs: of each authority whose key is here one that is new enough, and all of them as files."""
        service, failed = self._service, None
        if not self._adopted:
            await crls.adopt_published(service)
            self._adopted = True
        online = crls.signed_online(service)
        for authority in service.authorities.all:
            if authority in online:
                try:
                    await crls.sign_due(service, authority, patient=True)
                except Refusal as refusal:  # the others' keys may be there
                    failed = failed or refusal
            if (covers := await crls.publish(service, authority)) is not None:
                self._published[authority.name] = covers
        if failed is not None:
            raise failed

    async def _deny(self, denied: set[str], remedial: set[str]) -> None:
        """Write down who has no rights, and who has those of quarantine.

        Where the disk is full, the sessions of the former end all the same, again and again.
        """
        lines = [*sorted(denied), *(f"{device} remedy" for device in sorted(remedial - denied))]
        text = "".join(f"{line}\n" for line in lines).encode()
        try:
            await asyncio.to_thread(replace_file, self._service.directory.denied, text, mode=0o600)
        except OSError as error:
            if not self._unwritten:
                _log.error("mqtt.rights_not_written", devices=len(denied), why=str(error))
            self._unwritten = True
        else:
            self._denied, self._remedial, self._unwritten = denied, remedial, False

    def _changes(self, tx: Connection) -> tuple[list[Record], list[Record], set[str], int]:
        """New changes; orders that the published CRLs do not show; devices whose session ends; the newest change."""
        newest = revocations.newest(tx)
        changes: list[Record] = []
        if self._seen is None:  # a crash may have come between a change and the end of its session
            leaving = revocations.still_live(tx)
        else:
            changes = [] if newest == self._seen else revocations.since(tx, self._seen)
            leaving = revoking.to_throw_off(tx, changes)
        unlisted = []
        for authority in crls.signed_online(self._service):
            head = revocations.crl_head(tx, authority.name)
            covers = self._published.get(authority.name, 0 if head is None else head.covers)
            unlisted += revocations.unlisted(tx, authority.name, covers)
        return changes, revoking.still_revoked(tx, unlisted), leaving, newest

    def _throw_off(self, devices: set[str]) -> None:
        # Beside the duty: the next revocation does not wait for these sessions to end.
        if devices := devices - set().union(*self._ending.values()):
            self._end_again_at = monotonic() + END_AGAIN_SECONDS
            task = asyncio.create_task(self._end_sessions(sorted(devices)))
            self._ending[task] = devices
            task.add_done_callback(self._ending.pop)

    async def _end_sessions(self, devices: Sequence[str]) -> None:
        for pause in BROKER_RELOADED_SECONDS:
            await asyncio.sleep(pause)
            for device in devices:
                try:
                    await self._wire.end_session(device)
                except OSError as error:  # without a broker there are no sessions; TimeoutError is one of these
                    _log.warning("mqtt.session_not_ended", device=device, why=str(error))
        _log.info("mqtt.sessions_ended", devices=len(devices))


async def _ask_due(service: Service, wake: asyncio.Event) -> None:
    if await reattesting.ask_due(service):
        wake.set()


async def _recall(service: Service) -> None:
    if asked := await recalling.recall(service):
        _log.info("policy.recalled", devices=asked)


async def sequence(service: Service) -> None:
    """Number the leaves that wait, and sign the tree that they make (RFC 6962 section 2.1, C2SP tlog-checkpoint)."""
    head, waiting = await service.store.read(_unsequenced)
    if not waiting and head is not None:
        return
    before = tree_of(head)
    tree = append(before, [row.hash for row in waiting])
    root = root_of(tree)
    text = checkpoint_text(Checkpoint(log_origin(service), tree.size, root))
    key = service.authorities.signing_key(LOG)
    signature = await service.keys.sign(key, text)
    public = (await service.keys.adopt(key)).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
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
