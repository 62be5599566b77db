"""The service's keys, as a worker has them: in a partner, which alone logs in to the tokens (`signer`).

The worker, which reads what strangers send, has no PIN in its memory (but one that is in its environment: `env:NAME`)
and no PKCS#11 module in its process. What it asks for is signed all the same, and counted: the partner cannot know what
a request deserves.
"""

import asyncio
import json
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from typing import cast

from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsm import errors
from hsm.errors import HsmError, TokenUnavailable, WrongPin
from hsm.key import HsmEcKey
from hsm.kinds import ECDSA, EcKeyReference, KeyReference, PublicKey, Signing, reference
from provisioning.app.keys import DIGESTS_MOST, Signed
from provisioning.app.partner import Partner, PartnerLost, PartnerRefused, Work
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.refusals import SigningUnavailable

SIGN, SIGN_PREPARED, ADOPT, TAKE = 1, 2, 3, 4
"""What a signer is asked for. `SIGN` and `SIGN_PREPARED`: a key's name (`named`), then what is to be signed."""
MARGIN_SECONDS = 5.0
"""The signer has the deadline of the tokens, and refuses by itself; one that says nothing for so much longer hangs."""
DIGEST_OCTETS = 32
BATCH = struct.Struct("<I")
"""Of counted signatures: which arrived last, as `TAKE` says, and which this answer is. They come until they arrived."""
_NAME = struct.Struct("<H")


def named(key: str, rest: bytes = b"") -> bytes:
    """A key's name, then the rest."""
    name = key.encode()
    return _NAME.pack(len(name)) + name + rest


def parted(content: bytes) -> tuple[str, bytes]:
    """The inverse of `named`."""
    (length,) = _NAME.unpack_from(content)
    end = _NAME.size + length
    return content[_NAME.size : end].decode(), content[end:]


def written(taken: Iterable[Signed]) -> bytes:
    """Counted signatures as a signer tells them."""
    return json.dumps([[one.key_id, one.name, one.count, b"".join(one.digests).hex()] for one in taken]).encode()


def read(content: bytes) -> list[Signed]:
    """The inverse of `written`."""
    return [
        Signed(key_id, name, count, tuple(_split(bytes.fromhex(digests))))
        for key_id, name, count, digests in json.loads(content)
    ]


def together(before: Iterable[Signed], after: Iterable[Signed]) -> list[Signed]:
    """Both, one entry a key."""
    by_name: dict[str, Signed] = {}
    for one in (*before, *after):
        if (known := by_name.get(one.name)) is None:
            by_name[one.name] = one
        else:
            digests = (*known.digests, *one.digests)[:DIGESTS_MOST]
            by_name[one.name] = replace(known, count=known.count + one.count, digests=digests)
    return list(by_name.values())


class PartnerKeys:
    """`service.Keys` by a signer. Made on the main thread, before the event loop that it serves."""

    def __init__(self, directory: DataDirectory, config: Config, needed: Sequence[str], core: int | None) -> None:
        """Start a signer on that core, and wait until it has found the needed keys.

        Raises: HsmError, ConfigurationRefused, OSError.
        """
        self._public: dict[str, PublicKey] = {}
        self._kept: list[Signed] = []
        self._arrived = 0
        arguments = [str(directory.root), *([] if core is None else ["--core", str(core)])]
        self._deadline = config.hsm.deadline_milliseconds / 1000 + MARGIN_SECONDS
        opening = json.dumps(list(dict.fromkeys(needed))).encode()
        work = Work("signer", "provisioning.app.signer", arguments, opening, self._deadline, _is_final)
        self._partner = Partner(work, self._opened)
        self._partner.start()
        try:
            self._partner.ready()
        except (PartnerLost, PartnerRefused) as failure:
            self._partner.close()
            raise _failure(str(failure)) from failure

    async def sign(self, key: str, message: bytes) -> bytes:
        """A signature by the key's own algorithm. Raises: SigningUnavailable."""
        return await self._asked(SIGN, named(key, message))

    async def adopt(self, key: str) -> PublicKey:
        """Find a key that appeared after the start; its public half. Raises: SigningUnavailable."""
        if key not in self._public:
            self._public[key] = cast("PublicKey", load_der_public_key(await self._asked(ADOPT, named(key))))
        return self._public[key]

    def public(self, key: str) -> PublicKey:
        """The public half of a key that was there at the start, or was adopted. Raises: KeyError."""
        return self._public[key]

    def key(self, key: str) -> HsmEcKey:
        """The key itself, where it is on a curve, for a library that signs with it on a thread, while the loop runs.

        It raises TokenUnavailable where there is no signature within the deadline. Raises: KeyError.
        """
        found = reference(key, b"", self._public[key])
        if not isinstance(found, EcKeyReference):
            raise KeyError(key)
        return HsmEcKey(_Prepared(key, self._partner, asyncio.get_running_loop(), self._deadline), found)

    async def taken(self) -> list[Signed]:
        """What each key signed since this was last asked; keys that signed nothing are left out.

        Raises: ConfigurationRefused, where no signer is started any more: a token refused the PIN.
        """
        if self._partner.given_up is not None:
            failure = _failure(self._partner.given_up)
            raise ConfigurationRefused(f"{failure}; look: muster doctor") from failure
        try:
            return self._read(await self._partner.ask(TAKE, BATCH.pack(self._arrived)))
        except PartnerLost:  # what it had counted is lost with it, as with a process that crashed
            return self._with_kept([])

    def take_signatures(self) -> list[Signed]:
        """The same, where no loop runs any more."""
        try:
            return self._read(self._partner.ask_now(TAKE, BATCH.pack(self._arrived)))
        except PartnerLost:
            return self._with_kept([])

    def give_back(self, signatures: list[Signed]) -> None:
        """These could not be stored: they are taken again."""
        self._kept += signatures

    def close(self) -> None:
        """The signer logs out and ends; what it counted is still to be taken."""
        self._kept = self.take_signatures()
        self._partner.close()

    async def _asked(self, kind: int, content: bytes) -> bytes:
        try:
            return await self._partner.ask(kind, content)
        except PartnerRefused as refused:
            raise SigningUnavailable(**json.loads(str(refused))) from refused
        except PartnerLost as lost:
            raise SigningUnavailable(expected="a signature", actual=lost) from lost

    def _opened(self, content: bytes) -> None:
        self._arrived = 0
        for name, spki in json.loads(content).items():
            self._public[name] = cast("PublicKey", load_der_public_key(bytes.fromhex(spki)))

    def _read(self, content: bytes) -> list[Signed]:
        (self._arrived,) = BATCH.unpack_from(content)
        return self._with_kept(read(content[BATCH.size :]))

    def _with_kept(self, taken: list[Signed]) -> list[Signed]:
        kept, self._kept = self._kept, []
        return together(kept, taken)


class SignedOnTheLoop(Exception):
    """A defect: who signs there waits for an answer that only the waiting loop could take."""


class _Prepared:
    """`hsm.key.Signs` for a library on a thread, by the partner of the event loop."""

    def __init__(self, label: str, partner: Partner, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.label = label
        self._seconds = seconds
        self._partner = partner
        self._loop = loop

    def sign(self, key: KeyReference, data: bytes, how: Signing) -> bytes:  # noqa: ARG002 (it is this key)
        """The raw signature. Raises: TokenUnavailable; SignedOnTheLoop, on a loop's thread."""
        if how is not ECDSA:
            raise TokenUnavailable(f"key {self.label!r} is on a curve")
        with suppress(RuntimeError):  # there is none
            asyncio.get_running_loop()
            raise SignedOnTheLoop(self.label)
        asked = asyncio.run_coroutine_threadsafe(self._partner.ask(SIGN_PREPARED, named(self.label, data)), self._loop)
        try:
            return asked.result(self._seconds + MARGIN_SECONDS)  # else for ever, where the loop stops before it hears
        except (PartnerLost, PartnerRefused, CancelledError, TimeoutError) as failure:
            raise TokenUnavailable(str(failure)) from failure


def _failure(told: str) -> HsmError | ConfigurationRefused:
    """Why a signer did not start, as it would be here."""
    try:
        name, text = json.loads(told)
    except ValueError:  # it said nothing: it ended, or hangs
        return TokenUnavailable(told)
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, HsmError):
        return kind(text)
    return ConfigurationRefused(text)


def _is_final(told: str) -> bool:
    """A wrong PIN is never tried again: tokens lock after a few attempts."""
    return isinstance(_failure(told), WrongPin)


def _split(digests: bytes) -> Iterable[bytes]:
    return (digests[at : at + DIGEST_OCTETS] for at in range(0, len(digests), DIGEST_OCTETS))
