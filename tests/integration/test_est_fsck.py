"""What EST issued holds the invariants of `fsck`; a record that was edited to ask for less does not."""

import pytest

from provisioning.app.audit import log_keys
from provisioning.app.fsck import check_installation
from provisioning.duties import sequence
from tests.support.est import ask, enrolled, new_key, renewal_of
from tests.support.listeners import service_with_operators, serving
from tests.support.service import make_installation


async def sql(service, statement, *values):
    await service.ledger.write(lambda tx: tx.exec_driver_sql(statement, values))


def faults(service):
    keys = log_keys(service.directory, service.config)
    report = service.store.read_now(lambda tx: check_installation(tx, service.authorities, keys, service.clock()))
    return {check.name: check.faults for check in report.checks if not check.holds}


@pytest.fixture
def service(tmp_path_factory):
    """An installation of its own, to damage."""
    with service_with_operators(make_installation(tmp_path_factory.mktemp("service") / "D")) as made:
        yield made


async def test_what_est_issued_holds_all_invariants(service, tmp_path):
    async with serving(service) as client:
        member, certificate = await enrolled(service, client, tmp_path, "gw-1")
        assert (await ask(client, "simplereenroll", renewal_of(certificate, new_key()), member=member))[0] == 200
    await sequence(service)
    assert faults(service) == {}
    await sql(service, "update device set assurance = 'attested'")
    (found,) = faults(service).values()
    assert "assurance or trust is not what the log says" in found[0]
    await sql(service, "update device set assurance = 'token'")
    await sql(service, "update certificate set enrollment_id = 'x' || serial where profile = 'ldevid'")
    (found,) = faults(service).values()
    assert [fault.endswith("no attestation answers its challenge") for fault in found] == [True, True]
