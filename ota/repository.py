"""A TUF repository in a folder: made, filled, signed, its online roles signed again, its root replaced.

`metadata/` and `targets/` are what a server serves as they are; `staged.json` and `lock` stand beside them and are
not served. A reader never sees half a set: everything that a timestamp leads to is there, under names of its own,
before the timestamp is replaced.
"""

import fcntl
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # tuf re-exports without __all__
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from ota import refusals
from ota.files import read_at_most, remove_file, replace_file
from ota.signing import (
    PrivateKey,
    Roles,
    chosen_signers,
    expiry_after,
    file_entry,
    lifetime_of,
    metadata_bytes,
    root_metadata,
    sign_for,
    sign_metadata,
)
from ota.verify import ROOT_MOST, SNAPSHOT_MOST, TARGET_NAME, TARGETS_MOST, TIMESTAMP_MOST
from wire.codec import MalformedMessage, parse_json

STAGED_MOST = 1024 * 1024
SNAPSHOTS_KEPT = 16
_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


@dataclass(frozen=True, slots=True)
class _Published:
    """The set that the timestamp leads to, as the publisher's own files say. Nothing of it is verified here."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]


# --- commands of a repository -----------------------------------------------------------------------------------------


def create(directory: Path, roles: Roles, signers: Sequence[PrivateKey], now: datetime) -> bytes:
    """Make a repository without targets in `directory` (absent or empty); its first root metadata is returned.

    Raises: RepositoryExists, TooFewSigners.
    """
    root = root_metadata(roles, 1, now)
    sign_for(root, root.signed, "root", signers)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as made:
        folder = Path(made) / "repository"
        (folder / "metadata").mkdir(parents=True)
        (folder / "targets").mkdir()
        _write(folder, "1.root.json", metadata_bytes(root))
        targets = Metadata(Targets(version=1, expires=now))
        _publish_from(folder, root, targets, (0, 0), signers, now)
        try:
            folder.rename(directory)
        except OSError as error:
            raise refusals.RepositoryExists(str(directory)) from error
    return metadata_bytes(root)


def add_target(directory: Path, name: str, content: bytes, custom: dict[str, Any] | None = None) -> None:
    """Stage a target: its bytes are put into `targets/`, its name becomes known with the next `publish`.

    Raises: TargetNameRefused, TargetMalformed, TargetNameTaken, RepositoryDamaged.
    """
    if TARGET_NAME.fullmatch(name) is None:
        raise refusals.TargetNameRefused(actual=name)
    if not content:
        raise refusals.TargetMalformed(name, expected="at least one byte")
    digest = hashlib.sha256(content).hexdigest()
    with _locked(directory):
        _not_renamed(directory, name, digest)
        _stage_content(directory, name, content, custom)


def replace_target(directory: Path, name: str, content: bytes) -> None:
    """Stage new content under a name that stays (the trust bundle's). Otherwise as `add_target`."""
    with _locked(directory):
        _stage_content(directory, name, content, None)


def withdraw_target(directory: Path, name: str) -> None:
    """Stage that this target is no longer signed after the next `publish`. Raises: UnknownTarget."""
    with _locked(directory):
        if name not in _published(directory).targets.signed.targets and name not in _staged(directory):
            raise refusals.UnknownTarget(name)
        _stage(directory, name, None)


def publish(directory: Path, signers: Sequence[PrivateKey], now: datetime) -> int:
    """Sign what is staged, and the roles that name it; the new version of the targets is returned.

    With nothing staged the metadata is signed again, with new dates. Raises: TooFewSigners, RepositoryDamaged.
    """
    with _locked(directory):
        published = _published(directory)
        targets = published.targets
        for name, file in _staged(directory).items():
            if file is None:
                targets.signed.targets.pop(name, None)
            else:
                targets.signed.targets[name] = TargetFile.from_dict(file, name)
        targets.signed.version += 1
        versions = (published.snapshot.signed.version, published.timestamp.signed.version)
        _publish_from(directory, published.root, targets, versions, signers, now)
        remove_file(directory / "staged.json")
        return targets.signed.version


def refresh_online(directory: Path, signer: PrivateKey, now: datetime) -> None:
    """Sign snapshot and timestamp again, over the same targets: what the online duty does before they expire.

    Raises: TooFewSigners, RepositoryDamaged.
    """
    with _locked(directory):
        published = _published(directory)
        versions = (published.snapshot.signed.version, published.timestamp.signed.version)
        entry = published.snapshot.signed.meta["targets.json"]
        _sign_online(directory, published.root.signed, entry, versions, (signer,), now)


def rotate_root(directory: Path, roles: Roles, signers: Sequence[PrivateKey], now: datetime) -> bytes:
    """Replace the root by one with these roles, signed by the thresholds of the old root and of the new one.

    The other roles are signed again first, by their new keys and by those old ones that are there: whoever fetches
    meanwhile finds them good by the root that it has. The signers of all new roles must be there. The new root metadata
    is returned. Raises: TooFewSigners, RepositoryDamaged.
    """
    with _locked(directory):
        published = _published(directory)
        old = published.root.signed
        root = root_metadata(roles, old.version + 1, now)
        sign_for(root, old, "root", signers)
        sign_for(root, root.signed, "root", signers)
        for role in ("targets", "snapshot", "timestamp"):
            chosen_signers(root.signed, role, signers)  # refuse before anything is written
        data = metadata_bytes(root)
        published.targets.signed.version += 1
        versions = (published.snapshot.signed.version, published.timestamp.signed.version)
        _publish_from(directory, root, published.targets, versions, signers, now, before=old)
        _write(directory, f"{root.signed.version}.root.json", data)
        return data


# --- reading ----------------------------------------------------------------------------------------------------------


def root_of(directory: Path) -> bytes:
    """The newest root metadata. Raises: RepositoryDamaged."""
    return _read(directory, f"{_root_version(directory)}.root.json", ROOT_MOST)


def online_expiry(directory: Path) -> datetime:
    """When the first of snapshot and timestamp expires. Raises: RepositoryDamaged."""
    published = _published(directory)
    return min(published.snapshot.signed.expires, published.timestamp.signed.expires)


def offline_expiry(directory: Path) -> datetime:
    """When the first of root and targets expires, which the offline keys sign. Raises: RepositoryDamaged."""
    published = _published(directory)
    return min(published.root.signed.expires, published.targets.signed.expires)


def files_in_order(directory: Path) -> tuple[str, ...]:
    """The files of the published set, relative to `directory`, in the order in which a mirror must put them.

    Targets first, the timestamp last: a reader of the mirror never sees half a set. Raises: RepositoryDamaged.
    """
    published = _published(directory)
    files = published.targets.signed.targets.values()
    targets = sorted(f"targets/{file.hashes['sha256']}.{file.path}" for file in files)
    roots = [f"metadata/{number}.root.json" for number in range(1, published.root.signed.version + 1)]
    versioned = [
        f"metadata/{published.targets.signed.version}.targets.json",
        f"metadata/{published.snapshot.signed.version}.snapshot.json",
    ]
    return (*targets, *roots, *versioned, "metadata/timestamp.json")


# --- signing ----------------------------------------------------------------------------------------------------------


def _publish_from(
    directory: Path,
    root: Metadata[Root],
    targets: Metadata[Targets],
    versions: tuple[int, int],
    signers: Sequence[PrivateKey],
    now: datetime,
    *,
    before: Root | None = None,
) -> None:
    """Sign targets, snapshot, timestamp (all of them before anything is written), then write them in that order.

    `before`: the root that this one replaces; its keys sign too, where they are there.
    """
    targets.signatures.clear()  # those of the version before; a key that does not sign today must not seem to
    targets.signed.expires = expiry_after(now, lifetime_of(root.signed, "targets"))
    data = sign_metadata(targets, root.signed, "targets", signers, before=before)
    entry = file_entry(targets.signed.version, data)
    for role in ("snapshot", "timestamp"):
        chosen_signers(root.signed, role, signers)
    _write(directory, f"{targets.signed.version}.targets.json", data)
    _sign_online(directory, root.signed, entry, versions, signers, now, before=before)


def _sign_online(
    directory: Path,
    root: Root,
    targets: MetaFile,
    versions: tuple[int, int],
    signers: Sequence[PrivateKey],
    now: datetime,
    *,
    before: Root | None = None,
) -> None:
    """The next snapshot, then (last of all) the next timestamp. `versions` are those of the ones before."""
    number, stamp = versions[0] + 1, versions[1] + 1
    expires = expiry_after(now, lifetime_of(root, "snapshot"))
    snapshot = Metadata(Snapshot(version=number, expires=expires, meta={"targets.json": targets}))
    snapshot_bytes = sign_metadata(snapshot, root, "snapshot", signers, before=before)
    expires = expiry_after(now, lifetime_of(root, "timestamp"))
    timestamp = Metadata(Timestamp(version=stamp, expires=expires, snapshot_meta=file_entry(number, snapshot_bytes)))
    timestamp_bytes = sign_metadata(timestamp, root, "timestamp", signers, before=before)
    _write(directory, f"{number}.snapshot.json", snapshot_bytes)
    _write(directory, "timestamp.json", timestamp_bytes)
    # A client that is in the middle of a fetch needs the few snapshots before; older ones would only pile up.
    (directory / "metadata" / f"{number - SNAPSHOTS_KEPT}.snapshot.json").unlink(missing_ok=True)


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time, in whatever process."""
    if not (directory / "metadata").is_dir():
        raise refusals.RepositoryDamaged(f"{directory} is no repository")
    with (directory / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _published(directory: Path) -> _Published:
    try:
        root = Metadata[Root].from_bytes(root_of(directory))
        timestamp = Metadata[Timestamp].from_bytes(_read(directory, "timestamp.json", TIMESTAMP_MOST))
        number = timestamp.signed.snapshot_meta.version
        snapshot = Metadata[Snapshot].from_bytes(_read(directory, f"{number}.snapshot.json", SNAPSHOT_MOST))
        number = snapshot.signed.meta["targets.json"].version
        targets = Metadata[Targets].from_bytes(_read(directory, f"{number}.targets.json", TARGETS_MOST))
    except (RepositoryError, KeyError) as error:
        raise refusals.RepositoryDamaged(str(directory), actual=error) from error
    return _Published(root, timestamp, snapshot, targets)


def _root_version(directory: Path) -> int:
    names = (_ROOT_NAME.fullmatch(path.name) for path in (directory / "metadata").glob("*.root.json"))
    versions = [int(match[1]) for match in names if match]
    if not versions:
        raise refusals.RepositoryDamaged(f"{directory} has no root metadata")
    return max(versions)


def _read(directory: Path, name: str, most: int) -> bytes:
    data = read_at_most(directory / "metadata" / name, most)
    if data is None or len(data) > most:
        raise refusals.RepositoryDamaged(f"{directory}/metadata/{name} is missing or too large")
    return data


def _write(directory: Path, name: str, data: bytes) -> None:
    replace_file(directory / "metadata" / name, data)


def _staged(directory: Path) -> dict[str, dict[str, Any] | None]:
    """What `publish` will sign: name to the target's metadata, or to None where it is withdrawn."""
    data = read_at_most(directory / "staged.json", STAGED_MOST)
    try:
        staged = {} if data is None else parse_json(data, limit=STAGED_MOST)
    except MalformedMessage as error:
        raise refusals.RepositoryDamaged(f"{directory}/staged.json", actual=error) from error
    if not isinstance(staged, dict):
        raise refusals.RepositoryDamaged(f"{directory}/staged.json")
    return staged


def _stage_content(directory: Path, name: str, content: bytes, custom: dict[str, Any] | None) -> None:
    digest = hashlib.sha256(content).hexdigest()
    file = TargetFile(len(content), {"sha256": digest}, name, {} if custom is None else {"custom": custom})
    replace_file(directory / "targets" / f"{digest}.{name}", content)
    _stage(directory, name, file.to_dict())


def _stage(directory: Path, name: str, file: dict[str, Any] | None) -> None:
    staged = {**_staged(directory), name: file}
    replace_file(directory / "staged.json", json.dumps(staged, sort_keys=True).encode())


def _not_renamed(directory: Path, name: str, digest: str) -> None:
    known = _published(directory).targets.signed.targets.get(name)
    if known is not None and known.hashes.get("sha256") != digest:
        raise refusals.TargetNameTaken(name)
