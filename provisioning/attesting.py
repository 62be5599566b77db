"""What enrollment, rotation and re-attestation share: evidence that passed is recorded, and a refusal is, too."""

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection

from provisioning import health, observing
from provisioning.attestation.evidence import ActivatedChallenge
from provisioning.attestation.quote import VerifiedPcrs
from provisioning.challenges import Answered
from provisioning.db import devices, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.findings import Noticed, notice, notice_ak_twice, suspect
from provisioning.journal import identifier, leaf
from provisioning.logs import Logs, keep_logs
from provisioning.monitoring import Kind
from provisioning.refusals import (
    ApprovalRequired,
    AttestationKeyTaken,
    ChallengeExpired,
    DeviceRevoked,
    Finding,
    QuarantineStands,
    Refusal,
    TpmCleared,
    TpmWentBack,
)
from provisioning.service import Service
from provisioning.verifier import Accepted, Shown, accept
from wire.codec import b64url, encode
from wire.messages import Evidence, PlatformEvidence
from wire.problems import Problem

T = TypeVar("T")

OWN_REFUSALS_MOST = 200
"""Refusals of one device within a day that are kept for good, each with a leaf. An agent in trouble asks a hundred
times; one in other hands would fill the disk. What is more stands beside those of strangers, which a leaf counts."""
DAY_SECONDS = 86400

TRANSIENT = (Problem.UNAVAILABLE,)
"""Refusals that are not the device's fault: its challenge stays, and the same evidence may come again."""
FINAL = ("revoked", "decommissioned")
"""States of a device that end it."""


async def judge(
    service: Service,
    evidence: Evidence | PlatformEvidence,
    logs: Logs,
    activated: ActivatedChallenge,
    answered: Answered,
) -> Accepted:
    """What `verify_evidence` or `verify_platform` says. Raises: what they do, and VerifierUnavailable.

    Tens of thousands of IMA entries are counted on a thread: whoever verifies would let all others wait for them.
    """
    shown = Shown(
        evidence,
        logs.boot,
        logs.ima,
        activated,
        answered.policy_id,
        answered.policy,
        answered.previous,
        answered.release_values,
        (answered.device.id, answered.device.serial),
    )
    if logs.ima is None:
        return await service.verifier.evidence(shown)
    return await asyncio.to_thread(accept, shown)


def verify_same_identity(device: Record | None, answered: Answered, at: int) -> Record:
    """Check 18: the EK keeps its AK, or an operator approved another one. Raises: DeviceRevoked, ApprovalRequired."""
    if device is None or device.state in FINAL:
        raise DeviceRevoked(expected="a device in service", actual="none" if device is None else device.state)
    approved = device.approved_until is not None and at <= device.approved_until
    if device.ak_name not in (None, answered.ak_name) and not approved:
        raise ApprovalRequired(expected=f"the AK {device.ak_name.hex()}", actual=f"the AK {answered.ak_name.hex()}")
    return device


async def verify_may_return(service: Service, answered: Answered) -> None:
    """Would a pass help this device? Before a CA key signs for it. Raises: QuarantineStands, ChallengeExpired."""
    device = answered.device
    verify_since_quarantine(device, answered)
    quarantined = device.health == health.Health.QUARANTINED
    if quarantined and not await service.store.read(lambda tx: health.may_return(tx, device)):
        raise QuarantineStands(expected="no open finding about a clone", actual=f"health {device.health}")


def verify_since_quarantine(device: Record, answered: Answered) -> None:
    """Was it asked for after what led to the quarantine? Else it was kept back, for the day of a bad boot.

    Raises: ChallengeExpired.
    """
    if device.health == health.Health.QUARANTINED and answered.opened < (device.health_at or 0):
        expected = f"the answer to a challenge after {device.health_at}, when the quarantine began"
        raise ChallengeExpired(expected=expected, actual=f"one of {answered.opened}")


def is_overtaken(refusal: Refusal, answered: Answered) -> bool:
    """Does evidence look like a rollback only because a later one passed while it was on its way?

    Who holds a device's packets back could else have it quarantined. It is refused, and says nothing about the TPM.
    """
    last = answered.device.last_attested_at
    return isinstance(refusal, TpmWentBack | TpmCleared) and last is not None and answered.opened < last


def verify_ak_is_free(tx: Connection, answered: Answered) -> None:
    """Check 18: one TPM is one device, also by another of its EKs. Raises: AttestationKeyTaken."""
    if taken := devices.others_with_ak(tx, answered.ak_name, answered.device.id):
        raise AttestationKeyTaken(expected="an AK of no other device", actual=f"the AK of {', '.join(taken)}")


def stored_form(evidence: Evidence | PlatformEvidence, received: bytes) -> bytes:
    """Evidence as it is kept: the bytes that were received, but that a log is kept once, by its hash."""
    if evidence.boot_log is None and evidence.ima_log is None:
        return received
    named = observing.without_logs(evidence)
    if evidence.boot_log is not None and named.boot_log_sha256 is not None and evidence.ima_log is None:
        whole = f'"boot_log":"{b64url(evidence.boot_log)}"'.encode()
        if received.count(whole) == 1:  # as agents write it: the rest need not be written again
            return received.replace(whole, f'"boot_log_sha256":"{b64url(named.boot_log_sha256)}"'.encode())
    return encode(named)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Evidence that passed (`stored_form`), with what it proved and the answer that it gets."""

    evidence: bytes
    logs: Logs
    pcrs: VerifiedPcrs
    findings: tuple[Finding, ...]
    answer: bytes
    entry: dict[str, Any]


def passed(service: Service, tx: Connection, answered: Answered, outcome: Outcome) -> bool:
    """Record that evidence passed: the evidence itself, the TPM's state, the device's health, the answer.

    Is it the first of a device that was never in service? Then there is nothing that it takes the place of.
    """
    now = service.clock()
    at = int(now.timestamp())
    device_id, tpm = answered.device.id, outcome.pcrs.tpm
    boot_log, ima_log = keep_logs(tx, service.config.retention, device_id, outcome.logs, at)
    enrollments.add_attestation(
        tx,
        {
            "id": answered.challenge.enrollment_id,
            "flow": answered.challenge.flow,
            "device_id": device_id,
            "at": at,
            "policy_id": answered.policy_id,
            "ak_public": answered.challenge.ak_public,
            "evidence": outcome.evidence,
            "boot_log_sha256": boot_log,
            "ima_log_sha256": ima_log,
            "findings": _all_findings(answered, outcome),
        },
    )
    enrollments.passed(tx, answered.challenge.enrollment_id, outcome.answer)
    shown: dict[str, Any] = {
        "ak_name": answered.ak_name,
        "ak_public": answered.challenge.ak_public,
        "reset_count": tpm.reset_count,
        "restart_count": tpm.restart_count,
        "clock": tpm.clock,
        "clock_safe": tpm.safe,
        "firmware_version": format(tpm.firmware_version, "x"),
    }
    due = health.due_at(answered.policy, at, answered.challenge.nonce)
    was = answered.device.state
    is_first = bool(was == "registered")
    if not devices.attested(tx, device_id, at, was=was, due=due, **shown):
        device = verify_same_identity(devices.by_id(tx, device_id), answered, at)
        verify_since_quarantine(device, answered)
        settled = health.change(tx, service, device, "passed", at, why=answered.challenge.flow)
        if settled != health.Health.HEALTHY and answered.challenge.flow != "attest":
            raise QuarantineStands(expected="no open finding about a clone", actual=f"health {settled}")
        devices.attested(tx, device_id, at, was=device.state, due=due, settled=settled, **shown)
        is_first = False
    if answered.device.ak_name != answered.ak_name:  # else it was looked for when the record got this AK
        notice_ak_twice(tx, service, device_id, answered.ak_name)
    observing.note_passed(service, tx, answered, outcome.pcrs, outcome.findings)
    if softened := [finding.what for finding in outcome.findings if finding.refused]:
        detail = {"would_refuse": len(softened), "first": softened[0], "policy": answered.policy_id}
        notice(tx, service, Noticed(device_id, Kind.MONITOR, detail))
    leaves.add(tx, outcome.entry)
    return is_first


@dataclass(frozen=True, slots=True)
class Refused:
    """The circumstances of a refusal, for the record."""

    flow: str
    source: str
    device_id: str | None = None
    serial: str | None = None
    enrollment_id: str | None = None
    own: bool = False
    evidence_sha256: bytes | None = None
    answered: Answered | None = None
    evidence: Evidence | PlatformEvidence | None = None
    """What was refused, and what it answered: kept for `explain` where it is the device's own."""


async def record_refusal(service: Service, refusal: Refusal, of: Refused) -> None:
    """Write a refusal down, and consume the challenge. It counts for the device's health only if it is its own."""
    if of.answered is not None and is_overtaken(refusal, of.answered):
        of = replace(of, own=False)
    now = service.clock()
    refusal_id = refusal.instance = identifier(service.entropy(9))
    shown = observing.shown_by(refusal, of.answered, of.evidence, own=of.own)
    row = {
        "id": refusal_id,
        "at": int(now.timestamp()),
        "code": refusal.code,
        "flow": of.flow,
        "device_id": of.device_id,
        "serial": of.serial,
        "source": of.source,
        "own": of.own,
        "expected": refusal.expected,
        "actual": refusal.actual,
        "findings": findings_json(refusal.findings),
    }
    entry = leaf(service, "refusal", now, **{k: v for k, v in row.items() if k != "at"}) if of.device_id else None

    def write(tx: Connection) -> None:
        kept = of.own and (of.device_id is None or not _has_enough(tx, of.device_id, int(now.timestamp())))
        enrollments.add_refusal(tx, {**row, "own": kept})
        if shown is not None:
            shown.keep(tx, refusal_id, int(now.timestamp()))
        if entry is not None and kept:
            leaves.add(tx, entry)
        if of.enrollment_id is not None:
            enrollments.refuse(tx, of.enrollment_id, refusal_id=refusal_id, evidence_sha256=of.evidence_sha256)
        if of.own and of.device_id is not None:
            _lower(tx, service, refusal, of, int(now.timestamp()))
            ak_name = None if of.answered is None else of.answered.ak_name
            suspect(tx, service, refusal, of.flow, of.device_id, ak_name)

    await service.ledger.write(write)


def _has_enough(tx: Connection, device_id: str, at: int) -> bool:
    return enrollments.own_refusals_since(tx, device_id, at - DAY_SECONDS) >= OWN_REFUSALS_MOST


def _lower(tx: Connection, service: Service, refusal: Refusal, of: Refused, at: int) -> None:
    device = None if of.device_id is None else devices.by_id(tx, of.device_id)
    if device is not None:
        event = health.event_of(refusal, None if of.answered is None else of.answered.policy)
        health.change(tx, service, device, event, at, why=f"{refusal.code} {refusal.title}")


def findings_json(findings: tuple[Finding, ...]) -> str:
    """Findings as they are stored; what mends one, and that a mode let it pass, stand there where it is so."""
    return json.dumps(
        [
            {"what": f.what, "expected": f.expected, "actual": f.actual}
            | ({"cure": f.cure} if f.cure else {})
            | ({"refused": True} if f.refused else {})
            for f in findings
        ]
    )


def _all_findings(answered: Answered, outcome: Outcome) -> str:
    """Those of the certificates that vouch for the TPM, then those of what it showed."""
    shown = findings_json(outcome.findings)
    return shown if answered.findings is None else json.dumps([*json.loads(answered.findings), *json.loads(shown)])


def grace(service: Service, now: datetime) -> int:
    """When a certificate that is superseded now is revoked."""
    return int((now + timedelta(seconds=service.config.commands.grace_seconds)).timestamp())
