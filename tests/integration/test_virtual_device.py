"""The virtual device: boots what the boot loader chose, reboots on request, and loses power as a whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from lab.__main__ import main as lab_main
from lab.ekca import EkCaFailure, create_ek_ca, open_ek_ca
from lab.firmware import flip_byte, make_image
from lab.slots import BootState, read_state, write_state
from lab.virtual import DeviceFailure, DeviceSettings, VirtualDevice, create_device
from ota.firmware import build_image, event_log, measure, parse_image

OLD = make_image(version="1")
NEW = make_image(version="2", release_counter=2)
DEADLINE_SECONDS = 20
SETTINGS = DeviceSettings(
    name="dev-A.1",
    service="https://localhost:8443",
    public="http://localhost:8080",
    build_time=datetime(2026, 5, 17, tzinfo=UTC),
)


@pytest.fixture
def folder():
    """A short path: AF_UNIX allows 107 bytes."""
    place = Path(tempfile.mkdtemp(prefix="mv-"))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def made(folder):
    create_device(folder / "d", build_image(OLD), create_ek_ca(folder / "ca"), SETTINGS)
    return folder / "d"


def _agent(folder: Path, script: str) -> list[str]:
    """An agent that writes a line into `boots` at each start, and then does what the script says."""
    (folder / "agent.py").write_text(
        "import json, os, pathlib, sys, time\n"
        "booted = pathlib.Path('slots/booted').read_text()\n"
        "with open('boots', 'a') as boots: boots.write(booted)\n"
        "count = os.path.getsize('boots')\n" + script,
        encoding="utf-8",
    )
    return [sys.executable, str(folder / "agent.py")]


def _static(pcrs):
    return {pcr: value for pcr, value in pcrs.items() if pcr < 16}


def _until(condition) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_made_device_has_what_its_agent_needs(folder):
    (folder / "anchor").write_text('{"service": "s"}', encoding="utf-8")
    settings = DeviceSettings("gw-7", "https://h:1", 'http://h/"\\é', folder / "anchor", folder / "o.cnf")
    pems = create_device(folder / "d", build_image(OLD), create_ek_ca(folder / "ca"), settings)
    agent = tomllib.loads((folder / "d" / "agent" / "agent.toml").read_text(encoding="utf-8"))
    build_time = datetime.fromisoformat(agent.pop("build_time"))
    assert build_time.tzinfo is not None
    assert agent == {
        "service": "https://h:1",
        "public": 'http://h/"\\é',
        "anchor": "anchor.json",
        "tcti": f"swtpm:path={folder.resolve()}/d/tpm/tpm.sock",
        "serial": "gw-7",
        "hardware": "gateway",
        "slots": "../slots",
        "boot_log": "../boot_log.bin",
        "ima_log": "../ima_log.bin",
        "openssl_conf": str((folder / "o.cnf").resolve()),
    }
    assert (folder / "d" / "agent" / "anchor.json").read_text(encoding="utf-8") == '{"service": "s"}'
    root = x509.load_pem_x509_certificate((folder / "ca" / "root.pem").read_bytes())
    for pem in pems.values():
        x509.load_pem_x509_certificate(pem.read_bytes()).verify_directly_issued_by(root)
    for private in (folder / "d", folder / "d" / "agent", folder / "d" / "agent" / "agent.toml"):
        assert private.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["", "../x", "a b", "a" * 64, "a\n", '"'])
def test_a_name_that_is_none_is_refused_before_anything_is_made(folder, name):
    ca = create_ek_ca(folder / "ca")
    with pytest.raises(DeviceFailure, match="is not a name"):
        create_device(folder / "d", build_image(OLD), ca, DeviceSettings(name, "https://h", "http://h"))
    assert not (folder / "d").exists()


def test_a_device_that_cannot_be_finished_leaves_nothing_behind(folder):
    ca = create_ek_ca(folder / "ca")
    (folder / "ca" / "key.pem").write_text("garbage", encoding="ascii")
    with pytest.raises(EkCaFailure):
        create_device(folder / "d", build_image(OLD), ca, SETTINGS)
    assert not (folder / "d").exists()


def test_a_device_in_a_folder_with_a_long_path_boots(folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    deep = folder / ("d" * 120)
    create_device(deep, build_image(OLD), create_ek_ca(folder / "ca"), SETTINGS)
    device = VirtualDevice(deep)
    try:
        device.boot_firmware()
        assert device.tpm.tcti == tomllib.loads((deep / "agent" / "agent.toml").read_text(encoding="utf-8"))["tcti"]
        assert _static(device.tpm.pcrs()) == measure(OLD).pcrs
    finally:
        device.power_off()
    assert not device.tpm.socket_path.exists()


def test_a_device_is_not_made_over_something_else(made, folder):
    with pytest.raises(DeviceFailure, match="not empty"):
        create_device(made, build_image(OLD), open_ek_ca(folder / "ca"), SETTINGS)


def test_a_folder_without_a_device_cannot_be_booted(folder):
    with pytest.raises(DeviceFailure, match="no virtual device"):
        VirtualDevice(folder)


def test_a_boot_measures_the_active_slot_and_writes_its_log(made):
    device = VirtualDevice(made)
    try:
        boot = device.boot_firmware()
        assert boot.slot == "a"
        assert _static(device.tpm.pcrs()) == measure(OLD).pcrs
        assert (made / "boot_log.bin").read_bytes() == event_log(OLD)
        (made / "slots" / "a" / "image.bin").write_bytes(build_image(flip_byte(OLD, "kernel")))
        device.boot_firmware()  # powered already: a reset
        changed = _static(device.tpm.pcrs())
        assert {pcr for pcr in changed if changed[pcr] != measure(OLD).pcrs[pcr]} == {8}
        assert (made / "boot_log.bin").read_bytes() == event_log(flip_byte(OLD, "kernel"))
    finally:
        device.power_off()


def test_the_agent_is_rebooted_into_the_slot_that_it_asks_for_and_commits(made, folder):
    (made / "slots" / "b" / "image.bin").write_bytes(build_image(NEW))
    script = """
state = json.loads(pathlib.Path('slots/boot.json').read_text())
if count == 1:
    pathlib.Path('slots/boot.json').write_text(json.dumps({'active': 'a', 'trying': 'b', 'tries_left': 3}))
    sys.exit(75)
if count == 2:
    assert booted == 'b' and state == {'active': 'a', 'trying': 'b', 'tries_left': 2}
    pathlib.Path('slots/boot.json').write_text(json.dumps({'active': 'b', 'trying': None, 'tries_left': 0}))
    sys.exit(75)
"""
    device = VirtualDevice(made, agent=_agent(folder, script))
    try:
        assert device.run() == 0
        assert (made / "boots").read_text(encoding="ascii") == "abb"
        assert _static(device.tpm.pcrs()) == measure(NEW).pcrs
        assert read_state(made / "slots") == BootState("b", None, 0)
    finally:
        device.power_off()


def test_a_trial_whose_agent_fails_is_reset_until_the_old_slot_boots(made, folder):
    (made / "slots" / "b" / "image.bin").write_bytes(build_image(NEW))
    write_state(made / "slots", BootState("a", "b", 2))
    device = VirtualDevice(made, agent=_agent(folder, "sys.exit(1 if booted == 'b' else 0)"))
    try:
        assert device.run() == 0
        assert (made / "boots").read_text(encoding="ascii") == "bba"
        assert _static(device.tpm.pcrs()) == measure(OLD).pcrs
    finally:
        device.power_off()


def test_an_agent_that_fails_on_a_committed_slot_ends_the_run_with_its_status(made, folder):
    device = VirtualDevice(made, agent=_agent(folder, "sys.exit(3)"))
    try:
        assert device.run() == 3
        assert (made / "boots").read_text(encoding="ascii") == "a"
    finally:
        device.power_off()


def test_a_power_cut_ends_agent_and_tpm_at_once_and_shows_in_the_clock(made, folder):
    device = VirtualDevice(made, agent=_agent(folder, "time.sleep(600)"))
    try:
        device.power_on()
        agent = device.agent
        assert agent is not None
        before = device.tpm.clock()
        device.power_cut()
        assert agent.returncode == -signal.SIGKILL
        assert not device.tpm.running
        device.power_on()
        after = device.tpm.clock()
        assert after.reset_count == before.reset_count + 1
        assert not after.safe
        assert _static(device.tpm.pcrs()) == measure(OLD).pcrs
    finally:
        device.power_off()


def test_an_orderly_power_off_leaves_a_safe_clock_and_no_agent(made, folder):
    device = VirtualDevice(made, agent=_agent(folder, "time.sleep(600)"))
    device.power_on()
    agent = device.agent
    device.power_off()
    device.power_off()
    assert agent is not None
    assert agent.returncode == -signal.SIGTERM
    with device.tpm:
        assert device.tpm.clock().safe


def test_an_agent_that_is_not_there_is_one_named_failure(made):
    device = VirtualDevice(made, agent=["/nonexistent/agent"])
    try:
        with pytest.raises(DeviceFailure, match="cannot be started"):
            device.power_on()
    finally:
        device.power_off()


@pytest.mark.skipif(shutil.which("faketime") is None, reason="package faketime is not installed")
def test_a_device_clock_may_start_at_1970(made, folder):
    script = "pathlib.Path('time').write_text(repr((time.time(), time.monotonic())))"
    clock = datetime(1970, 1, 1, 0, 10, tzinfo=UTC)
    device = VirtualDevice(made, agent=_agent(folder, script), clock=clock)
    try:
        assert device.run() == 0
    finally:
        device.power_off()
    wall, monotonic = eval((made / "time").read_text(encoding="ascii"))  # noqa: S307  written by the line above
    assert 600 <= wall < 700
    assert abs(monotonic - time.monotonic()) < 600


# --- commands -------------------------------------------------------------------------------------------------------


def _lab(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "lab", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stderr
    return done


URLS = ("--service", "https://localhost:1", "--public", "http://localhost:2")


def test_a_device_is_made_and_booted_by_typing_commands(folder):
    _lab("image", folder / "i.bin", "--version", "4", "--counter", "4", "--hardware", "sensor", "--flip", "rootfs")
    assert parse_image((folder / "i.bin").read_bytes()) == flip_byte(make_image("sensor", "4", 4), "rootfs")
    root = json.loads(_lab("ek-ca", folder / "ca").stdout)["root"]
    made = _lab("create", folder / "d", "--image", folder / "i.bin", "--name", "n", "--ek-ca", folder / "ca", *URLS)
    answer = json.loads(made.stdout)
    assert (answer["name"], answer["ek_ca"]) == ("n", root)
    for pem in answer["ek_certificates"].values():
        subprocess.run(["openssl", "verify", "-CAfile", root, pem], check=True, capture_output=True)


def test_a_second_device_is_of_the_same_manufacturer(folder):
    _lab("image", folder / "i.bin")
    first, second = (
        json.loads(_lab("create", folder / n, "--image", folder / "i.bin", "--name", n, *URLS).stdout) for n in "ab"
    )
    assert first["ek_ca"] == second["ek_ca"] == str(folder / "ek-ca" / "root.pem")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["boot", "nowhere"], 1, "lab boot: nowhere holds no virtual device"),
        (["image", "x.bin", "--flip", "initrd"], 1, "lab image: no stage 'initrd'"),
        (["image", "x.bin", "--version", "a b"], 1, "lab image: version"),
        (["create", "d", "--image", "missing", "--name", "n", *URLS], 1, "No such file"),
        (["create", "d", "--name", "n"], 2, "required"),
        (["image", "x.bin", "--counter", "many"], 2, "invalid int"),
        ([], 2, "required"),
        (["boot", "d", "--clock", "1970-01-01T00:00:00"], 2, "does not name its zone"),
        (["boot", "d", "--clock", "noon"], 2, "is not a time like"),
        (["fly"], 2, "invalid choice"),
    ],
)
def test_a_wrong_command_gets_one_line_and_its_exit_status(folder, arguments, status, says):
    done = subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert status == 2 or done.stderr.count("\n") == 1


BOOT = """
import sys
sys.path.insert(0, {repository!r})
import lab.virtual
lab.virtual._agent_command = lambda data: {agent!r}
from lab.__main__ import main
sys.exit(main(["boot", {directory!r}]))
"""


def _boot(made: Path, agent: list[str]) -> subprocess.Popen:
    repository = str(Path(__file__).resolve().parents[2])
    script = BOOT.format(repository=repository, agent=agent, directory=str(made))
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


def test_boot_runs_until_sigterm_and_then_shuts_down_in_order(made, folder):
    with _boot(made, _agent(folder, "time.sleep(600)")) as boot:
        _until((made / "boots").exists)
        boot.terminate()
        assert boot.wait(DEADLINE_SECONDS) == 0
    with VirtualDevice(made).tpm as tpm:
        assert tpm.clock().safe


def test_boot_ends_with_1_when_the_agent_fails(made, folder):
    with _boot(made, _agent(folder, "sys.exit(1)")) as boot:
        assert boot.wait(DEADLINE_SECONDS) == 1
        assert boot.stderr.read() == "lab boot: the agent ended with exit status 1\n"


def test_a_killed_boot_takes_agent_and_tpm_along(made, folder):
    script = "pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(600)"
    with _boot(made, _agent(folder, script)) as boot:
        _until(lambda: (made / "pid").exists() and (made / "pid").read_text(encoding="ascii"))
        boot.kill()
    agent = Path("/proc") / (made / "pid").read_text(encoding="ascii") / "exe"
    _until(lambda: not os.path.lexists(agent) or not agent.exists())
    with VirtualDevice(made).tpm as tpm:  # its lock is free again
        assert not tpm.clock().safe


def test_a_command_imports_no_more_than_it_needs(folder):
    """Each of them is a process of its own, and the TSS or TUF take longer to import than an image to make."""
    heavy = "'tuf', 'securesystemslib', 'pkcs11'"
    script = "import sys; from lab.__main__ import main; main(sys.argv[2:])\n"
    script += f"print([name for name in ({heavy}, *sys.argv[1].split()) if name in sys.modules], file=sys.stderr)"
    for more, arguments in (
        ("cryptography tpm2_pytss", ["image", folder / "v.img"]),
        ("tpm2_pytss", ["ek-ca", folder / "ca"]),
        ("asn1crypto", ["create", folder / "d", "--name", "d", "--image", folder / "v.img", "--ek-ca", folder / "ca"]),
    ):
        urls = ["--service", "https://s", "--public", "http://p"] if arguments[0] == "create" else []
        command = [sys.executable, "-c", script, more, *arguments, *urls]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]", arguments[0]


def test_a_file_that_is_no_image_is_named_and_makes_no_device(folder, capsys):
    (folder / "bad.img").write_text("no firmware at all")
    urls = ["--service", "https://s", "--public", "http://p", "--name", "d"]
    assert lab_main(["create", str(folder / "d"), "--image", str(folder / "bad.img"), *urls]) == 1
    assert f"lab create: {folder}/bad.img: magic is not" in capsys.readouterr().err
    assert not (folder / "d").exists()
