"""Retention on a real service: a device that is out to fill the disk, old evidence, and what is said of it after."""

import asyncio
import hashlib
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import event, func, insert, select

from lab.light import LightBoot
from lab.light_fleet import MANUFACTURER, load_fleet, make_fleet
from provisioning import enrollment, explaining, inventory, policies, retention
from provisioning.app.audit import log_keys
from provisioning.app.compose import clock as system_clock
from provisioning.app.fsck import check_installation
from provisioning.config import ConfigurationRefused, parse_config
from provisioning.db import devices, enrollments, findings, logs
from provisioning.db import retention as stored
from provisioning.db.store import open_sqlite
from provisioning.duties import duties, sequence
from provisioning.factory import StationIdentity, add_station, register
from provisioning.policies import Named
from provisioning.refusals import NotFound, PcrsNotAccepted, StateConflict
from provisioning.retention import AT_ONCE, Walk
from tests.support.boot_logs import booted, image, log_of
from tests.support.service import Clock, csr, make_installation, running_service
from tests.support.shown import ima_log_of, pcrs_after
from wire.factory import Registration, RegistrationRequest

LOGS, BYTES = 6, 120_000
SETTINGS = f"""
[retention]
attestations_days = 30
refused_days = 40
attestations_per_device = 500
logs_per_device = {LOGS}
log_bytes_per_device = {BYTES}
"""
ONE_MORE = [*booted(), image(b"kexec")]
SELECTED = (0, 4, 7)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    clock = Clock(system_clock())
    with running_service(make_installation(tmp_path_factory.mktemp("retention") / "D", SETTINGS), clock) as made:
        yield made


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    made = make_fleet(tmp_path_factory.mktemp("retention") / "fleet", 12)
    return made, load_fleet(made.directory)


@pytest.fixture
def model_of(service, fleet):
    """Devices of a model that only one test has, under a policy that asks for both logs."""

    async def make(name, count, mode="enforce"):
        root, unused = fleet
        values = pcrs_after(booted())
        lines = [f'model = "{name}"', f'mode = "{mode}"', "software_tpm = true", "enrollments_per_day = 1000"]
        lines += ['boot_log = "required"', 'ima_log = "required"', "[[ek_roots]]"]
        lines += [f'certificate = """{root.ek_root.read_text()}"""', f'manufacturers = ["{MANUFACTURER}"]']
        lines += ["[pcrs.sha256]", *(f'"{pcr}" = ["{values[pcr].hex()}"]' for pcr in SELECTED)]
        lines += [f'"{pcr}" = ["{values[pcr].hex()}"]' for pcr in (1, 2, 3, 5, 6, 8, 9)]
        text = "\n".join([*lines, '"10" = []']) + "\n"
        await policies.set_policy(service, text, by="admin")
        made = [unused.pop() for _ in range(count)]
        station = await add_station(service, f"line-{name}", count, csr(), by="admin")
        wanted = tuple(Registration(one.serial, name, one.ek_certificate) for one in made)
        done = await register(service, StationIdentity(f"line-{name}", station.serial), RegistrationRequest(wanted))
        return text, made, done.device_ids

    return make


async def shows(service, device, happened, files):
    """An enrollment a minute later, by a device that booted this and measured so many files."""
    service.clock.now += timedelta(minutes=1)
    listed = {f"/run/{device.serial}/{one}": hashlib.sha256(one.encode()).digest() for one in files}
    device.boot = LightBoot(pcrs_after(happened, listed), log_of(happened))
    challenge = await enrollment.begin_enrollment(service, device.request(), source="192.0.2.1")
    answer = replace(device.answer(challenge), ima_log=ima_log_of(pcrs_after(happened), listed))
    named = challenge.enrollment_id
    return await enrollment.complete_enrollment(service, named, answer, arrived=service.clock(), source="192.0.2.1")


async def refused(service, device, happened, files):
    with pytest.raises(PcrsNotAccepted) as caught:
        await shows(service, device, happened, files)
    return caught.value.instance


def another_boot(number):
    """Files of some 25 kB of IMA log that no other boot has."""
    return [f"{number}-{one}" for one in range(200)]


def bytes_of_logs(tx):
    return tx.execute(select(func.coalesce(func.sum(func.length(logs.content_row.c.content)), 0))).scalar_one()


async def walk(service, days=0):
    service.clock.now += timedelta(days=days)
    await Walk().go_on(service)


def fsck_of(service):
    keys = log_keys(service.directory, service.config)
    return service.store.read_now(lambda tx: check_installation(tx, service.authorities, keys, service.clock()))


async def several_attestations(service, device_id, count, *, every=timedelta(hours=1), since=timedelta(0)):
    """Attestations as the duty of a long time would have them, each with a boot log; the newest is the last."""
    start, rows = int((service.clock() - since - every * count).timestamp()), []
    policy = await service.store.read(lambda tx: enrollments.attestations_of(tx, device_id, 1))
    content = b"a boot log of " + device_id.encode()
    for number in range(count):
        at = start + int(every.total_seconds()) * number
        row = {"id": f"{device_id}-{at}", "flow": "attest", "device_id": device_id, "at": at}
        row |= {"policy_id": policy[0].policy_id, "ak_public": b"k", "evidence": b"{}", "findings": "[]"}
        rows.append({**row, "boot_log_sha256": hashlib.sha256(content).hexdigest(), "ima_log_sha256": None})

    def write(tx):
        name = rows[0]["boot_log_sha256"]
        logs.keep(tx, sha256=name, device_id=device_id, content=content, ima=False, now=start)
        for row in rows:
            enrollments.add_attestation(tx, row)

    await service.ledger.write(write)
    return [row["id"] for row in rows]


async def ids_of(service, device_id):
    mine = select(logs.attestation.c.id).where(logs.attestation.c.device_id == device_id)
    return await service.store.read(lambda tx: {row.id for row in tx.execute(mine)})


# --- the hostile device -------------------------------------------------------------------------------------------


async def test_what_a_device_stores_is_bounded_at_once_and_everything_still_speaks(service, model_of):
    text, (hostile, honest), (hostile_id, honest_id) = await model_of("hostile", 2)
    before = await service.store.read(bytes_of_logs)
    await shows(service, honest, booted(), ["one"])
    for number in range(25):
        await shows(service, hostile, booted(), another_boot(number))
        used = await service.store.read(lambda tx: logs.used_by(tx, hostile_id))
        assert len(used) <= LOGS
        assert sum(row.size for row in used) <= BYTES
    assert await service.store.read(bytes_of_logs) - before <= BYTES + 10_000  # the rest is the honest device's
    told = await inventory.show_device(service, hostile_id)
    assert told["retention"]["logs"] >= 25 - LOGS
    assert [one["removed"] for one in told["attestations"][:2]] == [[], []]
    assert (await inventory.show_device(service, honest_id))["retention"] is None

    instance = await refused(service, hostile, ONE_MORE, another_boot(99))
    explained = await explaining.explain(service, instance)
    assert explained["evidence"] == "kept"
    assert [one["pcr"] for one in explained["changed"]["pcrs"]] == [4, 10]
    assert explained["changed"]["more_files"] + len(explained["changed"]["files"]) > 0

    newest = await policies.test_policy(service, text, None, "", every=False, by="admin")
    assert [(one["serial"], one["lacks"]) for one in newest["devices"] if "retention" in str(one["lacks"])] == []
    each = await policies.test_policy(service, text, None, "", every=True, by="admin")
    gone = [one for one in each["devices"] if one["lacks"] == ["an IMA log: removed by retention"]]
    assert len(gone) >= 25 - LOGS
    assert {one["verdict"] for one in gone} == {"unjudged"}
    learned = await policies.learn_policy(service, Named("hostile"), (hostile.serial, honest.serial), by="admin")
    assert learned["without_evidence"] == []

    await sequence(service)
    report = fsck_of(service)
    held = {check.name: check.faults for check in report.checks if check.looked_at}
    assert held["every log is the one that its name says"] == held["every LDevID has its attestation"] == []
    assert any("logs that evidence names were removed by retention" in note for note in report.notes)
    assert any(note.startswith("retention removed 0 attestations, 0 refused ones and ") for note in report.notes)


async def test_what_the_last_clean_pass_rests_on_stays_however_much_comes_after_it(service, model_of):
    _, (device,), (device_id,) = await model_of("softened", 1, mode="monitor")
    await shows(service, device, booted(), ["clean"])
    clean = (await service.store.read(lambda tx: enrollments.attestations_of(tx, device_id, 1)))[0]
    for number in range(12):
        await shows(service, device, ONE_MORE, another_boot(number))
    found = await explaining.explain(service, device.serial, monitor=True)
    assert found["evidence"] == "kept"
    assert found["changed"]["since"]["attestation"] == clean.id
    kept = await service.store.read(lambda tx: logs.content_of(tx, clean.ima_log_sha256))
    assert hashlib.sha256(kept).hexdigest() == clean.ima_log_sha256
    (opened,) = await service.store.read(
        lambda tx: findings.page(tx, device_id=device_id, closed=False, before=None, limit=9)
    )

    def read(tx):
        rows = enrollments.attestations_of(tx, device_id, 99)
        return [(row.id, row.at, stored.logs_removed(tx, row)) for row in rows]

    rows = await service.store.read(read)
    assert next(gone for _, at, gone in rows if at <= opened.at) == []  # what the open finding is about
    without = next(name for name, _, gone in rows if gone)
    told = await explaining.explain(service, without)
    assert told["evidence"] == "kept; its IMA log was removed by retention"


async def test_learning_refuses_what_it_could_read_only_half(service, model_of):
    _, (device,), (device_id,) = await model_of("halved", 1)
    await shows(service, device, booted(), ["one"])
    (row,) = await service.store.read(lambda tx: enrollments.attestations_of(tx, device_id, 1))
    (body,) = await service.store.read(lambda tx: logs.bodies_of(tx, [row.ima_log_sha256]))
    await service.ledger.write(lambda tx: logs.give_up(tx, device_id, body, row.at))  # as no bound would
    with pytest.raises(StateConflict) as caught:
        await policies.learn_policy(service, Named("halved"), (device.serial,), by="admin")
    assert (caught.value.actual, device.serial in caught.value.expected) == ("removed by retention", True)


# --- age ----------------------------------------------------------------------------------------------------------


class Counting:
    """A ledger that notes how much each write of the duty removed."""

    def __init__(self, ledger):
        self.ledger, self.sizes = ledger, []

    async def write(self, write):
        done = await self.ledger.write(write)
        self.sizes.append(len(done.attestations))
        return done


async def test_what_is_old_goes_in_small_pieces_and_what_something_rests_on_stays(service, model_of):
    _, (device, other), (device_id, other_id) = await model_of("aged", 2)
    for one in (device, other):
        await shows(service, one, booted(), ["one"])
    (earned,) = await ids_of(service, device_id)
    challenges = select(func.count()).where(enrollments.enrollment.c.id == earned)
    assert await service.store.read(lambda tx: tx.execute(challenges).scalar_one()) == 1
    await several_attestations(service, device_id, 400, since=timedelta(days=60))
    young = await several_attestations(service, other_id, 20)
    counting = Counting(service.ledger)
    await walk(replace(service, ledger=counting))
    assert await ids_of(service, device_id) == {earned}  # the newest: it was the last to pass
    assert await ids_of(service, other_id) > set(young)
    assert max(counting.sizes) == AT_ONCE
    assert sum(counting.sizes) >= 400
    name = hashlib.sha256(b"a boot log of " + device_id.encode()).hexdigest()
    assert await service.store.read(lambda tx: logs.stored(tx, name)) is None
    told = (await inventory.show_device(service, device_id))["retention"]
    assert (told["attestations"], told["logs"]) == (400, 0)

    certificate = (await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id)))[0]
    days = (certificate.not_after - int(service.clock().timestamp())) // 86400
    again = await several_attestations(service, device_id, 1, since=-timedelta(hours=1))
    if days > 31:
        await walk(service, days=days - 1)
        assert earned in await ids_of(service, device_id)  # its certificate is in force
    await walk(service, days=40)
    assert await ids_of(service, device_id) == {again[0]}
    assert await service.store.read(lambda tx: tx.execute(challenges).scalar_one()) == 0
    with pytest.raises(NotFound) as caught:
        await explaining.explain(service, earned)
    assert "removed by retention" in caught.value.actual
    with pytest.raises(NotFound) as caught:
        await inventory.show_evidence(service, device_id, "enroll")
    assert "was removed by retention" in caught.value.actual
    await sequence(service)
    (check,) = (one for one in fsck_of(service).checks if one.name == "every LDevID has its attestation")
    assert (check.looked_at > 0, check.faults) == (True, [])


async def test_of_one_device_there_is_a_most_but_today_stays(service, model_of):
    _, (device,), (device_id,) = await model_of("many", 1)
    await shows(service, device, booted(), ["one"])
    await several_attestations(service, device_id, 800, every=timedelta(minutes=30))
    await walk(service)
    assert len(await ids_of(service, device_id)) == 500
    service.clock.now += timedelta(days=2)
    await several_attestations(service, device_id, 600, every=timedelta(minutes=2))
    await walk(service)
    assert len(await ids_of(service, device_id)) == 600 + 1  # and by which its certificate was earned


async def test_refused_evidence_goes_by_age_unless_the_device_is_still_refused(service, model_of):
    _, (failing, healthy), (failing_id, healthy_id) = await model_of("refused", 2)
    instances = {}
    for device in (failing, healthy):
        await shows(service, device, booted(), ["one"])
        instances[device.serial] = [await refused(service, device, ONE_MORE, ["two", str(one)]) for one in range(2)]
    await shows(service, healthy, booted(), ["one"])
    await walk(service, days=39)
    assert (await explaining.explain(service, instances[healthy.serial][0]))["evidence"] == "kept"
    await walk(service, days=2)

    async def kept(device):
        found = [await explaining.explain(service, one) for one in instances[device.serial]]
        return [one["evidence"] for one in found]

    said = "not kept: retention removes evidence that was refused after 40 days"
    assert await kept(healthy) == [said, said]
    assert await kept(failing) == [said, "kept"]
    assert (await inventory.show_device(service, healthy_id))["retention"]["refused"] == 2
    changed = (await explaining.explain(service, instances[failing.serial][1]))["changed"]
    assert [one["pcr"] for one in changed["pcrs"]] == [4, 10]  # what it is compared with is older than 30 days
    assert (await service.store.read(lambda tx: devices.by_id(tx, failing_id))).health != "healthy"


async def test_a_walk_rests_and_one_that_was_interrupted_goes_on(service, monkeypatch):
    steps = Walk()
    monkeypatch.setattr(retention, "PAGE", 2)
    reads = []

    class Store:
        async def read(self, read):
            reads.append(read)
            return await service.store.read(read)

    counting = replace(service, store=Store())
    await steps.go_on(counting)
    pages = len(reads)
    assert pages > 2
    await steps.go_on(counting)
    assert len(reads) == pages
    service.clock.now += timedelta(seconds=retention.REST_SECONDS)
    await steps.go_on(counting)
    assert len(reads) == 2 * pages
    wire = SimpleNamespace(end_session=None)
    assert "retention" in {duty.name for duty in duties(service, wire, asyncio.Event())}


async def test_the_duty_looks_things_up_by_indexes_alone(service, model_of):
    _, (device,), (device_id,) = await model_of("indexed", 1)
    await shows(service, device, booted(), ["one"])
    await refused(service, device, ONE_MORE, ["two"])
    await several_attestations(service, device_id, 40, since=timedelta(days=90))
    engine, said = open_sqlite(service.directory.database(service.config), read_only=False), []

    @event.listens_for(engine, "connect")
    def _trace(connection, _record):
        connection.set_trace_callback(said.append)

    rules = replace(
        service, config=replace(service.config, retention=replace(service.config.retention, logs_per_device=1))
    )
    with engine.begin() as tx:
        stored.with_old(tx, "", 1, 1, 500, 100)
        assert retention.remove(rules, device_id, tx).attestations
        logs.forget_uploads(tx, 1, 9, 9, 1)
        logs.keep(tx, sha256="00", device_id=device_id, content=b"x", ima=True, now=1)
    engine.dispose()
    with closing(sqlite3.connect(service.directory.database(service.config))) as database:
        asked = {one for one in said if one.startswith(("SELECT", "DELETE", "UPDATE"))}
        plans = {one: [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {one}")] for one in asked}
    assert len(asked) > 20
    assert {one: plan for one, plan in plans.items() if any(step.startswith("SCAN") for step in plan)} == {}


# --- what is said -------------------------------------------------------------------------------------------------


async def test_a_removal_that_the_log_knows_nothing_of_is_found(service):
    false = {
        "id": "never",
        "device_id": "d-0",
        "flow": "enroll",
        "at": 1,
        "evidence_sha256": bytes(32),
        "removed_at": 2,
    }
    await service.ledger.write(lambda tx: tx.execute(insert(stored.removed_attestation).values(**false)))
    (check,) = (one for one in fsck_of(service).checks if one.name == "every attestation stands in the log")
    assert "attestation never of d-0: removed, and the log has no leaf for it" in check.faults


@pytest.mark.parametrize("name", ["attestations_days", "refused_days", "logs_per_device", "log_bytes_per_device"])
def test_a_retention_of_nothing_is_refused(name):
    with pytest.raises(ConfigurationRefused, match=f"retention.{name}: is less than 1"):
        parse_config(f'service_name = "muster.test"\n[retention]\n{name} = 0\n', "muster.toml")
