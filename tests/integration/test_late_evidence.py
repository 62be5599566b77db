"""Evidence that comes late, behind something else that happened; and evidence that comes without end."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from provisioning import attesting, enrollment, outbox, reattesting
from provisioning.db import commands, enrollments
from provisioning.db import findings as finding_rows
from provisioning.db.leaves import leaf as leaf_table
from provisioning.monitoring import Kind
from provisioning.refusals import ChallengeExpired, PcrsNotAccepted, TpmCleared, TpmWentBack
from tests.integration.test_health import certificates, enroll, fleet, member, members, record, service, tampered

__all__ = ["fleet", "member", "members", "service"]  # fixtures


async def open_and_answer(service, device):
    """Evidence of now that is not sent yet."""
    challenge = await enrollment.begin_enrollment(service, device.request(), source="test")
    evidence = device.answer(challenge)
    device.clock_ms += 1000
    return challenge.enrollment_id, evidence


async def send(service, enrollment_id, evidence):
    await enrollment.complete_enrollment(service, enrollment_id, evidence, arrived=service.clock(), source="test")


async def test_evidence_from_before_the_quarantine_does_not_lead_out_of_it(service, member):
    """Kept back while the boot was good, for the day that it is not: it says nothing about what runs now."""
    kept = await open_and_answer(service, member)
    service.clock.now += timedelta(seconds=5)
    with pytest.raises(PcrsNotAccepted):
        await enroll(service, tampered(member))
    service.clock.now += timedelta(seconds=5)
    with pytest.raises(ChallengeExpired):
        await send(service, *kept)
    assert (await record(service, member)).health == "quarantined"
    assert {state for state, _, _ in await certificates(service, member)} == {"revoked"}
    await enroll(service, member)
    assert (await record(service, member)).health == "healthy"


async def test_evidence_that_a_later_pass_overtook_on_its_way_is_no_rollback(service, member):
    """Who holds back a device's packets, and lets them go when it has enrolled anew, would have it quarantined."""
    late = await open_and_answer(service, member)
    service.clock.now += timedelta(seconds=5)
    await enroll(service, member)
    before = await record(service, member)
    with pytest.raises((TpmWentBack, TpmCleared)):
        await send(service, *late)
    after = await record(service, member)
    assert (after.health, after.clock) == ("healthy", before.clock)
    assert not await service.store.read(lambda tx: finding_rows.is_open(tx, after.id, Kind.ROLLBACK))


async def test_a_device_that_is_refused_without_end_fills_no_disk_and_stays_in_quarantine(service, member, monkeypatch):
    """Of each day so many refusals stay, with a leaf each; the others are forgotten as those of strangers are."""
    monkeypatch.setattr(attesting, "OWN_REFUSALS_MOST", 3)
    begin = int(service.clock().timestamp())

    async def refused(times):
        for _ in range(times):
            with pytest.raises(PcrsNotAccepted):
                await enroll(service, tampered(member))
        known = await record(service, member)

        def read(tx):
            leaves = tx.execute(select(leaf_table).where(leaf_table.c.kind == "refusal")).all()
            of_it = [one for one in leaves if json.loads(one.record)["device_id"] == known.id]
            return len(of_it), enrollments.own_refusals_since(tx, known.id, begin)

        return known.health, *(await service.store.read(read))

    assert await refused(3) == ("quarantined", 3, 3)
    await enroll(service, member)
    assert await refused(4) == ("quarantined", 3, 3)  # what follows for its health follows all the same
    service.clock.now += timedelta(days=1, seconds=1)
    assert await refused(1) == ("quarantined", 4, 4)


@pytest.mark.parametrize("ended", ["done", "expired", "failed", "refused"])
async def test_a_command_to_attest_is_forgotten_a_day_after_its_end_whatever_that_was(service, member, ended):
    """A device that fails every day would leave one for each, for good."""
    device = await reattesting.demand(service, member.serial, by="test")

    async def known():
        return [row.state for row in await service.store.read(lambda tx: commands.commands_of(tx, device.id, 9))]

    def end(tx):
        waiting = commands.pending_of(tx, device.id, "attest")
        return commands.finish(tx, waiting.message_id, state=ended)

    assert await service.ledger.write(end)
    await outbox.expire(service)
    assert await known() == [ended]
    service.clock.now += timedelta(seconds=outbox.SAID_KEPT_SECONDS + 1)
    await outbox.expire(service)
    assert await known() == []


async def test_a_challenge_is_known_as_long_as_the_command_that_it_came_with(service, member):
    """A late answer to a forgotten one would pass for a wrong answer to the last: for a clone's, which quarantines."""
    enrollment_id, _ = await open_and_answer(service, member)

    async def is_known(by):
        await outbox.expire(by)
        return await service.store.read(lambda tx: enrollments.get(tx, enrollment_id)) is not None

    usual = service.config
    longer = replace(usual, commands=replace(usual.commands, lifetime_seconds=2 * outbox.CHALLENGES_KEPT_SECONDS))
    service.clock.now += timedelta(seconds=usual.limits.challenge_seconds + outbox.CHALLENGES_KEPT_SECONDS + 1)
    assert await is_known(replace(service, config=longer))
    assert not await is_known(service)
