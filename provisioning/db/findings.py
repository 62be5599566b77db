"""Findings about devices: reads and writes."""

import json
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, func, insert, select, update

from provisioning.db.columns import table_of
from provisioning.db.devices import Record, device
from provisioning.db.finding_tables import Finding

finding = table_of(Finding)

DETAIL_MOST = 4096
"""Characters of a finding's details; what is longer is shortened, value by value."""
_VALUE_MOST = 256
_LISTED = (finding, device.c.serial, device.c.model)
_WITH_DEVICE = finding.join(device, device.c.id == finding.c.device_id, isouter=True)
_OPEN = finding.c.closed_at.is_(None)


def open(  # noqa: A001  that is what it does
    tx: Connection,
    device_id: str,
    kind: str,
    detail: Mapping[str, object],
    at: int,
    *,
    key: str = "",
    proven: bool = True,
) -> bool:
    """Open a finding. False, and it is counted, where one of the same kind and key is open already."""
    mine = (finding.c.device_id == device_id, finding.c.kind == kind, finding.c.key == key, _OPEN)
    again = update(finding).where(*mine).values(times=finding.c.times + 1, last_at=at)
    if tx.execute(again).rowcount:
        return False
    row = {"device_id": device_id, "kind": kind, "key": key, "detail": _text(detail), "at": at, "last_at": at}
    tx.execute(insert(finding).values(times=1, proven=proven, **row))
    return True


def is_open(tx: Connection, device_id: str, *kinds: str) -> bool:
    """Is a finding of one of these kinds open about this device?"""
    mine = (finding.c.device_id == device_id, finding.c.kind.in_(kinds), _OPEN)
    return tx.execute(select(finding.c.id).where(*mine).limit(1)).first() is not None


def unanswered(tx: Connection, device_id: str, kinds: Collection[str]) -> list[Record]:
    """The open findings of these kinds that the device proved, and because of which nothing was done; oldest first."""
    mine = (finding.c.device_id == device_id, finding.c.kind.in_(kinds), _OPEN)
    without = (finding.c.proven, finding.c.response.is_(None))
    return list(tx.execute(select(finding).where(*mine, *without).order_by(finding.c.id)))


def set_response(tx: Connection, device_id: str, kind: str, response: str, *, key: str = "") -> None:
    """Note what the policy did because of an open finding."""
    mine = (finding.c.device_id == device_id, finding.c.kind == kind, finding.c.key == key, _OPEN)
    tx.execute(update(finding).where(*mine).values(response=response))


def get(tx: Connection, number: int) -> Record | None:
    """One finding, with its device's serial and model."""
    return tx.execute(select(*_LISTED).select_from(_WITH_DEVICE).where(finding.c.id == number)).first()


def close(tx: Connection, number: int, *, at: int, by: str) -> bool:
    """Close a finding. False where it is closed, or was never opened."""
    one = update(finding).where(finding.c.id == number, _OPEN)
    return tx.execute(one.values(closed_at=at, closed_by=by)).rowcount == 1


def close_kind(tx: Connection, device_id: str, kind: str, *, at: int, by: str) -> int:
    """Close every open finding of one kind about a device; how many there were."""
    mine = (finding.c.device_id == device_id, finding.c.kind == kind, _OPEN)
    return tx.execute(update(finding).where(*mine).values(closed_at=at, closed_by=by)).rowcount


def page(tx: Connection, *, device_id: str | None, closed: bool, before: int | None, limit: int) -> list[Record]:
    """At most `limit` findings, the newest first, older than `before`; `closed` ones too, or only those open."""
    chosen = select(*_LISTED).select_from(_WITH_DEVICE).order_by(finding.c.id.desc()).limit(limit)
    if device_id is not None:
        chosen = chosen.where(finding.c.device_id == device_id)
    if not closed:
        chosen = chosen.where(_OPEN)
    if before is not None:
        chosen = chosen.where(finding.c.id < before)
    return list(tx.execute(chosen))


def count_open(tx: Connection) -> dict[str, int]:
    """How many findings of each kind are open."""
    rows = tx.execute(select(finding.c.kind, func.count()).where(_OPEN).group_by(finding.c.kind))
    return {row[0]: row[1] for row in rows}


def _text(detail: Mapping[str, object]) -> str:
    """As JSON, of bounded length: some of it is what a device sent."""
    plain = {
        name: value if isinstance(value, bool | int | None) else str(value)[:_VALUE_MOST]
        for name, value in detail.items()
    }
    written = json.dumps(plain)
    while len(written) > DETAIL_MOST and plain:
        plain.popitem()
        written = json.dumps(plain)
    return written
