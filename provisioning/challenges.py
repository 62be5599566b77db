"""A challenge: opened for one device under one policy, looked at with an answer, answered once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from provisioning.attestation.attestation_key import AttestationKey
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import TrustedEk
from provisioning.attestation.evidence import OpenChallenge, TpmState
from provisioning.attestation.policy import Policy, parse_policy
from provisioning.db import devices, enrollments, policies
from provisioning.db.devices import Record
from provisioning.journal import identifier
from provisioning.refusals import (
    ChallengeExpired,
    ChallengeTaken,
    ChallengeUnknown,
    EnrollmentQuotaSpent,
    NoPolicyForModel,
    Refusal,
    refusal_class,
)
from provisioning.service import Service
from wire.binding import Flow
from wire.messages import Challenge, PcrSelection

DAY_SECONDS = 86400
SECRET_BYTES = 32
NONCE_BYTES = 32
ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Answered:
    """A challenge to which this evidence came as an answer, with all that the verifier needs. Nothing is proven yet."""

    challenge: OpenChallenge
    evidence_sha256: bytes
    opened: int
    """When the challenge was made: the answer shows nothing older, and perhaps nothing newer."""
    is_open: bool
    """Was it open when it was looked at? Whether this answer is the one that counts is decided by `use_up`."""
    ak_name: bytes
    device: Record
    policy: Policy
    policy_id: int
    previous: TpmState | None
    release_values: Mapping[int, frozenset[bytes]]
    answer: bytes | None
    """The stored answer, where this very evidence was accepted before."""
    claims: Mapping[str, str]
    """What the request said of itself that the record does not: of use once the activation proof was right."""
    findings: str | None = None
    """What should be known of the certificates that vouch for the TPM: JSON, as it is stored."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy in force for a model, with the id under which challenges refer to it."""

    id: int
    rules: Policy


def policy_for(tx: Connection, service: Service, model: str, group: str | None) -> InForce:
    """Check 20: the policy in force: the group's own, else the model's. Raises: NoPolicyForModel."""
    policy_id = policies.newest_policy_id(tx, model, group)
    rules = None if policy_id is None else policy_of(tx, service, policy_id)
    if policy_id is None or rules is None:
        raise NoPolicyForModel(expected=f"a policy for model {model}", actual="none")
    return InForce(policy_id, rules)


def policy_of(tx: Connection, service: Service, policy_id: int) -> Policy | None:
    """The policy of that row, parsed once: a row never changes."""
    if (known := service.policies.get(policy_id)) is not None:
        return known
    row = policies.by_id(tx, policy_id)
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
        "id": identifier(drawn[:ID_BYTES]),
        "flow": flow,
        "device_id": device.id,
        "ek_id": device.ek_id or device.identity_id,
        "proof": "credential" if device.identity_id is None else "quote",
        "ak_public": ak.public,
        "ak_name": ak.name,
        "nonce": drawn[ID_BYTES:-SECRET_BYTES],
        "secret": drawn[-SECRET_BYTES:],
        "pcr_bank": selection.bank,
        "pcrs": json.dumps(selection.pcrs),
        "boot_log": policy.rules.boot_log,
        "ima_log": policy.rules.ima_log,
        "policy_id": policy.id,
        "created_at": now,
        "expires_at": now + service.config.limits.challenge_seconds,
        "state": "open",
    }


def challenge_message(service: Service, row: dict[str, Any], ek: TrustedEk | None) -> Challenge:
    """The challenge as the device gets it. Only the TPM with this EK and this AK opens the credential (check 6).

    Without an EK there is none: the row says that the quote is the proof, and nobody learns its secret.
    """
    blob, secret = (b"", b"") if ek is None else make_credential(ek, row["ak_name"], row["secret"])
    return Challenge(
        enrollment_id=row["id"],
        audience=service.config.service_name,
        credential_blob=blob,
        encrypted_secret=secret,
        nonce=row["nonce"],
        pcr_selection=PcrSelection(row["pcr_bank"], tuple(json.loads(row["pcrs"]))),
        boot_log=row["boot_log"],
        expires_at=datetime.fromtimestamp(row["expires_at"], UTC),
        ima_log=row["ima_log"],
    )


def look(
    tx: Connection,
    service: Service,
    flow: Flow,
    enrollment_id: str,
    evidence_sha256: bytes,
    *,
    arrived: datetime,
    device_id: str | None,
) -> Answered:
    """The challenge that this evidence answers. `device_id` is the sender, where the channel authenticated one.

    The same evidence again is judged again, or gets its stored answer. It changes nothing: see `use_up`.

    Raises: ChallengeUnknown, ChallengeExpired, ChallengeTaken, or what this evidence was refused with before.
    """
    at = int(arrived.timestamp())
    row = enrollments.get(tx, enrollment_id)
    if row is None or row.flow != flow or device_id not in (None, row.device_id):
        raise ChallengeUnknown(expected="an open challenge", actual=enrollment_id[:64])
    if row.state == "open":
        if at > row.expires_at:
            raise ChallengeExpired(expected=f"an answer until {row.expires_at}", actual=at)
    elif row.evidence_sha256 != evidence_sha256:
        raise ChallengeTaken(expected="the evidence that came first", actual="other evidence")
    elif row.state == "refused":
        raise _refused_before(tx, row.refusal_id)
    device = devices.by_id(tx, row.device_id)
    rules = policy_of(tx, service, row.policy_id)
    if device is None or rules is None or (row.secret is None and row.answer is None):
        raise ChallengeUnknown(expected="an open challenge", actual="one whose device or policy is gone")
    approved = device.approved_until is not None and at <= device.approved_until
    return Answered(
        challenge=_challenge_of(service, row),
        evidence_sha256=evidence_sha256,
        opened=row.created_at,
        is_open=row.state == "open",
        ak_name=row.ak_name,
        device=device,
        policy=rules,
        policy_id=row.policy_id,
        previous=None if approved or row.ak_name != device.ak_name else tpm_state_of(device),
        release_values=release_values(devices.releases_of(tx, device.id), rules) if rules.release_pcrs else {},
        answer=row.answer,
        claims={} if row.claims is None else json.loads(row.claims),
        findings=row.findings,
    )


def use_up(tx: Connection, answered: Answered, at: int) -> None:
    """Take the challenge for this evidence, in the transaction of what it earns: of two answers exactly one is it.

    This very evidence may take it again: it was cut off before, or came twice.
    Challenges are opened before any of them is answered, so the day's quota is asked for again here (check 18).

    Raises: ChallengeTaken, EnrollmentQuotaSpent.
    """
    challenge, most = answered.challenge, answered.policy.enrollments_per_day
    if challenge.flow == "enroll" and answered.is_open:
        enrolled = devices.state_of(tx, answered.device.id) not in (None, "registered")
        if enrolled and enrollments.passed_since(tx, answered.device.id, at - DAY_SECONDS) >= most:
            raise EnrollmentQuotaSpent(expected=f"at most {most} a day", actual="one more")
    if not enrollments.take(tx, challenge.enrollment_id, answered.evidence_sha256):
        row = enrollments.get(tx, challenge.enrollment_id)
        if row is None or row.state == "refused" or row.evidence_sha256 != answered.evidence_sha256:
            raise ChallengeTaken(expected="one answer", actual="two")


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
        ima_log=row.ima_log,
        proof=row.proof,
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


def _refused_before(tx: Connection, refusal_id: str | None) -> Refusal:
    row = None if refusal_id is None else enrollments.refusal_by_id(tx, refusal_id)
    if row is None:
        return ChallengeTaken(expected="fresh evidence", actual="evidence that was refused before")
    again = refusal_class(row.code)(expected=row.expected, actual=row.actual)
    again.instance = row.id
    return again
