"""A disk without room under a whole `muster serve`: it says 503 and goes on, and goes on to serve once there is room.

No process of it but the broker may write one more byte to any file (RLIMIT_FSIZE): database, CRL, the broker's files,
its log. SIGKILL of a child shows that what starts anew meanwhile waits for room.
"""

import asyncio
import base64
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import time

import pytest
import urllib3

from provisioning.app.audit import Report
from provisioning.app.signatures import check_signatures
from provisioning.cli.client import RefusedByService, operator
from provisioning.db import enrollments
from provisioning.refusals import StorageUnavailable
from tests.support import fleet
from tests.support.cli import MUSTER
from tests.support.crls import listed
from tests.support.est import EST, basic, certificate_in, csr_for, new_key, token_for
from tests.support.processes import children, gone
from tests.support.service import make_installation, running_service

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """An installation with a device that will be revoked, and one with a one-time token."""
    folder = tmp_path_factory.mktemp("full")
    directory = make_installation(folder / "D")
    directory.config.write_text(re.sub(r"_port = \d+", "_port = 0", directory.config.read_text()))

    async def people(service):
        return await fleet.device(service, folder, "d-dead"), (await token_for(service, "sn-new"))["token"]

    with running_service(directory) as service:
        return directory, *asyncio.run(people(service))


@pytest.fixture
def serving(prepared, tmp_path):
    """`muster serve`, with its log on the disk that will be full."""
    directory, _, _ = prepared
    with (tmp_path / "log").open("wb") as log:
        command = [MUSTER, "serve", "--data-dir", directory.root]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    eventually(lambda: directory.endpoints.is_file() or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "log").read_text()
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def eventually(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def room(process, most):
    """So many bytes may a file have that the service and its workers write from now on."""
    for pid in (process.pid, *children(process.pid, "provisioning.app.worker")):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def enroll(directory, token, csr):
    """`(status, headers, body)` of simpleenroll; None where nobody takes the connection."""
    url = json.loads(directory.endpoints.read_text())["device"]
    headers = {"Content-Type": "application/pkcs10", **basic("sn-new", token)}
    context = ssl.create_default_context(cafile=directory.ca / "root.pem")
    pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=PATIENCE_SECONDS)
    try:
        answer = pool.request("POST", f"{url}{EST}/simpleenroll", headers=headers, body=base64.b64encode(csr))
    except urllib3.exceptions.HTTPError:
        return None
    return answer.status, answer.headers, answer.data


def revoke(directory):
    """The code of the refusal; None where it was done."""
    try:
        operator(directory).send("POST", "/api/v1/devices/d-dead/revoke", {"reason": "key-compromise"})
    except RefusedByService as refused:
        return refused.document.code
    return None


def is_open(url):
    host, _, port = url.rpartition("/")[2].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_full_disk_is_a_503_and_ends_nothing_and_what_was_asked_for_follows(prepared, serving):
    directory, member, token = prepared
    csr, endpoints = csr_for(new_key()), json.loads(directory.endpoints.read_text())
    room(serving, 0)
    status, headers, body = enroll(directory, token, csr)
    assert (status, json.loads(body)["code"]) == (503, StorageUnavailable.code)
    assert int(headers["Retry-After"]) >= 1
    assert revoke(directory) == StorageUnavailable.code
    crl = urllib3.request("GET", f"{endpoints['public']}/crl/issuing.crl", timeout=PATIENCE_SECONDS)
    assert (crl.status, crl.data) == (200, (directory.ca / "issuing.crl").read_bytes())

    dead = children(serving.pid, "provisioning.app.worker") + children(serving.pid, "mosquitto")
    assert len(dead) == 2
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(map(gone, dead)))
    time.sleep(3.0)  # long enough to start them again more than once
    assert serving.poll() is None

    room(serving, resource.RLIM_INFINITY)
    eventually(lambda: (enroll(directory, token, csr) or (0,))[0] == 200)
    certificate = certificate_in(enroll(directory, token, csr)[2])
    eventually(lambda: is_open(endpoints["mqtt"]))
    assert revoke(directory) is None
    eventually(lambda: member.serial in listed(directory))
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(PATIENCE_SECONDS) == 0
    with running_service(directory) as service:
        serial = format(certificate.serial_number, "x")
        row = service.store.read_now(lambda tx: enrollments.certificate_by_serial(tx, serial))
        report = Report()
        service.store.read_now(lambda tx: check_signatures(tx, report))
    assert (row.state, row.tbs) == ("issued", certificate.tbs_certificate_bytes)
    assert report.checks[0].faults == []
