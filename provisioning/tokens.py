"""One-time tokens for EST: made by an operator, shown once, stored as a hash. What one opens is `est`'s to say."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from provisioning.db import devices, est, leaves
from provisioning.db.devices import Record
from provisioning.factory import MODEL, SERIAL
from provisioning.issuance.tbs import Profile
from provisioning.journal import leaf
from provisioning.refusals import NotFound, ProfileUnknown, RequestMalformed, StateConflict
from provisioning.service import Service
from wire.codec import b64url, rfc3339
from wire.topics import is_device_id

Json = dict[str, object]
TOKEN_BYTES = 32
SECONDS_LEAST, SECONDS_MOST = 60, 90 * 86400
MODEL_UNKNOWN = "unspecified"
ID_LENGTH = 16
"""Hex digits of a token's hash, by which people name it."""
KINDS = (Profile.LDEVID, Profile.GATEWAY)
"""What a token may be for."""
DEFAULT_PROFILE = "ldevid"
_ID = re.compile(r"[0-9a-f]{8,64}")
_MINTED = re.compile(r"d-[0-9a-f]{16}")
_ATTESTS = "EST refuses it: the device's record asks for attestation (muster-agent enroll)"
_HAS_IDEVID = "EST refuses it: the device's record asks for its IDevID"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A token for a device, named by id or serial. A serial that is not known is registered with assurance `token`."""

    device: str
    profile: str | None = None
    lifetime_seconds: int | None = None
    model: str | None = None
    approval: bool = False
    """Is an operator to approve each key of this device? It stays in the record."""


async def create_token(service: Service, wanted: Wanted, *, by: str) -> Json:
    """A token, in the answer and nowhere else. Raises: RequestMalformed, ProfileUnknown, StateConflict."""
    seconds = service.config.limits.est_token_seconds if wanted.lifetime_seconds is None else wanted.lifetime_seconds
    _verify(service, wanted, seconds)
    now = service.clock()
    expires = now + timedelta(seconds=seconds)
    token = b64url(service.entropy(TOKEN_BYTES))
    digest = hashlib.sha256(token.encode()).hexdigest()
    minted = "d-" + service.entropy(8).hex()
    made = leaf(service, "est-token", now, device=wanted.device, token=digest[:ID_LENGTH], by=by)
    registered = leaf(
        service,
        "registration",
        now,
        device=minted,
        serial=wanted.device,
        ek="",
        assurance="token",
        trust="none",
        station=_station(by),
    )

    def write(tx: Connection) -> tuple[Record, bool]:
        device = devices.by_name(tx, wanted.device)
        new = device is None
        if device is None:
            device = _register(tx, wanted, minted, int(now.timestamp()), by)
            leaves.add(tx, registered)
        elif device.state in ("revoked", "decommissioned"):
            raise StateConflict(expected="a device in service", actual=device.state)
        elif wanted.profile not in (None, device.profile):
            raise StateConflict(expected=f"the profile {device.profile} of the record", actual=wanted.profile)
        elif wanted.model not in (None, device.model):
            raise StateConflict(expected=f"the model {device.model} of the record", actual=wanted.model)
        elif wanted.approval and not device.needs_approval:
            devices.change(tx, device.id, needs_approval=True)
        times = {"created_at": int(now.timestamp()), "expires_at": int(expires.timestamp())}
        row = {"token_sha256": digest, "device_id": device.id, "profile": wanted.profile, **times, "created_by": by}
        est.add_token(tx, {**row, "used_at": None, "revoked_at": None})
        leaves.add(tx, made)
        return device, new

    device, new = await service.ledger.write(write)
    warning = {"attested": _ATTESTS, "idevid": _HAS_IDEVID}.get(device.assurance)
    return {
        "token": token,
        "id": digest[:ID_LENGTH],
        "device": device.id,
        "serial": device.serial,
        "assurance": device.assurance,
        "profile": device.profile,
        "expires_at": rfc3339(expires),
        "registered": new,
        "warning": warning,
    }


def _station(by: str) -> str:
    """What stands in the place of a station: no station's name has a colon."""
    return f"operator:{by}"


def _verify(service: Service, wanted: Wanted, seconds: int) -> None:
    if not SECONDS_LEAST <= seconds <= SECONDS_MOST:
        raise RequestMalformed(expected=f"a lifetime of {SECONDS_LEAST} to {SECONDS_MOST} s", actual=seconds)
    if wanted.profile is not None and (profile := service.profiles.of_device(wanted.profile)).kind not in KINDS:
        raise ProfileUnknown(expected=" or ".join(KINDS), actual=profile.kind)
    if wanted.model is not None and MODEL.fullmatch(wanted.model) is None:
        raise RequestMalformed(expected="a model of a-z 0-9 . -", actual=wanted.model)
    if SERIAL.fullmatch(wanted.device) is None and not is_device_id(wanted.device):
        raise RequestMalformed(expected="a device's id, or a serial of A-Z a-z 0-9 . -", actual=wanted.device)


def _register(tx: Connection, wanted: Wanted, minted: str, at: int, by: str) -> Record:
    if SERIAL.fullmatch(wanted.device) is None or _MINTED.fullmatch(wanted.device):
        raise NotFound(expected="a device's id or serial, or a new serial", actual=wanted.device)
    row = {
        "id": minted,
        "serial": wanted.device,
        "model": wanted.model or MODEL_UNKNOWN,
        "assurance": "token",
        "profile": wanted.profile or DEFAULT_PROFILE,
        "needs_approval": wanted.approval,
        "ek_trust": "none",
        "station": _station(by),
        "registered_at": at,
    }
    devices.add(tx, [row])
    device = devices.by_id(tx, minted)
    assert device is not None  # noqa: S101  for mypy: it was inserted a moment ago
    return device


async def list_tokens(service: Service, name: str | None, limit: int) -> list[Json]:
    """The newest tokens, of one device or of all, without the tokens. Raises: NotFound."""
    now = int(service.clock().timestamp())

    def read(tx: Connection) -> list[Record]:
        device = None if name is None else devices.by_name(tx, name)
        if name is not None and device is None:
            raise NotFound(expected="a device's id or serial", actual=name)
        return est.tokens(tx, None if device is None else device.id, limit)

    return [_token(row, now) for row in await service.store.read(read)]


async def revoke_token(service: Service, token_id: str, *, by: str) -> Json:
    """End a token that was not used, by the first hex digits of its hash. Raises: NotFound, StateConflict."""
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "est-token", now, token=token_id[:64], revoked=True, by=by)

    def write(tx: Connection) -> Json:
        found = est.tokens_named(tx, token_id) if _ID.fullmatch(token_id) else []
        if len(found) != 1:
            raise NotFound(expected="8 or more hex digits that name one token", actual=token_id)
        if not est.revoke_token(tx, found[0].token_sha256, at):
            raise StateConflict(expected="a token that can still be used", actual=_state(found[0], at))
        leaves.add(tx, entry)
        return {"id": found[0].token_sha256[:ID_LENGTH], "device": found[0].device_id, "state": "revoked"}

    return await service.ledger.write(write)


def _token(row: Record, now: int) -> Json:
    return {
        "id": row.token_sha256[:ID_LENGTH],
        "device": row.device_id,
        "serial": row.serial,
        "state": _state(row, now),
        "profile": row.profile,
        "created": _time(row.created_at),
        "expires": _time(row.expires_at),
        "used": _time(row.used_at),
        "by": row.created_by,
    }


def _state(row: Record, now: int) -> str:
    if row.used_at is not None:
        return "used"
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at <= now else "open"


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))
