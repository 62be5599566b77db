"""What an operator sees of it: each CA and key, who holds which bundle, who is away, and what a step would break."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from ota.bundle import published_bundle
from provisioning.authorities import ISSUING, RESULTS, ROOT, TRUST, State
from provisioning.db import authorities
from provisioning.db.devices import Record
from provisioning.refusals import NotFound
from provisioning.rollover.bundles import newest_names, versions_naming, wanted_bundle
from provisioning.rollover.change import Use, use_of
from provisioning.service import Service
from wire.binding import key_id
from wire.codec import rfc3339
from wire.messages import TrustBundle

Json = dict[str, object]
AWAY_SECONDS = 24 * 3600
AWAY_SHOWN = 20


async def show(service: Service) -> Json:
    """All of it, in one consistent state of the database. Raises: UpdateRefused."""
    at = int(service.clock().timestamp())
    published = published_bundle(service.directory.trust)

    def read(tx: Connection) -> Json:
        rows = authorities.every(tx)
        held = authorities.holders_by_version(tx)
        away = authorities.offline_since(tx, at - AWAY_SECONDS, AWAY_SHOWN)
        return {
            "authorities": [_shown(tx, row, at) for row in rows],
            "bundle": {
                "version": published.version,
                "to_publish": difference(published, wanted_bundle(published, rows)),
                "held_by": {str(version): count for version, count in sorted(held.items(), reverse=True)},
                "active_devices": sum(held.values()),
            },
            "away": [_device(row) for row in away],
        }

    return await service.store.read(read)


async def dependents(service: Service, name: str, after_serial: str, after_device: str, limit: int) -> Json:
    """One page of who depends on it: certificates of it that are in use, and devices without a bundle that names it.

    Each list goes on behind the last one of the page before. Raises: NotFound.
    """
    at = int(service.clock().timestamp())

    def read(tx: Connection) -> Json:
        row = authorities.named(tx, name)
        if row is None:
            raise NotFound(expected="an authority or key of muster ca status", actual=name)
        live = authorities.with_certificate_of(tx, name, at, after_serial, limit) if row.kind == ISSUING else []
        versions = versions_naming(tx, row) if row.kind not in (TRUST, RESULTS) else None
        lacking = [] if versions is None else authorities.without_bundle(tx, versions, after_device, limit)
        return {
            "authority": _shown(tx, row, at),
            "certificates": [
                {"serial": one.serial, "device": one.device_id or one.subject, "not_after": _time(one.not_after)}
                for one in live
            ],
            "without_bundle": [_device(one) for one in lacking],
        }

    return await service.store.read(read)


def _shown(tx: Connection, row: Record, at: int) -> Json:
    use = use_of(tx, row, at)
    versions = versions_naming(tx, row) if row.public_key and row.kind not in (TRUST, RESULTS) else None
    lacking = 0 if versions is None else authorities.count_without_bundle(tx, versions)
    return {
        "name": row.name,
        "kind": row.kind,
        "state": row.state,
        "key": key_id(row.public_key) if row.public_key else None,
        "place": row.key or None,
        "certificate": _certificate_state(row),
        "certificates_in_use": use.certificates,
        "last_ends_at": None if use.last_ends_at is None else _time(use.last_ends_at),
        "bundles": _ranges(versions or []),
        "devices_without": lacking,
        "devices_without_successor": use.without_successor if row.state == State.RETIRING else 0,
        "next": _next(row, use, lacking, newest_names(tx, row)),
    }


def _ranges(versions: list[int]) -> str | None:
    """`1-3, 5`: the versions of the bundles that name it."""
    runs: list[list[int]] = []
    for version in versions:
        if runs and runs[-1][-1] == version - 1:
            runs[-1][1:] = [version]
        else:
            runs.append([version])
    return ", ".join("-".join(map(str, run)) for run in runs) or None


def _certificate_state(row: Record) -> str | None:
    if row.kind not in (ROOT, ISSUING):
        return None
    return "there" if row.certificate else "awaited"


def _next(row: Record, use: Use, lacking: int, named: bool) -> str:  # noqa: FBT001  a fact, not a flag
    """What an operator may do next, and whether it is safe."""
    if row.state == State.PREPARED:
        return _next_of_prepared(row, lacking, named)
    if row.state != State.RETIRING:
        return "nothing: it signs" if row.state == State.ACTIVE else "nothing: it is retired"
    if use.certificates:
        return f"wait: {use.certificates} certificates of it are in use; muster ca rotate {row.name}"
    if use.without_successor:
        return f"wait: {use.without_successor} devices do not know its successor"
    if row.kind == RESULTS:
        return f"retire it when the last of its results has ended: muster ca retire {row.name}"
    return f"retire it, it is safe: muster ca retire {row.name}"


def _next_of_prepared(row: Record, lacking: int, named: bool) -> str:  # noqa: FBT001  a fact, not a flag
    if not row.public_key or (row.kind in (ROOT, ISSUING) and not row.certificate):
        return f"key or certificate is awaited: muster ca prepare {row.kind}, or muster ca import {row.name}"
    if row.kind == TRUST:
        return f"the old and the new keys sign together: muster ca activate {row.name}"
    if row.kind == RESULTS:
        return f"activate it, relying parties find it in the key set already: muster ca activate {row.name}"
    if not named:
        return "the published trust bundle does not name it: muster ca publish"
    if lacking:
        return f"wait: {lacking} devices do not hold a bundle that names it"
    return f"activate it, it is safe: muster ca activate {row.name}"


def difference(before: TrustBundle, wanted: TrustBundle) -> dict[str, Any] | None:
    """What the next bundle adds and leaves out; None where there is none to publish."""
    if wanted == before:
        return None

    def only(these: TrustBundle, those: TrustBundle) -> list[str]:
        return [
            f"{name} sha256:{hashlib.sha256(one).hexdigest()}"
            for name in ("ca_roots", "issuing_keys", "command_keys", "log_keys")
            for one in getattr(these, name)
            if one not in getattr(those, name)
        ]

    return {"version": wanted.version, "adds": only(wanted, before), "drops": only(before, wanted)}


def _device(row: Record) -> Json:
    seen = None if row.last_seen_at is None else _time(row.last_seen_at)
    return {"device": row.id, "serial": row.serial, "trust_version": row.trust_version, "last_seen_at": seen}


def _time(at: int) -> str:
    """A certificate may end in the year 9999: the time is written whatever it is."""
    return rfc3339(datetime.fromtimestamp(at, UTC))
