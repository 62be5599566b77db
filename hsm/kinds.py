"""The kinds of keys that are used: how a token makes one, shows its public half, and signs with it. Pure.

P-256, P-384, P-521, RSA of 3072 to 4096 bits, Ed25519. A token need not offer all of them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism

from hsm.errors import KeyUnsupported, TokenRefused

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

# namedCurve parameters (RFC 5480, section 2.1.1.1) as CKA_EC_PARAMS holds them.
CURVES: dict[bytes, ec.EllipticCurve] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
}
PARAMETERS = {curve.name: parameters for parameters, curve in CURVES.items()}
# Ed25519 by its object identifier (RFC 8410, section 3), or by the curve's name (PKCS#11 3.0, section 2.3.10).
ED25519_PARAMETERS = bytes.fromhex("06032b6570")
_ED25519_NAMES = (ED25519_PARAMETERS, b"\x13\x0cedwards25519")
_ED25519_BYTES = 32
RSA_BITS = range(3072, 4097)
_RSA_LEAST_EXPONENT, _RSA_GREATEST_EXPONENT = 65537, 1 << 256  # FIPS 186-5, section A.1.1
_LONG_FORM = 0x80  # DER lengths from here on take a second byte


class KeyKind(StrEnum):
    """A kind of key that a token can be asked to make."""

    P256 = "P-256"
    P384 = "P-384"
    P521 = "P-521"
    RSA3072 = "RSA-3072"
    RSA4096 = "RSA-4096"
    ED25519 = "Ed25519"


_CURVE_OF = {KeyKind.P256: "secp256r1", KeyKind.P384: "secp384r1", KeyKind.P521: "secp521r1"}
_RSA_BITS_OF = {KeyKind.RSA3072: 3072, KeyKind.RSA4096: 4096}


@dataclass(frozen=True, slots=True)
class Signing:
    """One way to sign: a PKCS#11 mechanism with its parameters, and room for what it gives."""

    mechanism: Mechanism
    parameters: Any = None
    buffer_bytes: int = 256
    """P-521 needs 132, RSA-4096 512; python-pkcs11's own 8,192 cost 10 µs a signature."""


ECDSA = Signing(Mechanism.ECDSA)
EDDSA = Signing(Mechanism.EDDSA)
RSA_PKCS1 = Signing(Mechanism.RSA_PKCS, buffer_bytes=1024)


@dataclass(frozen=True, slots=True)
class KeyReference:
    """Which key pair: enough to find it again after the token came back, and to prove that it is the same."""

    label: str
    id: bytes
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class EcKeyReference(KeyReference):
    """The same of an elliptic curve key."""

    public_key: ec.EllipticCurvePublicKey

    @property
    def coordinate_bytes(self) -> int:
        """The length of r and of s in a raw signature."""
        return (self.public_key.key_size + 7) // 8


def reference(label: str, identity: bytes, public_key: PublicKey) -> KeyReference:
    """The reference to a key pair, of the class that fits its kind."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return EcKeyReference(label, identity, public_key)
    return KeyReference(label, identity, public_key)


def kind_of(public_key: PublicKey) -> str:
    """`P-256`, `RSA-3072`, `Ed25519`, …: kind and size of a key that is used here."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return next(kind.value for kind, curve in _CURVE_OF.items() if curve == public_key.curve.name)
    return f"RSA-{public_key.key_size}" if isinstance(public_key, rsa.RSAPublicKey) else KeyKind.ED25519.value


def kind_of_parameters(parameters: bytes) -> str:
    """The same of CKA_EC_PARAMS alone; empty for a curve that is not used here."""
    if parameters in _ED25519_NAMES:
        return KeyKind.ED25519.value
    name = getattr(CURVES.get(parameters), "name", "")
    return next((kind.value for kind, curve in _CURVE_OF.items() if curve == name), "")


@dataclass(frozen=True, slots=True)
class Generation:
    """How a token makes a key pair of one kind."""

    key_type: KeyType
    mechanism: Mechanism
    template: dict[Attribute, Any]
    """Of the public key, beside its name."""


def generation(kind: KeyKind) -> Generation:
    """How a key of this kind is made."""
    if kind is KeyKind.ED25519:
        template: dict[Attribute, Any] = {Attribute.EC_PARAMS: ED25519_PARAMETERS}
        return Generation(KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, template)
    if kind in _RSA_BITS_OF:
        template = {Attribute.MODULUS_BITS: _RSA_BITS_OF[kind], Attribute.PUBLIC_EXPONENT: b"\x01\x00\x01"}
        return Generation(KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, template)
    template = {Attribute.EC_PARAMS: PARAMETERS[_CURVE_OF[kind]]}
    return Generation(KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, template)


def decode_ec_point(parameters: bytes, point: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of CKA_EC_PARAMS and CKA_EC_POINT; the point is proven to lie on the curve.

    Raises:
        KeyUnsupported: not P-256, P-384 or P-521 by name, or not a point of it.
    """
    curve = CURVES.get(parameters)
    if curve is None:
        raise KeyUnsupported("the curve is none of P-256, P-384, P-521")
    raw = _unwrapped(point, 1 + 2 * ((curve.key_size + 7) // 8))
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, raw)
    except ValueError as error:
        raise KeyUnsupported("the public key is not a point of its curve") from error


def decode_edwards_point(parameters: bytes, point: bytes) -> ed25519.Ed25519PublicKey:
    """The public key of CKA_EC_PARAMS and CKA_EC_POINT. That it is a point is seen when a signature verifies.

    Raises:
        KeyUnsupported: not Ed25519, or not of its length.
    """
    if parameters not in _ED25519_NAMES:
        raise KeyUnsupported("the curve is not Ed25519")
    return ed25519.Ed25519PublicKey.from_public_bytes(_unwrapped(point, _ED25519_BYTES))


def decode_rsa(modulus: bytes, exponent: bytes) -> rsa.RSAPublicKey:
    """The public key of CKA_MODULUS and CKA_PUBLIC_EXPONENT.

    Raises:
        KeyUnsupported: too small, too large, or an exponent that FIPS 186-5 does not allow.
    """
    n, e = int.from_bytes(modulus, "big"), int.from_bytes(exponent, "big")
    if n.bit_length() not in RSA_BITS:
        raise KeyUnsupported(f"the RSA key has {n.bit_length()} bits, not {RSA_BITS.start} to {RSA_BITS.stop - 1}")
    if not (_RSA_LEAST_EXPONENT <= e < _RSA_GREATEST_EXPONENT and e & 1 and n & 1):
        raise KeyUnsupported("the RSA key's exponent is even or below 65537, or its modulus is even")
    return rsa.RSAPublicNumbers(e, n).public_key()


def raw_to_der(raw: bytes, coordinate_bytes: int) -> bytes:
    """The ECDSA-Sig-Value (RFC 3279, section 2.2.3) of the r ‖ s that PKCS#11 gives."""
    if len(raw) != 2 * coordinate_bytes:
        raise TokenRefused(f"the token gave a signature of {len(raw)} bytes instead of {2 * coordinate_bytes}")
    r, s = raw[:coordinate_bytes], raw[coordinate_bytes:]
    return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


def _unwrapped(point: bytes, size: int) -> bytes:
    header, raw = point[:-size], point[-size:]
    # PKCS#11 2.40, section 2.3.3 wants the point inside an OCTET STRING; some tokens give it bare.
    octet_string = bytes([0x04, size]) if size < _LONG_FORM else bytes([0x04, 0x81, size])
    if len(raw) != size or header not in (b"", octet_string):
        raise KeyUnsupported("the public key is neither an uncompressed point nor one in an OCTET STRING")
    return raw
