"""The way back: a certificate of quarantine, for a device in quarantine whose policy has one.

The device enrolls as ever and asks for the profile `quarantine`. Its evidence has to pass every check but the ones
about what it booted: it is this TPM, this key, now. What it gets opens the routes and topics that lead back (its
update, an upload of logs, attest commands) and nothing else, and ends with the pass. Nothing counts as a pass here.
"""

from dataclasses import replace

from sqlalchemy import Connection

from provisioning import attesting, challenges, health
from provisioning.attestation.identity import verify_answer
from provisioning.attestation.policy import Policy
from provisioning.challenges import Answered
from provisioning.db import commands, devices, enrollments
from provisioning.db.devices import Record
from provisioning.health import Health
from provisioning.issuance.tbs import Profile
from provisioning.issuing import IssuedCertificate, issue, quarantine_order
from provisioning.logs import Logs
from provisioning.refusals import ProfileUnknown
from provisioning.service import Service
from wire.messages import Evidence

PROFILE = Profile.QUARANTINE.value
CLAIM = {"profile": PROFILE}
"""How a challenge says that its answer earns this (`Enrollment.claims`)."""
ANSWER = b"quarantine"


def is_wanted(answered: Answered) -> bool:
    """Was the challenge opened for a certificate of quarantine?"""
    return answered.claims.get("profile") == PROFILE


def verify_may_ask(tx: Connection, device: Record, policy: Policy) -> None:
    """Is there such a certificate for this device now? Raises: ProfileUnknown."""
    quarantined = device.state == "active" and device.health == Health.QUARANTINED
    if policy.on_failure != "quarantine" or not quarantined or not health.may_return(tx, device):
        actual = f"state {device.state}, health {device.health}"
        raise ProfileUnknown(expected="a device in quarantine that a pass leads out of", actual=actual)


async def issue_way_back(service: Service, answered: Answered, evidence: Evidence, logs: Logs) -> IssuedCertificate:
    """The certificate, for a key that the TPM certified. What the device booted is judged as in mode `monitor`.

    Raises: a Refusal of every other check; ProfileUnknown, where it is in quarantine no more.
    """
    now = service.clock()
    softened = replace(answered, policy=replace(answered.policy, mode="monitor"))
    activated = verify_answer(evidence, evidence.csr, answered.challenge)
    verified = await attesting.judge(service, evidence, logs, activated, softened)
    device, at = answered.device, int(now.timestamp())
    attesting.verify_same_identity(device, answered, at)
    order = quarantine_order(service, device, verified.spki, answered.challenge.enrollment_id)

    def claim(tx: Connection, _again: bool) -> None:  # noqa: FBT001  the shape of a claim
        current = attesting.verify_same_identity(devices.by_id(tx, device.id), answered, at)
        verify_may_ask(tx, current, answered.policy)
        challenges.use_up(tx, answered, at)

    def recorded(tx: Connection, certificate: IssuedCertificate) -> None:
        enrollments.passed(tx, answered.challenge.enrollment_id, ANSWER)
        enrollments.supersede(tx, device.id, but=certificate.serial, revoke_at=attesting.grace(service, now))
        commands.forget_session(tx, device.id)
        verify_may_ask(tx, attesting.verify_same_identity(devices.by_id(tx, device.id), answered, at), answered.policy)

    return await issue(service, order, recorded, claim)
