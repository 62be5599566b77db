"""A device's health, as one transition table: what it proved, failed to prove or kept silent about decides what it may.

| health | it got there by | it may |
| --- | --- | --- |
| healthy | a pass | all |
| unknown | never attested, or asked once without an answer | all; what EST renews lasts a day |
| failing | own evidence refused, where the policy says no more than that | what it has, until that ends; nothing new |
| silent | no pass for `silent_after` periods | come back by a pass |
| quarantined | own evidence refused, or what was found about it | come back by a pass |

Quarantine puts the normal certificates on hold, marked as its own doing, in the transaction of what caused it: the
CRL, OCSP, the broker's rights and the live session follow from that as they follow a revocation, and every HTTP route
asks the record. A pass takes back what quarantine held; what an operator held stays held.
"""

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Connection

from provisioning.attestation.policy import Policy
from provisioning.db import devices, enrollments, findings, leaves, revocations
from provisioning.db.devices import Record
from provisioning.db.revocations import HEALTH, HOLD
from provisioning.issuance.tbs import Profile
from provisioning.journal import leaf
from provisioning.monitoring import CLONES, Kind
from provisioning.refusals import PassRequired, ProfileUnknown, Refusal, TpmCleared
from provisioning.service import Service


class Health(StrEnum):
    """What is believed of a device now."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    FAILING = "failing"
    SILENT = "silent"
    QUARANTINED = "quarantined"


class Event(StrEnum):
    """What happened to a device's health."""

    PASSED = "passed"
    """Evidence passed every check."""
    REFUSED = "refused"
    """Evidence of its own was refused, and that quarantines nobody: see `event_of`."""
    FAILED = "failed"
    """Evidence of its own was refused, and the policy says quarantine."""
    MISSED = "missed"
    """It was asked to attest, and a period went by without a pass."""
    SILENCE = "silence"
    """The last pass is older than the policy allows: that result has expired."""
    CLONED = "cloned"
    """Something was found that only a copy, or a rollback, explains; and the policy says quarantine."""
    RELEASED = "released"
    """An operator answers for a device that cannot attest."""


_H, _U, _F, _S, _Q = Health
NEXT: dict[tuple[Health, Event], Health] = {
    (health, event): after
    for event, row in {
        #                 healthy unknown failing silent quarantined
        Event.PASSED:    (_H,     _H,     _H,     _H,    _H),
        Event.REFUSED:   (_F,     _F,     _F,     _Q,    _Q),
        Event.FAILED:    (_Q,     _Q,     _Q,     _Q,    _Q),
        Event.MISSED:    (_U,     _U,     _F,     _S,    _Q),
        Event.SILENCE:   (_S,     _S,     _S,     _S,    _Q),
        Event.CLONED:    (_Q,     _Q,     _Q,     _Q,    _Q),
        Event.RELEASED:  (_H,     _U,     _F,     _U,    _U),
    }.items()
    for health, after in zip(Health, row, strict=True)
}  # fmt: skip
"""Whole: every event is answered in every state. Nothing but a pass leads to healthy, and nothing but a pass or an
operator's word leads out of `NARROWED`."""

NARROWED = frozenset({Health.SILENT, Health.QUARANTINED})
"""The states in which a device has nothing but the way back."""
BY_SERVICE = "service"
JUDGED_CHECKS = frozenset({1, 5, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17})
"""The checks of section 1 that are about what the evidence proves. The others are about the record: another AK that
waits for approval, a key used twice, a quota, a policy that is missing."""
WHY_MOST = 200


def event_of(refusal: Refusal, policy: Policy | None) -> Event:
    """What a refusal of a device's own evidence means for its health."""
    quarantines = policy is not None and policy.on_failure == "quarantine"
    if quarantines and refusal.check in JUDGED_CHECKS and not isinstance(refusal, TpmCleared | ProfileUnknown):
        return Event.FAILED
    return Event.REFUSED


def change(tx: Connection, service: Service, device: Record, event: str, at: int, *, why: str) -> str:
    """Let something happen to a device's health, in the transaction of what it was; the new state is returned.

    A change is a leaf of the log. Into quarantine or silence: the normal certificates go on hold. Out of them: what
    quarantine held is released, and quarantine's own certificates end. A device that is revoked for good has no health
    to change; one that never was in service can only be failing, there is nothing to take from it.
    """
    happened = Event(event)
    known = devices.by_id(tx, device.id)
    if known is None or (known.state == "revoked" and known.held_from is None):
        return str(device.health)
    before = Health(known.health)
    after = _next(tx, known, before, happened)
    if after is before:
        if happened is Event.CLONED:  # from now on a pass alone does not lead out
            devices.change(tx, known.id, health_event=happened, health_why=why[:WHY_MOST])
        return after
    devices.change(tx, known.id, health=after, health_at=at, health_event=happened, health_why=why[:WHY_MOST])
    if after in NARROWED:
        _hold(tx, known.id, at)
    elif before in NARROWED:
        _release(tx, known.id, at)
    if before is Health.SILENT and happened is Event.PASSED:
        findings.close_kind(tx, known.id, Kind.SILENT, at=at, by=BY_SERVICE)
    record = {"device": known.id, "before": before, "after": after, "event": happened, "why": why[:WHY_MOST]}
    leaves.add(tx, leaf(service, "health", datetime.fromtimestamp(at, UTC), **record))
    return after


def due_at(policy: Policy, at: int, drawn: bytes) -> int | None:
    """When a device is asked to attest again that passed, or was asked, at `at`; None: never.

    The policy's period, a tenth more or less by two random bytes, so that a fleet that passed at once asks no more so.
    """
    if policy.attest_every == 0:
        return None
    part = int.from_bytes(drawn[:2], "big") / 0xFFFF  # 0 to 1
    return at + round(policy.attest_every * (0.9 + 0.2 * part))


def verify_not_narrowed(device: Record) -> None:
    """Is the device one that may use what it has? For each request, and for what is signed. Raises: PassRequired."""
    if device.health in NARROWED:
        raise PassRequired(expected="a device that passed its attestation", actual=f"health {device.health}")


def may_return(tx: Connection, device: Record) -> bool:
    """May a pass end this quarantine? Not while a finding is open that a clone would pass just as well."""
    cloned = device.health == Health.QUARANTINED and device.health_event == Event.CLONED
    return not (cloned and findings.is_open(tx, device.id, *CLONES))


def release_held(tx: Connection, device: Record | None, certificate: Record, at: int) -> bool:
    """End an operator's hold; where quarantine wants the certificate held, the hold is quarantine's from now on.

    False where no operator holds it.
    """
    if device is not None and device.health in NARROWED and is_normal(certificate):
        held = certificate.state == "revoked" and certificate.reason == HOLD and certificate.held_by is None
        return held and revocations.hand_over(tx, certificate.serial, HEALTH)
    return revocations.release(tx, certificate.serial, at=at)


def is_normal(certificate: Record) -> bool:
    """Does quarantine hold a certificate like this one?"""
    return bool(certificate.profile != Profile.QUARANTINE)


def _next(tx: Connection, device: Record, before: Health, event: Event) -> Health:
    if event is Event.PASSED and not may_return(tx, device):
        return before
    after = NEXT[before, event]
    never = device.state == "registered" and device.assurance == "attested"
    if after is Health.QUARANTINED and never and event is Event.FAILED:
        return Health.FAILING
    return after


def _hold(tx: Connection, device_id: str, at: int) -> None:
    for certificate in enrollments.certificates_of(tx, device_id):
        if is_normal(certificate) and certificate.state != "revoked" and certificate.not_after > at:
            revocations.revoke(tx, certificate.serial, at=at, reason=HOLD, held_by=HEALTH)


def _release(tx: Connection, device_id: str, at: int) -> None:
    for certificate in enrollments.certificates_of(tx, device_id):
        if is_normal(certificate):
            revocations.release(tx, certificate.serial, at=at, held_by=HEALTH)
        else:
            revocations.revoke(tx, certificate.serial, at=at, reason="superseded")
