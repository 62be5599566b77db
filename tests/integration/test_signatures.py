"""Signatures counted by key, and compared with the records."""

import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import delete, select, update

from provisioning import crls, service_tls
from provisioning.app import signatures as counting
from provisioning.app.audit import Report
from provisioning.db import signatures
from provisioning.db.enrollments import certificate
from provisioning.db.revocations import newest_crl
from provisioning.refusals import StorageUnavailable
from tests.support.service import make_installation, running_service
from wire.binding import key_id


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("signatures") / "data")


@pytest.fixture
def service(installation):
    with running_service(installation) as opened:
        yield opened


def faults(service):
    report = Report()
    service.store.read_now(lambda tx: counting.check_signatures(tx, report))
    (check,) = report.checks
    return check.faults


async def flush(service, at=1):
    await counting.flush(service.keys, service.ledger, at)


def counted(service, key):
    spki = service.keys.public(key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    row = service.store.read_now(lambda tx: next((r for r in signatures.counts(tx) if r.key_id == key_id(spki)), None))
    digests = service.store.read_now(lambda tx: list(signatures.batches(tx, key_id(spki))))
    return 0 if row is None else row.count, digests


async def test_what_an_installation_signs_is_counted_and_on_record(service):
    count, digests = counted(service, "issuing")  # its first certificates, counted as `muster init` ended
    assert count == len(digests) > 0
    await crls.sign_by_hand(service, service.authorities.active)
    await flush(service)
    after, known = counted(service, "issuing")
    assert after == len(known) == count + 1
    assert known[-1] == hashlib.sha256(newest_crl_tbs(service)).digest()
    assert faults(service) == []


def newest_crl_tbs(service):
    name = service.authorities.active.name
    row = service.store.read_now(lambda tx: newest_crl(tx, name))
    return x509.load_der_x509_crl(row.der).tbs_certlist_bytes


async def test_a_message_that_was_signed_twice_has_one_record_and_is_no_fault(service):
    row = service.store.read_now(
        lambda tx: tx.execute(select(certificate).where(certificate.c.issuer == "issuing")).first()
    )
    for _ in range(3):
        await service.keys.sign("issuing", row.tbs)
    before, _ = counted(service, "issuing")
    await flush(service)
    assert counted(service, "issuing")[0] == before + 3
    assert faults(service) == []


async def test_a_signature_without_record_is_found_and_named(service):
    await service.keys.sign("issuing", b"what nobody recorded")
    assert faults(service) == []  # not counted yet
    await flush(service)
    digest = hashlib.sha256(b"what nobody recorded").hexdigest()
    assert faults(service) == [f"key of issuing: signed a message that is on no record, SHA-256 {digest}"]
    await service.ledger.write(lambda tx: signatures.announce(tx, bytes.fromhex(digest), "crl", 1))
    assert faults(service) == []


async def test_a_signature_whose_message_nobody_knows_is_a_fault(service):
    await asyncio.to_thread(service.keys.key("issuing").sign, b"by a library", ec.ECDSA(SHA256()))
    await flush(service)
    count, digests = counted(service, "issuing")
    assert count == len(digests) + 1
    said = f"{count} signatures are counted and {len(digests)} messages kept"
    assert faults(service) == [f"key of issuing: {said}; they are written together"]
    await service.ledger.write(lambda tx: correct(tx, "issuing", count - 1))


def correct(tx, key, count):
    tx.execute(update(signatures.counted).where(signatures.counted.c.key == key).values(count=count))


async def test_a_count_or_a_batch_that_was_taken_away_is_a_fault(service):
    assert faults(service) == []
    saved = service.store.read_now(lambda tx: list(tx.execute(select(signatures.batch))))
    await service.ledger.write(lambda tx: tx.execute(delete(signatures.batch)))
    assert "are counted and 0 messages kept" in faults(service)[0]
    await service.ledger.write(
        lambda tx: [tx.execute(signatures.batch.insert().values(row._asdict())) for row in saved]
    )
    assert faults(service) == []


async def test_other_keys_are_counted_without_their_messages(service):
    before, _ = counted(service, "command")
    for number in range(3):
        await service.keys.sign("command", number.to_bytes(1, "big"))
    await flush(service)
    assert counted(service, "command") == (before + 3, [])


async def test_what_cannot_be_stored_is_stored_later(service, monkeypatch):
    before, _ = counted(service, "log")
    await service.keys.sign("log", b"a checkpoint")

    async def full(_):
        raise StorageUnavailable(expected="a durable write", actual="disk full")

    with monkeypatch.context() as patched:
        patched.setattr(type(service.ledger), "write", lambda *_: full(_))
        await flush(service)
    assert counted(service, "log")[0] == before
    await service.keys.sign("log", b"another checkpoint")
    await flush(service)
    assert counted(service, "log")[0] == before + 2


async def test_what_a_process_signed_last_is_counted_as_it_ends(installation):
    with running_service(installation) as service:
        before, _ = counted(service, "issuing")
        await service_tls.renew_service_certificate(service)
    with running_service(installation) as service:
        assert counted(service, "issuing")[0] == before + 1
        assert faults(service) == []


OTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
from tests.support.service import running_service
from provisioning.config import DataDirectory
with running_service(DataDirectory(Path(sys.argv[1]))) as service:
    asyncio.run(service.keys.sign("command", b"two"))
"""


async def test_two_processes_count_into_one_sum(service, installation):
    before, _ = counted(service, "command")
    await service.keys.sign("command", b"one")
    root = Path(__file__).parents[2]
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", OTHER_PROCESS, installation.root], cwd=root, check=True
    )
    await flush(service)
    assert counted(service, "command")[0] == before + 2
