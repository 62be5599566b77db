"""CSR to durable certificate: EST's simpleenroll with a one-time token each, one worker, SoftHSM2, both commits.

What a request includes: plain HTTP with keep-alive (no TLS: the token route needs none to be measured, and a handshake
is another figure), the token's look-up, base64, the CSR's proof of possession, building and checking the to-be-signed
bytes, RESERVE with the token's use in one durable commit, the signature in the token, its verification, RECORD with
leaf and supersession in another, the PKCS#7. Leaves are sequenced and signed and signatures counted beside it, as in
service. The load comes from another process, with requests that were made before.

`limit` is what the primitives alone allow on one core in the same run: verify the CSR's signature, sign in SoftHSM2,
verify the signature. Nothing else: no HTTP, no database. The worker has one core and its partners another, so the ratio
is no efficiency; that of `csr_issue_cpu` is: the processor time of all of them beside that of the same primitives.
"""

import argparse
import asyncio
import base64
import json
import os
import resource
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from hsm.softhsm import create_token, settings
from hsm.token import Token
from provisioning.access.rates import Rate, RateTable
from provisioning.app.compose import compose
from provisioning.app.endpoints import bind_shared
from provisioning.app.installation import Installation, initialize
from provisioning.app.partner import settle_memory
from provisioning.app.signatures import keep_counting
from provisioning.app.worker import stay_on_one_core
from provisioning.config import DataDirectory, load_config
from provisioning.db import devices, est
from provisioning.db.ledger import Ledger
from provisioning.db.store import open_sqlite
from provisioning.duties import Duty, repeat, sequence
from provisioning.http.device import InFlight, routes
from provisioning.http.exchange import Dispatcher
from provisioning.http.listener import Listener

FOLDER = Path("build")
"""On the disk of the clone: a temporary folder may be in memory, where every write is durable at once."""
ISSUES = 6000
WARM_UP = 500
MEMORY_FROM, MEMORY_TO = 20_000, 200_000
BYTES_MOST = 1536
CONNECTIONS = 192
ROUNDS, TIMES = 5, 400
PIN = "benchmark"
SHA256 = ec.ECDSA(hashes.SHA256())
LIMITS = "\n[limits]\nrequests_per_second_per_address = 1000000\nest_token_seconds = 7000000\n"


@dataclass(frozen=True)
class Running:
    """The worker, and where it listens."""

    process: "subprocess.Popen[str]"
    port: int
    root: Path

    def processes(self) -> Iterator[Path]:
        """The worker and its partners, in `/proc`."""
        own = self.process.pid
        partners = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return (Path("/proc", str(one)) for one in (own, *partners))

    def cpu_seconds(self) -> float:
        ticks = 0
        for one in self.processes():
            fields = (one / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        pages = (int((one / "statm").read_text().split()[1]) for one in self.processes())
        return sum(pages) * resource.getpagesize()


def rate() -> Iterator[dict[str, str | float]]:
    """Certificates a second, and the processor time of the worker for each."""
    with _installation() as root:
        batches = [_requests(root, WARM_UP), _requests(root, ISSUES)]
        with _worker(root) as worker:
            _load(worker, batches[0])
            alone = [_primitives_microseconds()]
            before = worker.cpu_seconds()
            value = _load(worker, batches[1])
            cpu = (worker.cpu_seconds() - before) / ISSUES * 1e6
            alone.append(_primitives_microseconds())  # on a noisy machine before and after differ
        _verify_issued(root, WARM_UP + ISSUES)
    elapsed, processor = (sum(times) / len(times) for times in zip(*alone, strict=True))
    yield _figure("csr_issue", value, "certificates/s", 1e6 / elapsed)
    yield _figure("csr_issue_cpu", cpu, "µs", processor)


def memory(first: int = MEMORY_FROM, last: int = MEMORY_TO) -> Iterator[dict[str, str | float]]:
    """Resident memory of the worker and its partners after `last` issues beside that after `first`; bytes of database
    for each."""
    with _installation() as root:
        batches = [_requests(root, first), _requests(root, last - first)]
        before = _database_bytes(root)
        with _worker(root) as worker:
            _load(worker, batches[0])
            early = worker.resident_bytes()
            _load(worker, batches[1])
            late = worker.resident_bytes()
        each = (_database_bytes(root) - before) / last
        _verify_issued(root, last)
    yield _figure("issue_memory", late / 2**20, "MiB", early / 2**20)
    yield _figure("issue_bytes", each, "bytes", BYTES_MOST)


def _figure(name: str, value: float, unit: str, limit: float) -> dict[str, str | float]:
    return {"name": name, "value": round(value), "unit": unit, "limit": round(limit), "ratio": round(value / limit, 3)}


@contextmanager
def _installation() -> Iterator[Path]:
    FOLDER.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="bench-est-", dir=FOLDER)).resolve()
    try:
        wanted = Installation("muster.bench", "127.0.0.1", "127.0.0.1", (8443, 8444, 8080, 8883), LIMITS)
        initialize(DataDirectory(root / "d"), wanted)
        yield root / "d"
    finally:
        shutil.rmtree(root)


def _requests(root: Path, count: int) -> Path:
    """So many requests as bytes in a file, each for a device of its own, whose token is in the database."""
    now = int(time.time())
    rows, tokens = [], []
    path = root.parent / f"requests-{secrets.token_hex(4)}"
    with path.open("wb") as file:
        for _ in range(count):
            key = ec.generate_private_key(ec.SECP256R1())
            request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
            body = base64.encodebytes(request.public_bytes(Encoding.DER))
            device, token = "d-" + secrets.token_hex(8), secrets.token_urlsafe(32)
            serial = f"sn-{device[2:]}"
            known = {"id": device, "serial": serial, "model": "bench", "assurance": "token", "profile": "ldevid"}
            rows.append({**known, "ek_trust": "none", "station": "operator:bench", "registered_at": now})
            digest = sha256(token.encode()).hexdigest()
            times = {"created_at": now, "expires_at": now + 86400, "created_by": "bench"}
            tokens.append({"token_sha256": digest, "device_id": device, "profile": None, **times})
            user = base64.b64encode(f"{serial}:{token}".encode()).decode()
            head = (
                "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: bench\r\nContent-Type: application/pkcs10\r\n"
                f"Authorization: Basic {user}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            whole = head.encode() + body
            file.write(len(whole).to_bytes(4, "big") + whole)
    ledger = Ledger(open_sqlite(root / "muster.db", read_only=False))
    for start in range(0, count, 1000):
        ledger.write_now(lambda tx, at=start: devices.add(tx, rows[at : at + 1000]))
        ledger.write_now(lambda tx, at=start: est.add_tokens(tx, tokens[at : at + 1000]))
    ledger.close()
    return path


@contextmanager
def _worker(root: Path) -> Iterator[Running]:
    argv = [sys.executable, "-m", "benchmarks.est", "serve", str(root)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Running(process, int(process.stdout.readline()), root)
    finally:
        process.terminate()
        process.wait(20)


def _load(worker: Running, requests: Path) -> float:
    """Certificates a second, as another process saw them. Raises: RuntimeError, where one request was not served."""
    argv = [sys.executable, "-m", "benchmarks.est", "load", str(requests), "--port", str(worker.port)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    print(done.stdout.strip(), file=sys.stderr)  # the generator's share
    requests.unlink()
    return float(json.loads(done.stdout)["per_second"])


def _verify_issued(root: Path, count: int) -> None:
    """Every answer's certificate is durable: counted in the database, with its leaf."""
    with sqlite3.connect(root / "muster.db") as database:
        issued = database.execute("select count(*) from certificate where profile = 'ldevid' and state = 'issued'")
        logged = database.execute("select count(*) from leaf where kind = 'certificate'")
        assert issued.fetchone() == (count,)
        assert logged.fetchone()[0] >= count


def _database_bytes(root: Path) -> int:
    with sqlite3.connect(root / "muster.db") as database:
        database.execute("pragma wal_checkpoint(truncate)")
        pages, free, size = (
            database.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def _primitives_microseconds() -> tuple[float, float]:
    """Two verifications and a signature in the token: elapsed, and processor time."""
    key, message = ec.generate_private_key(ec.SECP256R1()), bytes(600)
    signature, public = key.sign(message, SHA256), key.public_key()
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        create_token(Path(name), "bench", PIN, PIN)
        with Token(settings(Path(name)), "bench", lambda: PIN) as token:
            held = token.generate_ec_key("bench")
            signing = _each(lambda: held.sign(message, SHA256))
    verifying = _each(lambda: public.verify(signature, message, SHA256))
    return 2 * verifying[0] + signing[0], 2 * verifying[1] + signing[1]


def _each(work: Callable[[], object]) -> tuple[float, float]:
    """Microseconds of one, elapsed and of processor time: the medians of a few rounds."""
    taken = []
    for _ in range(ROUNDS):
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(TIMES):
            work()
        taken.append(((time.perf_counter() - start) / TIMES * 1e6, (time.process_time() - cpu) / TIMES * 1e6))
    return median(one for one, _ in taken), median(one for _, one in taken)


# --- the worker, a process of its own ---------------------------------------------------------------------------------


async def _serve(root: Path, core: int | None) -> None:
    """The device routes of one worker on plain HTTP, and the log's duty."""
    directory = DataDirectory(root)
    config = load_config(directory)
    with compose(directory, config, partners=True, core=core) as service:
        rates = RateTable(Rate(1_000_000, 1_000_000))
        served = routes(InFlight(config.limits.in_flight_enrollments))
        dispatcher = Dispatcher("device", service, served, rates)
        listener = Listener("device", dispatcher, limits=config.limits, rates=rates)
        bound = bind_shared("127.0.0.1", 0)
        listener.start(bound)
        settle_memory()
        print(bound.getsockname()[1], flush=True)
        await asyncio.gather(repeat(Duty("log", 1.0, lambda: sequence(service))), keep_counting(service))


# --- the load, a process of its own -----------------------------------------------------------------------------------


async def _send(port: int, waiting: Iterator[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in waiting:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError((head + body).decode())
        if secrets.randbelow(500) == 0:
            assert len(pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))) == 1
    writer.close()


def _stored(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while size := file.read(4):
            yield file.read(int.from_bytes(size, "big"))


async def _generate(path: Path, port: int) -> None:
    waiting = _stored(path)
    count = sum(1 for _ in _stored(path))
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_send(port, waiting) for _ in range(CONNECTIONS)))
    took = time.perf_counter() - start
    print(json.dumps({"per_second": count / took, "generator_share": (time.process_time() - cpu) / took}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.est", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("rate", help="csr_issue")
    bounded = commands.add_parser("memory", help="issue_memory and issue_bytes")
    bounded.add_argument("--first", type=int, default=MEMORY_FROM)
    bounded.add_argument("--last", type=int, default=MEMORY_TO)
    commands.add_parser("serve").add_argument("root", type=Path)
    load = commands.add_parser("load")
    load.add_argument("requests", type=Path)
    load.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    if given.command == "serve":
        asyncio.run(_serve(given.root, stay_on_one_core(0)))
    elif given.command == "load":
        asyncio.run(_generate(given.requests, given.port))
    else:
        figures = rate() if given.command == "rate" else memory(given.first, given.last)
        for figure in figures:
            print(figure)


if __name__ == "__main__":
    main()
