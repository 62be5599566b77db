"""A broker that dies, a broker that lies, a worker that dies, in the middle of a rotation: delay, and nothing else."""

import asyncio
import itertools
import os
import signal

import pytest
from sqlalchemy import func, select

pytest.importorskip("tpm2_pytss")

from lab.proxies import HostileBroker, drop_every, forge, honest, reorder, replay
from provisioning.app.broker import broker_socket
from provisioning.db import commands, enrollments
from provisioning.db.columns import table_of
from provisioning.db.tables import RefusalRow
from provisioning.revoking import revoke_device
from tests.integration.agent_stack import running_stack, wait_for
from tests.support.processes import children

NUMBERS = itertools.count(1)
PATIENCE_SECONDS = 60
LIVING = ("pending", "answered")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    settings = "[commands]\ngrace_seconds = 0\nretry_seconds = 1\n"
    with running_stack(tmp_path_factory.mktemp("mqtt"), settings) as service:
        yield service


class Fleet:
    """One device with its running agent, and what the service knows of it."""

    def __init__(self, stack, name):
        self.stack, self.name = stack, name
        self.device = stack.make_device(name)
        self.log = (stack.root / f"{name}.log").open("wb")
        self.device._output = self.log
        self.device.power_on()
        wait_for(self.session, PATIENCE_SECONDS)
        self.id = stack.record(name).id

    def session(self):
        record = self.stack.record(self.name)
        return record and self.stack.read(lambda tx: commands.session_of(tx, record.id))

    def certificates(self):
        return self.stack.read(lambda tx: enrollments.certificates_of(tx, self.id))

    def current(self):
        """The serial of the one certificate in force; None while there are two."""
        living = [row.serial for row in self.certificates() if row.state == "issued"]
        return living[0] if len(living) == 1 else None

    def orders(self):
        return self.stack.read(lambda tx: commands.commands_of(tx, self.id, 50))

    def open_orders(self):
        return [row for row in self.orders() if row.state in LIVING]

    def rotate(self):
        self.stack.order(self.name, "rotate")

    def rotated(self, before, patience=PATIENCE_SECONDS):
        """Wait until another certificate is in force, the old one is revoked, and nothing is open."""
        wait_for(lambda: self.current() not in (None, before), patience)
        wait_for(lambda: not self.open_orders(), patience)
        states = {row.serial: row.state for row in self.certificates()}
        wait_for(lambda: {row.serial: row.state for row in self.certificates()}[before] == "revoked", patience)
        return states

    def close(self):
        self.device.power_off()
        self.log.close()


@pytest.fixture
def one(stack):
    made = Fleet(stack, f"dev-{next(NUMBERS)}")
    yield made
    made.close()


def kill(stack, part):
    (pid,) = children(stack.child.pid, part)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: children(stack.child.pid, part) not in ([], [pid]), PATIENCE_SECONDS)


MOMENTS = {
    "before the order": None,
    "as soon as it is ordered": lambda one: one.open_orders(),
    "when the command was sent": lambda one: [row for row in one.orders() if row.kind == "rotate" and row.tries],
    "when the certificate was made": lambda one: len(one.certificates()) > 1,
    "when the answer was sent": lambda one: [row for row in one.orders() if row.kind == "rotated" and row.tries],
}


@pytest.mark.parametrize("part", ["mosquitto", "provisioning.app.worker"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_the_middle_of_a_rotation_loses_nothing(stack, one, part, moment):
    before = one.current()
    if MOMENTS[moment] is None:
        kill(stack, part)
        one.rotate()
    else:
        one.rotate()
        wait_for(lambda: MOMENTS[moment](one), PATIENCE_SECONDS)
        kill(stack, part)
    states = one.rotated(before)
    assert len(states) == 2


@pytest.fixture
def hostile(stack):
    with HostileBroker(broker_socket(stack.directory)) as made:
        yield made


def unchanged(stack, one):
    """What no forgery and no replay may change."""
    refusals = table_of(RefusalRow)
    own = select(func.count()).select_from(refusals).where(refusals.c.device_id == one.id, refusals.c.own.is_(True))
    return {
        "health": stack.record(one.name).health,
        "certificates": [(row.serial, row.state) for row in one.certificates()],
        "refused as its own": stack.read(lambda tx: tx.execute(own).scalar_one()),
        "open": len(one.open_orders()),
    }


MISCHIEF = {"drops": lambda: drop_every(3), "replays": replay, "reorders": reorder, "forges": forge}


@pytest.mark.parametrize("mischief", MISCHIEF)
def test_a_broker_that_lies_delays_a_rotation_and_no_more(stack, one, hostile, mischief):
    hostile.mischief = MISCHIEF[mischief]()
    before = one.current()
    one.rotate()
    states = one.rotated(before, patience=110)
    assert len(states) == 2
    assert hostile.seen
    assert unchanged(stack, one)["health"] == "healthy"
    assert unchanged(stack, one)["refused as its own"] == 0


def test_a_conversation_that_is_replayed_afterwards_changes_nothing(stack, one, hostile):
    before = one.current()
    one.rotate()
    one.rotated(before)
    current, session = one.current(), one.session()
    known = unchanged(stack, one)
    hostile.inject(list(hostile.seen) * 3)
    other = Fleet(stack, f"dev-{next(NUMBERS)}")  # its hello comes behind all of them
    other.close()
    assert unchanged(stack, one) == known
    assert one.current() == current
    assert one.session().session == session.session
    hostile.mischief = honest
    one.rotate()
    one.rotated(current)


def test_one_devices_messages_under_anothers_name_change_nothing(stack, one, hostile):
    other = Fleet(stack, f"dev-{next(NUMBERS)}")
    try:
        before = one.current()
        one.rotate()
        one.rotated(before)
        known = unchanged(stack, other)
        session = other.session()
        swapped = [
            type(message)(message.direction, message.topic.replace(one.id, other.id), message.payload)
            for message in hostile.seen
        ]
        hostile.inject(swapped)
        current = one.current()
        one.rotate()
        one.rotated(current)
        assert unchanged(stack, other) == known
        assert other.session().session == session.session
    finally:
        other.close()


def test_a_revoked_device_is_thrown_off_and_comes_in_no_more(stack, one):
    broker_log = stack.directory.run / "broker" / "mosquitto.log"
    before, said = broker_log.stat().st_size, (stack.root / f"{one.name}.log").stat().st_size
    asyncio.run(revoke_device(stack.service, one.name, "key-compromise", by="test"))
    wait_for(lambda: broker_log.read_bytes()[before:].count(b"certificate verify failed") >= 3, PATIENCE_SECONDS)
    later = (stack.root / f"{one.name}.log").read_text()[said:]
    assert "not-connected" in later
    assert " connected " not in later
    assert [row.state for row in one.certificates()] == ["revoked"]
