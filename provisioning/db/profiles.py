"""Certificate profiles: reads and writes."""

from sqlalchemy import Connection, func, insert, select

from provisioning.db.ca_tables import Profile
from provisioning.db.columns import table_of
from provisioning.db.devices import Record

profile = table_of(Profile)


def in_force(tx: Connection) -> list[Record]:
    """The newest version of each profile, by name."""
    newest = select(func.max(profile.c.id)).group_by(profile.c.name)
    return list(tx.execute(select(profile).where(profile.c.id.in_(newest)).order_by(profile.c.name)))


def newest_id(tx: Connection) -> int:
    """The row that was written last: it rises with each change, 0 where there is none."""
    return int(tx.execute(select(func.coalesce(func.max(profile.c.id), 0))).scalar_one())


def versions(tx: Connection, name: str) -> list[Record]:
    """Every version of one profile, oldest first."""
    return list(tx.execute(select(profile).where(profile.c.name == name).order_by(profile.c.version)))


def by_id(tx: Connection, row_id: int) -> Record | None:
    """One version, by its row."""
    return tx.execute(select(profile).where(profile.c.id == row_id)).first()


def every(tx: Connection) -> list[Record]:
    """Every version of every profile, in the order in which they were set."""
    return list(tx.execute(select(profile).order_by(profile.c.id)))


def add(tx: Connection, *, name: str, text: str, now: int, by: str) -> int:
    """Insert the next version of a profile; returns the version."""
    newest = select(func.coalesce(func.max(profile.c.version), 0)).where(profile.c.name == name)
    version = int(tx.execute(newest).scalar_one()) + 1
    tx.execute(insert(profile).values(name=name, version=version, text=text, created_at=now, created_by=by))
    return version
