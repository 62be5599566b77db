"""Verifications of what a request brought, done here or by a partner: they are most of what a request costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from provisioning.attestation.evidence import ActivatedChallenge, verify_evidence, verify_platform
from provisioning.attestation.policy import Policy
from provisioning.attestation.quote import TpmState, VerifiedPcrs
from provisioning.issuance.algorithms import verify_by_spki
from provisioning.issuance.csr import verify_possession
from provisioning.refusals import Finding
from wire.messages import Evidence, PlatformEvidence


@dataclass(frozen=True, slots=True)
class Shown:
    """One piece of evidence, and all that it is judged by. `policy_id` names the policy for good; its `mode` may vary.

    `previous`, `release_values`, `device`: as `verify_evidence` takes them.
    """

    evidence: Evidence | PlatformEvidence
    boot_log: bytes | None
    ima_log: bytes | None
    activated: ActivatedChallenge
    policy_id: int
    policy: Policy
    previous: TpmState | None
    release_values: Mapping[int, frozenset[bytes]]
    device: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What evidence proved: `VerifiedEvidence` or `VerifiedPlatform`, as far as it is used.

    `spki` is the key that asks for a certificate, in DER; empty where none does.
    """

    pcrs: VerifiedPcrs
    findings: tuple[Finding, ...]
    spki: bytes


class Verifier(Protocol):
    """Pure verifications. Each of them may raise VerifierUnavailable, too, where it is done elsewhere."""

    async def possession(self, csr: bytes) -> bytes:
        """`verify_possession`: the SubjectPublicKeyInfo of the request's key. Raises: CsrRefused, KeyPointRefused."""

    async def signature(self, spki: bytes, message: bytes, signature: bytes) -> None:
        """`issuance.algorithms.verify`, by a key in DER. Raises: ToBeSignedRefused."""

    async def evidence(self, shown: Shown) -> Accepted:
        """`verify_evidence`, or `verify_platform`. Raises: what they raise."""


class Here:
    """The verifier that is this process."""

    async def possession(self, csr: bytes) -> bytes:
        """See `Verifier`."""
        return verify_possession(csr).spki

    async def signature(self, spki: bytes, message: bytes, signature: bytes) -> None:
        """See `Verifier`."""
        verify_by_spki(spki, message, signature)

    async def evidence(self, shown: Shown) -> Accepted:
        """See `Verifier`."""
        return accept(shown)

    def ready(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing is to be ended."""


def accept(shown: Shown) -> Accepted:
    """The straight line over all checks of the evidence. Raises: what `verify_evidence` or `verify_platform` does."""
    given = (shown.boot_log, shown.activated, shown.policy, shown.previous, shown.release_values)
    if isinstance(shown.evidence, PlatformEvidence):
        platform = verify_platform(shown.evidence, *given, ima_log=shown.ima_log, device=shown.device)
        return Accepted(platform.pcrs, platform.findings, b"")
    verified = verify_evidence(shown.evidence, *given, ima_log=shown.ima_log, device=shown.device)
    return Accepted(verified.pcrs, verified.findings, verified.csr.spki)
