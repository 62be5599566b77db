"""Signatures of certificate authorities, over the original bytes of what they signed.

The allow-list of algorithms. SHA-1 stands apart: it counts only between two certificates that an operator imported,
and only where the model's policy says so; never for a leaf, and never for what a device sends.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from asn1crypto import algos
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from provisioning.attestation.keys import PublicKey

RSA_PSS = "1.2.840.113549.1.1.10"
SHA1_SIGNATURES = frozenset({"1.2.840.113549.1.1.5", "1.3.14.3.2.29", "1.2.840.10045.4.1"})
"""sha1WithRSAEncryption, its old twin of OIW, ecdsa-with-SHA1."""

_RSA: dict[str, hashes.HashAlgorithm] = {
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
}
_ECDSA: dict[str, hashes.HashAlgorithm] = {
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_PSS: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_SHA1_RSA = {"1.2.840.113549.1.1.5": hashes.SHA1(), "1.3.14.3.2.29": hashes.SHA1()}  # noqa: S303  see above
_SHA1_ECDSA = {"1.2.840.10045.4.1": hashes.SHA1()}  # noqa: S303  see above
_SALT_MOST = 64

Algorithms = Mapping[type[object], Mapping[str, hashes.HashAlgorithm]]
STRONG: Algorithms = MappingProxyType({rsa.RSAPublicKey: _RSA, ec.EllipticCurvePublicKey: _ECDSA})
"""What counts everywhere, beside RSASSA-PSS with the same hashes."""
WITH_SHA1: Algorithms = MappingProxyType(
    {rsa.RSAPublicKey: _RSA | _SHA1_RSA, ec.EllipticCurvePublicKey: _ECDSA | _SHA1_ECDSA}
)
"""What counts between certificates whose very bytes an operator chose."""


class Signed(Protocol):
    """What an authority signs: a certificate, or a revocation list."""

    @property
    def tbs(self) -> bytes:
        """The original bytes that the signature is over."""
        ...

    @property
    def signature(self) -> bytes:
        """The signature."""
        ...

    @property
    def signature_algorithm(self) -> str:
        """Its algorithm, as a dotted OID."""
        ...

    @property
    def signature_parameters(self) -> bytes:
        """The algorithm's parameters, DER; empty where it has none."""
        ...


def why_not_signed(signed: Signed, key: PublicKey, algorithms: Algorithms = STRONG) -> str | None:
    """Why this key did not sign these original bytes, or None where it did."""
    oid = signed.signature_algorithm
    try:
        if isinstance(key, rsa.RSAPublicKey) and oid == RSA_PSS:
            scheme = _pss(signed.signature_parameters)
            if scheme is None:
                return "its RSASSA-PSS parameters do not count"
            key.verify(signed.signature, signed.tbs, *scheme)
        elif isinstance(key, rsa.RSAPublicKey) and oid in algorithms[rsa.RSAPublicKey]:
            key.verify(signed.signature, signed.tbs, padding.PKCS1v15(), algorithms[rsa.RSAPublicKey][oid])
        elif isinstance(key, ec.EllipticCurvePublicKey) and oid in algorithms[ec.EllipticCurvePublicKey]:
            key.verify(signed.signature, signed.tbs, ec.ECDSA(algorithms[ec.EllipticCurvePublicKey][oid]))
        else:
            return f"its signature algorithm {oid} does not count, or is not of its issuer's key"
    except InvalidSignature:
        return "its signature does not verify"
    except (UnsupportedAlgorithm, ValueError):  # a digest that does not fit into the key, SHA-1 that is switched off
        return f"its signature algorithm {oid} cannot be judged here"
    return None


def counts(oid: str) -> bool:
    """Is it an algorithm of `STRONG`, or RSASSA-PSS?"""
    return oid in _RSA or oid in _ECDSA or oid == RSA_PSS


def _pss(parameters: bytes) -> tuple[padding.PSS, hashes.HashAlgorithm] | None:
    """RFC 4055, 3.1: one hash for both places, MGF1; the defaults are SHA-1 and do not count."""
    try:
        parsed = algos.RSASSAPSSParams.load(parameters, strict=True)
        name = parsed["hash_algorithm"]["algorithm"].native
        mask = parsed["mask_gen_algorithm"]
        mask_name = mask["parameters"]["algorithm"].native
        salt, trailer = parsed["salt_length"].native, parsed["trailer_field"].native
        generator = mask["algorithm"].native
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    algorithm = _PSS.get(name)
    if algorithm is None or (generator, mask_name, trailer) != ("mgf1", name, "trailer_field_bc"):
        return None
    if not 0 <= salt <= _SALT_MOST:
        return None
    return padding.PSS(padding.MGF1(algorithm), salt), algorithm
