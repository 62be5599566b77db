"""TUF metadata of every wrong kind, in memory: what an attacker, or a careless publisher, would serve."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp

from ota.signing import Roles, file_entry, metadata_bytes, root_metadata, tuf_key
from ota.source import NotFoundAtSource
from tests.unit.ota.simulator import DAY, NOW, Keys

DIGEST = "ab" * 32


def sign(metadata: Metadata[Any], keys: Iterable[ec.EllipticCurvePrivateKey]) -> bytes:
    """Signed by exactly these keys: no threshold is asked for."""
    for key in keys:
        metadata.sign(CryptoSigner(key, tuf_key(key.public_key())), append=True)
    return metadata_bytes(metadata)


def target(
    name: str = "image.img", length: int = 10, hashes: dict[str, str] | None = None, **fields: Any
) -> TargetFile:
    return TargetFile(length, hashes or {"sha256": DIGEST}, name, fields)


@dataclass
class Forge:
    """A repository whose every part can be made wrong by itself."""

    keys: Keys = field(default_factory=Keys)

    def root(
        self,
        version: int = 1,
        *,
        roles: Roles | None = None,
        signers: Iterable[ec.EllipticCurvePrivateKey] | None = None,
        expires: datetime = NOW + DAY,
    ) -> bytes:
        root = root_metadata(roles or self.keys.roles, version, NOW)
        root.signed.expires = expires
        return sign(root, self.keys.offline[:2] if signers is None else signers)

    def files(
        self,
        versions: tuple[int, int, int] = (1, 1, 1),
        targets: Mapping[str, TargetFile] | None = None,
        *,
        expires: Mapping[str, datetime] | None = None,
        signers: Mapping[str, Iterable[ec.EllipticCurvePrivateKey]] | None = None,
        fields: dict[str, Any] | None = None,
    ) -> dict[str, bytes]:
        """`versions` are those of timestamp, snapshot, targets."""
        stamp, snap, number = versions
        until = dict.fromkeys(("timestamp", "snapshot", "targets"), NOW + DAY) | dict(expires or {})
        by = {
            "timestamp": [self.keys.online],
            "snapshot": [self.keys.online],
            "targets": self.keys.offline[:2],
        } | dict(signers or {})
        files = {"image.img": target()} if targets is None else dict(targets)
        signed = Targets(version=number, expires=until["targets"], targets=files, unrecognized_fields=fields or {})
        targets_bytes = sign(Metadata(signed), by["targets"])
        meta = {"targets.json": file_entry(number, targets_bytes)}
        snapshot = Metadata(Snapshot(version=snap, expires=until["snapshot"], meta=meta))
        snapshot_bytes = sign(snapshot, by["snapshot"])
        entry = file_entry(snap, snapshot_bytes)
        timestamp = Metadata(Timestamp(version=stamp, expires=until["timestamp"], snapshot_meta=entry))
        return {
            "metadata/timestamp.json": sign(timestamp, by["timestamp"]),
            f"metadata/{snap}.snapshot.json": snapshot_bytes,
            f"metadata/{number}.targets.json": targets_bytes,
        }


def source(files: Mapping[str, bytes]):
    """A source that serves a dict, and cuts at what was asked for plus one, as a careful client reads."""

    def fetch(path: str, most: int) -> bytes:
        if path not in files:
            raise NotFoundAtSource(path)
        return files[path][: most + 1]

    return fetch
