"""Policies: reads and writes. Of one model and group at most one version is in force; versions count over the model."""

from sqlalchemy import Connection, bindparam, func, insert, literal_column, or_, select, update

from provisioning.db import devices, judge_again
from provisioning.db.columns import table_of
from provisioning.db.devices import Record
from provisioning.db.prepared import PreparedSelect
from provisioning.db.tables import Policy

policy = table_of(Policy)

_ACTIVE = policy.c.state == literal_column("'active'")  # as in the partial index, or it would not be used
_OF_DEVICE = (
    policy.c.model == bindparam("model"),
    or_(policy.c.group == bindparam("group"), policy.c.group == literal_column("''")),
    _ACTIVE,
)
_NEWEST_POLICY = PreparedSelect(select(policy).where(*_OF_DEVICE).order_by(policy.c.group.desc()).limit(1))
_NEWEST_POLICY_ID = PreparedSelect(select(policy.c.id).where(*_OF_DEVICE).order_by(policy.c.group.desc()).limit(1))


def newest_policy(tx: Connection, model: str, group: str | None) -> Record | None:
    """The policy in force for the devices of a model and group: the group's own, else the model's."""
    found: Record | None = _NEWEST_POLICY.first(tx, {"model": model, "group": group or ""})
    return found


def newest_policy_id(tx: Connection, model: str, group: str | None) -> int | None:
    """The row of the policy in force for the devices of a model and group."""
    found = _NEWEST_POLICY_ID.first(tx, {"model": model, "group": group or ""})
    return None if found is None else int(found.id)


def by_id(tx: Connection, policy_id: int) -> Record | None:
    """The policy under which a challenge was made."""
    return tx.execute(select(policy).where(policy.c.id == policy_id)).first()


def by_version(tx: Connection, model: str, version: int) -> Record | None:
    """One version of a model's policies."""
    return tx.execute(select(policy).where(policy.c.model == model, policy.c.version == version)).first()


def own(tx: Connection, model: str, group: str | None) -> Record | None:
    """The policy in force of exactly that model and group; None where the group has none of its own."""
    mine = (policy.c.model == model, policy.c.group == (group or ""), _ACTIVE)
    return tx.execute(select(policy).where(*mine)).first()


def newest_draft(tx: Connection, model: str, group: str | None) -> Record | None:
    """The draft that was proposed last for a model and group."""
    mine = (policy.c.model == model, policy.c.group == (group or ""), policy.c.state == "draft")
    return tx.execute(select(policy).where(*mine).order_by(policy.c.version.desc()).limit(1)).first()


def was_in_force(tx: Connection, model: str, group: str | None, text: str) -> bool:
    """Was this very text in force for exactly that model and group before?"""
    mine = (policy.c.model == model, policy.c.group == (group or ""), policy.c.state == "superseded")
    return tx.execute(select(policy.c.id).where(*mine, policy.c.text == text).limit(1)).first() is not None


def groups_of(tx: Connection, model: str) -> list[str]:
    """The groups of a model that have a policy of their own in force."""
    mine = (policy.c.model == model, policy.c.group != "", _ACTIVE)
    return [row[0] for row in tx.execute(select(policy.c.group).where(*mine).order_by(policy.c.group))]


def in_force(tx: Connection) -> list[Record]:
    """The policies in force, by model and group."""
    return list(tx.execute(select(policy).where(_ACTIVE).order_by(policy.c.model, policy.c.group)))


def current(tx: Connection) -> list[Record]:
    """The policies in force, and the drafts that may still become so, by model, group and version."""
    there = or_(_ACTIVE, policy.c.state == "draft")
    return list(tx.execute(select(policy).where(there).order_by(policy.c.model, policy.c.group, policy.c.version)))


def versions(tx: Connection, model: str) -> list[Record]:
    """Every version of a model's policies, oldest first."""
    return list(tx.execute(select(policy).where(policy.c.model == model).order_by(policy.c.version)))


def add_draft(tx: Connection, *, model: str, group: str | None, text: str, now: int, by: str) -> int:
    """Insert the next version of a model's policies as a draft; returns the version."""
    newest = select(func.coalesce(func.max(policy.c.version), 0)).where(policy.c.model == model)
    version = int(tx.execute(newest).scalar_one()) + 1
    row = {"model": model, "group": group or "", "version": version, "text": text, "state": "draft"}
    tx.execute(insert(policy).values(**row, created_at=now, created_by=by))
    return version


def put_into_force(tx: Connection, draft: Record, *, now: int, by: str | None) -> None:
    """A draft becomes the policy in force of its model and group; what was is superseded, older drafts are overtaken.

    `by` is who promoted it; None where it was set without a second person.
    """
    same = (policy.c.model == draft.model, policy.c.group == draft.group, policy.c.version < draft.version)
    tx.execute(update(policy).where(*same, _ACTIVE).values(state="superseded"))
    tx.execute(update(policy).where(*same, policy.c.state == "draft").values(state="overtaken"))
    promoted = {"promoted_at": None if by is None else now, "promoted_by": by}
    tx.execute(update(policy).where(policy.c.id == draft.id).values(state="active", **promoted))
    devices.look_again(tx, draft.model, now)
    judge_again.add_group(tx, draft.model, draft.group or None, groups_of(tx, draft.model))


def add_policy(tx: Connection, *, model: str, text: str, now: int, by: str, group: str | None = None) -> int:
    """Insert the next version of a model's policies and put it into force; returns the version."""
    version = add_draft(tx, model=model, group=group, text=text, now=now, by=by)
    row = by_version(tx, model, version)
    if row is None:
        raise LookupError(f"version {version} of {model}, inserted a moment ago")
    put_into_force(tx, row, now=now, by=None)
    return version


def count_drafts(tx: Connection, model: str) -> int:
    """How many drafts of a model wait, whatever their group."""
    mine = (policy.c.model == model, policy.c.state == "draft")
    return int(tx.execute(select(func.count()).where(*mine)).scalar_one())
