"""Who was refused and is accepted by a changed policy is asked to attest. Nobody is healthy by that."""

import asyncio
import re
from datetime import timedelta

import pytest

from provisioning import enrollment, outbox, policies, recalling, revoking
from provisioning.db import commands, enrollments, judge_again
from provisioning.db import policies as stored
from provisioning.findings import Noticed, notice
from provisioning.monitoring import Kind
from provisioning.refusals import PcrsNotAccepted
from tests.integration import test_rotation as rotation
from tests.integration.test_health import (
    certificates,
    enroll,
    fleet,
    member,
    members,
    record,
    service,
    tampered,
)
from tests.integration.test_rotation import agent, clock, ek_ca, policy, tpm
from wire.messages import Attest

__all__ = ["agent", "clock", "ek_ca", "fleet", "member", "members", "policy", "service", "tpm"]  # fixtures


@pytest.fixture
def strict(fleet):
    """The fleet's policy: what a tampered device boots is refused."""
    return fleet.policy.read_text()


@pytest.fixture
def lax(strict, member):
    """The same, but that it accepts the tampered boot too."""
    text = strict
    for pcr, value in tampered(member).boot.pcrs.items():
        text = re.sub(rf'^"{pcr}" = \[(.*)\]$', rf'"{pcr}" = [\1, "{value.hex()}"]', text, flags=re.MULTILINE)
    return text


@pytest.fixture
async def refused(service, member, strict):
    """A device in quarantine: it booted what its policy refuses. In a group of its own, to disturb no other test."""
    name = f"g-{member.serial}"
    await policies.set_policy(service, grouped(strict, name), by="ada")
    await policies.set_group(service, member.serial, name, by="ada")
    with pytest.raises(PcrsNotAccepted):
        await enroll(service, tampered(member))
    assert await asked(service, member) == []
    return member


def grouped(text, group):
    return f'group = "{group}"\n{text}'


async def promoted(service, text):
    """That text is proposed, and promoted by a second person."""
    draft = await policies.propose_policy(service, text, by="ada")
    await policies.promote_policy(service, draft["model"], draft["version"], by="bob")


async def changed(service, device, text):
    """That text is in force for the device's group."""
    await promoted(service, grouped(text, f"g-{device.serial}"))


async def asked(service, device):
    """Work the list off; who ordered this device to attest, of the commands that wait."""
    await recalling.recall(service)
    known = await record(service, device)
    rows = await service.store.read(lambda tx: commands.commands_of(tx, known.id, 9))
    assert await service.store.read(lambda tx: judge_again.behind(tx, "", 9)) == []
    return [row.ordered_by for row in rows if row.kind == "attest" and row.state == "pending"]


async def test_a_promoted_policy_that_accepts_what_was_refused_has_the_device_asked_and_no_more(service, refused, lax):
    await changed(service, refused, lax)
    assert await asked(service, refused) == ["policy"]
    assert (await record(service, refused)).health == "quarantined"
    assert {state for state, _, _ in await certificates(service, refused)} == {"revoked"}
    await enroll(service, tampered(refused))  # which a fresh pass ends
    assert (await record(service, refused)).health == "healthy"


async def test_a_policy_that_refuses_it_still_asks_nobody(service, refused, strict):
    await changed(service, refused, strict + "\n# another version\n")
    assert await asked(service, refused) == []


async def test_a_policy_that_only_reports_accepts_it(service, refused, strict):
    await changed(service, refused, strict.replace('model = "light"', 'model = "light"\nmode = "monitor"'))
    assert await asked(service, refused) == ["policy"]


async def test_another_group_has_it_asked(service, refused, lax):
    await promoted(service, grouped(lax, "lax"))
    assert await asked(service, refused) == []  # that policy is not its own
    await policies.set_group(service, refused.serial, "lax", by="ada")
    assert await asked(service, refused) == ["policy"]


async def test_whom_a_pass_would_not_help_is_not_asked(service, refused, lax):
    known = await record(service, refused)
    await service.ledger.write(lambda tx: notice(tx, service, Noticed(known.id, Kind.TWO_SESSIONS)))
    await changed(service, refused, lax)
    assert await asked(service, refused) == []


async def test_who_is_on_hold_is_asked_after_the_release(service, refused, lax):
    await revoking.revoke_device(service, refused.serial, "certificate-hold", by="ada")
    await changed(service, refused, lax)
    assert await asked(service, refused) == []
    await revoking.release_device(service, refused.serial, by="ada")
    assert await asked(service, refused) == ["policy"]


async def test_who_passed_meanwhile_is_not_asked(service, refused, lax):
    await changed(service, refused, lax)
    await enroll(service, refused)
    assert await asked(service, refused) == []


async def test_evidence_that_the_old_policy_refuses_after_the_change_is_judged_again(service, member, strict, lax):
    """It was on its way: nothing else would tell the device that it is accepted by now."""
    await policies.set_policy(service, grouped(strict, f"g-{member.serial}"), by="ada")
    await policies.set_group(service, member.serial, f"g-{member.serial}", by="ada")
    sick = tampered(member)
    challenge = await enrollment.begin_enrollment(service, sick.request(), source="test")
    evidence = sick.answer(challenge)
    await changed(service, member, lax)
    assert await asked(service, member) == []
    with pytest.raises(PcrsNotAccepted):
        await enrollment.complete_enrollment(
            service, challenge.enrollment_id, evidence, arrived=service.clock(), source="test"
        )
    assert await asked(service, member) == ["policy"]


async def test_a_policy_that_changes_while_evidence_is_judged_by_it_decides_nothing(
    service, refused, strict, lax, monkeypatch
):
    """The verdict was about another policy: the device stays on the list, and is looked at again."""
    await changed(service, refused, lax)
    loop, accepts, rounds = asyncio.get_running_loop(), recalling.accepts, []

    def meanwhile(*given):
        """On its thread; the change is made on the loop, which is free."""
        rounds.append(accepts(*given))
        if len(rounds) == 1:
            asyncio.run_coroutine_threadsafe(changed(service, refused, strict), loop).result(30)
        return rounds[-1]

    monkeypatch.setattr(recalling, "accepts", meanwhile)
    await recalling.recall(service)
    assert rounds == [True]
    assert await asked(service, refused) == []
    assert rounds == [True, False]


async def test_a_list_that_is_longer_than_a_batch_is_worked_off(service, members, strict, lax, monkeypatch):
    monkeypatch.setattr(recalling, "BATCH", 1)
    await policies.set_policy(service, grouped(strict, "many"), by="ada")
    several = [next(members) for _ in range(2)]
    for one in several:
        await enroll(service, one)
        await policies.set_group(service, one.serial, "many", by="ada")
        with pytest.raises(PcrsNotAccepted):
            await enroll(service, tampered(one))
    await promoted(service, grouped(lax, "many"))
    assert await recalling.recall(service) == 2
    assert [await asked(service, one) for one in several] == [["policy"], ["policy"]]


# --- on the line ----------------------------------------------------------------------------------------------------


async def test_a_command_that_waits_gets_a_challenge_of_the_new_policy(agent, policy):
    """The one that it carries would be judged by the policy that refused the device."""
    service = agent.service
    soft = 'on_failure = "refuse"\n' + policy
    wrong = re.sub(r'^"?0"? = \[".*"\]$', f'"0" = ["{"5" * 64}"]', soft, flags=re.MULTILINE)
    assert wrong != soft
    await agent.up(agent.hello())
    await policies.set_policy(service, wrong, by="ada")
    await rotation.attest(agent)
    assert (await service.store.read(lambda tx: rotation.devices.by_id(tx, agent.id))).health == "failing"
    await outbox.order(service, agent.id, "attest", by="ada")
    before = await agent.only(Attest)
    await promoted(service, soft)
    assert await recalling.recall(service) == 1
    service.clock.now += timedelta(seconds=1)
    command = await agent.only(Attest)
    assert command.message_id == before.message_id
    challenge, newest = await service.store.read(
        lambda tx: (
            enrollments.get(tx, command.challenge.enrollment_id),
            stored.newest_policy_id(tx, "gateway", None),
        )
    )
    assert challenge.policy_id == newest
    assert command.challenge.enrollment_id != before.challenge.enrollment_id
