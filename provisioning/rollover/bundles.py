"""The trust bundle as the table of authorities wants it, and what is on record about those that were published.

The offline keys sign bundles, elsewhere (`muster ca publish`); here stands what the next one says, and that devices are
told of it. Devices acknowledge by `hello`, whose version is kept with each of them.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import replace

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from ota.bundle import published_bundle
from provisioning import outbox
from provisioning.authorities import COMMAND, ISSUING, LOG, RESULTS, ROOT, TRUST, State, authority_row, certificates_in
from provisioning.db import authorities, devices, leaves
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.service import Service
from wire.codec import decode, encode
from wire.messages import BUNDLE_MOST, TrustBundle

PAGE = 500


def wanted_bundle(before: TrustBundle, rows: Iterable[Record]) -> TrustBundle:
    """The bundle that the table wants: of the version before where that says the same, else of the next.

    What the bundle before names and the table does not know stays named (a database may have been restored from before
    it was made); only what is retired goes.
    """
    known = [row for row in rows if row.certificate or row.kind not in (ROOT, ISSUING)]

    def merged(kind: str, column: str, named: tuple[bytes, ...]) -> tuple[bytes, ...]:
        mine = [(getattr(row, column), row.state) for row in known if row.kind == kind and getattr(row, column)]
        gone = {value for value, state in mine if state == State.RETIRED.value}
        kept = [value for value in named if value not in gone]
        return (*kept, *(value for value, state in mine if state != State.RETIRED.value and value not in kept))

    wanted = replace(
        before,
        ca_roots=merged(ROOT, "certificate", before.ca_roots),
        command_keys=merged(COMMAND, "public_key", before.command_keys),
        log_keys=merged(LOG, "public_key", before.log_keys),
        issuing_keys=merged(ISSUING, "public_key", before.issuing_keys),
    )
    return wanted if wanted == before else replace(wanted, version=before.version + 1)


def names(bundle: TrustBundle, row: Record) -> bool:
    """Does a device that holds this bundle accept what this authority or key signs?"""
    match row.kind:
        case "root":
            return row.certificate in bundle.ca_roots
        case "issuing":
            root = authorities_root(row)
            return root in bundle.ca_roots and (not bundle.issuing_keys or row.public_key in bundle.issuing_keys)
        case "command":
            return row.public_key in bundle.command_keys
        case "log":
            return row.public_key in bundle.log_keys
    return True  # the trust root, whose chain of roots stays published; results, which no device verifies


def authorities_root(row: Record) -> bytes:
    """The root (DER) that an authority's chain ends at."""
    above = certificates_in(row.chain)
    return above[-1] if above else bytes(row.certificate)


def versions_naming(tx: Connection, row: Record) -> list[int]:
    """The versions of published bundles that name this one."""
    every = ((one.version, decode(TrustBundle, one.content, limit=BUNDLE_MOST)) for one in authorities.bundles(tx))
    return [version for version, bundle in every if names(bundle, row)]


def newest_names(tx: Connection, row: Record) -> bool:
    """Does the bundle that was published last name this one?"""
    versions = versions_naming(tx, row)
    return bool(versions) and versions[-1] == authorities.newest_bundle_version(tx)


async def note_published(service: Service, by: str) -> int | None:
    """Put the bundle that the trust repository publishes on record, with a leaf, and tell the devices: its version.

    None where it is on record. Safe to call again after a crash: who was told once more looks once more.
    Raises: UpdateRefused, OSError (the repository).
    """
    bundle = await asyncio.to_thread(published_bundle, service.directory.trust)
    content = encode(bundle)
    if bundle.version in service.authorities.bundles:
        return None
    now = service.clock()
    entry = leaf(service, "trust", now, version=bundle.version, sha256=hashlib.sha256(content).hexdigest(), by=by)
    first = await service.store.read(authorities.newest_bundle_version) == 0
    if not first:  # the first one came with the installation: every device fetches it before it enrolls
        await _tell(service, by)

    def write(tx: Connection) -> bool:
        new = authorities.add_bundle(tx, version=bundle.version, content=content, now=int(now.timestamp()), by=by)
        if new:
            leaves.add(tx, entry)
        return new

    new = await service.ledger.write(write)
    await service.authorities.refresh(service.store)
    return bundle.version if new else None


async def _tell(service: Service, by: str) -> None:
    """An order to every active device to fetch the trust repository again, a page at a time."""

    def order(tx: Connection, ids: list[str]) -> None:
        for device_id in ids:
            outbox.put(tx, service, outbox.Order("refresh-trust", device_id, by))

    after = ""
    while rows := await service.store.read(lambda tx, after=after: devices.after(tx, after, PAGE)):  # type: ignore[misc]  # bound now
        active = [row.id for row in rows if row.state == "active"]
        await service.ledger.write(lambda tx, ids=active: order(tx, ids))  # type: ignore[misc]  # bound now
        after = rows[-1].serial


async def note_first_keys(service: Service) -> None:
    """The keys that an installation began with, on record: the commands' and the log's."""
    for kind in (COMMAND, LOG, TRUST):
        await _note_first_key(service, kind)


async def note_results_key(service: Service) -> None:
    """The key of attestation results that a ceremony made, on record. An older installation prepares one instead."""
    await _note_first_key(service, RESULTS)


async def _note_first_key(service: Service, kind: str) -> None:
    if await service.store.read(lambda tx: authorities.of_kind(tx, kind)):
        return
    spki = b""  # the offline keys are several, and elsewhere: the trust repository's root says which
    if kind != TRUST:
        spki = (await service.keys.adopt(kind)).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    row = authority_row(kind, kind, kind, (), state=State.ACTIVE, now=service.clock(), public_key=spki)

    def write(tx: Connection) -> None:
        if not authorities.of_kind(tx, kind):
            authorities.add(tx, row)

    await service.ledger.write(write)
    await service.authorities.refresh(service.store)
