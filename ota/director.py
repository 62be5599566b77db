"""The Director (Uptane): which release one device is to install. Signed online, for that device, for a short time.

Pure: the versions come from the caller's database, the time is an argument. The Director's key cannot make a device
install what the image repository's offline keys did not sign.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tuf.api.metadata import (  # type: ignore[attr-defined]  # tuf re-exports without __all__
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from ota.release import parse_assignment, release_claims
from ota.signing import PrivateKey, Roles, expiry_after, file_entry, lifetime_of, root_metadata, sign_for, sign_metadata
from ota.verify import VerifiedTarget
from wire.topics import is_device_id

DEVICE = "x-muster-device"


def create_director_root(roles: Roles, signers: Sequence[PrivateKey], now: datetime) -> bytes:
    """The Director's first root metadata (`1.root.json`). Raises: TooFewSigners."""
    root = root_metadata(roles, 1, now)
    return sign_metadata(root, root.signed, "root", signers)


def rotate_director_root(root: bytes, roles: Roles, signers: Sequence[PrivateKey], now: datetime) -> bytes:
    """The root after this one (other keys, or new dates), signed by the thresholds of both. Raises: TooFewSigners."""
    old = Metadata[Root].from_bytes(root).signed
    new = root_metadata(roles, old.version + 1, now)
    sign_for(new, old, "root", signers)
    return sign_metadata(new, new.signed, "root", signers)


def next_version(previous: int, now: datetime) -> int:
    """The version of a device's next metadata: above the one before, also where the database came back from a backup.

    Whole seconds of the clock are such a number; `previous` keeps it rising within a second and under a clock set back.
    """
    return max(previous + 1, int(now.timestamp()))


def director_metadata(
    root: bytes,
    device: str,
    assigned: VerifiedTarget | None,
    version: int,
    signer: PrivateKey,
    now: datetime,
    *,
    assignment: str | None = None,
) -> dict[str, bytes]:
    """One generation of a device's metadata: file name to bytes, without the root.

    `assigned` is the image repository's own word on the target (verified), None where nothing is assigned. All three
    roles carry `version`: each generation is made and kept whole, so that a device which fetches while the next one
    is made finds the files of its own. `assignment` names this assignment: a release that a device rolled back is
    tried again only under a new one.

    Raises: TargetMalformed, TooFewSigners, RepositoryDamaged.
    """
    if not is_device_id(device):
        raise ValueError("not a device id")
    signed_root = Metadata[Root].from_bytes(root).signed

    def expires(role: str) -> datetime:
        return expiry_after(now, lifetime_of(signed_root, role))

    names = [] if assigned is None else [assigned]
    targets = Metadata(
        Targets(
            version=version,
            expires=expires("targets"),
            targets={target.name: _target_file(target, assignment) for target in names},
            unrecognized_fields={DEVICE: device},
        )
    )
    targets_bytes = sign_metadata(targets, signed_root, "targets", (signer,))
    meta = {"targets.json": file_entry(version, targets_bytes)}
    snapshot = Metadata(Snapshot(version=version, expires=expires("snapshot"), meta=meta))
    snapshot_bytes = sign_metadata(snapshot, signed_root, "snapshot", (signer,))
    entry = file_entry(version, snapshot_bytes)
    timestamp = Metadata(Timestamp(version=version, expires=expires("timestamp"), snapshot_meta=entry))
    return {
        f"{version}.targets.json": targets_bytes,
        f"{version}.snapshot.json": snapshot_bytes,
        "timestamp.json": sign_metadata(timestamp, signed_root, "timestamp", (signer,)),
    }


def _target_file(target: VerifiedTarget, assignment: str | None) -> TargetFile:
    """The Director repeats what a device compares, and no reference values: those are the image repository's alone."""
    claims = release_claims(target)
    custom: dict[str, Any] = {
        "hardware_id": claims.hardware_id,
        "release_counter": claims.release_counter,
        "version": claims.version,
    }
    if assignment is not None:
        custom["assignment"] = assignment
    parse_assignment(target.name, custom)  # nothing is signed that the device would refuse
    return TargetFile(target.length, {"sha256": target.sha256.hex()}, target.name, {"custom": custom})
