"""Lists of weak keys in badkeys' form: what is in one is found, nothing else is, and what is no list is seen."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance.blocklist import ENTRY_OCTETS, fingerprint, is_list, listed_in
from provisioning.issuance.keys import subject_key
from tests.support.certificates import spki

KEYS = {
    "RSA": rsa.generate_private_key(65537, 2048),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


def number_of(key):
    """What badkeys hashes: n, x, or the encoded point as a number."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.public_key().public_numbers().n
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.public_key().public_numbers().x
    return int.from_bytes(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), "big")


def entries(prints):
    return memoryview(b"".join(sorted(each[:15] + b"\x07" for each in prints)))


@pytest.mark.parametrize("name", KEYS)
def test_a_listed_key_is_found_and_another_is_not(name):
    number = number_of(KEYS[name])
    digest = hashlib.sha256(number.to_bytes((number.bit_length() + 7) // 8, "big")).digest()
    key = subject_key(spki(KEYS[name]))
    assert fingerprint(key) == digest[:15]
    others = [hashlib.sha256(bytes([n])).digest() for n in range(100)]
    assert listed_in([entries([digest, *others])])(key)
    assert listed_in([entries(others), entries([digest])])(key)
    assert not listed_in([entries(others)])(key)
    assert not listed_in([])(key)


@given(st.sets(st.binary(min_size=15, max_size=15), min_size=1, max_size=40))
def test_every_entry_of_a_list_is_found(prints):
    listed = entries(prints)
    assert is_list(listed)
    key = subject_key(spki(KEYS["P-256"]))
    assert listed_in([listed])(key) is (fingerprint(key) in prints)
    assert listed_in([entries([*prints, fingerprint(key)])])(key)


@pytest.mark.parametrize(
    "data", [b"", bytes(ENTRY_OCTETS - 1), b"\x02" * 16 + b"\x01" * 16, b"<html>no such file</html>"]
)
def test_what_is_no_list_is_seen(data):
    assert not is_list(memoryview(data))
