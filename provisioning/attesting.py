"""What enrollment, rotation and re-attestation share: open a challenge, take its answer once, refuse on record."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from provisioning.attestation.attestation_key import AttestationKey
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import TrustedEk
from provisioning.attestation.evidence import OpenChallenge, TpmState
from provisioning.attestation.policy import Policy, parse_policy
from provisioning.db import devices, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import (
    ApprovalRequired,
    BootLogMissing,
    ChallengeExpired,
    ChallengeTaken,
    ChallengeUnknown,
    DeviceRevoked,
    EnrollmentQuotaSpent,
    Finding,
    NoPolicyForModel,
    Refusal,
)
from provisioning.service import Service
from wire.binding import Flow
from wire.codec import b64url, encode
from wire.messages import Challenge, Evidence, PcrSelection, PlatformEvidence
from wire.problems import Problem

TRANSIENT = (Problem.UNAVAILABLE,)
"""Refusals that are not the device's fault: its challenge stays, and the same evidence may come again."""
FINAL = ("revoked", "decommissioned")
"""States of a device that end it."""
DAY_SECONDS = 86400
SECRET_BYTES = 32
NONCE_BYTES = 32
ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Taken:
    """An answered challenge with all that the verifier needs; nobody else can answer it any more."""

    challenge: OpenChallenge
    ak_name: bytes
    device: Record
    policy: Policy
    policy_id: int
    previous: TpmState | None
    release_values: Mapping[int, frozenset[bytes]]
    answer: bytes | None
    """The stored answer, where this very evidence was accepted before."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy in force for a model, with the id under which challenges refer to it."""

    id: int
    rules: Policy


def policy_for(tx: Connection, service: Service, model: str) -> InForce:
    """Check 20: the policy in force. Raises: NoPolicyForModel."""
    policy_id = devices.newest_policy_id(tx, model)
    rules = None if policy_id is None else policy_of(tx, service, policy_id)
    if policy_id is None or rules is None:
        raise NoPolicyForModel(expected=f"a policy for model {model}", actual="none")
    return InForce(policy_id, rules)


def policy_of(tx: Connection, service: Service, policy_id: int) -> Policy | None:
    """The policy of that row, parsed once: a row never changes."""
    if (known := service.policies.get(policy_id)) is not None:
        return known
    row = devices.policy_by_id(tx, policy_id)
    return None if row is None else service.policies.setdefault(policy_id, parse_policy(row.text))


def challenge_row(
    service: Service,
    flow: Flow,
    device: Record,
    ak: AttestationKey,
    selection: PcrSelection,
    policy: InForce,
) -> dict[str, Any]:
    """A fresh challenge, as it is stored: the one row that binds EK, AK, nonce and secret (check 8)."""
    now = int(service.clock().timestamp())
    drawn = service.entropy(ID_BYTES + NONCE_BYTES + SECRET_BYTES)
    return {
        "id": b64url(drawn[:ID_BYTES]),
        "flow": flow,
        "device_id": device.id,
        "ek_id": device.ek_id,
        "ak_public": ak.public,
        "ak_name": ak.name,
        "nonce": drawn[ID_BYTES:-SECRET_BYTES],
        "secret": drawn[-SECRET_BYTES:],
        "pcr_bank": selection.bank,
        "pcrs": json.dumps(selection.pcrs),
        "boot_log": policy.rules.boot_log,
        "policy_id": policy.id,
        "created_at": now,
        "expires_at": now + service.config.limits.challenge_seconds,
        "state": "open",
    }


def challenge_message(service: Service, row: dict[str, Any], ek: TrustedEk) -> Challenge:
    """The challenge as the device gets it. Only the TPM with this EK and this AK opens the credential (check 6)."""
    blob, secret = make_credential(ek, row["ak_name"], row["secret"])
    return Challenge(
        enrollment_id=row["id"],
        audience=service.config.service_name,
        credential_blob=blob,
        encrypted_secret=secret,
        nonce=row["nonce"],
        pcr_selection=PcrSelection(row["pcr_bank"], tuple(json.loads(row["pcrs"]))),
        boot_log=row["boot_log"],
        expires_at=datetime.fromtimestamp(row["expires_at"], UTC),
    )


async def take(
    service: Service,
    flow: Flow,
    enrollment_id: str,
    evidence_sha256: bytes,
    *,
    arrived: datetime,
    device_id: str | None,
) -> Taken:
    """Read and consume a challenge in one transaction: of two different answers exactly one is judged.

    The same evidence again is judged again, or gets its stored answer. `device_id` is the sender, where the channel
    authenticated one.

    Raises: ChallengeUnknown, ChallengeExpired, ChallengeTaken, or what this evidence was refused with before.
    """
    at = int(arrived.timestamp())
    return await service.ledger.write(
        lambda tx: _take(tx, service, flow, enrollment_id, evidence_sha256, at, device_id)
    )


def _take(
    tx: Connection, service: Service, flow: Flow, enrollment_id: str, evidence: bytes, at: int, device_id: str | None
) -> Taken:
    row = enrollments.get(tx, enrollment_id)
    if row is None or row.flow != flow or device_id not in (None, row.device_id):
        raise ChallengeUnknown(expected="an open challenge", actual=enrollment_id[:64])
    if row.state == "open":
        if at > row.expires_at:
            raise ChallengeExpired(expected=f"an answer until {row.expires_at}", actual=at)
        _verify_quota(tx, service, row, at)
        if not enrollments.take(tx, enrollment_id, evidence):
            raise ChallengeTaken(expected="one answer", actual="two")
    elif row.evidence_sha256 != evidence:
        raise ChallengeTaken(expected="the evidence that came first", actual="other evidence")
    elif row.state == "refused":
        raise _refused_before(tx, row.refusal_id)
    device = devices.by_id(tx, row.device_id)
    rules = policy_of(tx, service, row.policy_id)
    if device is None or rules is None or (row.secret is None and row.answer is None):
        raise ChallengeUnknown(expected="an open challenge", actual="one whose device or policy is gone")
    approved = device.approved_until is not None and at <= device.approved_until
    challenge = _challenge_of(service, row)
    previous = None if approved or row.ak_name != device.ak_name else tpm_state_of(device)
    values = release_values(devices.releases_of(tx, device.id), rules) if rules.release_pcrs else {}
    return Taken(challenge, row.ak_name, device, rules, row.policy_id, previous, values, row.answer)


def _verify_quota(tx: Connection, service: Service, row: Record, at: int) -> None:
    """Challenges are opened before any of them is answered: the day's quota is asked for again. Check 18."""
    device, rules = devices.by_id(tx, row.device_id), policy_of(tx, service, row.policy_id)
    if row.flow != "enroll" or device is None or device.state == "registered" or rules is None:
        return
    if enrollments.passed_since(tx, device.id, at - DAY_SECONDS) >= rules.enrollments_per_day:
        raise EnrollmentQuotaSpent(expected=f"at most {rules.enrollments_per_day} a day", actual="one more")


def open_challenge(tx: Connection, service: Service, flow: Flow, enrollment_id: str) -> OpenChallenge | None:
    """A challenge of that flow whose secret is still known: nothing came of it yet. It is not taken."""
    row = enrollments.get(tx, enrollment_id)
    return None if row is None or row.flow != flow or row.secret is None else _challenge_of(service, row)


def _challenge_of(service: Service, row: Record) -> OpenChallenge:
    return OpenChallenge(
        flow=row.flow,
        enrollment_id=row.id,
        audience=service.config.service_name,
        nonce=row.nonce,
        secret=row.secret or b"",
        ak_public=row.ak_public,
        pcr_selection=PcrSelection(row.pcr_bank, tuple(json.loads(row.pcrs))),
        boot_log=row.boot_log,
        ek_id=row.ek_id,
    )


def tpm_state_of(device: Record) -> TpmState | None:
    """What the device's TPM said of itself when it last passed (check 16)."""
    if device.reset_count is None:
        return None
    return TpmState(
        device.reset_count,
        device.restart_count,
        device.clock,
        bool(device.clock_safe),
        int(device.firmware_version, 16),
    )


def release_values(releases: list[Record], policy: Policy) -> dict[int, frozenset[bytes]]:
    """The PCR values of signed releases that this device may show, for the PCRs that the policy leaves to releases."""
    found: dict[int, set[bytes]] = {}
    for release in releases:
        for bank, values in json.loads(release.reference_values).items():
            if bank not in policy.banks:
                continue
            for pcr, digest in values.items():
                if int(pcr) in policy.release_pcrs:
                    found.setdefault(int(pcr), set()).add(bytes.fromhex(digest))
    return {pcr: frozenset(digests) for pcr, digests in found.items()}


async def boot_log_of(service: Service, taken: Taken, inline: bytes | None, by_hash: bytes | None) -> bytes | None:
    """The boot log of an evidence message: in it, or uploaded before and named by its hash. Raises: BootLogMissing."""
    if inline is not None or by_hash is None:
        return inline
    log = await service.store.read(lambda tx: enrollments.boot_log_content(tx, by_hash.hex()))
    if log is None:
        raise BootLogMissing(expected=f"a log of device {taken.device.id} with this hash", actual=by_hash)
    return log


def verify_same_identity(device: Record | None, taken: Taken, at: int) -> None:
    """Check 18: the EK keeps its AK, or an operator approved another one. Raises: DeviceRevoked, ApprovalRequired."""
    if device is None or device.state in FINAL:
        raise DeviceRevoked(expected="a device in service", actual="none" if device is None else device.state)
    if device.ak_name in (None, taken.ak_name):
        return
    if device.approved_until is None or at > device.approved_until:
        raise ApprovalRequired(expected=f"the AK {device.ak_name.hex()}", actual=f"the AK {taken.ak_name.hex()}")


def stored_form(evidence: Evidence | PlatformEvidence, received: bytes) -> bytes:
    """Evidence as it is kept: the bytes that were received, but that a boot log is kept once, by its hash."""
    if evidence.boot_log is None:
        return received
    return encode(replace(evidence, boot_log=None, boot_log_sha256=hashlib.sha256(evidence.boot_log).digest()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Evidence that passed (`stored_form`), with what it proved and the answer that it gets."""

    evidence: bytes
    boot_log: bytes | None
    tpm: TpmState
    findings: tuple[Finding, ...]
    answer: bytes
    entry: dict[str, Any]


def passed(service: Service, tx: Connection, taken: Taken, outcome: Outcome) -> None:
    """Record that evidence passed: the evidence itself, the TPM's state, the device's health, the answer."""
    now = service.clock()
    at = int(now.timestamp())
    log_hash, tpm = None, outcome.tpm
    if outcome.boot_log is not None:
        log_hash = hashlib.sha256(outcome.boot_log).hexdigest()
        enrollments.put_boot_log(tx, sha256=log_hash, device_id=taken.device.id, content=outcome.boot_log, now=at)
    enrollments.add_attestation(
        tx,
        {
            "id": taken.challenge.enrollment_id,
            "flow": taken.challenge.flow,
            "device_id": taken.device.id,
            "at": at,
            "policy_id": taken.policy_id,
            "ak_public": taken.challenge.ak_public,
            "evidence": outcome.evidence,
            "boot_log_sha256": log_hash,
            "findings": findings_json(outcome.findings),
        },
    )
    enrollments.passed(tx, taken.challenge.enrollment_id, outcome.answer)
    shown = {
        "ak_name": taken.ak_name,
        "ak_public": taken.challenge.ak_public,
        "reset_count": tpm.reset_count,
        "restart_count": tpm.restart_count,
        "clock": tpm.clock,
        "clock_safe": tpm.safe,
        "firmware_version": format(tpm.firmware_version, "x"),
    }
    if not devices.attested(tx, taken.device.id, at, **shown):
        verify_same_identity(devices.by_id(tx, taken.device.id), taken, at)
    leaves.add(tx, outcome.entry)


@dataclass(frozen=True, slots=True)
class Refused:
    """The circumstances of a refusal, for the record."""

    flow: str
    source: str
    device_id: str | None = None
    serial: str | None = None
    enrollment_id: str | None = None
    own: bool = False


async def record_refusal(service: Service, refusal: Refusal, of: Refused) -> None:
    """Write a refusal down, and consume the challenge. It counts for the device's health only if it is its own."""
    now = service.clock()
    refusal.instance = b64url(service.entropy(9))
    row = {
        "id": refusal.instance,
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
        enrollments.add_refusal(tx, row)
        if entry is not None and of.own:
            leaves.add(tx, entry)
        if of.enrollment_id is not None:
            enrollments.close(tx, of.enrollment_id, state="refused", refusal_id=row["id"])
        if of.own and of.device_id is not None:
            devices.change(tx, of.device_id, health="failing")

    await service.ledger.write(write)


def findings_json(findings: tuple[Finding, ...]) -> str:
    """Findings as they are stored; what mends one stands there where it is known."""
    return json.dumps(
        [
            {"what": f.what, "expected": f.expected, "actual": f.actual} | ({"cure": f.cure} if f.cure else {})
            for f in findings
        ]
    )


def refusal_class(code: str) -> type[Refusal]:
    """The class of a stored refusal."""
    return next(known for known in Refusal.__subclasses__() if known.code == code)


def _refused_before(tx: Connection, refusal_id: str | None) -> Refusal:
    row = None if refusal_id is None else enrollments.refusal_by_id(tx, refusal_id)
    if row is None:
        return ChallengeTaken(expected="fresh evidence", actual="evidence that was refused before")
    again = refusal_class(row.code)(expected=row.expected, actual=row.actual)
    again.instance = row.id
    return again


def grace(service: Service, now: datetime) -> int:
    """When a certificate that is superseded now is revoked."""
    return int((now + timedelta(seconds=service.config.commands.grace_seconds)).timestamp())
