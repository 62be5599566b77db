"""Two real agents with one state folder and key, on a real broker; and one that only loses its line.

The keys are software: a TPM's could not be copied. Everything else is the agent, the broker, the bridge, the duties.
"""

import asyncio
import os
import shutil
import socket
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_agent.agent import Agent, Ended
from device_agent.host import Host
from device_agent.http import ServiceUnreachable
from device_agent.identity import IdentityDetails, IdentityStore
from device_agent.trust import Trust
from provisioning import duties, findings
from provisioning.app.broker import broker_socket
from provisioning.db import commands
from provisioning.messaging import Bridge
from tests.support import fleet
from tests.support.mqtt import running_broker
from tests.support.service import NAME, free_ports, make_installation, running_service
from wire.messages import MqttAddress, TrustBundle

WITHIN_SECONDS = 60
NEWEST = 2**31
"""A trust bundle that is never told to be refreshed."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("live") / "D")


@pytest.fixture(scope="module")
def service(directory):
    with running_service(directory) as made:
        yield made


@pytest.fixture(scope="module")
def port(directory):
    port = free_ports(1)[0]
    with running_broker(directory, port):
        yield port


@asynccontextmanager
async def served(service, directory):
    """The duties of the service, with its bridge."""
    socket_path = broker_socket(directory)
    running = asyncio.create_task(duties.hold(service, "test", lambda receive: Bridge(socket_path, receive)))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class SoftwareTpm:
    """Signs with a key that can be copied."""

    def __init__(self, key):
        self._key = key

    @contextmanager
    def open(self):
        yield self

    def sign(self, _pem, message):
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


def state_folder(service, folder, member, port):
    """What an enrolled agent keeps."""
    chain = service.authorities.active.chain
    now = datetime.now(UTC)
    der = member.certificate_file.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    details = IdentityDetails(
        member.name,
        fleet.ssl.PEM_cert_to_DER_cert(der),
        chain,
        MqttAddress("127.0.0.1", port),
        now + timedelta(9),
        "none",
    )
    folder.mkdir()
    store = IdentityStore(folder / "identity")
    store.store_next(b"key", details)
    store.swap()
    return folder


def no_listener(*_):
    """The device listener is no part of this."""
    raise ServiceUnreachable("no listener here")


class Run:
    """One run of the agent on a state folder, until it is left."""

    def __init__(self, service, directory, folder, member):
        command = service.keys.public("command").public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        bundle = TrustBundle(NEWEST, NAME, (b"root",), (command,), ())
        host = Host(
            system_clock=lambda: datetime.now(UTC),
            monotonic=monotonic,
            entropy=os.urandom,
            jitter=lambda low, high: (low + high) / 2,
            pause=lambda _: True,
            trim=lambda: None,
        )
        identity = IdentityStore(folder / "identity")
        trust = Trust(bundle, 1, datetime.now(UTC) + timedelta(days=7))
        device = SimpleNamespace(
            config=SimpleNamespace(state_dir=folder, slots=None),
            host=host,
            now=lambda: datetime.now(UTC),
            identity=identity,
            client=no_listener,
            tpm=SoftwareTpm(member.key),
            context=lambda _trust, _pair: member.context(directory.ca / "root.pem"),
        )
        self._stop = threading.Event()
        self.agent = Agent(device, self._stop)
        self.agent._come_up(trust, identity.current())
        self._ended = []
        self._thread = threading.Thread(target=lambda: self._ended.append(self.agent._loop()))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.agent._presence.hang_up()
        assert self._ended == [Ended.STOPPED]

    @property
    def session(self):
        return self.agent._presence.session.id

    def lose_the_line(self):
        line = self.agent._presence._line
        if line is not None and (open_one := line._client.socket()) is not None:
            open_one.shutdown(socket.SHUT_RDWR)


async def until(condition):
    async with asyncio.timeout(WITHIN_SECONDS):
        while not await condition():  # noqa: ASYNC110  what is waited for is in the database
            await asyncio.sleep(0.1)


async def kinds(service, device_id):
    rows = await findings.list_findings(service, device_id, closed=False, before=None, limit=9)
    return [row["kind"] for row in rows]


async def welcomed(service, device_id, session, sequence):
    """Is this the session that the service knows, and has it said so much?"""
    row = await service.store.read(lambda tx: commands.session_of(tx, device_id))
    return row is not None and row.session == session and row.up_sequence >= sequence


async def test_two_agents_with_copies_of_one_state_folder_are_found_within_a_minute(service, directory, port, tmp_path):
    member = await fleet.device(service, tmp_path, "d-copied")
    folder = state_folder(service, tmp_path / "one", member, port)
    shutil.copytree(folder, tmp_path / "two")
    async with served(service, directory):
        with Run(service, directory, folder, member), Run(service, directory, tmp_path / "two", member):

            async def is_found():
                return await kinds(service, "d-copied") == ["two-sessions"]

            await until(is_found)


async def test_one_agent_that_loses_its_line_and_is_restarted_is_no_finding(service, directory, port, tmp_path):
    member = await fleet.device(service, tmp_path, "d-honest")
    folder = state_folder(service, tmp_path / "one", member, port)
    async with served(service, directory):
        for _ in range(2):
            with Run(service, directory, folder, member) as run:
                for hellos in range(1, 4):
                    await until(lambda n=hellos, one=run: welcomed(service, "d-honest", one.session, n))
                    run.lose_the_line()  # it comes back from another port
        assert await kinds(service, "d-honest") == []
