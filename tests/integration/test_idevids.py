"""IDevIDs: a station vouches under its budget, the device enrolls with it by EST, and it opens nothing else."""

import asyncio

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning import inventory, revoking
from provisioning.db import devices, enrollments, leaves
from provisioning.refusals import (
    AttestationRequired,
    BudgetSpent,
    CredentialRefused,
    CsrRefused,
    DeviceKeyReused,
    KeyKindRefused,
    NotAuthenticated,
    RegistrationMalformed,
    SerialTaken,
    StationUnknown,
)
from tests.support import fleet
from tests.support.certificates import assert_is_idevid, assert_is_ldevid, lint_certificate
from tests.support.est import IssuedLike, ask, certificate_in, csr_for, new_key, renewal_of, token_for
from tests.support.listeners import service_with_operators, serving
from tests.support.service import NAME, make_installation
from wire.codec import b64url, parse_json, unb64url

PATH = "/v1/factory/idevids"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with service_with_operators(make_installation(tmp_path_factory.mktemp("idevid") / "D")) as made:
        yield made


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


@pytest.fixture
async def station(service, tmp_path, request):
    return await fleet.station(service, tmp_path, f"line-{abs(hash(request.node.name)) % 10**8}", budget=2)


async def ordered(client, station, serial, csr, model="sensor"):
    body = {"serial": serial, "model": model, "csr": b64url(csr)}
    status, _, answer = await client.call("device", "POST", PATH, member=station, json=body)
    return status, answer if status >= 400 else parse_json(answer, limit=10**6)


async def with_idevid(service, client, station, folder, serial):
    key = new_key()
    status, answer = await ordered(client, station, serial, csr_for(key))
    assert status == 201, answer
    der = unb64url(answer["certificate"])
    certificate = x509.load_der_x509_certificate(der)
    issued = IssuedLike(format(certificate.serial_number, "x"), der)
    return fleet.member(folder, answer["device_id"], key, issued, service), certificate


async def test_a_station_makes_idevids_as_long_as_its_budget_lasts(client, service, station):
    for number, left in ((1, 1), (2, 0)):
        key, serial = new_key(), f"s-budget-{number}"
        status, answer = await ordered(client, station, serial, csr_for(key))
        assert (status, answer["budget_left"]) == (201, left)
        certificate = x509.load_der_x509_certificate(unb64url(answer["certificate"]))
        names = {"device_id": answer["device_id"], "serial_number": serial, "service_name": NAME}
        assert_is_idevid(certificate, **names, issuer=service.authorities.active.certificate)
        assert certificate.public_key() == key.public_key()
        assert certificate.not_valid_after_utc.year == 9999
        assert lint_certificate(unb64url(answer["certificate"])) == []
        assert len(answer["chain"]) == 2
    status, refusal = await ordered(client, station, "s-budget-3", csr_for(new_key()))
    assert (status, refusal["code"]) == (403, BudgetSpent.code)
    assert await service.store.read(lambda tx: devices.by_serial(tx, "s-budget-3")) is None


async def test_a_device_has_its_record_and_a_leaf_each(client, service, station):
    _, answer = await ordered(client, station, "s-record", csr_for(new_key()), model="thermometer")
    shown = await inventory.show_device(service, "s-record")
    facts = ("id", "model", "assurance", "profile", "state", "station", "ek_id")
    wanted = (answer["device_id"], "thermometer", "idevid", "ldevid", "registered", station.name[8:], None)
    assert tuple(shown[name] for name in facts) == wanted
    logged = await service.store.read(
        lambda tx: [*leaves.of_kind(tx, "registration"), *leaves.of_kind(tx, "certificate")]
    )
    told = [parse_json(leaf.record, limit=10**6) for leaf in logged]
    assert [leaf["assurance"] for leaf in told if leaf.get("device") == answer["device_id"]] == ["idevid"]
    serial = format(x509.load_der_x509_certificate(unb64url(answer["certificate"])).serial_number, "x")
    assert [leaf["profile"] for leaf in told if leaf.get("serial") == serial] == ["idevid"]


async def test_the_same_request_again_gets_the_same_answer_and_costs_nothing(client, station):
    csr = csr_for(new_key())
    first = await ordered(client, station, "s-again", csr)
    assert await ordered(client, station, "s-again", csr) == first
    assert first[1]["budget_left"] == 1


async def test_of_two_keys_for_one_serial_at_once_one_wins(client, station):
    answers = await asyncio.gather(*(ordered(client, station, "s-race", csr_for(new_key())) for _ in range(4)))
    assert sorted(status for status, _ in answers) == [201, 409, 409, 409]


async def test_a_serial_or_key_that_is_known_is_refused(client, service, station):
    key = new_key()
    assert (await ordered(client, station, "s-taken", csr_for(key)))[0] == 201
    assert (await ordered(client, station, "s-taken", csr_for(new_key())))[1]["code"] == SerialTaken.code
    assert (await ordered(client, station, "s-taken-2", csr_for(key)))[1]["code"] == DeviceKeyReused.code
    assert await service.store.read(lambda tx: devices.by_serial(tx, "s-taken-2")) is None


@pytest.mark.parametrize(
    ("serial", "model", "csr", "kind"),
    [
        ("bad serial", "sensor", None, RegistrationMalformed),
        ("s-bad", "Sensor", None, RegistrationMalformed),
        ("s-bad", "sensor", b"\x30\x00", CsrRefused),
        ("s-bad", "sensor", csr_for(ec.generate_private_key(ec.SECP256K1())), KeyKindRefused),
    ],
)
async def test_a_bad_request_is_refused_by_name(client, station, serial, model, csr, kind):
    status, refusal = await ordered(client, station, serial, csr or csr_for(new_key()), model)
    assert (400 <= status < 500, refusal["code"]) == (True, kind.code)


async def test_only_a_stations_newest_certificate_counts(client, service, station, tmp_path):
    body = {"serial": "s-nobody", "model": "sensor", "csr": b64url(csr_for(new_key()))}
    assert await client.code("device", "POST", PATH, json=body) == (401, NotAuthenticated.code)
    device = await fleet.device(service, tmp_path, "d-idevids")
    assert await client.code("device", "POST", PATH, member=device, json=body) == (401, NotAuthenticated.code)
    await fleet.station(service, tmp_path, station.name.removeprefix("station:"))
    status, code = await client.code("device", "POST", PATH, member=station, json=body)
    assert (status, code in (StationUnknown.code, NotAuthenticated.code)) == (401, True)


async def test_a_device_enrolls_with_its_idevid_as_often_as_it_must(client, service, station, tmp_path):
    member, _ = await with_idevid(service, client, station, tmp_path, "s-enroll")
    for _ in range(2):  # it may lose its LDevID
        key = new_key()
        status, _, body = await ask(client, "simpleenroll", csr_for(key), member=member)
        assert status == 200, body
        issued = certificate_in(body)
        names = {"device_id": member.name, "serial_number": "s-enroll", "service_name": NAME}
        assert_is_ldevid(issued, **names, issuer=service.authorities.active.certificate)
        assert issued.public_key() == key.public_key()
    shown = await inventory.show_device(service, "s-enroll")
    states = {(one["profile"], one["state"]) for one in shown["certificates"]}
    assert states == {("idevid", "issued"), ("ldevid", "superseded"), ("ldevid", "issued")}
    assert shown["state"] == "active"


async def test_the_idevids_own_key_gets_no_ldevid(client, service, station, tmp_path):
    member, _ = await with_idevid(service, client, station, tmp_path, "s-own-key")
    _, _, refusal = await ask(client, "simpleenroll", csr_for(member.key), member=member)
    assert refusal["code"] == DeviceKeyReused.code


async def test_an_idevid_opens_simpleenroll_and_nothing_else(client, service, station, tmp_path):
    member, certificate = await with_idevid(service, client, station, tmp_path, "s-nothing-else")
    assert (await ask(client, "csrattrs", member=member))[0] == 200
    _, _, refusal = await ask(client, "simplereenroll", renewal_of(certificate, new_key()), member=member)
    assert refusal["code"] == CredentialRefused.code
    for method, path in (
        ("GET", "/ota/image/metadata/timestamp.json"),
        ("GET", "/ota/director/metadata/timestamp.json"),
        ("PUT", "/v1/logs/" + "0" * 64),
        ("POST", PATH),
        ("POST", "/v1/factory/devices"),
    ):
        status, code = await client.code("device", method, path, member=member, json={})
        assert (status, code) == (401, NotAuthenticated.code), path


async def test_a_token_does_not_stand_in_for_an_idevid(client, service, station, tmp_path):
    await with_idevid(service, client, station, tmp_path, "s-token")
    made = await token_for(service, "s-token")
    assert "IDevID" in made["warning"]
    answer = await ask(client, "simpleenroll", csr_for(new_key()), user=("s-token", made["token"]))
    assert answer[2]["code"] == CredentialRefused.code


async def test_an_idevid_of_another_gets_its_own_devices_certificate(client, service, station, tmp_path):
    first, _ = await with_idevid(service, client, station, tmp_path, "s-first")
    second, _ = await with_idevid(service, client, station, tmp_path, "s-second")
    _, _, body = await ask(client, "simpleenroll", csr_for(new_key()), member=first)
    ldevid = certificate_in(body)
    _, _, body = await ask(client, "simpleenroll", renewal_of(ldevid, new_key()), member=second)
    assert f"CN={second.name}" in certificate_in(body).subject.rfc4514_string()


async def test_an_idevid_is_no_way_around_attestation(client, service, station, tmp_path):
    member, _ = await with_idevid(service, client, station, tmp_path, "s-raised")
    await service.ledger.write(lambda tx: devices.change(tx, member.name, assurance="attested"))
    for operation in ("simpleenroll", "ldevid/simpleenroll"):
        _, _, refusal = await ask(client, operation, csr_for(new_key()), member=member)
        assert refusal["code"] == AttestationRequired.code


async def test_a_revoked_idevid_opens_nothing(client, service, station, tmp_path):
    member, _ = await with_idevid(service, client, station, tmp_path, "s-revoked")
    await revoking.revoke_certificate(service, member.serial, "key-compromise", by="test")
    for operation in ("csrattrs", "simpleenroll", "simplereenroll"):
        _, _, refusal = await ask(client, operation, csr_for(new_key()), member=member)
        assert refusal["code"] == NotAuthenticated.code
    certificates = await service.store.read(lambda tx: enrollments.certificates_of(tx, member.name))
    assert [row.profile for row in certificates] == ["idevid"]


async def test_a_station_without_budget_is_one_that_makes_nothing(client, service, tmp_path):
    empty = await fleet.station(service, tmp_path, "line-empty", budget=0)
    assert (await ordered(client, empty, "s-empty", csr_for(new_key())))[1]["code"] == BudgetSpent.code
