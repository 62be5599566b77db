"""`HsmEcKey` over a key in memory: hashing, cutting, encoding, and everything it refuses."""

import copy
import hashlib
import pickle

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from hsm.errors import KeyUnsupported, TokenRefused
from hsm.key import HsmEcKey
from hsm.kinds import EcKeyReference

HASH_OF_LENGTH = {32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}


class TokenInMemory:
    """Signs as a token does: raw r ‖ s over a digest that is not longer than the order."""

    label = "memory"

    def __init__(self, private_key):
        self.private_key = private_key

    def sign(self, key, digest, how):
        der = self.private_key.sign(digest, ec.ECDSA(Prehashed(HASH_OF_LENGTH[len(digest)])))
        r, s = decode_dss_signature(der)
        return r.to_bytes(key.coordinate_bytes, "big") + s.to_bytes(key.coordinate_bytes, "big")


def hsm_key(curve):
    private_key = ec.generate_private_key(curve)
    return HsmEcKey(TokenInMemory(private_key), EcKeyReference("issuing", b"\x01", private_key.public_key()))


KEYS = {curve.name: hsm_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())}
P256 = KEYS["secp256r1"]


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("algorithm", HASH_OF_LENGTH.values(), ids=lambda algorithm: algorithm.name)
def test_every_curve_signs_with_every_hash(key, algorithm):
    signature = key.sign(b"to be signed", ec.ECDSA(algorithm))
    key.public_key().verify(signature, b"to be signed", ec.ECDSA(algorithm))


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_any_message_verifies(message):
    P256.public_key().verify(P256.sign(message, ec.ECDSA(hashes.SHA256())), message, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_signed(kind):
    signature = P256.sign(kind(b"data"), ec.ECDSA(hashes.SHA256()))
    P256.public_key().verify(signature, b"data", ec.ECDSA(hashes.SHA256()))


def test_a_digest_is_signed_as_it_is():
    digest = hashlib.sha256(b"data").digest()
    signature = P256.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    P256.public_key().verify(signature, b"data", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("length", [0, 20, 31, 33, 64])
def test_a_digest_of_the_wrong_length_is_refused(length):
    with pytest.raises(ValueError, match=f"{length} bytes instead of 32"):
        P256.sign(bytes(length), ec.ECDSA(Prehashed(hashes.SHA256())))


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA224(), hashes.MD5(), hashes.SHA3_256()])  # noqa: S303 (refused)
def test_another_hash_is_refused(algorithm):
    with pytest.raises(KeyUnsupported, match="SHA-256"):
        P256.sign(b"", ec.ECDSA(algorithm))


def test_a_digest_by_another_hash_is_refused():
    with pytest.raises(KeyUnsupported, match="SHA-256"):
        P256.sign(bytes(20), ec.ECDSA(Prehashed(hashes.SHA1())))  # noqa: S303 (refused)


def test_deterministic_signing_is_refused():
    with pytest.raises(KeyUnsupported, match="randomised"):
        P256.sign(b"", ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


@pytest.mark.parametrize("raw", [b"", bytes(63), bytes(65), bytes(96)])
def test_a_raw_signature_of_the_wrong_length_is_refused(raw, monkeypatch):
    monkeypatch.setattr(TokenInMemory, "sign", lambda *_: raw)
    with pytest.raises(TokenRefused, match=f"{len(raw)} bytes instead of 64"):
        P256.sign(b"", ec.ECDSA(hashes.SHA256()))


def test_it_is_the_key_that_it_says():
    assert isinstance(P256, ec.EllipticCurvePrivateKey)
    assert (P256.curve.name, P256.key_size, P256.label) == ("secp256r1", 256, "issuing")
    assert repr(P256) == "<HsmEcKey 'issuing' in token 'memory'>"


def test_a_copy_is_the_key_itself():
    assert copy.copy(P256) is P256
    assert copy.deepcopy({"key": P256})["key"] is P256


def test_it_does_not_leave_the_process():
    with pytest.raises(KeyUnsupported, match="process"):
        pickle.dumps(P256)


def test_the_private_half_is_refused():
    with pytest.raises(KeyUnsupported, match="does not leave"):
        P256.private_numbers()
    with pytest.raises(KeyUnsupported, match="does not leave"):
        P256.private_bytes(
            encoding=serialization.Encoding.PEM,
            format=serialization.PrivateFormat.PKCS8,
            encryption_algorithm=serialization.NoEncryption(),
        )


def test_key_agreement_is_refused():
    with pytest.raises(KeyUnsupported, match="only signs"):
        P256.exchange(ec.ECDH(), P256.public_key())
