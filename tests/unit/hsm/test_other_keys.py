"""RSA and Ed25519 keys over keys in memory: preparing, encoding, and everything that is refused."""

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo, Prehashed
from hypothesis import given
from hypothesis import strategies as st
from pkcs11 import KeyType, Mechanism

from hsm.errors import KeyUnsupported, TokenRefused
from hsm.key import HsmEcKey, HsmEdKey, HsmRsaKey, key_in, sign_message, verify_message
from hsm.kinds import (
    ED25519_PARAMETERS,
    KeyKind,
    decode_edwards_point,
    decode_rsa,
    generation,
    kind_of,
    kind_of_parameters,
    reference,
)

RSA = rsa.generate_private_key(65537, 3072)
ED = ed25519.Ed25519PrivateKey.generate()
SHA256 = hashes.SHA256()
NAMES = {Mechanism.SHA256: hashes.SHA256(), Mechanism.SHA384: hashes.SHA384(), Mechanism.SHA512: hashes.SHA512()}


class TokenInMemory:
    """Signs as a token does, in plain RSA: what goes in is what PKCS#11's mechanism takes."""

    label = "memory"
    answer = None

    def sign(self, key, data, how):
        if self.answer is not None:
            return self.answer
        if how.mechanism is Mechanism.EDDSA:
            return ED.sign(data)
        if how.mechanism is Mechanism.RSA_PKCS:
            return RSA.sign(data, padding.PKCS1v15(), NoDigestInfo())
        name, _, salt = how.parameters
        scheme = padding.PSS(padding.MGF1(NAMES[name]), salt)
        return RSA.sign(data, scheme, Prehashed(NAMES[name]))


TOKEN = TokenInMemory()
RSA_KEY = key_in(TOKEN, reference("issuing", b"\x01", RSA.public_key()))
ED_KEY = key_in(TOKEN, reference("issuing", b"\x01", ED.public_key()))


def test_each_public_key_gets_its_class():
    assert isinstance(RSA_KEY, HsmRsaKey)
    assert isinstance(ED_KEY, HsmEdKey)
    made = key_in(TOKEN, reference("a", b"", ec.generate_private_key(ec.SECP384R1()).public_key()))
    assert isinstance(made, HsmEcKey)
    assert isinstance(RSA_KEY, rsa.RSAPrivateKey)
    assert isinstance(ED_KEY, ed25519.Ed25519PrivateKey)
    assert repr(RSA_KEY) == "<HsmRsaKey 'issuing' in token 'memory'>"


@pytest.mark.parametrize("algorithm", NAMES.values(), ids=lambda algorithm: algorithm.name)
def test_pkcs1_signs_the_digest_in_its_digest_info(algorithm):
    signature = RSA_KEY.sign(b"data", padding.PKCS1v15(), algorithm)
    RSA.public_key().verify(signature, b"data", padding.PKCS1v15(), algorithm)


@pytest.mark.parametrize("algorithm", NAMES.values(), ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("salt", [0, 20, padding.PSS.DIGEST_LENGTH, padding.PSS.MAX_LENGTH])
def test_pss_signs_with_the_salt_that_is_asked_for(algorithm, salt):
    scheme = padding.PSS(padding.MGF1(algorithm), salt)
    RSA.public_key().verify(RSA_KEY.sign(b"data", scheme, algorithm), b"data", scheme, algorithm)


@given(st.binary(max_size=300))
def test_any_message_verifies_by_the_keys_own_algorithm(message):
    for key in (RSA_KEY, ED_KEY):
        signature = sign_message(key, message)
        verify_message(key.public_key(), message, signature)
        with pytest.raises(InvalidSignature):
            verify_message(key.public_key(), message + b"x", signature)


PSS = padding.PSS(padding.MGF1(SHA256), 32)
REFUSED = [
    (padding.OAEP(padding.MGF1(SHA256), SHA256, None), SHA256, "PKCS #1 v1.5 or PSS only"),
    (padding.PSS(padding.MGF1(hashes.SHA384()), 32), SHA256, "two different hashes"),
    (PSS, hashes.SHA1(), "SHA-256"),  # noqa: S303 (refused)
    (PSS, NoDigestInfo(), "SHA-256"),
    (padding.PKCS1v15(), hashes.SHA224(), "SHA-256"),
]


@pytest.mark.parametrize(("scheme", "algorithm", "says"), REFUSED)
def test_other_ways_to_sign_are_refused(scheme, algorithm, says):
    with pytest.raises(KeyUnsupported, match=says):
        RSA_KEY.sign(b"data", scheme, algorithm)


@pytest.mark.parametrize("salt", [384 - 32 - 1, padding.PSS.AUTO])
def test_a_salt_that_does_not_fit_is_refused(salt):
    with pytest.raises(ValueError, match="salt"):
        RSA_KEY.sign(b"data", padding.PSS(padding.MGF1(SHA256), salt), SHA256)


def test_a_digest_is_signed_as_it_is_and_has_its_length():
    digest = hashlib.sha256(b"data").digest()
    signature = RSA_KEY.sign(digest, PSS, Prehashed(SHA256))
    RSA.public_key().verify(signature, b"data", PSS, SHA256)
    with pytest.raises(ValueError, match="31 bytes instead of 32"):
        RSA_KEY.sign(digest[:31], PSS, Prehashed(SHA256))


@pytest.mark.parametrize("answer", [b"", bytes(63), bytes(385)])
def test_a_signature_of_another_length_is_refused(answer, monkeypatch):
    monkeypatch.setattr(TokenInMemory, "answer", answer)
    for key in (RSA_KEY, ED_KEY):
        with pytest.raises(TokenRefused, match=f"{len(answer)} bytes"):
            sign_message(key, b"data")


def test_neither_leaves_its_token():
    for leave in (RSA_KEY.private_numbers, RSA_KEY.private_bytes, ED_KEY.private_bytes, ED_KEY.private_bytes_raw):
        with pytest.raises(KeyUnsupported, match="does not leave"):
            leave()
    with pytest.raises(KeyUnsupported, match="only signs"):
        RSA_KEY.decrypt(b"", padding.PKCS1v15())


# --- public halves, as tokens show them -----------------------------------------------------------------------------


def octets(number):
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


N, E = RSA.public_key().public_numbers().n, b"\x01\x00\x01"


def test_an_rsa_key_is_read_with_and_without_leading_zeros():
    assert decode_rsa(octets(N), E) == decode_rsa(b"\x00" + octets(N), b"\x00" + E) == RSA.public_key()


@pytest.mark.parametrize(
    ("modulus", "exponent", "says"),
    [
        (octets(N >> 1), E, "3071 bits"),
        (octets(N << 2048), E, "5120 bits"),
        (b"", E, "0 bits"),
        (octets(N - 1), E, "modulus is even"),
        (octets(N), b"\x03", "65537"),
        (octets(N), b"\x01\x00\x02", "even"),
        (octets(N), b"\x01" + bytes(32), "even"),
        (octets(N), b"", "65537"),
    ],
)
def test_a_weak_or_odd_rsa_key_is_refused(modulus, exponent, says):
    with pytest.raises(KeyUnsupported, match=says):
        decode_rsa(modulus, exponent)


RAW = ED.public_key().public_bytes_raw()


@pytest.mark.parametrize("parameters", [ED25519_PARAMETERS, b"\x13\x0cedwards25519"])
@pytest.mark.parametrize("header", [b"", b"\x04\x20"])
def test_an_ed25519_key_is_read_bare_and_wrapped(parameters, header):
    assert decode_edwards_point(parameters, header + RAW) == ED.public_key()
    assert kind_of_parameters(parameters) == "Ed25519"


@pytest.mark.parametrize(
    "point",
    [b"", RAW[:31], b"\x04\x21" + RAW, b"\x03\x20" + RAW, RAW + b"\x00"],
    ids=["empty", "short", "wrong length", "wrong tag", "long"],  # every worker must name them alike
)
def test_hostile_edwards_points_are_refused(point):
    with pytest.raises(KeyUnsupported):
        decode_edwards_point(ED25519_PARAMETERS, point)


def test_another_edwards_curve_is_refused():
    with pytest.raises(KeyUnsupported, match="Ed25519"):
        decode_edwards_point(bytes.fromhex("06032b6571"), RAW)
    assert kind_of_parameters(bytes.fromhex("06032b6571")) == ""


@pytest.mark.parametrize("kind", KeyKind)
def test_every_kind_can_be_asked_for(kind):
    how = generation(kind)
    assert how.key_type in (KeyType.EC, KeyType.RSA, KeyType.EC_EDWARDS)
    assert how.template


def test_kinds_are_called_by_name_and_size():
    public = [RSA.public_key(), ED.public_key(), ec.generate_private_key(ec.SECP521R1()).public_key()]
    assert [kind_of(key) for key in public] == ["RSA-3072", "Ed25519", "P-521"]
