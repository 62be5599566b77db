"""What `explain` needs later is kept when evidence is judged: what a device shows, and evidence that was refused."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from provisioning.attestation.explanation_values import shown_digest, shown_values
from provisioning.attestation.quote import VerifiedPcrs
from provisioning.attestation.rejudging import StoredEvidence, verify_stored_quote
from provisioning.challenges import Answered
from provisioning.db import devices, evidence, judge_again, leaves, logs, policies
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import Finding, Refusal
from provisioning.service import Service
from wire.codec import encode
from wire.messages import Evidence, PlatformEvidence

KEPT = 2
"""How many refused evidences are kept of one device: with both logs each is 4.4 MB at most."""
KEPT_CHECKS = frozenset({13, 17})
"""The checks that are about what a device shows: logs, reference values, rules, firmware. The quote was authentic."""


def note_passed(
    service: Service, tx: Connection, answered: Answered, pcrs: VerifiedPcrs, findings: tuple[Finding, ...]
) -> None:
    """A device's evidence passed: what it shows counts from now on. Where that is what it showed, nothing is written.

    `findings` count where a mode softened them: then they are a leaf, too.
    """
    softened = tuple(finding for finding in findings if finding.refused)
    if _put(tx, answered.device, pcrs, softened) and softened:
        told = [{"what": one.what, "expected": one.expected, "actual": one.actual} for one in softened]
        named = {"device": answered.device.id, "attestation": answered.challenge.enrollment_id}
        leaves.add(tx, leaf(service, "monitored", service.clock(), **named, findings=told))


@dataclass(frozen=True, slots=True)
class Shown:
    """Refused evidence whose quote is authentic, ready to be kept."""

    answered: Answered
    evidence: Evidence | PlatformEvidence
    stored: bytes
    pcrs: VerifiedPcrs
    findings: tuple[Finding, ...]

    def keep(self, tx: Connection, refusal_id: str, at: int) -> None:
        """Keep it, with the logs that it names, and count what it shows."""
        device = self.answered.device
        row: dict[str, Any] = {
            "refusal_id": refusal_id,
            "device_id": device.id,
            "at": at,
            "policy_id": self.answered.policy_id,
            "ak_public": self.answered.challenge.ak_public,
            "evidence": self.stored,
            "boot_log": _log(tx, self.evidence.boot_log, self.evidence.boot_log_sha256),
            "ima_log": _log(tx, self.evidence.ima_log, self.evidence.ima_log_sha256),
        }
        evidence.keep_refused(tx, row, KEPT)
        _put(tx, device, self.pcrs, self.findings)
        current = devices.by_id(tx, device.id)
        if current is not None and policies.newest_policy_id(tx, current.model, current.group) != row["policy_id"]:
            judge_again.add_device(tx, device.id)  # its policy changed while this was on its way


def shown_by(
    refusal: Refusal, answered: Answered | None, shown: Evidence | PlatformEvidence | None, *, own: bool
) -> Shown | None:
    """What is kept of a refusal: of the device's own evidence, what it showed, once the quote is authentic again."""
    if answered is None or shown is None or not own or refusal.check not in KEPT_CHECKS:
        return None
    stored = encode(without_logs(shown))
    try:
        pcrs = verify_stored_quote(StoredEvidence(stored, answered.challenge.ak_public, None, None))
    except Refusal:  # the refusal came before its quote was looked at, and this quote is worth nothing
        return None
    return Shown(answered, shown, stored, pcrs, refusal.findings)


def _put(tx: Connection, device: Record, pcrs: VerifiedPcrs, findings: tuple[Finding, ...]) -> bool:
    """Write what a device shows, where it is something else than before. Was it?"""
    digest = shown_digest(pcrs, findings)
    if digest == device.shown:
        return False
    evidence.put_shown(tx, device.id, device.model, shown_values(pcrs, findings), digest)
    return True


def without_logs(shown: Evidence | PlatformEvidence) -> Evidence | PlatformEvidence:
    """The evidence with its logs named by their hashes."""
    named = shown
    if shown.boot_log is not None:
        named = replace(named, boot_log=None, boot_log_sha256=hashlib.sha256(shown.boot_log).digest())
    if shown.ima_log is not None:
        named = replace(named, ima_log=None, ima_log_sha256=hashlib.sha256(shown.ima_log).digest())
    return named


def _log(tx: Connection, inline: bytes | None, by_hash: bytes | None) -> bytes | None:
    if inline is not None or by_hash is None:
        return inline
    return logs.content_of(tx, by_hash.hex())
