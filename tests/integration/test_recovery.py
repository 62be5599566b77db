"""Coming back: devices whose certificate expired, a year late, at 1970, after the CA was changed, by attestation alone.

The service's whole tree, the owner's commands and the agents live a year ahead of the clock; TPMs keep their own time.
"""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("tpm2_pytss")

from cryptography import x509
from sqlalchemy import update

from device_agent.identity import IdentityStore
from lab.firmware import flip_byte
from lab.virtual import _fake_clock
from provisioning import explaining, policies
from provisioning.app.children import start_child, stop_child
from provisioning.db import enrollments
from provisioning.refusals import DeviceRevoked, EnrollmentQuotaSpent, PcrsNotAccepted
from provisioning.revoking import revoke_device
from tests.integration.agent_stack import AGENT, Stack, agent, policy_text, wait_for
from tests.support.ahead import ahead_by
from tests.support.cli import MUSTER
from tests.support.service import running_service

YEAR = timedelta(days=366)
SETTINGS = "[commands]\ngrace_seconds = 0\nretry_seconds = 1\n"
KILLER = Path(__file__).resolve().parents[1] / "faults" / "agent_killed_at.py"
KILLED = [sys.executable, KILLER, "1", "rename,replace,mkdir", "state/identity"]
"""Its power is lost when it has the answer, before it keeps anything of it."""
AT_1970 = datetime(1970, 1, 1, 0, 1, tzinfo=UTC)


def ahead():
    return datetime.now(UTC) + YEAR


class Aged(Stack):
    """A stack that can be stopped, and started again a year later."""

    def __init__(self, root):
        super().__init__(root, SETTINGS)
        self.devices = {}
        self.later = ahead_by(YEAR, root)

    def age(self, monkeypatch):
        self.stop()
        del self.__dict__["service"]
        with monkeypatch.context() as patch:
            for name, value in self.later.items():
                patch.setenv(name, value)
            self.start()
        self.__dict__["service"] = self._parts.enter_context(running_service(self.directory, ahead))

    def shows_the_new_ca(self):
        """Has the device listener the certificate that the service took of the CA that signs now?"""
        address = urlsplit(self.endpoints["device"])
        shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((address.hostname, address.port)))
        ca = x509.load_der_x509_certificate((self.directory.ca / "issuing-2.crt").read_bytes())
        return x509.load_der_x509_certificate(shown).issuer == ca.subject

    def owner(self, *arguments):
        """One of the owner's commands, a year later."""
        command = [MUSTER, *arguments, "--data-dir", self.directory.root]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **self.later})
        assert done.returncode == 0, (arguments, done.stderr, self.log())
        return done.stdout


NAMES = ("late", "unset", "command", "outdated", "spent", "revoked", "interrupted")


@pytest.fixture(scope="module")
def aged(tmp_path_factory):
    """Devices enrolled, and were switched off. A year later there is another issuing CA, and the first one is gone."""
    monkeypatch = pytest.MonkeyPatch()
    stack = Aged(tmp_path_factory.mktemp("recovery"))
    stack.start()
    with ExitStack() as undo:
        undo.callback(stack.stop)
        for name in NAMES:
            device = stack.make_device(name)
            device.boot_firmware()
            undo.callback(device.power_off)
            command = [
                *(KILLED if name == "interrupted" else [AGENT]),
                "enroll",
                "--data-dir",
                device.directory / "agent",
            ]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
            assert done.returncode == (-signal.SIGKILL if name == "interrupted" else 0), done.stderr
            device.power_off()
            stack.devices[name] = device
        stack.age(monkeypatch)
        stack.owner("trust", "publish")
        stack.owner("ca", "prepare", "issuing")
        stack.owner("ca", "publish", "--yes")
        wait_for((stack.directory.ca / "issuing-2.crl").exists)
        stack.owner("ca", "activate", "issuing-2", "--force")
        wait_for(stack.shows_the_new_ca)
        stack.owner("ca", "retire", "issuing", "--force")
        stack.owner("trust", "publish")
        yield stack


@pytest.fixture
def on(aged):
    """Boots the firmware of a device, and takes its power away at the end."""
    booted = []

    def boot(name):
        aged.devices[name].boot_firmware()
        booted.append(aged.devices[name])
        return booted[-1]

    yield boot
    for device in booted:
        device.power_off()


@pytest.fixture
def run(aged):
    """Starts the agent of a device at a clock; gives its log."""
    started = []

    def start(name, environment):
        device = aged.devices[name]
        device.boot_firmware()
        log = (device.directory / "agent.log").open("ab")
        command = [AGENT, "run", "--data-dir", device.directory / "agent"]
        started.append((start_child(command, stdout=log, stderr=log, env={**os.environ, **environment}), device))
        return (device.directory / "agent.log").read_text

    yield start
    for child, device in started:
        stop_child(child, 10)
        device.power_off()


def pair_of(aged, name):
    return IdentityStore(aged.devices[name].directory / "agent" / "state" / "identity").current()


def assert_is_back(aged, name, record):
    """The same device as before, with a certificate that is good now, by the CA that signs now."""
    pair = pair_of(aged, name)
    assert pair.details.device_id == record.id
    issuer = x509.load_der_x509_certificate((aged.directory.ca / "issuing-2.crt").read_bytes())
    pair.certificate.verify_directly_issued_by(issuer)
    assert pair.certificate.not_valid_before_utc < ahead() < pair.certificate.not_valid_after_utc
    after = aged.record(name)
    assert (after.ak_name, after.ek_id, after.health) == (record.ak_name, record.ek_id, "healthy")
    assert after.approved_until is None  # nobody approved anything


@pytest.mark.parametrize("name", ["late", "unset"])
def test_a_device_that_was_away_for_a_year_comes_back_by_itself(aged, run, name):
    """Its certificate and the trust metadata that it holds are over, its CA is retired; one does not know the time."""
    before, record = pair_of(aged, name), aged.record(name)
    assert before.certificate.not_valid_after_utc < ahead()
    log = run(name, aged.later if name == "late" else _fake_clock({}, AT_1970))
    wait_for(lambda: "kind=Welcome" in log(), 60)
    assert_is_back(aged, name, record)
    assert pair_of(aged, name).spki != before.spki
    assert ("time-raised" in log()) is (name == "unset")
    assert "Traceback" not in log()


def test_one_command_brings_back_a_device_that_does_not_know_that_its_certificate_is_over(aged, on):
    """By its own clock, and by the last time that it was told, it is enrolled."""
    record = aged.record("command")
    status, _, errors = agent(on("command"), "enroll", env=_fake_clock({}, AT_1970))
    assert (status, "enrolled already" in errors) == (0, False), errors
    assert_is_back(aged, "command", record)


def test_an_answer_of_a_year_ago_does_not_hold_a_device_up(aged, on):
    """It lost power before it kept its certificate: the same evidence still gets that one, which is over."""
    record = aged.record("interrupted")
    assert pair_of(aged, "interrupted") is None
    status, _, errors = agent(on("interrupted"), "enroll", env=aged.later)
    assert status == 0, errors
    assert "old-answer-refused" in errors
    assert_is_back(aged, "interrupted", record)


def test_a_device_that_boots_what_the_policy_accepts_no_more_is_refused_by_name_and_back_when_it_does(aged, on):
    record, device = aged.record("outdated"), on("outdated")
    newer = policy_text(aged.ek_ca, flip_byte(aged.image, "kernel"))
    asyncio.run(policies.set_policy(aged.service, newer, by="test"))
    try:
        status, _, errors = agent(device, "enroll", env=aged.later)
        assert (status, PcrsNotAccepted.code in errors) == (1, True), errors
        explained = asyncio.run(explaining.explain(aged.service, "outdated"))
        assert (explained["name"], explained["proven_own"]) == ("PcrsNotAccepted", True)
        assert aged.record("outdated").health == "quarantined"
    finally:
        asyncio.run(policies.set_policy(aged.service, policy_text(aged.ek_ca, aged.image), by="test"))
    status, _, errors = agent(device, "enroll", env=aged.later)
    assert status == 0, errors
    assert_is_back(aged, "outdated", record)


def test_a_device_whose_quota_is_spent_is_refused_by_name_and_back_the_next_day(aged, on):
    record, device = aged.record("spent"), on("spent")
    assert agent(device, "enroll", env=aged.later)[0] == 0
    few = policy_text(aged.ek_ca, aged.image).replace("enrollments_per_day = 10000", "enrollments_per_day = 1")
    asyncio.run(policies.set_policy(aged.service, few, by="test"))
    try:
        status, _, errors = agent(device, "enroll", "--again", env=aged.later)
        assert (status, EnrollmentQuotaSpent.code in errors) == (1, True), errors
        yesterday = int(ahead().timestamp()) - 86400
        aged.service.ledger.write_now(
            lambda tx: tx.execute(
                update(enrollments.enrollment)
                .where(enrollments.enrollment.c.device_id == record.id)
                .values(created_at=yesterday - 1)
            )
        )
        status, _, errors = agent(device, "enroll", "--again", env=aged.later)
        assert status == 0, errors
    finally:
        asyncio.run(policies.set_policy(aged.service, policy_text(aged.ek_ca, aged.image), by="test"))
    assert_is_back(aged, "spent", record)


def test_a_revoked_device_does_not_come_back(aged, on):
    asyncio.run(revoke_device(aged.service, "revoked", "key-compromise", by="test"))
    status, _, errors = agent(on("revoked"), "enroll", env=aged.later)
    assert (status, DeviceRevoked.code in errors) == (1, True), errors


def test_what_expired_at_the_service_itself_is_refused_by_the_device(aged, on, tmp_path):
    """Nobody signed the trust repository again for more than a year: that is no way back, whatever the clock says."""
    device = on("late")
    beyond = ahead_by(2 * YEAR + timedelta(days=1), tmp_path)
    status, _, errors = agent(device, "enroll", env=beyond)
    assert (status, "MUSTER-OTA-105" in errors) == (1, True), errors
