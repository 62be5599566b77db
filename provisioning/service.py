"""What every flow is given. Frozen, without behaviour: a test makes one out of whatever parts it likes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.attestation.policy import Policy
from provisioning.config import Config, DataDirectory
from provisioning.db.ledger import Ledger
from provisioning.db.store import Store


class Keys(Protocol):
    """The keys in the HSM, each on its own threads and with a deadline."""

    async def sign(self, label: str, message: bytes) -> bytes:
        """An ECDSA-SHA-256 signature (DER) by the key of that label. Raises: SigningUnavailable."""

    def public(self, label: str) -> ec.EllipticCurvePublicKey:
        """The public key of that label, known since start-up."""

    def key(self, label: str) -> ec.EllipticCurvePrivateKey:
        """The key itself, for a library that signs with it on a thread."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The issuing CA and what is above it."""

    issuing: x509.Certificate
    root: x509.Certificate
    chain: tuple[bytes, ...]
    """DER, from the issuing CA to the root."""


@dataclass(frozen=True, slots=True)
class Service:
    """One process's parts."""

    config: Config
    directory: DataDirectory
    store: Store
    ledger: Ledger
    keys: Keys
    authority: Authority
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    policies: dict[int, Policy] = field(default_factory=dict)
    """Parsed policies by the id of their row, which never changes."""
    mqtt_port: int = 0
    """The broker's port as it is bound, which may be another one than the configured."""
