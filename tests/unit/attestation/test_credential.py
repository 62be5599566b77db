"""MakeCredential, opened with the key derivations of the TSS and of OpenSSL: they must agree on every byte."""

import hmac

import pytest
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.internal.crypto import _kdfa
from tpm2_pytss.types import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPMT_PUBLIC, TPMT_SYM_DEF_OBJECT
from tpm2_pytss.utils import make_credential as tss_make_credential

from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import TrustedEk
from tests.support.ek_certificates import ec_key, rsa_key

NAME = b"\0\x0b" + bytes(range(32))
CASES = [
    (rsa_key(), 0x0B, 128),
    (rsa_key(3072), 0x0C, 256),
    (ec_key(ec.SECP256R1), 0x0B, 128),
    (ec_key(ec.SECP384R1), 0x0C, 256),
]
HASHES = {0x0B: (TPM2_ALG.SHA256, hashes.SHA256(), "sha256"), 0x0C: (TPM2_ALG.SHA384, hashes.SHA384(), "sha384")}
IDS = ["RSA-2048", "RSA-3072", "P-256", "P-384"]


def trusted(key, name_alg, bits):
    return TrustedEk("", key.public_key(), name_alg, bits, "certificate", "", "", "", ())


def seed_of(key, name_alg, secret):
    _, digest, _ = HASHES[name_alg]
    if isinstance(key, rsa.RSAPrivateKey):
        return key.decrypt(secret, padding.OAEP(padding.MGF1(digest), digest, b"IDENTITY\0"))
    size = key.curve.key_size // 8
    x, y = (int.from_bytes(secret[at : at + size], "big") for at in (2, size + 4))
    theirs = ec.EllipticCurvePublicNumbers(x, y, key.curve).public_key()
    ours = key.public_key().public_numbers().x.to_bytes(size, "big")
    shared = key.exchange(ec.ECDH(), theirs)
    info = b"IDENTITY\0" + secret[2 : size + 2] + ours
    return ConcatKDFHash(digest, digest.digest_size, info).derive(shared)


def open_credential(key, name_alg, bits, blob, encrypted, name):
    """TPM2_ActivateCredential (Part 1, 24), by other people's KDFa and KDFe."""
    algorithm, digest, hash_name = HASHES[name_alg]
    (blob, blob_size), (secret, secret_size) = (
        TPM2B_ID_OBJECT.unmarshal(blob),
        TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted),
    )
    assert (blob_size, secret_size) == (len(bytes(blob)) + 2, len(bytes(secret)) + 2)
    seed = seed_of(key, name_alg, bytes(secret))
    size = digest.digest_size
    body = bytes(blob)
    assert int.from_bytes(body[:2], "big") == size
    integrity, identity = body[2 : 2 + size], body[2 + size :]
    outer = _kdfa(algorithm, seed, b"INTEGRITY", b"", b"", size * 8)
    if not hmac.compare_digest(hmac.digest(outer, identity + name, hash_name), integrity):
        raise ValueError("integrity")
    storage = _kdfa(algorithm, seed, b"STORAGE", name, b"", bits)
    plain = Cipher(AES(storage), CFB(bytes(16))).decryptor().update(identity)
    assert int.from_bytes(plain[:2], "big") == len(plain) - 2
    return plain[2:]


@pytest.mark.parametrize(("key", "name_alg", "bits"), CASES, ids=IDS)
@pytest.mark.parametrize("length", [1, 16, 32])
def test_the_holder_of_the_ek_opens_it_for_that_name(key, name_alg, bits, length):
    secret = bytes(range(length))
    blob, encrypted = make_credential(trusted(key, name_alg, bits), NAME, secret)
    assert open_credential(key, name_alg, bits, blob, encrypted, NAME) == secret


@pytest.mark.parametrize(("key", "name_alg", "bits"), CASES, ids=IDS)
def test_another_name_does_not_fit(key, name_alg, bits):
    blob, encrypted = make_credential(trusted(key, name_alg, bits), NAME, b"s" * 32)
    with pytest.raises(ValueError, match="integrity"):
        open_credential(key, name_alg, bits, blob, encrypted, NAME[:-1] + b"\0")


@pytest.mark.parametrize(("key", "name_alg", "bits"), CASES, ids=IDS)
def test_no_two_credentials_are_alike(key, name_alg, bits):
    ek = trusted(key, name_alg, bits)
    made = [make_credential(ek, NAME, b"s" * 32) for _ in range(4)]
    assert len({blob for blob, _ in made}) == len({encrypted for _, encrypted in made}) == len(made)


@pytest.mark.parametrize("secret", [b"", b"s" * 33])
def test_a_secret_has_its_size(secret):
    with pytest.raises(ValueError, match="1 to 32"):
        make_credential(trusted(*CASES[0]), NAME, secret)


@pytest.mark.parametrize(("key", "name_alg", "bits"), CASES, ids=IDS)
def test_the_tss_makes_the_same_kind_of_credential(key, name_alg, bits):
    """Guards this file: what opens ours opens the TSS's too, so it is a TPM's way of opening."""
    name = {0x0B: "sha256", 0x0C: "sha384"}[name_alg]
    public = TPMT_PUBLIC.from_pem(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        nameAlg=TPM2_ALG.parse(name),
        symmetric=TPMT_SYM_DEF_OBJECT.parse(f"aes{bits}cfb"),
    )
    blob, encrypted = tss_make_credential(public, b"s" * 32, NAME)
    assert open_credential(key, name_alg, bits, blob.marshal(), encrypted.marshal(), NAME) == b"s" * 32
