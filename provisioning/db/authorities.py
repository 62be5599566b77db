"""Certificate authorities and the other keys that roll over, published trust bundles, and who depends on them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from provisioning.db.ca_tables import Authority, Bundle, Certificate
from provisioning.db.columns import table_of
from provisioning.db.devices import Record
from provisioning.db.tables import Device, MqttSession

authority, bundle = table_of(Authority), table_of(Bundle)
certificate, device, session = table_of(Certificate), table_of(Device), table_of(MqttSession)

OWN_PROFILES = ("service-tls", "ocsp-responder", "root-ca", "issuing-ca")
"""What the service itself renews, and CAs: nobody outside has to do anything about these."""


def every(tx: Connection) -> list[Record]:
    """All of them, oldest first."""
    return list(tx.execute(select(authority).order_by(authority.c.created_at, authority.c.name)))


def named(tx: Connection, name: str) -> Record | None:
    """The one of that name."""
    return tx.execute(select(authority).where(authority.c.name == name)).first()


def of_kind(tx: Connection, kind: str, *states: str) -> list[Record]:
    """Those of a kind, in these states where any are given, oldest first."""
    wanted = [authority.c.kind == kind] + ([authority.c.state.in_(states)] if states else [])
    return list(tx.execute(select(authority).where(*wanted).order_by(authority.c.created_at, authority.c.name)))


def add(tx: Connection, row: dict[str, Any]) -> None:
    """Insert one."""
    tx.execute(insert(authority), row)


def change(tx: Connection, name: str, **columns: object) -> None:
    """Set columns of one."""
    tx.execute(update(authority).where(authority.c.name == name).values(**columns))


# --- trust bundles ----------------------------------------------------------------------------------------------------


def bundles(tx: Connection) -> list[Record]:
    """Every trust bundle that was published, oldest first."""
    return list(tx.execute(select(bundle).order_by(bundle.c.version)))


def newest_bundle_version(tx: Connection) -> int:
    """The version of the bundle that was published last; 0 where none is on record."""
    return int(tx.execute(select(func.max(bundle.c.version))).scalar() or 0)


def add_bundle(tx: Connection, *, version: int, content: bytes, now: int, by: str) -> bool:
    """Note a bundle that is published. False where that version is known."""
    if tx.execute(select(bundle.c.version).where(bundle.c.version == version)).first() is not None:
        return False
    tx.execute(insert(bundle).values(version=version, content=content, published_at=now, published_by=by))
    return True


# --- who depends on them ----------------------------------------------------------------------------------------------


def holders_by_version(tx: Connection) -> dict[int, int]:
    """How many active devices hold which version of the trust bundle (0: they never said)."""
    rows = tx.execute(
        select(device.c.trust_version, func.count()).where(device.c.state == "active").group_by(device.c.trust_version)
    )
    return {int(row[0]): int(row[1]) for row in rows}


def without_bundle(tx: Connection, versions: Sequence[int], after: str, limit: int) -> list[Record]:
    """Active devices that hold none of these versions, behind an id, in the order of ids."""
    lacking = (device.c.state == "active", device.c.trust_version.not_in(versions), device.c.id > after)
    columns = (device.c.id, device.c.serial, device.c.trust_version, device.c.last_seen_at)
    return list(tx.execute(select(*columns).where(*lacking).order_by(device.c.id).limit(limit)))


def count_without_bundle(tx: Connection, versions: Sequence[int]) -> int:
    """How many active devices hold none of these versions."""
    lacking = (device.c.state == "active", device.c.trust_version.not_in(versions))
    return int(tx.execute(select(func.count()).where(*lacking)).scalar_one())


def offline_since(tx: Connection, before: int, limit: int) -> list[Record]:
    """Active devices that were last seen before then, those first that are away longest."""
    away = (device.c.state == "active", (device.c.last_seen_at < before) | device.c.last_seen_at.is_(None))
    columns = (device.c.id, device.c.serial, device.c.trust_version, device.c.last_seen_at)
    return list(tx.execute(select(*columns).where(*away).order_by(device.c.last_seen_at, device.c.id).limit(limit)))


def _live(issuer: str, now: int) -> tuple[ColumnElement[bool], ...]:
    return (
        certificate.c.issuer == issuer,
        certificate.c.state == "issued",
        certificate.c.not_after > now,
        certificate.c.profile.not_in(OWN_PROFILES),
    )


def live_certificates(tx: Connection, issuer: str, now: int) -> tuple[int, int | None]:
    """How many certificates of that authority somebody still uses, and when the last of them ends."""
    row = tx.execute(select(func.count(), func.max(certificate.c.not_after)).where(*_live(issuer, now))).one()
    return int(row[0]), None if row[1] is None else int(row[1])


def with_certificate_of(tx: Connection, issuer: str, now: int, after: str, limit: int) -> list[Record]:
    """The certificates themselves, behind a serial, in the order of serials."""
    columns = (certificate.c.serial, certificate.c.device_id, certificate.c.subject, certificate.c.not_after)
    live = select(*columns).where(*_live(issuer, now), certificate.c.serial > after)
    return list(tx.execute(live.order_by(certificate.c.serial).limit(limit)))


def devices_with_certificate_of(tx: Connection, issuer: str, now: int, limit: int) -> list[str]:
    """Active devices whose only certificates in use are of that authority and that have no order to rotate."""
    newer = certificate.alias("newer")
    has_newer = (
        select(newer.c.serial)
        .where(newer.c.device_id == certificate.c.device_id, newer.c.state == "issued", newer.c.issuer != issuer)
        .exists()
    )
    rows = tx.execute(
        select(certificate.c.device_id)
        .join(device, device.c.id == certificate.c.device_id)
        .where(*_live(issuer, now), device.c.state == "active", ~has_newer)
        .distinct()
        .order_by(certificate.c.device_id)
        .limit(limit)
    )
    return [str(row[0]) for row in rows]


def sessions_of_issuer(tx: Connection, issuer: str) -> list[str]:
    """Devices whose last session was opened with a certificate of that authority."""
    joined = session.join(certificate, certificate.c.serial == session.c.certificate_serial)
    rows = tx.execute(select(session.c.device_id).select_from(joined).where(certificate.c.issuer == issuer))
    return [str(row[0]) for row in rows]
