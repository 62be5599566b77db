"""Releases and who is to run which: what the image repository says is recorded, the Director assigns."""

import asyncio
import json
from datetime import datetime

from sqlalchemy import Connection

from hsm.errors import HsmError
from ota.bundle import published_bundle
from ota.director import director_metadata, next_version
from ota.files import read_at_most
from ota.refusals import UpdateRefused
from ota.release import release_claims
from ota.source import NotFoundAtSource
from ota.verify import VerifiedTarget, verify_repository, verify_roots
from provisioning import outbox
from provisioning.db import commands, devices, leaves
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import NotFound, ReleaseRefused, SigningUnavailable
from provisioning.service import Service

DIRECTOR_KEY = "director-online"
SIGNATURES = 3  # of each generation: targets, snapshot, timestamp
GENERATION_SECONDS = 30
"""For how long a generation of a device's metadata serves again, while nothing else is assigned."""


async def record_releases(service: Service, *, by: str) -> list[Record]:
    """Read the image repository, verified as a device would, and note each release. Raises: ReleaseRefused.

    A release that the repository no longer signs is withdrawn: its reference values count no more.
    """
    now = service.clock()
    try:
        targets = await asyncio.to_thread(_published, service, now)
        claims = {name: release_claims(target) for name, target in targets.items()}
    except UpdateRefused as refused:
        raise ReleaseRefused(expected="a published image repository", actual=refused) from refused
    rows = [
        {
            "target": name,
            "version": claims[name].version,
            "hardware": claims[name].hardware_id,
            "release_counter": claims[name].release_counter,
            "length": target.length,
            "sha256": target.sha256.hex(),
            "reference_values": json.dumps(claims[name].reference_values or {}),
            "withdrawn": False,
            "published_at": int(now.timestamp()),
        }
        for name, target in targets.items()
    ]
    entries = {row["target"]: leaf(service, "release", now, by=by, **row) for row in rows}
    before = await service.store.read(commands.releases)
    withdrawals = {row.target: leaf(service, "withdrawal", now, by=by, target=row.target) for row in before}

    def write(tx: Connection) -> list[Record]:
        for row in rows:
            known = commands.release_by_target(tx, str(row["target"]))
            if known is None or any(getattr(known, name) != row[name] for name in row.keys() - {"published_at"}):
                leaves.add(tx, entries[row["target"]])  # a release, or one that came back or says something else
            commands.put_release(tx, row)
        for gone in commands.releases(tx):
            if gone.target in targets or gone.withdrawn or gone.target not in withdrawals:
                continue
            commands.withdraw_release(tx, gone.target)
            leaves.add(tx, withdrawals[gone.target])
        return commands.releases(tx)

    return await service.ledger.write(write)


async def assign(service: Service, name: str, target: str, *, by: str) -> Record:
    """Tell one device to run one release: it installs it only because the image repository signed it too.

    Raises: NotFound, ReleaseRefused.
    """
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "assignment", now, device=name, target=target, by=by)

    def write(tx: Connection) -> Record:
        device, release = devices.by_name(tx, name), commands.release_by_target(tx, target)
        if device is None or device.state != "active":
            raise NotFound(expected="an active device's id or serial", actual=name)
        if release is None or release.withdrawn:
            raise ReleaseRefused(expected="a published release", actual=target)
        commands.put_assignment(tx, device.id, target=target, now=at)
        leaves.add(tx, entry)
        outbox.put(tx, service, outbox.Order("check-for-update", device.id, by))
        return release

    return await service.ledger.write(write)


async def director_file(service: Service, device_id: str, name: str) -> bytes:
    """A file of the Director's repository as this one device sees it: its root, or its own targets metadata.

    Asking for `timestamp.json` makes a fresh generation; the files that it leads to are kept until the next one.

    Raises: NotFound, SigningUnavailable.
    """
    if name.startswith("metadata/") and name.endswith(".root.json"):
        path = service.directory.director / name
        if "/" in name.removeprefix("metadata/") or not path.is_file():
            raise NotFound(expected="a root of the Director", actual=name)
        return await asyncio.to_thread(path.read_bytes)
    if name == "metadata/timestamp.json":
        await _new_generation(service, device_id)
    stored = await service.store.read(lambda tx: commands.director_metadata_of(tx, device_id))
    files = {} if stored is None else json.loads(stored.files)["files"]
    if (content := files.get(name.removeprefix("metadata/"))) is None:
        raise NotFound(expected="a file of this device's Director metadata", actual=name)
    return str(content).encode()


async def _new_generation(service: Service, device_id: str) -> None:
    """Sign what is assigned now, unless that was done moments ago. Of two at once the first one's is kept."""
    now = service.clock()
    assigned, release, before = await service.store.read(lambda tx: _assigned(tx, device_id))
    named = None if assigned is None or release is None else f"{assigned.target}@{assigned.assigned_at}"
    version = 0 if before is None else before.version
    recent = version > int(now.timestamp()) - GENERATION_SECONDS
    if before is not None and recent and json.loads(before.files)["assignment"] == named:
        return
    root = await asyncio.to_thread(_newest_root, service)
    target = None if release is None else _target(release)
    key, next_one = service.keys.key(DIRECTOR_KEY), next_version(version, now)
    try:
        async with asyncio.timeout(SIGNATURES * service.config.hsm.deadline_milliseconds / 1000):
            files = await asyncio.to_thread(
                director_metadata, root, device_id, target, next_one, key, now, assignment=named
            )
    except (HsmError, TimeoutError) as error:
        raise SigningUnavailable(expected="the Director's signatures", actual=type(error).__name__) from error
    text = json.dumps({"assignment": named, "files": {name: content.decode() for name, content in files.items()}})
    await service.ledger.write(lambda tx: commands.put_director_metadata(tx, device_id, next_one, text))


def _assigned(tx: Connection, device_id: str) -> tuple[Record | None, Record | None, Record | None]:
    """The assignment, its release unless that was withdrawn, and the newest generation."""
    assigned = commands.assignment_of(tx, device_id)
    release = None if assigned is None else commands.release_by_target(tx, assigned.target)
    kept = None if release is None or release.withdrawn else release
    return assigned, kept, commands.director_metadata_of(tx, device_id)


def _newest_root(service: Service) -> bytes:
    roots = sorted(
        (service.directory.director / "metadata").glob("*.root.json"), key=lambda p: int(p.name.split(".")[0])
    )
    if not roots:
        raise NotFound(expected="the Director's root", actual="none")
    return roots[-1].read_bytes()


def _target(release: Record) -> VerifiedTarget:
    """The release as its signed metadata said when it was recorded."""
    custom = {
        "hardware_id": release.hardware,
        "release_counter": release.release_counter,
        "version": release.version,
        "reference_values": json.loads(release.reference_values),
    }
    return VerifiedTarget(release.target, release.length, bytes.fromhex(release.sha256), custom)


def _published(service: Service, now: datetime) -> dict[str, VerifiedTarget]:
    """Every release of the image repository, verified as a device would: from the root that the trust bundle names."""
    root = published_bundle(service.directory.trust).image_root
    if root is None:
        raise ReleaseRefused(expected="the image repository's root in the trust bundle", actual="none")

    def fetch(path: str, most: int) -> bytes:
        content = read_at_most(service.directory.image / path, most)
        if content is None:
            raise NotFoundAtSource(path)
        return content

    return verify_repository(verify_roots(root, fetch), fetch, (), now).targets
