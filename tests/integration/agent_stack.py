"""A real service (SoftHSM2, SQLite, mosquitto, all listeners) and virtual devices with the real agent."""

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lab.ekca import create_ek_ca
from lab.firmware import make_image
from lab.virtual import DeviceSettings, VirtualDevice, create_device
from ota.firmware import build_image, measure
from provisioning import factory, outbox, policies
from provisioning.app.children import start_child, stop_child
from provisioning.db import devices
from provisioning.factory import StationIdentity
from tests.support.service import make_installation, running_service
from wire.factory import Registration, RegistrationRequest

CONF = Path(__file__).resolve().parents[2] / ".tools" / "openssl-tpm2.cnf"
SERVE = "import sys; from pathlib import Path; from provisioning.app.supervisor import supervise; "
SERVE += "from provisioning.config import DataDirectory; sys.exit(supervise(DataDirectory(Path(sys.argv[1]))))"
AGENT = Path(sys.executable).with_name("muster-agent")


def wait_for(what, seconds=30.0):
    """The first true value of `what`, which is tried until then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.05)
    message = "what was waited for did not come"
    raise AssertionError(message)


def policy_text(ek_ca, image, model="gateway", boot_log="required"):
    pcrs = measure(image).pcrs
    lines = "\n".join(f'"{number}" = ["{value.hex()}"]' for number, value in sorted(pcrs.items()) if number != 10)
    return f'''
model = "{model}"
software_tpm = true
banks = ["sha256"]
boot_log = "{boot_log}"
release_pcrs = [8, 9]
enrollments_per_day = 10000

[[ek_roots]]
certificate = """{ek_ca.root_pem.read_text()}"""
manufacturers = ["id:00001014"]

[pcrs.sha256]
{lines}
'''


class Stack:
    def __init__(self, root, settings="", make=make_installation):
        self.root = root
        self.directory = make(root / "service", settings)
        self.ek_ca = create_ek_ca(root / "ek-ca")
        self.image = make_image()
        self.child = None
        self.endpoints = {}
        self._parts = ExitStack()

    def start(self):
        log = (self.root / "service.log").open("ab")
        self.child = start_child([sys.executable, "-c", SERVE, self.directory.root], stdout=log, stderr=log)
        file = self.directory.endpoints
        try:
            wait_for(lambda: file.exists() or self.child.poll() is not None)
            self.endpoints = json.loads(file.read_bytes())
        except (AssertionError, OSError) as error:
            raise AssertionError(self.log()) from error

    @cached_property
    def service(self):
        """The service's flows on the same data directory, in this process."""
        return self._parts.enter_context(running_service(self.directory))

    def stop(self):
        self._parts.close()
        stop_child(self.child, 15)

    def log(self):
        return (self.root / "service.log").read_text()[-6000:]

    def make_device(self, name, *, register=True, anchor=None, **settings):
        directory = self.root / name
        wanted = DeviceSettings(
            name=name,
            service=self.endpoints["device"],
            public=self.endpoints["public"],
            anchor=anchor or self.directory.anchor,
            openssl_conf=CONF,
            **settings,
        )
        pems = create_device(directory, build_image(self.image), self.ek_ca, wanted)
        if register:
            der = x509.load_pem_x509_certificate(pems["rsa2048"].read_bytes()).public_bytes(Encoding.DER)
            self.register(name, der)
        return VirtualDevice(directory)

    def register(self, name, ek_certificate):
        """As a factory station would; its own certificate plays no part here."""
        asyncio.run(self._register(Registration(name, "gateway", ek_certificate)))

    async def _register(self, registration):
        service, at = self.service, int(self.service.clock().timestamp())
        await policies.set_policy(service, policy_text(self.ek_ca, self.image), by="test")
        station = {"name": "line-1", "certificate_serial": "1", "budget": 1000, "now": at}
        await service.ledger.write(lambda tx: devices.put_station(tx, **station))
        await factory.register(service, StationIdentity("line-1", "1"), RegistrationRequest((registration,)))

    def order(self, name, kind):
        return asyncio.run(outbox.order(self.service, name, kind, by="test"))

    def read(self, query):
        return asyncio.run(self.service.store.read(query))

    def record(self, name):
        return self.read(lambda tx: devices.by_serial(tx, name))

    def seen_later(self, name):
        """As if the TPM had run for an hour when it was last seen: a clock that goes back is told from a slow test."""
        device = self.record(name)
        later = device.clock + 3_600_000
        asyncio.run(self.service.ledger.write(lambda tx: devices.change(tx, device.id, clock=later)))


@contextmanager
def running_stack(root, settings="", make=make_installation):
    stack = Stack(root, settings, make)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()


def agent(device, *arguments, env=None, timeout=60):
    """One command of the agent in a device whose firmware has booted: (exit status, stdout, stderr)."""
    command = [AGENT, arguments[0], "--data-dir", device.directory / "agent", *arguments[1:]]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )
    return done.returncode, done.stdout, done.stderr
