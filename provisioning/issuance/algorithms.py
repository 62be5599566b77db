"""How CA keys sign: the algorithm of each kind of key, as it stands in certificates, CRLs and OCSP responses.

One algorithm a kind of key: the key decides, nothing negotiates. Certificates and CRLs name their algorithm inside the
signed bytes too (RFC 5280 sections 4.1.1.2 and 5.1.1.2), which is where `algorithm_in` reads it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from provisioning.issuance import der
from provisioning.refusals import ToBeSignedRefused

CaPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
"""What a CA key, a responder's key or another signer's key of the service may be."""
CA_RSA_BITS_LEAST = 3072
_CA_RSA_BITS_MOST = 8192
_NULL = b"\x05\x00"
_ANY_ECDSA = bytes.fromhex("3006020101020101")
"""An ECDSA signature in form only: r = s = 1."""


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """One AlgorithmIdentifier (`identifier`, DER), and its object identifier in dots."""

    name: str
    oid: str
    identifier: bytes
    unsigned: bytes
    """A signature in form only, so that parsers take what nobody signed yet. It verifies nowhere."""


ECDSA_SHA256 = SignatureAlgorithm(
    "ecdsa-with-SHA256", "1.2.840.10045.4.3.2", der.sequence(der.oid("1.2.840.10045.4.3.2")), _ANY_ECDSA
)
"""P-256. ECDSA has no parameters: they are absent (RFC 5758 section 3.2)."""
ECDSA_SHA384 = SignatureAlgorithm(
    "ecdsa-with-SHA384", "1.2.840.10045.4.3.3", der.sequence(der.oid("1.2.840.10045.4.3.3")), _ANY_ECDSA
)
"""P-384: the same clause."""
RSA_SHA256 = SignatureAlgorithm(
    "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.11",
    der.sequence(der.oid("1.2.840.113549.1.1.11"), _NULL),
    bytes(CA_RSA_BITS_LEAST // 8),
)
"""RSA of 3072 bits or more, PKCS #1 v1.5. Its parameters are NULL (RFC 4055 section 5)."""
ED25519 = SignatureAlgorithm("Ed25519", "1.3.101.112", der.sequence(der.oid("1.3.101.112")), bytes(64))
"""No parameters (RFC 8410 section 3)."""

ALGORITHMS: dict[bytes, SignatureAlgorithm] = {
    algorithm.identifier: algorithm for algorithm in (ECDSA_SHA256, ECDSA_SHA384, RSA_SHA256, ED25519)
}


def algorithm_of(key: object) -> SignatureAlgorithm:
    """How that public key's holder signs here. Raises: ToBeSignedRefused for a key that no CA here may have."""
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return ECDSA_SHA256
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP384R1):
            return ECDSA_SHA384
        case rsa.RSAPublicKey() if CA_RSA_BITS_LEAST <= key.key_size <= _CA_RSA_BITS_MOST:
            return RSA_SHA256
        case ed25519.Ed25519PublicKey():
            return ED25519
    raise ToBeSignedRefused(
        expected=f"a signing key on P-256, P-384, Ed25519, or RSA of {CA_RSA_BITS_LEAST} bits or more",
        actual=_named(key),
    )


def algorithm_of_spki(spki: bytes) -> SignatureAlgorithm:
    """The same for a SubjectPublicKeyInfo in DER. Raises: ToBeSignedRefused."""
    return algorithm_of(_key_in(spki))


def algorithm_in(tbs: bytes) -> SignatureAlgorithm:
    """The algorithm that the bytes of a certificate or a CRL themselves say they are signed with.

    Does not read on from there, and so proves nothing about the rest. Raises: ValueError.
    """
    try:
        at = _content_at(tbs, 0)
        while tbs[at] in (0xA0, der.INTEGER):  # the version (of a CRL an INTEGER), a certificate's serial
            at = _content_at(tbs, at) + _length_at(tbs, at)
        return ALGORITHMS[tbs[at : _content_at(tbs, at) + _length_at(tbs, at)]]
    except (IndexError, KeyError) as error:
        raise ValueError("these bytes name no signature algorithm that is used here") from error


def verify(key: object, message: bytes, signature: bytes) -> None:
    """Is this a signature by that key over these bytes, by the key's own algorithm? Raises: ToBeSignedRefused."""
    algorithm_of(key)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            digest = hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()
            key.verify(signature, message, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        else:
            cast("ed25519.Ed25519PublicKey", key).verify(signature, message)
    except InvalidSignature as error:
        raise ToBeSignedRefused(expected="a signature over the reserved bytes", actual="another one") from error


def verify_by_spki(spki: bytes, message: bytes, signature: bytes) -> None:
    """The same with the key as SubjectPublicKeyInfo in DER. Raises: ToBeSignedRefused."""
    verify(_key_in(spki), message, signature)


@lru_cache(maxsize=64)  # as many as there are CAs, not requests
def _key_in(spki: bytes) -> object:
    try:
        return load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ToBeSignedRefused(expected="a public key", actual=type(error).__name__) from error


def _length_at(data: bytes, at: int) -> int:
    first = data[at + 1]
    if first < der.SHORT_FORM_BELOW:
        return first
    octets = first & 0x7F
    return int.from_bytes(data[at + 2 : at + 2 + octets], "big")


def _content_at(data: bytes, at: int) -> int:
    first = data[at + 1]
    return at + 2 + (0 if first < der.SHORT_FORM_BELOW else first & 0x7F)


def _named(key: object) -> str:
    match key:
        case ec.EllipticCurvePublicKey():
            return key.curve.name
        case rsa.RSAPublicKey():
            return f"RSA of {key.key_size} bits"
    return type(key).__name__
