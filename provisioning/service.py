"""What every flow is given. Frozen, without behaviour: a test makes one out of whatever parts it likes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.attestation.policy import Policy
from provisioning.attestation.verdicts import EkVerdicts
from provisioning.authorities import Authorities
from provisioning.config import Config, DataDirectory
from provisioning.db.ledger import Ledger
from provisioning.db.store import Store
from provisioning.ek_authorities import EkAuthorities
from provisioning.issuance.algorithms import CaPublicKey
from provisioning.issuance.weakkeys import DebianWeak
from provisioning.profiles import Profiles
from provisioning.verifier import Here, Verifier


class Keys(Protocol):
    """The keys in the HSM, each on its own threads and with a deadline."""

    async def sign(self, key: str, message: bytes) -> bytes:
        """A signature by the key's own algorithm (`issuance.algorithms`; ECDSA in DER). Raises: SigningUnavailable.

        `key` is a label in the service's token, or a PKCS#11 URI.
        """

    async def adopt(self, key: str) -> CaPublicKey:
        """Find a key that appeared after the start; its public half. Raises: SigningUnavailable."""

    def public(self, key: str) -> CaPublicKey:
        """The public half of a key that was there at the start, or was adopted. Raises: KeyError."""

    def key(self, key: str) -> ec.EllipticCurvePrivateKey:
        """The key itself, where it is on a curve, for a library that signs with it on a thread. Raises: KeyError."""


@dataclass(frozen=True, slots=True)
class Service:
    """One process's parts."""

    config: Config
    directory: DataDirectory
    store: Store
    ledger: Ledger
    keys: Keys
    authorities: Authorities
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    profiles: Profiles
    debian_weak: DebianWeak
    policies: dict[int, Policy] = field(default_factory=dict)
    """Parsed policies by the id of their row, which never changes."""
    ek_roots: EkAuthorities = field(default_factory=EkAuthorities)
    """The certificates of TPM manufacturers that were imported, as this process read them last."""
    ek_verdicts: EkVerdicts = field(default_factory=EkVerdicts)
    """What was found about EKs, as long as nothing that it rests on is another."""
    verifier: Verifier = field(default_factory=Here)
    """Does what costs the most of verifying, here or elsewhere."""
    mqtt_port: int = 0
    """The broker's port as it is bound, which may be another one than the configured."""
