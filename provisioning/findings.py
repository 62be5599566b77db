"""Findings about devices: opened in the transaction of what showed them, seen and closed by operators.

A finding is a leaf of the log when it is opened and when it is closed. What the service thinks is a clone, a policy may
answer at once (`on_clone`): with quarantine, or with revocation. It may only do so for what the device itself proved.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Connection

from provisioning import revoking
from provisioning.db import devices, findings, leaves
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.monitoring import Kind, suspicion
from provisioning.refusals import NotFound, Refusal, StateConflict
from provisioning.service import Service
from wire.codec import rfc3339

Json = dict[str, object]
SHOWN = 20
"""Open findings that stand beside a device's record."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """What is to be found. `key` tells two findings of one kind apart.

    `proven`: the device itself proved it. What rests on another's word is a finding, and the device goes on.
    """

    device_id: str
    kind: Kind
    detail: Mapping[str, object] = field(default_factory=dict)
    key: str = ""
    proven: bool = True


def notice(tx: Connection, service: Service, noticed: Noticed) -> bool:
    """Open a finding, and do to the device what its policy says. False: it is open already, and was counted."""
    now = service.clock()
    at = int(now.timestamp())
    device, kind = noticed.device_id, noticed.kind
    if not findings.open(tx, device, kind, noticed.detail, at, key=noticed.key, proven=noticed.proven):
        return False
    answer = revoking.answer_clone(tx, service, device, kind, at) if noticed.proven else None
    if answer is not None:
        findings.set_response(tx, device, kind, answer, key=noticed.key)
    record = {"device": device, "finding": kind.value, "key": noticed.key, "response": answer}
    leaves.add(tx, leaf(service, "finding", now, **record))
    return True


def suspect(
    tx: Connection, service: Service, refusal: Refusal, flow: str, device_id: str, ak_name: bytes | None
) -> None:
    """Open what a refusal of a device's own evidence gives reason for. `ak_name` is the key that signed it."""
    kind = suspicion(refusal, flow)
    if kind is None:
        return
    detail = {"flow": flow, "code": refusal.code, "expected": refusal.expected, "actual": refusal.actual}
    if kind is Kind.AK_TWICE and ak_name is not None:
        notice_ak_twice(tx, service, device_id, ak_name)
        return
    notice(tx, service, Noticed(device_id, kind, detail))


def notice_ak_twice(tx: Connection, service: Service, device_id: str, ak_name: bytes) -> None:
    """One AK has signed for two records, which only one TPM can: about both of them."""
    for other in devices.others_with_ak(tx, ak_name, device_id):
        for one, two in ((device_id, other), (other, device_id)):
            detail = {"ak": ak_name.hex(), "also": two}
            notice(tx, service, Noticed(one, Kind.AK_TWICE, detail, key=two))


async def list_findings(
    service: Service, device: str | None, *, closed: bool, before: int | None, limit: int
) -> list[Json]:
    """The findings that are open, or all of them, the newest first. Raises: NotFound."""

    def read(tx: Connection) -> list[Record]:
        known = None if device is None else devices.by_name(tx, device)
        if device is not None and known is None:
            raise NotFound(expected="a device's id or serial", actual=device)
        device_id = None if known is None else known.id
        return findings.page(tx, device_id=device_id, closed=closed, before=before, limit=limit)

    return [as_json(row) for row in await service.store.read(read)]


def of_device(tx: Connection, device_id: str) -> list[Json]:
    """The newest open findings about one device."""
    return [as_json(row) for row in findings.page(tx, device_id=device_id, closed=False, before=None, limit=SHOWN)]


async def close_finding(service: Service, number: int, *, by: str) -> Json:
    """Close one: a person looked at it. What its policy did to the device stays. Raises: NotFound, StateConflict."""
    now = service.clock()
    at = int(now.timestamp())

    def write(tx: Connection) -> Json:
        row = findings.get(tx, number)
        if row is None:
            raise NotFound(expected="the number of a finding", actual=number)
        if not findings.close(tx, number, at=at, by=by):
            raise StateConflict(expected="an open finding", actual=f"closed by {row.closed_by}")
        record = {"device": row.device_id, "closed": row.kind, "key": row.key, "by": by}
        leaves.add(tx, leaf(service, "finding", now, **record))
        return {**as_json(row), "closed": _time(at), "closed_by": by}

    return await service.ledger.write(write)


async def count_open(service: Service) -> dict[str, int]:
    """How many findings of each kind are open."""
    return await service.store.read(findings.count_open)


def as_json(row: Record) -> Json:
    """A finding as operators see it."""
    return {
        "id": row.id,
        "kind": row.kind,
        "device": row.device_id,
        "serial": row.serial,
        "at": _time(row.at),
        "last": _time(row.last_at),
        "times": row.times,
        "response": row.response,
        "detail": json.loads(row.detail),
        "closed": _time(row.closed_at),
        "closed_by": row.closed_by,
    }


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))
