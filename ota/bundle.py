"""The trust repository (docs/protocol.md, section 0): a TUF repository whose one target is the trust bundle.

Everything that a device trusts comes out of it, and out of the anchor: the service's name and a root of this
repository.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ota import refusals, repository
from ota.files import read_at_most
from ota.signing import PrivateKey, Roles
from wire.codec import MalformedMessage, decode, encode
from wire.messages import BUNDLE_MOST, BUNDLE_NAME, Anchor, TrustBundle


def create_trust(
    directory: Path, roles: Roles, bundle: TrustBundle, signers: Sequence[PrivateKey], now: datetime
) -> Anchor:
    """Make the trust repository with its first bundle; the anchor for new devices is returned.

    Raises: RepositoryExists, TooFewSigners.
    """
    repository.create(directory, roles, signers, now)
    publish_bundle(directory, bundle, signers, now)
    return anchor(directory)


def publish_bundle(directory: Path, bundle: TrustBundle, signers: Sequence[PrivateKey], now: datetime) -> int:
    """Sign a new bundle in place of the one before; the version of the targets metadata is returned.

    Raises: BundleMalformed, TooFewSigners, RepositoryDamaged.
    """
    data = encode(bundle)
    _decode(data)
    repository.replace_target(directory, BUNDLE_NAME, data)
    return repository.publish(directory, signers, now)


def published_bundle(directory: Path) -> TrustBundle:
    """The bundle that the repository publishes.

    It is read, not verified. Raises: BundleMalformed, RepositoryDamaged.
    """
    names = [name for name in repository.files_in_order(directory) if name.endswith(f".{BUNDLE_NAME}")]
    data = read_at_most(directory / names[0], BUNDLE_MOST) if names else None
    if data is None:
        raise refusals.RepositoryDamaged(f"{directory} has no {BUNDLE_NAME}")
    return _decode(data)


def anchor(directory: Path) -> Anchor:
    """What a new device is given: the service's name and the newest root.

    Raises: BundleMalformed, RepositoryDamaged.
    """
    return Anchor(published_bundle(directory).service_name, repository.root_of(directory))


def _decode(data: bytes) -> TrustBundle:
    try:
        return decode(TrustBundle, data, limit=BUNDLE_MOST)
    except MalformedMessage as error:
        raise refusals.BundleMalformed(actual=error) from error
