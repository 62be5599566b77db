"""How CA keys sign: one algorithm a kind of key, equal to what cryptography writes, and nothing else verifies."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from provisioning.issuance.algorithms import (
    ALGORITHMS,
    ECDSA_SHA256,
    ECDSA_SHA384,
    ED25519,
    RSA_SHA256,
    algorithm_in,
    algorithm_of,
    algorithm_of_spki,
    verify,
)
from provisioning.issuance.tbs import assemble, unsigned
from provisioning.refusals import ToBeSignedRefused

KEYS = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "RSA-3072": rsa.generate_private_key(65537, 3072),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
WANTED = {"P-256": ECDSA_SHA256, "P-384": ECDSA_SHA384, "RSA-3072": RSA_SHA256, "Ed25519": ED25519}
NOW = datetime(2026, 11, 21, tzinfo=UTC)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example CA")])


def sign(key, message):
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(_digest(key)))


def _digest(key):
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return hashes.SHA384() if getattr(key, "key_size", 0) == 384 else hashes.SHA256()


def certificate(key):
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 2**126 + 5, NOW, NOW + timedelta(days=1))
    return builder.sign(key, _digest(key))


def crl(key):
    builder = x509.CertificateRevocationListBuilder(NAME, NOW, NOW + timedelta(days=1))
    return builder.sign(key, _digest(key))


@pytest.mark.parametrize("kind", KEYS)
def test_a_certificate_and_a_crl_are_assembled_as_cryptography_does(kind):
    key, algorithm = KEYS[kind], WANTED[kind]
    assert algorithm_of(key.public_key()) is algorithm
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert algorithm_of_spki(spki) is algorithm
    cert, revoked = certificate(key), crl(key)
    for made, tbs in ((cert, cert.tbs_certificate_bytes), (revoked, revoked.tbs_certlist_bytes)):
        assert made.signature_algorithm_oid.dotted_string == algorithm.oid
        assert algorithm_in(tbs) is algorithm
        assert assemble(tbs, made.signature) == made.public_bytes(Encoding.DER)
        assert assemble(tbs, made.signature, algorithm) == made.public_bytes(Encoding.DER)
        verify(key.public_key(), tbs, made.signature)


@pytest.mark.parametrize("kind", KEYS)
def test_an_unsigned_certificate_parses_and_verifies_nowhere(kind):
    tbs = certificate(KEYS[kind]).tbs_certificate_bytes
    found = x509.load_der_x509_certificate(unsigned(tbs))
    assert found.tbs_certificate_bytes == tbs
    with pytest.raises(ToBeSignedRefused):
        verify(KEYS[kind].public_key(), tbs, found.signature)


@pytest.mark.parametrize("kind", KEYS)
def test_another_message_key_or_signature_is_refused(kind):
    key = KEYS[kind]
    signature = sign(key, b"message")
    verify(key.public_key(), b"message", signature)
    strangers = [other for name, other in KEYS.items() if name != kind]
    for public, message, signed in (
        (key.public_key(), b"massage", signature),
        (key.public_key(), b"message", signature[:-1] + bytes([signature[-1] ^ 1])),
        (key.public_key(), b"message", b""),
        *((stranger.public_key(), b"message", signature) for stranger in strangers),
    ):
        with pytest.raises(ToBeSignedRefused) as caught:
            verify(public, message, signed)
        assert caught.value.actual == "another one"


def test_the_digest_is_the_one_of_the_curve():
    key = KEYS["P-384"]
    with pytest.raises(ToBeSignedRefused):
        verify(key.public_key(), b"message", key.sign(b"message", ec.ECDSA(hashes.SHA256())))


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048).public_key(),
        ec.generate_private_key(ec.SECP521R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        ed448.Ed448PrivateKey.generate().public_key(),
        dsa.generate_private_key(2048).public_key(),
        b"no key",
    ],
    ids=lambda key: type(key).__name__,
)
def test_other_keys_sign_nothing_here(key):
    with pytest.raises(ToBeSignedRefused) as caught:
        algorithm_of(key)
    assert "P-256" in caught.value.expected
    with pytest.raises(ToBeSignedRefused):
        verify(key, b"message", b"signature")


@pytest.mark.parametrize("spki", [b"", b"\x30\x00", bytes(91)])
def test_what_is_no_public_key_has_no_algorithm(spki):
    with pytest.raises(ToBeSignedRefused) as caught:
        algorithm_of_spki(spki)
    assert caught.value.expected == "a public key"


@pytest.mark.parametrize("tbs", [b"", b"0", b"0\x00", b"0\x84", bytes.fromhex("3003020100"), b"0\x03\x30\x01\x00"])
def test_bytes_that_name_no_algorithm_are_not_assembled(tbs):
    with pytest.raises(ValueError, match="no signature algorithm"):
        assemble(tbs, b"signature")


def test_identifiers_are_those_of_the_clauses():
    """RFC 5758 section 3.2 and RFC 8410 section 3: absent; RFC 4055 section 5: NULL."""
    assert {algorithm.name: identifier.hex() for identifier, algorithm in ALGORITHMS.items()} == {
        "ecdsa-with-SHA256": "300a06082a8648ce3d040302",
        "ecdsa-with-SHA384": "300a06082a8648ce3d040303",
        "sha256WithRSAEncryption": "300d06092a864886f70d01010b0500",
        "Ed25519": "300506032b6570",
    }
