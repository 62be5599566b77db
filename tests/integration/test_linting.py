"""The nightly lint: at its hour and once, in a child that reads, and says what it found."""

import asyncio
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from provisioning import linting
from provisioning.duties import duties
from provisioning.refusals import StorageUnavailable
from tests.support.service import Clock, make_installation, running_service

DAY = datetime(2026, 11, 21, 12, tzinfo=UTC)
NIGHT = datetime(2026, 11, 22, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("linting") / "D")


@pytest.fixture
def service(directory):
    with running_service(directory) as made:
        yield made


def value(gauge):
    return gauge._value.get()


def test_the_next_night_is_the_next_time_that_it_is_the_hour():
    assert linting.next_night(DAY) == NIGHT
    assert linting.next_night(NIGHT) == NIGHT + timedelta(days=1)
    assert linting.next_night(NIGHT - timedelta(seconds=1)) == NIGHT


async def test_it_runs_at_night_and_once(service, monkeypatch):
    ran, clock = [], Clock(DAY)

    async def lint(_service):
        ran.append(clock.now)

    monkeypatch.setattr(linting, "lint", lint)
    nightly = linting.Nightly(DAY)
    for hours in (0, 13, 14, 15, 24, 37, 38, 62):
        clock.now = DAY + timedelta(hours=hours)
        await nightly.run(replace(service, clock=clock))
    assert ran == [NIGHT, NIGHT + timedelta(days=1), NIGHT + timedelta(days=2)]


async def test_an_honest_installation_is_clean(service):
    await linting.lint(service)
    assert value(linting.LINTED) >= 3  # root, issuing CA, the service's own
    assert value(linting.FAULTS) == 0


async def test_what_is_found_is_counted_and_named(service, directory, capsys):
    with closing(sqlite3.connect(directory.root / "muster.db")) as database, database:
        database.execute("update certificate set not_after = not_after - 1 where profile = 'service-tls'")
    try:
        await linting.lint(service)
    finally:
        with closing(sqlite3.connect(directory.root / "muster.db")) as database, database:
            database.execute("update certificate set not_after = not_after + 1 where profile = 'service-tls'")
    assert value(linting.FAULTS) == 1


async def test_a_child_that_fails_is_told_and_the_loop_goes_on(service, monkeypatch):
    monkeypatch.setattr(linting, "CHILD", "provisioning.app.no_such_module")
    with pytest.raises(StorageUnavailable) as caught:
        await linting.lint(service)
    assert "its child ended: 1" in caught.value.actual


async def test_a_child_that_is_no_longer_wanted_is_ended(service, monkeypatch):
    children, started = [], asyncio.Event()
    start = asyncio.create_subprocess_exec

    async def noted(*arguments, **options):
        children.append(await start(*arguments, **options))
        started.set()
        return children[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    running = asyncio.create_task(linting.lint(service))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children[0].returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(children[0].pid, 0)


async def test_it_is_a_duty(service):
    async def end_session(device):
        raise AssertionError(device)

    wire = SimpleNamespace(end_session=end_session)
    assert "lint" in [duty.name for duty in duties(service, wire, asyncio.Event())]
