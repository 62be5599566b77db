"""The drill: all that devices trust is changed while they reconnect and rotate, and no handshake fails.

A real service (SoftHSM2, SQLite, mosquitto), real agents on virtual TPMs, and devices of software keys that shake hands
with both listeners all the while, each time with the trust bundle of that moment.
"""

import asyncio
import io
import json
import socket
import subprocess
import threading
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

pytest.importorskip("tpm2_pytss")

import urllib3
from cryptography import x509

from device_agent.identity import IdentityStore
from device_agent.tls import ServiceContext
from device_agent.trust import NotFoundAtSource, TrustStore, load_anchor
from provisioning import cli
from provisioning.app.children import start_child, stop_child
from provisioning.db import commands, devices, enrollments
from tests.integration.agent_stack import AGENT, running_stack, wait_for
from tests.support import fleet
from tests.support.cli import MUSTER
from tests.support.mqtt import Peer
from tests.support.service import NAME

SETTINGS = "[commands]\ngrace_seconds = 0\nretry_seconds = 1\n"
AGENTS = ("drill-1", "drill-2")
HANDSHAKES = 40
"""How many there are at least, of each device, in each part of the drill."""
ROTATE_EVERY = 8


class Restless(threading.Thread):
    """A device that connects again and again, to both listeners, and takes a new certificate now and then."""

    def __init__(self, stack, name):
        super().__init__(name=name, daemon=True)
        self.stack, self.count, self.failures = stack, 0, []
        self._folder = stack.root / name
        self._folder.mkdir()
        self._ended = threading.Event()
        self._http = urllib3.PoolManager(1)
        anchor = load_anchor(stack.directory.anchor)
        self._trust = TrustStore(self._folder / "trust", anchor, self._fetch, lambda: datetime.now(UTC))
        self._member = self._certified()

    def run(self):
        while not self._ended.wait(0.02):
            try:
                self._once()
            except Exception as error:  # noqa: BLE001  whatever it is, it is a failure
                self.failures.append(f"{self.count}: {type(error).__name__}: {error}")

    def end(self):
        self._ended.set()
        self.join(30)

    def _once(self):
        bundle = self._trust.refresh().bundle
        pair = SimpleNamespace(chain_file=self._member.certificate_file, key_file=self._member.key_file)
        keys = bundle.issuing_keys
        context = ServiceContext.to(NAME, bundle.ca_roots, lambda: datetime.now(UTC), pair, issuing_keys=keys)
        address = urlsplit(self.stack.endpoints["device"])
        with (
            socket.create_connection((address.hostname, address.port), timeout=20) as plain,
            context.wrap_socket(plain) as secured,
        ):
            secured.sendall(b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert secured.recv(100).startswith(b"HTTP/1.1 404"), "the device listener does not answer"
        address = urlsplit(self.stack.endpoints["mqtt"])
        peer = Peer(host=address.hostname, port=address.port, context=context, client_id=self.name, clean=True)
        try:
            peer.wait_connected()
        finally:
            peer.client.disconnect()
            peer.client.loop_stop()
        self.count += 1
        if self.count % ROTATE_EVERY == 0:
            self._member = self._certified()

    def _certified(self):
        """A new certificate by whoever signs now; the one before is superseded."""
        service = self.stack.service

        async def made():
            member = await fleet.device(service, self._folder, self.name)
            at = int(service.clock().timestamp()) + 60

            def write(tx):
                devices.change(tx, self.name, state="registered")  # no agent: it acknowledges nothing
                enrollments.supersede(tx, self.name, but=member.serial, revoke_at=at)

            await service.ledger.write(write)
            return member

        return asyncio.run(made())

    def _fetch(self, path, most):
        answer = self._http.request("GET", f"{self.stack.endpoints['public']}/trust/{path}", retries=False)
        if answer.status == 404:
            raise NotFoundAtSource(path)
        assert answer.status == 200
        return answer.data[: most + 1]


class Drill:
    def __init__(self, stack, children):
        self.stack = stack
        self.children = children

    def types(self, *arguments, status=0):
        """A command, as a person types it: one that needs no token in this process, which is faster."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            ended = cli.main([*arguments, "--data-dir", str(self.stack.directory.root)])
        assert ended == status, (arguments, out.getvalue(), err.getvalue())
        return SimpleNamespace(out=out.getvalue(), err=err.getvalue())

    def types_with_tokens(self, *arguments, status=0):
        """A command as a process of its own: here the service's token is open already."""
        command = [MUSTER, *arguments, "--data-dir", self.stack.directory.root]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return SimpleNamespace(out=done.stdout, err=done.stderr)

    def status(self):
        return json.loads(self.types("ca", "status", "-o", "json").out)

    def one(self, name):
        return next(one for one in self.status()["authorities"] if one["name"] == name)

    def publish(self):
        """The next bundle; every agent comes to hold it, and says so."""
        version = json.loads(self.types_with_tokens("ca", "publish", "--yes", "-o", "json").out)["version"]
        wait_for(lambda: {self.stack.record(name).trust_version for name in AGENTS} == {version}, 60)
        return version

    def rotate(self, name):
        """One rotation of a real agent, to its end."""
        before = self.serial(name)
        self.stack.order(name, "rotate")
        wait_for(lambda: self.serial(name) != before and self.is_settled(name), 60)

    def serial(self, name):
        device = self.stack.record(name).id
        session = self.stack.read(lambda tx: commands.session_of(tx, device))
        return None if session is None else session.certificate_serial

    def is_settled(self, name):
        device = self.stack.record(name).id
        rows = self.stack.read(lambda tx: enrollments.certificates_of(tx, device))
        return [row.serial for row in rows if row.state == "issued"] == [self.serial(name)]

    def issuer_of(self, name):
        pair = IdentityStore(self.stack.root / name / "agent" / "state" / "identity").current()
        return pair.certificate.issuer.rfc4514_string(), [
            x509.load_der_x509_certificate(der).subject.rfc4514_string() for der in pair.details.chain
        ]

    def log_of(self, name):
        return (self.stack.root / name / "agent.log").read_text()


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    with running_stack(tmp_path_factory.mktemp("drill"), SETTINGS) as stack:
        made, children = [], []
        for name in AGENTS:
            device = stack.make_device(name)
            device.boot_firmware()
            made.append(device)
            log = (device.directory / "agent.log").open("ab")
            command = [AGENT, "run", "--data-dir", device.directory / "agent"]
            children.append(start_child(command, stdout=log, stderr=log))
        drill = Drill(stack, children)
        try:
            for name in AGENTS:
                wait_for(lambda name=name: stack.record(name).trust_version == 1, 90)
            yield drill
        finally:
            for child in children:
                stop_child(child, 15)
            for device in made:
                device.power_off()


@pytest.fixture
def restless(drill, request):
    """Devices that do not stop connecting; none of them may ever fail."""
    threads = [Restless(drill.stack, f"restless-{number}-{len(request.node.name)}") for number in (1, 2)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.end()


def no_handshake_failed(drill, restless):
    wait_for(lambda: min(one.count for one in restless) >= HANDSHAKES or any(one.failures for one in restless), 120)
    for one in restless:
        one.end()
    assert [one.failures for one in restless] == [[], []]
    broker = (drill.stack.directory.run / "broker" / "mosquitto.log").read_text()
    assert "certificate verify failed" not in broker
    for name in AGENTS:
        log = drill.log_of(name)
        assert "not-connected" not in log, log[-3000:]
        assert "certificate-refused" not in log
        assert "new-pair" not in log


def test_the_issuing_ca_and_the_root_are_changed_under_load(drill, restless):
    drill.types_with_tokens("ca", "prepare", "issuing", "--key", "P-384")
    refused = drill.types("ca", "activate", "issuing-2", status=1)
    assert "MUSTER-CA-001" in refused.err
    drill.publish()
    drill.types("ca", "activate", "issuing-2")
    refused = drill.types("ca", "retire", "issuing", status=1)
    assert "MUSTER-CA-002" in refused.err
    assert all(drill.stack.record(name).id in refused.err for name in AGENTS)  # who would break is named
    for name in AGENTS:
        drill.rotate(name)
        assert "issuing 2 CA" in drill.issuer_of(name)[0]
    wait_for(lambda: drill.one("issuing")["certificates_in_use"] == 0, 60)
    drill.types("ca", "retire", "issuing")
    drill.publish()
    served = x509.load_pem_x509_certificate((drill.stack.directory.tls / "service.pem").read_bytes())
    assert "issuing 2 CA" in served.issuer.rfc4514_string()

    drill.types_with_tokens("ca", "prepare", "root")
    drill.publish()
    drill.types("ca", "activate", "root-2")
    assert "MUSTER-CA-003" in drill.types("ca", "retire", "issuing-2", status=1).err  # it signs
    drill.types("ca", "retire", "root")
    drill.publish()
    for name in AGENTS:
        drill.rotate(name)
        issuer, chain = drill.issuer_of(name)
        assert "issuing 2 CA" in issuer
        assert "root 2 CA" in chain[-1]
    states = {one["name"]: one["state"] for one in drill.status()["authorities"]}
    assert states["issuing"] == states["root"] == "retired"
    assert states["issuing-2"] == states["root-2"] == "active"
    no_handshake_failed(drill, restless)
    assert drill.status()["bundle"]["to_publish"] is None


def test_command_and_log_keys_and_the_trust_root_are_changed_under_load(drill, restless):
    for kind in ("command", "log"):
        drill.types_with_tokens("ca", "prepare", kind)
    drill.publish()
    for name in ("command-2", "log-2"):
        drill.types("ca", "activate", name)
    for name in AGENTS:
        drill.rotate(name)  # by the new command key
    for name in ("command", "log"):
        drill.types("ca", "retire", name)
    version = drill.publish()

    drill.types_with_tokens("ca", "prepare", "trust")
    drill.types_with_tokens("ca", "activate", "trust-2")
    wait_for(lambda: {drill.stack.record(name).trust_version for name in AGENTS} == {version + 1}, 60)
    drill.types("ca", "retire", "trust")
    for name in AGENTS:
        drill.rotate(name)
    roots = sorted(path.name for path in (drill.stack.directory.trust / "metadata").glob("*.root.json"))
    assert roots == ["1.root.json", "2.root.json"]
    no_handshake_failed(drill, restless)
    for name in AGENTS:
        assert "message-dropped" not in drill.log_of(name)
    drill.types("audit", "verify")
    found = json.loads(drill.types("fsck", "-o", "json", status=1).out)["checks"]
    faults = [fault for check in found for fault in check["faults"]]
    assert all("restless" in fault for fault in faults), faults  # nobody registered these, and none of them attested
