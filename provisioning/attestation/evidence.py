"""The one straight line over all checks of a device's evidence. The numbers are those of docs/protocol.md, section 1.

An enrollment reads: `endorsement.verify_endorsement` (2 to 4), `verify_attestation_key` (1, 5),
`credential.make_credential` (6); then, with the device's answer, `verify_activation` (7) and `verify_evidence`
(9 to 17, 19). Checks 8, 18, 20 and the other half of 19 are the database's.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from provisioning.attestation.appraisal import appraise
from provisioning.attestation.attestation_key import AttestationKey, verify_attestation_key
from provisioning.attestation.eventlog import EventLog, parse_event_log, verify_replay
from provisioning.attestation.ima import IMA_PCR, CoveredIma, parse_ima_log, verify_ima
from provisioning.attestation.policy import Policy
from provisioning.attestation.quote import TpmState, VerifiedPcrs, verify_continuity, verify_quote
from provisioning.attestation.residency import ResidentKey, verify_residency
from provisioning.issuance.csr import AcceptedCsr, verify_csr
from provisioning.refusals import (
    ActivationProofWrong,
    AnswersAnotherChallenge,
    BootLogMalformed,
    BootLogMissing,
    Finding,
    ImaLogDoesNotReplay,
    ImaLogMalformed,
    ImaLogMissing,
)
from wire.binding import Flow, Part, activation_proof, bind, context
from wire.messages import Attestation, Evidence, LogRule, Pcrs, PcrSelection, PlatformEvidence

__all__ = [
    "ActivatedChallenge",
    "OpenChallenge",
    "TpmState",
    "VerifiedEvidence",
    "VerifiedPlatform",
    "verify_activation",
    "verify_attestation_key",
    "verify_evidence",
    "verify_platform",
]


Proof = Literal["credential", "quote"]
"""What shows that an answer is the challenged device's own: the credential that its EK opened, or the quote of an AK
that its maker certified (`identity`)."""


@dataclass(frozen=True, slots=True)
class OpenChallenge:
    """What the server stored when it challenged: to whom, for what, and the secret in the credential."""

    flow: Flow
    enrollment_id: str
    audience: str
    nonce: bytes
    secret: bytes
    ak_public: bytes
    pcr_selection: PcrSelection
    boot_log: LogRule
    ek_id: str
    ima_log: LogRule = "none"
    proof: Proof = "credential"

    def __repr__(self) -> str:
        """Without the secret: it must not reach a log or a traceback."""
        return f"OpenChallenge(flow={self.flow!r}, enrollment_id={self.enrollment_id!r}, ek_id={self.ek_id!r})"


@dataclass(frozen=True, slots=True)
class ActivatedChallenge:
    """A challenge that the TPM of its EK answered, with this CSR: whatever else is wrong is that device's own doing.

    `tied` is the `wire.binding.context` of all of it.
    """

    challenge: OpenChallenge
    ak: AttestationKey
    csr: bytes
    tied: bytes

    def bound(self, part: Part) -> bytes:
        """The bytes that the TPM must have signed into this part of the evidence."""
        return bind(self.challenge.flow, part, self.tied)


@dataclass(frozen=True, slots=True)
class VerifiedPlatform:
    """A platform that the policy accepts. `findings` are what an operator should know although it passed."""

    pcrs: VerifiedPcrs
    tpm: TpmState
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """A platform that the policy accepts, and a key in its TPM that asks for a certificate."""

    pcrs: VerifiedPcrs
    key: ResidentKey
    csr: AcceptedCsr
    tpm: TpmState
    findings: tuple[Finding, ...]


def verify_activation(proof: bytes, csr: bytes, challenge: OpenChallenge) -> ActivatedChallenge:
    """(7) Did the TPM that holds the challenged EK open the credential for the challenged AK? In constant time.

    `csr` is DER, empty for an attest command. Single use and the counting of attempts are the caller's.

    Raises: ActivationProofWrong, and what `verify_attestation_key` raises.
    """
    ak = verify_attestation_key(challenge.ak_public)
    if challenge.proof != "credential":
        raise ActivationProofWrong  # no credential was made for it: nobody can have opened one
    tied = context_of(challenge, ak, csr)
    expected = activation_proof(challenge.secret, bind(challenge.flow, "activate", tied))
    if not hmac.compare_digest(expected, proof):
        raise ActivationProofWrong  # neither value goes into it: the expected one never leaves the server
    return ActivatedChallenge(challenge, ak, csr, tied)


def verify_evidence(
    evidence: Evidence,
    boot_log: bytes | None,
    challenge: ActivatedChallenge,
    policy: Policy,
    previous: TpmState | None,
    release_values: Mapping[int, frozenset[bytes]],
    *,
    ima_log: bytes | None = None,
    device: Collection[str] = (),
) -> VerifiedEvidence:
    """Everything that a certificate rests on, or the refusal that names the first check that failed.

    `boot_log` and `ima_log` are the logs themselves, from the message or from an upload. `previous` is what this AK
    showed last. `device` are the names (id, serial) under which a policy that learns may let it pass.
    `release_values` are PCR values, in the challenge's bank, of a release that is being rolled out to this device.

    Not proven: that the device is the machine the TPM was built into, and that no other device has the key (19).

    Raises: a Refusal of the checks 1, 5, 9 to 17 or 19.
    """
    # (7) the answer to the challenge was made for this very request
    if evidence.csr != challenge.csr:
        raise AnswersAnotherChallenge(expected=challenge.bound("certify"), actual="evidence with another CSR")
    # (9 to 12) these PCR values are the TPM's
    pcrs = _verify_pcrs(evidence.quote, evidence.pcrs, challenge)
    # (9 to 11, 14, 19) this key is in the TPM
    bound = challenge.bound("certify")
    ek_id = challenge.challenge.ek_id
    key = verify_residency(evidence.certify, evidence.device_public, challenge.ak, bound, ek_id)
    # (15) and its holder asks for a certificate
    csr = verify_csr(evidence.csr, key.spki)
    # (13, 16, 17) the TPM is the one we know, and what booted is acceptable
    log = _verify_boot_log(boot_log, evidence.boot_log_sha256, challenge.challenge.boot_log, pcrs)
    ima = _verify_ima_log(ima_log, evidence.ima_log_sha256, challenge.challenge.ima_log, pcrs)
    findings = _verify_state(pcrs, log, ima, policy, previous, release_values, device)
    return VerifiedEvidence(pcrs, key, csr, pcrs.tpm, findings)


def verify_platform(
    evidence: PlatformEvidence,
    boot_log: bytes | None,
    challenge: ActivatedChallenge,
    policy: Policy,
    previous: TpmState | None,
    release_values: Mapping[int, frozenset[bytes]],
    *,
    ima_log: bytes | None = None,
    device: Collection[str] = (),
) -> VerifiedPlatform:
    """The same line without a key and a request: what an attest command asks for.

    Raises: a Refusal of the checks 1, 5, 9 to 13, 16 or 17.
    """
    if challenge.csr:
        raise AnswersAnotherChallenge(expected="an attest challenge", actual="one that was activated with a CSR")
    pcrs = _verify_pcrs(evidence.quote, evidence.pcrs, challenge)
    log = _verify_boot_log(boot_log, evidence.boot_log_sha256, challenge.challenge.boot_log, pcrs)
    ima = _verify_ima_log(ima_log, evidence.ima_log_sha256, challenge.challenge.ima_log, pcrs)
    findings = _verify_state(pcrs, log, ima, policy, previous, release_values, device)
    return VerifiedPlatform(pcrs, pcrs.tpm, findings)


def _verify_pcrs(quote: Attestation, reported: Pcrs, challenge: ActivatedChallenge) -> VerifiedPcrs:
    selection = challenge.challenge.pcr_selection
    return verify_quote(quote, reported, selection, challenge.ak, challenge.bound("quote"))


def _verify_boot_log(data: bytes | None, digest: bytes | None, rule: LogRule, pcrs: VerifiedPcrs) -> EventLog | None:
    """(13) The log, once it replays to the quoted PCRs: before that nothing in it is believed."""
    if rule == "none":
        return None
    if data is None:
        if rule == "required":
            raise BootLogMissing(expected="a boot log", actual="none")
        return None
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise BootLogMalformed(expected=digest, actual=hashlib.sha256(data).digest())
    log = parse_event_log(data)
    verify_replay(log, pcrs.bank, pcrs.values)
    return log


def _verify_ima_log(data: bytes | None, digest: bytes | None, rule: LogRule, pcrs: VerifiedPcrs) -> CoveredIma | None:
    """(13) The entries that the quoted PCR 10 covers; what the kernel measured since then is passed over."""
    if rule == "none":
        return None
    if data is None:
        if rule == "required":
            raise ImaLogMissing(expected="an IMA log", actual="none")
        return None
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise ImaLogMalformed(expected=digest, actual=hashlib.sha256(data).digest())
    if IMA_PCR not in pcrs.values:
        raise ImaLogDoesNotReplay(expected=f"PCR {IMA_PCR} in the quote", actual="another selection")
    return verify_ima(parse_ima_log(data), pcrs.bank, pcrs.values[IMA_PCR])


def _verify_state(
    pcrs: VerifiedPcrs,
    log: EventLog | None,
    ima: CoveredIma | None,
    policy: Policy,
    previous: TpmState | None,
    release_values: Mapping[int, frozenset[bytes]],
    device: Collection[str],
) -> tuple[Finding, ...]:
    # (16) its counters and clock went on from where they were
    verify_continuity(pcrs.tpm, previous)
    # (13, 17) and the policy names its firmware, what it booted and what it runs
    return appraise(pcrs, log, ima, policy, release_values, device=device)


def context_of(challenge: OpenChallenge, ak: AttestationKey, csr: bytes) -> bytes:
    """What each part of the answer to this challenge, by this AK and with this CSR, must be tied to."""
    return context(challenge.audience, challenge.nonce, csr, ak.name, challenge.enrollment_id)
