"""What `explain` needs: evidence that was refused, and which devices showed a value last. Reads and writes."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update

from provisioning.db.columns import table_of
from provisioning.db.devices import Record, device
from provisioning.db.evidence_tables import RefusedEvidence, Shown
from provisioning.db.prepared import Prepared, prepared_insert
from provisioning.db.tables import Attestation

refused, shown, attestation = table_of(RefusedEvidence), table_of(Shown), table_of(Attestation)

OUT_OF_SERVICE = ("revoked", "decommissioned")
"""States of a device whose values count for nothing any more."""

_INSERT_REFUSED = prepared_insert(refused)
_INSERT_SHOWN = prepared_insert(shown)
_DELETE_SHOWN = Prepared(delete(shown).where(shown.c.device_id == bindparam("device")))
_MARK_SHOWN = Prepared(update(device).where(device.c.id == bindparam("device")).values(shown=bindparam("digest")))
_MARK_FIRST = Prepared(
    update(device).where(device.c.id == bindparam("device"), device.c.shown.is_(None)).values(shown=bindparam("digest"))
)


def keep_refused(tx: Connection, row: dict[str, Any], most: int) -> None:
    """Keep refused evidence, and of this device only its newest `most` in all."""
    _INSERT_REFUSED(tx, row)
    mine = select(refused.c.refusal_id).where(refused.c.device_id == row["device_id"])
    old = mine.order_by(refused.c.at.desc(), refused.c.refusal_id.desc()).offset(most)
    gone = [one.refusal_id for one in tx.execute(old) if one.refusal_id != row["refusal_id"]]
    if gone:
        tx.execute(delete(refused).where(refused.c.refusal_id.in_(gone)))


def refused_evidence(tx: Connection, refusal_id: str) -> Record | None:
    """The evidence of one refusal, where it is still kept."""
    return tx.execute(select(refused).where(refused.c.refusal_id == refusal_id)).first()


def attestation_by_id(tx: Connection, attestation_id: str) -> Record | None:
    """One evidence that passed."""
    return tx.execute(select(attestation).where(attestation.c.id == attestation_id)).first()


def findings_of_passed(tx: Connection, device_id: str, until: int, most: int) -> list[Record]:
    """Id, time and findings of a device's newest evidence that passed until then: at most so many, newest first."""
    mine = (attestation.c.device_id == device_id, attestation.c.at <= until)
    columns = (attestation.c.id, attestation.c.at, attestation.c.findings)
    order = (attestation.c.at.desc(), attestation.c.id.desc())
    return list(tx.execute(select(*columns).where(*mine).order_by(*order).limit(most)))


def put_shown(tx: Connection, device_id: str, model: str, values: Iterable[bytes], digest: bytes) -> None:
    """What a device shows now, in the place of what it showed before. `digest` is over all of it."""
    if not _MARK_FIRST(tx, {"device": device_id, "digest": digest}):
        _DELETE_SHOWN(tx, {"device": device_id})
        _MARK_SHOWN(tx, {"device": device_id, "digest": digest})
    _INSERT_SHOWN.many(tx, [{"model": model, "value": value, "device_id": device_id} for value in sorted(set(values))])


def others_showing(tx: Connection, model: str, value: bytes, device_id: str, most: int) -> int:
    """How many other devices of the model, in service, show this value: `most` where there are as many or more.

    One range of the table's key, at most `most` entries of it, and a look-up of each device: the cost does not grow
    with the fleet.
    """
    return tx.execute(counting(model, value, device_id, most)).scalar_one()


def counting(model: str, value: bytes, device_id: str, most: int) -> Select[int]:
    """The statement of `others_showing`."""
    same = (shown.c.model == model, shown.c.value == value, shown.c.device_id != device_id)
    found = select(shown.c.device_id).where(*same).limit(most).subquery()
    joined = found.join(device, device.c.id == found.c.device_id)
    return select(func.count()).select_from(joined).where(device.c.state.not_in(OUT_OF_SERVICE))
