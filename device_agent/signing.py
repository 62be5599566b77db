"""Signatures of messages: the service's command keys verify, the device's key signs."""

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from wire.binding import key_id
from wire.envelope import Verify


def verifier(keys: Sequence[bytes]) -> Verify:
    """Is a signature by one of these keys (SubjectPublicKeyInfo, P-256)? Other kinds of key verify nothing."""
    known: dict[str, ec.EllipticCurvePublicKey] = {}
    for spki in keys:
        key = load_der_public_key(spki)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            known[key_id(spki)] = key

    def verify(keyid: str, signature: bytes, message: bytes) -> bool:
        key = known.get(keyid)
        if key is None:
            return False
        try:
            key.verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    return verify
