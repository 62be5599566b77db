"""The trust repository (docs/protocol.md, section 0): a TUF repository whose one target is the trust bundle.

Everything that a device trusts comes out of it, and out of the anchor: the service's name and a root of this
repository.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]  # tuf re-exports without __all__

from ota import refusals, repository
from ota.files import read_at_most
from ota.signing import PrivateKey, PublicKey, Role, Roles, keyid_of, lifetime_of
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


def rotate_trust(
    directory: Path, keys: Sequence[PublicKey], signers: Sequence[PrivateKey], online: PublicKey, now: datetime
) -> bool:
    """Replace the offline keys of the trust repository (root and targets): the new root, signed by old and new ones.

    Thresholds and lifetimes stay. Devices follow from any root that they know, because every root stays published.
    False, and nothing is done, where these keys are the root's already. Raises: TooFewSigners, RepositoryDamaged.
    """
    roles = successor_roles(repository.root_of(directory), keys, online)
    if roles is None:
        return False
    repository.rotate_root(directory, roles, signers, now)
    return True


def successor_roles(root: bytes, keys: Sequence[PublicKey], online: PublicKey) -> Roles | None:
    """The roles of a root (its metadata) with other offline keys; None where they are the root's already.

    Raises: RepositoryDamaged.
    """
    try:
        signed = Metadata[Root].from_bytes(root).signed
    except RepositoryError as error:
        raise refusals.RepositoryDamaged("root metadata", actual=error) from error
    if {keyid_of(key) for key in keys} == set(signed.roles["root"].keyids):
        return None
    offline = set(signed.roles["root"].keyids)

    def role(name: str) -> Role:
        # A role that the offline keys hold goes to the new ones; the online ones stay where they are.
        speakers = tuple(keys) if set(signed.roles[name].keyids) == offline else (online,)
        return Role(speakers, signed.roles[name].threshold, lifetime_of(signed, name))

    return Roles(role("root"), role("targets"), role("snapshot"), role("timestamp"))


def root_key_ids(root: bytes) -> tuple[int, frozenset[str]]:
    """The threshold of a root (its metadata), and the ids of its keys. Not verified. Raises: RepositoryDamaged."""
    try:
        role = Metadata[Root].from_bytes(root).signed.roles["root"]
    except RepositoryError as error:
        raise refusals.RepositoryDamaged("root metadata", actual=error) from error
    return role.threshold, frozenset(role.keyids)


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
