"""Health on real parts: what quarantine holds and what releases it, silence, and the duty that asks."""

import asyncio
import itertools
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy import select

from lab.firmware import flip_byte, make_image
from lab.light import LightBoot
from lab.light_fleet import load_fleet, make_fleet
from ota.firmware import event_log, measure
from provisioning import enrollment, findings, health, inventory, policies, reattesting, revoking
from provisioning.app.compose import clock as system_clock
from provisioning.cli.registration import read_registrations
from provisioning.db import commands, devices, enrollments, revocations
from provisioning.db import findings as finding_rows
from provisioning.db.leaves import leaf as leaf_table
from provisioning.factory import StationIdentity, add_station, register
from provisioning.findings import Noticed
from provisioning.health import NARROWED, NEXT, Event, Health
from provisioning.monitoring import Kind
from provisioning.refusals import NotOnHold, PcrsNotAccepted, ProfileUnknown, QuarantineStands, StateConflict
from tests.support.service import Clock, csr, make_installation, running_service
from wire.factory import RegistrationRequest

FLEET = 14
DAY = 86400
SETTINGS = "[limits]\nunknown_refusals = 100000\n"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("health") / "fleet", FLEET)


@pytest.fixture(scope="module")
def service(tmp_path_factory, fleet):
    directory = make_installation(tmp_path_factory.mktemp("health") / "D")
    with running_service(directory, Clock(system_clock().replace(microsecond=0))) as running:
        asyncio.run(_register(running, fleet))
        yield running


async def _register(service, fleet):
    await policies.set_policy(service, fleet.policy.read_text(), by="test")
    station = await add_station(service, "line-1", FLEET, csr(), by="test")
    rows = tuple(row.device for file in fleet.registrations for row in read_registrations(file))
    await register(service, StationIdentity("line-1", station.serial), RegistrationRequest(rows))


@pytest.fixture(scope="module")
def members(fleet):
    return itertools.chain(load_fleet(fleet.directory), [])


async def enroll(service, device):
    challenge = await enrollment.begin_enrollment(service, device.request(), source="test")
    when, evidence = service.clock(), device.answer(challenge)
    await enrollment.complete_enrollment(service, challenge.enrollment_id, evidence, arrived=when, source="test")
    device.clock_ms += 1000


@pytest.fixture
async def member(service, members):
    """A light device in service."""
    device = next(members)
    await enroll(service, device)
    return device


def tampered(device):
    image = flip_byte(make_image(), "kernel")
    return replace(device, boot=LightBoot(measure(image).pcrs, event_log(image)))


async def record(service, device):
    return await service.store.read(lambda tx: devices.by_serial(tx, device.serial))


async def certificates(service, device):
    known = await record(service, device)
    rows = await service.store.read(lambda tx: enrollments.certificates_of(tx, known.id))
    return [(row.state, row.reason, row.held_by) for row in rows]


async def let(service, device, event, why="test"):
    known = await record(service, device)
    at = int(service.clock().timestamp())
    return await service.ledger.write(lambda tx: health.change(tx, service, known, event, at, why=why))


async def leaves_of(service, device):
    known = await record(service, device)
    rows = await service.store.read(
        lambda tx: list(tx.execute(select(leaf_table).where(leaf_table.c.kind == "health").order_by(leaf_table.c.id)))
    )
    found = (json.loads(row.record) for row in rows)
    return [(one["before"], one["event"], one["after"]) for one in found if one["device"] == known.id]


async def test_the_whole_table_as_the_records_follow_it(service, member):
    """Each event in each state: the state, the hold, and a leaf where something changed."""
    known, at = await record(service, member), int(service.clock().timestamp())
    for (before, event), after in NEXT.items():
        await service.ledger.write(lambda tx, to=before: devices.change(tx, known.id, health=to, health_event=None))
        await let(service, member, "released" if before not in NARROWED else "failed")
        await service.ledger.write(lambda tx, to=before: devices.change(tx, known.id, health=to, health_event=None))
        if before in NARROWED:
            rows = await service.store.read(lambda tx: enrollments.certificates_of(tx, known.id))
            for row in rows:
                await service.ledger.write(
                    lambda tx, one=row: revocations.revoke(
                        tx, one.serial, at=at, reason=revocations.HOLD, held_by=revocations.HEALTH
                    )
                )
        leaves = len(await leaves_of(service, member))
        assert await let(service, member, event) == after, (before, event)
        assert (await record(service, member)).health == after
        held = {state for state, _, _ in await certificates(service, member)}
        assert held == ({"revoked"} if after in NARROWED else {"issued"}), (before, event)
        assert len(await leaves_of(service, member)) - leaves == (before is not after), (before, event)
        if after in NARROWED:
            await let(service, member, "passed")
        await service.ledger.write(lambda tx: devices.change(tx, known.id, health="healthy", health_event=None))


async def test_tampered_evidence_of_a_device_in_service_quarantines_and_a_pass_brings_it_back(service, member):
    with pytest.raises(PcrsNotAccepted):
        await enroll(service, tampered(member))
    assert (await record(service, member)).health == "quarantined"
    assert await certificates(service, member) == [("revoked", "certificate-hold", "health")]
    shown = await inventory.show_device(service, member.serial)
    assert shown["verdict"].startswith("refused: MUSTER-ATT-049")
    assert shown["attestation"]["quarantine"] is True
    await enroll(service, member)
    after = await record(service, member)
    assert (after.health, after.attest_asked) == ("healthy", 0)
    assert 0.9 * DAY - 1 <= after.next_attest_at - after.last_attested_at <= 1.1 * DAY + 1
    assert sorted(await certificates(service, member), key=str) == [("issued", None, None), ("superseded", None, None)]
    assert await leaves_of(service, member) == [
        ("healthy", "failed", "quarantined"),
        ("quarantined", "passed", "healthy"),
    ]


async def test_what_an_operator_holds_no_pass_releases(service, member):
    serial = (await service.store.read(lambda tx: enrollments.certificates_after(tx, "", 1000)))[-1]
    known = await record(service, member)
    (row,) = await service.store.read(lambda tx: enrollments.certificates_of(tx, known.id))
    assert serial is not None
    await let(service, member, "failed")
    await revoking.revoke_certificate(service, row.serial, "certificate-hold", by="test")
    await let(service, member, "passed")
    assert await certificates(service, member) == [("revoked", "certificate-hold", None)]
    await let(service, member, "failed")
    await revoking.release_certificate(service, row.serial, by="test")  # it is quarantine's from now on
    assert await certificates(service, member) == [("revoked", "certificate-hold", "health")]
    with pytest.raises(NotOnHold):
        await revoking.release_certificate(service, row.serial, by="test")
    await let(service, member, "passed")
    assert await certificates(service, member) == [("issued", None, None)]


async def test_an_operators_release_of_a_device_leaves_what_quarantine_wants_held(service, member):
    await revoking.revoke_device(service, member.serial, "certificate-hold", by="test")
    await let(service, member, "failed")
    await revoking.release_device(service, member.serial, by="test")
    after = await record(service, member)
    assert (after.state, after.health) == ("active", "quarantined")
    assert await certificates(service, member) == [("revoked", "certificate-hold", "health")]
    with pytest.raises(NotOnHold):
        await revoking.release_device(service, member.serial, by="test")  # it can attest: a word is not enough
    await enroll(service, member)
    assert (await record(service, member)).health == "healthy"


async def test_a_clone_comes_back_only_after_somebody_closed_the_finding(service, member):
    known = await record(service, member)
    noticed = Noticed(known.id, Kind.TWO_SESSIONS)
    await service.ledger.write(lambda tx: findings.notice(tx, service, noticed))
    assert (await record(service, member)).health == "quarantined"
    with pytest.raises(QuarantineStands):
        await enroll(service, member)
    assert (await record(service, member)).health == "quarantined"
    assert {state for state, _, _ in await certificates(service, member)} == {"revoked"}
    (found,) = await findings.list_findings(service, known.id, closed=False, before=None, limit=5)
    await findings.close_finding(service, found["id"], by="test")
    await enroll(service, member)
    assert (await record(service, member)).health == "healthy"


async def test_a_device_that_was_revoked_for_good_has_no_health_to_change(service, member):
    await revoking.revoke_device(service, member.serial, "key-compromise", by="test")
    for event in Event:
        await let(service, member, event)
    after = await record(service, member)
    assert (after.state, after.health) == ("revoked", "quarantined")
    assert await leaves_of(service, member) == []


# --- the duty -----------------------------------------------------------------------------------------------------


async def pending(service, device):
    known = await record(service, device)
    return await service.store.read(lambda tx: commands.pending_of(tx, known.id, "attest"))


async def due(service, device):
    """Make its time come, as the clock would."""
    known = await record(service, device)
    at = int(service.clock().timestamp())
    passed = at - 2 * DAY
    await service.ledger.write(lambda tx: devices.change(tx, known.id, next_attest_at=at, last_attested_at=passed))


async def test_who_is_due_is_asked_once_then_unknown_then_silent_with_a_finding_and_a_pass_ends_all(service, member):
    assert await reattesting.ask_due(service) == 0
    assert await pending(service, member) is None
    seen = []
    for _ in range(4):
        await due(service, member)
        assert await reattesting.ask_due(service) == 1
        assert await reattesting.ask_due(service) == 0
        seen.append((await record(service, member)).health)
        known = await record(service, member)
    assert seen == ["healthy", "unknown", "unknown", "silent"]
    assert await pending(service, member) is not None
    assert known.next_attest_at is None
    assert await certificates(service, member) == [("revoked", "certificate-hold", "health")]
    assert await service.store.read(lambda tx: finding_rows.is_open(tx, known.id, Kind.SILENT))
    assert (await inventory.show_device(service, member.serial))["verdict"] == "no answer: asked 3 times without a pass"
    await enroll(service, member)
    assert (await record(service, member)).health == "healthy"
    assert not await service.store.read(lambda tx: finding_rows.is_open(tx, known.id, Kind.SILENT))


async def test_on_demand_is_an_order_with_a_leaf_and_only_for_who_can(service, member):
    device = await reattesting.demand(service, member.serial, by="test")
    assert (await pending(service, member)).ordered_by == "test"
    await service.ledger.write(lambda tx: devices.change(tx, device.id, ak_public=None))
    with pytest.raises(StateConflict):
        await reattesting.demand(service, member.serial, by="test")


async def test_an_agent_that_started_again_is_asked_and_one_that_just_enrolled_is_not(service, member):
    known = await record(service, member)
    at = int(service.clock().timestamp())

    async def started(session):
        await service.ledger.write(lambda tx: reattesting.agent_started(tx, service, known, session, at))
        return await pending(service, member)

    assert await started(None) is None
    assert (await started(known)).kind == "attest"


async def test_who_starts_again_and_again_is_asked_so_often_an_hour_and_no_more(service, member):
    """Each pass is a record, a leaf and 4 MiB of log: a device in other hands would fill the disk."""
    known, at = await record(service, member), int(service.clock().timestamp())

    async def started(when):
        def write(tx):
            reattesting.agent_started(tx, service, known, known, when)
            waiting = commands.pending_of(tx, known.id, "attest")
            return waiting is not None and commands.finish(tx, waiting.message_id, state="done")

        return await service.ledger.write(write)

    asked = [await started(at) for _ in range(reattesting.OCCASIONS_MOST + 5)]
    assert asked == [True] * reattesting.OCCASIONS_MOST + [False] * 5
    assert await started(at + reattesting.OCCASIONS_SECONDS) is False
    assert await started(at + reattesting.OCCASIONS_SECONDS + 1) is True
    await reattesting.demand(service, member.serial, by="test")
    assert await pending(service, member) is not None  # who operates is asked by nobody how often


async def test_a_new_policy_has_everybodys_time_worked_out_anew(service, member, fleet):
    known = await record(service, member)
    at = int(service.clock().timestamp())
    await policies.set_policy(service, fleet.policy.read_text(), by="test")
    assert await reattesting.ask_due(service) >= 1
    after = await record(service, member)
    assert (after.attest_asked, await pending(service, member)) == (0, None)
    assert after.next_attest_at >= known.last_attested_at + 0.9 * DAY - 1
    assert Health(after.health) is Health.HEALTHY
    assert timedelta(seconds=after.next_attest_at - at) <= timedelta(days=1.1, seconds=1)


# --- the way back -------------------------------------------------------------------------------------------------


async def ask_way_back(service, device):
    wanted = replace(device.request(), profile="quarantine")
    challenge = await enrollment.begin_enrollment(service, wanted, source="test")
    when, evidence = service.clock(), device.answer(challenge)
    device.clock_ms += 1000
    given = {"arrived": when, "source": "test"}
    first = await enrollment.complete_enrollment(service, challenge.enrollment_id, evidence, **given)
    assert await enrollment.complete_enrollment(service, challenge.enrollment_id, evidence, **given) == first
    return x509.load_der_x509_certificate(first.certificate)


async def test_in_quarantine_a_certificate_of_quarantine_is_to_be_had_and_it_ends_with_the_pass(service, member):
    with pytest.raises(ProfileUnknown):
        await ask_way_back(service, member)
    with pytest.raises(PcrsNotAccepted):
        await enroll(service, tampered(member))
    shown = await record(service, member)
    certificate = await ask_way_back(service, tampered(member))
    (name,) = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert name.value == f"spiffe://muster.test/quarantine/{shown.id}"
    after = await record(service, member)
    assert (after.health, after.last_attested_at, after.clock) == ("quarantined", shown.last_attested_at, shown.clock)
    remedial = await service.store.read(revocations.with_quarantine_certificate)
    assert remedial == {shown.id}
    await enroll(service, member)
    assert await service.store.read(revocations.with_quarantine_certificate) == set()
    serial = format(certificate.serial_number, "x")
    row = await service.store.read(lambda tx: enrollments.certificate_by_serial(tx, serial))
    assert (row.state, row.reason) == ("revoked", "superseded")
    with pytest.raises(ProfileUnknown):
        await ask_way_back(service, member)


async def test_where_the_policy_refuses_only_a_device_is_failing_and_keeps_what_it_has(service, member, fleet):
    text = fleet.policy.read_text()
    await policies.set_policy(service, f'on_failure = "refuse"\n{text}', by="test")
    try:
        with pytest.raises(PcrsNotAccepted):
            await enroll(service, tampered(member))
        assert (await record(service, member)).health == "failing"
        assert await certificates(service, member) == [("issued", None, None)]
        with pytest.raises(ProfileUnknown):
            await ask_way_back(service, tampered(member))
    finally:
        await policies.set_policy(service, text, by="test")
    await enroll(service, member)
    assert (await record(service, member)).health == "healthy"


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("select id from device where next_attest_at <= 5 order by next_attest_at limit 9", "device_due"),
        ("select device_id from certificate where certificate.profile = 'quarantine'", "certificate_quarantine"),
    ],
)
async def test_what_the_duties_ask_each_second_is_found_by_an_index(service, query, index):
    plan = await service.store.read(lambda tx: tx.exec_driver_sql(f"explain query plan {query}").fetchall())
    assert index in plan[0][3]
    assert len(plan) == 1, "nothing is sorted either"
