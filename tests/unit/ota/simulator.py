"""Repositories in a folder, with software keys, for the tests of update trust."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ota.signing import Role, Roles, online_role
from ota.source import NotFoundAtSource

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Keys:
    """Three offline keys, of which two are enough, and one online key."""

    offline: list[ec.EllipticCurvePrivateKey] = field(default_factory=lambda: [new_key() for _ in range(3)])
    online: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @property
    def roles(self) -> Roles:
        offline = tuple(key.public_key() for key in self.offline)
        return Roles(
            root=Role(offline, 2, 365 * DAY),
            targets=Role(offline, 2, 90 * DAY),
            snapshot=online_role(self.online.public_key(), 7 * DAY),
            timestamp=online_role(self.online.public_key(), DAY),
        )

    @property
    def signers(self) -> list[ec.EllipticCurvePrivateKey]:
        return [*self.offline[:2], self.online]


def folder_source(folder: Path, seen: list[str] | None = None) -> Callable[[str, int], bytes]:
    """A source that serves a folder as an HTTP server would."""

    def fetch(path: str, most: int) -> bytes:
        if seen is not None:
            seen.append(path)
        try:
            return (folder / path).read_bytes()[: most + 1]
        except FileNotFoundError:
            raise NotFoundAtSource(path) from None

    return fetch
