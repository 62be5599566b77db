"""The service's keys: in tokens, used from threads of their own, each signature with a deadline.

A key may be in several tokens: the first that works signs. A token that fails is left out and tried again in the
background; a token that hangs costs its callers their deadline once, and the later ones nothing. Nothing here needs a
restart: see `hsm.sessions` for what a lost token takes.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.errors import HsmError, KeyPairMismatch, TokenUnavailable
from hsm.key import HsmEcKey, HsmKey, sign_message, verify_message
from hsm.kinds import ECDSA, EcKeyReference, KeyReference, PublicKey, Signing, reference
from hsm.token import Token
from provisioning.app.places import KeyPlace, TokenPlace, key_places
from provisioning.app.signers import Signers
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.refusals import SigningUnavailable
from wire.binding import key_id

CLOSING_SECONDS = 1.0
START_SECONDS = 10.0
"""How long a token may take to be opened at the start, and each key to be found in it."""
PROBE_SECONDS = 0.5
"""How often a token that failed is tried, while another one stands in for it."""
PAUSE_SECONDS = 1.0
"""After an opening that failed."""
DIGESTS_MOST = 1_000_000
"""More messages are not remembered between two flushes; they are counted."""
SERVICE_KEYS = ("issuing", "command", "log", "results", "trust-online", "director-online")
"""What a new installation has."""
_PROBE = b"muster: does this token sign?"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Signed:
    """What one key signed since it was last asked: how often, and the SHA-256 of the messages, as far as known."""

    key_id: str
    name: str
    count: int
    digests: tuple[bytes, ...]


class ServedToken:
    """A token, the threads that call into it, and whether it failed last."""

    def __init__(self, place: TokenPlace, config: Config) -> None:
        deadline = config.hsm.deadline_milliseconds / 1000
        # A module for one thread at a time gets one thread: more would only wait inside.
        threads = 1 if place.module.locking == "null" else config.hsm.sessions
        self.place = place
        self.signers = Signers(str(place.name), threads, deadline)
        self.failed = False
        self._token = Token(place.module, place.name, place.read_pin, sessions=threads, wait_seconds=deadline)
        self._opening = threading.Lock()
        self._opened = False
        self._failure: HsmError | None = None
        self._closed_until = 0.0
        self._is_left = False
        self._probed_at = 0.0

    @property
    def is_failing(self) -> bool:
        """Is it of no use to ask it now?"""
        return self.failed or self.signers.hangs

    def opened(self) -> Token:
        """The token, logged in. Call it on one of its threads. Raises: HsmError; it is asked again after a pause."""
        if self._opened:
            return self._token
        with self._opening:
            if self._failure is not None and time.monotonic() < self._closed_until:
                raise type(self._failure)(str(self._failure))
            try:
                self._token.open()
            except HsmError as error:
                self._failure, self._closed_until = error, time.monotonic() + PAUSE_SECONDS
                raise
            if self._is_left:  # while it was being opened
                self._token.close()
                raise TokenUnavailable(f"{self.place} is closed")
            self._opened = True
        return self._token

    def succeeded(self) -> None:
        """It did what it was asked for."""
        if self.failed:
            self.failed = False
            _log.info("keys.token_serves", place=str(self.place))

    def refused(self, why: object) -> None:
        """It did not."""
        if not self.failed:
            self.failed = True
            _log.warning("keys.token_fails", place=str(self.place), why=str(why))

    def is_to_be_probed(self) -> bool:
        """Has it failed, and was it not tried a moment ago? Whoever is told so tries it."""
        now = time.monotonic()
        if not self.failed or self.signers.hangs or now - self._probed_at < PROBE_SECONDS:
            return False
        self._probed_at = now
        return True

    def close(self) -> None:
        """Log out. What hangs is left behind with its thread."""
        self._is_left = True
        self.signers.close(CLOSING_SECONDS)
        try:
            self._token.close()
        except HsmError as error:
            _log.warning("keys.token_left_open", place=str(self.place), why=str(error))


class ServedKey:
    """One key, in the tokens where it is. All of them hold the same key, or do not count."""

    def __init__(self, name: str, holders: list[tuple[ServedToken, KeyPlace]]) -> None:
        self.name = name
        self.holders = [_Holder(self, token, place) for token, place in holders]
        self._guard = threading.Lock()
        self._public: PublicKey | None = None
        self._count, self._digests = 0, list[bytes]()

    @property
    def public_key(self) -> PublicKey:
        """Known since the first token showed it."""
        assert self._public is not None  # noqa: S101  nobody is given a key that was not found
        return self._public

    def agree(self, public_key: PublicKey, place: TokenPlace) -> None:
        """Raises: KeyPairMismatch, where another token showed another key."""
        with self._guard:
            self._public = self._public or public_key
            if self._public != public_key:
                raise KeyPairMismatch(f"key {self.name!r}: {place} holds another one than the other token")

    def turns(self, seconds: float) -> Iterator[tuple["_Holder", float]]:
        """Whom to ask, in order, and for how long; those that failed last come last."""
        if len(self.holders) == 1:
            yield self.holders[0], seconds
            return
        for holder in self.holders:
            if holder.token.is_to_be_probed():
                holder.token.signers.begin(holder.probe)
        for holder in sorted(self.holders, key=lambda holder: holder.token.is_failing):
            yield holder, seconds / len(self.holders)

    def count(self, digest: bytes | None) -> None:
        """One signature more, over a message of this SHA-256."""
        with self._guard:
            self._count += 1
            if digest is not None and len(self._digests) < DIGESTS_MOST:
                self._digests.append(digest)

    def take(self) -> Signed:
        """What was counted since it was last taken."""
        with self._guard:
            taken = self._count, tuple(self._digests)
            self._count, self._digests = 0, []
        spki = self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Signed(key_id(spki), self.name, *taken)

    def give_back(self, signed: Signed) -> None:
        """What was taken could not be stored."""
        with self._guard:
            self._count += signed.count
            self._digests += signed.digests[: max(0, DIGESTS_MOST - len(self._digests))]


class _Holder:
    """One key in one token. Its methods are called on the token's threads."""

    def __init__(self, key: ServedKey, token: ServedToken, place: KeyPlace) -> None:
        self.token = token
        self._of = key
        self._place = place
        self._found: HsmKey | None = None

    def find(self) -> HsmKey:
        """The key, proven by a signature. Raises: HsmError."""
        if self._found is None:
            found = self.token.opened().key(self._place.label, identity=self._place.id)
            self._of.agree(found.public_key(), self._place.token)
            self._found = found
        return self._found

    def sign(self, message: bytes) -> bytes:
        """A signature by the key's own algorithm, counted. Raises: HsmError."""
        signature = self._tried(lambda key: sign_message(key, message))
        self._of.count(hashlib.sha256(message).digest())
        return signature

    def sign_raw(self, data: bytes, how: Signing) -> bytes:
        """What a library has prepared, counted: nobody knows of which message. Raises: HsmError."""
        signature = self._tried(lambda key: key.sign_raw(data, how))
        self._of.count(None)
        return signature

    def probe(self) -> None:
        """Does it work again? The signature is over a text that is nothing else, and goes nowhere. Raises: HsmError."""
        signature = self._tried(lambda key: sign_message(key, _PROBE))
        try:
            verify_message(self._of.public_key, _PROBE, signature)
        except InvalidSignature as error:
            self.token.refused("its signature does not verify")
            raise KeyPairMismatch(f"key {self._of.name!r} in {self._place.token}") from error

    def _tried(self, work: Callable[[HsmKey], bytes]) -> bytes:
        try:
            signature = work(self.find())
        except HsmError as error:
            self.token.refused(error)
            raise
        self.token.succeeded()
        return signature


class _Bounded:
    """`hsm.key.Signs` for a library that signs on a thread of its own: it waits no longer than the deadline."""

    def __init__(self, key: ServedKey, seconds: float) -> None:
        self.label = key.name
        self._key = key
        self._seconds = seconds

    def sign(self, key: KeyReference, data: bytes, how: Signing) -> bytes:  # noqa: ARG002 (it is this key)
        """The raw signature. Raises: HsmError."""
        failure = TokenUnavailable(f"key {self.label!r} is in no token")
        for holder, seconds in self._key.turns(self._seconds):
            try:
                return holder.token.signers.do_within(partial(holder.sign_raw, data, how), seconds)
            except HsmError as error:
                holder.token.refused(error)
                failure = TokenUnavailable(str(error))
                failure.__cause__ = error
        raise failure


class HsmKeys:
    """`service.Keys` over the tokens that the configuration names.

    A key is named by an entry of `hsm.keys`, by its label in the service's token, or by a PKCS#11 URI (RFC 7512).
    """

    def __init__(self, directory: DataDirectory, config: Config, needed: Sequence[str] = SERVICE_KEYS) -> None:
        """Open the tokens and find the keys that the service cannot do without; others are found when they are used.

        Raises: HsmError, ConfigurationRefused, OSError.
        """
        self._directory, self._config = directory, config
        self._deadline = config.hsm.deadline_milliseconds / 1000
        self._tokens: dict[object, ServedToken] = {}
        self._keys: dict[str, ServedKey] = {}
        try:
            for name in dict.fromkeys(needed):
                self._keys[name] = self._found_at_start(name)
        except BaseException:
            self.close()
            raise

    async def sign(self, key: str, message: bytes) -> bytes:
        """A signature by the key's own algorithm (`hsm.key.sign_message`). Raises: SigningUnavailable."""
        found = self._keys.get(key) or await self._adopted(key)
        failure: BaseException | None = None
        for holder, seconds in found.turns(self._deadline):
            try:
                async with asyncio.timeout(seconds):
                    return await holder.token.signers.do(partial(holder.sign, message))
            except TimeoutError as error:
                holder.token.refused(f"no signature in {seconds:g} s")
                failure = error
            except HsmError as error:
                failure = error
        raise _unavailable(failure, self._deadline) from failure

    async def adopt(self, key: str) -> PublicKey:
        """Find a key that appeared after the start; its public half. Raises: SigningUnavailable."""
        return (self._keys.get(key) or await self._adopted(key)).public_key

    def public(self, key: str) -> PublicKey:
        """The public half of a key that was there at the start, or was adopted. Raises: KeyError."""
        return self._keys[key].public_key

    def key(self, key: str) -> HsmEcKey:
        """The key itself, where it is on a curve, for a library that signs with it: call that library on a thread.

        It raises TokenUnavailable where there is no signature within the deadline. Raises: KeyError.
        """
        found = self._keys[key]
        named = reference(key, b"", found.public_key)
        if not isinstance(named, EcKeyReference):
            raise KeyError(key)
        return HsmEcKey(_Bounded(found, self._deadline), named)

    def sign_prepared(self, key: str, data: bytes) -> bytes:
        """What a key on a curve makes of a digest that a library has prepared, as PKCS#11 gives it. On a thread.

        Raises: HsmError, KeyError.
        """
        found = self._keys[key]
        named = reference(key, b"", found.public_key)
        return _Bounded(found, self._deadline).sign(named, data, ECDSA)

    async def taken(self) -> list[Signed]:
        """`take_signatures`, as keys that are elsewhere have it."""
        return self.take_signatures()

    def take_signatures(self) -> list[Signed]:
        """What each key signed since this was last asked; keys that signed nothing are left out."""
        return [taken for taken in (key.take() for key in self._keys.values()) if taken.count]

    def give_back(self, signatures: list[Signed]) -> None:
        """These could not be stored: they are taken again."""
        for signed in signatures:
            self._keys[signed.name].give_back(signed)

    def close(self) -> None:
        """Log out everywhere. A signature that hangs in a module is left behind with its thread."""
        for token in self._tokens.values():
            token.close()

    def _served(self, name: str) -> ServedKey:
        holders = []
        for place in key_places(self._directory, self._config, name):
            token = self._tokens.get(place.token.identity)
            if token is None:
                token = self._tokens[place.token.identity] = ServedToken(place.token, self._config)
            holders.append((token, place))
        return ServedKey(name, holders)

    def _found_at_start(self, name: str) -> ServedKey:
        key = self._served(name)
        failure: HsmError | None = None
        found = 0
        for holder in key.holders:
            try:
                holder.token.signers.do_within(holder.find, START_SECONDS)
                found += 1
            except HsmError as error:
                holder.token.refused(error)
                failure = failure or error
        if failure is not None and not found:
            raise failure
        return key

    async def _adopted(self, name: str) -> ServedKey:
        failure: BaseException | None = None
        try:
            key = self._served(name)
        except (HsmError, ConfigurationRefused) as error:
            raise _unavailable(error, self._deadline) from error
        found = 0
        for holder, seconds in key.turns(self._deadline):
            try:
                async with asyncio.timeout(seconds):
                    await holder.token.signers.do(holder.find)
                found += 1
            except (HsmError, TimeoutError) as error:
                failure = error
        if not found:
            raise _unavailable(failure, self._deadline) from failure
        return self._keys.setdefault(name, key)


def _unavailable(failure: BaseException | None, deadline_seconds: float) -> SigningUnavailable:
    if isinstance(failure, TimeoutError):
        return SigningUnavailable(expected=f"a signature in {deadline_seconds:g} s", actual="none")
    return SigningUnavailable(expected="a signature", actual=failure or "no token")
