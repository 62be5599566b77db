"""The bytes that tie a piece of evidence to one challenge, one key request and one device. Used by both sides.

What goes in: the label (which message this is), the service's name (so that evidence cannot be relayed to another
service), the nonce (freshness), the hash of the CSR (so that the CSR cannot be swapped), the AK's Name (so that
evidence cannot change hands) and the enrollment's id (so that it answers one request only).
"""

import hashlib
import hmac
from typing import Literal

Flow = Literal["enroll", "rotate", "attest"]
Part = Literal["quote", "certify", "activate"]

_LABELS: dict[tuple[Flow, Part], bytes] = {
    ("enroll", "quote"): b"muster/v1/quote",
    ("enroll", "certify"): b"muster/v1/certify",
    ("enroll", "activate"): b"muster/v1/activate",
    ("rotate", "quote"): b"muster/v1/rotate/quote",
    ("rotate", "certify"): b"muster/v1/rotate/certify",
    ("rotate", "activate"): b"muster/v1/rotate/activate",
    ("attest", "quote"): b"muster/v1/attest/quote",
    ("attest", "activate"): b"muster/v1/attest/activate",
}
_AK_LABEL = b"muster/v1/ak"


def binding(
    flow: Flow, part: Part, *, audience: str, nonce: bytes, csr: bytes, ak_name: bytes, enrollment_id: str
) -> bytes:
    """The 32 bytes that a TPM signs as extraData (`quote`, `certify`), or that the activation proof covers.

    Every input is length-prefixed: no two different inputs give the same bytes to hash. `csr` is DER, empty where
    no certificate is asked for (`attest`).
    """
    return bind(flow, part, context(audience, nonce, csr, ak_name, enrollment_id))


def context(audience: str, nonce: bytes, csr: bytes, ak_name: bytes, enrollment_id: str) -> bytes:
    """What all parts of one answer are tied to: `binding` without its label, for who binds several."""
    return _prefixed((audience.encode(), nonce, hashlib.sha256(csr).digest(), ak_name, enrollment_id.encode()))


def bind(flow: Flow, part: Part, tied: bytes) -> bytes:
    """`binding` over a `context` that is at hand."""
    return hashlib.sha256(_PREFIXED_LABELS[flow, part] + tied).digest()


def activation_proof(secret: bytes, bound: bytes) -> bytes:
    """Proof that its maker opened the credential: HMAC-SHA-256 by the secret in it, over `binding(…, "activate")`."""
    return hmac.digest(secret, bound, "sha256")


def ak_unique(audience: str, ownership_epoch: int) -> bytes:
    """The `unique` field of the AK's template: another service, or another owner, sees an unlinkable AK."""
    return hashlib.sha256(_prefixed((_AK_LABEL, audience.encode(), ownership_epoch.to_bytes(8, "big")))).digest()


def key_id(spki: bytes) -> str:
    """The id of a public key everywhere: SHA-256 of its SubjectPublicKeyInfo (DER), in lower hex."""
    return hashlib.sha256(spki).hexdigest()


def _prefixed(parts: tuple[bytes, ...]) -> bytes:
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


_PREFIXED_LABELS = {part: _prefixed((label,)) for part, label in _LABELS.items()}
