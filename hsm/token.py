"""One PKCS#11 token and the keys in it, opened once a process."""

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute, MechanismFlag, ObjectClass

from hsm.errors import KeyExists, KeyNotFound, KeyUnsupported
from hsm.key import HsmEcKey, HsmKey, key_in
from hsm.kinds import KeyKind, KeyReference, Signing, generation
from hsm.module import ModuleSettings, TokenName
from hsm.objects import KeyInfo, bind_private_key, describe_key, find_key, find_keys, sign_raw
from hsm.sessions import LOST, Seat, Sessions

_KIND_OF_CURVE = {"secp256r1": KeyKind.P256, "secp384r1": KeyKind.P384, "secp521r1": KeyKind.P521}


class Token:
    """A PKCS#11 token by its label, or by more (`TokenName`).

    Thread-safe; open it in the process that uses it (spawn, never fork).

    `read_pin` is called at each login and only then; what it returns is kept nowhere. `sessions` bounds the calls in
    the token at once. `wait_seconds` is how long a call waits for a free session, or for the others to leave before a
    recovery; a call that is inside the token cannot be cut short. A token that is gone is asked again after a pause
    that doubles from 0.25 s to 2 s; meanwhile every call fails at once.
    """

    def __init__(
        self,
        settings: ModuleSettings,
        label: str | TokenName,
        read_pin: Callable[[], str],
        *,
        sessions: int = 8,
        wait_seconds: float = 5.0,
        serial: str | None = None,
    ) -> None:
        name = label if isinstance(label, TokenName) else TokenName(label, serial)
        self.settings = settings
        self._sessions = Sessions(settings, name, read_pin, count=sessions, wait_seconds=wait_seconds)
        self.label = self._sessions.label

    def open(self) -> None:
        """Load the module if needed and log in. Opening twice is opening once.

        Raises:
            WrongPin: now or at an earlier call; the token was asked at most once. PinUnreadable: it was not asked.
            TokenNotFound, TokenAmbiguous, TokenUnavailable, ModuleUnusable; TokenExists: open here already.
        """
        self._sessions.open()

    def close(self) -> None:
        """Log out, close the sessions, and give the module back. A closed token may be opened again.

        Raises:
            TokenUnavailable: a call hangs in the module. The token stays open; close it again later.
        """
        self._sessions.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Token {self.label!r} in {self.settings.path}>"

    @property
    def signatures(self) -> int:
        """How many signatures were made for callers (the probe that proves a key pair is not counted)."""
        return self._sessions.signatures

    def key(self, label: str | None = None, *, identity: bytes | None = None) -> HsmKey:
        """The key pair of this label, or CKA_ID, or both, proven by a signature to be a pair.

        Raises:
            KeyNotFound, KeyAmbiguous, KeyUnsupported, KeyPairMismatch; TokenUnavailable: try again later.
        """
        if label is None and identity is None:
            raise KeyUnsupported("a key is named by its label, its id, or both")

        def find(seat: Seat) -> KeyReference:
            seat.require_login()
            reference = find_key(seat.session, label, identity)
            self._bound(seat, reference)
            return reference

        return key_in(self, self._sessions.run(find))

    def ec_key(self, label: str) -> HsmEcKey:
        """The EC key pair of this label. Raises: as `key`; KeyUnsupported for another kind."""
        key = self.key(label)
        if not isinstance(key, HsmEcKey):
            raise KeyUnsupported(f"key {label!r} is no elliptic curve key")
        return key

    def keys(self) -> list[KeyInfo]:
        """All private keys of the token, by label. An empty list is believed of a fresh login only."""

        def describe(seat: Seat) -> list[KeyInfo]:
            seat.require_login()
            found = find_keys(seat.session, ObjectClass.PRIVATE_KEY)
            if not found:
                raise pkcs11.NoSuchKey("no private key at all")
            return sorted((describe_key(key) for key in found), key=lambda info: (info.label, info.id))

        try:
            return self._sessions.run(describe)
        except KeyNotFound:
            return []

    def generate_key(self, label: str, kind: KeyKind = KeyKind.P256) -> HsmKey:
        """Make a key pair that stays in the token: sensitive, not extractable, for signing.

        Raises:
            KeyExists: a public or private key of this label is there. KeyUnsupported: the label.
            TokenRefused: what the token said, also where it makes no key of this kind. TokenUnavailable.
        """
        if not label or not label.isprintable():
            raise KeyUnsupported("a key label is printable text")
        self._sessions.run(lambda seat: self._generate(seat, label, kind))
        return self.key(label)

    def generate_ec_key(self, label: str, curve: ec.EllipticCurve | None = None) -> HsmEcKey:
        """The same for an EC key, on P-256 unless told. Raises: as `generate_key`; KeyUnsupported: the curve."""
        kind = _KIND_OF_CURVE.get((curve or ec.SECP256R1()).name)
        if kind is None:
            raise KeyUnsupported("the curve is none of P-256, P-384, P-521")
        key = self.generate_key(label, kind)
        assert isinstance(key, HsmEcKey)  # noqa: S101  for mypy: the kind says so
        return key

    def sign(self, key: KeyReference, data: bytes, how: Signing) -> bytes:
        """The raw signature over what this mechanism takes. The keys of `hsm.key` are the usual way.

        Raises:
            TokenUnavailable: try again later. WrongPin, KeyNotFound, KeyPairMismatch, TokenRefused: do not.
        """

        def sign(seat: Seat) -> bytes:
            signature = sign_raw(self._bound(seat, key), data, how)
            seat.signatures += 1
            return signature

        return self._sessions.run(sign)

    def _bound(self, seat: Seat, key: KeyReference) -> Any:  # noqa: ANN401 (a class that python-pkcs11 makes at run time)
        name = (key.label, key.id)
        if name not in seat.keys:
            seat.require_login()
            seat.keys[name] = bind_private_key(seat.session, key, copy=self.settings.session_copies)
        return seat.keys[name]

    def _generate(self, seat: Seat, label: str, kind: KeyKind) -> None:
        seat.require_login()
        for half in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            if find_keys(seat.session, half, label=label):
                raise KeyExists(f"token {self.label!r} already has a key {label!r}")
        how = generation(kind)
        session = seat.session.token.open(rw=True)
        try:
            session.create_domain_parameters(how.key_type, how.template, local=True).generate_keypair(
                id=session.generate_random(128),
                label=label,
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                mechanism=how.mechanism,
                private_template={Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
                public_template=how.template | {Attribute.MODIFIABLE: False},
            )
        finally:
            with suppress(*LOST):  # a session that is lost needs no closing
                session.close()
