"""Re-attestation: who is due is asked to prove again what it runs, and who does not answer is found out.

A device is due a period after it passed (`attest_every` of its policy, a tenth more or less), and after each further
period without a pass; when its agent started again; and when an operator says so. Periods are counted by asking: a
service that was down for a week finds nobody silent when it comes up, and asks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from provisioning import findings, health, outbox
from provisioning.attestation.policy import Policy
from provisioning.challenges import policy_for
from provisioning.db import commands, devices
from provisioning.db.devices import Record
from provisioning.findings import Noticed
from provisioning.monitoring import Kind
from provisioning.refusals import NoPolicyForModel, StateConflict
from provisioning.service import Service

PAGE = 250
"""Devices of one transaction: some 30 ms, so that who enrolls meanwhile does not wait."""
PAGES = 40
"""Of one step: 10,000 devices that are due in the same second are asked in it."""
BY_SERVICE = "service"
FRESH_SECONDS = 600
"""An agent that passed so recently, and was not heard since, has most likely started before it passed."""
OCCASIONS_MOST, OCCASIONS_SECONDS = 12, 3600
"""So often in so long a device is asked because of what it says of itself: each pass is a record, a leaf and its logs,
and a device that is in somebody else's hands says what it likes. Its period and operators ask all the same."""
EARLY = 0.9
"""A device is due after nine tenths of its period at the earliest."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one look at one device comes to."""

    event: health.Event | None
    """What it means for the device's health."""
    ask: bool
    due: int | None
    """When to look again; None: not until it passes."""
    asked: int


def next_step(row: Record, policy: Policy | None, at: int, drawn: bytes) -> Step:
    """The rule. `drawn` are two random bytes, which spread the next time.

    Asked `silent_after` times in vain: silence. Once: whatever it was, it is not known to be it any more.
    """
    if policy is None or policy.attest_every == 0 or row.state != "active" or row.assurance != "attested":
        return Step(None, ask=False, due=None, asked=0)
    if row.health in health.NARROWED:  # it has no line, and knows the way back
        return Step(None, ask=False, due=None, asked=row.attest_asked)
    passed = row.registered_at if row.last_attested_at is None else row.last_attested_at
    if row.attest_asked == 0 and at < passed + policy.attest_every * EARLY:  # its policy's period became longer
        return Step(None, ask=False, due=health.due_at(policy, passed, drawn), asked=0)
    if row.attest_asked >= policy.silent_after:
        return Step(health.Event.SILENCE, ask=False, due=None, asked=row.attest_asked)
    event = health.Event.MISSED if row.attest_asked else None
    return Step(event, ask=True, due=health.due_at(policy, at, drawn), asked=row.attest_asked + 1)


async def ask_due(service: Service) -> int:
    """Ask every device that is due, a page at a time by an index; how many there were."""
    seen = 0
    for _ in range(PAGES):
        found = await service.ledger.write(lambda tx: _page(tx, service))
        seen += found
        if found < PAGE:
            break
    return seen


def _page(tx: Connection, service: Service) -> int:
    at = int(service.clock().timestamp())
    rows = devices.due_to_attest(tx, at, PAGE)
    if not rows:
        return 0
    policies = _policies(tx, service)
    drawn = service.entropy(2 * len(rows))
    steps = [
        (row, next_step(row, policies(row.model, row.group), at, drawn[2 * n : 2 * n + 2]))
        for n, row in enumerate(rows)
    ]
    devices.asked_to_attest(tx, [(row.id, step.due, step.asked) for row, step in steps])
    for row, step in steps:
        if step.ask:
            outbox.put(tx, service, outbox.Order("attest", row.id, BY_SERVICE))
        if step.event is not None:
            _happened(tx, service, row, step, at)
    return len(rows)


def _happened(tx: Connection, service: Service, row: Record, step: Step, at: int) -> None:
    why = f"asked {row.attest_asked} times without a pass"
    if step.event is health.Event.SILENCE:
        detail = {"asked": row.attest_asked, "last_attested": row.last_attested_at}
        findings.notice(tx, service, Noticed(row.id, Kind.SILENT, detail))
    if step.event is not None:
        health.change(tx, service, row, step.event, at, why=why)


def _policies(tx: Connection, service: Service) -> Callable[[str, str | None], Policy | None]:
    """The policy in force of a model and group, looked up once each."""
    known: dict[tuple[str, str | None], Policy | None] = {}

    def find(model: str, group: str | None) -> Policy | None:
        if (model, group) not in known:
            try:
                known[model, group] = policy_for(tx, service, model, group).rules
            except NoPolicyForModel:
                known[model, group] = None
        return known[model, group]

    return find


def agent_started(tx: Connection, service: Service, device: Record, known: Record | None, at: int) -> None:
    """A hello of a new session: the agent started, and most likely the machine. What it booted is asked for at once.

    An enrollment forgets the session, so the first hello after one, soon, is of the start that just attested.
    """
    due = device.state == "active" and device.next_attest_at is not None
    just_passed = known is None and device.last_attested_at is not None and device.last_attested_at + FRESH_SECONDS > at
    if device.ak_public is not None and (due or device.health in health.NARROWED) and not just_passed:
        ask_at_once(tx, service, device.id, at)


def ask_at_once(tx: Connection, service: Service, device_id: str, at: int) -> None:
    """What a device says of itself is the occasion: it started, or it runs a new release. Not without end."""
    if commands.made_since(tx, device_id, "attest", at - OCCASIONS_SECONDS) < OCCASIONS_MOST:
        outbox.put(tx, service, outbox.Order("attest", device_id, BY_SERVICE))


async def demand(service: Service, name: str, *, by: str) -> Record:
    """Ask one device now. Raises: NotFound, StateConflict (it has no TPM that could)."""
    device = await service.store.read(lambda tx: devices.by_name(tx, name))
    if device is not None and device.ak_public is None:
        raise StateConflict(expected="a device that attested before", actual=f"assurance {device.assurance}")
    return await outbox.order(service, name, "attest", by=by)
