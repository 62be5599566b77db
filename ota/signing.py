"""Who signs for which role: roles, key ids, root metadata, and signatures that count.

Pure. Signers are private keys: an HSM's key *is* an `EllipticCurvePrivateKey`. For each role those keys sign that the
root names for it; fewer than its threshold is refused by name. Key ids are the SHA-256 of the SubjectPublicKeyInfo.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # no __all__ there
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root  # type: ignore[attr-defined]  # tuf re-exports without __all__
from tuf.api.metadata import Role as TufRole  # type: ignore[attr-defined]  # the same
from tuf.api.serialization.json import JSONSerializer

from ota import refusals

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

LIFETIME = "x-muster-lifetime-seconds"
_ROLES = ("root", "targets", "snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class Role:
    """Whose signatures count for one role, how many of them it takes, and for how long they are good."""

    keys: tuple[PublicKey, ...]
    threshold: int
    lifetime: timedelta


@dataclass(frozen=True, slots=True)
class Roles:
    """The four roles of a repository."""

    root: Role
    targets: Role
    snapshot: Role
    timestamp: Role


def keyid_of(key: PublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo (DER), lower hex."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def online_role(key: PublicKey, lifetime: timedelta) -> Role:
    """A role of one key."""
    return Role((key,), 1, lifetime)


def root_metadata(roles: Roles, version: int, now: datetime) -> Metadata[Root]:
    """Root metadata with these roles, not signed yet."""
    root = Root(version=version, expires=expiry_after(now, roles.root.lifetime), consistent_snapshot=True)
    for name in _ROLES:
        role: Role = getattr(roles, name)
        if not 1 <= role.threshold <= len({keyid_of(key) for key in role.keys}):
            raise refusals.TooFewSigners(name, expected=f"threshold {role.threshold}", actual=f"{len(role.keys)} keys")
        root.roles[name] = TufRole([], role.threshold, {LIFETIME: int(role.lifetime.total_seconds())})
        for key in role.keys:
            root.add_key(tuf_key(key), name)
    return Metadata(root)


def tuf_key(key: PublicKey) -> SSlibKey:
    """The key as TUF metadata names it."""
    return SSlibKey.from_crypto(key, keyid=keyid_of(key))


def sign_metadata(
    metadata: Metadata[Any], root: Root, role: str, signers: Sequence[PrivateKey], *, before: Root | None = None
) -> bytes:
    """The metadata with the signatures of those signers that `root` names for the role. Raises: TooFewSigners.

    `before`: an older root, for whoever has that one still. Those signers that it names sign too, however many.
    """
    sign_for(metadata, root, role, signers)
    if before is not None:
        new = root.roles[role].keyids
        old = [key for key in signers if keyid_of(key.public_key()) in set(before.roles[role].keyids) - set(new)]
        _add(metadata, old)
    return metadata_bytes(metadata)


def sign_for(metadata: Metadata[Any], root: Root, role: str, signers: Sequence[PrivateKey]) -> None:
    """Add the signatures of those signers that `root` names for the role, and verify them as a device will.

    Raises: TooFewSigners; what a signer raises (a token's own error, not python-tuf's wrapper of it).
    """
    _add(metadata, chosen_signers(root, role, signers))
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise refusals.TooFewSigners(role, expected="good signatures", actual=error) from error


def _add(metadata: Metadata[Any], signers: Sequence[PrivateKey]) -> None:
    for signer in signers:
        try:
            metadata.sign(CryptoSigner(signer, tuf_key(signer.public_key())), append=True)
        except UnsignedMetadataError as error:
            raise (error.__cause__ or error) from None


def chosen_signers(root: Root, role: str, signers: Sequence[PrivateKey]) -> list[PrivateKey]:
    """Those of the signers that `root` names for the role, each once. Raises: TooFewSigners."""
    wanted = root.roles[role]
    by_id = {keyid_of(key.public_key()): key for key in signers}
    chosen = [key for keyid, key in by_id.items() if keyid in wanted.keyids]
    if len(chosen) < wanted.threshold:
        needed = f"{wanted.threshold} of {len(wanted.keyids)} keys"
        raise refusals.TooFewSigners(role, expected=needed, actual=f"{len(chosen)} of them")
    return chosen


def lifetime_of(root: Root, role: str) -> timedelta:
    """For how long a signature of this role is good: the root says so, and signs it. Raises: RepositoryDamaged."""
    seconds = root.roles[role].unrecognized_fields.get(LIFETIME)
    if type(seconds) is not int or seconds < 1:
        raise refusals.RepositoryDamaged(f"root: role {role} has no lifetime")
    return timedelta(seconds=seconds)


def file_entry(version: int, data: bytes) -> MetaFile:
    """How a snapshot or a timestamp names metadata: version, length, hash."""
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def expiry_after(now: datetime, lifetime: timedelta) -> datetime:
    """When a signature made now is good no more: whole seconds, as TUF writes them."""
    return (now + lifetime).replace(microsecond=0)


def metadata_bytes(metadata: Metadata[Any]) -> bytes:
    """The metadata as a file."""
    return metadata.to_bytes(JSONSerializer(compact=True, validate=True))
