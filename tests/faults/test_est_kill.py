"""kill -9 of the service at each point of an EST enrollment: the token is not lost, and buys one certificate."""

import asyncio
import signal
import subprocess
import sys

import pytest
from cryptography import x509

from provisioning.db import devices, enrollments
from tests.support.est import csr_for, new_key, token_for
from tests.support.service import make_installation, running_service

POINTS = 6
"""Two commits and one signature, a point before and after each."""


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("kill") / "data")


@pytest.fixture
def device(installation, tmp_path, request):
    """The serial of a device with a token and a request, in files."""
    serial = f"gw-{request.node.callspec.params['deadly']}"
    with running_service(installation) as service:
        made = asyncio.run(token_for(service, serial))
    (tmp_path / "token").write_text(made["token"])
    (tmp_path / "csr").write_bytes(csr_for(new_key()))
    return serial


def run(installation, serial, deadly, result):
    command = [sys.executable, "-m", "tests.faults.est_killed_at", installation.root, serial, str(deadly), result]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def certificates(installation, serial):
    with running_service(installation) as service:
        device = service.store.read_now(lambda tx: devices.by_serial(tx, serial))
        return service.store.read_now(lambda tx: enrollments.certificates_of(tx, device.id))


@pytest.mark.parametrize("deadly", range(1, POINTS + 1))
def test_after_a_kill_the_same_request_gets_the_one_certificate(installation, device, tmp_path, deadly):
    killed = run(installation, device, deadly, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "issued").exists()
    before = certificates(installation, device)
    again = run(installation, device, 0, tmp_path)
    assert again.returncode == 0, again.stderr
    held = x509.load_der_x509_certificate((tmp_path / "issued").read_bytes())
    rows = certificates(installation, device)
    assert [(row.state, row.tbs) for row in rows] == [("issued", held.tbs_certificate_bytes)]
    assert [row.serial for row in before] in ([], [row.serial for row in rows])


@pytest.mark.parametrize("deadly", [0])
def test_an_est_enrollment_has_exactly_these_crash_points(installation, device, tmp_path, deadly):
    done = run(installation, device, deadly, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(POINTS)), done.stderr
