"""kill -9 of the service at each point of an enrollment: nothing is lost, a retry gets the same certificate."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from lab.light_fleet import load_fleet, make_fleet
from provisioning.db import devices, enrollments
from tests.support.service import make_installation, registered, running_service
from wire.codec import decode
from wire.messages import Issued

SCRIPT = Path(__file__).with_name("service_killed_at.py")
POINTS = 8
"""Three commits and one signature, a point before and after each."""


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """An installation with one registered light device for each crash point, and one more."""
    folder = tmp_path_factory.mktemp("kill")
    fleet = make_fleet(folder / "fleet", POINTS + 1)
    data = make_installation(folder / "data")
    with running_service(data) as service:
        known = [(one.serial, one.ek_certificate) for one in load_fleet(fleet.directory)]
        asyncio.run(registered(service, fleet.policy.read_text(), *known))
    return data, fleet.directory


def run(installation, number: int, deadly: int, result: Path) -> subprocess.CompletedProcess[str]:
    data, fleet = installation
    command = [sys.executable, SCRIPT, data.root, fleet, str(number), str(deadly), result]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def certificates(installation, number: int):
    with running_service(installation[0]) as service:
        device = service.store.read_now(lambda tx: devices.by_serial(tx, f"light-{number:05d}"))
        return device, service.store.read_now(lambda tx: enrollments.certificates_of(tx, device.id))


def test_an_enrollment_has_exactly_these_crash_points(installation, tmp_path):
    done = run(installation, POINTS, 0, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(POINTS)), done.stderr


@pytest.mark.parametrize("deadly", range(1, POINTS + 1))
def test_after_a_kill_the_same_evidence_gets_the_one_certificate(installation, tmp_path, deadly):
    number = deadly - 1
    killed = run(installation, number, deadly, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "issued").exists()
    _, before = certificates(installation, number)
    again = run(installation, number, 0, tmp_path)
    assert again.returncode == 0, again.stderr
    issued = decode(Issued, (tmp_path / "issued").read_bytes(), limit=1024 * 1024)
    device, rows = certificates(installation, number)
    held = x509.load_der_x509_certificate(issued.certificate)
    assert [(row.state, row.tbs) for row in rows] == [("issued", held.tbs_certificate_bytes)]
    assert [row.serial for row in before] in ([], [row.serial for row in rows])
    assert (device.state, device.health) == ("active", "healthy")
