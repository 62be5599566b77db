"""CAs on other keys than P-256 serve: a virtual device enrolls and connects, offline tokens being away."""

import subprocess

import pytest

pytest.importorskip("tpm2_pytss")

from cryptography import x509

from hsm.kinds import kind_of
from provisioning.app.children import start_child, stop_child
from tests.integration.agent_stack import AGENT, Stack, agent, wait_for
from tests.support.ceremonies import installed, unplug
from tests.support.cli import MUSTER

KINDS = [("P-384", "RSA-3072"), ("RSA-3072", "P-384"), ("Ed25519", "Ed25519")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda pair: f"root {pair[0]}, issuing {pair[1]}")
def stack(request, tmp_path_factory):
    root, issuing = request.param
    folder = tmp_path_factory.mktemp("kinds")
    body = f'[root]\nkey = "{root}"\n[issuing]\nkey = "{issuing}"\nconstrained = true\n[ocsp]\nkey = "{issuing}"\n'
    made = {}

    def make(where, settings):
        directory, made["done"] = installed(where, body, settings)
        unplug(directory, made["done"], folder / "away")
        return directory

    running = Stack(folder, "[commands]\nretry_seconds = 1\n", make)
    running.kinds = request.param
    running.start()
    yield running
    running.stop()


def test_the_ca_has_the_keys_that_were_asked_for(stack):
    for name, kind in zip(("root", "issuing"), stack.kinds, strict=True):
        certificate = x509.load_pem_x509_certificate((stack.directory.ca / f"{name}.pem").read_bytes())
        assert kind_of(certificate.public_key()) == kind


def test_a_device_enrolls_and_connects(stack):
    device = stack.make_device("D-1")
    device.boot_firmware()
    try:
        status, _, errors = agent(device, "enroll")
        assert status == 0, errors + stack.log()
        child = start_child([AGENT, "run", "--data-dir", device.directory / "agent"])
        try:
            wait_for(lambda: stack.read(lambda tx: _session(tx, stack.record("D-1").id)))
        finally:
            stop_child(child, 10)
    finally:
        device.power_off()


def _session(tx, device_id):
    from provisioning.db import commands

    return commands.session_of(tx, device_id)


def test_openssl_verifies_the_chain_and_the_crl(stack):
    ca = stack.directory.ca
    crl = subprocess.run(
        ["openssl", "crl", "-inform", "DER", "-in", ca / "issuing.crl", "-CAfile", ca / "issuing.pem", "-noout"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "verify OK" in crl.stderr
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", ca / "root.pem", "-untrusted", ca / "issuing.pem",
         stack.directory.tls / "service.pem"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_fsck_and_doctor_find_nothing_wrong(stack):
    for command in ("fsck", "doctor"):
        said = subprocess.run(
            [MUSTER, command, "--data-dir", stack.directory.root], capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stdout
        assert "FAIL" not in said.stdout
