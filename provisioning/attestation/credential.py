"""MakeCredential without a TPM: a secret that only the TPM holding both the EK and the AK can open (check 6).

TPM 2.0 Library Specification, Part 1, 24 (credential protection), B.10 (RSA), C.6 (ECC), 11.4.10 (KDFa, KDFe). The
OAEP padding and the ephemeral key are drawn inside `cryptography`: the one randomness of the pure packages.
"""

import hashlib
import hmac

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from provisioning.attestation.algorithms import DIGEST_BYTES, HASH_NAMES
from provisioning.attestation.endorsement import TrustedEk
from provisioning.attestation.keys import HASHES

_IDENTITY = b"IDENTITY\0"
_STORAGE = b"STORAGE\0"
_INTEGRITY = b"INTEGRITY\0"
_ZERO_IV = bytes(16)
SECRET_MOST = 32
"""Bytes: a credential is at most a digest of the EK's name algorithm, of which SHA-256 is the shortest."""


def make_credential(ek: TrustedEk, ak_name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, both with their size fields.

    Does not prove that the AK is restricted or of this TPM: a software key put in by LoadExternal opens it too. That
    is what the AK's attributes and its qualified signer are for (check 5). `secret` is 1 to 32 bytes.
    """
    if not 1 <= len(secret) <= SECRET_MOST:
        raise ValueError(f"a secret has 1 to {SECRET_MOST} bytes")
    key = ek.public_key
    seed, encrypted_seed = (
        _rsa_seed(key, ek.name_alg) if isinstance(key, rsa.RSAPublicKey) else _ecc_seed(key, ek.name_alg)
    )
    storage_key = _kdfa(ek.name_alg, seed, _STORAGE, ak_name, ek.symmetric_bits)
    encryptor = Cipher(AES(storage_key), CFB(_ZERO_IV)).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    hmac_key = _kdfa(ek.name_alg, seed, _INTEGRITY, b"", DIGEST_BYTES[ek.name_alg] * 8)
    integrity = hmac.digest(hmac_key, identity + ak_name, HASH_NAMES[ek.name_alg])
    return _sized(_sized(integrity) + identity), _sized(encrypted_seed)


def _rsa_seed(ek: rsa.RSAPublicKey, name_alg: int) -> tuple[bytes, bytes]:
    """A fresh seed and its OAEP encryption, hash and MGF by the EK's name algorithm (Part 1, B.10.3)."""
    seed = b"".join(AESGCM.generate_key(128) for _ in range(DIGEST_BYTES[name_alg] // 16))
    algorithm = HASHES[name_alg]
    return seed, ek.encrypt(seed, padding.OAEP(padding.MGF1(algorithm), algorithm, _IDENTITY))


def _ecc_seed(ek: ec.EllipticCurvePublicKey, name_alg: int) -> tuple[bytes, bytes]:
    """A seed agreed with an ephemeral key, and that key's point (Part 1, C.6.3; KDFe: 11.4.10.3)."""
    size = ek.curve.key_size // 8
    ephemeral = ec.generate_private_key(ek.curve)
    shared = ephemeral.exchange(ec.ECDH(), ek)
    ours, theirs = ephemeral.public_key().public_numbers(), ek.public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    hashed = (1).to_bytes(4, "big") + shared + _IDENTITY + x + theirs.x.to_bytes(size, "big")
    return hashlib.new(HASH_NAMES[name_alg], hashed).digest(), _sized(x) + _sized(y)


def _kdfa(algorithm: int, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """SP 800-108 in counter mode, one block: no key here is longer than the hash (Part 1, 11.4.10.2)."""
    message = (1).to_bytes(4, "big") + label + context + bits.to_bytes(4, "big")
    return hmac.digest(key, message, HASH_NAMES[algorithm])[: bits // 8]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
