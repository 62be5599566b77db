"""What retention looks at and removes, one device at a time, by indexes: reads and writes."""

import hashlib
from collections import Counter
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from provisioning.db import logs
from provisioning.db.ca_tables import Certificate
from provisioning.db.columns import table_of
from provisioning.db.devices import Record, device
from provisioning.db.evidence_tables import RefusedEvidence
from provisioning.db.finding_tables import Finding
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert
from provisioning.db.retention_tables import Removed, RemovedAttestation
from provisioning.db.tables import Attestation, Enrollment
from provisioning.keeping import END_OF_TIME, LOOKED_BACK, Occasions, Pass

attestation, enrollment, certificate, refused, finding = (
    table_of(row) for row in (Attestation, Enrollment, Certificate, RefusedEvidence, Finding)
)
removed, removed_attestation = table_of(Removed), table_of(RemovedAttestation)

UNWELL = ("failing", "silent", "quarantined")
"""What the health of a device is that fell from it: `health_at` says when."""
_SOFTENED = attestation.c.findings.like('%"refused": true%')
_PASS = (
    *(attestation.c[name] for name in ("id", "at", "boot_log_sha256", "ima_log_sha256")),
    _SOFTENED.label("softened"),
)
_OF = attestation.c.device_id == bindparam("device")
_NEWEST = PreparedSelect(
    select(*_PASS)
    .where(_OF, attestation.c.at <= bindparam("until"))
    .order_by(attestation.c.at.desc(), attestation.c.id.desc())
    .limit(LOOKED_BACK)
)
_OLDEST = PreparedSelect(
    select(*_PASS)
    .where(_OF, attestation.c.at < bindparam("before"))
    .order_by(attestation.c.at, attestation.c.id)
    .limit(bindparam("most"))
)
_NTH = PreparedSelect(
    select(attestation.c.at).where(_OF).order_by(attestation.c.at.desc()).limit(1).offset(bindparam("most"))
)
_REFUSED = PreparedSelect(
    select(refused.c.refusal_id, refused.c.at).where(refused.c.device_id == bindparam("device")).order_by(refused.c.at)
)
_FINDINGS = PreparedSelect(
    select(finding.c.at).where(finding.c.device_id == bindparam("device"), finding.c.closed_at.is_(None))
)
_HEALTH = PreparedSelect(select(device.c.health, device.c.health_at).where(device.c.id == bindparam("device")))
_EARNED = PreparedSelect(
    select(certificate.c.enrollment_id).where(
        certificate.c.device_id == bindparam("device"),
        certificate.c.not_after > bindparam("at"),
        certificate.c.enrollment_id.is_not(None),
    )
)
_EVIDENCE = PreparedSelect(select(attestation).where(attestation.c.id == bindparam("id")))
_DELETE_ATTESTATION = Prepared(delete(attestation).where(attestation.c.id == bindparam("one")))
_DELETE_CHALLENGE = Prepared(delete(enrollment).where(enrollment.c.id == bindparam("one")))
_INSERT_REMOVED = prepared_insert(removed_attestation)


def with_old(
    tx: Connection, behind: str, before: int, refused_before: int, most: int, page: int
) -> tuple[list[str], str]:
    """Of the next `page` devices those with something old, or more than `most` attestations; the last one looked at.

    Old is what is from before `before`, of refused evidence what is from before `refused_before`. One range of an
    index, as long as `most`, for each device.
    """
    mine = attestation.c.device_id == device.c.id
    oldest = select(func.min(attestation.c.at)).where(mine).correlate(device).scalar_subquery()
    nth = select(attestation.c.at).where(mine).correlate(device).order_by(attestation.c.at.desc()).limit(1).offset(most)
    oldest_refused = select(func.min(refused.c.at)).where(refused.c.device_id == device.c.id).correlate(device)
    rows = tx.execute(
        select(
            device.c.id,
            or_(
                oldest < before, nth.scalar_subquery().is_not(None), oldest_refused.scalar_subquery() < refused_before
            ).label("old"),
        )
        .where(device.c.id > behind)
        .order_by(device.c.id)
        .limit(page)
    ).all()
    return [row.id for row in rows if row.old], rows[-1].id if rows else ""


def occasions(tx: Connection, device_id: str, now: int) -> Occasions:
    """What about a device is kept, open or in force, and rests on evidence."""
    mine = {"device": device_id}
    health: Any = _HEALTH.first(tx, mine)
    return Occasions(
        refused=tuple(row.at for row in _REFUSED.all(tx, mine)),
        found=tuple(row.at for row in _FINDINGS.all(tx, mine)),
        fell=health.health_at if health is not None and health.health in UNWELL else None,
        earned=frozenset(row.enrollment_id for row in _EARNED.all(tx, {**mine, "at": now})),
    )


def passes(tx: Connection, device_id: str, given: Occasions) -> list[Pass]:
    """The evidence that passed of which `keeping.needed` decides: the newest, up to each of the occasions."""
    found = {
        row.id: _pass(row)
        for until in {*given.moments, END_OF_TIME}
        for row in _NEWEST.all(tx, {"device": device_id, "until": until})
    }
    return list(found.values())


def oldest(tx: Connection, device_id: str, before: int, most: int) -> list[Pass]:
    """At most `most` evidences of a device that passed before then, the oldest first."""
    return [_pass(row) for row in _OLDEST.all(tx, {"device": device_id, "before": before, "most": most})]


def beyond(tx: Connection, device_id: str, most: int) -> int | None:
    """The time of the newest evidence of a device that passed and is one too many, if there are more than `most`."""
    found: Any = _NTH.first(tx, {"device": device_id, "most": most})
    return None if found is None else int(found.at)


def refused_of(tx: Connection, device_id: str) -> list[tuple[str, int]]:
    """The refusals of a device whose evidence is kept (id, time), the oldest first."""
    return [(row.refusal_id, row.at) for row in _REFUSED.all(tx, {"device": device_id})]


def forget_attestation(tx: Connection, device_id: str, one: Pass, naming: Counter[str], now: int) -> int:
    """Remove evidence that passed, its challenge, and the logs that nothing else names. How many bytes went?

    By which a certificate was earned, that stays on record by its hash. `naming` counts the device's evidences by the
    logs that they name, and is counted down.
    """
    row: Any = _EVIDENCE.first(tx, {"id": one.id})
    if row is None:
        return 0
    if row.flow != "attest":
        digest = hashlib.sha256(row.evidence).digest()
        told = {"id": row.id, "device_id": row.device_id, "flow": row.flow, "at": row.at}
        _INSERT_REMOVED(tx, {**told, "evidence_sha256": digest, "removed_at": now})
    _DELETE_ATTESTATION(tx, {"one": one.id})
    _DELETE_CHALLENGE(tx, {"one": one.id})
    freed = len(row.evidence)
    for sha256 in one.logs:
        naming[sha256] -= 1
        if naming[sha256] <= 0:
            freed += logs.forget(tx, device_id, sha256, now)
    return freed


def forget_refused(tx: Connection, refusal_id: str) -> int:
    """Remove the evidence of a refusal; the refusal stays. How many bytes went?"""
    mine = refused.c.refusal_id == refusal_id
    size = func.length(refused.c.evidence) + func.coalesce(func.length(refused.c.boot_log), 0)
    size += func.coalesce(func.length(refused.c.ima_log), 0)
    freed = tx.execute(select(size).where(mine)).scalar()
    tx.execute(delete(refused).where(mine))
    return int(freed or 0)


def note(
    tx: Connection,
    device_id: str,
    now: int,
    *,
    attestations: int = 0,
    until: int | None = None,
    refusals: int = 0,
    bodies: int = 0,
) -> None:
    """Count what was removed of a device. `until`: the time of the newest attestation of it."""
    counts = {"attestations": attestations, "refused": refusals, "logs": bodies}
    known = removed_of(tx, device_id)
    if known is None:
        tx.execute(insert(removed).values(device_id=device_id, attestations_until=until, removed_at=now, **counts))
        return
    added = {name: removed.c[name] + count for name, count in counts.items()}
    newest = max((at for at in (until, known.attestations_until) if at is not None), default=None)
    tx.execute(
        update(removed)
        .where(removed.c.device_id == device_id)
        .values(attestations_until=newest, removed_at=now, **added)
    )


def removed_of(tx: Connection, device_id: str) -> Record | None:
    """What was removed of a device's evidence, in all."""
    return tx.execute(select(removed).where(removed.c.device_id == device_id)).first()


def removed_in_all(tx: Connection) -> Record:
    """What was removed of all devices' evidence: attestations, refused, logs."""
    sums = (func.coalesce(func.sum(removed.c[name]), 0).label(name) for name in ("attestations", "refused", "logs"))
    return tx.execute(select(*sums)).one()


def removed_of_model(tx: Connection, model: str) -> int:
    """How much evidence that passed was removed of the devices of a model."""
    mine = removed.join(device, device.c.id == removed.c.device_id)
    counted = select(func.coalesce(func.sum(removed.c.attestations), 0)).select_from(mine)
    return int(tx.execute(counted.where(device.c.model == model)).scalar_one())


def logs_removed(tx: Connection, row: Record) -> list[str]:
    """Which logs of stored evidence are gone by a bound: "boot log", "IMA log"."""
    named = {"boot log": row.boot_log_sha256, "IMA log": row.ima_log_sha256}
    return [what for what, sha256 in named.items() if sha256 is not None and logs.is_removed(tx, sha256)]


def removed_attestation_by_id(tx: Connection, attestation_id: str) -> Record | None:
    """Evidence by which a certificate was earned, and which was removed: what is left of it."""
    return tx.execute(select(removed_attestation).where(removed_attestation.c.id == attestation_id)).first()


def newest_removed(tx: Connection, device_id: str, flow: str) -> Record | None:
    """The newest evidence of a flow that was removed."""
    mine = select(removed_attestation).where(
        removed_attestation.c.device_id == device_id, removed_attestation.c.flow == flow
    )
    return tx.execute(mine.order_by(removed_attestation.c.at.desc()).limit(1)).first()


def _pass(row: Any) -> Pass:  # noqa: ANN401  a record
    named = (row.boot_log_sha256, row.ima_log_sha256)
    return Pass(row.id, row.at, bool(row.softened), tuple(one for one in named if one is not None))
