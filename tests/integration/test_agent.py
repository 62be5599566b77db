"""The real agent in virtual devices, against the real service: enrollment and its refusals, and the life afterwards."""

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("tpm2_pytss")

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.identity import IdentityStore
from lab.firmware import flip_byte
from lab.virtual import VirtualDevice
from ota.firmware import build_image
from provisioning import findings, inventory
from provisioning.app.children import kill_child, start_child, stop_child
from tests.integration.agent_stack import AGENT, agent, running_stack, wait_for

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = "[commands]\ngrace_seconds = 0\nretry_seconds = 1\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with running_stack(tmp_path_factory.mktemp("agent"), SETTINGS) as service:
        yield service


@pytest.fixture
def boot(stack):
    """Makes a device and boots its firmware; takes its power away at the end."""
    made = []

    def make(name, *, change=None, clock=None, **settings):
        device = stack.make_device(name, **settings)
        if clock is not None:
            device = VirtualDevice(device.directory, clock=clock)
        if change is not None:
            (device.slots / "a" / "image.bin").write_bytes(build_image(change(stack.image)))
        device.boot_firmware()
        made.append(device)
        return device

    yield make
    for device in made:
        device.power_off()


@pytest.fixture
def run(stack):
    """Starts the agent of a device; gives a function that reads its log."""
    started = []

    def start(device, env=None):
        log = (device.directory / "agent.log").open("ab")
        child = start_child([AGENT, "run", "--data-dir", device.directory / "agent"], stdout=log, stderr=log, env=env)
        started.append(child)
        return child, (device.directory / "agent.log").read_text

    yield start
    for child in started:
        if child.poll() is None:
            stop_child(child, 10)


def state_of(device):
    return device.directory / "agent" / "state"


def serial_of(device):
    return IdentityStore(state_of(device) / "identity").current().serial


# --- enrollment ------------------------------------------------------------------------------------------------------


def test_a_registered_device_enrolls_and_its_files_are_its_own(stack, boot):
    device = boot("good")
    status, out, errors = agent(device, "enroll", "-o", "json")
    assert status == 0, errors
    identity = json.loads(out)
    record = stack.record("good")
    assert identity["device_id"] == record.id
    leaf = x509.load_pem_x509_certificate((state_of(device) / "identity/pairs/1/chain.pem").read_bytes())
    assert format(leaf.serial_number, "x") == identity["serial"]
    assert b"TSS2 PRIVATE KEY" in (state_of(device) / "identity/pairs/1/key.pem").read_bytes()
    for path in (state_of(device), *state_of(device).rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert list(state_of(device).glob("pending*")) == []
    assert agent(device, "enroll")[0] == 0
    assert serial_of(device) == identity["serial"]
    assert agent(device, "enroll", "--again")[0] == 0
    assert serial_of(device) != identity["serial"]
    assert stack.record("good").id == record.id
    status, out, _ = agent(device, "doctor", "-o", "json")
    assert status == 0
    assert all(finding["ok"] for finding in json.loads(out))


def test_a_changed_byte_in_the_firmware_is_refused_and_explained(stack, boot):
    device = boot("tampered", change=lambda image: flip_byte(image, "kernel"))
    status, out, errors = agent(device, "enroll")
    assert (status, out) == (1, "")
    assert "muster explain " in errors
    assert not (state_of(device) / "identity").exists()


def test_a_tpm_that_nobody_registered_is_refused(boot):
    status, _, errors = agent(boot("stranger", register=False), "enroll")
    assert status == 1
    assert "MUSTER-ATT-001" in errors


def test_a_registered_name_with_another_tpm_is_refused(stack, boot):
    boot("named")
    thief = boot("thief", register=False)
    config = thief.directory / "agent" / "agent.toml"
    config.write_text(config.read_text().replace('serial = "thief"', 'serial = "named"'))
    status, _, errors = agent(thief, "enroll")
    assert status == 1
    assert "MUSTER-ATT-002" in errors


def test_the_ecc_endorsement_key_serves_where_it_is_the_registered_one(stack, boot):
    device = boot("elliptic", register=False)
    der = x509.load_pem_x509_certificate((device.directory / "ek-ecc384.pem").read_bytes()).public_bytes(Encoding.DER)
    stack.register("elliptic", der)
    status, _, errors = agent(device, "enroll")
    assert status == 0, errors
    details = json.loads((state_of(device) / "identity/pairs/1/details.json").read_bytes())
    assert details["ek_kind"] == "EK-HIGH-ECC384"


def test_a_service_of_another_anchor_is_refused_by_the_device(tmp_path, stack, boot):
    # By a process of its own: one SoftHSM2 in a process has one folder of tokens.
    code = "import sys; from pathlib import Path; from tests.support.service import make_installation; "
    code += "make_installation(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path / "other"], check=True, cwd=ROOT, timeout=60)
    device = boot("loyal", anchor=tmp_path / "other" / "anchor.json")
    status, _, errors = agent(device, "enroll")
    assert status == 1
    assert "MUSTER-OTA-104" in errors
    assert not list(state_of(device).glob("pending*"))


def test_without_an_anchor_nothing_is_trusted(boot):
    device = boot("anchorless")
    (device.directory / "agent" / "anchor.json").unlink()
    status, _, errors = agent(device, "enroll")
    assert status == 1
    assert "anchor.json does not exist" in errors
    assert errors.count("\n") == 1


def test_a_service_that_is_away_is_told_by_the_exit_status(boot):
    device = boot("lonely", register=False)
    config = device.directory / "agent" / "agent.toml"
    text = config.read_text()
    config.write_text(
        "\n".join(
            line if not line.startswith("public") else 'public = "http://127.0.0.1:1"' for line in text.splitlines()
        )
    )
    status, _, errors = agent(device, "enroll", timeout=90)
    assert status == 3
    assert "127.0.0.1:1: " in errors
    assert "refused" in errors


def test_a_tpm_that_is_off_is_named_with_its_cure(boot):
    device = boot("dark")
    device.power_off()
    status, out, _ = agent(device, "doctor")
    assert status == 1
    assert "FAIL  tpm" in out
    assert "check tcti" in out
    status, _, errors = agent(device, "enroll")
    assert status == 1
    assert "no TPM at swtpm:path=" in errors


def test_usage_and_configuration_end_with_2(tmp_path):
    for arguments, says in (
        (["dance"], "invalid choice"),
        (["status", "--data-dir", tmp_path], "agent.toml: is missing"),
    ):
        done = subprocess.run([AGENT, *arguments], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
    done = subprocess.run([AGENT, "--help"], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "example:" in done.stdout


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_wrong_clock_at_1970_enrolls_and_a_future_one_weakens_nothing(stack, boot, year):
    moment = datetime(year, 1, 1, 0, 1, tzinfo=UTC)
    built = datetime.now(UTC) - timedelta(days=30)
    device = boot(f"clock-{year}", clock=moment, build_time=built)
    status, _, errors = agent(device, "enroll", env=device._environment)
    if year == 1970:
        assert status == 0, errors
        leaf = IdentityStore(state_of(device) / "identity").current().certificate
        assert leaf.not_valid_before_utc < datetime.now(UTC) < leaf.not_valid_after_utc
        kept = json.loads((state_of(device) / "time.json").read_bytes())["floor"]
        assert abs(datetime.fromisoformat(kept) - datetime.now(UTC)) < timedelta(minutes=5)
    else:
        assert status == 1
        assert "MUSTER-OTA-105" in errors


def test_a_device_at_1970_is_not_served_an_expired_repository(tmp_path, boot, stack):
    """Its time floor is the image's build time: what expired before is expired, whatever the clock says."""
    future = datetime.now(UTC) + timedelta(days=400)
    device = boot("from-the-future", clock=datetime(1970, 1, 1, 0, 1, tzinfo=UTC), build_time=future)
    status, _, errors = agent(device, "enroll", env=device._environment)
    assert status == 1
    assert "MUSTER-OTA-105" in errors


# --- afterwards ------------------------------------------------------------------------------------------------------


def test_an_agent_enrolls_connects_rotates_attests_and_stops(stack, boot, run):
    device = boot("alive")
    child, log = run(device)
    wait_for(lambda: "kind=Welcome" in log())
    first = serial_of(device)
    stack.order("alive", "rotate")
    wait_for(lambda: serial_of(device) != first)
    wait_for(lambda: "sent kind=Installed" in log())
    wait_for(lambda: {row.serial: row.state for row in certificates(stack, "alive")}.get(first) == "revoked")
    stack.order("alive", "attest")
    wait_for(lambda: "attested until=" in log())
    child.terminate()
    assert child.wait(15) == 0
    _, out, _ = agent(device, "status", "-o", "json")
    shown = json.loads(out)
    assert shown["serial"] == serial_of(device)
    assert shown["attested_until"] is not None
    assert "Traceback" not in log()


def test_a_state_folder_that_came_to_another_tpm_is_found_and_its_device_goes_on(stack, boot, run):
    """The key stays where it was; the agent says whose state it found, and its own TPM answers for that."""
    original, other, stranger = boot("original"), boot("carried-to"), boot("nobodys", register=False)
    assert agent(original, "enroll")[0] == 0
    for device in (other, stranger):
        shutil.rmtree(state_of(device), ignore_errors=True)
        shutil.copytree(state_of(original), state_of(device))
        run(device)
    (found,) = wait_for(lambda: findings_of(stack, "carried-to"), 60)
    assert (found["kind"], found["response"]) == ("cloned-state", "quarantine")
    assert found["detail"]["state_of"] == stack.record("original").id
    wait_for(lambda: "no factory station" in (stranger.directory / "agent.log").read_text().lower())
    assert findings_of(stack, "original") == []
    assert stack.record("original").health == "healthy"
    assert certificates(stack, "carried-to") == []


def findings_of(stack, name):
    return asyncio.run(findings.list_findings(stack.service, name, closed=True, before=None, limit=9))


def certificates(stack, name):
    from provisioning.db import enrollments

    record = stack.record(name)
    return stack.read(lambda tx: enrollments.certificates_of(tx, record.id))


def test_a_second_agent_on_one_folder_is_refused(boot, run):
    device = boot("single")
    _, log = run(device)
    wait_for(lambda: "connected" in log())
    status, _, errors = agent(device, "enroll")
    assert status == 1
    assert "another muster-agent works here" in errors
    assert agent(device, "status")[0] == 0


def test_a_broker_killed_in_the_middle_of_a_rotation_loses_nothing(stack, boot, run):
    device = boot("resilient")
    _, log = run(device)
    wait_for(lambda: "kind=Welcome" in log())
    first = serial_of(device)
    stack.order("resilient", "rotate")
    wait_for(lambda: "kind=Rotate " in log())
    os.kill(broker_of(stack), signal.SIGKILL)
    wait_for(lambda: serial_of(device) != first, 60)
    wait_for(lambda: {row.serial: row.state for row in certificates(stack, "resilient")}.get(first) == "revoked", 60)


def broker_of(stack):
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            stat_line = (entry / "stat").read_text() if (entry / "stat").exists() else ""
            name, _, rest = stat_line.partition("(")[2].rpartition(")")
            if name == "mosquitto" and int(rest.split()[1]) == stack.child.pid:
                return int(entry.name)
    raise AssertionError("no broker")


def test_a_device_whose_power_is_cut_while_it_runs_comes_back(stack, boot, run):
    device = boot("cut")
    child, log = run(device)
    wait_for(lambda: "kind=Welcome" in log())
    serial = serial_of(device)
    kill_child(child)
    device.tpm.power_cut()
    device.boot_firmware()
    run(device)
    wait_for(lambda: log().count("kind=Welcome") > 1)
    assert serial_of(device) == serial


def test_a_device_whose_tpm_was_cleared_enrolls_again_as_soon_as_that_is_approved(stack, boot, run):
    device = boot("cleared")
    assert agent(device, "enroll")[0] == 0
    before = IdentityStore(state_of(device) / "identity").current()
    stack.seen_later("cleared")
    device.tpm.clear()
    device.boot_firmware()
    child, log = run(device)
    wait_for(lambda: "device-key-lost" in log() and "enrollment-failed" in log())
    assert "The TPM was cleared" in log()
    stop_child(child, 10)
    asyncio.run(inventory.approve(stack.service, "cleared", by="test"))
    run(device)
    wait_for(lambda: "kind=Welcome" in log())
    now = IdentityStore(state_of(device) / "identity").current()
    assert now.details.device_id == before.details.device_id
    assert now.serial != before.serial


def test_no_authorisation_is_in_logs_arguments_or_tracebacks(boot, run):
    """Canaries stand for the hierarchies' secrets."""
    from tpm2_pytss.constants import ESYS_TR

    device = boot("secretive")
    with device.tpm.esapi() as tpm:
        tpm.hierarchy_change_auth(ESYS_TR.ENDORSEMENT, b"canary-e")
    folder = device.directory / "agent"
    (folder / "auth").write_bytes(b"canary-e\n")
    (folder / "auth").chmod(0o600)
    config = folder / "agent.toml"
    config.write_text(config.read_text() + 'endorsement_auth = "auth"\n')
    child, log = run(device)
    wait_for(lambda: "kind=Welcome" in log())
    assert b"canary" not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
    assert b"canary" not in Path(f"/proc/{child.pid}/environ").read_bytes()
    assert "canary" not in log()
    assert not any(b"canary" in path.read_bytes() for path in state_of(device).rglob("*") if path.is_file())
    (folder / "auth").write_bytes(b"canary-wrong")
    assert "canary" not in "".join(map(str, agent(device, "doctor")))


def test_the_agent_imports_nothing_of_the_service_and_starts_without_ssl():
    code = "import sys, device_agent.__main__; print([m for m in ('ssl', '_ssl', '_hashlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    code = "import sys, device_agent.agent; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for forbidden in ("provisioning", "hsm", "lab", "sqlmodel", "pydantic", "aiohttp", "asyncio", "tpm2_pytss", "tuf"):
        assert f"'{forbidden}'" not in done.stdout
