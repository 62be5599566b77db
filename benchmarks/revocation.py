"""OCSP answers a second, a long CRL, and how long a revoked device lives on each path.

`ocsp`: answers that are kept ready, keep-alive HTTP, one worker. `limit` is a bare aiohttp server that sends as many
bytes, under the same load in the same run; both are alone with the load, one after the other, in turn. `ocsp_cpu` is
the same for each second of the server's own CPU time, which does not depend on who else uses the machine.
"""

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from sqlalchemy import Connection

from benchmarks.stack import BIN, FOLDER, Stack, command, host_and_port, running_stack
from provisioning import crls
from provisioning.app.compose import compose
from provisioning.app.partner import settle_memory
from provisioning.config import DataDirectory, load_config
from provisioning.db import enrollments, revocations
from provisioning.issuance.tbs import serial_of
from provisioning.service import Service
from tests.support import dead

CERTIFICATES = 500
SECONDS = 4.0
ROUNDS = 3
ENTRIES = 100_000
DEAD_SECONDS = 2.0
RATES = "\n[limits]\nrequests_per_second_per_address = 1000000\nocsp_signatures_per_second_per_address = 1000000\n"


@dataclass(frozen=True)
class _Rate:
    """Requests a second, and a second of the server's CPU time."""

    wall: float
    cpu: float


def answers() -> Iterator[dict[str, str | float]]:
    """`ocsp` and `ocsp_cpu`."""
    with running_stack(RATES) as stack, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requests.json"
        requests = _requests(stack)
        file.write_text(json.dumps([b64encode(request).decode() for request in requests]))
        port = host_and_port(stack.public)[1]
        length = _length_of_answer(port, requests[0])
        limit = [sys.executable, "-m", "benchmarks.bare_http", str(length)]
        with subprocess.Popen(limit, stdout=subprocess.PIPE, text=True) as bare:
            assert bare.stdout is not None
            bare_port = int(bare.stdout.readline())
            try:
                pairs = [(_load(port, file, stack.worker()), _load(bare_port, file, bare.pid)) for _ in range(ROUNDS)]
            finally:
                bare.terminate()
    for name, unit, part in (("ocsp", "answers/s", "wall"), ("ocsp_cpu", "answers/s of CPU", "cpu")):
        value = median(getattr(ours, part) for ours, _ in pairs)
        limit = median(getattr(theirs, part) for _, theirs in pairs)
        yield _figure(name, value, unit, limit)


def long_crl() -> Iterator[dict[str, str | float]]:
    """`crl_100k`: from the database to a signed, checked, durable CRL. `limit` is the bar: 3 seconds.

    Nothing serves beside it: its own duty would sign the CRL first. The memory is beside the size of the CRL.
    """
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=FOLDER) as folder:
        directory = DataDirectory(Path(folder).resolve() / "d")
        command(BIN / "muster", "init", "--ports", "free", "--data-dir", directory.root)
        settle_memory()
        with compose(directory, load_config(directory)) as service:
            asyncio.run(_insert(service, ENTRIES, revoked=True))
            before, start, cpu = _peak_mib(), time.monotonic(), time.process_time()
            der = asyncio.run(crls.sign_due(service, service.authorities.active))
            taken, cpu = time.monotonic() - start, time.process_time() - cpu
            grown = _peak_mib() - before
    assert der is not None
    assert len(x509.load_der_x509_crl(der)) >= ENTRIES
    yield _figure("crl_100k", taken, "s", 3.0)
    yield _figure("crl_100k_cpu", cpu, "s of CPU", 3.0)
    yield _figure("crl_100k_memory", grown, "MiB more", round(len(der) / 2**20, 1))


def _figure(name: str, value: float, unit: str, limit: float) -> dict[str, str | float]:
    digits = None if value >= 100 else 2
    return {
        "name": name,
        "value": round(value, digits),
        "unit": unit,
        "limit": round(limit, digits),
        "ratio": round(value / limit, 2),
    }


def _requests(stack: Stack) -> list[bytes]:
    """POSTs about certificates that the service issued."""
    with compose(DataDirectory(stack.directory), load_config(DataDirectory(stack.directory))) as service:
        serials = asyncio.run(_insert(service, CERTIFICATES, revoked=False))
        issuer = service.authorities.active.certificate
    name = issuer.subject.public_bytes()
    key = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    return [_post(_request(name, key, serial)) for serial in serials]


def _request(name: bytes, key_hash: bytes, serial: int) -> bytes:
    builder = ocsp.OCSPRequestBuilder()
    asked = builder.add_certificate_by_hash(hashlib.sha1(name).digest(), key_hash, serial, SHA1())  # noqa: S303, S324  what OCSP clients send
    return asked.build().public_bytes(Encoding.DER)


def _post(body: bytes) -> bytes:
    head = f"POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Type: application/ocsp-request\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _length_of_answer(port: int, request: bytes) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(request)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200 "):
                return len(body)
        time.sleep(0.2)
    raise RuntimeError(f"no OCSP answer: {head[:200]!r} {body[:200]!r}")


async def _insert(service: Service, count: int, *, revoked: bool) -> list[int]:
    """Certificates as their rows are; nobody looks at their bytes here."""
    now = int(datetime.now(UTC).timestamp())
    tbs, signature = os.urandom(430), os.urandom(71)
    serials = [serial_of(os.urandom(16)) for _ in range(count)]

    def write(tx: Connection, some: list[int]) -> None:
        for number, serial in enumerate(some):
            row: dict[str, Any] = {
                "serial": format(serial, "x"),
                "issuer": service.authorities.active.name,
                "profile": "ldevid",
                "subject": f"d-{serial}",
                "key_id": f"{serial:064x}",
                "tbs": tbs,
                "signature": signature,
                "state": "issued",
                "not_before": now,
                "not_after": now + 86400,
                "reserved_at": now,
            }
            enrollments.add_certificate(tx, row)
            if revoked:
                reason = ("key-compromise", "superseded", "cessation-of-operation")[number % 3]
                revocations.revoke(tx, row["serial"], at=now - number, reason=reason)

    for start in range(0, count, 5000):
        some = serials[start : start + 5000]
        await service.ledger.write(lambda tx, some=some: write(tx, some))  # type: ignore[misc]  # bound now
    return serials


def _load(port: int, file: Path, server: int) -> _Rate:
    load_command = [sys.executable, "-m", "benchmarks.http_load", str(port), str(SECONDS), str(file)]
    with subprocess.Popen(load_command, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        load.stdout.readline()
        before = _cpu_seconds(server)
        told = json.loads(load.stdout.readline())
        cpu = _cpu_seconds(server) - before
    if told["bad"]:
        raise RuntimeError(f"{told['bad']} answers were not 200")
    return _Rate(told["requests"] / told["seconds"], told["requests"] / cpu)


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def time_to_dead() -> Iterator[dict[str, str | float]]:
    """Seconds from an operator's order to the end of each path, then the longest. `limit` is what was asked for."""
    with running_stack() as stack, tempfile.TemporaryDirectory() as folder:
        directory = DataDirectory(stack.directory)
        endpoints = json.loads(directory.endpoints.read_bytes())
        with compose(directory, load_config(directory)) as service:
            paths, disturbed = dead.time_to_dead(service, endpoints, Path(folder))
    if disturbed or set(paths) != set(dead.PATHS):
        raise RuntimeError(f"another device was disturbed: {disturbed}; dead: {sorted(paths)}")
    for path, name in dead.PATHS.items():
        yield _figure(name, paths[path], "s", DEAD_SECONDS)
    yield _figure("time_to_dead", max(paths.values()), "s", DEAD_SECONDS)
