"""Rotation (docs/protocol.md, section 3): a new key, evidence, a new certificate, proven, then swapped.

    rotate command -> key + evidence on disk -> sent until answered -> certificate checked -> stored as next
    -> proven by a TLS connection -> swapped -> reconnected -> `installed`, signed by the new key

Each arrow is one durable step. After power loss the service sends its last command again, and the step that the disk
shows is done again: the old pair works until the swap, the new one from then on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from device_agent import log, state
from device_agent.certificates import Expectation, verify_issued
from device_agent.device import Device
from device_agent.evidence import log_digest
from device_agent.http import NotFound, ServiceRefused
from device_agent.identity import IdentityDetails, Pair
from device_agent.selftest import TlsKeyUnusable, prove_pair
from device_agent.tpm import DeviceKeyUnusable
from device_agent.trust import Trust
from wire.codec import Cap, decode, encode
from wire.messages import EVIDENCE_MOST, Evidence, Identifier, Rotate, Rotated

_PENDING_MOST = 2 * EVIDENCE_MOST
_PROBE = "/trust/metadata/timestamp.json"
_PROBE_MOST = 256 * 1024


class NewPairUnusable(Exception):
    """The service does not let the new pair in, or its key does not work; the old pair stays. One line."""


class NotAwaited(Exception):
    """A certificate came that nothing here waits for. One line."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A rotation under way: `message_id` is the rotate command's. `evidence` is what was, or will be, sent."""

    message_id: Identifier
    enrollment_id: Identifier
    key_pem: Annotated[bytes, Cap(8 * 1024)]
    spki: Annotated[bytes, Cap(1024)]
    evidence: Annotated[bytes, Cap(EVIDENCE_MOST)]


class Rotation:
    """The rotations of one device, one at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._file: Path = device.config.state_dir / "pending-rotation.json"

    def pending(self) -> Pending | None:
        """The rotation whose certificate has not come yet."""
        return state.read_or_drop(Pending, self._file, _PENDING_MOST)

    def forget(self) -> None:
        """The rotation under way is over."""
        state.remove(self._file)

    def is_installed(self, message_id: str, current: Pair) -> bool:
        """Is the pair in use the answer to this rotate command?"""
        return current.details.reply_to == message_id

    def answer(self, command: Rotate, current: Pair, trust: Trust) -> Evidence:
        """Evidence for a new key: the one on disk where this very challenge was answered before.

        Its logs are uploaded when this returns. Raises: ChallengeRefused, LogMissing, TpmFailure, HttpFailure.
        """
        boot_log = self._device.attester.read_boot_log(command.challenge)
        pending = self.pending()
        if pending is None or (pending.message_id, pending.enrollment_id) != (
            command.message_id,
            command.challenge.enrollment_id,
        ):
            pending = self._make(command, current, trust, log_digest(boot_log))
        if boot_log is not None:
            upload_log(self._device, trust, current, boot_log)
        return decode(Evidence, pending.evidence, limit=EVIDENCE_MOST)

    def accept(self, answer: Rotated, current: Pair, trust: Trust) -> None:
        """Checks the certificate and stores the pair as next. Raises: CertificateRefused, NotAwaited, StateDamaged."""
        pending = self.pending()
        if pending is None or answer.in_reply_to != pending.message_id:
            raise NotAwaited("the certificate answers no rotation that is under way here")
        expected = Expectation(
            service_name=self._device.anchor.service_name,
            spki=pending.spki,
            roots=trust.bundle.ca_roots,
            issuing_keys=trust.bundle.issuing_keys,
            now=self._device.now(),
            device_id=current.details.device_id,
        )
        verify_issued(answer.certificate, answer.chain, current.details.device_id, expected)
        details: IdentityDetails = replace(
            current.details,
            certificate=answer.certificate,
            chain=answer.chain,
            renew_after=answer.renew_after,
            reply_to=pending.message_id,
        )
        self._device.identity.store_next(pending.key_pem, details)

    def install(self, trust: Trust) -> Pair | None:
        """Proves the next pair by a TLS connection to the device listener and swaps; None where there is no next.

        Raises: NewPairUnusable (next is discarded); TpmFailure, HttpFailure (try again later).
        """
        following = self._device.identity.next()
        if following is None:
            return None
        try:
            self._prove(trust, following)
        except NewPairUnusable:
            self._device.identity.discard_next()
            self.forget()
            raise
        pair = self._device.identity.swap()
        self.forget()
        log.event("rotated", device=pair.details.device_id, serial=pair.serial)
        return pair

    def _make(self, command: Rotate, current: Pair, trust: Trust, digest: bytes | None) -> Pending:
        with self._device.tpm.open() as tpm:
            key = tpm.create_device_key()
            csr = tpm.certificate_request(key.pem)
            ek_kind = current.details.ek_kind
            evidence = self._device.attester.attest_key(tpm, command.challenge, "rotate", ek_kind, key, csr)
        # Not on disk, and longer in a moment: what the evidence names must be at the service before it is kept.
        ima_log = self._device.attester.read_ima_log(command.challenge)
        if ima_log is not None:
            upload_log(self._device, trust, current, ima_log)
        evidence = replace(evidence, boot_log_sha256=digest, ima_log_sha256=log_digest(ima_log))
        pending = Pending(
            message_id=command.message_id,
            enrollment_id=command.challenge.enrollment_id,
            key_pem=key.pem,
            spki=key.spki,
            evidence=encode(evidence),
        )
        state.write_value(self._file, pending)
        return pending

    def _prove(self, trust: Trust, pair: Pair) -> None:
        """Any answer over HTTP proves the handshake: the service verified the certificate and the key's signature."""
        try:
            prove_pair(pair, trust.bundle.ca_roots)  # first here: so a service out of reach is told from a bad key
        except (TlsKeyUnusable, DeviceKeyUnusable) as error:
            raise NewPairUnusable(str(error)) from error
        client = self._device.client(trust, pair)
        try:
            client.get(_PROBE, _PROBE_MOST)
        except NotFound:
            return
        except ServiceRefused as refusal:
            if refusal.status in (401, 403):
                raise NewPairUnusable(f"the service does not let the new pair in: {refusal}") from refusal
        finally:
            client.close()


def upload_log(device: Device, trust: Trust, identity: Pair, content: bytes) -> None:
    """Stores a log under its hash at the service, as this identity. Raises: HttpFailure, ssl.SSLError."""
    client = device.client(trust, identity)
    try:
        digest = log_digest(content) or b""
        client.put(f"/v1/logs/{digest.hex()}", content)
    finally:
        client.close()
