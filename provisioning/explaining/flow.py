"""Refusals, and what a mode let pass, explained to operators: what was wrong, what changed, what would accept it.

The edit of the policy is text. It is withheld where what was measured is unsigned, or was seen on fewer devices than
the policy says (`explain_least`), unless it is asked for all the same: that is a leaf of the log.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from provisioning.attestation.explanation import SECOND_PERSON, edit_of, withheld
from provisioning.attestation.explanation_edit import EditImpossible
from provisioning.challenges import policy_of, release_values
from provisioning.db import devices, enrollments, evidence, leaves, logs, policies, retention
from provisioning.db.devices import Record
from provisioning.explaining.text import Json, changed_text, edit_text, events_text, time_text
from provisioning.explaining.work import EXPIRED, NOT_KEPT, Case, Explained, explained
from provisioning.journal import leaf
from provisioning.keeping import LOOKED_BACK
from provisioning.observing import KEPT_CHECKS
from provisioning.refusals import NotFound, refusal_class
from provisioning.service import Service

COUNTED_MOST = 1000
"""Other devices that show a value are counted to here: more is as good as this."""
VALUES_MOST = 32
"""Values of one explanation whose devices are counted, and whose edits are written one by one."""
DAY_SECONDS = 86400
OF_A_POLICY = frozenset({13, 17})
"""The checks whose findings a policy's values decide."""


@dataclass(frozen=True, slots=True)
class Question:
    """What an operator asks. `name`: a refusal's id, an attestation's id, or a device.

    `monitor`: what a mode let pass, in the place of a refusal. `show_unsafe`: edits that are withheld otherwise.
    """

    name: str
    monitor: bool = False
    show_unsafe: bool = False


async def explain(
    service: Service, name: str, *, monitor: bool = False, show_unsafe: bool = False, by: str = ""
) -> Json:
    """One refusal, by its id, or the last one of a device; with `monitor`, what the policy's mode let pass.

    Raises: NotFound.
    """
    asked = Question(name, monitor, show_unsafe)
    case = await service.store.read(lambda tx: _case(tx, service, asked))
    found = await asyncio.to_thread(explained, case, service.clock(), service.ek_roots.store)
    counts = await service.store.read(lambda tx: _counted(tx, case, found))
    if show_unsafe:
        device = None if case.device is None else case.device.id
        entry = leaf(service, "explain-unsafe", service.clock(), explained=case.row.id, device=device, by=by)
        await service.ledger.write(lambda tx: leaves.add(tx, entry))
    told = await asyncio.to_thread(_of_evidence, case, found, counts, show_unsafe=show_unsafe)
    return {**_of_row(case), **told}


def _case(tx: Connection, service: Service, asked: Question) -> Case:
    """What was judged, its device, and what that device showed when it last passed. Raises: NotFound."""
    device = devices.by_name(tx, asked.name)
    refusal = None if asked.monitor else enrollments.refusal_by_id(tx, asked.name)
    passed = evidence.attestation_by_id(tx, asked.name)
    if passed is not None and not _softened(passed.findings):
        passed = None
    if refusal is None and passed is None and device is not None:
        if asked.monitor:
            passed = _let_pass(tx, device.id)
        else:
            refusal = enrollments.newest_refusal_of(tx, device.id)
    row = refusal or passed
    if row is None:
        _verify_not_removed(tx, asked.name)
        what = "an attestation with findings that a mode let pass" if asked.monitor else "a refusal id"
        raise NotFound(expected=f"{what}, or a device that was refused", actual=asked.name)
    device = device if row.device_id is None else devices.by_id(tx, row.device_id)
    kept = evidence.refused_evidence(tx, row.id) if refusal is not None else None
    in_force = None if device is None else policies.newest_policy(tx, device.model, device.group)
    rules = None if in_force is None else policy_of(tx, service, in_force.id)
    judged_id = passed.policy_id if refusal is None and passed is not None else kept.policy_id if kept else None
    before = _before(tx, device, row)
    judged = passed if refusal is None else None
    return Case(
        row=row,
        monitor=refusal is None,
        device=device,
        in_force=in_force,
        policy=rules,
        judged_by=None if judged_id is None else policies.by_id(tx, judged_id),
        evidence=kept if refusal is not None else passed,
        logs=(kept.boot_log, kept.ima_log) if kept is not None else _logs(tx, judged),
        before=before,
        before_logs=_logs(tx, before),
        releases=release_values(devices.releases_of(tx, device.id), rules) if device and rules else {},
        why_none=_why_none(service, row) if refusal is not None else NOT_KEPT,
        removed=(*_removed(tx, judged, "its"), *_removed(tx, before, "of what passed before, the")),
    )


def _verify_not_removed(tx: Connection, name: str) -> None:
    """Raises: NotFound, where that was an attestation that is known to be removed."""
    gone = retention.removed_attestation_by_id(tx, name)
    if gone is not None:
        what = f"of {gone.device_id}, {time_text(gone.at)}: removed by retention {time_text(gone.removed_at)}"
        raise NotFound(expected="evidence that is still kept", actual=f"the {gone.flow} evidence {what}")


def _why_none(service: Service, refusal: Record) -> str:
    """Why a refusal's evidence, if there was any, is not there."""
    days, at = service.config.retention.refused_days, int(service.clock().timestamp())
    of_age = refusal.own and refusal_class(refusal.code).check in KEPT_CHECKS and refusal.at < at - days * DAY_SECONDS
    return EXPIRED.format(days) if of_age else NOT_KEPT


def _removed(tx: Connection, row: Record | None, whose: str) -> tuple[str, ...]:
    gone = [] if row is None else retention.logs_removed(tx, row)
    return tuple(f"{whose} {what} was removed by retention" for what in gone)


def _let_pass(tx: Connection, device_id: str) -> Record | None:
    """The newest evidence of a device that passed only because of the policy's mode."""
    for row in evidence.findings_of_passed(tx, device_id, 2**62, LOOKED_BACK):
        if _softened(row.findings):
            return evidence.attestation_by_id(tx, row.id)
    return None


def _softened(findings: str) -> bool:
    return any(finding.get("refused") for finding in json.loads(findings))


def _before(tx: Connection, device: Record | None, row: Record) -> Record | None:
    """The newest evidence that passed before, with nothing to be refused in it."""
    if device is not None:
        for one in evidence.findings_of_passed(tx, device.id, row.at, LOOKED_BACK):
            if one.id != row.id and not _softened(one.findings):
                return evidence.attestation_by_id(tx, one.id)
    return None


def _logs(tx: Connection, row: Record | None) -> tuple[bytes | None, bytes | None]:
    named = (None, None) if row is None else (row.boot_log_sha256, row.ima_log_sha256)
    boot, ima = (None if one is None else logs.content_of(tx, one) for one in named)
    return boot, ima


def _counted(tx: Connection, case: Case, found: Explained) -> list[int]:
    """How many other devices of the model show each value: one range of an index for each. Of a request, nothing is."""
    if case.device is None or case.evidence is None:
        return []
    model, device = case.device.model, case.device.id
    values = [proposal.value for proposal in found.proposals[:VALUES_MOST]]
    return [evidence.others_showing(tx, model, value, device, COUNTED_MOST) for value in values]


def _of_row(case: Case) -> Json:
    """What was recorded at the time."""
    row, device = case.row, case.device
    shown: Json = {
        "at": time_text(row.at),
        "flow": row.flow,
        "device": None if device is None else device.id,
        "model": None if device is None else device.model,
    }
    if case.monitor:
        title = "The policy's mode let pass what it would refuse when it is enforced"
        return {**shown, "refusal": None, "attestation": row.id, "serial": device and device.serial, "title": title}
    kind = refusal_class(row.code)
    return {
        **shown,
        "refusal": row.id,
        "attestation": None,
        "code": row.code,
        "name": kind.__name__,
        "check": kind.check,
        "title": kind.title,
        "serial": row.serial if device is None else device.serial,
        "source": row.source,
        "proven_own": row.own,
        "expected": row.expected,
        "actual": row.actual,
        "cure": kind.cure,
    }


def _of_evidence(case: Case, found: Explained, counts: Sequence[int], *, show_unsafe: bool) -> Json:
    """What the evidence itself says, judged by the policy in force."""
    least = 0 if case.policy is None else case.policy.explain_least
    reasons: list[str] = []
    proposals: list[Json] = []
    for number, proposal in enumerate(found.proposals):
        others = counts[number] if number < len(counts) else None
        hidden = withheld(proposal, (others or 0) + 1, least)
        if hidden is not None:
            reasons.append(f"{proposal.what}: {hidden}")
        edit: Json | None = None
        wanted = number < VALUES_MOST and (hidden is None or show_unsafe)
        if proposal.changes and wanted and case.in_force is not None:
            try:
                edit = edit_text(edit_of(case.in_force.text, proposal.changes))
            except EditImpossible as error:
                hidden = str(error)
        elif not proposal.changes:
            hidden = "no single value accepts this: change the rule, or the device"
        proposals.append(
            {
                "what": proposal.what,
                "expected": proposal.expected,
                "actual": proposal.actual,
                "others": others,
                "others_at_least": others == COUNTED_MOST,
                "signed": proposal.judged.signed,
                "why": proposal.judged.why,
                "events": events_text(proposal.events),
                "edit": edit,
                "withheld": hidden,
            }
        )
    whole = None if found.edit is None or (reasons and not show_unsafe) else edit_text(found.edit)
    return {
        "policy": _policy(case, found),
        "evidence": found.evidence,
        "changed": None if found.changed is None else changed_text(case.before, found.changed),
        "findings": _findings(case, proposals),
        "edit": whole,
        "withheld": "; ".join(reasons[:VALUES_MOST]) or found.why_no_edit,
        "second_person": SECOND_PERSON if found.proposals else None,
    }


def _findings(case: Case, proposals: list[Json]) -> list[Json]:
    """The findings that were recorded, each with its proposal; behind them what only the policy in force refuses."""
    recorded: list[Json] = json.loads(case.row.findings)
    if case.monitor:
        recorded = [finding for finding in recorded if finding.get("refused")]
    left = list(proposals)
    shown: list[Json] = []
    of_policy = case.monitor or refusal_class(case.row.code).check in OF_A_POLICY
    for finding in recorded:
        mine = next((one for one in left if (one["what"], one["actual"]) == (finding["what"], finding["actual"])), None)
        if mine is not None:
            left.remove(mine)
        told = {key: value for key, value in finding.items() if key != "cure" or not of_policy or _is_open(mine)}
        shown.append({**told, **({} if mine is None else {key: mine[key] for key in mine if key not in told})})
    return [*shown, *left]


def _is_open(proposal: Json | None) -> bool:
    """May the recorded cure be shown, which names the value? Only where the edit itself is."""
    return proposal is not None and proposal["edit"] is not None


def _policy(case: Case, found: Explained) -> Json | None:
    if case.in_force is None:
        return None
    return {
        "model": case.in_force.model,
        "group": case.in_force.group or None,
        "version": case.in_force.version,
        "mode": None if case.policy is None else case.policy.mode,
        "judged_by": None if case.judged_by is None else case.judged_by.version,
        "accepts_it_now": found.accepted_now,
    }
