"""What the records say: which row of a registration is wrong, and what the log has of a release."""

import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ota.verify import VerifiedTarget
from provisioning import factory, updates
from provisioning.db import leaves
from provisioning.factory import StationIdentity
from provisioning.refusals import RegistrationMalformed
from tests.support.service import csr, make_installation, running_service
from wire.factory import Registration, RegistrationRequest


@pytest.fixture
def service(tmp_path):
    with running_service(make_installation(tmp_path / "D")) as made:
        yield made


def certificate(service):
    key = ec.generate_private_key(ec.SECP256R1())
    now = service.clock()
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now.replace(year=now.year + 1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


async def test_rows_that_repeat_each_other_are_named_by_their_own_numbers(service):
    issued = await factory.add_station(service, "line-1", 10, csr(), by="test")
    same = certificate(service)
    rows = (
        Registration("S-0", "gateway", b"no certificate"),
        Registration("S-1", "gateway", certificate(service)),
        Registration("S-2", "gateway", same),
        Registration("S-3", "gateway", same),
    )
    with pytest.raises(RegistrationMalformed) as refused:
        await factory.register(service, StationIdentity("line-1", issued.serial), RegistrationRequest(rows))
    found = [(finding.what, finding.expected) for finding in refused.value.findings]
    assert found == [("devices[0]", "an EK certificate"), ("devices[2]", "an EK once"), ("devices[3]", "an EK once")]


def target(digest, **values):
    custom = {"hardware_id": "h", "release_counter": 1, "version": "1", "reference_values": values}
    return {"r1": VerifiedTarget("r1", 3, digest, custom)}


async def test_a_release_that_comes_back_or_says_something_else_is_in_the_log_again(service, monkeypatch):
    first, other = target(b"\1" * 32), target(b"\1" * 32, sha256={"8": "22" * 32})
    for published in (first, first, {}, first, other, other):
        monkeypatch.setattr(updates, "_published", lambda *_, now=published: now)
        await updates.record_releases(service, by="test")
    releases = await service.store.read(lambda tx: leaves.of_kind(tx, "release"))
    assert [json.loads(json.loads(row.record)["reference_values"]) for row in releases] == [
        {}, {}, {"sha256": {"8": "22" * 32}},
    ]  # fmt: skip
    assert len(await service.store.read(lambda tx: leaves.of_kind(tx, "withdrawal"))) == 1
