"""kill -9 at each change of the agent's files: afterwards the old pair works, or the new one; nothing is done twice."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

pytest.importorskip("tpm2_pytss")

from device_agent.identity import IdentityStore
from provisioning.app.children import kill_child, start_child, stop_child
from provisioning.db.tables import Certificate, Command
from tests.integration.agent_stack import AGENT, agent, running_stack, wait_for

KILLER = Path(__file__).with_name("agent_killed_at.py")
MINE = "identity,pending,session.json"
"""The files that enrollment and rotation write; the rest is swept in the long test."""
KILLED = -9


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    settings = "[commands]\ngrace_seconds = 0\nretry_seconds = 1\n"
    with running_stack(tmp_path_factory.mktemp("kill"), settings) as service:
        yield service


@pytest.fixture
def device(stack, request):
    name = "dev-" + "".join(c for c in request.node.name.lower() if c.isalnum())[-24:]
    made = stack.make_device(name)
    made.boot_firmware()
    yield made
    made.power_off()


def certificates(stack):
    query = select(func.count()).select_from(Certificate).where(Certificate.profile == "ldevid")
    return stack.read(lambda tx: tx.execute(query).scalar_one())


def killed(device, step, words, *command):
    argv = [sys.executable, KILLER, str(step), words, *command, "--data-dir", device.directory / "agent"]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


def pair_of(device):
    return IdentityStore(device.directory / "agent" / "state" / "identity").current()


def forget(device):
    state = device.directory / "agent" / "state"
    state.rename(state.with_name(f"state-{os.urandom(4).hex()}"))


def sweep_enroll(stack, device, words, steps):
    """Kill at each step, enroll to the end, and see exactly one certificate issued for both runs together."""
    swept = 0
    for step in steps:
        before = certificates(stack)
        died = killed(device, step, words, "enroll")
        if died.returncode == 0:
            break
        assert died.returncode == KILLED, died.stderr
        status, _, errors = agent(device, "enroll")
        assert status == 0, f"after {died.stderr}: {errors}"
        assert certificates(stack) == before + 1, died.stderr
        status, _, errors = agent(device, "doctor")
        assert status == 0, f"after {died.stderr}: {errors}"
        forget(device)
        swept += 1
    return swept


def test_enrollment_killed_at_any_step_ends_in_one_identity(stack, device):
    assert sweep_enroll(stack, device, MINE, range(1, 100)) > 15


@pytest.mark.long
@pytest.mark.timeout(900)
def test_enrollment_killed_at_any_change_of_any_file_ends_in_one_identity(stack, device):
    assert sweep_enroll(stack, device, "", range(1, 400)) > 40


def running(device, step=None, words=MINE):
    log = (device.directory / "agent.log").open("ab")
    arguments = ["run", "--data-dir", device.directory / "agent"]
    argv = [AGENT, *arguments] if step is None else [sys.executable, KILLER, str(step), words, *arguments]
    return start_child(argv, stdout=log, stderr=log)


def log_of(device):
    return (device.directory / "agent.log").read_text()[-3000:]


def is_rotated(stack, device, before):
    """The service has the new key's word for it, and the agent uses the pair."""
    pair = pair_of(device)
    if pair is None or pair.serial == before:
        return False
    record = stack.record(device.directory.name)
    waiting = (
        select(func.count())
        .select_from(Command)
        .where(Command.device_id == record.id)
        .where(Command.kind.in_(("rotate", "rotated")))
        .where(Command.state.in_(("pending", "answered")))
    )
    return stack.read(lambda tx: tx.execute(waiting).scalar_one()) == 0


def rotate_killed_at(stack, device, step):
    """One rotation with a kill at this step; False where it ended before the step came."""
    before, issued = pair_of(device).serial, certificates(stack)
    stack.order(device.directory.name, "rotate")
    child = running(device, step)
    try:
        assert wait_for(lambda: child.poll() is not None or is_rotated(stack, device, before), 40), log_of(device)
        if child.poll() is None:
            return False
        assert child.returncode == KILLED, log_of(device)
    finally:
        kill_child(child)
    assert pair_of(device) is not None
    child = running(device)
    try:
        wait_for(lambda: is_rotated(stack, device, before), 40)
    except AssertionError as error:
        raise AssertionError(log_of(device) + stack.log()) from error
    finally:
        stop_child(child, 10)
    assert certificates(stack) == issued + 1, log_of(device)
    return True


def sweep_rotation(stack, device, steps):
    assert agent(device, "enroll")[0] == 0
    return sum(itertools.takewhile(bool, (rotate_killed_at(stack, device, step) for step in steps)))


@pytest.mark.timeout(300)
def test_rotation_killed_at_any_step_ends_with_the_new_pair_in_use(stack, device):
    assert sweep_rotation(stack, device, range(1, 100)) > 15
