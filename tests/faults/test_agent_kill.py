"""kill -9 at each change of the agent's files: afterwards the old pair works, or the new one; nothing is done twice."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from sqlalchemy import func, select

pytest.importorskip("tpm2_pytss")

from device_agent.identity import IdentityStore
from device_agent.tpm import TpmAccess
from provisioning.app.children import kill_child, start_child, stop_child
from provisioning.db.ca_tables import Certificate
from provisioning.db.tables import Command
from tests.integration.agent_stack import AGENT, agent, running_stack, wait_for

KILLER = Path(__file__).with_name("agent_killed_at.py")
NUMBERS = itertools.count(1)
MINE = "state/identity,state/pending,state/session.json"
"""The files that enrollment and rotation write."""
CHANGES = "rename,replace,unlink,mkdir,rmdir"
"""What kill -9 leaves differs only from one of these to the next."""
EVERYTHING = f"open,fsync,{CHANGES}"
"""And what a power cut leaves: files half written, names not yet durable."""
KILLED = -9


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    settings = "[commands]\ngrace_seconds = 0\nretry_seconds = 1\n"
    with running_stack(tmp_path_factory.mktemp("kill"), settings) as service:
        yield service


@pytest.fixture
def device(stack):
    made = stack.make_device(f"dev-{next(NUMBERS)}")
    made.boot_firmware()
    yield made
    made.power_off()


def certificates(stack):
    query = select(func.count()).select_from(Certificate).where(Certificate.profile == "ldevid")
    return stack.read(lambda tx: tx.execute(query).scalar_one())


def argv_of(device, command, kill=None):
    """`kill` is (step, calls, words)."""
    start = [AGENT] if kill is None else [sys.executable, KILLER, str(kill[0]), kill[1], kill[2]]
    return [*start, command, "--data-dir", device.directory / "agent"]


def pair_of(device):
    return IdentityStore(device.directory / "agent" / "state" / "identity").current()


def forget(device):
    state = device.directory / "agent" / "state"
    state.rename(state.with_name(f"state-{os.urandom(4).hex()}"))


def assert_usable(device):
    """The key is in this TPM and is the certificate's."""
    pair = pair_of(device)
    with TpmAccess(device.tpm.tcti).open() as tpm:
        signature = tpm.sign(pair.key_pem, b"message")
    pair.certificate.public_key().verify(signature, b"message", ec.ECDSA(SHA256()))


def enroll_killed_at(stack, device, kill):
    """Killed once, then enrolled to the end: one certificate for both. False where it ended before the step came."""
    before = certificates(stack)
    died = subprocess.run(argv_of(device, "enroll", kill), check=False, capture_output=True, text=True, timeout=60)
    if died.returncode == 0:
        return False
    assert died.returncode == KILLED, died.stderr
    status, _, errors = agent(device, "enroll")
    assert status == 0, f"after {died.stderr}: {errors}"
    assert certificates(stack) == before + 1, died.stderr
    assert_usable(device)
    forget(device)
    return True


def sweep(one, stack, device, calls, words):
    """How many steps there were."""
    return sum(itertools.takewhile(bool, (one(stack, device, (step, calls, words)) for step in range(1, 1000))))


def test_enrollment_killed_at_any_step_ends_in_one_identity(stack, device):
    assert sweep(enroll_killed_at, stack, device, CHANGES, MINE) > 8


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_enrollment_killed_at_any_change_of_any_file_ends_in_one_identity(stack, device):
    assert sweep(enroll_killed_at, stack, device, EVERYTHING, "") > 40


def running(device, kill=None):
    log = (device.directory / "agent.log").open("ab")
    return start_child(argv_of(device, "run", kill), stdout=log, stderr=log)


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


def rotate_killed_at(stack, device, kill):
    """One rotation with a kill at this step; False where it ended before the step came."""
    before, issued = pair_of(device).serial, certificates(stack)
    stack.order(device.directory.name, "rotate")
    child = running(device, kill)
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
    assert_usable(device)
    return True


@pytest.mark.timeout(300)
def test_rotation_killed_at_any_step_ends_with_the_new_pair_in_use(stack, device):
    assert agent(device, "enroll")[0] == 0
    assert sweep(rotate_killed_at, stack, device, CHANGES, MINE) > 8


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_rotation_killed_at_any_change_of_any_file_ends_with_the_new_pair_in_use(stack, device):
    assert agent(device, "enroll")[0] == 0
    assert sweep(rotate_killed_at, stack, device, EVERYTHING, "") > 40
