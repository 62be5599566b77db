"""Verifications of what a request brought, done here or by a partner: signatures are most of what a request costs."""

from typing import Protocol

from provisioning.issuance.algorithms import verify_by_spki
from provisioning.issuance.csr import verify_possession


class Verifier(Protocol):
    """Pure verifications. Each of them may raise VerifierUnavailable, too, where it is done elsewhere."""

    async def possession(self, csr: bytes) -> bytes:
        """`verify_possession`: the SubjectPublicKeyInfo of the request's key. Raises: CsrRefused, KeyPointRefused."""

    async def signature(self, spki: bytes, message: bytes, signature: bytes) -> None:
        """`issuance.algorithms.verify`, by a key in DER. Raises: ToBeSignedRefused."""


class Here:
    """The verifier that is this process."""

    async def possession(self, csr: bytes) -> bytes:
        """See `Verifier`."""
        return verify_possession(csr).spki

    def ready(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing is to be ended."""

    async def signature(self, spki: bytes, message: bytes, signature: bytes) -> None:
        """See `Verifier`."""
        verify_by_spki(spki, message, signature)
