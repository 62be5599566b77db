"""kill -9 at each point between an order to revoke and the published CRL: nothing is lost, the number rises."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning import crls
from provisioning.db import enrollments
from tests.faults.crl_killed_at import revoke
from tests.faults.service_killed_at import CrashPoints
from tests.support import fleet
from tests.support.crls import listed
from tests.support.service import make_installation, running_service

SCRIPT = Path(__file__).with_name("crl_killed_at.py")
ROOT = Path(__file__).resolve().parents[2]
POINTS = 10
"""The order's commit; the announcement's; the signature; the CRL's commit; the file. A point before and after each."""


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """An installation with a device for each crash point, and one more."""
    folder = tmp_path_factory.mktemp("crl-kill")
    directory = make_installation(folder / "D")

    async def devices(service):
        return [(await fleet.device(service, folder, f"d-{number}")).serial for number in range(POINTS + 1)]

    with running_service(directory) as service:
        return directory, asyncio.run(devices(service))


def run(directory, serial, deadly):
    command = [sys.executable, SCRIPT, directory.root, serial, str(deadly)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def number(directory):
    return crls.published_number(crls.crl_file(directory, "issuing"))


def test_a_revocation_has_exactly_these_crash_points(installation):
    directory, serials = installation
    done = run(directory, serials[POINTS], 0)
    assert (done.returncode, done.stdout.strip().splitlines()[-1]) == (0, str(POINTS)), done.stderr


@pytest.mark.parametrize("deadly", range(1, POINTS + 1))
def test_after_a_kill_the_certificate_is_listed_under_a_higher_number(installation, deadly):
    directory, serials = installation
    serial = serials[deadly - 1]
    before, already = number(directory), listed(directory)
    killed = run(directory, serial, deadly)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    between = number(directory)
    assert between >= before
    assert already <= listed(directory)  # the file is whole: the old one or the new one
    with running_service(directory) as service:
        asyncio.run(revoke(service, CrashPoints(0), serial))
        assert number(directory) > before
        assert number(directory) >= between
        assert listed(directory) == already | {serial}
        row = service.store.read_now(lambda tx: enrollments.certificate_by_serial(tx, serial))
    assert (row.state, row.reason) == ("revoked", "key-compromise")
