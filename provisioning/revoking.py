"""Revocation: a certificate or a device ends, for good or until it is released.

What follows it (CRL, OCSP, the broker, live sessions) reads the change from the database: none of it is done here, and
nothing here needs the HSM.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection

from provisioning import challenges, health
from provisioning.db import devices, enrollments, findings, judge_again, leaves, revocations
from provisioning.db.devices import Record
from provisioning.db.revocations import HOLD
from provisioning.issuance.revocation import REASONS
from provisioning.journal import leaf
from provisioning.monitoring import CLONES, Kind
from provisioning.refusals import NoPolicyForModel, NotFound, NotOnHold, RequestMalformed, StateConflict
from provisioning.service import Service

BY_OWNER = frozenset({"root-ca", "issuing-ca"})
"""Profiles of certificates that are revoked where the root's key is (`muster crl sign`)."""
BY_POLICY = "policy"
"""Who ended a device, where its policy did."""
_KEY_IN_TWO_PLACES = frozenset({Kind.TWO_SESSIONS, Kind.CLONED_STATE})


async def revoke_device(service: Service, name: str, reason: str, *, by: str) -> Record:
    """End a device: all its certificates are revoked, no challenge is opened for it again.

    Final, but for `certificate-hold`: what is on hold can be released, or revoked for good.
    Raises: NotFound, RequestMalformed, StateConflict.
    """
    _verify_reason(reason)
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "revocation", now, device=name, reason=reason, by=by)

    def write(tx: Connection) -> Record:
        device = devices.by_name(tx, name)
        if device is None:
            raise NotFound(expected="a device's id or serial", actual=name)
        if device.state == "revoked" and (device.held_from is None or reason == HOLD):
            raise StateConflict(expected="a device in service", actual=state_of(device))
        end_device(tx, device, reason, at)
        leaves.add(tx, entry)
        return device

    return await service.ledger.write(write)


def end_device(tx: Connection, device: Record, reason: str, at: int) -> None:
    """End a device in service and all its certificates, in the transaction of what ends it."""
    if reason == HOLD:
        devices.change(tx, device.id, state="revoked", held_from=device.state)
    else:
        devices.change(tx, device.id, state="revoked", held_from=None, health="quarantined")
    for certificate in enrollments.certificates_of(tx, device.id):
        revocations.revoke(tx, certificate.serial, at=at, reason=reason)


async def release_device(service: Service, name: str, *, by: str) -> Record:
    """Bring a device back that is on hold, with every certificate of it that is; the device as it is then is returned.

    Not what quarantine holds as well: that waits for a pass. What was found about it while it was on hold gets the
    answer of its policy now: it may be in quarantine, or revoked for good. A device that cannot attest is released
    from quarantine by this, since nothing else could. Raises: NotFound, NotOnHold.
    """
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "release", now, device=name, by=by)

    def write(tx: Connection) -> Record:
        device = devices.by_name(tx, name)
        if device is None:
            raise NotFound(expected="a device's id or serial", actual=name)
        if device.state == "revoked" and device.held_from is not None:
            devices.change(tx, device.id, state=device.held_from, held_from=None)
            for certificate in enrollments.certificates_of(tx, device.id):
                health.release_held(tx, device, certificate, at)
            leaves.add(tx, entry)
            _answer_found(tx, service, device.id, at)
            judge_again.add_device(tx, device.id)  # its policy may have changed meanwhile
        elif device.health in health.NARROWED and device.assurance != "attested":
            health.change(tx, service, device, "released", at, why=by)
            leaves.add(tx, entry)
        else:
            raise NotOnHold(expected="a device on hold", actual=f"{state_of(device)}, health {device.health}")
        return devices.by_id(tx, device.id) or device

    return await service.ledger.write(write)


def answer_clone(tx: Connection, service: Service, device_id: str, kind: Kind, at: int) -> str | None:
    """Carry out the policy's `on_clone` for what a device proved; what was done. Nothing while it is on hold."""
    device = devices.by_id(tx, device_id)
    if kind not in CLONES or device is None or device.state == "revoked":
        return None
    try:
        wanted = challenges.policy_for(tx, service, device.model, device.group).rules.on_clone
    except NoPolicyForModel:
        return None
    if wanted == "quarantine":
        health.change(tx, service, device, "cloned", at, why=kind.value)
        return wanted
    if wanted == "revoke":
        reason = "key-compromise" if kind in _KEY_IN_TWO_PLACES else "privilege-withdrawn"
        end_device(tx, device, reason, at)
        now = datetime.fromtimestamp(at, UTC)
        leaves.add(tx, leaf(service, "revocation", now, device=device.id, reason=reason, by=BY_POLICY))
        return wanted
    return None


def _answer_found(tx: Connection, service: Service, device_id: str, at: int) -> None:
    """What was found about a device while it was on hold, and is open still, has its consequence now."""
    for found in findings.unanswered(tx, device_id, CLONES):
        if (answer := answer_clone(tx, service, device_id, Kind(found.kind), at)) is not None:
            findings.set_response(tx, device_id, found.kind, answer, key=found.key)


async def revoke_certificate(service: Service, serial: str, reason: str, *, by: str) -> Record:
    """End one certificate; its device stays in service. Raises: NotFound, RequestMalformed, StateConflict."""
    _verify_reason(reason)
    now = service.clock()
    serial = serial.lower()
    entry = leaf(service, "revocation", now, serial=serial, reason=reason, by=by)

    def write(tx: Connection) -> Record:
        row = _certificate(tx, serial)
        if row.profile in BY_OWNER:
            raise StateConflict(expected="a certificate of an issuing CA", actual=f"a {row.profile}: muster crl sign")
        if not revocations.revoke(tx, serial, at=int(now.timestamp()), reason=reason):
            raise StateConflict(expected="a certificate in force", actual=f"revoked: {row.reason}")
        leaves.add(tx, entry)
        return row

    return await service.ledger.write(write)


async def release_certificate(service: Service, serial: str, *, by: str) -> Record:
    """End the hold of one certificate, whose device is in service. Raises: NotFound, NotOnHold, StateConflict."""
    now = service.clock()
    serial = serial.lower()
    entry = leaf(service, "release", now, serial=serial, by=by)

    def write(tx: Connection) -> Record:
        row = _certificate(tx, serial)
        device = None if row.device_id is None else devices.by_id(tx, row.device_id)
        if device is not None and device.state == "revoked":
            raise StateConflict(expected="a device in service", actual=f"device {device.id}: {state_of(device)}")
        if not health.release_held(tx, device, row, int(now.timestamp())):
            raise NotOnHold(expected="a certificate that an operator holds", actual=row.reason or f"state {row.state}")
        leaves.add(tx, entry)
        return row

    return await service.ledger.write(write)


async def revoke_authority(service: Service, serial: str, reason: str, *, by: str) -> Record:
    """End an issuing CA's certificate, for good: the next CRL of its root says so (`crls.sign_by_hand`).

    Raises: NotFound, RequestMalformed, StateConflict.
    """
    _verify_reason(reason)
    now = service.clock()
    serial = serial.lower()
    entry = leaf(service, "revocation", now, serial=serial, reason=reason, by=by)

    def write(tx: Connection) -> Record:
        row = _certificate(tx, serial)
        if row.profile != "issuing-ca" or reason == HOLD:
            raise StateConflict(expected="an issuing CA's certificate, for good", actual=f"{row.profile}, {reason}")
        if not revocations.revoke(tx, serial, at=int(now.timestamp()), reason=reason):
            raise StateConflict(expected="a certificate in force", actual=f"revoked: {row.reason}")
        leaves.add(tx, entry)
        return row

    return await service.ledger.write(write)


async def end_grace(service: Service) -> None:
    """Revoke the superseded certificates whose grace period is over."""
    now = service.clock()
    at = int(now.timestamp())
    due = await service.store.read(lambda tx: enrollments.due_for_revocation(tx, at))
    if not due:
        return
    entries = [leaf(service, "revocation", now, serial=row.serial, reason="superseded") for row in due]

    def write(tx: Connection) -> None:
        for row, entry in zip(due, entries, strict=True):
            if revocations.revoke(tx, row.serial, at=at, reason="superseded", kind=revocations.GRACE):
                leaves.add(tx, entry)

    await service.ledger.write(write)


def state_of(device: Record) -> str:
    """A device's state as a person reads it."""
    return "on-hold" if device.state == "revoked" and device.held_from is not None else str(device.state)


def state_after(reason: str) -> str:
    """The state that a revocation leaves, in the same words."""
    return "on-hold" if reason == HOLD else "revoked"


def to_throw_off(tx: Connection, changes: Sequence[Record]) -> set[str]:
    """The devices whose live session may hold a certificate that these changes revoked, or that ended themselves.

    Without a hello nobody knows which certificate it holds: it counts.
    """
    found = set()
    for change in changes:
        if change.reason is None or change.device_id is None or change.device_id in found:
            continue
        device = devices.by_id(tx, change.device_id)
        session = revocations.session_certificate(tx, change.device_id)
        if session is None or session.state == "revoked" or (device is not None and device.state == "revoked"):
            found.add(change.device_id)
    return found


def still_revoked(tx: Connection, changes: Sequence[Record]) -> list[Record]:
    """Those of these changes that nobody took back."""
    return [change for change in changes if revocations.is_revoked(tx, change.serial)]


def _certificate(tx: Connection, serial: str) -> Record:
    row = enrollments.certificate_by_serial(tx, serial)
    if row is None:
        raise NotFound(expected="a certificate's serial in hex", actual=serial)
    return row


def _verify_reason(reason: str) -> None:
    if reason not in REASONS:
        raise RequestMalformed(expected=", ".join(sorted(REASONS)), actual=reason)
