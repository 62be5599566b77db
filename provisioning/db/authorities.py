"""Certificate authorities: reads and writes."""

from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from provisioning.db.devices import Record
from provisioning.db.prepared import PreparedSelect
from provisioning.db.tables import Authority, table_of

authority = table_of(Authority)

_STATE = PreparedSelect(select(authority.c.state).where(authority.c.name == bindparam("name")))


def every(tx: Connection) -> list[Record]:
    """All authorities, oldest first."""
    return list(tx.execute(select(authority).order_by(authority.c.created_at, authority.c.name)))


def named(tx: Connection, name: str) -> Record | None:
    """The authority of that name."""
    return tx.execute(select(authority).where(authority.c.name == name)).first()


def state_of(tx: Connection, name: str) -> str | None:
    """The state of the authority of that name, in few microseconds: each certificate that is reserved asks."""
    found = _STATE.first(tx, {"name": name})
    return None if found is None else str(found.state)


def add(tx: Connection, row: dict[str, Any]) -> None:
    """Insert an authority."""
    tx.execute(insert(authority), row)


def change(tx: Connection, name: str, **columns: object) -> None:
    """Set columns of one authority."""
    tx.execute(update(authority).where(authority.c.name == name).values(**columns))
