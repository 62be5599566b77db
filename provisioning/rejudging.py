"""Stored evidence of a whole model under another policy, page by page: who would fail, and who was refused before.

Reading is on the store's threads, a few devices at a time; judging on a thread of its own, one evidence at a time, so
that neither the loop nor the memory knows how large the fleet is.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection

from provisioning.attestation.appraisal import softened
from provisioning.attestation.learning import Lessons
from provisioning.attestation.policy import Policy
from provisioning.attestation.rejudging import REMOVED, StoredEvidence, Verdict, judge_again, verify_shown
from provisioning.challenges import release_values
from provisioning.db import attestations, devices, evidence, logs
from provisioning.db.attestations import Place
from provisioning.db.devices import Record
from provisioning.endorsing import endorse, request_of
from provisioning.refusals import Finding, NotFound, Refusal, RequestMalformed, StateConflict
from provisioning.service import Service
from wire.codec import rfc3339

Json = dict[str, object]
_Listing = Callable[[Connection, str, Place, int], Sequence[Record]]
PAGE_MOST = 100
"""Evidences judged for one request, at most."""
PAGE_SECONDS = 5.0
"""After so long a page ends where it is: one with IMA logs of 4 MiB costs seconds for each."""
BATCH = 20
"""Evidences read at once, without their logs."""
LOGS_KEPT = 4
"""Boot logs held at a time: devices of one model boot alike."""
LEARNED_MOST = 200
"""Devices that one learning reads."""
LEARNED_SECONDS = 30.0
COMPARED_SECONDS = 20.0
"""How long one request may compare two policies by what was refused."""
REPORTED_MOST = 20
"""Of what a policy would accept and was refused, so many are named."""


@dataclass(frozen=True, slots=True)
class Item:
    """One stored evidence, its device, and the releases whose values the device may show."""

    device: Record
    row: Record
    releases: list[Record]


@dataclass(frozen=True, slots=True)
class Page:
    """What one page of evidence came to. `rows`: those that did not pass. `behind`: None where it was the last."""

    judged: int
    rows: list[Json]
    behind: Place | None


class _Logs:
    """Logs by their hash; the last few boot logs stay."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._boot: dict[str, bytes | None] = {}

    async def of(self, row: Record) -> tuple[bytes | None, bytes | None]:
        """The boot log and the IMA log that stored evidence names."""
        boot, ima = row.boot_log_sha256, row.ima_log_sha256
        if boot is not None and boot not in self._boot:
            while len(self._boot) >= LOGS_KEPT:
                del self._boot[next(iter(self._boot))]
            self._boot[boot] = await self._read(boot)
        return None if boot is None else self._boot[boot], None if ima is None else await self._read(ima)

    async def _read(self, sha256: str) -> bytes | None:
        return await self._service.store.read(lambda tx: logs.content_of(tx, sha256))


async def judge_page(service: Service, policy: Policy, behind: Place, *, every: bool) -> Page:
    """The next evidence of a policy's devices, judged as if the policy were enforced: each device's newest, or every.

    The EK is judged again, too, by today's store of roots.
    """
    timer = asyncio.get_running_loop().time
    until, judged, rows, read = timer() + PAGE_SECONDS, 0, list[Json](), _Logs(service)
    while judged < PAGE_MOST:
        place = behind
        found, behind = await service.store.read(partial(_batch, policy, place, every=every))
        for item in found:
            stored = StoredEvidence(item.row.evidence, item.row.ak_public, *await read.of(item.row))
            verdict = await asyncio.to_thread(_judged, service, service.clock(), policy, item, stored)
            judged += 1
            if verdict.outcome != "pass":
                rows.append(_row(item, verdict))
            if timer() > until:
                return Page(judged, rows, _place_of(item, every=every))
        if not found and behind == place:
            return Page(judged, rows, None)
    return Page(judged, rows, behind)


def place_from(text: str) -> Place:
    """The place that an earlier page named. Raises: RequestMalformed."""
    device, _, rest = text.partition(":")
    at, _, name = rest.partition(":")
    if not rest:
        return Place(device)
    if not (at.isascii() and at.isdigit() and len(at) <= 15):  # noqa: PLR2004  digits of a 64-bit number, less a few
        raise RequestMalformed(expected="the place that the last page named", actual=text[:64])
    return Place(device, int(at), name)


def place_text(place: Place | None) -> str | None:
    """A place, for the next request."""
    if place is None:
        return None
    return place.device if place.at < 0 else f"{place.device}:{place.at}:{place.id}"


async def lessons_of(service: Service, policy: Policy, names: Sequence[str]) -> tuple[Lessons, list[str]]:
    """What these devices of a model showed last, verified again; and the serials of those with no evidence yet.

    Raises: NotFound, PolicyMalformed, StateConflict (too long); a Refusal, where stored evidence was written to.
    """
    timer = asyncio.get_running_loop().time
    until, read = timer() + LEARNED_SECONDS, _Logs(service)
    lessons, without = Lessons(policy), list[str]()
    for name in names:
        device, row = await service.store.read(partial(_newest_by_name, policy.model, name))
        if row is None:
            without.append(device.serial)
            continue
        boot, ima = await read.of(row)
        _verify_whole(device, row, boot, ima)
        stored = StoredEvidence(row.evidence, row.ak_public, boot, ima)
        await asyncio.to_thread(_learn, lessons, device.serial, stored)
        if timer() > until:
            raise StateConflict(expected=f"evidence that is read in {LEARNED_SECONDS:.0f} s", actual="more; name fewer")
    return lessons, without


def _verify_whole(device: Record, row: Record, boot: bytes | None, ima: bytes | None) -> None:
    """Are the logs that evidence names there? What a device booted is not learned from half of it.

    Raises: StateConflict.
    """
    named = ((row.boot_log_sha256, boot), (row.ima_log_sha256, ima))
    if any(sha256 is not None and content is None for sha256, content in named):
        again = f"muster devices attest {device.serial}"
        raise StateConflict(expected=f"the logs of the newest evidence of {device.serial}: {again}", actual=REMOVED)


def _learn(lessons: Lessons, serial: str, stored: StoredEvidence) -> None:
    lessons.add(serial, verify_shown(stored))


def _newest_by_name(model: str, name: str, tx: Connection) -> tuple[Record, Record | None]:
    device = devices.by_name(tx, name)
    if device is None or device.model != model or device.state in attestations.OUT_OF_SERVICE:
        raise NotFound(expected=f"the id or serial of a device of model {model}, in service", actual=name)
    return device, attestations.newest_of(tx, device.id)


def accepts(service: Service, now: datetime, policy: Policy, item: Item) -> bool:
    """Would a policy let pass what this device was refused for (`item.row`)? As it is: its mode may soften it.

    What it asks for and was not shown is no refusal: whoever asks the device sees. Pure work, for a thread.
    """
    kept, device = item.row, item.device
    if softened(policy, (device.id, device.serial)):
        return _endorsement_refusal(service, now, policy, device) is None
    stored = StoredEvidence(kept.evidence, kept.ak_public, kept.boot_log, kept.ima_log)
    return _judged(service, now, policy, item, stored).outcome != "fail"


async def accepts_what_was_refused(service: Service, before: Policy, after: Policy) -> tuple[Finding, ...]:
    """What `before` refuses of this model's devices, enforced, and `after` would not: from refusals and from reports.

    Of all groups: a device can be put into another one. Refused evidence is kept of each device, two of it; a report
    is evidence that passed because of the policy's mode.
    Where there is no time to compare them all, that is a finding, too.
    """
    timer = asyncio.get_running_loop().time
    until = timer() + COMPARED_SECONDS
    found: list[Finding] = []
    for pages, load in ((attestations.refused_behind, _refused), (attestations.reported_behind, _reported)):
        behind = Place()
        while rows := await service.store.read(partial(_listed, pages, after, behind)):
            for row in rows:
                compared = await load(service, row)
                if compared is not None and await _newly_accepted(before, after, compared):
                    found.append(_finding(compared))
                if timer() > until:
                    found.append(Finding("refused evidence", f"compared in {COMPARED_SECONDS:.0f} s", "more of it"))
                if timer() > until or len(found) >= REPORTED_MOST:
                    return tuple(found)
            behind = _behind(rows[-1])
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Compared:
    item: Item
    stored: StoredEvidence
    what: str


async def _refused(service: Service, row: Record) -> _Compared | None:
    def read(tx: Connection) -> _Compared | None:
        kept, device = evidence.refused_evidence(tx, row.refusal_id), devices.by_id(tx, row.device_id)
        if kept is None or device is None:
            return None
        stored = StoredEvidence(kept.evidence, kept.ak_public, kept.boot_log, kept.ima_log)
        return _Compared(Item(device, kept, devices.releases_of(tx, device.id)), stored, f"refusal {row.refusal_id}")

    return await service.store.read(read)


async def _reported(service: Service, row: Record) -> _Compared | None:
    def read(tx: Connection) -> Item | None:
        passed, device = attestations.newest_of(tx, row.device_id), devices.by_id(tx, row.device_id)
        return None if passed is None or device is None else Item(device, passed, devices.releases_of(tx, device.id))

    item = await service.store.read(read)
    if item is None:
        return None
    stored = StoredEvidence(item.row.evidence, item.row.ak_public, *await _Logs(service).of(item.row))
    return _Compared(item, stored, f"attestation {item.row.id}")


async def _newly_accepted(before: Policy, after: Policy, compared: _Compared) -> bool:
    """A policy that asks for more than was shown does not refuse what was shown: that counts as accepting it."""
    verdicts = [
        await asyncio.to_thread(_appraised, policy, compared.item, compared.stored) for policy in (after, before)
    ]
    return verdicts[0].outcome != "fail" and verdicts[1].outcome == "fail"


def _finding(compared: _Compared) -> Finding:
    device = compared.item.device
    return Finding(f"device {device.serial}", "refused, as by the policy in force", f"accepted: {compared.what}")


def _behind(row: Record) -> Place:
    return Place(row.device_id, row.at, row.refusal_id) if hasattr(row, "refusal_id") else Place(row.device_id)


def _listed(pages: _Listing, policy: Policy, behind: Place, tx: Connection) -> Sequence[Record]:
    return pages(tx, policy.model, behind, BATCH)


def _batch(policy: Policy, behind: Place, tx: Connection, *, every: bool) -> tuple[list[Item], Place]:
    """The next evidence and the place behind it. No evidence and the same place: that was all."""
    if every:
        return _batch_of_all(tx, policy, behind)
    found = attestations.newest_behind(tx, policy.model, policy.group, behind, BATCH)
    items = [
        Item(device, row, _releases(tx, policy, device.id))
        for device in found
        if (row := attestations.newest_of(tx, device.id)) is not None
    ]
    return items, Place(found[-1].id) if found else behind


def _batch_of_all(tx: Connection, policy: Policy, behind: Place) -> tuple[list[Item], Place]:
    device = devices.by_id(tx, behind.device)
    rows = [] if device is None else attestations.every_of(tx, device.id, behind, BATCH)
    if not rows:
        following = attestations.newest_behind(tx, policy.model, policy.group, behind, 1)
        if not following:
            return [], behind
        device = following[0]
        behind = Place(device.id)
        rows = attestations.every_of(tx, device.id, behind, BATCH)
    if not rows or device is None:
        return [], behind
    releases = _releases(tx, policy, device.id)
    return [Item(device, row, releases) for row in rows], Place(device.id, rows[-1].at, rows[-1].id)


def _releases(tx: Connection, policy: Policy, device_id: str) -> list[Record]:
    return devices.releases_of(tx, device_id) if policy.release_pcrs else []


def _place_of(item: Item, *, every: bool) -> Place:
    return Place(item.device.id, item.row.at, item.row.id) if every else Place(item.device.id)


def _appraised(policy: Policy, item: Item, stored: StoredEvidence) -> Verdict:
    values = release_values(item.releases, policy) if policy.release_pcrs else {}
    return judge_again(stored, policy, values)


def _judged(service: Service, now: datetime, policy: Policy, item: Item, stored: StoredEvidence) -> Verdict:
    verdict = _appraised(policy, item, stored)
    refusal = _endorsement_refusal(service, now, policy, item.device)
    if refusal is None:
        return verdict
    return Verdict("fail", (refusal, *verdict.refusals), verdict.lacks)


def _endorsement_refusal(service: Service, now: datetime, policy: Policy, device: Record) -> Refusal | None:
    """(2, 3) What is on record of the TPM, EK or IAK, by the roots that this policy names."""
    try:
        endorse(service, device, request_of(device, policy.banks), policy, now)
    except Refusal as refusal:
        return refusal
    return None


def _row(item: Item, verdict: Verdict) -> Json:
    return {
        "device": item.device.id,
        "serial": item.device.serial,
        "group": item.device.group,
        "attestation": item.row.id,
        "flow": item.row.flow,
        "at": rfc3339(datetime.fromtimestamp(item.row.at, UTC)),
        "verdict": verdict.outcome,
        "refusals": [_refusal(refusal) for refusal in verdict.refusals],
        "lacks": list(verdict.lacks),
    }


def _refusal(refusal: Refusal) -> Mapping[str, object]:
    findings: Sequence[Finding] = refusal.findings
    return {
        "code": refusal.code,
        "name": type(refusal).__name__,
        "title": refusal.title,
        "expected": refusal.expected,
        "actual": refusal.actual,
        "findings": [{"what": f.what, "expected": f.expected, "actual": f.actual} for f in findings],
    }
