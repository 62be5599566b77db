"""Operators and the profiles that they give devices: over HTTP by role, in the log, and as a person types it."""

import hashlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning import certificate_profiles, inventory, operators, outbox
from provisioning.access import Role
from provisioning.app.fsck_lint import SAYS, lint_installation
from provisioning.db import devices, leaves
from provisioning.issuance.defaults import DEFAULTS
from provisioning.issuing import issue, ldevid_order
from provisioning.refusals import NotFound, ProfileUnknown, RequestMalformed, StateConflict
from tests.support import fleet
from tests.support.certificates import assert_is_gateway, assert_is_ldevid, spki
from tests.support.listeners import serving
from tests.support.service import NAME, make_installation, running_service


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("operators") / "D")


@pytest.fixture(scope="module")
def service(directory):
    with running_service(directory) as running:
        yield running


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


async def records(service, kind):
    return [json.loads(leaf.record) for leaf in await service.store.read(lambda tx: leaves.of_kind(tx, kind))]


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
async def test_a_token_opens_what_its_role_may_until_it_is_removed(service, client, role):
    made = await operators.add_operator(service, f"a-{role}", role.value, by="owner")
    wanted = 200 if role is Role.ADMIN else 403

    async def status():
        headers = {"Authorization": f"Bearer {made['token']}"}
        return (await client.call("operator", "GET", "/api/v1/operators", headers=headers))[0]

    assert await status() == wanted
    row = await service.store.read(lambda tx: devices.operator_by_name(tx, f"a-{role}"))
    assert (row.role, row.token_sha256) == (role, hashlib.sha256(made["token"].encode()).hexdigest())
    await operators.remove_operator(service, f"a-{role}", by="owner")
    assert await status() == 401
    said = [one for one in await records(service, "operator") if one["name"] == f"a-{role}"]
    assert said == [
        {"name": f"a-{role}", "role": role, "by": "owner"},
        {"name": f"a-{role}", "removed": True, "by": "owner"},
    ]


async def test_the_last_admin_stays(service):
    await operators.add_operator(service, "bystander", "operator", by="owner")
    before = await records(service, "operator")
    with pytest.raises(StateConflict):
        await operators.remove_operator(service, "owner", by="owner")
    assert await records(service, "operator") == before
    await operators.add_operator(service, "ada", "admin", by="owner")
    await operators.remove_operator(service, "ada", by="ada")
    with pytest.raises(StateConflict):
        await operators.remove_operator(service, "owner", by="owner")
    names = {one["name"]: one for one in await operators.list_operators(service)}
    assert set(names["owner"]) == {"name", "role", "created"}
    await operators.remove_operator(service, "bystander", by="owner")


@pytest.mark.parametrize(
    ("name", "role", "refusal"),
    [
        ("owner", "viewer", StateConflict),
        ("Ada", "viewer", RequestMalformed),
        ("", "viewer", RequestMalformed),
        ("a\n", "viewer", RequestMalformed),
        ("a:b", "viewer", RequestMalformed),
        (outbox.BY_DEVICE, "operator", RequestMalformed),
        ("x" * 64, "viewer", RequestMalformed),
        ("ada", "root", RequestMalformed),
        ("ada", "", RequestMalformed),
    ],
)
async def test_what_is_no_new_operator_is_refused(service, name, role, refusal):
    before = await operators.list_operators(service)
    with pytest.raises(refusal):
        await operators.add_operator(service, name, role, by="owner")
    assert await operators.list_operators(service) == before


async def test_who_is_not_there_cannot_be_removed(service):
    with pytest.raises(NotFound):
        await operators.remove_operator(service, "nobody", by="owner")


# --- the profile of a device ------------------------------------------------------------------------------------------


async def certificate_of(service, name, request):
    """What the record says now, as an enrollment takes it."""
    device = await service.store.read(lambda tx: devices.by_id(tx, name))
    order = ldevid_order(service, device, spki(ec.generate_private_key(ec.SECP256R1())), request)
    return x509.load_der_x509_certificate((await issue(service, order, lambda _tx, _made: None)).der)


def faults(service):
    report = lint_installation(service.store.read_now, service.authorities, NAME)
    (said,) = [check for check in report.checks if check.name == SAYS]
    assert said.looked_at >= 3
    return said.faults


async def test_a_profile_counts_from_the_next_certificate_and_each_is_judged_by_its_own(service, tmp_path):
    await fleet.device(service, tmp_path, "gw-1")
    names = {"device_id": "gw-1", "serial_number": "sn-gw-1", "service_name": NAME}
    names["issuer"] = service.authorities.active.certificate
    assert_is_ldevid(await certificate_of(service, "gw-1", "e-1"), **names)
    text = DEFAULTS["gateway"] + 'dns_domain = "gateways.example"\n'
    await certificate_profiles.set_profile(service, text.replace('"gateway"', '"edge"', 1), by="ada")
    answer = await inventory.set_profile(service, "sn-gw-1", "edge", by="ada")
    assert answer == {"device": "gw-1", "profile": "edge", "before": "ldevid"}
    assert (await records(service, "device-profile"))[-1] == {"device": "sn-gw-1", "profile": "edge", "by": "ada"}
    assert (await inventory.show_device(service, "gw-1"))["profile"] == "edge"
    assert_is_gateway(await certificate_of(service, "gw-1", "e-2"), hosts=("gw-1.gateways.example",), **names)
    changed = text.replace('"gateway"', '"edge"', 1).replace("gateways.example", "other.example")
    await certificate_profiles.set_profile(service, changed, by="ada")
    assert faults(service) == []
    await inventory.set_profile(service, "gw-1", "ldevid", by="ada")
    assert faults(service) == []
    await service.ledger.write(
        lambda tx: tx.exec_driver_sql(
            "update certificate set profile_id = profile_id + 1 where profile = 'gateway' and profile_id is not null"
        )
    )
    assert len(faults(service)) == 1  # it names hosts of the version that was in force


@pytest.mark.parametrize(
    "profile",
    ["idevid", "root-ca", "issuing-ca", "station", "operator", "service-tls", "ocsp-responder", "quarantine", "nobody"],
)
async def test_a_profile_of_another_kind_is_refused_by_name(service, tmp_path, profile):
    await fleet.device(service, tmp_path, "d-2")
    with pytest.raises(ProfileUnknown) as caught:
        await inventory.set_profile(service, "d-2", profile, by="ada")
    assert profile in caught.value.actual
    assert (await inventory.show_device(service, "d-2"))["profile"] == "ldevid"


async def test_a_device_out_of_service_gets_no_profile(service, tmp_path):
    await fleet.device(service, tmp_path, "d-3")
    await service.ledger.write(lambda tx: devices.change(tx, "d-3", state="revoked"))
    with pytest.raises(StateConflict):
        await inventory.set_profile(service, "d-3", "gateway", by="ada")
    with pytest.raises(NotFound):
        await inventory.set_profile(service, "nobody", "gateway", by="ada")
