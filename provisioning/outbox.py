"""The outbox: what is to be said to a device, until it is done. It is the store of record; the broker is a wire."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from provisioning import endorsing, logs
from provisioning.attestation.appraisal import select_pcrs
from provisioning.attesting import TRANSIENT, findings_json
from provisioning.authorities import COMMAND
from provisioning.challenges import InForce, challenge_message, challenge_row, policy_for
from provisioning.db import commands, devices, enrollments, est, leaves
from provisioning.db.devices import Record
from provisioning.issuance.tbs import Profile
from provisioning.journal import STRANGERS, leaf
from provisioning.refusals import NoPolicyForModel, NotFound, Refusal
from provisioning.service import Service
from wire.binding import Flow, key_id
from wire.codec import b64url, encode, parse_json, parse_rfc3339, rfc3339, to_json
from wire.envelope import pae, seal
from wire.messages import (
    PAYLOAD_TYPE,
    Attest,
    Attested,
    CheckForUpdate,
    Message,
    RefreshTrust,
    Refused,
    Rotate,
    Rotated,
    Welcome,
)
from wire.topics import down, remedy_down

BY_DEVICE = "device"
"""Who ordered a command that the device itself asked for."""
MOST_AT_ONCE = 200
FORGOTTEN_AT_ONCE = 10_000
BODY_MOST = 64 * 1024
CHALLENGES_KEPT_SECONDS = 3600
"""How long after its end a challenge that earned nothing is known, and says why."""
SAID_KEPT_SECONDS = 24 * 3600
TOKENS_KEPT_SECONDS = 30 * 24 * 3600
"""So long after its end an EST token is still listed; the log keeps who made it."""

PROBE = "probe"
"""A welcome that only one session of a device gets, the current one or not: its answer says that it is alive."""
KINDS: dict[str, type[Message]] = {
    "welcome": Welcome,
    PROBE: Welcome,
    "rotate": Rotate,
    "rotated": Rotated,
    "attest": Attest,
    "attested": Attested,
    "refused": Refused,
    "refresh-trust": RefreshTrust,
    "check-for-update": CheckForUpdate,
}
OWN_FIELDS = {
    kind: frozenset(f.name for f in fields(kind)) - {f.name for f in fields(Message)} for kind in KINDS.values()
}
CHALLENGING: dict[str, Flow] = {"rotate": "rotate", "attest": "attest"}
"""The commands that carry a challenge: it is made when the command is sent, and again when it has expired."""
SAID_ONCE = frozenset({"welcome", PROBE, "attested", "refused", "refresh-trust", "check-for-update"})
"""Done when the broker has it: the device asks again if it was lost (with a hello, or the same evidence)."""
SIGNED_AT_ONCE = 32
"""Commands whose signatures are asked for together. Whoever enrolls waits behind so many at most: some 3 ms."""
_Known = tuple[Record, InForce] | Refusal
"""A device with the policy in force for it, or why it cannot be challenged."""
_Policies = dict[tuple[str, str | None], InForce | NoPolicyForModel]
"""By model and group."""
Publish = Callable[[str, bytes], bool]
"""`(topic, envelope)`. False: the broker did not take it."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command to a device. `body` are the fields of its message beyond those that every message has."""

    kind: str
    device_id: str
    by: str
    body: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Carried:
    """The challenges that a command carries, by their ids."""

    challenge: str
    """The one to answer; empty where none was made yet."""
    earlier: tuple[str, ...]
    """Those that it replaced, because nobody had answered them in time."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a command says: the fields of its body as JSON. Where its challenge is new: the body, and that one's row."""

    fields: Mapping[str, Any]
    body: bytes = b""
    challenge: dict[str, object] | None = None


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


def put_anew(tx: Connection, service: Service, order: Order) -> str:
    """As `put`, for a command with a challenge; one that waits already is due now, with a new challenge.

    The one that it carries was made under the policy of its time, and would be judged by that.
    """
    waiting = commands.pending_of(tx, order.device_id, order.kind)
    if waiting is None:
        return put(tx, service, order)
    stored, now = _stored(waiting.body), service.clock()
    if "challenge" in stored:
        over = {**stored["challenge"], "expires_at": rfc3339(now)}
        commands.set_body(tx, waiting.message_id, encode({**stored, "challenge": over}))
    commands.hurry(tx, order.device_id, int(now.timestamp()))
    return str(waiting.message_id)


async def order(service: Service, name: str, kind: str, *, by: str) -> Record:
    """Order something of an active device; the device is returned. Raises: NotFound."""
    entry = leaf(service, "order", service.clock(), device=name, command=kind, by=by)

    def write(tx: Connection) -> Record:
        device = devices.by_name(tx, name)
        if device is None or device.state != "active":
            raise NotFound(expected="an active device's id or serial", actual=name)
        doubled = commands.pending_of(tx, device.id, kind) is not None
        put(tx, service, Order(kind, device.id, by))
        if not (doubled and by == BY_DEVICE):  # else a device that repeats itself would fill the log
            leaves.add(tx, entry)
        return device

    return await service.ledger.write(write)


async def send_due(service: Service, publish: Publish) -> None:
    """Publish the commands that are due, each signed now, for the session that its device last said.

    A try counts, and what is said once is done, only after the broker took it: a failure before that loses nothing.

    Raises: Refusal (signing or storage are out of order).
    """
    now = service.clock()
    at = int(now.timestamp())

    def read(tx: Connection) -> tuple[list[Record], dict[str, _Known]]:
        rows = commands.due(tx, at, MOST_AT_ONCE)
        return rows, _of_devices(tx, service, rows)

    due, known = await service.store.read(read)
    made = [await _said(service, row, known, now) for row in due]
    ready = [(row, said) for row, said in zip(due, made, strict=True) if said is not None]
    if not ready:
        return
    places = await service.ledger.write(lambda tx: [_place(tx, row, said) for row, said in ready])
    # without a place: the device enrolled anew a moment ago, it says hello first
    placed = [(row, said, place) for (row, said), place in zip(ready, places, strict=True) if place is not None]
    key_ids: dict[str, str] = {}
    taken: list[Record] = []
    try:
        for first in range(0, len(placed), SIGNED_AT_ONCE):
            some = placed[first : first + SIGNED_AT_ONCE]
            # The token signs one while the next is made. What failed stops what comes behind it, and nothing before it.
            sealed = await asyncio.gather(
                *(_sealed(service, *one, now, key_ids) for one in some), return_exceptions=True
            )
            for (row, _, _), envelope in zip(some, sealed, strict=True):
                if isinstance(envelope, BaseException):
                    raise envelope
                topic = remedy_down if row.opened_by == Profile.QUARANTINE else down
                if publish(topic(row.device_id), envelope):
                    taken.append(row)
    finally:
        if taken:
            await service.ledger.write(lambda tx: _sent(tx, service, taken, at))


def carried(command: Record) -> Carried:
    """The challenges of a command."""
    stored = _stored(command.body)
    challenge = stored.get("challenge", {})
    return Carried(str(challenge.get("enrollment_id", "")), tuple(str(one) for one in stored.get("earlier", ())))


async def expire(service: Service) -> None:
    """End the commands whose time is over; forget what nobody will ask for again, a piece at a time."""
    at = int(service.clock().timestamp())
    keep, most = service.config.limits.unknown_refusals, FORGOTTEN_AT_ONCE
    # Else the late answer to a challenge that its command replaced would be a wrong one to the last: a clone's.
    known = max(CHALLENGES_KEPT_SECONDS, service.config.commands.lifetime_seconds)
    await service.ledger.write(lambda tx: commands.expire(tx, at))
    pieces: tuple[Callable[[Connection], int], ...] = (
        lambda tx: enrollments.forget_unpassed(tx, at - known, most),
        lambda tx: commands.forget_said(tx, sorted(SAID_ONCE | {"attest"}), at - SAID_KEPT_SECONDS, most),
        lambda tx: est.forget_tokens(tx, at - TOKENS_KEPT_SECONDS, most),
        # those only that a leaf has counted
        lambda tx: enrollments.forget_strangers(tx, keep, leaves.newest_at(tx, STRANGERS), most),
    )
    for forget in pieces:
        while await service.ledger.write(forget) == most:
            pass
    await logs.forget_uploads(service)


def _sent(tx: Connection, service: Service, rows: Sequence[Record], at: int) -> None:
    for row in rows:
        wait = service.config.commands.retry_seconds * 2 ** min(row.tries, 5)
        count = commands.said if row.kind in SAID_ONCE else commands.sent
        count(tx, row.message_id, next_try_at=at + wait)


def _place(tx: Connection, row: Record, said: _Said) -> commands.Place | None:
    """Where it stands in the session; a new challenge is written down with that, before anybody sees it."""
    if said.challenge is not None:
        enrollments.add(tx, said.challenge)
        commands.set_body(tx, row.message_id, said.body)
    if row.kind == PROBE:
        place = said.fields["place"]
        return commands.Place(place["session"], place["sequence"])
    return commands.next_sequence(tx, row.device_id)


async def _sealed(
    service: Service, row: Record, said: _Said, place: commands.Place, now: datetime, key_ids: dict[str, str]
) -> bytes:
    """The message, signed. `key_ids`: those of the keys that signed for this round, which grows."""
    kind = KINDS[row.kind]
    not_after = now + timedelta(seconds=service.config.commands.lifetime_seconds)
    head = {
        "message_id": row.message_id,
        "device": row.device_id,
        "session": place.session,
        "sequence": place.sequence,
        "not_after": not_after,
    }
    own = OWN_FIELDS[kind]
    payload = encode({**head, **{name: value for name, value in said.fields.items() if name in own}})
    key = service.authorities.signing_key(COMMAND, row.trust_version)
    if key not in key_ids:
        public = await service.keys.adopt(key)
        key_ids[key] = key_id(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    signature = await service.keys.sign(key, pae(PAYLOAD_TYPE[kind], payload))
    return seal(PAYLOAD_TYPE[kind], payload, key_ids[key], lambda _: signature)


def _stored(body: bytes) -> Mapping[str, Any]:
    """A body as it is stored: most orders say nothing."""
    fields: Mapping[str, Any] = {} if body == b"{}" else parse_json(body, limit=BODY_MOST)
    return fields


async def _said(service: Service, row: Record, known: Mapping[str, _Known], now: datetime) -> _Said | None:
    """What a command says, with a challenge that is still open. None where none can be made now."""
    stored = _stored(row.body)
    if row.kind not in CHALLENGING or ("challenge" in stored and _is_open(stored["challenge"]["expires_at"], now)):
        return _Said(stored)
    try:
        challenge, insert = _challenge(service, CHALLENGING[row.kind], known[row.device_id], now)
    except Refusal as refusal:
        if refusal.problem in TRANSIENT:
            raise  # not this command's fault
        failed = f"{refusal.code}: {refusal.title}"
        await service.ledger.write(lambda tx: commands.finish(tx, row.message_id, state="failed", result=failed))
        return None
    earlier = [*stored.get("earlier", []), stored["challenge"]["enrollment_id"]] if "challenge" in stored else []
    said = {"challenge": to_json(challenge), "earlier": earlier}
    return _Said(said, encode(said), insert)


def _challenge(service: Service, flow: Flow, known: _Known, now: datetime) -> tuple[object, dict[str, object]]:
    """A challenge for the keys on record: who vouches is verified again, under today's policy. Raises: Refusal."""
    if isinstance(known, Refusal):
        raise known
    device, policy = known
    request = endorsing.request_of(device, policy.rules.banks)
    endorsed = endorsing.endorse(service, device, request, policy.rules, now, service.ek_verdicts)
    row = challenge_row(service, flow, device, endorsed.ak, select_pcrs(policy.rules, policy.rules.banks), policy)
    row["findings"] = findings_json(endorsed.findings) if endorsed.findings else None
    return challenge_message(service, row, endorsed.ek), row


def _of_devices(tx: Connection, service: Service, due: Sequence[Record]) -> dict[str, _Known]:
    """The devices that are to be challenged, in one read."""
    policies: _Policies = {}
    return {row.device_id: _with_policy(tx, service, row.device_id, policies) for row in due if row.kind in CHALLENGING}


def _with_policy(tx: Connection, service: Service, device_id: str, policies: _Policies) -> _Known:
    """`policies`: those that were looked up in this read, which grow."""
    device = devices.by_id(tx, device_id)
    if device is None or device.state != "active" or device.ak_public is None:
        return NotFound(expected="an active device", actual=device_id)
    named = (device.model, device.group)
    if named not in policies:
        try:
            policies[named] = policy_for(tx, service, *named)
        except NoPolicyForModel as refusal:
            policies[named] = refusal
    policy = policies[named]
    return policy if isinstance(policy, Refusal) else (device, policy)


def _is_open(expires_at: str, now: datetime) -> bool:
    """Is there enough time left to answer?"""
    return parse_rfc3339(expires_at) - now > timedelta(seconds=30)
