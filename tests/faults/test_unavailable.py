"""Database or token away, held, hanging or full, while devices ask for certificates by EST and by attestation.

Each asks until it is served. What must hold whatever fails: a refusal is a 503 with its code and a time to come again;
every certificate that was handed out is in the database; every message that a CA key signed has its record; and once
the fault is over everybody is served, without a restart.
"""

import asyncio
import sqlite3
from contextlib import contextmanager

import pytest
from cryptography import x509

from lab.light_fleet import load_fleet, make_fleet
from provisioning.app.audit import Report
from provisioning.app.signatures import check_signatures, flush
from provisioning.db import enrollments
from provisioning.refusals import SigningUnavailable, StorageUnavailable
from tests.support.est import ask, certificate_in, csr_for, new_key, token_for
from tests.support.listeners import service_with_operators, serving
from tests.support.service import make_installation, registered
from tests.support.tokens import Behind
from wire.codec import decode, encode
from wire.messages import Challenge, Issued

EACH = 4
"""Devices of either kind for each fault. More than a page of a full database takes."""
FAULTS = {
    "locked": StorageUnavailable,
    "read-only": StorageUnavailable,
    "full": StorageUnavailable,
    "unreadable": StorageUnavailable,
    "token hanging": SigningUnavailable,
    "token away": SigningUnavailable,
}
LIMIT = 1024 * 1024
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def fleet_files(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("fleet") / "f", EACH * len(FAULTS))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("unavailable") / "D")


@pytest.fixture(scope="module")
def token(directory):
    made = Behind(directory)
    directory.config.write_text(directory.config.read_text() + '[hsm]\nmodule = "remote"\n' + made.toml("remote"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def service(directory, token, fleet_files):
    with service_with_operators(directory) as made:
        known = [(one.serial, one.ek_certificate) for one in load_fleet(fleet_files.directory)]
        asyncio.run(registered(made, fleet_files.policy.read_text(), *known))
        # else a database that somebody holds is waited for ten seconds, by each of the requests
        pragma(made, "busy_timeout = 100")
        yield made


class ByEst:
    """A device with a one-time token."""

    def __init__(self, service, client, serial):
        self.service, self.client, self.serial, self.csr = service, client, serial, csr_for(new_key())

    async def prepare(self):
        self.user = (self.serial, (await token_for(self.service, self.serial))["token"])

    async def ask(self):
        return await ask(self.client, "simpleenroll", self.csr, user=self.user)

    @staticmethod
    def certificate(body):
        return certificate_in(body)


class ByAttestation:
    """A device with a software TPM, whose challenge is open and whose evidence is ready."""

    def __init__(self, service, client, device):
        self.client, self.device = client, device

    async def prepare(self):
        body = encode(self.device.request())
        status, _, body = await self.client.call("device", "POST", "/v1/enrollments", data=body, headers=JSON)
        assert status == 201, body
        challenge = decode(Challenge, body, limit=LIMIT)
        self.path = f"/v1/enrollments/{challenge.enrollment_id}/evidence"
        self.evidence = encode(self.device.answer(challenge))

    async def ask(self):
        return await self.client.call("device", "POST", self.path, data=self.evidence, headers=JSON)

    @staticmethod
    def certificate(body):
        return x509.load_der_x509_certificate(decode(Issued, body, limit=LIMIT).certificate)


@contextmanager
def fault(name, service, token):
    """Inside, it does not work."""
    if name == "locked":
        other = sqlite3.connect(service.directory.database(service.config), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
        other.close()
    elif name == "read-only":
        pragma(service, "query_only = ON")
        yield
        pragma(service, "query_only = OFF")
    elif name == "full":
        pragma(service, "max_page_count = 1")  # as many as there are: no more
        yield
        pragma(service, "max_page_count = 1073741823")
    elif name == "unreadable":
        yield from unreadable(service)
    elif name == "token hanging":
        with token.hanging():
            yield
    else:
        token.kill()
        yield
        token.start()


def pragma(service, text):
    """Set it on the connection that writes: there is one."""
    connection = service.ledger._engine.raw_connection()
    connection.cursor().execute(f"PRAGMA {text}").fetchall()
    connection.close()


def unreadable(service):
    """Reads fail as on a disk that is gone; writes too, which need them."""
    engines = (service.store._engine, service.ledger._engine)
    begins = [engine.begin for engine in engines]

    @contextmanager
    def begin():
        raise sqlite3.OperationalError("disk I/O error")
        yield

    for engine in engines:
        engine.begin = begin
    yield
    for engine, former in zip(engines, begins, strict=True):
        engine.begin = former


def assert_refused(answer, expected):
    status, headers, body = answer
    assert (status, body["code"]) == (503, expected.code)
    assert int(headers["Retry-After"]) >= 1


async def held(service, certificate):
    serial = format(certificate.serial_number, "x")
    row = await service.store.read(lambda tx: enrollments.certificate_by_serial(tx, serial))
    return row is not None and row.signature is not None and row.tbs == certificate.tbs_certificate_bytes


async def unrecorded(service):
    """Messages that a CA key signed and that have no record."""
    await flush(service.keys, service.ledger, 0)
    report = Report()
    await service.store.read(lambda tx: check_signatures(tx, report))
    return [fault for check in report.checks for fault in check.faults]


@pytest.mark.parametrize("name", FAULTS)
async def test_nothing_acknowledged_is_lost_and_everybody_is_served_afterwards(service, token, fleet_files, name):
    number = list(FAULTS).index(name)
    async with serving(service) as client:
        askers = [ByEst(service, client, f"{name.replace(' ', '-')}-{n}") for n in range(EACH)]
        askers += [
            ByAttestation(service, client, one) for one in load_fleet(fleet_files.directory, number * EACH, EACH)
        ]
        await asyncio.gather(*(asker.prepare() for asker in askers))
        given, refused = {}, []
        with fault(name, service, token):
            for _ in range(2):
                answers = await asyncio.gather(*(asker.ask() for asker in askers))
                for asker, answer in zip(askers, answers, strict=True):
                    if answer[0] == 200:
                        given[asker] = answer[2]
                    else:
                        assert_refused(answer, FAULTS[name])
                        refused.append(asker)
        assert refused
        assert given == {} or name == "full"
        for asker in askers:
            status, _, body = await asker.ask()
            while status == 503:
                await asyncio.sleep(0.1)
                status, _, body = await asker.ask()
            assert status == 200, body
            assert given.setdefault(asker, body) == body  # who has one keeps it
        for asker, body in given.items():
            assert await held(service, asker.certificate(body))
        assert await unrecorded(service) == []
