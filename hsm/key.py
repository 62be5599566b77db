"""An EC private key that lives in a token and *is* a cryptography private key.

Certificate, CSR and CRL builders and securesystemslib's `CryptoSigner` take it as they take a key in memory.
"""

import hashlib
from typing import Any, NoReturn, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.utils import Buffer

from hsm.errors import KeyUnsupported
from hsm.objects import EcKeyReference, raw_to_der

_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_DIGEST_BYTES = (32, 48, 64)
_OTHER_HASH = "the hash is none of SHA-256, SHA-384, SHA-512"


class Signs(Protocol):
    """What an `HsmEcKey` needs of its token."""

    label: str

    def sign(self, key: EcKeyReference, digest: bytes) -> bytes:
        """The raw signature r ‖ s over a digest."""
        ...


class HsmEcKey(ec.EllipticCurvePrivateKey):
    """Signs inside the token. Safe to use from several threads; blocks while the token works or recovers."""

    def __init__(self, token: Signs, reference: EcKeyReference) -> None:
        self._token = token
        self._reference = reference

    @property
    def label(self) -> str:
        """The key's CKA_LABEL."""
        return self._reference.label

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve of the public key."""
        return self._reference.public_key.curve

    @property
    def key_size(self) -> int:
        """Bits of the curve's order."""
        return self._reference.public_key.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half, proven to be this key's by a signature when the key was found."""
        return self._reference.public_key

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """The DER ECDSA-Sig-Value over `data`, which is hashed here, or is the digest itself with `Prehashed`.

        Raises:
            KeyUnsupported: not ECDSA with SHA-256, SHA-384 or SHA-512, or the deterministic variant.
            ValueError: a digest of the wrong length.
            TokenUnavailable: now; worth a retry later. WrongPin, KeyNotFound, TokenRefused: not.
        """
        digest = _digest(data, signature_algorithm)
        # FIPS 186-5, section 6.4.1: the leftmost bits of the digest, as many as the order has. Every order here is of
        # whole bytes or longer than every digest. Not every token cuts by itself.
        raw = self._token.sign(self._reference, digest[: self._reference.coordinate_bytes])
        return raw_to_der(raw, self._reference.coordinate_bytes)

    def exchange(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refused: this key signs and does nothing else."""
        raise KeyUnsupported(f"{self!r} only signs")

    def private_numbers(self) -> NoReturn:
        """Refused: the private key does not leave the token."""
        raise KeyUnsupported(f"{self!r} does not leave its token")

    def private_bytes(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refused: the private key does not leave the token."""
        raise KeyUnsupported(f"{self!r} does not leave its token")

    def __reduce__(self) -> NoReturn:
        raise KeyUnsupported(f"{self!r} does not leave its process")

    def __copy__(self) -> "HsmEcKey":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "HsmEcKey":
        return self

    def __repr__(self) -> str:
        return f"<HsmEcKey {self._reference.label!r} in token {self._token.label!r}>"


def _digest(data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
    if not isinstance(signature_algorithm, ec.ECDSA) or signature_algorithm.deterministic_signing:
        raise KeyUnsupported("tokens sign with randomised ECDSA only")
    algorithm = signature_algorithm.algorithm
    if isinstance(algorithm, Prehashed):
        if algorithm.digest_size not in _DIGEST_BYTES:
            raise KeyUnsupported(_OTHER_HASH)
        digest = bytes(data)
        if len(digest) != algorithm.digest_size:
            raise ValueError(f"the digest has {len(digest)} bytes instead of {algorithm.digest_size}")
        return digest
    if algorithm.name not in _HASHES:
        raise KeyUnsupported(_OTHER_HASH)
    return _HASHES[algorithm.name](data).digest()
