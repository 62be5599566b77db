"""How long stored evidence is kept, carried out: device by device, in small writes, so that nobody waits for it.

What stays is decided by `keeping`, in the transaction that removes the rest. The log keeps the hash of everything.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

import structlog
from prometheus_client import Counter
from sqlalchemy import Connection

from provisioning import keeping
from provisioning.config import Retention
from provisioning.db import logs, retention
from provisioning.db.devices import by_id
from provisioning.health import Health
from provisioning.keeping import Pass
from provisioning.service import Service

DAY_SECONDS = 86400
PAGE = 100
"""Devices of one read: some 10 ms."""
AT_ONCE = 32
"""Attestations of one write, at most."""
BYTES_AT_ONCE = 1024 * 1024
"""After so many bytes a write ends; one more log of 4 MiB at most is above that."""
PAUSE_SECONDS = 0.02
"""Between two writes, or two reads: whoever enrolls goes first."""
REST_SECONDS = 6 * 3600
"""From the end of one walk through the fleet to the next."""

REMOVED = Counter("muster_retention_removed", "Evidence that its age or a bound removed", ["what"])

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan:
    """What of one device goes next: some of it, if there is much."""

    attestations: tuple[Pass, ...]
    refusals: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Is there nothing to remove?"""
        return not (self.attestations or self.refusals)


class Walk:
    """One walk after another through the fleet, in the order of device ids. Where it is, dies with the process."""

    def __init__(self) -> None:
        self._behind = ""
        self._rests_until: int | None = None

    async def go_on(self, service: Service) -> None:
        """Walk to the end, then rest. Does nothing while it rests."""
        at = int(service.clock().timestamp())
        if self._rests_until is not None and at < self._rests_until <= at + REST_SECONDS:
            return
        attestations = refusals = 0
        while True:
            found, self._behind = await service.store.read(partial(_page, service, self._behind))
            for device_id in found:
                done = await self._clear(service, device_id)
                attestations, refusals = attestations + done[0], refusals + done[1]
            if not self._behind:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        self._rests_until = at + REST_SECONDS
        if attestations or refusals:
            _log.info("retention.done", attestations=attestations, refused=refusals)

    async def _clear(self, service: Service, device_id: str) -> tuple[int, int]:
        """Remove of one device whatever goes, a piece at a time; how many attestations, and refused evidences."""
        attestations = refusals = 0
        while not (done := await service.ledger.write(partial(remove, service, device_id))).is_empty:
            REMOVED.labels("attestation").inc(len(done.attestations))
            REMOVED.labels("refused").inc(len(done.refusals))
            attestations, refusals = attestations + len(done.attestations), refusals + len(done.refusals)
            await asyncio.sleep(PAUSE_SECONDS)
        return attestations, refusals


def planned(tx: Connection, rules: Retention, device_id: str, at: int) -> Plan:
    """What of a device goes next."""
    occasions = retention.occasions(tx, device_id, at)
    before = at - rules.attestations_days * DAY_SECONDS
    too_many = retention.beyond(tx, device_id, rules.attestations_per_device)
    if too_many is not None:  # not what is of today: a challenge that passed counts against the day's quota
        before = max(before, min(too_many + 1, at - DAY_SECONDS))
    known = retention.passes(tx, device_id, occasions)
    stays = keeping.needed(known, occasions) | occasions.earned
    old = retention.oldest(tx, device_id, before, AT_ONCE + len(stays))
    device = by_id(tx, device_id)
    unwell = device is not None and device.health in (Health.FAILING, Health.QUARANTINED)
    gone = keeping.expired_refusals(
        retention.refused_of(tx, device_id),
        at - rules.refused_days * DAY_SECONDS,
        rests=unwell or bool(occasions.found),
    )
    return Plan(keeping.expired(old, stays, before)[:AT_ONCE], gone)


def remove(service: Service, device_id: str, tx: Connection) -> Plan:
    """Remove what goes next of a device, as much as one write has room for; that is what is returned."""
    at = int(service.clock().timestamp())
    plan = planned(tx, service.config.retention, device_id, at)
    if plan.is_empty:
        return plan
    freed, passes, refusals = 0, list[Pass](), list[str]()
    for refusal_id in plan.refusals:
        if freed < BYTES_AT_ONCE:
            freed += retention.forget_refused(tx, refusal_id)
            refusals.append(refusal_id)
    naming = logs.naming(tx, device_id, sorted({sha256 for one in plan.attestations for sha256 in one.logs}))
    for one in plan.attestations:
        if freed < BYTES_AT_ONCE:
            freed += retention.forget_attestation(tx, device_id, one, naming, at)
            passes.append(one)
    until = max((one.at for one in passes), default=None)
    retention.note(tx, device_id, at, attestations=len(passes), until=until, refusals=len(refusals))
    return Plan(tuple(passes), tuple(refusals))


def _page(service: Service, behind: str, tx: Connection) -> tuple[list[str], str]:
    """The devices of the next page of which something goes; the last one of the page, empty behind the last page."""
    at, rules = int(service.clock().timestamp()), service.config.retention
    before, refused = (at - days * DAY_SECONDS for days in (rules.attestations_days, rules.refused_days))
    old, last = retention.with_old(tx, behind, before, refused, rules.attestations_per_device, PAGE)
    return [one for one in old if not planned(tx, rules, one, at).is_empty], last
