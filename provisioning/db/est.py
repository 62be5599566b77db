"""EST: one-time tokens, keys that wait for approval, and what a device may stand on. Reads and writes."""

from typing import Any, cast

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, insert, or_, select, update

from provisioning.db.ca_tables import EstRequest, EstToken
from provisioning.db.columns import table_of
from provisioning.db.devices import Record, device
from provisioning.db.enrollments import attestation, certificate
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert

token, request = table_of(EstToken), table_of(EstRequest)

_DEVICE = (
    *(device.c.id, device.c.serial, device.c.model, device.c.assurance, device.c.profile, device.c.needs_approval),
    *(device.c.state, device.c.health, device.c.last_attested_at),
)
_BY_TOKEN = PreparedSelect(
    select(
        *_DEVICE,
        token.c.token_sha256,
        token.c.profile.label("token_profile"),
        token.c.expires_at,
        token.c.used_at,
        token.c.revoked_at,
    )
    .join(token, token.c.device_id == device.c.id)
    .where(token.c.token_sha256 == bindparam("hash"))
)
_BY_CERTIFICATE = PreparedSelect(
    select(
        *_DEVICE,
        certificate.c.serial.label("certificate_serial"),
        certificate.c.profile.label("certificate_profile"),
        certificate.c.state.label("certificate_state"),
        certificate.c.key_id,
        certificate.c.tbs,
        certificate.c.signature,
        certificate.c.revoke_at,
        certificate.c.not_after,
    )
    .join(certificate, certificate.c.device_id == device.c.id)
    .where(certificate.c.serial == bindparam("serial"))
)
_INSERT_TOKEN = prepared_insert(token)
_USE_TOKEN = Prepared(
    update(token)
    .where(
        token.c.token_sha256 == bindparam("hash"),
        token.c.used_at.is_(None),
        token.c.revoked_at.is_(None),
        token.c.expires_at > bindparam("at"),
    )
    .values(used_at=bindparam("at"))
)
_AS_JUDGED = (
    device.c.id == bindparam("one"),
    device.c.assurance == bindparam("least"),
    device.c.profile == bindparam("named"),
    device.c.health != "silent",
    device.c.health != "quarantined",
)
_ENTER_FIRST = Prepared(update(device).where(*_AS_JUDGED, device.c.state == "registered").values(state="active"))
_ENTER = Prepared(
    update(device)
    .where(*_AS_JUDGED, or_(device.c.state == "registered", device.c.state == "active"))
    .values(state="active")
)
_COUNTS = PreparedSelect(
    select(certificate.c.serial).where(
        certificate.c.serial == bindparam("serial"),
        or_(
            certificate.c.state == "issued",
            and_(certificate.c.state == "superseded", certificate.c.revoke_at > bindparam("at")),
        ),
    )
)
_RESERVED_SINCE = PreparedSelect(
    select(func.count().label("count")).where(
        certificate.c.device_id == bindparam("device"), certificate.c.reserved_at >= bindparam("since")
    )
)
_ATTESTED_KEY = select(
    exists().where(
        certificate.c.key_id == bindparam("key"),
        certificate.c.device_id == bindparam("device"),
        certificate.c.enrollment_id == attestation.c.id,
        attestation.c.device_id == bindparam("device"),
        attestation.c.flow.in_(("enroll", "rotate")),
    )
)


def by_token(tx: Connection, token_sha256: str) -> Record | None:
    """The token of that hash with the device that it is for."""
    return cast("Record | None", _BY_TOKEN.first(tx, {"hash": token_sha256}))


def by_certificate(tx: Connection, serial: str) -> Record | None:
    """The certificate of that serial with the device that it is for."""
    return cast("Record | None", _BY_CERTIFICATE.first(tx, {"serial": serial}))


def add_token(tx: Connection, row: dict[str, Any]) -> None:
    """Insert a token."""
    _INSERT_TOKEN(tx, row)


def add_tokens(tx: Connection, rows: list[dict[str, Any]]) -> None:
    """Insert many."""
    _INSERT_TOKEN.many(tx, rows)


def forget_tokens(tx: Connection, before: int, most: int) -> int:
    """Drop at most so many tokens, used or not, that expired before then: no look-up of theirs finds them good."""
    old = select(token.c.token_sha256).where(token.c.expires_at < before).limit(most)
    return tx.execute(delete(token).where(token.c.token_sha256.in_(old))).rowcount


def use_token(tx: Connection, token_sha256: str, at: int) -> bool:
    """Use a token up. False where it was used, revoked, or has expired."""
    return _USE_TOKEN(tx, {"hash": token_sha256, "at": at}) == 1


def tokens(tx: Connection, device_id: str | None, limit: int) -> list[Record]:
    """The newest tokens, of one device or of all, with their devices' serials."""
    found = select(token, device.c.serial).join(device, device.c.id == token.c.device_id)
    if device_id is not None:
        found = found.where(token.c.device_id == device_id)
    return list(tx.execute(found.order_by(token.c.created_at.desc(), token.c.token_sha256).limit(limit)))


def tokens_named(tx: Connection, prefix: str) -> list[Record]:
    """The tokens whose hash starts with that."""
    return list(tx.execute(select(token).where(token.c.token_sha256.startswith(prefix, autoescape=True)).limit(2)))


def revoke_token(tx: Connection, token_sha256: str, at: int) -> bool:
    """Revoke a token that can still be used. False where it cannot."""
    open_one = (token.c.token_sha256 == token_sha256, token.c.used_at.is_(None), token.c.revoked_at.is_(None))
    return tx.execute(update(token).where(*open_one).values(revoked_at=at)).rowcount == 1


def enter(tx: Connection, found: Record, *, first: bool = False) -> bool:
    """The device is in service, `first`: from now on. False where its record is not any more what was judged."""
    enters = _ENTER_FIRST if first else _ENTER
    return enters(tx, {"one": found.id, "least": found.assurance, "named": found.profile}) == 1


def counts(tx: Connection, serial: str, at: int) -> bool:
    """Is this certificate in force: issued, or superseded and still within its grace period?"""
    return _COUNTS.first(tx, {"serial": serial, "at": at}) is not None


def reserved_since(tx: Connection, device_id: str, since: int) -> int:
    """How many certificates were made for a device since then."""
    return int(_RESERVED_SINCE.first(tx, {"device": device_id, "since": since}).count)


def is_attested_key(tx: Connection, device_id: str, key_id: str) -> bool:
    """Was a certificate over this key earned by evidence of this device that passed?"""
    return bool(tx.execute(_ATTESTED_KEY, {"key": bytes.fromhex(key_id), "device": device_id}).scalar())


def request_of(tx: Connection, device_id: str, key_id: str) -> Record | None:
    """The request of a device for this key."""
    mine = (request.c.device_id == device_id, request.c.key_id == key_id)
    return tx.execute(select(request).where(*mine)).first()


def requests_of(tx: Connection, device_id: str) -> list[Record]:
    """The requests of a device that wait or were approved, oldest first."""
    mine = select(request).where(request.c.device_id == device_id)
    return list(tx.execute(mine.order_by(request.c.asked_at, request.c.key_id)))


def ask(tx: Connection, device_id: str, key_id: str, *, at: int, forget_before: int) -> None:
    """Note a request; those of the device that nobody repeated or approved for long go."""
    tx.execute(delete(request).where(request.c.device_id == device_id, request.c.asked_at < forget_before))
    tx.execute(insert(request).values(device_id=device_id, key_id=key_id, asked_at=at))


def approve(tx: Connection, device_id: str, key_id: str, *, until: int, by: str) -> None:
    """Let one issue for this key pass until then."""
    mine = (request.c.device_id == device_id, request.c.key_id == key_id)
    tx.execute(update(request).where(*mine).values(approved_until=until, approved_by=by))


def take_approval(tx: Connection, device_id: str, key_id: str, at: int) -> bool:
    """Use an approval up. False where there is none, or it has expired."""
    mine = (request.c.device_id == device_id, request.c.key_id == key_id, request.c.approved_until >= at)
    return tx.execute(delete(request).where(*mine)).rowcount == 1
