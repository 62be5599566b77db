"""A changed policy and the devices that were refused: whom it accepts now is asked to attest, at once.

Whoever is in quarantine hears commands by its certificate of quarantine, whoever is failing by its normal one. What was
refused is judged again as `muster policy test` does, from its stored bytes; that decides who is asked, and nothing
else: healthy is who passes then.

The list (`db.judge_again`) is written in the transaction of what changed: a policy in force, a device's group, or a
refusal by a policy that had just been replaced. Who is worked off leaves it. Reading is on the store's threads, a few
devices at a time, judging on a thread of its own, one evidence at a time.
"""

import asyncio
from dataclasses import dataclass

from sqlalchemy import Connection

from provisioning import health, outbox
from provisioning.challenges import InForce, policy_for
from provisioning.db import devices, judge_again, policies
from provisioning.db.devices import Record
from provisioning.refusals import NoPolicyForModel
from provisioning.rejudging import Item, accepts
from provisioning.service import Service

BATCH = 20
"""Devices whose verdicts are written down together."""
BY_POLICY = "policy"
"""Who ordered a command that a change of policy is the occasion of."""

_Case = tuple[InForce, Item]
"""The policy that counts for a device now, and what that was refused for last."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a look at one device came to, and what it rests on: where that changed, it is looked at again."""

    device_id: str
    policy_id: int | None
    refusal_id: str | None
    accepted: bool


async def recall(service: Service) -> int:
    """Work off the list; how many devices were asked to attest."""
    place, asked = "", 0
    while batch := await service.store.read(lambda tx, behind=place: judge_again.behind(tx, behind, BATCH)):  # type: ignore[misc]  # bound now
        verdicts = [await _look(service, one) for one in batch]
        asked += await service.ledger.write(lambda tx, of=verdicts: _settle(tx, service, of))  # type: ignore[misc]  # bound now
        place = batch[-1]
    return asked


async def _look(service: Service, device_id: str) -> _Verdict:
    policy_id, refusal_id, case = await service.store.read(lambda tx: _case(tx, service, device_id))
    accepted = False
    if case is not None:
        policy, item = case
        accepted = await asyncio.to_thread(accepts, service, service.clock(), policy.rules, item)
    return _Verdict(device_id, policy_id, refusal_id, accepted)


def _case(tx: Connection, service: Service, device_id: str) -> tuple[int | None, str | None, _Case | None]:
    """The policy, the refusal, and what there is to judge: nothing where a pass is not what the device lacks."""
    device = devices.by_id(tx, device_id)
    policy_id = None if device is None else policies.newest_policy_id(tx, device.model, device.group)
    kept = None if device is None else judge_again.newest_refused(tx, device_id)
    refusal_id = None if kept is None else kept.refusal_id
    if device is None or kept is None or not _lacks_a_pass(tx, device):
        return policy_id, refusal_id, None
    try:
        policy = policy_for(tx, service, device.model, device.group)
    except NoPolicyForModel:
        return policy_id, refusal_id, None
    releases = devices.releases_of(tx, device_id) if policy.rules.release_pcrs else []
    return policy_id, refusal_id, (policy, Item(device, kept, releases))


def _settle(tx: Connection, service: Service, verdicts: list[_Verdict]) -> int:
    asked = 0
    for verdict in verdicts:
        device = devices.by_id(tx, verdict.device_id)
        if device is not None and _changed(tx, device, verdict):
            continue
        judge_again.remove(tx, verdict.device_id)
        if verdict.accepted and device is not None and _lacks_a_pass(tx, device):
            outbox.put_anew(tx, service, outbox.Order("attest", device.id, BY_POLICY))
            asked += 1
    return asked


def _changed(tx: Connection, device: Record, verdict: _Verdict) -> bool:
    """Is its policy another one since, or has it been refused again?"""
    policy_id = policies.newest_policy_id(tx, device.model, device.group)
    return (policy_id, judge_again.newest_refusal(tx, device.id)) != (verdict.policy_id, verdict.refusal_id)


def _lacks_a_pass(tx: Connection, device: Record) -> bool:
    """Is it in service, refused, and would a pass mend that?"""
    refused = device.state == "active" and device.health in judge_again.REFUSED
    return refused and health.may_return(tx, device)
