"""What operators decide about certificates: profiles set, listed and shown. JSON-ready values; no row leaves."""

from datetime import UTC, datetime

from sqlalchemy import Connection

from provisioning.db import leaves, profiles
from provisioning.db.devices import Record
from provisioning.issuance.defaults import DEFAULTS
from provisioning.issuance.profiles import CertificateProfile, parse_profile
from provisioning.journal import leaf
from provisioning.profiles import profile_in
from provisioning.refusals import NotFound, StateConflict
from provisioning.service import Service
from wire.codec import rfc3339

Json = dict[str, object]


async def set_profile(service: Service, text: str, *, by: str) -> Json:
    """The next version of a certificate profile. It counts for what is issued from then on, everywhere in a second.

    Raises: ProfileMalformed, StateConflict (a name keeps its kind: devices and rules name it).
    """
    profile = parse_profile(text, "the profile")
    now = service.clock()
    said = {"name": profile.name, "of_kind": profile.kind.value, "text": text, "by": by}
    entry = leaf(service, "certificate-profile", now, **said)

    def write(tx: Connection) -> Json:
        before = profiles.versions(tx, profile.name)
        kind = profile_in(before[-1]).kind if before else profile.kind
        if kind is not profile.kind:
            raise StateConflict(expected=f"the kind {kind}, which {profile.name} has", actual=profile.kind)
        version = profiles.add(tx, name=profile.name, text=text, now=int(now.timestamp()), by=by)
        leaves.add(tx, entry)
        return {"name": profile.name, "kind": profile.kind.value, "version": version}

    answer = await service.ledger.write(write)
    await service.profiles.refresh(service.store)
    return answer


async def list_profiles(service: Service) -> list[Json]:
    """The version in force of every profile, the built-in ones too."""
    await service.profiles.refresh(service.store)
    rows = {row.name: row for row in await service.store.read(profiles.in_force)}
    return [_shown(profile, rows.get(name)) for name, profile in sorted(service.profiles.all.items())]


async def show_profile(service: Service, name: str, version: int | None) -> Json:
    """One version of one profile, whole; the one in force where none is named, 0 for the built-in. Raises: NotFound."""
    rows = await service.store.read(lambda tx: profiles.versions(tx, name))
    wanted = version if version is not None else (rows[-1].version if rows else 0)
    for row in rows:
        if row.version == wanted:
            return {**_shown(profile_in(row), row), "toml": row.text}
    if wanted == 0 and name in DEFAULTS:
        return {**_shown(parse_profile(DEFAULTS[name], name), None), "toml": DEFAULTS[name]}
    known = ", ".join(str(row.version) for row in rows) or "none"
    raise NotFound(expected=f"a version of a profile ({name} has {known})", actual=f"{name}, {wanted}")


def _shown(profile: CertificateProfile, row: Record | None) -> Json:
    lifetime = profile.lifetime
    return {
        "name": profile.name,
        "kind": profile.kind.value,
        "version": profile.version,
        "keys": sorted(profile.keys),
        "lifetime_seconds": None if lifetime is None else int(lifetime.total_seconds()),
        "approval": profile.approval,
        "created": None if row is None else rfc3339(datetime.fromtimestamp(row.created_at, UTC)),
        "by": "built-in" if row is None else row.created_by,
    }
