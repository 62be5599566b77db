"""Leaves and checkpoints of the log: reads and writes."""

from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from provisioning.db.columns import table_of
from provisioning.db.devices import Record
from provisioning.db.prepared import Prepared, prepared_insert
from provisioning.db.tables import BULK_LEAVES, RARE_LEAF, Checkpoint, Leaf

leaf, checkpoint = table_of(Leaf), table_of(Checkpoint)
_INSERT = prepared_insert(leaf)
_NUMBER = Prepared(
    update(leaf).where(leaf.c.id == bindparam("leaf"), leaf.c.number.is_(None)).values(number=bindparam("place"))
)


def add(tx: Connection, row: dict[str, Any]) -> None:
    """Insert a leaf, unnumbered, in the transaction of what it records."""
    _INSERT(tx, row)


def unnumbered(tx: Connection, most: int) -> list[Record]:
    """Leaves that wait for a number, in the order in which they came."""
    waiting = select(leaf.c.id, leaf.c.hash).where(leaf.c.number.is_(None)).order_by(leaf.c.id).limit(most)
    return list(tx.execute(waiting))


def number(tx: Connection, places: dict[int, int]) -> None:
    """Give leaves their places: id to number."""
    _NUMBER.many(tx, [{"leaf": leaf_id, "place": place} for leaf_id, place in places.items()])


def numbered(tx: Connection, start: int, most: int) -> list[Record]:
    """Leaves from a place on, in order."""
    placed = select(leaf).where(leaf.c.number >= start).order_by(leaf.c.number).limit(most)
    return list(tx.execute(placed))


def newest_checkpoint(tx: Connection) -> Record | None:
    """The last signed tree head."""
    return tx.execute(select(checkpoint).order_by(checkpoint.c.size.desc()).limit(1)).first()


def checkpoints(tx: Connection) -> list[Record]:
    """All signed tree heads, smallest first."""
    return list(tx.execute(select(checkpoint).order_by(checkpoint.c.size)))


def add_checkpoint(tx: Connection, *, size: int, root: bytes, frontier: bytes, note: str, now: int) -> None:
    """Insert a signed tree head."""
    tx.execute(insert(checkpoint).values(size=size, root=root, frontier=frontier, note=note, at=now))


def of_kind(tx: Connection, kind: str) -> list[Record]:
    """All leaves of a kind, in the order in which they came. Only the kinds that `RARE_LEAF` covers have an index."""
    rare = () if kind in BULK_LEAVES else (RARE_LEAF,)
    return list(tx.execute(select(leaf).where(*rare, leaf.c.kind == kind).order_by(leaf.c.id)))


def newest_at(tx: Connection, kind: str) -> int:
    """When the newest leaf of such a kind was written; 0 where there is none."""
    return int(tx.execute(select(func.max(leaf.c.at)).where(RARE_LEAF, leaf.c.kind == kind)).scalar() or 0)


def count(tx: Connection) -> int:
    """How many leaves there are, numbered or not."""
    return int(tx.execute(select(func.count()).select_from(leaf)).scalar_one())
