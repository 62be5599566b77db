"""What comes up by MQTT, and what follows from it: hello, rotation, re-attestation, update reports.

Every message is authentic (signed by a key whose certificate is in force), for this service's record of the session,
and of a higher sequence than the one before; its effect is idempotent.
"""

import hashlib
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection

from provisioning import attesting, challenges, outbox, reattesting, sessions
from provisioning.attestation.identity import verify_answer
from provisioning.db import commands, devices, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.issuance.tbs import Profile, assemble
from provisioning.issuing import IssuedCertificate, issue, ldevid_order, renew_after
from provisioning.journal import leaf
from provisioning.logs import logs_of
from provisioning.refusals import (
    ChallengeExpired,
    MessageNotAuthentic,
    MessageOutOfOrder,
    PassRequired,
    Refusal,
    RequestMalformed,
    StateConflict,
)
from provisioning.service import Service
from wire.binding import Flow
from wire.codec import MalformedMessage, decode, encode
from wire.envelope import MAX_ENVELOPE, Envelope, EnvelopeNotAuthentic, open_parsed, parse_envelope
from wire.messages import (
    PAYLOAD_TYPE,
    UP,
    AttestationEvidence,
    Evidence,
    Failed,
    Hello,
    Installed,
    Message,
    PlatformEvidence,
    Renew,
    RotationEvidence,
    UpdateReport,
)

KIND = {PAYLOAD_TYPE[kind]: kind for kind in UP}
FINAL_STATES = frozenset({"committed", "rolled_back", "failed", "refused", "superseded"})
USABLE = ("issued", "superseded")
_SHA256 = ec.ECDSA(hashes.SHA256())
REMEDIAL = (Hello, AttestationEvidence, UpdateReport, Failed)
"""What a device in quarantine may say, by its certificate of quarantine."""


async def receive(service: Service, device_id: str, envelope: bytes) -> None:
    """Judge and carry out one message. `device_id` is the topic's. Raises: Refusal."""
    try:
        opened = parse_envelope(envelope)
        kind = KIND.get(opened.payloadType)
        if kind is None:
            raise RequestMalformed(expected="a payload type that devices send", actual="another one")
        message, signer = await _authentic(service, device_id, kind, opened)
    except MalformedMessage as error:
        raise RequestMalformed(expected="a message of this protocol", actual=error) from error
    if message.device != device_id:
        raise MessageNotAuthentic(expected=device_id, actual=message.device)
    if isinstance(message, Hello):
        await sessions.greet(service, message, signer)
        return
    if isinstance(message, RotationEvidence):
        await _rotation_evidence(service, message)
        return
    if isinstance(message, AttestationEvidence):
        await _attestation_evidence(service, message)
        return
    if refusal := await service.ledger.write(lambda tx: _out_of_order(tx, message)):
        raise refusal
    match message:
        case Installed():
            await _installed(service, message, signer)
        case Renew():
            _verify_due(service, signer)
            await outbox.order(service, device_id, "rotate", by=outbox.BY_DEVICE)
        case UpdateReport():
            await _update_report(service, message)
        case Failed():
            failed = message
            await service.ledger.write(
                lambda tx: commands.finish(
                    tx, failed.in_reply_to, state="failed", result=failed.reason, device_id=device_id
                )
            )


def _verify_due(service: Service, signer: Record) -> None:
    """A device asks at two thirds of a lifetime; one that asks in the first half would rotate without end."""
    at = int(service.clock().timestamp())
    half = (signer.not_before + signer.not_after) // 2
    if at < half:
        raise StateConflict(expected=f"a certificate in its second half, from {half}", actual=at)


async def _authentic(
    service: Service, device_id: str, kind: type[Message], envelope: Envelope
) -> tuple[Message, Record]:
    """The message and the certificate whose key signed it. Raises: MessageNotAuthentic, MalformedMessage."""
    at = int(service.clock().timestamp())
    rows = await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    usable = {row.key_id.hex(): row for row in rows if row.state in USABLE and row.not_before <= at < row.not_after}
    signer: list[Record] = []

    def verify(keyid: str, signature: bytes, message: bytes) -> bool:
        row = usable.get(keyid)
        if row is None or not _is_signed(row, signature, message):
            return False
        signer.append(row)
        return True

    try:
        payload = open_parsed(envelope, PAYLOAD_TYPE[kind], verify)
    except EnvelopeNotAuthentic as error:
        raise MessageNotAuthentic(expected=f"a key of {device_id} in force", actual="another key") from error
    if signer[0].profile == Profile.QUARANTINE and kind not in REMEDIAL:
        raise PassRequired(expected="a message that leads out of quarantine", actual=kind.__name__)
    return decode(kind, payload, limit=MAX_ENVELOPE), signer[0]


@lru_cache(maxsize=16_384)  # of some 2 KiB each
def _key_of(tbs: bytes, signature: bytes) -> ec.EllipticCurvePublicKey:
    key = x509.load_der_x509_certificate(assemble(tbs, signature)).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MessageNotAuthentic(expected="an EC key", actual=type(key).__name__)
    return key


def _is_signed(certificate: Record, signature: bytes, message: bytes) -> bool:
    try:
        _key_of(certificate.tbs, certificate.signature).verify(signature, message, _SHA256)
    except InvalidSignature:
        return False
    return True


async def _rotation_evidence(service: Service, message: RotationEvidence) -> None:
    """Step 3 of a rotation: the same checks, the same road to issue."""
    received = encode(message.evidence)
    command, taken = await _begin(service, "rotate", message, message.evidence.csr, hashlib.sha256(received).digest())
    if taken.answer is not None:
        await service.ledger.write(lambda tx: commands.hurry(tx, message.device, int(service.clock().timestamp())))
        return
    evidence = message.evidence
    where = _by_itself(taken, evidence)
    try:
        activated = verify_answer(evidence, evidence.csr, taken.challenge)
        logs = await logs_of(service, evidence, taken.challenge)
        verified = await attesting.judge(service, evidence, logs, activated, taken)
        _same_ak(taken)
        now = service.clock()
        device = taken.device
        await attesting.verify_may_return(service, taken)
        order = ldevid_order(service, device, verified.spki, taken.challenge.enrollment_id)
        kept = attesting.stored_form(evidence, received)
        digest = hashlib.sha256(kept).digest()
        entry = leaf(service, "attestation", now, device=device.id, flow="rotate", evidence=digest)

        def recorded(tx: Connection, certificate: IssuedCertificate) -> None:
            body = encode(
                {
                    "in_reply_to": message.in_reply_to,
                    "certificate": certificate.der,
                    "chain": service.authorities.named(certificate.issuer).chain,
                    "renew_after": renew_after(certificate),
                }
            )
            outcome = attesting.Outcome(kept, logs, verified.pcrs, verified.findings, b"issued", entry)
            attesting.passed(service, tx, taken, outcome)
            commands.finish(tx, command.message_id, state="answered")
            outbox.put(tx, service, outbox.Order("rotated", device.id, "service", body))

        await issue(service, order, recorded)
    except Refusal as refusal:
        await _refuse(service, refusal, where, command)


async def _installed(service: Service, message: Installed, signer: Record) -> None:
    """Step 5: the new key speaks, so the older certificates are superseded, and revoked after their grace period.

    Only the key of the certificate that this very rotation issued may say so. Said again, it has no effect.
    """
    in_reply_to, device = message.in_reply_to, message.device

    def read(tx: Connection) -> Record | None:
        command = _command(tx, in_reply_to, device, "rotate")
        return enrollments.certificate_of_enrollment(tx, outbox.carried(command).challenge)

    issued = await service.store.read(read)
    if issued is None or not (issued.serial == signer.serial == message.certificate_serial):
        raise MessageNotAuthentic(expected="the key of the certificate that this rotation issued", actual=signer.serial)
    now = service.clock()
    revoke_at = attesting.grace(service, now)
    entry = leaf(service, "rotation", now, device=message.device, serial=signer.serial)

    def write(tx: Connection) -> None:
        if not commands.finish_answered(tx, message.in_reply_to):
            return
        enrollments.supersede(tx, message.device, but=signer.serial, revoke_at=revoke_at)
        if waiting := commands.pending_of(tx, message.device, "rotated"):
            commands.finish(tx, waiting.message_id, state="done")
        leaves.add(tx, entry)

    await service.ledger.write(write)


async def _attestation_evidence(service: Service, message: AttestationEvidence) -> None:
    """The answer to an attest command: the platform again, without a new key."""
    received = encode(message.evidence)
    command, taken = await _begin(service, "attest", message, b"", hashlib.sha256(received).digest())
    now = service.clock()
    expires = now + timedelta(seconds=service.config.lifetimes.attestation_seconds)
    reply = encode({"in_reply_to": message.in_reply_to, "expires_at": expires})
    answer = outbox.Order("attested", message.device, "service", reply)
    if taken.answer is not None:
        await service.ledger.write(lambda tx: outbox.put(tx, service, answer))
        return
    evidence = message.evidence
    where = _by_itself(taken, evidence)
    try:
        activated = verify_answer(evidence, b"", taken.challenge)
        logs = await logs_of(service, evidence, taken.challenge)
        verified = await attesting.judge(service, evidence, logs, activated, taken)
        _same_ak(taken)
    except Refusal as refusal:
        await _refuse(service, refusal, where, command)
        return
    kept = attesting.stored_form(evidence, received)
    digest = hashlib.sha256(kept).digest()
    entry = leaf(service, "attestation", now, device=message.device, flow="attest", evidence=digest)

    def write(tx: Connection) -> None:
        outcome = attesting.Outcome(kept, logs, verified.pcrs, verified.findings, b"passed", entry)
        attesting.passed(service, tx, taken, outcome)
        commands.finish(tx, command.message_id, state="done")
        outbox.put(tx, service, answer)

    await service.ledger.write(write)


async def _update_report(service: Service, message: UpdateReport) -> None:
    """Where an update stands. A device that booted a new release is asked to prove it before it commits."""
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "update", now, device=message.device, version=message.version, state=message.state)

    def write(tx: Connection) -> None:
        assigned = commands.assignment_of(tx, message.device)
        release = None if assigned is None else commands.release_by_target(tx, assigned.target)
        ours = release is not None and (release.version, release.release_counter) == (
            message.version,
            message.release_counter,
        )
        if not ours or release is None or assigned is None:
            return
        commands.report_assignment(tx, message.device, state=message.state, detail=message.detail, now=at)
        if message.state == "health_check":
            reattesting.ask_at_once(tx, service, message.device, at)
        if message.state == "committed":
            devices.change(
                tx,
                message.device,
                release_target=release.target,
                release_version=release.version,
                release_counter=release.release_counter,
            )
        if message.state in FINAL_STATES and assigned.state != message.state:  # said again is not done again
            leaves.add(tx, entry)

    await service.ledger.write(write)


def _out_of_order(tx: Connection, message: Message) -> MessageOutOfOrder | None:
    """Take the sequence of a message, or say why not. It stays taken whatever becomes of the message."""
    if commands.accept_sequence(tx, message.device, message.session, message.sequence):
        return None
    actual = f"{message.session} {message.sequence}"
    return MessageOutOfOrder(expected="this session, a higher sequence", actual=actual)


def _command(tx: Connection, message_id: str, device_id: str, kind: str) -> Record:
    command = commands.get(tx, message_id)
    if command is None or command.device_id != device_id or command.kind != kind:
        raise MessageOutOfOrder(expected=f"the answer to a {kind} command", actual=message_id)
    return command


async def _begin(
    service: Service, flow: Flow, message: RotationEvidence | AttestationEvidence, csr: bytes, digest: bytes
) -> tuple[Record, challenges.Answered]:
    """The command that a message answers, and its challenge, taken for this evidence: in one write with its sequence.

    A refusal is the write's result, not its failure: else the sequence would count as never seen. Only where the
    challenge replaced others, the evidence is held against those first, which a write has no time for.

    Raises: MessageOutOfOrder, ChallengeExpired; as `look` and `use_up` do.
    """
    now = service.clock()

    def write(tx: Connection) -> Refusal | tuple[Record, outbox.Carried, challenges.Answered | None]:
        if refusal := _out_of_order(tx, message):
            return refusal
        try:
            command = _command(tx, message.in_reply_to, message.device, flow)
            carried = outbox.carried(command)
            taken = None if carried.earlier else _take(tx, service, flow, command, carried, digest, now)
        except Refusal as refusal:
            return refusal
        return command, carried, taken

    begun = await service.ledger.write(write)
    if isinstance(begun, Refusal):
        raise begun
    command, carried, taken = begun
    if taken is None:
        await _not_late(service, flow, carried, message.evidence, csr)
        taken = await service.ledger.write(lambda tx: _take(tx, service, flow, command, carried, digest, now))
    return command, taken


async def _not_late(
    service: Service, flow: Flow, carried: outbox.Carried, evidence: Evidence | PlatformEvidence, csr: bytes
) -> None:
    """A device that was away may answer a challenge that was replaced since: no fault of its own, and no answer.

    It is asked again. Raises: ChallengeExpired.
    """
    for earlier in carried.earlier:
        known = await service.store.read(lambda tx, one=earlier: challenges.open_challenge(tx, service, flow, one))  # type: ignore[misc]  # bound now
        if known is None:
            continue
        try:
            verify_answer(evidence, csr, known)
        except Refusal:  # no answer to this one: what else it may be is judged by who called
            continue
        raise ChallengeExpired(expected="an answer to the last challenge", actual="one to an earlier challenge")


def _take(
    tx: Connection,
    service: Service,
    flow: Flow,
    command: Record,
    carried: outbox.Carried,
    digest: bytes,
    now: datetime,
) -> challenges.Answered:
    """The command's challenge, taken for this evidence. Raises, before it writes: as `look` and `use_up` do."""
    device, challenge = command.device_id, carried.challenge
    answered = challenges.look(tx, service, flow, challenge, digest, arrived=now, device_id=device)
    if answered.is_open:
        challenges.use_up(tx, answered, int(now.timestamp()))
    return answered


def _by_itself(taken: challenges.Answered, evidence: Evidence | PlatformEvidence) -> attesting.Refused:
    """The circumstances of a refusal of what a device signed with its key in force."""
    device, challenge = taken.device, taken.challenge
    return attesting.Refused(
        *(challenge.flow, "mqtt", device.id, device.serial, challenge.enrollment_id),
        own=True,
        evidence_sha256=taken.evidence_sha256,
        answered=taken,
        evidence=evidence,
    )


def _same_ak(taken: challenges.Answered) -> None:
    if taken.ak_name != taken.device.ak_name:
        raise MessageOutOfOrder(expected="the AK on record", actual=taken.ak_name)


async def _refuse(service: Service, refusal: Refusal, where: attesting.Refused, command: Record) -> None:
    """Record it, tell the device the class, end the command."""
    if refusal.problem in attesting.TRANSIENT:
        raise refusal
    await attesting.record_refusal(service, refusal, where)
    body = encode({"in_reply_to": command.message_id, "problem": refusal.problem.uri, "code": refusal.code})

    def write(tx: Connection) -> None:
        commands.finish(tx, command.message_id, state="refused", result=refusal.instance)
        outbox.put(tx, service, outbox.Order("refused", command.device_id, "service", body))

    await service.ledger.write(write)
