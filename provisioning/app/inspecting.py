"""`muster hsm list|test|audit|bench`: the tokens that the configuration names, opened one by one and looked at."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature

from hsm.ceremony import TokenFacts, protection_faults, token_facts
from hsm.errors import HsmError
from hsm.key import HsmKey, sign_message, verify_message
from hsm.objects import KeyInfo
from hsm.token import Token
from provisioning.app.places import TokenPlace, token_place, token_places
from provisioning.config import Config, DataDirectory

_MESSAGE = b"muster hsm: a signature that goes nowhere"
_BITS = {"P-256": 256, "P-384": 384, "P-521": 521, "Ed25519": 255}
BATCH = 16
"""Signatures between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class KeyFindings:
    """A key: what the token says about it, and what was found. `rate`: signatures a second, where that was asked."""

    info: KeyInfo
    faults: tuple[str, ...] = ()
    rate: float | None = None

    @property
    def bits(self) -> int | None:
        """Its size; None for a kind that is not used here."""
        algorithm = self.info.algorithm
        return int(algorithm.removeprefix("RSA-")) if algorithm.startswith("RSA-") else _BITS.get(algorithm)


@dataclass(frozen=True, slots=True)
class TokenFindings:
    """A token and its keys; `failure` says why it was not looked at."""

    place: TokenPlace
    facts: TokenFacts | None
    keys: tuple[KeyFindings, ...]
    failure: str = ""

    @property
    def label(self) -> str:
        """What the token calls itself, or was called."""
        return str(self.place.name).strip("'") if self.facts is None else self.facts.label

    @property
    def holds(self) -> bool:
        """Was it looked at, and no fault found?"""
        return not self.failure and not any(key.faults for key in self.keys)


def listed(_token: Token, info: KeyInfo) -> KeyFindings:
    """What the token says about the key, without a verdict."""
    return KeyFindings(info)


def audited(_token: Token, info: KeyInfo) -> KeyFindings:
    """Everything that is wrong with the key's protection."""
    return KeyFindings(info, tuple(protection_faults(info)))


def tested(token: Token, info: KeyInfo) -> KeyFindings:
    """Does the key sign, and does its signature verify?"""
    try:
        key = _found(token, info)
        verify_message(key.public_key(), _MESSAGE, sign_message(key, _MESSAGE))
    except HsmError as error:
        return KeyFindings(info, (str(error),))
    except InvalidSignature:
        return KeyFindings(info, ("its signature does not verify",))
    return KeyFindings(info)


def measured(seconds: float, threads: int) -> Callable[[Token, KeyInfo], KeyFindings]:
    """How many signatures a second, by so many threads and for so long."""

    def measure(token: Token, info: KeyInfo) -> KeyFindings:
        try:
            key = _found(token, info)
            begun = time.monotonic()
            with ThreadPoolExecutor(threads) as pool:
                made = sum(pool.map(lambda _: _sign_until(key, begun + seconds), range(threads)))
            return KeyFindings(info, rate=made / (time.monotonic() - begun))
        except HsmError as error:
            return KeyFindings(info, (str(error),))

    return measure


def examine(
    directory: DataDirectory,
    config: Config,
    tokens: Sequence[str],
    look: Callable[[Token, KeyInfo], KeyFindings],
    *,
    label: str | None = None,
) -> Iterator[TokenFindings]:
    """Open these tokens (all that the configuration names, if none are given), and look at their keys.

    `label`: only at keys of this label. One token at a time is open. Raises: ConfigurationRefused.
    """
    places = [token_place(directory, config, token) for token in tokens] or token_places(directory, config)
    for place in places:
        token = Token(place.module, place.name, place.read_pin, sessions=config.hsm.sessions)
        try:
            token.open()
            keys = [info for info in token.keys() if label in (None, info.label)]  # noqa: SIM118 (no dict)
            found = TokenFindings(place, token_facts(token), tuple(look(token, info) for info in keys))
        except (HsmError, OSError) as error:
            found = TokenFindings(place, None, (), str(error))
        finally:
            with suppress(HsmError):  # what hangs is said above
                token.close()
        yield found


def _found(token: Token, info: KeyInfo) -> HsmKey:
    return token.key(info.label or None, identity=info.id or None)


def _sign_until(key: HsmKey, end: float) -> int:
    made = 0
    while time.monotonic() < end:
        for _ in range(BATCH if made else 1):
            sign_message(key, _MESSAGE)
            made += 1
    return made
