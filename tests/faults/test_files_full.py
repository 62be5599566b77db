"""No room where the duties write: CRL, checkpoint, the list of who has no rights. What was there stays whole."""

import asyncio
from dataclasses import replace

import pytest

from provisioning import crls, duties
from provisioning.app.audit import Report, log_keys, verify_log
from provisioning.app.signatures import check_signatures, flush
from provisioning.db import revocations
from provisioning.refusals import StorageUnavailable
from provisioning.revoking import revoke_device
from tests.support import fleet
from tests.support.crls import listed, publish_crl
from tests.support.service import make_installation, running_service


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("files") / "D")


@pytest.fixture(scope="module")
def service(directory):
    with running_service(directory) as made:
        yield made


class Full:
    """A ledger that takes so many writes more, and then none."""

    def __init__(self, ledger, takes):
        self.ledger, self.takes = ledger, takes

    async def write(self, write):
        if self.takes == 0:
            raise StorageUnavailable(expected="a durable write", actual="disk full")
        self.takes -= 1
        return await self.ledger.write(write)


class Wire:
    """A way to devices that notes whom it threw off."""

    def __init__(self):
        self.ended = []

    async def end_session(self, device):
        self.ended.append(device)


def no_room_for(path):
    """Opening what is written aside fails, also for root."""
    aside = path.with_name(f".{path.name}.new")
    aside.mkdir()
    return aside


async def faults(service):
    await flush(service.keys, service.ledger, 0)
    report = Report()
    await service.store.read(lambda tx: check_signatures(tx, report))
    return report.checks[0].faults


async def until_signed(sign, service):
    """Rounds of CRLs until there is another number: one a second."""
    before = service.store.read_now(lambda tx: revocations.crl_head(tx, "issuing")).number
    while service.store.read_now(lambda tx: revocations.crl_head(tx, "issuing")).number == before:
        await sign()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("takes", [0, 1], ids=["before its signature", "after its signature"])
async def test_a_crl_that_cannot_be_stored_leaves_the_old_one_and_follows(service, directory, tmp_path, takes):
    member = await fleet.device(service, tmp_path, f"d-stored-{takes}")
    await revoke_device(service, member.name, "key-compromise", by="test")
    before = (directory.ca / "issuing.crl").read_bytes()
    full = replace(service, ledger=Full(service.ledger, takes))
    with pytest.raises(StorageUnavailable):
        await until_signed(lambda: crls.sign_due(full, service.authorities.active), service)
    assert await crls.publish(service, service.authorities.active) is not None
    assert (directory.ca / "issuing.crl").read_bytes() == before
    assert await faults(service) == []
    await publish_crl(service)
    assert member.serial in listed(directory)
    assert await faults(service) == []


async def test_a_crl_that_cannot_be_written_leaves_the_old_file_and_follows(service, directory, tmp_path):
    member, duty = await fleet.device(service, tmp_path, "d-file"), duties.Revoked(service, Wire())
    await duty.sign()
    await revoke_device(service, member.name, "key-compromise", by="test")
    before = (directory.ca / "issuing.crl").read_bytes()
    aside = no_room_for(directory.ca / "issuing.crl")
    with pytest.raises(OSError, match=r"issuing\.crl"):
        await until_signed(duty.sign, service)
    assert (directory.ca / "issuing.crl").read_bytes() == before
    aside.rmdir()
    await duty.sign()
    assert member.serial in listed(directory)


async def test_a_session_ends_also_where_the_rights_cannot_be_written(service, directory, tmp_path, monkeypatch):
    monkeypatch.setattr(duties, "BROKER_RELOADED_SECONDS", (0.0,))
    member, wire = await fleet.device(service, tmp_path, "d-rights"), Wire()
    duty = duties.Revoked(service, wire)
    await duty.follow()
    aside = no_room_for(directory.denied)
    await revoke_device(service, member.name, "key-compromise", by="test")
    for times in (1, 2):  # again and again: nothing else keeps it out
        duty._end_again_at = 0.0
        await duty.follow()
        async with asyncio.timeout(20):
            while len(wire.ended) < times:  # noqa: ASYNC110  what is waited for says nothing
                await asyncio.sleep(0.01)
    assert set(wire.ended) == {member.name}
    aside.rmdir()
    await duty.follow()
    assert directory.denied.read_text().split() == [member.name]


async def test_a_checkpoint_that_cannot_be_stored_is_made_again_over_the_same_leaves(service, directory):
    await duties.sequence(service)
    await fleet.station(service, directory.root, "line-full")
    with pytest.raises(StorageUnavailable):
        await duties.sequence(replace(service, ledger=Full(service.ledger, 0)))
    keys = log_keys(directory, service.config)
    assert service.store.read_now(lambda tx: verify_log(tx, keys)).holds
    await duties.sequence(service)
    report = service.store.read_now(lambda tx: verify_log(tx, keys))
    assert report.holds
    assert not any("wait" in note for note in report.notes), report.notes
