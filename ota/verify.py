"""Is this metadata authentic, current and no older than what was seen?

The only importer of python-tuf's trusted metadata set, pinned to tuf >=7.0.1,<8, whose reference time it sets. Pure:
the bytes come from the `fetch` that it is given (a network, a folder, a dict), the time is an argument.

In the order of the TUF specification 1.0 section 5: root (`verify_roots`), then timestamp, snapshot, targets
(`verify_repository`). Whether a release may be installed is `ota.release`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root, Signed, TargetFile  # type: ignore[attr-defined]  # tuf re-exports without __all__
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from ota import refusals
from ota.refusals import UpdateRefused
from ota.source import Fetch, NotFoundAtSource
from wire.codec import Cap, MalformedMessage, parse_json

ROOT_MOST = 64 * 1024
TIMESTAMP_MOST = 16 * 1024
SNAPSHOT_MOST = 64 * 1024
TARGETS_MOST = 1024 * 1024
"""Bytes of one metadata file."""
ROOTS_MOST = 256
"""Roots in a row after the trusted one."""
TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_SCHEMES = frozenset({"ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ed25519"})
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Floor:
    """The versions below which a repository's metadata is refused. All zero: nothing was seen yet.

    `online` and `offline` name the keys (of timestamp and snapshot; of targets) under which the versions were seen:
    once a root has replaced those keys, the versions seen under the old ones bind no more (TUF 5.3.11, fast-forward
    recovery).
    """

    root: int = 0
    timestamp: int = 0
    snapshot: int = 0
    targets: int = 0
    online: Annotated[str, Cap(64)] = ""
    offline: Annotated[str, Cap(64)] = ""


@dataclass(frozen=True, slots=True)
class VerifiedRoot:
    """The newest root that a trusted one leads to. Its expiry is judged with what it signs, not here.

    `chain` holds the roots after the trusted one, in order; `data` is the last, or the trusted one itself.
    """

    version: int
    data: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class VerifiedTarget:
    """One target as a repository signed it. The bytes of the target itself are not seen yet; `custom` is not judged."""

    name: str
    length: int
    sha256: bytes
    custom: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class VerifiedRepository:
    """A whole set of metadata: authentic, current at the time given, not older than the floor given.

    `floor` is a floor from now on, `expires` the earliest expiry, `device` the one device that the set is for.
    """

    targets: dict[str, VerifiedTarget]
    floor: Floor
    expires: datetime
    device: str | None
    timestamp: bytes
    snapshot: bytes
    targets_metadata: bytes


def verify_roots(trusted_root: bytes, fetch: Fetch) -> VerifiedRoot:
    """Follow the chain of roots: each is signed by the threshold of the one before and by its own (TUF 5.3).

    Not proven: that there is no newer root (the source may hide it; expiry bounds for how long).

    Raises: MetadataTooLarge, MetadataMalformed, ThresholdNotMet, RootOutOfOrder, KeyTypeRefused.
    """
    _parse("root", trusted_root, ROOT_MOST)
    with _refused_by_name("root", refusals.RootOutOfOrder):
        trusted = TrustedMetadataSet(trusted_root, EnvelopeType.METADATA)
    _allowed_keys(trusted.root)
    chain: list[bytes] = []
    while len(chain) < ROOTS_MOST:
        try:
            data = fetch(f"metadata/{trusted.root.version + 1}.root.json", ROOT_MOST)
        except NotFoundAtSource:
            return VerifiedRoot(trusted.root.version, chain[-1] if chain else trusted_root, tuple(chain))
        _parse("root", data, ROOT_MOST)
        with _refused_by_name("root", refusals.RootOutOfOrder):
            trusted.update_root(data)
        _allowed_keys(trusted.root)
        chain.append(data)
    raise refusals.RootOutOfOrder("more roots in a row than are followed", expected=ROOTS_MOST)


def verify_repository(root: VerifiedRoot, fetch: Fetch, floors: Sequence[Floor], now: datetime) -> VerifiedRepository:
    """Timestamp, snapshot, targets under a verified root, current at `now` (TUF 5.4 to 5.6).

    `floors` is what was seen before, from wherever it is remembered; the most of them binds.
    Not proven: that the source shows its newest set; the timestamp's expiry bounds for how long it can hide that.

    Raises: MetadataMissing, MetadataTooLarge, MetadataMalformed, ThresholdNotMet, MetadataExpired, MetadataRolledBack,
    MetadataMixed, TargetMalformed, TargetNameRefused.
    """
    trusted = TrustedMetadataSet(root.data, EnvelopeType.METADATA)
    trusted.reference_time = now
    if trusted.root.consistent_snapshot is not True:
        raise refusals.MetadataMalformed("root", expected="consistent_snapshot true")
    online, offline = _fingerprint(trusted.root, "timestamp", "snapshot"), _fingerprint(trusted.root, "targets")
    least = _binding_floor(floors, online, offline)
    _not_older("root", root.version, least.root)

    timestamp = _fetched(fetch, "timestamp", "metadata/timestamp.json", TIMESTAMP_MOST)
    with _refused_by_name("timestamp", refusals.MetadataRolledBack):
        trusted.update_timestamp(timestamp)
    _not_older("timestamp", _version(trusted.timestamp), least.timestamp)

    listed = trusted.timestamp.snapshot_meta
    _not_older("snapshot", listed.version, least.snapshot)
    snapshot = _fetched(fetch, "snapshot", f"metadata/{listed.version}.snapshot.json", SNAPSHOT_MOST)
    with _refused_by_name("snapshot", refusals.MetadataMixed):
        trusted.update_snapshot(snapshot)

    entry = trusted.snapshot.meta.get("targets.json")
    if entry is None:
        raise refusals.MetadataMixed("snapshot lists no targets.json")
    _not_older("targets", entry.version, least.targets)
    targets = _fetched(fetch, "targets", f"metadata/{entry.version}.targets.json", TARGETS_MOST)
    with _refused_by_name("targets", refusals.MetadataMixed):
        trusted.update_targets(targets)

    parts = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
    return VerifiedRepository(
        targets={name: _verified_target(name, file) for name, file in trusted.targets.targets.items()},
        floor=Floor(
            root=root.version,
            timestamp=_version(trusted.timestamp),
            snapshot=_version(trusted.snapshot),
            targets=_version(trusted.targets),
            online=online,
            offline=offline,
        ),
        expires=min(part.expires for part in parts),
        device=_device(trusted.targets.unrecognized_fields),
        timestamp=timestamp,
        snapshot=snapshot,
        targets_metadata=targets,
    )


def verify_target_bytes(target: VerifiedTarget, data: bytes) -> bytes:
    """The bytes, once they are the signed ones. Raises: LengthWrong, TargetTampered."""
    if len(data) != target.length:
        raise refusals.LengthWrong(target.name, expected=target.length, actual=len(data))
    digest = hashlib.sha256(data).digest()
    if digest != target.sha256:
        raise refusals.TargetTampered(target.name, expected=target.sha256, actual=digest)
    return data


def target_path(target: VerifiedTarget) -> str:
    """Where a consistent repository serves the target (TUF 6.2): the hash in front of the name."""
    return f"targets/{target.sha256.hex()}.{target.name}"


# --- the steps --------------------------------------------------------------------------------------------------------


@contextmanager
def _refused_by_name(role: str, bad_version: type[UpdateRefused]) -> Iterator[None]:
    try:
        yield
    except tuf_errors.UnsignedMetadataError as error:
        raise refusals.ThresholdNotMet(role, actual=error) from error
    except tuf_errors.ExpiredMetadataError as error:
        raise refusals.MetadataExpired(role, actual=error) from error
    except tuf_errors.BadVersionNumberError as error:
        raise bad_version(role, actual=error) from error
    except tuf_errors.LengthOrHashMismatchError as error:
        raise refusals.MetadataMixed(role, actual=error) from error
    except tuf_errors.RepositoryError as error:
        raise refusals.MetadataMalformed(role, actual=error) from error


def _fetched(fetch: Fetch, role: str, path: str, most: int) -> bytes:
    try:
        data = fetch(path, most)
    except NotFoundAtSource as error:
        raise refusals.MetadataMissing(path) from error
    _parse(role, data, most)
    return data


def _parse(role: str, data: bytes, most: int) -> None:
    """Sizes, depth and double names first: python-tuf parses with json.loads as it is."""
    if len(data) > most:
        raise refusals.MetadataTooLarge(role, expected=f"at most {most} bytes")
    try:
        parse_json(data, limit=most)
    except MalformedMessage as error:
        raise refusals.MetadataMalformed(role, actual=error) from error


def _allowed_keys(root: Root) -> None:
    for keyid, key in root.keys.items():
        if key.scheme not in _SCHEMES:
            raise refusals.KeyTypeRefused(keyid, expected=", ".join(sorted(_SCHEMES)), actual=key.scheme)


def _not_older(role: str, version: object, least: int) -> None:
    if type(version) is not int:
        raise refusals.MetadataMalformed(role, expected="a whole number as version", actual=version)
    if version < least:
        raise refusals.MetadataRolledBack(role, expected=f"version {least} or more", actual=version)


def _version(signed: Signed) -> int:
    _not_older(signed.type, signed.version, 1)
    return signed.version


def _fingerprint(root: Root, *roles: str) -> str:
    """Which keys, and how many of them, speak for these roles."""
    speakers = ((role, root.roles[role].threshold, *sorted(root.roles[role].keyids)) for role in roles)
    text = ";".join(",".join(map(str, speaker)) for speaker in speakers)
    return hashlib.sha256(text.encode()).hexdigest()


def _binding_floor(floors: Sequence[Floor], online: str, offline: str) -> Floor:
    """The most that was seen of each role, by keys that are still the role's."""
    return Floor(
        root=max((floor.root for floor in floors), default=0),
        timestamp=max((floor.timestamp for floor in floors if floor.online == online), default=0),
        snapshot=max((floor.snapshot for floor in floors if floor.online == online), default=0),
        targets=max((floor.targets for floor in floors if floor.offline == offline), default=0),
    )


def _device(fields: dict[str, Any]) -> str | None:
    device = fields.get("x-muster-device")
    if device is not None and not isinstance(device, str):
        raise refusals.MetadataMalformed("targets", expected="a text as x-muster-device")
    return device


def _verified_target(name: str, file: TargetFile) -> VerifiedTarget:
    if TARGET_NAME.fullmatch(name) is None:
        raise refusals.TargetNameRefused(actual=name)
    digest = file.hashes.get("sha256")
    if set(file.hashes) != {"sha256"} or not isinstance(digest, str) or _SHA256_HEX.fullmatch(digest) is None:
        raise refusals.TargetMalformed(name, expected="one hash, SHA-256 in lower hex")
    if type(file.length) is not int or file.length < 1:
        raise refusals.TargetMalformed(name, expected="a length of 1 or more", actual=file.length)
    custom = file.unrecognized_fields.get("custom")
    if custom is not None and not isinstance(custom, dict):
        raise refusals.TargetMalformed(name, expected="an object as custom")
    return VerifiedTarget(name, file.length, bytes.fromhex(digest), custom)
