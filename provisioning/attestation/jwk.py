"""Public keys as JSON (RFC 7517, RFC 7518 section 6) and their thumbprints (RFC 7638)."""

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from wire.codec import b64url, encode

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}


class NoJwk(ValueError):
    """A key of a kind that is not written as JWK here."""


def jwk_of(key: object) -> dict[str, Any]:
    """The members that make the key what it is, and no others. Raises: NoJwk."""
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        numbers, size = key.public_numbers(), (key.key_size + 7) // 8
        point = {name: b64url(getattr(numbers, name).to_bytes(size, "big")) for name in ("x", "y")}
        return {"kty": "EC", "crv": CURVES[key.curve.name], **point}
    if isinstance(key, rsa.RSAPublicKey):
        rsa_numbers = key.public_numbers()
        return {"kty": "RSA", "n": _unsigned(rsa_numbers.n), "e": _unsigned(rsa_numbers.e)}
    raise NoJwk(type(key).__name__)


def thumbprint(key: object) -> str:
    """SHA-256 over the required members, in the order of their names, without blanks (RFC 7638 section 3).

    Raises: NoJwk.
    """
    return b64url(hashlib.sha256(encode(jwk_of(key))).digest())


def _unsigned(number: int) -> str:
    return b64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))
