"""Quarantine, end to end: a device in service boots something else, loses all but the way back, and comes back."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tpm2_pytss")

from cryptography import x509

from device_agent.identity import IdentityStore
from lab.firmware import flip_byte
from ota.firmware import build_image, measure
from provisioning import policies
from provisioning.app.children import start_child, stop_child
from provisioning.db import findings
from tests.integration.agent_stack import AGENT, policy_text, running_stack, wait_for

SETTINGS = "[commands]\ngrace_seconds = 0\nretry_seconds = 1\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with running_stack(tmp_path_factory.mktemp("quarantine"), SETTINGS) as service:
        yield service


@pytest.fixture
def run():
    """Starts the agent of a device; gives the child and a function that reads its log."""
    started = []

    def start(device):
        log = (device.directory / "agent.log").open("ab")
        child = start_child([AGENT, "run", "--data-dir", device.directory / "agent"], stdout=log, stderr=log)
        started.append(child)
        return child, (device.directory / "agent.log").read_text

    yield start
    for child in started:
        if child.poll() is None:
            stop_child(child, 10)


def pair_of(device):
    return IdentityStore(device.directory / "agent" / "state" / "identity").current()


def boot(stack, device, *, tampered=False):
    image = flip_byte(stack.image, "kernel") if tampered else stack.image
    (device.slots / "a" / "image.bin").write_bytes(build_image(image))
    device.boot_firmware()


def muster(stack, *arguments):
    command = [Path(sys.executable).with_name("muster"), *arguments, "--data-dir", str(stack.directory.root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


def listed(stack):
    crl = x509.load_der_x509_crl((stack.directory.ca / "issuing.crl").read_bytes())
    return {
        format(entry.serial_number, "x"): entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        for entry in crl
    }


async def promoted(stack, image):
    """A policy that accepts this image too is proposed, and promoted by a second person."""
    text = policy_text(stack.ek_ca, stack.image)
    for pcr, value in measure(image).pcrs.items():
        text = re.sub(rf'^"{pcr}" = \[(.*)\]$', rf'"{pcr}" = [\1, "{value.hex()}"]', text, flags=re.MULTILINE)
    draft = await policies.propose_policy(stack.service, text, by="ada")
    await policies.promote_policy(stack.service, draft["model"], draft["version"], by="bob")


def assert_only_the_way_back(stack, log):
    welcomes = log().count("kind=Welcome")
    wait_for(lambda: log().count("kind=Welcome") > welcomes)  # by the topics of quarantine, which are open to it alone
    rights = (stack.directory.run / "broker" / "device.acl").read_text()
    name = stack.record("turncoat").id
    assert f"user {name}\ntopic deny muster/v1/{name}/up\n" in rights
    refusals = log().count("evidence-refused")
    muster(stack, "devices", "attest", "turncoat", "-o", "json")
    wait_for(lambda: log().count("evidence-refused") > refusals)
    shown = muster(stack, "devices", "show", "turncoat", "-o", "json")
    assert (shown["state"], shown["health"]) == ("active", "quarantined")
    assert shown["verdict"].startswith("refused: MUSTER-ATT-0")
    assert shown["attestation"]["quarantine"] is True
    assert {row["profile"]: row["state"] for row in shown["certificates"]} == {
        "ldevid": "revoked",
        "quarantine": "issued",
    }


def test_a_device_that_boots_tampered_firmware_loses_all_but_the_way_back_and_comes_back_by_a_pass(stack, run):
    device = stack.make_device("turncoat")
    boot(stack, device)
    child, log = run(device)
    wait_for(lambda: "kind=Welcome" in log())
    held = pair_of(device)
    stop_child(child, 10)

    device.tpm.power_cut()
    boot(stack, device, tampered=True)
    child, log = run(device)
    wait_for(lambda: stack.record("turncoat").health == "quarantined")  # asked because its agent started again
    wait_for(lambda: listed(stack).get(held.serial) is x509.ReasonFlags.certificate_hold)
    wait_for(lambda: "turned-away" in log() and "MUSTER-HLT-001" in log())
    wait_for(lambda: "in-quarantine" in log() and pair_of(device).is_quarantine)
    assert_only_the_way_back(stack, log)
    stop_child(child, 10)

    device.tpm.power_cut()
    boot(stack, device)
    child, log = run(device)
    wait_for(lambda: log().count("kind=Welcome") > 1 and stack.record("turncoat").health == "healthy")
    wait_for(lambda: not pair_of(device).is_quarantine and pair_of(device).serial != held.serial)
    shown = muster(stack, "devices", "show", "turncoat", "-o", "json")
    assert shown["verdict"] == "passed"
    assert shown["next_due"] > shown["last_attested"]
    states = {row["serial"]: row["state"] for row in shown["certificates"]}
    assert states[pair_of(device).serial] == "issued"
    passes = log().count("attested until=")
    assert muster(stack, "devices", "attest", "turncoat", "-o", "json")["ordered"] == "attest"
    wait_for(lambda: log().count("attested until=") > passes)
    assert "Traceback" not in log()
    assert stack.read(lambda tx: findings.is_open(tx, stack.record("turncoat").id, "silent")) is False


def test_a_policy_that_accepts_what_a_device_in_quarantine_showed_brings_it_back_at_once(stack, run):
    """The agent runs on: nobody starts it, nobody asks it by hand, and its next own try is half an hour away."""
    device = stack.make_device("pioneer")
    boot(stack, device)
    child, log = run(device)
    wait_for(lambda: "kind=Welcome" in log())
    stop_child(child, 10)
    device.tpm.power_cut()
    boot(stack, device, tampered=True)
    child, log = run(device)
    wait_for(lambda: "in-quarantine" in log() and pair_of(device).is_quarantine)
    welcomes = log().count("kind=Welcome")
    wait_for(lambda: log().count("kind=Welcome") > welcomes)  # by the topics of quarantine

    asyncio.run(promoted(stack, flip_byte(stack.image, "kernel")))
    wait_for(lambda: "attested until=" in log() and not pair_of(device).is_quarantine)
    shown = muster(stack, "devices", "show", "pioneer", "-o", "json")
    assert (shown["health"], shown["verdict"]) == ("healthy", "passed")
    ordered = [one["ordered_by"] for one in shown["commands"] if one["kind"] == "attest"]
    assert ordered.count("policy") == 1
    assert child.poll() is None
    assert "Traceback" not in log()
