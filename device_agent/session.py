"""One session with the service: what goes up is numbered and signed, what comes down is judged before it is believed.

A hostile broker can delay a message or drop it, nothing else: a command is by a command key of the trust bundle, for
this device, for this very session, of a higher sequence than the one before, and not expired by trusted time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from device_agent import log, state
from device_agent.state import StateDamaged
from wire.binding import key_id
from wire.codec import MalformedMessage, b64url, decode, encode
from wire.envelope import (
    MAX_ENVELOPE,
    EnvelopeNotAuthentic,
    Verify,
    open_envelope,
    seal,
    unverified_payload_type,
)
from wire.messages import DOWN, PAYLOAD_TYPE, Message

ID_BYTES = 16
LIFETIME = timedelta(hours=1)
"""How long a message of this device may wait in a broker."""
_NUMBER_MOST = 1024
_KINDS = {PAYLOAD_TYPE[kind]: kind for kind in DOWN}


class Dropped(Exception):
    """A message from the broker that is not obeyed; the message is one line."""


class NotACommand(Dropped):
    """It is not a message of this protocol."""


class NotByTheService(Dropped):
    """It is not signed by a command key of the trust bundle."""


class ForAnotherDevice(Dropped):
    """It is addressed to another device."""


class OfAnotherSession(Dropped):
    """It was signed for another session: an old one, replayed, or one that this agent never had."""


class OutOfOrder(Dropped):
    """Its sequence is not higher than that of a command that was obeyed before."""


class TooLate(Dropped):
    """Its time is over."""


@dataclass(frozen=True, slots=True)
class Signer:
    """The device's key in use: `sign` gives ECDSA over SHA-256, DER."""

    spki: bytes
    sign: Callable[[bytes], bytes]


class Session:
    """From one start of the agent to its end, across reconnects. `number` rises with each start."""

    def __init__(self, device_id: str, number: int, entropy: Callable[[int], bytes]) -> None:
        self.device_id = device_id
        self.number = number
        self.id = b64url(entropy(ID_BYTES))
        self.last_sequence = 0
        self._entropy = entropy
        self._up_sequence = 0

    def seal_up(self, kind: type[Message], signer: Signer, now: datetime, **fields: Any) -> tuple[str, bytes]:  # noqa: ANN401  the fields of `kind`
        """A new message of this kind as a signed envelope, and its id. Raises: TpmFailure."""
        self._up_sequence += 1
        message_id = b64url(self._entropy(ID_BYTES))
        message = kind(
            message_id=message_id,
            device=self.device_id,
            session=self.id,
            sequence=self._up_sequence,
            not_after=now + LIFETIME,
            **fields,
        )
        return message_id, seal(PAYLOAD_TYPE[kind], encode(message), key_id(signer.spki), signer.sign)

    def open_down(self, envelope: bytes, verify: Verify, now: datetime) -> Message:
        """The command, once it may be obeyed; its sequence then counts as seen. Raises: Dropped, by name."""
        message = _authentic(envelope, verify)
        if message.device != self.device_id:
            raise ForAnotherDevice(f"is for {message.device}")
        if message.session != self.id:
            raise OfAnotherSession("is of another session")
        if message.sequence <= self.last_sequence:
            raise OutOfOrder(f"has sequence {message.sequence}, not above {self.last_sequence}")
        if now > message.not_after:
            raise TooLate(f"was to be obeyed until {message.not_after:%Y-%m-%dT%H:%M:%SZ}")
        self.last_sequence = message.sequence
        return message


def _authentic(envelope: bytes, verify: Verify) -> Message:
    if len(envelope) > MAX_ENVELOPE:
        raise NotACommand(f"is {len(envelope)} bytes, more than {MAX_ENVELOPE}")
    try:
        kind = _KINDS.get(unverified_payload_type(envelope))
        if kind is None:
            raise NotACommand("is of no kind that this agent knows")
        payload = open_envelope(envelope, PAYLOAD_TYPE[kind], verify)
        return decode(kind, payload, limit=MAX_ENVELOPE, ignore_unknown=True)
    except MalformedMessage as error:
        raise NotACommand(str(error)) from error
    except EnvelopeNotAuthentic as error:
        raise NotByTheService("is not signed by a command key of the trust bundle") from error


@dataclass(frozen=True, slots=True)
class _Number:
    number: int


def next_session_number(state_dir: Path, now: datetime) -> int:
    """A number above that of every session before, on disk before it is used.

    The clock takes part, so that a lost file does not make the service refuse this device's hello as an old one.
    """
    path = state_dir / "session.json"
    try:
        before = state.read_value(_Number, path, _NUMBER_MOST)
    except StateDamaged as damage:
        log.warning("session-number-damaged", reason=damage)
        before = None
    number = max(0 if before is None else before.number + 1, int(now.timestamp()))
    state.write_value(path, _Number(number))
    return number
