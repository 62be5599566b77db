"""Stored evidence of whole models, page by page: reads."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from provisioning.db import policies
from provisioning.db.columns import table_of
from provisioning.db.devices import Record, device
from provisioning.db.evidence_tables import RefusedEvidence
from provisioning.db.tables import Attestation

attestation, refused = table_of(Attestation), table_of(RefusedEvidence)

OUT_OF_SERVICE = ("revoked", "decommissioned")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a model's stored evidence, in the order of devices, times and ids: what comes behind it is next."""

    device: str = ""
    at: int = -1
    id: str = ""


def devices_judged_by(tx: Connection, model: str, group: str | None) -> ColumnElement[bool]:
    """The devices in service that a policy of this model and group judges: of the group, or of none with its own."""
    mine = _in_service(model)
    if group is not None:
        return and_(mine, device.c.group == group)
    others = policies.groups_of(tx, model)
    return and_(mine, or_(device.c.group.is_(None), device.c.group.not_in(others))) if others else mine


def _in_service(model: str) -> ColumnElement[bool]:
    return and_(device.c.model == model, device.c.state.not_in(OUT_OF_SERVICE))


def newest_behind(tx: Connection, model: str, group: str | None, behind: Place, limit: int) -> list[Record]:
    """The next devices of at most `limit` records, each with its newest evidence that passed, if it has some."""
    mine = select(device).where(devices_judged_by(tx, model, group), device.c.id > behind.device)
    return list(tx.execute(mine.order_by(device.c.id).limit(limit)))


def newest_of(tx: Connection, device_id: str) -> Record | None:
    """A device's newest evidence that passed, of whatever flow."""
    mine = select(attestation).where(attestation.c.device_id == device_id)
    return tx.execute(mine.order_by(attestation.c.at.desc(), attestation.c.id.desc()).limit(1)).first()


def every_of(tx: Connection, device_id: str, behind: Place, limit: int) -> list[Record]:
    """At most `limit` of a device's evidence that passed, behind a place, oldest first."""
    later = or_(attestation.c.at > behind.at, and_(attestation.c.at == behind.at, attestation.c.id > behind.id))
    mine = select(attestation).where(attestation.c.device_id == device_id, later)
    return list(tx.execute(mine.order_by(attestation.c.at, attestation.c.id).limit(limit)))


def refused_behind(tx: Connection, model: str, behind: Place, limit: int) -> list[Record]:
    """At most `limit` refusals (id, device, time) of a model whose evidence is kept, behind a place; no evidence."""
    columns = (refused.c.refusal_id, refused.c.device_id, refused.c.at)
    later = or_(
        refused.c.device_id > behind.device,
        and_(refused.c.device_id == behind.device, refused.c.at > behind.at),
        and_(refused.c.device_id == behind.device, refused.c.at == behind.at, refused.c.refusal_id > behind.id),
    )
    joined = select(*columns).join(device, device.c.id == refused.c.device_id)
    mine = joined.where(_in_service(model), later)
    return list(tx.execute(mine.order_by(refused.c.device_id, refused.c.at, refused.c.refusal_id).limit(limit)))


def reported_behind(tx: Connection, model: str, behind: Place, limit: int) -> list[Record]:
    """At most `limit` devices of a model (id) behind a place that passed last with what `enforce` would refuse."""
    newest = (
        select(attestation.c.findings)
        .where(attestation.c.device_id == device.c.id)
        .order_by(attestation.c.at.desc(), attestation.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    mine = select(device.c.id.label("device_id")).where(
        _in_service(model), device.c.id > behind.device, newest.like('%"refused": true%')
    )
    return list(tx.execute(mine.order_by(device.c.id).limit(limit)))
