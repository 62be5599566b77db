"""The broker's memory while CRLs are read again: a session that waits for its device must not be freed under it.

mosquitto 2.0 enters a session that is offline into the list of those that expire once more at each SIGHUP, and
forgets only the last entry. glibc is told to overwrite what is freed, so that a stale entry ends the process.
"""

import asyncio
import time
from signal import SIGHUP

import pytest

from provisioning.app.broker import Broker, broker_socket
from provisioning.config import load_config
from provisioning.messaging import end_session
from tests.support import fleet
from tests.support.mqtt import Peer
from tests.support.service import free_ports, make_installation, running_service

NAME = "d-ana"
OVERWRITTEN = "glibc.malloc.tcache_count=0:glibc.malloc.perturb=85"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("memory") / "D")


@pytest.fixture(scope="module")
def member(directory, tmp_path_factory):
    with running_service(directory) as service:
        return asyncio.run(fleet.device(service, tmp_path_factory.mktemp("member"), NAME))


def join(directory, member, port):
    peer = Peer(host="127.0.0.1", port=port, context=member.context(directory.ca / "root.pem"), client_id=NAME)
    peer.wait_connected()
    return peer


@pytest.mark.parametrize("then", ["its device comes back", "its device is thrown off"])
def test_a_session_without_its_device_survives_that_crls_are_read_again(directory, member, monkeypatch, then):
    monkeypatch.setenv("GLIBC_TUNABLES", OVERWRITTEN)
    (port,) = free_ports(1)
    broker = Broker(directory, load_config(directory), port)
    process = broker.start()
    broker.wait_ready()
    try:
        join(directory, member, port).close()
        time.sleep(0.3)  # DISCONNECT is not answered
        process.send_signal(SIGHUP)
        time.sleep(0.3)  # nor is a signal
        if then == "its device comes back":
            join(directory, member, port).close()
        else:
            asyncio.run(end_session(broker_socket(directory), NAME))
        time.sleep(0.3)
        assert process.poll() is None
    finally:
        broker.stop()  # which goes through that list
    assert process.returncode == 0
