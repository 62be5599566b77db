"""The device in conversation with its service: who it is, what it trusts, its session, and its line to the broker."""

import queue
from functools import lru_cache, partial
from typing import Any

from cryptography import x509

from device_agent import log
from device_agent.certificates import spki_of
from device_agent.device import Device
from device_agent.identity import Pair
from device_agent.mqtt import Event, Line
from device_agent.session import Session, Signer
from device_agent.signing import verifier
from device_agent.tpm import TpmFailure
from device_agent.trust import Trust
from wire.envelope import Verify
from wire.messages import Message


class Presence:
    """Everything that changes while the agent runs. Used by the agent's one thread."""

    def __init__(self, device: Device, trust: Trust, pair: Pair, session: Session) -> None:
        self.device = device
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.trust = trust
        self.pair = pair
        self.session = session
        self.verify: Verify = verifier(trust.bundle.command_keys)
        self.online = False
        self._line: Line | None = None

    def adopt_trust(self, trust: Trust) -> bool:
        """Uses a newer bundle from now on; is it another version?"""
        changed = trust.bundle != self.trust.bundle
        self.trust = trust
        self.verify = verifier(trust.bundle.command_keys)
        return changed

    @property
    def is_orphaned(self) -> bool:
        """Is the CA that issued the certificate in use one that the bundle names no more? Nobody accepts it then."""
        return is_orphan(self.pair, self.trust)

    def dial(self) -> None:
        """A new line with the pair in use. `Connected` or `Lost` follows. Raises: OSError (ssl.SSLError is one)."""
        self.hang_up()
        context = self.device.context(self.trust, self.pair)
        line = Line(self.pair.details.device_id, context, self.events, remedial=self.pair.is_quarantine)
        line.dial(self.pair.details.mqtt)
        self._line = line

    def is_mine(self, line: Line) -> bool:
        """Does an event come from the line in use, not from one that was given up?"""
        return line is self._line

    def hang_up(self) -> None:
        """Ends the line."""
        self.online = False
        if self._line is not None:
            if self._line.dropped:
                log.warning("messages-dropped", count=self._line.dropped)
            self._line.close()
            self._line = None

    def send(self, kind: type[Message], **fields: Any) -> None:  # noqa: ANN401  the fields of `kind`
        """Signs a message with the key in use and hands it to the broker; nothing while there is no line.

        Where the TPM does not sign, that is logged: it is as if the broker had lost the message.
        """
        if self._line is None or not self.online:
            return
        signer = Signer(self.pair.spki, partial(_sign, self.device, self.pair))
        try:
            message_id, envelope = self.session.seal_up(kind, signer, self.device.now(), **fields)
        except TpmFailure as failure:
            log.error("not-sent", kind=kind.__name__, reason=failure)
            return
        self._line.send(envelope)
        log.event("sent", kind=kind.__name__, id=message_id)


def is_orphan(pair: Pair, trust: Trust) -> bool:
    """Does the bundle name CAs, and not the one that issued this pair's certificate?"""
    keys, chain = trust.bundle.issuing_keys, pair.details.chain
    return bool(keys) and bool(chain) and _key_of(chain[0]) not in keys


@lru_cache(maxsize=8)
def _key_of(certificate: bytes) -> bytes:
    return spki_of(x509.load_der_x509_certificate(certificate))


def _sign(device: Device, pair: Pair, message: bytes) -> bytes:
    with device.tpm.open() as tpm:
        return tpm.sign(pair.key_pem, message)
