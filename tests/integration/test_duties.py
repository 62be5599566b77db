"""What runs once per installation: one holder, failures that stay alone, the log, the CRL, the trust repository."""

import asyncio
import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning import crls, duties, outbox
from provisioning.config import DataDirectory
from provisioning.db import commands, enrollments, leaves, revocations
from provisioning.duties import Duty
from provisioning.refusals import SigningUnavailable
from provisioning.revoking import release_device, revoke_device
from provisioning.transparency import root_of_leaves, verify_checkpoint
from tests.support import fleet
from tests.support.crls import listed, publish_crl
from tests.support.service import Clock, make_installation, running_service
from wire.codec import parse_rfc3339

PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("duties") / "D")


@pytest.fixture
def directory(template, tmp_path):
    return DataDirectory(Path(shutil.copytree(template.root, tmp_path / "D")))


@pytest.fixture
def service(directory):
    with running_service(directory) as made:
        yield made


class Wire:
    """A way to devices that notes what it was asked."""

    def __init__(self, *, connected=True, broken=False):
        self.connected, self.broken = connected, broken
        self.published, self.ended, self.started, self.stopped = [], [], 0, 0

    def start(self):
        self.started += 1

    async def stop(self):
        self.stopped += 1

    def publish(self, topic, envelope):
        self.published.append((topic, envelope))
        return True

    async def end_session(self, device):
        self.ended.append(device)
        if self.broken:
            raise ConnectionRefusedError("no broker")


async def until(condition):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  what is waited for says nothing
            await asyncio.sleep(0.01)


# --- holding ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(duties, "LEASE_RENEWAL_SECONDS", 0.05)


async def test_only_one_of_two_holders_carries_out_the_duties(service, quick):
    one, two = Wire(), Wire()
    tasks = [asyncio.create_task(duties.hold(service, "one", lambda _: one))]
    await until(lambda: one.started)
    tasks.append(asyncio.create_task(duties.hold(service, "two", lambda _: two)))
    await asyncio.sleep(0.5)
    assert (one.started, two.started) == (1, 0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert one.stopped == 1


async def test_where_the_holder_is_gone_another_takes_over_when_the_lease_ends(service, quick):
    clock = Clock(service.clock())
    service = replace(service, clock=clock)
    one, two = Wire(), Wire()
    first = asyncio.create_task(duties.hold(service, "one", lambda _: one))
    await until(lambda: one.started)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(duties.hold(service, "two", lambda _: two))
    await asyncio.sleep(0.3)
    assert two.started == 0
    clock.now += timedelta(seconds=duties.LEASE_SECONDS + 1)
    await until(lambda: two.started)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_the_same_worker_started_again_takes_its_lease_at_once(service, quick):
    for _ in range(2):
        wire = Wire()
        task = asyncio.create_task(duties.hold(service, "worker 0", lambda _, wire=wire: wire))
        await until(lambda wire=wire: wire.started)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_who_loses_the_lease_stops(service, quick):
    wire = Wire()
    task = asyncio.create_task(duties.hold(service, "one", lambda _: wire))
    await until(lambda: wire.started)
    now = int(service.clock().timestamp())

    def steal(tx):
        commands.take_lease(tx, duties.LEASE, "thief", now=now + 10_000, until=now + 20_000)

    await service.ledger.write(steal)
    await until(lambda: wire.stopped)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- repeating ----------------------------------------------------------------------------------------------------


async def test_a_duty_that_fails_is_tried_again_and_disturbs_no_other():
    runs = {"bad": 0, "good": 0}

    async def bad():
        runs["bad"] += 1
        if runs["bad"] < 3:
            raise (ZeroDivisionError("a defect") if runs["bad"] == 1 else SigningUnavailable())

    async def good():
        runs["good"] += 1

    tasks = [asyncio.create_task(duties.repeat(Duty(name, 0.01, run))) for name, run in (("bad", bad), ("good", good))]
    await until(lambda: runs["bad"] >= 4 and runs["good"] >= 4)
    for task in tasks:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_duty_that_is_woken_runs_at_once():
    ran = asyncio.Event()

    async def run():
        ran.set()

    duty = Duty("sleeper", 3600, run)
    task = asyncio.create_task(duties.repeat(duty))
    await ran.wait()
    ran.clear()
    await asyncio.sleep(0)
    duty.wake.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await ran.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- outbox -------------------------------------------------------------------------------------------------------


async def test_nothing_is_sent_and_no_try_is_counted_without_a_broker(service, tmp_path):
    await fleet.device(service, tmp_path, "d-1")
    await _session(service, "d-1")
    await outbox.order(service, "d-1", "refresh-trust", by="test")
    off, on = Wire(connected=False), Wire()
    await duties.pump(service, off)
    assert off.published == []
    await duties.pump(service, on)
    assert [topic for topic, _ in on.published] == ["muster/v1/d-1/down"]


async def _session(service, device, serial="1"):
    now = int(service.clock().timestamp())
    values = {"session": "s", "session_number": 1, "up_sequence": 1, "down_sequence": 0, "trust_version": 1}
    values |= {"certificate_serial": serial, "at": now}
    await service.ledger.write(lambda tx: commands.put_session(tx, device, values))


# --- revocations --------------------------------------------------------------------------------------------------


@pytest.fixture
def prompt(monkeypatch):
    monkeypatch.setattr(duties, "BROKER_RELOADED_SECONDS", (0.0, 0.0))


async def signed(duty, service):
    """One round of CRLs, in a second that has none yet."""
    head = service.store.read_now(lambda tx: revocations.crl_head(tx, "issuing"))
    await until(lambda: service.clock().timestamp() >= head.this_update + 1)
    await duty.sign()


def denied(directory):
    return directory.denied.read_text().split()


@pytest.mark.parametrize("broken", [False, True])
async def test_a_revocation_ends_rights_and_session_and_then_stands_in_the_crl(
    service, directory, tmp_path, prompt, broken
):
    member, wire = await fleet.device(service, tmp_path, "d-1"), Wire(broken=broken)
    duty = duties.Revoked(service, wire)
    await duty.follow()
    await duty.sign()
    assert (listed(directory), denied(directory), wire.ended) == (set(), [], [])
    await revoke_device(service, "d-1", "key-compromise", by="test")
    await duty.follow()
    assert denied(directory) == ["d-1"]
    await until(lambda: len(wire.ended) == 2)
    assert wire.ended == ["d-1", "d-1"]
    assert duty.wake_crl.is_set()
    await signed(duty, service)
    assert listed(directory) == {member.serial}
    await duty.follow()
    assert denied(directory) == []


async def test_a_hold_ends_as_it_began(service, directory, tmp_path, prompt):
    member, wire = await fleet.device(service, tmp_path, "d-1"), Wire()
    duty = duties.Revoked(service, wire)
    await revoke_device(service, "d-1", "certificate-hold", by="test")
    await duty.follow()
    await signed(duty, service)
    assert listed(directory) == {member.serial}
    await release_device(service, "d-1", by="test")
    await duty.follow()
    await signed(duty, service)
    assert (listed(directory), denied(directory)) == (set(), [])


async def test_what_is_released_before_any_crl_lists_it_gets_its_rights_back(service, directory, tmp_path, prompt):
    await fleet.device(service, tmp_path, "d-1")
    duty = duties.Revoked(service, Wire())
    await duty.sign()
    await duty.follow()
    await revoke_device(service, "d-1", "certificate-hold", by="test")
    await duty.follow()
    assert denied(directory) == ["d-1"]
    await release_device(service, "d-1", by="test")
    await duty.follow()
    assert denied(directory) == []


async def test_without_the_hsm_rights_and_sessions_end_and_the_crl_follows(service, directory, tmp_path, prompt):
    member, honest = await fleet.device(service, tmp_path, "d-1"), await fleet.device(service, tmp_path, "d-2")
    await _session(service, "d-2", honest.serial)
    wire = Wire()

    async def refuse(_key, _message):
        raise SigningUnavailable

    gone = replace(service, keys=SimpleNamespace(sign=refuse))
    duty = duties.Revoked(gone, wire)
    await duty.follow()
    await revoke_device(gone, "d-1", "key-compromise", by="test")
    await duty.follow()
    assert denied(directory) == ["d-1"]
    await until(lambda: len(wire.ended) == 2)
    with pytest.raises(SigningUnavailable):
        await signed(duty, service)
    assert listed(directory) == set()
    duty._end_again_at = 0.0
    await duty.follow()  # as long as no CRL keeps it out it is thrown off again and again
    await until(lambda: len(wire.ended) == 4)
    duty._service = service
    await signed(duty, service)
    await duty.follow()
    assert (listed(directory), denied(directory)) == ({member.serial}, [])
    await until(lambda: len(wire.ended) == 6)
    assert set(wire.ended) == {"d-1"}


async def test_the_end_of_a_grace_period_disturbs_nobody_and_waits_for_company(service, directory, tmp_path, prompt):
    old, new = await fleet.device(service, tmp_path, "d-1"), await fleet.device(service, tmp_path, "d-1")
    await _session(service, "d-1", new.serial)
    clock = Clock(service.clock())
    service, wire = replace(service, clock=clock), Wire()
    duty = duties.Revoked(service, wire)
    await duty.sign()
    await duty.follow()
    at = int(clock.now.timestamp())
    await service.ledger.write(lambda tx: enrollments.supersede(tx, "d-1", but=new.serial, revoke_at=at + 1))
    clock.now += timedelta(seconds=5)
    await duty.follow()
    await duty.sign()
    assert (listed(directory), denied(directory)) == (set(), [])
    clock.now += timedelta(seconds=crls.GRACE_SECONDS)
    await duty.sign()
    assert listed(directory) == {old.serial}
    await duty.follow()
    assert wire.ended == []


async def test_a_crl_that_a_crash_left_unpublished_is_published(service, directory, prompt, tmp_path):
    member = await fleet.device(service, tmp_path, "d-1")
    before = (directory.ca / "issuing.crl").read_bytes()
    await fleet.set_state(service, member, "revoked")
    await signed(duties.Revoked(service, Wire()), service)
    (directory.ca / "issuing.crl").write_bytes(before)
    await duties.Revoked(service, Wire()).sign()
    assert listed(directory) == {member.serial}


async def test_a_session_that_a_crash_left_open_is_ended(service, prompt, tmp_path):
    revoked, honest = await fleet.device(service, tmp_path, "d-1"), await fleet.device(service, tmp_path, "d-2")
    await _session(service, "d-1", revoked.serial)
    await _session(service, "d-2", honest.serial)
    await fleet.set_state(service, revoked, "revoked")
    await publish_crl(service)
    wire = Wire()
    duty = duties.Revoked(service, wire)
    await duty.follow()
    await until(lambda: len(wire.ended) == 2)
    await duty.follow()
    assert wire.ended == ["d-1", "d-1"]


async def test_a_crl_is_not_signed_again_without_need(service, directory):
    duty = duties.Revoked(service, Wire())
    await duty.sign()
    before = (directory.ca / "issuing.crl").stat()
    await duty.sign()
    after = (directory.ca / "issuing.crl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


async def test_a_crl_is_signed_again_well_before_it_ends(service, directory):
    clock = Clock(service.clock())
    service = replace(service, clock=clock)
    duty = duties.Revoked(service, Wire())
    lifetimes = service.config.lifetimes
    for _ in range(3):
        clock.now += timedelta(seconds=lifetimes.crl_refresh_seconds + 1)
        await duty.sign()
        crl = x509.load_der_x509_crl((directory.ca / "issuing.crl").read_bytes())
        assert crl.next_update_utc - clock.now > timedelta(seconds=lifetimes.crl_seconds - 2)


# --- log ----------------------------------------------------------------------------------------------------------


def checkpoint(service):
    public = service.keys.public("log").public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    head = service.store.read_now(leaves.newest_checkpoint)
    origin = duties.log_origin(service)
    return verify_checkpoint(head.note.encode(), origin, {origin: [public]})


async def test_the_log_grows_by_signed_trees_over_all_leaves(service, tmp_path):
    for number in range(5):
        await fleet.device(service, tmp_path, f"d-{number}")
        await duties.sequence(service)
        placed = service.store.read_now(lambda tx: leaves.numbered(tx, 0, 1000))
        assert [row.number for row in placed] == list(range(len(placed)))
        signed = checkpoint(service)
        assert (signed.size, signed.root) == (len(placed), root_of_leaves([row.hash for row in placed]))
        assert service.store.read_now(lambda tx: leaves.unnumbered(tx, 10)) == []


async def test_without_new_leaves_nothing_is_signed(service):
    await duties.sequence(service)
    before = len(service.store.read_now(leaves.checkpoints))
    await duties.sequence(service)
    assert len(service.store.read_now(leaves.checkpoints)) == before


async def test_two_that_sequence_at_once_make_one_tree(service, tmp_path):
    await duties.sequence(service)
    await fleet.device(service, tmp_path, "d-1")
    await asyncio.gather(*(duties.sequence(service) for _ in range(5)))
    placed = service.store.read_now(lambda tx: leaves.numbered(tx, 0, 1000))
    assert checkpoint(service).root == root_of_leaves([row.hash for row in placed])
    assert [row.number for row in placed] == list(range(len(placed)))


# --- trust --------------------------------------------------------------------------------------------------------


def trust_expiry(directory):
    text = (directory.trust / "metadata" / "timestamp.json").read_text()
    return parse_rfc3339(json.loads(text)["signed"]["expires"])


async def test_the_trust_repository_is_signed_again_before_it_expires(service, directory):
    before = trust_expiry(directory)
    await duties.refresh_trust(service)
    assert trust_expiry(directory) == before
    later = replace(service, clock=Clock(before - timedelta(days=1)))
    await duties.refresh_trust(later)
    assert trust_expiry(directory) > before
