"""Is a key good enough for the profile that it is to be certified under? One refusal a weakness.

Not proven, because it cannot be seen in one key: that two RSA keys share a prime, or that the holder keeps it secret.
Whether the very same key is in another certificate already, the database says (`DeviceKeyReused`).
"""

import hashlib
from collections.abc import Callable
from functools import cache
from math import gcd, isqrt

from provisioning.issuance.keys import KeyKind, SubjectKey, subject_key
from provisioning.issuance.profiles import CertificateProfile
from provisioning.refusals import (
    KeyExponentRefused,
    KeyIsDebianWeak,
    KeyIsRoca,
    KeyKindRefused,
    KeyPointRefused,
    KeyPrimesTooClose,
    KeyTooShort,
    KeyWithSmallFactor,
)

RSA_EXPONENT_LEAST = 65537
RSA_EXPONENT_BITS_MOST = 256
"""FIPS 186-5, appendix A.1.1: odd, 2^16 < e < 2^256."""
FERMAT_ROUNDS = 100
SMALL_PRIMES_BELOW = 2**16
_ED25519_P = 2**255 - 19
# The y-coordinates of the eight points of small order: (0, 1), (0, -1), the two of y = 0 and the four of order 8.
_ED25519_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _ED25519_P - 1,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    }
)
DebianWeak = Callable[[SubjectKey], bool]
"""Is the key one of those that Debian's OpenSSL of 2006 to 2008 could make (CVE-2008-0166)?"""


def admit_key(profile: CertificateProfile, spki: bytes, debian_weak: DebianWeak) -> SubjectKey:
    """The key, if this profile takes it. That a point lies on its curve was seen when the request was parsed.

    Raises: KeyKindRefused, KeyTooShort, KeyExponentRefused, KeyIsRoca, KeyWithSmallFactor, KeyPrimesTooClose,
    KeyIsDebianWeak, KeyPointRefused.
    """
    key = subject_key(spki)
    allowed = f"a key of kind {', '.join(sorted(profile.keys))} (profile {profile.name})"
    if key is None:
        raise KeyKindRefused(expected=allowed, actual="another kind of key, or another encoding")
    if key.kind not in profile.keys:
        raise KeyKindRefused(expected=allowed, actual=key.kind)
    if key.kind is KeyKind.RSA:
        _admit_rsa(key, profile.rsa_bits_least)
    if key.kind is KeyKind.ED25519:
        _admit_ed25519(key)
    if debian_weak(key):
        raise KeyIsDebianWeak(expected="a key of which more than 32,768 could have been made", actual=_print_of(key))
    return key


def _admit_rsa(key: SubjectKey, bits_least: int) -> None:
    if key.bits < bits_least:
        raise KeyTooShort(expected=f"RSA of {bits_least} bits or more", actual=f"{key.bits} bits")
    even = key.exponent % 2 == 0
    if even or key.exponent < RSA_EXPONENT_LEAST or key.exponent.bit_length() > RSA_EXPONENT_BITS_MOST:
        raise KeyExponentRefused(expected="an odd exponent from 65537 up to 256 bits", actual=f"{key.exponent:#x}")
    if is_roca(key.modulus):
        raise KeyIsRoca(expected="a modulus without the ROCA fingerprint", actual=_print_of(key))
    factor = gcd(key.modulus, _primorial() % key.modulus)
    if factor != 1:
        raise KeyWithSmallFactor(expected=f"no prime factor below {SMALL_PRIMES_BELOW}", actual=f"{factor:#x}")
    if _is_fermat_close(key.modulus):
        raise KeyPrimesTooClose(expected="primes that Fermat's method does not find", actual=_print_of(key))


def _admit_ed25519(key: SubjectKey) -> None:
    """A point of small order is everybody's key; a y of p or more is a second spelling (RFC 8032 section 5.1.3)."""
    y = int.from_bytes(key.content, "little") & ((1 << 255) - 1)
    if y >= _ED25519_P or y in _ED25519_SMALL_ORDER_Y:
        raise KeyPointRefused(expected="a point of large order, in its one encoding", actual=key.content)


def is_roca(modulus: int) -> bool:
    """Is the modulus, to each of these primes, a power of 65537 (Nemec et al., 2017, section 3)?"""
    return all(modulus % prime in residues for prime, residues in _roca_residues())


@cache
def _roca_residues() -> tuple[tuple[int, frozenset[int]], ...]:
    primes = [p for p in range(3, 168) if all(p % q for q in range(2, isqrt(p) + 1))]
    return tuple((prime, frozenset(pow(65537, e, prime) for e in range(prime))) for prime in primes)


@cache
def _primorial() -> int:
    """The product of all primes below 2^16: about 94,000 bits."""
    sieve = bytearray([1]) * SMALL_PRIMES_BELOW
    product = 1
    for number in range(2, SMALL_PRIMES_BELOW):
        if sieve[number]:
            product *= number
            sieve[number * number :: number] = bytes(len(range(number * number, SMALL_PRIMES_BELOW, number)))
    return product


def _is_fermat_close(modulus: int) -> bool:
    """Do a hundred rounds of Fermat's factorization find it? Those of CVE-2022-26320 took one or two."""
    root = isqrt(modulus)
    if root * root < modulus:
        root += 1
    for a in range(root, root + FERMAT_ROUNDS):
        rest = a * a - modulus
        if isqrt(rest) ** 2 == rest:
            return True
    return False


def _print_of(key: SubjectKey) -> str:
    return f"SHA-256 of the key {hashlib.sha256(key.spki).hexdigest()}"
