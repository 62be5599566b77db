"""No secret in a log, an answer, a traceback, an argument, a command's output: the real ones are the canaries."""

import base64
import json
import ssl
import subprocess
import sys
import traceback
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from hsm.errors import WrongPin
from lab.light_fleet import load_fleet, make_fleet
from provisioning import enrollment
from provisioning.app.places import open_token
from provisioning.config import load_config
from provisioning.refusals import ActivationProofWrong, Refusal
from tests.integration.agent_stack import Stack
from tests.support.service import registered, running_service

MUSTER = Path(sys.executable).with_name("muster")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    running = Stack(tmp_path_factory.mktemp("secrets"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("fleet") / "fleet", 3)


@pytest.fixture(scope="module")
def canaries(stack):
    """Every secret of the installation, in each form in which it could show."""
    found = {path.name: path.read_text().strip() for path in stack.directory.secrets.iterdir()}
    body = (stack.directory.tls / "service.key").read_text().splitlines()[1]
    found["service.key"] = body[:40]
    for name, text in list(found.items()):
        found[f"{name} in base64"] = base64.b64encode(text.encode()).decode().rstrip("=")
        found[f"{name} in hex"] = text.encode().hex()
    assert len(found) >= 20
    return found


def assert_silent(canaries, text, where):
    leaked = [name for name, secret in canaries.items() if secret in text]
    assert not leaked, f"{leaked} in {where}"


def ask(stack, path, headers=None, body=None):
    context = ssl.create_default_context(cafile=str(stack.directory.ca / "root.pem"))
    request = urllib.request.Request(  # noqa: S310  https, to our own port
        stack.endpoints["operator"] + path, headers=headers or {}, data=body
    )
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:  # noqa: S310  the same
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_the_canaries_would_be_seen(canaries):
    with pytest.raises(AssertionError, match=r"operator\.token"):
        assert_silent(canaries, f"token={canaries['operator.token']}", "a test")


def test_answers_and_logs_keep_the_token_to_themselves(stack, canaries):
    token = stack.directory.operator_token.read_text().strip()
    texts = [
        ask(stack, "/api/v1/devices", {"Authorization": f"Bearer {token}"}),
        ask(stack, "/api/v1/devices", {"Authorization": f"Bearer {token}x"}),
        ask(stack, f"/api/v1/devices/{token[:10]}", {"Authorization": f"Bearer {token}"}),
        ask(stack, "/api/v1/policies", {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}, b"{}"),
        ask(stack, "/metrics", {"Authorization": f"Bearer {token}"}),
    ]
    for text in [*texts, stack.log()]:
        assert_silent(canaries, text, text[:200])


def test_no_process_of_the_service_has_a_secret_among_its_arguments(stack, canaries):
    group = [stack.child.pid]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = int(next(line for line in status.read_text().splitlines() if line.startswith("PPid:")).split()[1])
        except OSError:
            continue
        if parent in group:
            group.append(int(status.parent.name))
    assert len(group) >= 3, "supervisor, broker, worker"
    for pid in group:
        assert_silent(canaries, Path(f"/proc/{pid}/cmdline").read_text(), f"arguments of {pid}")


@pytest.mark.parametrize("command", ["doctor", "fsck", "devices list", "policy list"])
def test_commands_print_no_secret(stack, canaries, command):
    argv = [MUSTER, *command.split(), "--data-dir", stack.directory.root, "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout
    assert_silent(canaries, done.stdout + done.stderr, command)


def test_a_wrong_pin_leaves_no_pin_in_the_traceback(stack, canaries, tmp_path):
    config = load_config(stack.directory)
    pin = stack.directory.pin("trust-3")
    right = pin.read_text()
    pin.write_text("a-wrong-pin-that-is-a-canary-too")
    try:
        with pytest.raises(WrongPin) as refused:
            open_token(stack.directory, config, "trust-3")
    finally:
        pin.write_text(right)
    ours = refused.value.with_traceback(refused.value.__traceback__.tb_next)  # this test's own frame holds the canaries
    shown = "".join(traceback.TracebackException.from_exception(ours, capture_locals=True).format())
    assert "open_token" in shown
    assert_silent({**canaries, "wrong": "a-wrong-pin-that-is-a-canary-too"}, shown, "the traceback")


async def test_the_secret_of_a_challenge_stays_on_the_server(stack, fleet, canaries):
    with running_service(stack.directory) as service:
        one, two, _ = load_fleet(fleet.directory)
        known = [(device.serial, device.ek_certificate) for device in (one, two)]
        await registered(service, fleet.policy.read_text(), *known)
        challenge = await enrollment.begin_enrollment(service, one.request(), source="test")
        secret = one.open_credential(challenge)
        evidence = one.answer(challenge)
        wrong = replace(evidence, activation_proof=bytes(32))
        with pytest.raises(ActivationProofWrong) as refused:
            await enrollment.complete_enrollment(
                service, challenge.enrollment_id, wrong, arrived=service.clock(), source="test"
            )
        shown = "".join(traceback.TracebackException.from_exception(refused.value, capture_locals=False).format())
        told = json.dumps([refused.value.expected, refused.value.actual, repr(refused.value)])
        for form in (secret.hex(), base64.b64encode(secret).decode().rstrip("="), repr(secret)):
            assert form not in shown + told + stack.log()
        assert isinstance(refused.value, Refusal)


def test_secrets_are_for_their_owner_alone(stack):
    for path in [
        *stack.directory.secrets.iterdir(),
        stack.directory.tls / "service.key",
        *stack.directory.tokens.rglob("*"),
    ]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert stack.directory.root.stat().st_mode & 0o077 == 0
