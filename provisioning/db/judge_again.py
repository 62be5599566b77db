"""Devices that are refused, and whose policy changed since: a list that is worked off. Reads and writes."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, delete, exists, insert, or_, select

from provisioning.db.columns import table_of
from provisioning.db.devices import Record, device
from provisioning.db.evidence_tables import JudgeAgain, RefusedEvidence

waiting, refused = table_of(JudgeAgain), table_of(RefusedEvidence)

REFUSED = ("failing", "quarantined")
"""What a device's health is that was refused last."""


def add_group(tx: Connection, model: str, group: str | None, others: Collection[str]) -> None:
    """Put the devices of a group on the list that are refused, and of which it is known what they showed.

    `group` None: all of the model but those of `others`, the groups that have a policy of their own.
    """
    mine = or_(device.c.group.is_(None), device.c.group.not_in(others)) if group is None else device.c.group == group
    _add(tx, device.c.model == model, mine, device.c.health.in_(REFUSED))


def add_device(tx: Connection, device_id: str) -> None:
    """Put one device on the list of which it is known what it showed when it was refused."""
    _add(tx, device.c.id == device_id)


def behind(tx: Connection, device_id: str, most: int) -> list[str]:
    """At most so many devices of the list, by id, behind that one."""
    later = select(waiting.c.device_id).where(waiting.c.device_id > device_id)
    return [row.device_id for row in tx.execute(later.order_by(waiting.c.device_id).limit(most))]


def remove(tx: Connection, device_id: str) -> None:
    """Take a device off the list."""
    tx.execute(delete(waiting).where(waiting.c.device_id == device_id))


def newest_refused(tx: Connection, device_id: str) -> Record | None:
    """What a device showed when it was refused last, as far as it is kept; with its logs."""
    mine = select(refused).where(refused.c.device_id == device_id)
    return tx.execute(mine.order_by(refused.c.at.desc(), refused.c.refusal_id.desc()).limit(1)).first()


def newest_refusal(tx: Connection, device_id: str) -> str | None:
    """The refusal that `newest_refused` is of."""
    mine = select(refused.c.refusal_id).where(refused.c.device_id == device_id)
    found = tx.execute(mine.order_by(refused.c.at.desc(), refused.c.refusal_id.desc()).limit(1)).first()
    return None if found is None else str(found.refusal_id)


def _add(tx: Connection, *which: ColumnElement[bool]) -> None:
    known = exists().where(refused.c.device_id == device.c.id)
    there = exists().where(waiting.c.device_id == device.c.id)
    new = select(device.c.id).where(*which, device.c.state == "active", known, ~there)
    tx.execute(insert(waiting).from_select(["device_id"], new))
