"""The outbox: what is to be said to a device, until it is done. It is the store of record; the broker is a wire."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from provisioning.attestation.appraisal import select_pcrs
from provisioning.attestation.endorsement import verify_endorsement
from provisioning.attestation.evidence import verify_attestation_key
from provisioning.attesting import InForce, challenge_message, challenge_row, policy_for
from provisioning.db import commands, devices, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import NotFound, Refusal
from provisioning.service import Service
from wire.binding import Flow, key_id
from wire.codec import b64url, encode, parse_json, parse_rfc3339, unb64url
from wire.envelope import pae, seal
from wire.messages import (
    PAYLOAD_TYPE,
    Attest,
    Attested,
    CheckForUpdate,
    EnrollmentRequest,
    Message,
    RefreshTrust,
    Refused,
    Rotate,
    Rotated,
    Welcome,
)
from wire.topics import down

COMMAND_KEY = "command"
MOST_AT_ONCE = 200
BODY_MOST = 64 * 1024

KINDS: dict[str, type[Message]] = {
    "welcome": Welcome,
    "rotate": Rotate,
    "rotated": Rotated,
    "attest": Attest,
    "attested": Attested,
    "refused": Refused,
    "refresh-trust": RefreshTrust,
    "check-for-update": CheckForUpdate,
}
CHALLENGING: dict[str, Flow] = {"rotate": "rotate", "attest": "attest"}
"""The commands that carry a challenge: it is made when the command is sent, and again when it has expired."""
SAID_ONCE = frozenset({"welcome", "attested", "refused", "refresh-trust", "check-for-update"})
"""Done when it was sent: the device asks again if it was lost (with a hello, or the same evidence)."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command to a device. `body` are the fields of its message beyond those that every message has."""

    kind: str
    device_id: str
    by: str
    body: bytes = b"{}"


def put(tx: Connection, service: Service, order: Order) -> str:
    """Write an order into the outbox; returns the message id. A pending one that repeats itself is not doubled."""
    now = int(service.clock().timestamp())
    if order.body == b"{}" and (waiting := commands.pending_of(tx, order.device_id, order.kind)):
        return str(waiting.message_id)
    message_id = b64url(service.entropy(16))
    row = {
        "message_id": message_id,
        "device_id": order.device_id,
        "kind": order.kind,
        "body": order.body,
        "state": "pending",
        "created_at": now,
        "expires_at": now + service.config.commands.lifetime_seconds,
        "next_try_at": now,
        "tries": 0,
        "ordered_by": order.by,
    }
    commands.add(tx, row)
    return message_id


async def order(service: Service, name: str, kind: str, *, by: str) -> Record:
    """Order something of an active device; the device is returned. Raises: NotFound."""
    entry = leaf(service, "order", service.clock(), device=name, command=kind, by=by)

    def write(tx: Connection) -> Record:
        device = devices.by_name(tx, name)
        if device is None or device.state != "active":
            raise NotFound(expected="an active device's id or serial", actual=name)
        put(tx, service, Order(kind, device.id, by))
        leaves.add(tx, entry)
        return device

    return await service.ledger.write(write)


async def next_commands(service: Service) -> list[tuple[str, bytes]]:
    """The envelopes that are due, with their topics: signed now, for the session that each device last said."""
    now = service.clock()
    at = int(now.timestamp())
    due = await service.store.read(lambda tx: commands.due(tx, at, MOST_AT_ONCE))
    envelopes = []
    for row in due:
        body = await _with_challenge(service, row, now) if row.kind in CHALLENGING else row.body
        if body is None:
            continue
        sequence = await service.ledger.write(lambda tx, row=row: _send(tx, service, row, at))  # type: ignore[misc]  # bound now
        envelopes.append((down(row.device_id), await _sealed(service, row, body, sequence, now)))
    return envelopes


def challenge_id(command: Record) -> str:
    """The id of the challenge that a command carries; empty where none was made yet."""
    challenge = parse_json(command.body, limit=BODY_MOST).get("challenge", {})
    return str(challenge.get("enrollment_id", ""))


async def expire(service: Service) -> None:
    """End the commands, and forget the challenges, whose time is over."""
    at = int(service.clock().timestamp())
    keep = at - 24 * 3600

    def write(tx: Connection) -> None:
        commands.expire(tx, at)
        enrollments.forget_expired(tx, keep)
        enrollments.forget_strangers(tx, service.config.limits.unknown_refusals)

    await service.ledger.write(write)


def _send(tx: Connection, service: Service, row: Record, at: int) -> int:
    sequence = commands.next_sequence(tx, row.device_id)
    if row.kind in SAID_ONCE:
        commands.finish(tx, row.message_id, state="done")
    wait = service.config.commands.retry_seconds * 2 ** min(row.tries, 5)
    commands.sent(tx, row.message_id, next_try_at=at + wait)
    return sequence


async def _sealed(service: Service, row: Record, body: bytes, sequence: int, now: datetime) -> bytes:
    kind = KINDS[row.kind]
    not_after = now + timedelta(seconds=service.config.commands.lifetime_seconds)
    head = {
        "message_id": row.message_id,
        "device": row.device_id,
        "session": row.session,
        "sequence": sequence,
        "not_after": not_after,
    }
    payload = encode({**head, **_fields(kind, body)})
    public = service.keys.public(COMMAND_KEY).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = await service.keys.sign(COMMAND_KEY, pae(PAYLOAD_TYPE[kind], payload))
    return seal(PAYLOAD_TYPE[kind], payload, key_id(public), lambda _: signature)


def _fields(kind: type[Message], body: bytes) -> Mapping[str, object]:
    own = {f.name for f in fields(kind)} - {f.name for f in fields(Message)}
    stored = parse_json(body, limit=BODY_MOST)
    return {name: value for name, value in stored.items() if name in own}


async def _with_challenge(service: Service, row: Record, now: datetime) -> bytes | None:
    """The command's body with a challenge that is still open; None where none can be made now."""
    stored = parse_json(row.body, limit=BODY_MOST)
    if "challenge" in stored and _is_open(stored["challenge"]["expires_at"], now):
        return bytes(row.body)
    try:
        challenge, insert = await _challenge(service, CHALLENGING[row.kind], row.device_id, now)
    except Refusal as refusal:
        failed = f"{refusal.code}: {refusal.title}"
        await service.ledger.write(lambda tx: commands.finish(tx, row.message_id, state="failed", result=failed))
        return None
    body = encode({"challenge": challenge})

    def write(tx: Connection) -> None:
        enrollments.add(tx, insert)
        commands.set_body(tx, row.message_id, body)

    await service.ledger.write(write)
    return body


async def _challenge(service: Service, flow: Flow, device_id: str, now: datetime) -> tuple[object, dict[str, object]]:
    """A challenge for the EK and AK on record: the EK is verified again, under today's policy. Raises: Refusal."""
    device, policy = await service.store.read(lambda tx: _with_policy(tx, service, device_id))
    request = EnrollmentRequest(
        ak_public=device.ak_public,
        pcr_banks=policy.rules.banks,
        ek_certificate=device.ek_certificate,
        ek_intermediates=tuple(
            unb64url(text) for text in parse_json(device.ek_intermediates.encode(), limit=BODY_MOST)
        ),
    )
    ek = verify_endorsement(request, policy.rules, now, device.ek_id if device.ek_trust == "key" else None)
    ak = verify_attestation_key(device.ak_public)
    row = challenge_row(service, flow, device, ak, select_pcrs(policy.rules, policy.rules.banks), policy)
    return challenge_message(service, row, ek), row


def _with_policy(tx: Connection, service: Service, device_id: str) -> tuple[Record, InForce]:
    device = devices.by_id(tx, device_id)
    if device is None or device.state != "active" or device.ak_public is None:
        raise NotFound(expected="an active device", actual=device_id)
    return device, policy_for(tx, service, device.model)


def _is_open(expires_at: str, now: datetime) -> bool:
    """Is there enough time left to answer?"""
    return parse_rfc3339(expires_at) - now > timedelta(seconds=30)
