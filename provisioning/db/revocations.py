"""Revocation: reads and writes. Every change of a certificate's standing is a row of its own, in its order.

Whoever follows (CRL, OCSP, broker) remembers the last row that it saw: rows are numbered in the order of their commits,
because one transaction writes at a time (BEGIN IMMEDIATE).
"""

from typing import Any, cast

from sqlalchemy import Connection, bindparam, case, delete, func, insert, literal, null, or_, select, update

from provisioning.db.ca_tables import QUARANTINE, REVOKED, Crl, Revocation
from provisioning.db.columns import table_of
from provisioning.db.commands import session
from provisioning.db.devices import Record, device
from provisioning.db.enrollments import certificate
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert

HOLD = "certificate-hold"
"""The one reason that can be taken back."""
HEALTH = "health"
"""`Certificate.held_by`: quarantine put it on hold, and a pass releases it."""
RESPONDER = "ocsp-responder"
"""The profile of the certificates of OCSP responders."""
ORDER, GRACE, ADOPTED = "order", "grace", "adopted"
"""Why a change came: somebody asked for it, a grace period ended, it stood in a published CRL."""

crl, revocation = table_of(Crl), table_of(Revocation)

_INSERT = prepared_insert(revocation)
_SINCE = PreparedSelect(select(revocation).where(revocation.c.id > bindparam("seen")).order_by(revocation.c.id))
_BEHIND = (revocation.c.issuer == bindparam("issuer"), revocation.c.id > bindparam("seen"))
_ORDERED = (revocation.c.kind != GRACE, revocation.c.reason.is_not(None), revocation.c.device_id.is_not(None))
_UNLISTED = PreparedSelect(select(revocation).where(*_BEHIND, *_ORDERED).order_by(revocation.c.id))
_WAITS = PreparedSelect(select(revocation.c.id).where(*_BEHIND).limit(1))
_WAITS_BY_ORDER = PreparedSelect(select(revocation.c.id).where(*_BEHIND, revocation.c.kind != GRACE).limit(1))
_HEAD = PreparedSelect(
    select(*(crl.c[name] for name in ("number", "this_update", "next_update", "covers")))
    .where(crl.c.authority == bindparam("authority"))
    .order_by(crl.c.number.desc())
    .limit(1)
)
_ENTRIES = PreparedSelect(
    select(certificate.c.serial, certificate.c.revoked_at, certificate.c.reason)
    .where(
        REVOKED,
        certificate.c.issuer == bindparam("issuer"),
        certificate.c.not_after > bindparam("until"),
    )
    .order_by(certificate.c.serial)
)
_CHANGE_OF = select(func.max(revocation.c.id)).where(revocation.c.serial == bindparam("serial"))
_NEWEST = PreparedSelect(select(func.max(revocation.c.id).label("id")))
_QUARANTINE = PreparedSelect(  # the condition as text, so that the database uses the partial index
    select(certificate.c.device_id).where(QUARANTINE, certificate.c.state != "revoked").distinct()
)
_STANDING = PreparedSelect(
    select(*(certificate.c[name] for name in ("issuer", "state", "revoked_at", "reason", "signature"))).where(
        certificate.c.serial == bindparam("serial")
    )
)
_REVOKE = Prepared(
    update(certificate)
    .where(certificate.c.serial == bindparam("one"))
    .values(state="revoked", revoked_at=bindparam("at"), reason=bindparam("why"), held_by=bindparam("who"))
)


def revoke(tx: Connection, serial: str, *, at: int, reason: str, kind: str = ORDER, held_by: str | None = None) -> bool:
    """Revoke one certificate. False where it is revoked already; what is on hold can still be revoked for good.

    Such a one keeps the date of its hold: it was good at no moment since. What quarantine holds (`held_by`) an operator
    can hold as well: then it is the operator's, and only an operator's release ends it.
    """
    row = tx.execute(select(certificate).where(certificate.c.serial == serial)).first()
    if row is None:
        return False
    held = row.state == "revoked" and row.reason == HOLD
    if held and reason == HOLD and row.held_by is not None and held_by is None:
        hand_over(tx, serial, None)
        return True
    if row.state == "revoked" and (not held or reason == HOLD):
        return False
    _REVOKE(tx, {"one": serial, "at": row.revoked_at if held else at, "why": reason, "who": held_by})
    _note(tx, row, at, reason, kind)
    return True


def hand_over(tx: Connection, serial: str, to: str | None) -> bool:
    """Whose hold it is from now on. False where it is not on hold."""
    mine = (certificate.c.serial == serial, certificate.c.state == "revoked", certificate.c.reason == HOLD)
    return tx.execute(update(certificate).where(*mine).values(held_by=to)).rowcount == 1


def release(tx: Connection, serial: str, *, at: int, held_by: str | None = None) -> bool:
    """End a hold: the certificate is again what it was. False where it is not on hold, or by somebody else's."""
    before = case(
        (certificate.c.signature.is_(None), "reserved"), (certificate.c.revoke_at.is_not(None), "superseded"),
        else_="issued",
    )  # fmt: skip
    whose = certificate.c.held_by.is_(None) if held_by is None else certificate.c.held_by == held_by
    mine = (certificate.c.serial == serial, certificate.c.state == "revoked", certificate.c.reason == HOLD, whose)
    good = {"state": before, "revoked_at": None, "reason": None, "held_by": None}
    if tx.execute(update(certificate).where(*mine).values(good)).rowcount != 1:
        return False
    _note(tx, tx.execute(select(certificate).where(certificate.c.serial == serial)).one(), at, None)
    return True


def adopt(tx: Connection, issuer: str, serial: str, *, at: int, reason: str) -> bool:
    """Keep an entry of a published CRL that this database does not have, as one that was restored may not.

    False where it has it. The certificate itself may be unknown: the entry is kept all the same.
    """
    if tx.execute(select(certificate.c.serial).where(certificate.c.serial == serial)).first() is not None:
        return revoke(tx, serial, at=at, reason=reason)
    if _strangers(tx, issuer, serial):
        return False
    row = {"at": at, "issuer": issuer, "serial": serial, "device_id": None, "reason": reason, "kind": ADOPTED}
    _INSERT(tx, row)
    return True


def newest(tx: Connection) -> int:
    """The number of the newest change; 0 where there was none."""
    return int(_NEWEST.first(tx, {}).id or 0)


def since(tx: Connection, seen: int) -> list[Record]:
    """What changed behind that number, oldest first."""
    return cast("list[Record]", _SINCE.all(tx, {"seen": seen}))


def entries(tx: Connection, issuer: str, until: int) -> list[Record]:
    """What stands in the CRL of that authority: revoked, and not expired by then; and every stranger."""
    known = _ENTRIES.all(tx, {"issuer": issuer, "until": until})
    return [*known, *_strangers(tx, issuer)]


def standing(tx: Connection, issuer: str, serial: str) -> Record | None:
    """What is known of a certificate of that authority: `state`, `revoked_at`, `reason`, `signature`; None: nothing."""
    found = _STANDING.first(tx, {"serial": serial})
    if found is not None and found.issuer == issuer:
        return cast("Record", found)
    return next(iter(_strangers(tx, issuer, serial)), None)


def responder(tx: Connection, key_id: str, issuer: str, at: int) -> Record | None:
    """The OCSP responder's certificate by that authority over that key which is in force longest."""
    over = certificate.c.key_id == bytes.fromhex(key_id)
    mine = (over, certificate.c.issuer == issuer, certificate.c.profile == RESPONDER)
    good = (certificate.c.state == "issued", certificate.c.not_before <= at, certificate.c.not_after > at)
    found = select(certificate).where(*mine, *good).order_by(certificate.c.not_after.desc(), certificate.c.serial)
    return tx.execute(found.limit(1)).first()


def is_revoked(tx: Connection, serial: str) -> bool:
    """Is that certificate revoked, or on hold?"""
    found = _STANDING.first(tx, {"serial": serial})
    return found is not None and found.state == "revoked"


def session_certificate(tx: Connection, device_id: str) -> Record | None:
    """The last session of a device, as the `state` of the certificate that opened it; None: it said no hello."""
    opened = session.outerjoin(certificate, certificate.c.serial == session.c.certificate_serial)
    mine = select(certificate.c.state).select_from(opened).where(session.c.device_id == device_id)
    return tx.execute(mine).first()


def still_live(tx: Connection) -> set[str]:
    """Devices whose session was opened with a certificate that is revoked, or that are themselves."""
    opened = session.join(certificate, certificate.c.serial == session.c.certificate_serial)
    theirs = opened.join(device, device.c.id == session.c.device_id)
    gone = or_(certificate.c.state == "revoked", device.c.state == "revoked")
    return set(tx.execute(select(session.c.device_id).select_from(theirs).where(gone)).scalars())


def with_quarantine_certificate(tx: Connection) -> set[str]:
    """Devices that have a certificate of quarantine in force, or are about to."""
    return {row.device_id for row in _QUARANTINE.all(tx, {})}


def unlisted(tx: Connection, issuer: str, covers: int) -> list[Record]:
    """The devices' certificates that somebody had revoked behind what a CRL covers, oldest first."""
    return cast("list[Record]", _UNLISTED.all(tx, {"issuer": issuer, "seen": covers}))


def waits(tx: Connection, issuer: str, covers: int) -> tuple[bool, bool]:
    """Does any change wait for that authority's next CRL, and one that somebody ordered?"""
    row = {"issuer": issuer, "seen": covers}
    return _WAITS.first(tx, row) is not None, _WAITS_BY_ORDER.first(tx, row) is not None


def crl_head(tx: Connection, authority: str) -> Record | None:
    """The newest CRL of that authority without its bytes: `number`, `this_update`, `next_update`, `covers`."""
    return cast("Record | None", _HEAD.first(tx, {"authority": authority}))


def newest_crl(tx: Connection, authority: str) -> Record | None:
    """The CRL of that authority with the highest number."""
    its = select(crl).where(crl.c.authority == authority)
    return tx.execute(its.order_by(crl.c.number.desc()).limit(1)).first()


def add_crl(tx: Connection, row: dict[str, Any]) -> bool:
    """Insert a CRL and drop its predecessors but one.

    False, and nothing is written, where another process signed one of that number or a higher one.
    """
    last = crl_head(tx, row["authority"])
    if last is not None and last.number >= row["number"]:
        return False
    tx.execute(insert(crl), row)
    before = 0 if last is None else last.number
    tx.execute(delete(crl).where(crl.c.authority == row["authority"], crl.c.number < before))
    return True


def change_of(tx: Connection, serial: str) -> int | None:
    """The number of the newest change of that certificate; None where nothing changed it."""
    found: int | None = tx.execute(_CHANGE_OF, {"serial": serial}).scalar()
    return found


def _strangers(tx: Connection, issuer: str, serial: str | None = None) -> list[Record]:
    """The entries of certificates that this database does not have."""
    columns = (
        revocation.c.serial,
        revocation.c.at.label("revoked_at"),
        revocation.c.reason,
        literal("revoked").label("state"),
        null().label("signature"),
    )
    mine = [revocation.c.issuer == issuer, revocation.c.kind == ADOPTED]
    if serial is not None:
        mine.append(revocation.c.serial == serial)
    return list(tx.execute(select(*columns).where(*mine)))


def _note(tx: Connection, row: Record, at: int, reason: str | None, kind: str = ORDER) -> None:
    change = {"at": at, "issuer": row.issuer, "serial": row.serial, "device_id": row.device_id, "reason": reason}
    _INSERT(tx, {**change, "kind": kind})
