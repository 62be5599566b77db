"""Challenges, certificates, attestations, refusals: reads and writes."""

from typing import Any, cast

from sqlalchemy import Connection, and_, bindparam, case, delete, func, insert, or_, select, update

from provisioning.db.ca_tables import Authority, Certificate
from provisioning.db.columns import table_of
from provisioning.db.devices import Record
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert
from provisioning.db.tables import Attestation, Enrollment, RefusalRow

enrollment, certificate, attestation = table_of(Enrollment), table_of(Certificate), table_of(Attestation)
refusal, authority = table_of(RefusalRow), table_of(Authority)

ROOM = bytes(72)
"""As long as an ECDSA signature on P-256 is at most, in DER."""

_INSERT_ENROLLMENT = prepared_insert(enrollment)
_ENROLLMENT = PreparedSelect(select(enrollment).where(enrollment.c.id == bindparam("id")))
_TAKE = Prepared(
    update(enrollment)
    .where(enrollment.c.id == bindparam("one"), enrollment.c.state == "open")
    .values(state="taken", evidence_sha256=bindparam("hash"))
)
_PASS = Prepared(
    update(enrollment)
    .where(enrollment.c.id == bindparam("one"))
    .values(secret=None, state="passed", answer=bindparam("reply"))
)
_INSERT_CERTIFICATE = prepared_insert(certificate)
_INSERT_ATTESTATION = prepared_insert(attestation)
_SUPERSEDE = Prepared(
    update(certificate)
    .where(
        certificate.c.device_id == bindparam("device"),
        certificate.c.serial != bindparam("but"),
        certificate.c.state == "issued",
        certificate.c.profile != "idevid",  # it stays what it is, whatever the device earns with it
    )
    .values(state="superseded", revoke_at=bindparam("end"))
)
_OF_REQUEST = PreparedSelect(
    select(authority.c.state.label("authority_state"), certificate)
    .select_from(
        authority.outerjoin(
            certificate,
            or_(certificate.c.enrollment_id == bindparam("id"), certificate.c.key_id == bindparam("key_id")),
        )
    )
    .where(authority.c.name == bindparam("by"))
)
_OF_DEVICE = PreparedSelect(
    select(certificate)
    .where(certificate.c.device_id == bindparam("device"))
    .order_by(certificate.c.reserved_at, certificate.c.not_before, certificate.c.serial)
)
_BY_SERIAL = PreparedSelect(select(certificate).where(certificate.c.serial == bindparam("serial")))
_OF_ENROLLMENT = PreparedSelect(select(certificate).where(certificate.c.enrollment_id == bindparam("id")))
_SIGN = Prepared(
    update(certificate)
    .where(certificate.c.serial == bindparam("one"), certificate.c.signature.is_(None))
    .values(
        signature=bindparam("sig"),
        room=None,
        # What was revoked before its signature came stays revoked.
        state=case((certificate.c.state == "reserved", "issued"), else_=certificate.c.state),
    )
)


def add(tx: Connection, row: dict[str, Any]) -> None:
    """Insert an open challenge."""
    _INSERT_ENROLLMENT(tx, row)


def get(tx: Connection, enrollment_id: str) -> Record | None:
    """The challenge of that id."""
    return cast("Record | None", _ENROLLMENT.first(tx, {"id": enrollment_id}))


def passed_since(tx: Connection, device_id: str, since: int) -> int:
    """How many enrollments of a device passed since then."""
    mine = (enrollment.c.device_id == device_id, enrollment.c.flow == "enroll", enrollment.c.state == "passed")
    return int(tx.execute(select(func.count()).where(*mine, enrollment.c.created_at >= since)).scalar_one())


def take(tx: Connection, enrollment_id: str, evidence_sha256: bytes) -> bool:
    """Mark an open challenge as taken by this evidence. False where it is not open (any more)."""
    return _TAKE(tx, {"one": enrollment_id, "hash": evidence_sha256}) == 1


def passed(tx: Connection, enrollment_id: str, answer: bytes) -> None:
    """End a challenge whose evidence passed, with the answer that it got; its secret goes."""
    _PASS(tx, {"one": enrollment_id, "reply": answer})


def refuse(tx: Connection, enrollment_id: str, *, refusal_id: str, evidence_sha256: bytes | None) -> None:
    """End a challenge by evidence that was refused, unless other evidence took it; its secret goes."""
    taken = and_(enrollment.c.state == "taken", enrollment.c.evidence_sha256 == evidence_sha256)
    mine = (enrollment.c.id == enrollment_id, or_(enrollment.c.state == "open", taken))
    ended = {"secret": None, "state": "refused", "refusal_id": refusal_id, "evidence_sha256": evidence_sha256}
    tx.execute(update(enrollment).where(*mine).values(**ended))


def forget_unpassed(tx: Connection, before: int, most: int) -> int:
    """Drop at most so many challenges that expired before then and earned nothing: anybody may cause them."""
    old = select(enrollment.c.id).where(enrollment.c.expires_at < before, enrollment.c.state != "passed").limit(most)
    return tx.execute(delete(enrollment).where(enrollment.c.id.in_(old))).rowcount


def add_certificate(tx: Connection, row: dict[str, Any]) -> None:
    """Insert a reserved certificate: its serial and to-be-signed bytes, before the HSM sees them. `key_id` is hex."""
    room = ROOM if row.get("signature") is None else None
    _INSERT_CERTIFICATE(tx, {**row, "key_id": bytes.fromhex(row["key_id"]), "room": room})


def sign_certificate(tx: Connection, serial: str, signature: bytes) -> bool:
    """Record the signature, if there is none yet."""
    return _SIGN(tx, {"one": serial, "sig": signature}) == 1


def give_up(tx: Connection, serial: str) -> None:
    """A reserved certificate that will not be signed any more; its request may reserve another one."""
    tx.execute(update(certificate).where(certificate.c.serial == serial).values(enrollment_id=None))


def certificate_of_enrollment(tx: Connection, enrollment_id: str) -> Record | None:
    """The certificate that answers this challenge."""
    return cast("Record | None", _OF_ENROLLMENT.first(tx, {"id": enrollment_id}))


def certificates_of_request(tx: Connection, enrollment_id: str | None, key_id: str, by: str) -> list[Record] | None:
    """The certificate, reserved or issued, that answers this challenge, and all over the same key.

    None where the authority `by` is not active. One statement: each certificate that is reserved asks.
    """
    found = _OF_REQUEST.all(tx, {"id": enrollment_id, "key_id": bytes.fromhex(key_id), "by": by})
    if not found or found[0].authority_state != "active":
        return None
    return [row for row in found if row.serial is not None]


def certificate_by_serial(tx: Connection, serial: str) -> Record | None:
    """The certificate of that serial (lower hex)."""
    return cast("Record | None", _BY_SERIAL.first(tx, {"serial": serial}))


def certificates_of(tx: Connection, device_id: str) -> list[Record]:
    """All certificates of a device, oldest first."""
    return _OF_DEVICE.all(tx, {"device": device_id})


def certificates_after(tx: Connection, serial: str, limit: int, state: str | None = None) -> list[Record]:
    """At most `limit` certificates behind a serial, in the order of serials; of one state, where it is given."""
    behind = select(certificate).where(certificate.c.serial > serial)
    if state is not None:
        behind = behind.where(certificate.c.state == state)
    return list(tx.execute(behind.order_by(certificate.c.serial).limit(limit)))


def supersede(tx: Connection, device_id: str, *, but: str, revoke_at: int) -> None:
    """All issued certificates of a device but one are superseded, and to be revoked at that time."""
    _SUPERSEDE(tx, {"device": device_id, "but": but, "end": revoke_at})


def due_for_revocation(tx: Connection, now: int) -> list[Record]:
    """Superseded certificates whose grace period is over."""
    due = select(certificate).where(certificate.c.state == "superseded", certificate.c.revoke_at <= now)
    return list(tx.execute(due))


def supersede_profile(tx: Connection, profile: str, *, but: str, revoke_at: int) -> None:
    """All issued certificates of a profile but one are superseded, and to be revoked at that time."""
    mine = (certificate.c.profile == profile, certificate.c.serial != but, certificate.c.state == "issued")
    tx.execute(update(certificate).where(*mine).values(state="superseded", revoke_at=revoke_at))


def add_attestation(tx: Connection, row: dict[str, Any]) -> None:
    """Insert evidence that passed."""
    _INSERT_ATTESTATION(tx, row)


def attestations_of(tx: Connection, device_id: str, limit: int) -> list[Record]:
    """The newest evidence of a device that passed."""
    mine = select(attestation).where(attestation.c.device_id == device_id)
    return list(tx.execute(mine.order_by(attestation.c.at.desc()).limit(limit)))


def newest_attestation_of(tx: Connection, device_id: str, flow: str) -> Record | None:
    """The newest evidence of one flow that passed."""
    mine = select(attestation).where(attestation.c.device_id == device_id, attestation.c.flow == flow)
    return tx.execute(mine.order_by(attestation.c.at.desc()).limit(1)).first()


def add_refusal(tx: Connection, row: dict[str, Any]) -> None:
    """Insert a refusal."""
    tx.execute(insert(refusal), row)


def refusal_by_id(tx: Connection, refusal_id: str) -> Record | None:
    """The refusal of that id."""
    return tx.execute(select(refusal).where(refusal.c.id == refusal_id)).first()


def newest_refusal_of(tx: Connection, device_id: str) -> Record | None:
    """What a device was refused last."""
    mine = select(refusal).where(refusal.c.device_id == device_id)
    return tx.execute(mine.order_by(refusal.c.at.desc(), refusal.c.id.desc()).limit(1)).first()


def own_refusals_since(tx: Connection, device_id: str, since: int) -> int:
    """How many refusals of what a device proved to be its own fell on it since then."""
    mine = (refusal.c.device_id == device_id, refusal.c.own.is_(True), refusal.c.at >= since)
    return int(tx.execute(select(func.count()).where(*mine)).scalar_one())


def forget_strangers(tx: Connection, keep: int, before: int, most: int) -> int:
    """Drop at most so many refusals, from before then, of senders that proved nothing; the newest `keep` stay.

    Also of those who named a device: whoever knows its EK certificate can cause them.
    """
    strangers = select(refusal.c.id, refusal.c.at).where(refusal.c.own.is_(False))
    old = strangers.order_by(refusal.c.at.desc(), refusal.c.id.desc()).offset(keep).limit(most).subquery()
    gone = select(old.c.id).where(old.c.at < before)
    return tx.execute(delete(refusal).where(refusal.c.id.in_(gone))).rowcount


def refusals_of_strangers(tx: Connection, since: int, until: int) -> int:
    """How many refusals of senders that proved nothing fell in a span."""
    strangers = (refusal.c.own.is_(False), refusal.c.at >= since, refusal.c.at < until)
    return int(tx.execute(select(func.count()).where(*strangers)).scalar_one())
