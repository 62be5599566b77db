"""The certificates of TPM manufacturers that were imported. Each function takes a connection and nothing else."""

from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from provisioning.db.columns import table_of
from provisioning.db.devices import Record
from provisioning.db.prepared import PreparedSelect
from provisioning.db.tables import EkRoot

ek_root = table_of(EkRoot)

_VERSION = PreparedSelect(select(func.max(ek_root.c.changed).label("version")))


def version(tx: Connection) -> int:
    """The number of the last change; 0 before the first."""
    row = _VERSION.first(tx, {})
    return 0 if row is None or row.version is None else int(row.version)


def present(tx: Connection) -> list[Record]:
    """What is in the store, in the order of manufacturers and fingerprints."""
    there = select(ek_root).where(ek_root.c.removed_at.is_(None))
    return list(tx.execute(there.order_by(ek_root.c.manufacturer, ek_root.c.fingerprint)))


def get(tx: Connection, fingerprint: str) -> Record | None:
    """One certificate, a removed one too."""
    return tx.execute(select(ek_root).where(ek_root.c.fingerprint == fingerprint)).first()


def put(tx: Connection, rows: list[dict[str, Any]], number: int) -> None:
    """Insert certificates, or bring removed ones back with what is known of them now."""
    names = [row["fingerprint"] for row in rows]
    known = {
        name
        for start in range(0, len(names), 500)
        for (name,) in tx.execute(
            select(ek_root.c.fingerprint).where(ek_root.c.fingerprint.in_(names[start : start + 500]))
        )
    }
    fresh = [{**row, "changed": number} for row in rows if row["fingerprint"] not in known]
    if fresh:
        tx.execute(insert(ek_root), fresh)
    for row in rows:
        if row["fingerprint"] in known:
            again = {**row, "changed": number, "removed_at": None, "removed_by": None}
            tx.execute(update(ek_root).where(ek_root.c.fingerprint == row["fingerprint"]).values(**again))


def set_role(tx: Connection, fingerprint: str, role: str, number: int) -> None:
    """Another role for one certificate."""
    tx.execute(update(ek_root).where(ek_root.c.fingerprint == fingerprint).values(role=role, changed=number))


def remove(tx: Connection, fingerprint: str, *, now: int, by: str, number: int) -> bool:
    """Take one certificate out. False: it was not in."""
    there = update(ek_root).where(ek_root.c.fingerprint == fingerprint, ek_root.c.removed_at.is_(None))
    return tx.execute(there.values(removed_at=now, removed_by=by, changed=number)).rowcount == 1
