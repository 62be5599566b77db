"""What stands in a token: finding keys, reading their attributes, decoding an EC public key. One session at a time."""

import hashlib
from dataclasses import dataclass
from typing import Any

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsm.errors import KeyAmbiguous, KeyPairMismatch, KeyUnsupported, TokenRefused

# namedCurve parameters (RFC 5480, section 2.1.1.1) as CKA_EC_PARAMS holds them.
CURVES: dict[bytes, ec.EllipticCurve] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
}
PARAMETERS = {curve.name: parameters for parameters, curve in CURVES.items()}

LONG_FORM = 0x80  # DER lengths from here on take a second byte
_PROBE = hashlib.sha256(b"muster: does this private key belong to its public key?").digest()
_FLAGS = {
    "sensitive": Attribute.SENSITIVE,
    "extractable": Attribute.EXTRACTABLE,
    "always_sensitive": Attribute.ALWAYS_SENSITIVE,
    "never_extractable": Attribute.NEVER_EXTRACTABLE,
    "local": Attribute.LOCAL,
    "needs_login": Attribute.PRIVATE,
}


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A private key as the token describes it. A flag that the token does not answer has the unsafe value."""

    label: str
    id: bytes
    kind: str  # "ec", "rsa", "ec_edwards", …
    sensitive: bool
    extractable: bool
    always_sensitive: bool
    never_extractable: bool
    local: bool
    needs_login: bool


@dataclass(frozen=True, slots=True)
class EcKeyReference:
    """Which key pair: enough to find it again after the token came back, and to prove that it is the same."""

    label: str
    id: bytes
    public_key: ec.EllipticCurvePublicKey

    @property
    def coordinate_bytes(self) -> int:
        """The length of r and of s in a raw signature."""
        return (self.public_key.key_size + 7) // 8


def find_keys(session: pkcs11.Session, kind: ObjectClass, **wanted: str | bytes) -> list[Any]:
    """The token's own objects of this class; session copies (see `bind_private_key`) are left out."""
    template: dict[Attribute, Any] = {Attribute.CLASS: kind, Attribute.TOKEN: True}
    template |= {Attribute[name.upper()]: value for name, value in wanted.items()}
    return list(session.get_objects(template))  # a list: an unfinished search would keep the session busy


def find_ec_key(session: pkcs11.Session, label: str) -> EcKeyReference:
    """The EC key pair of this label; the two halves are not yet proven to belong together.

    Raises:
        pkcs11.NoSuchKey: one half is missing, which while logged out proves nothing.
        KeyAmbiguous, KeyUnsupported: several of them; not an EC key on a known curve.
    """
    private = _only(find_keys(session, ObjectClass.PRIVATE_KEY, label=label), f"private keys {label!r}")
    identity = private[Attribute.ID]
    public = _only(find_keys(session, ObjectClass.PUBLIC_KEY, label=label), f"public keys {label!r}")
    if private[Attribute.KEY_TYPE] != KeyType.EC or public[Attribute.KEY_TYPE] != KeyType.EC:
        raise KeyUnsupported(f"key {label!r} is no elliptic curve key")
    return EcKeyReference(label, identity, decode_ec_point(public[Attribute.EC_PARAMS], public[Attribute.EC_POINT]))


def bind_private_key(session: pkcs11.Session, key: EcKeyReference, *, copy: bool) -> Any:  # noqa: ANN401 (a class that python-pkcs11 makes at run time)
    """A handle on the private key for this session, proven by a signature to belong to `key.public_key`.

    Raises:
        pkcs11.NoSuchKey, KeyAmbiguous: see `find_ec_key`. KeyPairMismatch: another key answers to the name.
    """
    found = find_keys(session, ObjectClass.PRIVATE_KEY, label=key.label, id=key.id)
    handle = _only(found, f"private keys {key.label!r}")
    # SoftHSM lets no copy of an unmodifiable key differ, even in TOKEN: such a key is used where it is.
    if copy and _flag(handle, Attribute.MODIFIABLE, unsafe=False):
        # SoftHSM reads a token object's file for each signature, a session object stays in memory. The copy inherits
        # SENSITIVE and not EXTRACTABLE, which a copy may only tighten (PKCS#11 2.40, section 4.1.3).
        handle = handle.copy({Attribute.TOKEN: False})
    signature = raw_to_der(handle.sign(_PROBE, mechanism=Mechanism.ECDSA), key.coordinate_bytes)
    try:
        key.public_key.verify(signature, _PROBE, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature as error:
        raise KeyPairMismatch(f"private key {key.label!r} does not belong to its public key") from error
    return handle


def describe_key(key: Any) -> KeyInfo:  # noqa: ANN401 (as above)
    """Read a private key's label, id, kind and protection."""
    flags = {name: _flag(key, attribute, unsafe=name == "extractable") for name, attribute in _FLAGS.items()}
    kind = key[Attribute.KEY_TYPE]
    return KeyInfo(
        label=key[Attribute.LABEL],
        id=key[Attribute.ID],
        kind=kind.name.lower() if isinstance(kind, KeyType) else f"{kind:#x}",
        **flags,
    )


def decode_ec_point(parameters: bytes, point: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of CKA_EC_PARAMS and CKA_EC_POINT; the point is proven to lie on the curve.

    Raises:
        KeyUnsupported: not P-256, P-384 or P-521 by name, or not a point of it.
    """
    curve = CURVES.get(parameters)
    if curve is None:
        raise KeyUnsupported("the curve is none of P-256, P-384, P-521")
    size = 1 + 2 * ((curve.key_size + 7) // 8)
    header, raw = point[:-size], point[-size:]
    # PKCS#11 2.40, section 2.3.3 wants the point inside an OCTET STRING; some tokens give it bare.
    octet_string = bytes([0x04, size]) if size < LONG_FORM else bytes([0x04, 0x81, size])
    if len(raw) != size or header not in (b"", octet_string):
        raise KeyUnsupported("the public key is neither an uncompressed point nor one in an OCTET STRING")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, raw)
    except ValueError as error:
        raise KeyUnsupported("the public key is not a point of its curve") from error


def raw_to_der(raw: bytes, coordinate_bytes: int) -> bytes:
    """The ECDSA-Sig-Value (RFC 3279, section 2.2.3) of the r ‖ s that PKCS#11 gives."""
    if len(raw) != 2 * coordinate_bytes:
        raise TokenRefused(f"the token gave a signature of {len(raw)} bytes instead of {2 * coordinate_bytes}")
    r, s = raw[:coordinate_bytes], raw[coordinate_bytes:]
    return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


def _only(found: list[Any], what: str) -> Any:  # noqa: ANN401 (as above)
    if not found:
        raise pkcs11.NoSuchKey(f"no {what}")
    # SoftHSM shows one object twice for a moment after its token came back. Which of two of one id is taken does not
    # matter: the key pair is proven by a signature.
    if len(found) > 1 and (len(ids := {bytes(key[Attribute.ID]) for key in found}) > 1 or ids == {b""}):
        raise KeyAmbiguous(f"{len(found)} {what}")
    return found[0]


def _flag(key: Any, attribute: Attribute, *, unsafe: bool) -> bool:  # noqa: ANN401 (as above)
    try:
        return bool(key[attribute])
    except pkcs11.AttributeTypeInvalid:
        return unsafe
