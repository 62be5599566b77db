"""A key ceremony's part in the token: keys made together or not at all, and the check that none can leave.

Proves what a token says about itself and its keys, not that it is honest or is hardware.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from pkcs11 import MechanismFlag, ObjectClass

from hsm.errors import HsmError, KeyExists, KeyNotProtected
from hsm.key import HsmKey
from hsm.kinds import KeyKind, generation
from hsm.module import serial_of
from hsm.objects import KeyInfo, find_keys
from hsm.sessions import LOST, Seat
from hsm.token import Token

# What each flag has to be, and what it means when it is not (PKCS#11 2.40, section 4.9).
_REQUIRED = (
    ("sensitive", True, "can be read in plain text"),
    ("extractable", False, "can be wrapped and taken out"),
    ("always_sensitive", True, "could once be read in plain text"),
    ("never_extractable", True, "could once be taken out"),
    ("local", True, "was made elsewhere and brought in"),
    ("needs_login", True, "can be used without the PIN"),
)


def check_protection(token: Token) -> list[KeyInfo]:
    """The token's private keys, every one of them protected.

    Proves what the token says about itself, not that the token is honest or is hardware.

    Raises:
        KeyNotProtected: names every key and everything that is wrong with it.
    """
    keys = token.keys()
    found = [f"{key.label!r} {fault}" for key in keys for fault in protection_faults(key)]
    if found:
        raise KeyNotProtected(f"token {token.label!r}: key " + "; key ".join(found))
    return keys


def protection_faults(key: KeyInfo) -> list[str]:
    """Everything that is wrong with this key's protection; empty if nothing is."""
    return [meaning for name, wanted, meaning in _REQUIRED if getattr(key, name) is not wanted]


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """A token as it describes itself: what a person compares with the label on the device."""

    label: str
    serial: str
    manufacturer: str
    model: str
    hardware: str
    firmware: str
    module: str


def token_facts(token: Token) -> TokenFacts:
    """What this token says it is. Raises: TokenUnavailable, TokenRefused."""

    def describe(seat: Seat) -> TokenFacts:
        said = seat.session.token
        hardware, firmware = (".".join(map(str, version)) for version in (said.hardware_version, said.firmware_version))
        module = str(token.settings.path)
        return TokenFacts(
            token.label, serial_of(said).strip(), said.manufacturer_id, said.model, hardware, firmware, module
        )

    return token._sessions.run(describe)  # noqa: SLF001  one package: no more of a token is shown to its users


def kinds_not_made(token: Token, kinds: Collection[KeyKind]) -> list[str]:
    """Those kinds of keys that the token says it does not make. Raises: TokenUnavailable, TokenRefused."""

    def ask(seat: Seat) -> list[str]:
        slot = seat.session.token.slot
        offered = slot.get_mechanisms()
        made = {
            kind
            for kind in kinds
            if (mechanism := generation(kind).mechanism) in offered
            and slot.get_mechanism_info(mechanism).flags & MechanismFlag.GENERATE_KEY_PAIR
        }
        return sorted(kind.value for kind in set(kinds) - made)

    return token._sessions.run(ask)  # noqa: SLF001  the same


def remove_keys(token: Token, label: str) -> int:
    """Destroy the private and public keys of this label. How many objects those were.

    Raises: TokenRefused, TokenUnavailable.
    """

    def destroy(seat: Seat) -> int:
        seat.require_login()
        session = seat.session.token.open(rw=True)
        try:
            found = [
                key
                for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
                for key in find_keys(session, kind, label=label)
            ]
            for key in found:
                key.destroy()
            return len(found)
        finally:
            with suppress(*LOST):  # a session that is lost needs no closing
                session.close()

    return token._sessions.run(destroy)  # noqa: SLF001  the same


class Making:
    """Keys that belong together. Used as a context: where it ends by an error, those that were made are destroyed.

    What cannot be destroyed is named in the error, so that a person can.
    """

    def __init__(self) -> None:
        self._made: list[tuple[Token, str]] = []

    def make(self, token: Token, label: str, kind: KeyKind) -> HsmKey:
        """One key pair, made inside the token. Raises: KeyExists, HsmError."""
        there = token.keys()
        if any(key.label == label for key in there):
            raise KeyExists(f"token {token.label!r} already has a key {label!r}")
        self._made.append((token, label))
        try:
            return token.generate_key(label, kind)
        except KeyExists:  # a public key of somebody else's: not ours to destroy
            self._made.pop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        left = []
        for token, label in reversed(self._made):
            try:
                remove_keys(token, label)
            except HsmError as why:
                left.append(f"key {label!r} of token {token.label!r} ({why})")
        if left:
            raise HsmError(f"{error}; made by this ceremony and still there, remove: {'; '.join(left)}") from error
