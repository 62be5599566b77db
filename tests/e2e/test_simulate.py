"""`muster simulate --up`, as `make up` runs it: a service and its fleet, until Ctrl-C."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.residents import wait_until_nobody_lives_in

pytestmark = pytest.mark.timeout(300)
MUSTER = Path(sys.executable).with_name("muster")


def _muster(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MUSTER, *arguments, "--data-dir", folder], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def folder():
    place = Path(tempfile.mkdtemp(prefix="sim-"))
    yield place / "d"
    shutil.rmtree(place)


def _up(folder: Path, devices: int) -> tuple[subprocess.Popen[str], dict[str, object]]:
    command = [MUSTER, "simulate", "--devices", str(devices), "--up", "-o", "json", "--data-dir", folder]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    return child, json.loads(child.stdout.readline() or "null")


def test_a_fleet_comes_up_and_goes_down_and_comes_up_again(folder):
    for devices in (1, 2):  # the second time the first device is known, and one is new
        child, told = _up(folder, devices)
        try:
            assert told["devices"] == [f"sim-{number:04}" for number in range(1, devices + 1)]
            listed = json.loads(_muster(folder, "devices", "list", "-o", "json").stdout)["devices"]
            assert [(one["serial"], one["state"], one["health"]) for one in listed] == [
                (name, "active", "healthy") for name in told["devices"]
            ]
        finally:
            child.send_signal(signal.SIGINT)
            status = child.wait(60)
        assert status == 0
        wait_until_nobody_lives_in(folder)


def test_without_a_service_it_says_so(folder):
    assert _muster(folder, "init", "--ports", "free").returncode == 0
    ended = _muster(folder, "simulate")
    assert ended.returncode == 3
    assert "no service runs on it" in ended.stderr
