"""What operators see and decide: devices, stations, releases, certificates. JSON-ready values; no row leaves."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import get_args

from sqlalchemy import Connection

from provisioning import findings
from provisioning.attestation.keys import spki_of
from provisioning.attestation.structures import parse_public, parse_quote
from provisioning.challenges import policy_for
from provisioning.db import commands, devices, enrollments, est, leaves, retention
from provisioning.db.devices import Record
from provisioning.health import NARROWED, Health
from provisioning.issuance.tbs import Profile, assemble
from provisioning.journal import leaf
from provisioning.refusals import NoPolicyForModel, NotFound, ProfileUnknown, RequestMalformed, StateConflict
from provisioning.service import Service
from wire.binding import Flow
from wire.codec import b64url, rfc3339, unb64url

Json = dict[str, object]
APPROVAL = timedelta(hours=1)
"""How long an operator's approval of another AK, or of a cleared TPM, waits for the device."""
CHOSEN = (Profile.LDEVID, Profile.GATEWAY)
"""The kinds of profile that an operator may give a device."""


async def list_devices(service: Service, after: str, limit: int) -> list[Json]:
    """One page of the inventory, in the order of serials, behind `after`."""
    rows = await service.store.read(lambda tx: devices.after(tx, after, limit))
    return [_device(row) for row in rows]


async def show_device(service: Service, name: str) -> Json:
    """Everything about one device, by id or serial. Raises: NotFound."""

    def read(tx: Connection) -> Json:
        device = devices.by_name(tx, name)
        if device is None:
            raise NotFound(expected="a device's id or serial", actual=name)
        refusal = enrollments.newest_refusal_of(tx, device.id)
        assigned = commands.assignment_of(tx, device.id)
        passed = enrollments.attestations_of(tx, device.id, 5)
        return {
            **_device(device),
            "verdict": _verdict(device, passed),
            "attestation": _standing(tx, service, device, passed),
            "certificates": [_certificate(row) for row in enrollments.certificates_of(tx, device.id)],
            "commands": [_command(row) for row in commands.commands_of(tx, device.id, 10)],
            "attestations": [_attestation(row) | {"removed": retention.logs_removed(tx, row)} for row in passed],
            "retention": _removed(retention.removed_of(tx, device.id)),
            "update": None if assigned is None else _assignment(assigned),
            "last_refusal": None if refusal is None else refusal.id,
            "session": _session(commands.session_of(tx, device.id)),
            "requests": [_request(row) for row in est.requests_of(tx, device.id)],
            "findings": findings.of_device(tx, device.id),
        }

    return await service.store.read(read)


async def show_evidence(service: Service, name: str, flow: str) -> Json:
    """A device's newest evidence of one flow that passed, as it was received, and the certificate that it earned.

    For whoever wants to verify again with other tools. Raises: NotFound, RequestMalformed.
    """
    if flow not in get_args(Flow):
        raise RequestMalformed(expected=", ".join(get_args(Flow)), actual=flow)

    def read(tx: Connection) -> tuple[Record, Record, Record | None]:
        device = devices.by_name(tx, name)
        passed = None if device is None else enrollments.newest_attestation_of(tx, device.id, flow)
        if device is not None and passed is None and (gone := retention.newest_removed(tx, device.id, flow)):
            when = f"that of {_time(gone.at)} was removed by retention {_time(gone.removed_at)}"
            raise NotFound(expected=f"{flow} evidence that is kept; or another --flow", actual=when)
        if device is None or passed is None:
            raise NotFound(expected=f"a device whose {flow} evidence passed", actual=name)
        earned = (row for row in enrollments.certificates_of(tx, device.id) if row.enrollment_id == passed.id)
        return device, passed, next(earned, None)

    device, passed, certificate = await service.store.read(read)
    evidence = json.loads(passed.evidence)
    quote = parse_quote(unb64url(evidence["quote"]["attest"]))
    if certificate is not None and certificate.signature is None:
        certificate = None  # reserved, not signed yet
    return {
        "device": device.id,
        "serial": device.serial,
        "attestation": passed.id,
        "flow": passed.flow,
        "at": _time(passed.at),
        "ak_spki": b64url(spki_of(parse_public(passed.ak_public))),
        "qualification": quote.extra_data.hex(),
        "bank": quote.quoted.bank,
        "pcrs": list(quote.quoted.pcrs),
        "evidence": evidence,
        "certificate": None if certificate is None else b64url(assemble(certificate.tbs, certificate.signature)),
    }


async def approve(service: Service, name: str, *, by: str, key_id: str | None = None) -> Json:
    """Accept, for one hour and once, what a device of this name asked for.

    An attested device: another AK, or a cleared TPM. Others: the key that waits for approval (EST); where several
    wait, `key_id` says which. Raises: NotFound, StateConflict.
    """
    now = service.clock()
    until = now + APPROVAL
    named = {} if key_id is None else {"key": key_id}
    entry = leaf(service, "approval", now, device=name, by=by, **named)

    def write(tx: Connection) -> Json:
        device = devices.by_name(tx, name)
        if device is None or device.state in ("revoked", "decommissioned"):
            raise NotFound(expected="a device in service", actual=name)
        leaves.add(tx, entry)
        if device.assurance != "attested":
            key = _waiting_key(tx, device, key_id)
            est.approve(tx, device.id, key, until=int(until.timestamp()), by=by)
            return {"device": device.id, "key": key, "approved_until": rfc3339(until)}
        devices.change(tx, device.id, approved_until=int(until.timestamp()))
        return {"device": device.id, "approved_until": rfc3339(until)}

    return await service.ledger.write(write)


def _waiting_key(tx: Connection, device: Record, key_id: str | None) -> str:
    """The key to approve. Never a guess: a second request may have come since the operator looked."""
    waiting = [row.key_id for row in est.requests_of(tx, device.id)]
    if key_id is None and len(waiting) == 1:
        return str(waiting[0])
    if key_id in waiting and key_id is not None:
        return key_id
    if not waiting:
        raise StateConflict(expected="a key that waits for approval", actual="none")
    raise StateConflict(expected="one of " + ", ".join(waiting), actual=key_id or "no key named")


async def set_profile(service: Service, name: str, profile: str, *, by: str) -> Json:
    """The profile of a device's next enrollment or rotation. What it has keeps the one that it was issued under.

    Raises: NotFound, ProfileUnknown (none, or one of a kind that is not in `CHOSEN`), StateConflict.
    """
    await service.profiles.refresh(service.store)  # another worker may have set it a moment ago
    kind = service.profiles.of_device(profile).kind
    if kind not in CHOSEN:
        raise ProfileUnknown(expected="a profile of kind " + " or ".join(CHOSEN), actual=f"{profile}, of kind {kind}")
    entry = leaf(service, "device-profile", service.clock(), device=name, profile=profile, by=by)

    def write(tx: Connection) -> Json:
        device = devices.by_name(tx, name)
        if device is None:
            raise NotFound(expected="a device's id or serial", actual=name)
        if device.state in ("revoked", "decommissioned"):
            raise StateConflict(expected="a device in service", actual=device.state)
        devices.change(tx, device.id, profile=profile)
        leaves.add(tx, entry)
        return {"device": device.id, "profile": profile, "before": device.profile}

    return await service.ledger.write(write)


async def list_stations(service: Service) -> list[Json]:
    """All factory stations with what is left of their budgets."""
    rows = await service.store.read(devices.stations)
    return [{"name": row.name, "budget": row.budget, "used": row.used, "left": row.budget - row.used} for row in rows]


async def list_releases(service: Service) -> list[Json]:
    """All releases of the image repository."""
    columns = ("target", "version", "hardware", "release_counter", "length", "sha256", "withdrawn")
    return [{name: getattr(row, name) for name in columns} for row in await service.store.read(commands.releases)]


async def show_certificate(service: Service, serial: str) -> Json:
    """One certificate, by its serial in hex. Raises: NotFound."""
    row = await service.store.read(lambda tx: enrollments.certificate_by_serial(tx, serial.lower()))
    if row is None:
        raise NotFound(expected="a certificate's serial in hex", actual=serial)
    return _certificate(row)


async def list_certificates(service: Service, after: str, limit: int, state: str | None) -> list[Json]:
    """One page of certificates, in the order of serials, behind `after`; of one state, where it is given."""
    rows = await service.store.read(lambda tx: enrollments.certificates_after(tx, after, limit, state))
    return [_certificate(row) for row in rows]


async def figures(service: Service) -> Mapping[str, object]:
    """Counts for health and metrics."""

    def read(tx: Connection) -> Json:
        head = leaves.newest_checkpoint(tx)
        return {
            "devices": devices.count_by_state(tx),
            "commands_pending": commands.pending_count(tx),
            "leaves": leaves.count(tx),
            "checkpoint_size": 0 if head is None else head.size,
        }

    return await service.store.read(read)


_VERDICTS = {"refused": "refused", "failed": "refused", "missed": "no answer", "silence": "no answer"}


def _verdict(device: Record, passed: list[Record]) -> str:
    """How the device was judged last, in a few words. `passed`: its attestations that passed, the newest first."""
    if device.health == Health.HEALTHY or (device.health_event is None and device.last_attested_at is not None):
        let_pass = sum(bool(found.get("refused")) for found in json.loads(passed[0].findings)) if passed else 0
        return f"passed by the policy's mode: {let_pass} findings would be refused" if let_pass else "passed"
    if device.health_event is None:
        return "never attested"
    return f"{_VERDICTS.get(device.health_event, device.health_event)}: {device.health_why}"


def _standing(tx: Connection, service: Service, device: Record, passed: list[Record]) -> Json:
    """Since when its health is what it is, what it passed by, and when it has to show itself again."""
    try:
        rules = policy_for(tx, service, device.model, device.group).rules
    except NoPolicyForModel:
        rules = None
    return {
        "health_since": _time(device.last_attested_at if device.health == Health.HEALTHY else device.health_at),
        "quarantine": device.health in NARROWED,
        "passed_by": passed[0].flow if passed else None,
        "next_due": _time(device.next_attest_at),
        "asked_in_vain": max(0, device.attest_asked - 1),
        "attest_every": None if rules is None else rules.attest_every,
        "silent_after": None if rules is None else rules.silent_after,
    }


def _device(row: Record) -> Json:
    return {
        "id": row.id,
        "serial": row.serial,
        "model": row.model,
        "group": row.group,
        "assurance": row.assurance,
        "profile": row.profile,
        "state": "on-hold" if row.state == "revoked" and row.held_from is not None else row.state,
        "health": row.health,
        "station": row.station,
        "ek_id": row.ek_id,
        "ek_trust": row.ek_trust,
        "identity_id": row.identity_id,
        "registered": _time(row.registered_at),
        "last_attested": _time(row.last_attested_at),
        "next_due": _time(row.next_attest_at),
        "last_seen": _time(row.last_seen_at),
        "release_version": row.release_version,
        "release_counter": row.release_counter,
    }


def _certificate(row: Record) -> Json:
    return {
        "serial": row.serial,
        "issuer": row.issuer,
        "profile": row.profile,
        "subject": row.subject,
        "state": row.state,
        "not_before": _time(row.not_before),
        "not_after": _time(row.not_after),
        "revoked": _time(row.revoked_at),
        "reason": row.reason,
    }


def _command(row: Record) -> Json:
    return {
        "message_id": row.message_id,
        "kind": row.kind,
        "state": row.state,
        "ordered_by": row.ordered_by,
        "created": _time(row.created_at),
        "tries": row.tries,
        "result": row.result,
    }


def _attestation(row: Record) -> Json:
    """One that passed. What would mend what a mode let pass is said by an explanation alone, which may withhold it."""
    recorded: list[Json] = json.loads(row.findings)
    told = [
        {key: value for key, value in found.items() if not (key == "cure" and found.get("refused"))}
        for found in recorded
    ]
    return {"id": row.id, "flow": row.flow, "at": _time(row.at), "findings": told}


def _removed(row: Record | None) -> Json | None:
    """What retention removed of a device's evidence; None: nothing yet."""
    if row is None:
        return None
    counts = {"attestations": row.attestations, "refused": row.refused, "logs": row.logs}
    return {**counts, "until": _time(row.attestations_until), "last": _time(row.removed_at)}


def _request(row: Record) -> Json:
    return {"key": row.key_id, "asked": _time(row.asked_at), "approved_until": _time(row.approved_until)}


def _assignment(row: Record) -> Json:
    return {"target": row.target, "state": row.state, "detail": row.detail, "updated": _time(row.updated_at)}


def _session(row: Record | None) -> Json | None:
    if row is None:
        return None
    serial = row.certificate_serial
    return {"since_hello": _time(row.at), "trust_version": row.trust_version, "certificate_serial": serial}


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))
