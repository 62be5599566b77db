"""Weak keys: each weakness is refused by its own name, and sound keys of every kind pass."""

from dataclasses import replace
from math import isqrt, prod

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance import der
from provisioning.issuance.keys import KeyKind, subject_key
from provisioning.issuance.profiles import builtin
from provisioning.issuance.tbs import Profile
from provisioning.issuance.weakkeys import FERMAT_ROUNDS, admit_key, is_roca
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
from tests.support.certificates import spki

ANY = replace(builtin(Profile.IDEVID), keys=frozenset(KeyKind), rsa_bits_least=2048)
SOUND = {
    "P-256": (ec.generate_private_key(ec.SECP256R1()), 256),
    "P-384": (ec.generate_private_key(ec.SECP384R1()), 384),
    "P-521": (ec.generate_private_key(ec.SECP521R1()), 521),
    "RSA 2048": (rsa.generate_private_key(65537, 2048), 2048),
    "RSA 3072": (rsa.generate_private_key(65537, 3072), 3072),
    "RSA 4096": (rsa.generate_private_key(65537, 4096), 4096),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate(), 256),
}
PRIME = SOUND["RSA 2048"][0].private_numbers().p
MODULUS = SOUND["RSA 2048"][0].private_numbers().public_numbers.n


def rsa_spki(modulus, exponent=65537):
    """As it stands in a certificate, whether or not anybody would take it."""
    algorithm = der.sequence(der.oid("1.2.840.113549.1.1.1"), b"\x05\x00")
    return der.sequence(algorithm, der.bits(der.sequence(der.integer(modulus), der.integer(exponent))))


def ed25519_spki(encoded):
    return bytes.fromhex("302a300506032b6570032100") + encoded


def sound(_):
    return False


@pytest.mark.parametrize("case", SOUND.values(), ids=SOUND.keys())
def test_a_sound_key_is_admitted_with_its_kind_and_size(case):
    key, bits = case
    admitted = admit_key(ANY, spki(key), sound)
    assert (admitted.bits, admitted.spki) == (bits, spki(key))


@pytest.mark.parametrize("case", SOUND.values(), ids=SOUND.keys())
def test_a_kind_that_the_profile_does_not_name_is_refused(case):
    kind = subject_key(spki(case[0])).kind
    with pytest.raises(KeyKindRefused) as caught:
        admit_key(replace(ANY, keys=frozenset(KeyKind) - {kind}), spki(case[0]), sound)
    assert caught.value.actual == kind


STRANGE = {
    "secp256k1": spki(ec.generate_private_key(ec.SECP256K1())),
    "Ed448": ed448.Ed448PrivateKey.generate().public_key(),
    "DSA": dsa.generate_private_key(2048).public_key(),
    "nothing": b"",
    "no key": b"\x30\x00",
    "a byte behind": spki(SOUND["P-256"][0]) + b"\x00",
    "a compressed point": spki(SOUND["P-256"][0])[:26] + b"\x02" + spki(SOUND["P-256"][0])[27:],
    "a byte less": spki(SOUND["Ed25519"][0])[:-1],
    "RSA without NULL": rsa_spki(MODULUS).replace(b"\x05\x00", b""),
    "RSA with a byte behind": rsa_spki(MODULUS) + b"\x00",
    "RSA too large": rsa_spki(1 << 9000 | 1),
    "a negative modulus": rsa_spki(MODULUS).replace(b"\x02\x82\x01\x01\x00", b"\x02\x82\x01\x01\x80"),
    "a modulus cut off": rsa_spki(MODULUS)[:40],
}


@pytest.mark.parametrize("key", STRANGE.values(), ids=STRANGE.keys())
def test_other_keys_and_encodings_are_refused(key):
    encoded = key if isinstance(key, bytes) else key.public_bytes(*_spki())
    with pytest.raises(KeyKindRefused) as caught:
        admit_key(ANY, encoded, sound)
    assert "another kind" in caught.value.actual


def _spki():
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Encoding.DER, PublicFormat.SubjectPublicKeyInfo


def next_prime(number):
    number |= 1
    while pow(2, number - 1, number) != 1:
        number += 2
    return number


def primes_apart(rounds):
    """The product of two primes that Fermat's method finds in about so many rounds."""
    distance = 2 * isqrt(2 * rounds * PRIME)
    return PRIME * next_prime(PRIME + distance)


WEAK = {
    "short": (rsa_spki(1 << 2046 | 1), KeyTooShort, "2047 bits"),
    "1024 bits": (rsa_spki(PRIME), KeyTooShort, "1024 bits"),
    "exponent 1": (rsa_spki(MODULUS, 1), KeyExponentRefused, "0x1"),
    "exponent 3": (rsa_spki(MODULUS, 3), KeyExponentRefused, "0x3"),
    "exponent 0": (rsa_spki(MODULUS, 0), KeyExponentRefused, "0x0"),
    "even exponent": (rsa_spki(MODULUS, 65538), KeyExponentRefused, "0x10002"),
    "huge exponent": (rsa_spki(MODULUS, (1 << 256) + 1), KeyExponentRefused, "0x1"),
    "even modulus": (rsa_spki(MODULUS - 1), KeyWithSmallFactor, "0x"),
    "a small factor": (rsa_spki(MODULUS // 65521 * 65521 << 2 | 0), KeyWithSmallFactor, "0x"),
    "the largest small factor": (rsa_spki(65521 * (MODULUS | 1)), KeyWithSmallFactor, "0x"),
    "a square": (rsa_spki(PRIME * PRIME), KeyPrimesTooClose, "SHA-256"),
    "close": (rsa_spki(PRIME * next_prime(PRIME + 2)), KeyPrimesTooClose, "SHA-256"),
    "identity": (ed25519_spki(b"\x01" + bytes(31)), KeyPointRefused, "01"),
    "identity, sign bit set": (ed25519_spki(b"\x01" + bytes(30) + b"\x80"), KeyPointRefused, "01"),
    "order 4": (ed25519_spki(bytes(32)), KeyPointRefused, "00"),
    "second spelling": (ed25519_spki(bytes.fromhex("ee" + "ff" * 30 + "7f")), KeyPointRefused, "ee"),
    "order 8": (
        ed25519_spki(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")),
        KeyPointRefused,
        "c7",
    ),
    "order 8, the other": (
        ed25519_spki(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")),
        KeyPointRefused,
        "26",
    ),
}


@pytest.mark.parametrize("case", WEAK.values(), ids=WEAK.keys())
def test_each_weakness_is_refused_by_its_name(case):
    encoded, refusal, actual = case
    with pytest.raises(refusal) as caught:
        admit_key(ANY, encoded, sound)
    assert type(caught.value) is refusal
    assert actual in caught.value.actual


def test_the_profile_raises_the_least_size():
    with pytest.raises(KeyTooShort) as caught:
        admit_key(replace(ANY, rsa_bits_least=3072), spki(SOUND["RSA 2048"][0]), sound)
    assert "3072" in caught.value.expected


@pytest.mark.parametrize("name", ["P-256", "RSA 2048"])
def test_a_key_of_debians_is_refused(name):
    asked = []

    def known(key):
        asked.append(key)
        return True

    with pytest.raises(KeyIsDebianWeak):
        admit_key(ANY, spki(SOUND[name][0]), known)
    assert [key.spki for key in asked] == [spki(SOUND[name][0])]


def roca_prime(factor):
    """A prime as the flawed generator made them: k * M + (65537^a mod M)."""
    product = prod(p for p in range(2, 168) if all(p % q for q in range(2, p)))
    while pow(2, (candidate := factor * product + pow(65537, factor, product)) - 1, candidate) != 1:
        factor += 1
    return candidate


def test_a_roca_modulus_is_refused_by_its_name():
    modulus = roca_prime(1 << 805) * roca_prime(3 << 805)
    assert is_roca(modulus)
    with pytest.raises(KeyIsRoca):
        admit_key(ANY, rsa_spki(modulus), sound)
    assert not is_roca(MODULUS)


def test_fermats_method_has_its_hundred_rounds_and_no_more():
    with pytest.raises(KeyPrimesTooClose):
        admit_key(ANY, rsa_spki(primes_apart(FERMAT_ROUNDS - 2)), sound)
    admit_key(ANY, rsa_spki(primes_apart(FERMAT_ROUNDS + 2)), sound)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_by_name(data):
    with pytest.raises((KeyKindRefused, KeyTooShort)):
        admit_key(ANY, data, sound)


@given(at=st.integers(0, 293), octet=st.integers(0, 255))
def test_what_is_taken_for_rsa_is_written_as_der_writes_it(at, octet):
    encoded = bytearray(rsa_spki(MODULUS))
    encoded[at] = octet
    key = subject_key(bytes(encoded))
    if key is not None:
        assert rsa_spki(key.modulus, key.exponent) == bytes(encoded)
