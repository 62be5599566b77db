"""TPM public areas as `cryptography` keys: conversion, identifiers, weak moduli, signatures in the TPM's own form."""

from math import prod

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.attestation.algorithms import (
    DIGEST,
    ECDSA,
    HASH_NAMES,
    P256,
    P384,
    RSA_BITS,
    RSA_EXPONENT,
    RSAPSS,
    RSASSA,
    SHA256,
    SHA384,
    SHA512,
)
from provisioning.attestation.structures import EccPoint, PublicArea, RsaKey, Scheme, Signature
from provisioning.refusals import AlgorithmRefused, SignatureWrong, StructureMalformed, WeakKey

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

HASHES: dict[int, hashes.HashAlgorithm] = {SHA256: hashes.SHA256(), SHA384: hashes.SHA384(), SHA512: hashes.SHA512()}
RSA_AUTHORITY_LEAST, RSA_AUTHORITY_MOST = 2048, 8192
"""Bits of a key that vouches for others, and is never an EK."""
_CURVES: dict[int, ec.EllipticCurve] = {P256: ec.SECP256R1(), P384: ec.SECP384R1()}
# `cryptography` hashes a message in three times the time that hashlib takes.
_ECDSA = {number: ec.ECDSA(Prehashed(algorithm)) for number, algorithm in HASHES.items()}

_SCHEME_NAMES = {RSASSA: "RSASSA", RSAPSS: "RSAPSS", ECDSA: "ECDSA"}

# SubjectPublicKeyInfo of an uncompressed point, up to the 0x04 (RFC 5480 section 2): all but the point is constant.
_SPKI_PREFIX = {
    P256: bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200" + "04"),
    P384: bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200" + "04"),
}

# ROCA (CVE-2017-15361; Nemec et al., "The Return of Coppersmith's Attack", section 3): every prime of an affected
# key is a power of 65537 modulo each small prime, so its modulus is too. A sound key passes all with 2^-27.
_ROCA_PRIMES = (
    *(3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83),
    *(89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167),
)
_ROCA_PRODUCT = prod(_ROCA_PRIMES)
_ROCA_POWERS = tuple((prime, frozenset(pow(65537, k, prime) for k in range(prime - 1))) for prime in _ROCA_PRIMES)


def public_key_of(public: PublicArea) -> PublicKey:
    """The key of a public area, once it is one: a sound modulus, or a point on its curve.

    Raises: StructureMalformed, WeakKey.
    """
    if isinstance(public.key, RsaKey):
        modulus = int.from_bytes(public.key.modulus, "big")
        verify_modulus(modulus)
        return rsa.RSAPublicNumbers(RSA_EXPONENT, modulus).public_key()
    try:
        encoded = b"\x04" + public.key.x + public.key.y
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[public.key.curve], encoded)
    except ValueError as error:
        raise StructureMalformed(expected="a point on the curve", actual="a point that is not") from error


def spki_of(public: PublicArea) -> bytes:
    """The SubjectPublicKeyInfo, DER. A point is not checked to be on its curve: see `public_key_of`."""
    if isinstance(public.key, EccPoint):
        return _SPKI_PREFIX[public.key.curve] + public.key.x + public.key.y
    return spki(public_key_of(public))


def spki(key: PublicKey) -> bytes:
    """The SubjectPublicKeyInfo, DER: rsaEncryption, or a named curve with an uncompressed point."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verify_allowed(key: object) -> PublicKey:
    """The key, if it is of an allow-listed kind, size and curve, and not weak. Raises: AlgorithmRefused, WeakKey."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        if numbers.n.bit_length() not in RSA_BITS or numbers.e != RSA_EXPONENT:
            actual = f"RSA of {numbers.n.bit_length()} bits, exponent {numbers.e}"
            raise AlgorithmRefused(expected="RSA of 2048, 3072 or 4096 bits, exponent 65537", actual=actual)
        verify_modulus(numbers.n)
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    name = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    raise AlgorithmRefused(expected="RSA, P-256 or P-384", actual=name)


def verify_authority_key(key: object) -> PublicKey:
    """The same for a key that only vouches for others: P-521 too, and any RSA of 2048 to 8192 bits.

    Raises: AlgorithmRefused, WeakKey.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP521R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in RSA_BITS:
        numbers = key.public_numbers()
        if not RSA_AUTHORITY_LEAST <= key.key_size <= RSA_AUTHORITY_MOST or numbers.e != RSA_EXPONENT:
            actual = f"RSA of {key.key_size} bits, exponent {numbers.e}"
            raise AlgorithmRefused(expected="RSA of 2048 to 8192 bits, exponent 65537", actual=actual)
        verify_modulus(numbers.n)
        return key
    return verify_allowed(key)


def verify_modulus(modulus: int) -> None:
    """Refuses the moduli of Infineon's weak key generation (ROCA). Raises: WeakKey."""
    residue = modulus % _ROCA_PRODUCT
    if all(residue % prime in powers for prime, powers in _ROCA_POWERS):
        raise WeakKey(expected="a modulus without the ROCA fingerprint", actual="CVE-2017-15361")


def verify_signature(key: PublicKey, scheme: Scheme, signature: Signature, message: bytes) -> None:
    """Is this the key's signature over these bytes, in the key's own scheme and no other? Raises: SignatureWrong."""
    if signature.scheme != scheme:
        raise SignatureWrong(expected=_shown(scheme), actual=_shown(signature.scheme))
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(signature.value, tuple):
            digest = DIGEST[scheme.hash](message).digest()
            key.verify(encode_dss_signature(*signature.value), digest, _ECDSA[scheme.hash])
            return
        if isinstance(key, rsa.RSAPublicKey) and isinstance(signature.value, bytes):
            key.verify(signature.value, message, _rsa_padding(scheme), HASHES[scheme.hash])
            return
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise SignatureWrong(expected=f"{_shown(scheme)} by the AK", actual="a signature that is not") from error
    raise SignatureWrong(expected=_shown(scheme), actual="a signature of another kind of key")


def _rsa_padding(scheme: Scheme) -> padding.PKCS1v15 | padding.PSS:
    if scheme.algorithm == RSAPSS:
        # A TPM's salt is as long as fits, or the digest's length in FIPS mode (Part 1, B.7).
        return padding.PSS(padding.MGF1(HASHES[scheme.hash]), padding.PSS.AUTO)
    return padding.PKCS1v15()


def _shown(scheme: Scheme) -> str:
    return f"{_SCHEME_NAMES.get(scheme.algorithm, '?')} with {HASH_NAMES[scheme.hash]}"
