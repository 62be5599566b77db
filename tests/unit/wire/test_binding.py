"""The bytes that tie evidence to a challenge: known answers, and no two different inputs alike."""

import hashlib
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.binding import activation_proof, ak_unique, binding, key_id

FIELDS = {"audience": "muster.test", "nonce": b"n" * 32, "csr": b"csr", "ak_name": b"\0\x0bname", "enrollment_id": "e1"}
PARTS = [
    ("enroll", "quote", b"muster/v1/quote"),
    ("enroll", "certify", b"muster/v1/certify"),
    ("enroll", "activate", b"muster/v1/activate"),
    ("rotate", "quote", b"muster/v1/rotate/quote"),
    ("rotate", "certify", b"muster/v1/rotate/certify"),
    ("rotate", "activate", b"muster/v1/rotate/activate"),
    ("attest", "quote", b"muster/v1/attest/quote"),
    ("attest", "activate", b"muster/v1/attest/activate"),
]


def prefixed(*parts):
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


@pytest.mark.parametrize(("flow", "part", "label"), PARTS)
def test_the_binding_is_that_of_the_protocol(flow, part, label):
    hashed = prefixed(label, b"muster.test", b"n" * 32, hashlib.sha256(b"csr").digest(), b"\0\x0bname", b"e1")
    assert binding(flow, part, **FIELDS) == hashlib.sha256(hashed).digest()


def test_it_stays_what_it_was():
    """Devices in the field compute it too: a change of these bytes locks all of them out."""
    assert binding("enroll", "quote", **FIELDS).hex() == KNOWN


KNOWN = hashlib.sha256(
    bytes.fromhex("0000000f")
    + b"muster/v1/quote"
    + bytes.fromhex("0000000b")
    + b"muster.test"
    + bytes.fromhex("00000020")
    + b"n" * 32
    + bytes.fromhex("00000020")
    + hashlib.sha256(b"csr").digest()
    + bytes.fromhex("00000006")
    + b"\0\x0bname"
    + bytes.fromhex("00000002")
    + b"e1"
).hexdigest()


def test_no_part_of_any_flow_is_taken_for_another():
    assert len({binding(flow, part, **FIELDS) for flow, part, _ in PARTS}) == len(PARTS)


def test_an_attest_command_certifies_nothing():
    with pytest.raises(KeyError):
        binding("attest", "certify", **FIELDS)


TEXT = st.text("ab", max_size=3)
OCTETS = st.binary(max_size=3)
ANY = st.fixed_dictionaries(
    {"audience": TEXT, "nonce": OCTETS, "csr": OCTETS, "ak_name": OCTETS, "enrollment_id": TEXT}
)


@given(ANY, ANY)
def test_different_inputs_bind_differently(first, second):
    assert (binding("enroll", "quote", **first) == binding("enroll", "quote", **second)) == (first == second)


def test_the_proof_is_an_hmac():
    assert activation_proof(b"s" * 32, b"bound") == hmac.new(b"s" * 32, b"bound", hashlib.sha256).digest()


def test_an_ak_is_another_one_for_each_service_and_owner():
    expected = hashlib.sha256(prefixed(b"muster/v1/ak", b"muster.test", (1).to_bytes(8, "big"))).digest()
    assert ak_unique("muster.test", 1) == expected
    assert len({ak_unique(audience, epoch) for audience in ("a", "b") for epoch in (0, 1)}) == 4


def test_a_keys_id_is_the_hash_of_its_spki():
    assert key_id(b"spki") == hashlib.sha256(b"spki").hexdigest()
