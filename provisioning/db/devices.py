"""Devices, stations, operators: reads and writes. Each function takes a connection and nothing else that changes."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, or_, select, update

from provisioning.db.columns import table_of
from provisioning.db.prepared import Prepared, PreparedSelect
from provisioning.db.tables import Assignment, Device, Operator, Release, Station

Record = Row[Any]
"""A row, read-only, with the columns' names."""

device, station, operator = (table_of(row) for row in (Device, Station, Operator))
assignment, release = table_of(Assignment), table_of(Release)

_SHOWN = ("ak_name", "ak_public", "reset_count", "restart_count", "clock", "clock_safe", "firmware_version")
_STATE = PreparedSelect(select(device.c.state).where(device.c.id == bindparam("id")))
_ATTESTED = Prepared(
    update(device)
    .where(
        device.c.id == bindparam("device"),
        or_(device.c.state == "registered", device.c.state == "active"),
        device.c.state == bindparam("was"),
        or_(device.c.health == "healthy", device.c.health == "unknown", device.c.health == bindparam("settled")),
        or_(
            device.c.ak_name.is_(None),
            device.c.ak_name == bindparam("new_ak_name"),
            device.c.approved_until >= bindparam("at"),
        ),
    )
    .values(
        state="active",
        health=bindparam("settled"),
        last_attested_at=bindparam("at"),
        next_attest_at=bindparam("next"),
        attest_asked=0,
        approved_until=None,
        **{name: bindparam(f"new_{name}") for name in _SHOWN},
    )
)
_DUE = PreparedSelect(
    select(
        *(device.c[name] for name in ("id", "model", "group", "state", "assurance", "health")),
        *(device.c[name] for name in ("last_attested_at", "next_attest_at", "attest_asked", "registered_at")),
    )
    .where(device.c.next_attest_at <= bindparam("at"))
    .order_by(device.c.next_attest_at)
    .limit(bindparam("most"))
)
_ASKED = Prepared(
    update(device)
    .where(device.c.id == bindparam("device"))
    .values(next_attest_at=bindparam("next"), attest_asked=bindparam("asked"))
)
_BY_ID = PreparedSelect(select(device).where(device.c.id == bindparam("id")))
_BY_EK = PreparedSelect(select(device).where(device.c.ek_id == bindparam("ek_id")))
_BY_IDENTITY = PreparedSelect(select(device).where(device.c.identity_id == bindparam("identity_id")))
_BY_SERIAL = PreparedSelect(select(device).where(device.c.serial == bindparam("serial")))
_WITH_AK = PreparedSelect(
    select(device.c.id).where(
        device.c.ak_name == bindparam("ak"),
        device.c.id != bindparam("but"),
        or_(device.c.state == "registered", device.c.state == "active", device.c.held_from.is_not(None)),
    )
)
_ASSIGNED = PreparedSelect(
    select(release)
    .join(assignment, release.c.target == assignment.c.target)
    .where(assignment.c.device_id == bindparam("id"), release.c.withdrawn.is_(False))
)
_COMMITTED = PreparedSelect(
    select(release)
    .join(device, device.c.release_target == release.c.target)
    .where(device.c.id == bindparam("id"), release.c.withdrawn.is_(False))
)


def by_id(tx: Connection, device_id: str) -> Record | None:
    """The device of that id."""
    return cast("Record | None", _BY_ID.first(tx, {"id": device_id}))


def state_of(tx: Connection, device_id: str) -> str | None:
    """Its state alone."""
    found = _STATE.first(tx, {"id": device_id})
    return None if found is None else str(found.state)


def by_ek(tx: Connection, ek_id: str) -> Record | None:
    """The device whose EK has that id."""
    return cast("Record | None", _BY_EK.first(tx, {"ek_id": ek_id}))


def by_identity(tx: Connection, identity_id: str) -> Record | None:
    """The device that is registered by an IAK or IDevID of that key id."""
    return cast("Record | None", _BY_IDENTITY.first(tx, {"identity_id": identity_id}))


def by_serial(tx: Connection, serial: str) -> Record | None:
    """The device of that serial."""
    return cast("Record | None", _BY_SERIAL.first(tx, {"serial": serial}))


def by_name(tx: Connection, name: str) -> Record | None:
    """The device whose id or serial that is; an operator may type either."""
    return by_id(tx, name) or by_serial(tx, name)


def after(tx: Connection, serial: str, limit: int) -> list[Record]:
    """At most `limit` devices behind `serial`, in the order of serials."""
    return list(tx.execute(select(device).where(device.c.serial > serial).order_by(device.c.serial).limit(limit)))


def count_by_state(tx: Connection) -> dict[str, int]:
    """How many devices are in which state."""
    rows = tx.execute(select(device.c.state, func.count()).group_by(device.c.state))
    return {row[0]: row[1] for row in rows}


def add(tx: Connection, rows: list[dict[str, Any]]) -> None:
    """Insert registered devices."""
    tx.execute(insert(device), rows)


def conflicts(tx: Connection, serial: str, ek_id: str | None, identity_id: str | None) -> list[Record]:
    """The devices that hold this serial, this EK or this identity already."""
    taken = [device.c.serial == serial]
    taken += [] if ek_id is None else [device.c.ek_id == ek_id]
    taken += [] if identity_id is None else [device.c.identity_id == identity_id]
    return list(tx.execute(select(device).where(or_(*taken))))


def others_with_ak(tx: Connection, ak_name: bytes, device_id: str) -> list[str]:
    """The other devices that are in service, or on hold, and whose record has this AK."""
    return [row.id for row in _WITH_AK.all(tx, {"ak": ak_name, "but": device_id})]


def change(tx: Connection, device_id: str, **columns: object) -> None:
    """Set columns of one device."""
    tx.execute(update(device).where(device.c.id == device_id).values(**columns))


def attested(
    tx: Connection, device_id: str, at: int, *, was: str, due: int | None, settled: str = "healthy", **shown: object
) -> bool:
    """A device's evidence passed: what its TPM showed, and the AK that it showed it with; `due` again at that time.

    False, and nothing is changed, where its state is not `was` (any more), or the end of it; where the record has
    another AK that no approval covers at `at`; or where its health is none from which a pass makes it healthy without
    more, nor the one that `settled` says it is.
    """
    new = {f"new_{name}": value for name, value in shown.items()}
    row = {"device": device_id, "was": was, "at": at, "next": due, "settled": settled, **new}
    return _ATTESTED(tx, row) == 1


def due_to_attest(tx: Connection, at: int, most: int) -> list[Record]:
    """At most so many devices whose next attestation is due, the longest due first."""
    return _DUE.all(tx, {"at": at, "most": most})


def asked_to_attest(tx: Connection, rows: Sequence[tuple[str, int | None, int]]) -> None:
    """Note of each device (`id, next, asked`) when it is due again, and how often it was without a pass."""
    _ASKED.many(tx, [{"device": one, "next": due, "asked": asked} for one, due, asked in rows])


def look_again(tx: Connection, model: str, at: int, *, only: str | None = None) -> None:
    """A model's policies changed: when its devices (or `only` that one) are due is worked out anew, by the duty.

    But for who was asked and has not passed since: its period began when it was asked.
    """
    asked = device.c.attest_asked > 0
    mine = (device.c.model == model, device.c.state == "active", device.c.assurance == "attested", ~asked)
    which = mine if only is None else (*mine, device.c.id == only)
    tx.execute(update(device).where(*which).values(next_attest_at=at))


def station_by_name(tx: Connection, name: str) -> Record | None:
    """A factory station."""
    return tx.execute(select(station).where(station.c.name == name)).first()


def stations(tx: Connection) -> list[Record]:
    """All factory stations."""
    return list(tx.execute(select(station).order_by(station.c.name)))


def put_station(tx: Connection, *, name: str, certificate_serial: str, budget: int, now: int) -> None:
    """Insert a station, or give a known one a new certificate and budget."""
    values = {"certificate_serial": certificate_serial, "budget": budget, "used": 0, "created_at": now}
    if station_by_name(tx, name) is None:
        tx.execute(insert(station).values(name=name, **values))
    else:
        tx.execute(update(station).where(station.c.name == name).values(**values))


def spend(tx: Connection, name: str, count: int) -> None:
    """Count registered devices against a station's budget."""
    tx.execute(update(station).where(station.c.name == name).values(used=station.c.used + count))


def operator_by_token(tx: Connection, token_sha256: str) -> Record | None:
    """The operator whose token has that hash."""
    return tx.execute(select(operator).where(operator.c.token_sha256 == token_sha256)).first()


def add_operator(tx: Connection, *, name: str, role: str, token_sha256: str, now: int) -> None:
    """Insert an operator."""
    tx.execute(insert(operator).values(name=name, role=role, token_sha256=token_sha256, created_at=now))


def operator_by_name(tx: Connection, name: str) -> Record | None:
    """The operator of that name."""
    return tx.execute(select(operator).where(operator.c.name == name)).first()


def operators(tx: Connection) -> list[Record]:
    """All operators, by name."""
    return list(tx.execute(select(operator).order_by(operator.c.name)))


def remove_operator(tx: Connection, name: str) -> None:
    """Delete an operator."""
    tx.execute(delete(operator).where(operator.c.name == name))


def releases_of(tx: Connection, device_id: str) -> list[Record]:
    """The releases whose reference values this device may show: the one it committed and the one assigned to it."""
    return [*_COMMITTED.all(tx, {"id": device_id}), *_ASSIGNED.all(tx, {"id": device_id})]
