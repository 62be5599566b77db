"""Enrollment, top to bottom: a registered TPM asks, is challenged, proves, and gets its LDevID."""

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from provisioning import attesting, challenges, endorsing, remedy
from provisioning.attestation.appraisal import select_pcrs
from provisioning.attestation.identity import verify_answer
from provisioning.attesting import Refused
from provisioning.challenges import Answered
from provisioning.db import commands, devices, enrollments
from provisioning.db.devices import Record
from provisioning.endorsing import Named
from provisioning.findings import Noticed, notice
from provisioning.issuing import IssuedCertificate, certificate_of, issue, ldevid_order, renew_after
from provisioning.journal import leaf
from provisioning.logs import Logs, logs_of
from provisioning.monitoring import Kind
from provisioning.refusals import (
    ChallengeTaken,
    ChallengeUnknown,
    DeviceRevoked,
    EkNotRegistered,
    EnrollmentQuotaSpent,
    ProfileUnknown,
    Refusal,
    SerialHasAnotherTpm,
)
from provisioning.service import Service
from provisioning.verifier import Accepted
from wire.codec import encode
from wire.messages import (
    EVIDENCE_BODY_MOST,
    IMA_EVIDENCE_BODY_MOST,
    Challenge,
    EnrollmentRequest,
    Evidence,
    Issued,
    MqttAddress,
)

DAY = timedelta(days=1)
ISSUED = b"issued"
"""The stored answer of an enrollment that passed: the certificate of the same id says the rest."""


async def begin_enrollment(service: Service, request: EnrollmentRequest, *, source: str) -> Challenge:
    """Step 1. Order: caps (the decoder), registered TPM, policy, chain, AK, MakeCredential. Raises: Refusal."""
    known: Record | None = None
    try:
        named = endorsing.named_by(request)
        found = await service.store.read(lambda tx: _look_up(tx, service, request, named))
        device, policy, passed_today = found
        known = device
        if passed_today >= policy.rules.enrollments_per_day:
            raise EnrollmentQuotaSpent(
                expected=f"at most {policy.rules.enrollments_per_day} a day", actual=passed_today
            )
        endorsed = endorsing.endorse(service, device, request, policy.rules, service.clock(), service.ek_verdicts)
        selection = select_pcrs(policy.rules, request.pcr_banks)
        row = challenges.challenge_row(service, "enroll", device, endorsed.ak, selection, policy)
        claims = _claims(request, device)
        row["claims"] = json.dumps(claims) if claims else None
        row["identity"] = endorsing.identity_text(request)
        row["findings"] = attesting.findings_json(endorsed.findings) if endorsed.findings else None
        challenge = challenges.challenge_message(service, row, endorsed.ek)
    except Refusal as refusal:
        where = Refused("enroll", source, known.id if known else None, request.serial)
        await attesting.record_refusal(service, refusal, where)
        raise

    passed = endorsing.ek_columns(request, device)

    def write(tx: Connection) -> None:
        enrollments.add(tx, row)
        if passed != {name: getattr(device, name) for name in passed}:
            devices.change(tx, device.id, **passed)

    await service.ledger.write(write)
    return challenge


async def evidence_most(service: Service, enrollment_id: str) -> int:
    """Bytes that an answer to this challenge may have: only one that asks for an IMA log makes room for it."""
    row = await service.store.read(lambda tx: enrollments.get(tx, enrollment_id))
    wanted = row is not None and row.flow == "enroll" and row.ima_log != "none"
    return IMA_EVIDENCE_BODY_MOST if wanted else EVIDENCE_BODY_MOST


async def complete_enrollment(
    service: Service,
    enrollment_id: str,
    evidence: Evidence,
    *,
    arrived: datetime,
    source: str,
    received: bytes | None = None,
) -> Issued:
    """Step 2. The same evidence again gets the same answer. `received` are its bytes as they came. Raises: Refusal."""
    received = encode(evidence) if received is None else received
    digest = hashlib.sha256(received).digest()
    found = await service.store.read(
        lambda tx: challenges.look(tx, service, "enroll", enrollment_id, digest, arrived=arrived, device_id=None)
    )
    if found.answer is not None:
        return await _same_answer(service, found)
    where = Refused("enroll", source, found.device.id, found.device.serial, enrollment_id, evidence_sha256=digest)
    try:
        activated = verify_answer(evidence, evidence.csr, found.challenge)
        where = replace(where, own=True, answered=found, evidence=evidence)
        found = await _judge_claims(service, found)
        logs = await logs_of(service, evidence, found.challenge)
        if remedy.is_wanted(found):
            return _answer(service, found.device.id, await remedy.issue_way_back(service, found, evidence, logs))
        verified = await attesting.judge(service, evidence, logs, activated, found)
        return await _issue(service, found, verified, attesting.stored_form(evidence, received), logs)
    except ChallengeTaken:  # by other evidence, in between: that one is judged, and this one changes nothing
        raise
    except Refusal as refusal:
        if refusal.problem not in attesting.TRANSIENT:
            # A spent quota says nothing about what the device runs.
            own = where.own and not isinstance(refusal, EnrollmentQuotaSpent)
            await attesting.record_refusal(service, refusal, replace(where, own=own))
        raise


def _look_up(
    tx: Connection, service: Service, request: EnrollmentRequest, named: Named
) -> tuple[Record, challenges.InForce, int]:
    """Checks 18 (first part) and 20: which record this TPM is, and its policy. A claimed serial is the record's."""
    device = endorsing.device_of(tx, named)
    if device is None:
        if request.serial is not None and (known := devices.by_serial(tx, request.serial)):
            raise SerialHasAnotherTpm(expected=f"the TPM {known.ek_id or known.identity_id}", actual=named)
        raise EkNotRegistered(expected="the TPM of a registered device", actual=named)
    if request.serial not in (None, device.serial) and devices.by_serial(tx, request.serial) is None:
        raise SerialHasAnotherTpm(expected=f"this TPM is registered as {device.serial}", actual=request.serial)
    if device.state in attesting.FINAL:
        raise DeviceRevoked(expected="a device in service", actual=device.state)
    policy = challenges.policy_for(tx, service, device.model, device.group)
    if request.profile == remedy.PROFILE:
        remedy.verify_may_ask(tx, device, policy.rules)
    elif request.profile not in (None, device.profile):
        raise ProfileUnknown(expected=device.profile, actual=request.profile)
    since = int((service.clock() - DAY).timestamp())
    passed = 0 if device.state == "registered" else enrollments.passed_since(tx, device.id, since)
    return device, policy, passed


def _claims(request: EnrollmentRequest, device: Record) -> dict[str, str]:
    """What the request says that the record does not. Whoever knows the EK can say it: it waits for the proof."""
    said = {"serial": (request.serial, device.serial), "state_of": (request.state_of, device.id)}
    claims = {name: claimed for name, (claimed, ours) in said.items() if claimed not in (None, ours)}
    return claims | (remedy.CLAIM if request.profile == remedy.PROFILE else {})


async def _judge_claims(service: Service, found: Answered) -> Answered:
    """This TPM has proven itself, so what it said of itself counts now. Raises: SerialHasAnotherTpm."""
    device = found.device
    if (serial := found.claims.get("serial")) is not None:
        raise SerialHasAnotherTpm(expected=f"this TPM is registered as {device.serial}", actual=serial)
    state_of = found.claims.get("state_of")
    if state_of is None:
        return found

    def write(tx: Connection) -> Record | None:
        if devices.by_id(tx, state_of) is not None:
            detail = {"how": "the agent found another device's state", "state_of": state_of}
            notice(tx, service, Noticed(device.id, Kind.CLONED_STATE, detail))
        return devices.by_id(tx, device.id)

    changed = await service.ledger.write(write)  # the policy may have ended it for that
    return found if changed is None else replace(found, device=changed)


async def _issue(service: Service, answered: Answered, verified: Accepted, evidence: bytes, logs: Logs) -> Issued:
    device, now = answered.device, service.clock()
    attesting.verify_same_identity(device, answered, int(now.timestamp()))
    await attesting.verify_may_return(service, answered)
    order = ldevid_order(service, device, verified.spki, answered.challenge.enrollment_id)
    entry = leaf(
        service, "attestation", now, device=device.id, flow="enroll", evidence=hashlib.sha256(evidence).digest()
    )

    def recorded(tx: Connection, certificate: IssuedCertificate) -> None:
        outcome = attesting.Outcome(evidence, logs, verified.pcrs, verified.findings, ISSUED, entry)
        if not attesting.passed(service, tx, answered, outcome):
            enrollments.supersede(tx, device.id, but=certificate.serial, revoke_at=attesting.grace(service, now))
            commands.forget_session(tx, device.id)
        if answered.challenge.proof == "quote":
            endorsing.keep_identity(tx, device.id, answered.challenge.enrollment_id)

    def claim(tx: Connection, _again: bool) -> None:  # noqa: FBT001  the shape of a claim
        challenges.use_up(tx, answered, int(now.timestamp()))
        if device.ak_name != answered.ak_name:
            attesting.verify_ak_is_free(tx, answered)

    certificate = await issue(service, order, recorded, claim)
    return _answer(service, device.id, certificate)


async def _same_answer(service: Service, answered: Answered) -> Issued:
    enrollment_id = answered.challenge.enrollment_id
    row = await service.store.read(lambda tx: enrollments.certificate_of_enrollment(tx, enrollment_id))
    if row is None or row.signature is None:
        raise ChallengeUnknown(expected="the certificate of this enrollment", actual="none")
    return _answer(service, answered.device.id, certificate_of(row))


def _answer(service: Service, device_id: str, certificate: IssuedCertificate) -> Issued:
    mqtt = MqttAddress(service.config.listen.advertised_host, service.mqtt_port)
    chain = service.authorities.named(certificate.issuer).chain
    return Issued(device_id, certificate.der, chain, mqtt, renew_after(certificate))
