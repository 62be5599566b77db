"""`muster simulate --up`, as `make up` runs it: a service and its fleet, until Ctrl-C."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lab import simulate
from lab.story import Story, StoryFailed
from provisioning.config import DataDirectory
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
    with folder.with_suffix(".err").open("w") as told:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True)
    assert child.stdout is not None
    return child, json.loads(child.stdout.readline() or "null")


def _pid_of(parent: int, device: str) -> int:
    """The child that runs this device."""
    for child in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        if Path(f"/proc/{child}/cmdline").read_bytes().endswith(f"\0boot\0{device}\0".encode()):
            return child
    raise LookupError(device)


def _until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def _end_one(folder: Path, fleet: int) -> None:
    """The other device and the service go on, and one line says what happened."""
    os.kill(_pid_of(fleet, "sim-0001"), signal.SIGKILL)
    line = "muster simulate: sim-0001 ended with status -9; the others go on\n"
    _until(lambda: line in folder.with_suffix(".err").read_text())
    ordered = _muster(folder, "devices", "attest", "sim-0002")
    assert ordered.returncode == 0
    log = folder / "simulated" / "sim-0002.log"
    _until(lambda: "attested until=" in log.read_text())
    assert folder.with_suffix(".err").read_text().count(" ended with status ") == 1


@pytest.fixture
def handlers():
    """A story takes the signals of its process for good; the tests' own come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_devices_that_end_at_once_stop_no_fleet_and_none_that_is_left_does(tmp_path, capsys):
    """Nothing is where they should be made of."""
    with Story(tmp_path, simulate.project_environment(), Console(file=io.StringIO())) as story:
        fleet = simulate.Fleet(story, DataDirectory(tmp_path))
        simulate._start(fleet, ["sim-0001", "sim-0002"])
        assert (sorted(fleet.ended), fleet.running) == (["sim-0001", "sim-0002"], {})
        with pytest.raises(StoryFailed, match="no device is left"):
            simulate._look(fleet)
    assert capsys.readouterr().err.count("the others go on") == 2


def test_a_fleet_comes_up_and_goes_down_and_comes_up_again(folder):
    for devices in (1, 2):  # the second time the first device is known, and one is new
        child, told = _up(folder, devices)
        try:
            assert told["devices"] == [f"sim-{number:04}" for number in range(1, devices + 1)]
            listed = json.loads(_muster(folder, "devices", "list", "-o", "json").stdout)["devices"]
            assert [(one["serial"], one["state"], one["health"]) for one in listed] == [
                (name, "active", "healthy") for name in told["devices"]
            ]
            if devices > 1:
                _end_one(folder, child.pid)
        finally:
            child.send_signal(signal.SIGINT)
            status = child.wait(60)
        assert status == (0 if devices == 1 else 1)  # one of two ended
        wait_until_nobody_lives_in(folder)


def test_without_a_service_it_says_so(folder):
    assert _muster(folder, "init", "--ports", "free").returncode == 0
    ended = _muster(folder, "simulate")
    assert ended.returncode == 3
    assert "no service runs on it" in ended.stderr
