"""How long a revoked device lives on each path, from the order to its end, with the parts that serve in earnest."""

import asyncio
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from cryptography.x509 import ocsp as x509_ocsp

from provisioning import revoking
from tests.support import fleet
from tests.support.crls import listed
from tests.support.mqtt import Peer
from tests.support.ocsp import cert_id, request

PATIENCE_SECONDS = 30.0
PATHS = {
    "live MQTT session": "dead_mqtt_session",
    "new MQTT connection": "dead_mqtt_connection",
    "HTTP": "dead_http",
    "EST": "dead_est",
    "OCSP": "dead_ocsp",
    "CRL": "dead_crl",
}
"""The paths, and the names of their figures among the benchmarks."""


def time_to_dead(service, endpoints, folder):
    """`(seconds by path, was another device's session disturbed)`. Paths that do not end in time are left out."""
    live, new, honest = (asyncio.run(fleet.device(service, folder, f"d-{name}")) for name in ("live", "new", "honest"))
    root, port = service.directory.ca / "root.pem", int(endpoints["mqtt"].rpartition(":")[2])
    sessions = [Peer(host="127.0.0.1", port=port, context=one.context(root)) for one in (live, honest)]
    for session in sessions:
        session.wait_connected()
    checks = {
        "live MQTT session": lambda: not sessions[0].lost.empty(),
        "new MQTT connection": lambda: not comes_in(new, root, port),
        "HTTP": lambda: http(f"{endpoints['device']}/ota/director/metadata/1.root.json", live, root) == 401,
        "EST": lambda: http(f"{endpoints['device']}/.well-known/est/csrattrs", live, root) == 401,
        "OCSP": lambda: ocsp(service, endpoints, live) == "REVOKED",
        "CRL": lambda: live.serial in listed(service.directory),
    }
    early = [path for path, dead in checks.items() if dead()]
    assert not early, early

    async def order():
        await asyncio.gather(
            *(revoking.revoke_device(service, one.name, "key-compromise", by="test") for one in (live, new))
        )

    paths: dict[str, float] = {}
    start = time.monotonic()

    def watch(path):
        while time.monotonic() - start < PATIENCE_SECONDS:
            asked = time.monotonic()
            if checks[path]():
                paths[path] = asked - start
                return
            time.sleep(0.01)

    with ThreadPoolExecutor(len(checks)) as threads:
        watching = [threads.submit(watch, path) for path in checks]
        asyncio.run(order())
        for one in watching:
            one.result()
    disturbed = not sessions[1].lost.empty()
    for session in sessions:
        session.close()
    return paths, disturbed


def comes_in(member, root, port):
    """May it connect to the broker, and stay?"""
    try:
        peer = Peer(host="127.0.0.1", port=port, context=member.context(root), client_id="new", clean=True)
    except OSError:
        return False
    try:
        return not peer.connected.get(timeout=1)[0].is_failure
    except queue.Empty:  # it was shut out after the handshake
        return False
    finally:
        peer.close()


def http(url, member, root):
    """The status that a device's request gets."""

    async def get():
        async with aiohttp.ClientSession() as session, session.get(url, ssl=member.context(root)) as answer:
            return answer.status

    return asyncio.run(get())


def ocsp(service, endpoints, member):
    """What OCSP says about a device's certificate."""
    body = request(cert_id(service.authorities.active.certificate, int(member.serial, 16)))
    headers = {"Content-Type": "application/ocsp-request"}

    async def ask():
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{endpoints['public']}/ocsp", data=body, headers=headers) as answer,
        ):
            return x509_ocsp.load_der_ocsp_response(await answer.read()).certificate_status.name

    return asyncio.run(ask())
