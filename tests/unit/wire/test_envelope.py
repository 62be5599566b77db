"""DSSE envelopes: what was signed is what is parsed, and nothing unsigned gets through."""

import base64
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from wire.codec import MalformedMessage
from wire.envelope import MAX_ENVELOPE, EnvelopeNotAuthentic, open_envelope, pae, seal, unverified_payload_type

KEY = Ed25519PrivateKey.generate()
KIND = "application/vnd.muster.test+json"


def verify(keyid, signature, message):
    try:
        KEY.public_key().verify(signature, message)
    except InvalidSignature:
        return False
    return keyid == "k"


def sealed(payload=b"{}", kind=KIND, keyid="k"):
    return seal(kind, payload, keyid, KEY.sign)


def changed(**fields):
    return json.dumps({**json.loads(sealed()), **fields}).encode()


def test_the_encoding_is_that_of_the_specification():
    """The example of the DSSE specification, protocol 1.0.2."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == "DSSEv1 2 é 0 ".encode()


def test_a_sealed_payload_comes_back():
    assert open_envelope(sealed(b"\0\xff"), KIND, verify) == b"\0\xff"
    assert unverified_payload_type(sealed()) == KIND


@given(st.binary(max_size=300))
def test_any_payload_survives(payload):
    assert open_envelope(sealed(payload), KIND, verify) == payload


def test_one_good_signature_among_others_is_enough():
    good = json.loads(sealed())["signatures"][0]
    bad = {"keyid": "other", "sig": base64.b64encode(bytes(64)).decode()}
    assert open_envelope(changed(signatures=[bad, good]), KIND, verify) == b"{}"


@pytest.mark.parametrize(
    "data",
    [
        changed(payload=base64.b64encode(b'{"a":1}').decode()),
        changed(signatures=[]),
        sealed(keyid="stranger"),
        changed(signatures=[{"keyid": "k", "sig": base64.b64encode(bytes(64)).decode()}]),
        changed(signatures=[{"keyid": "k", "sig": ""}]),
    ],
    ids=["another payload", "no signature", "another key", "another signature", "an empty one"],
)
def test_what_is_not_signed_is_not_authentic(data):
    with pytest.raises(EnvelopeNotAuthentic):
        open_envelope(data, KIND, verify)


def test_the_payload_type_is_signed_and_expected():
    other = "application/vnd.muster.other+json"
    with pytest.raises(MalformedMessage, match="payloadType"):
        open_envelope(sealed(), other, verify)
    with pytest.raises(EnvelopeNotAuthentic):
        open_envelope(changed(payloadType=other), other, verify)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        changed(payload="not base64!"),
        changed(payload="AAA"),
        changed(payload="é"),
        changed(signatures=[{"keyid": "k", "sig": "###"}]),
        changed(signatures=[{"keyid": "k", "sig": "AA=="}] * 5),
        changed(more=1),
        b" " * (MAX_ENVELOPE + 1),
    ],
)
def test_a_malformed_envelope_is_refused(data):
    with pytest.raises(MalformedMessage):
        open_envelope(data, KIND, verify)


def test_nothing_is_sealed_that_would_not_be_opened():
    with pytest.raises(MalformedMessage):
        sealed(bytes(MAX_ENVELOPE))
    largest = sealed(bytes(MAX_ENVELOPE // 4 * 3 - 300))
    assert open_envelope(largest, KIND, verify)


VALID = sealed(b'{"a":"payload"}')


@given(st.integers(0, len(VALID) - 1), st.integers(1, 255))
def test_a_changed_byte_never_changes_the_payload(at, bits):
    mutated = VALID[:at] + bytes([VALID[at] ^ bits]) + VALID[at + 1 :]
    try:
        payload = open_envelope(mutated, KIND, verify)
    except (MalformedMessage, EnvelopeNotAuthentic):
        return
    assert payload == b'{"a":"payload"}'


def test_bits_behind_the_last_byte_are_refused():
    data = seal("t", b"{}", "k", lambda _: b"s")
    assert b'"e30="' in data
    with pytest.raises(MalformedMessage, match="canonical"):
        open_envelope(data.replace(b'"e30="', b'"e31="'), "t", lambda *_: True)
