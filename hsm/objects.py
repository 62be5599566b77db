"""What stands in a token: finding keys, reading their attributes, proving them. One session at a time."""

from dataclasses import dataclass
from typing import Any

import pkcs11
from cryptography.exceptions import InvalidSignature
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm.errors import KeyAmbiguous, KeyPairMismatch, KeyUnsupported
from hsm.key import key_in, sign_message, verify_message
from hsm.kinds import (
    KeyReference,
    PublicKey,
    Signing,
    decode_ec_point,
    decode_edwards_point,
    decode_rsa,
    kind_of_parameters,
    reference,
)

_PROBE = b"muster: does this private key belong to its public key?"
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
    algorithm: str  # "P-256", "RSA-3072", "Ed25519", …; empty where it is none that is used here
    sensitive: bool
    extractable: bool
    always_sensitive: bool
    never_extractable: bool
    local: bool
    needs_login: bool


def find_keys(session: pkcs11.Session, kind: ObjectClass, **wanted: str | bytes) -> list[Any]:
    """The token's own objects of this class; session copies (see `bind_private_key`) are left out."""
    template: dict[Attribute, Any] = {Attribute.CLASS: kind, Attribute.TOKEN: True}
    template |= {Attribute[name.upper()]: value for name, value in wanted.items()}
    return list(session.get_objects(template))  # a list: an unfinished search would keep the session busy


def find_key(session: pkcs11.Session, label: str | None, identity: bytes | None = None) -> KeyReference:
    """The key pair of this label, or this id, or both; the two halves are not yet proven to belong together.

    Raises:
        pkcs11.NoSuchKey: one half is missing, which while logged out proves nothing.
        KeyAmbiguous, KeyUnsupported: several of them; not of a kind that is used here.
    """
    wanted = _name(label, identity)
    what = repr(label) if label is not None else f"with id {(identity or b'').hex()}"
    private = only(find_keys(session, ObjectClass.PRIVATE_KEY, **wanted), f"private keys {what}")
    identity = bytes(private[Attribute.ID])
    public = only(find_keys(session, ObjectClass.PUBLIC_KEY, **wanted), f"public keys {what}")
    kind = private[Attribute.KEY_TYPE]
    if kind != public[Attribute.KEY_TYPE]:
        raise KeyPairMismatch(f"private key {what} is of another kind than its public key")
    return reference(private[Attribute.LABEL], identity, _public_key(kind, public, what))


def _public_key(kind: Any, public: Any, what: str) -> PublicKey:  # noqa: ANN401 (a class that python-pkcs11 makes at run time)
    if kind == KeyType.EC:
        return decode_ec_point(public[Attribute.EC_PARAMS], public[Attribute.EC_POINT])
    if kind == KeyType.EC_EDWARDS:
        return decode_edwards_point(public[Attribute.EC_PARAMS], public[Attribute.EC_POINT])
    if kind == KeyType.RSA:
        return decode_rsa(public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT])
    raise KeyUnsupported(f"key {what} is neither of an elliptic curve nor RSA")


def bind_private_key(session: pkcs11.Session, key: KeyReference, *, copy: bool) -> Any:  # noqa: ANN401 (as above)
    """A handle on the private key for this session, proven by a signature to belong to `key.public_key`.

    Raises:
        pkcs11.NoSuchKey, KeyAmbiguous: see `find_key`. KeyPairMismatch: another key answers to the name.
    """
    found = find_keys(session, ObjectClass.PRIVATE_KEY, **_name(key.label, key.id))
    handle = only(found, f"private keys {key.label!r}")
    # SoftHSM lets no copy of an unmodifiable key differ, even in TOKEN: such a key is used where it is.
    if copy and _flag(handle, Attribute.MODIFIABLE, unsafe=False):
        # SoftHSM reads a token object's file for each signature, a session object stays in memory. The copy inherits
        # SENSITIVE and not EXTRACTABLE, which a copy may only tighten (PKCS#11 2.40, section 4.1.3).
        handle = handle.copy({Attribute.TOKEN: False})
    proof = key_in(_Handle(handle), key)
    try:
        verify_message(key.public_key, _PROBE, sign_message(proof, _PROBE))
    except InvalidSignature as error:
        raise KeyPairMismatch(f"private key {key.label!r} does not belong to its public key") from error
    return handle


class _Handle:
    """One key of one session as `hsm.key.Signs`."""

    label = ""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 (as above)
        self._handle = handle

    def sign(self, key: KeyReference, data: bytes, how: Signing) -> bytes:  # noqa: ARG002 (it is this handle's)
        """The raw signature."""
        return sign_raw(self._handle, data, how)


def sign_raw(handle: Any, data: bytes, how: Signing) -> bytes:  # noqa: ANN401 (as above)
    """C_SignInit, C_Sign."""
    signature: bytes = handle.sign(
        data, mechanism=how.mechanism, mechanism_param=how.parameters, buffer_size=how.buffer_bytes
    )
    return signature


def describe_key(key: Any) -> KeyInfo:  # noqa: ANN401 (as above)
    """Read a private key's label, id, kind and protection."""
    flags = {name: _flag(key, attribute, unsafe=name == "extractable") for name, attribute in _FLAGS.items()}
    kind = key[Attribute.KEY_TYPE]
    return KeyInfo(
        label=key[Attribute.LABEL],
        id=key[Attribute.ID],
        kind=kind.name.lower() if isinstance(kind, KeyType) else f"{kind:#x}",
        algorithm=_algorithm(kind, key),
        **flags,
    )


def _algorithm(kind: Any, key: Any) -> str:  # noqa: ANN401 (as above)
    try:
        if kind == KeyType.RSA:
            return f"RSA-{int.from_bytes(key[Attribute.MODULUS], 'big').bit_length()}"
        return kind_of_parameters(key[Attribute.EC_PARAMS]) if kind in (KeyType.EC, KeyType.EC_EDWARDS) else ""
    except pkcs11.AttributeTypeInvalid:
        return ""


def _name(label: str | None, identity: bytes | None) -> dict[str, str | bytes]:
    named: dict[str, str | bytes | None] = {"label": label, "id": identity}
    return {attribute: value for attribute, value in named.items() if value is not None}


def only(found: list[Any], what: str) -> Any:  # noqa: ANN401 (as above)
    """The one that was found; what is there twice under one id counts once. Raises: NoSuchKey, KeyAmbiguous."""
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
