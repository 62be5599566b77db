"""What a publisher does, one function a command: `init`, `add`, `publish` (docs/protocol.md, section 4).

`add_image` stages, `ota.repository.publish` signs. The keys stay with the publisher: root and targets are offline.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ota import repository
from ota.release import parse_claims
from ota.signing import PrivateKey, PublicKey, Role, Roles

ROOT_LIFETIME = timedelta(days=365)
TARGETS_LIFETIME = timedelta(days=180)
ONLINE_LIFETIME = timedelta(days=30)


def init_image_repository(
    directory: Path,
    *,
    root_keys: Sequence[PublicKey],
    root_threshold: int,
    targets_key: PublicKey,
    online_key: PublicKey,
    signers: Sequence[PrivateKey],
    now: datetime,
) -> bytes:
    """Make an image repository without images; its root metadata, for the trust bundle, is returned.

    Raises: RepositoryExists, TooFewSigners.
    """
    roles = Roles(
        root=Role(tuple(root_keys), root_threshold, ROOT_LIFETIME),
        targets=Role((targets_key,), 1, TARGETS_LIFETIME),
        snapshot=Role((online_key,), 1, ONLINE_LIFETIME),
        timestamp=Role((online_key,), 1, ONLINE_LIFETIME),
    )
    return repository.create(directory, roles, signers, now)


def add_image(
    directory: Path, image: bytes, version: str, hardware: str, release_counter: int, values: Mapping[int, bytes]
) -> str:
    """Stage an image for the next `publish`; the name of its target is returned.

    `values` are the SHA-256 PCR values (32 bytes) that a device shows after booting it. The name carries hardware and
    version and is not used twice: another content under it is refused.

    Raises: TargetMalformed, TargetNameRefused, TargetNameTaken, RepositoryDamaged.
    """
    name = f"{hardware}-{version}.img"
    bank = {str(pcr): value.hex() for pcr, value in sorted(values.items())}
    claims: dict[str, Any] = {"hardware_id": hardware, "release_counter": release_counter, "version": version}
    if bank:
        claims["reference_values"] = {"sha256": bank}
    parse_claims(name, claims)
    repository.add_target(directory, name, image, claims)
    return name
