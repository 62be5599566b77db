"""Certificate profiles in a service: versions, what is issued under them, and keys that no profile takes."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning import certificate_profiles, cli
from provisioning.app.blocklists import debian_weak, weak_keys
from provisioning.app.compose import load_profiles
from provisioning.config import ConfigurationRefused, load_config
from provisioning.db import enrollments, leaves
from provisioning.db import profiles as rows
from provisioning.factory import add_station
from provisioning.issuance.blocklist import fingerprint
from provisioning.issuance.defaults import DEFAULTS
from provisioning.issuance.keys import subject_key
from provisioning.issuance.profile import Gateway, ServiceTls
from provisioning.issuance.tbs import Profile
from provisioning.issuing import Order, idevid_order, issue, ldevid_order
from provisioning.refusals import (
    DeviceKeyReused,
    KeyIsDebianWeak,
    KeyKindRefused,
    KeyTooShort,
    NotFound,
    ProfileMalformed,
    ProfileUnknown,
    StateConflict,
)
from tests.support.certificates import (
    assert_is_gateway,
    assert_is_idevid,
    assert_is_ldevid,
    assert_is_service_tls,
    assert_is_station,
    spki,
)
from tests.support.service import NAME, make_installation, running_service

STATION_90 = DEFAULTS["station"].replace("365", "90")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("profiles") / "D")


@pytest.fixture(scope="module")
def service(directory):
    with running_service(directory) as running:
        yield running


class Device:
    """What a record says of a device."""

    def __init__(self, name, profile="ldevid"):
        self.id, self.serial, self.profile = name, f"sn-{name}", profile


def csr(key, algorithm=None):
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else algorithm or hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, digest)
    return request.public_bytes(Encoding.DER)


async def issued(service, order):
    made = await issue(service, order, lambda _tx, _certificate: None)
    return x509.load_der_x509_certificate(made.der), made


async def leaf_of(service, serial):
    found = await service.store.read(lambda tx: leaves.of_kind(tx, "certificate"))
    (record,) = [record for leaf in found if (record := json.loads(leaf.record))["serial"] == serial]
    return record


def issuer_of(service):
    return service.authorities.active.certificate


async def test_what_is_issued_follows_the_version_in_force_and_its_leaf_says_which(service):
    key = ec.generate_private_key(ec.SECP256R1())
    before = await add_station(service, "line-1", 5, csr(key), by="test")
    first = await certificate_profiles.set_profile(service, STATION_90, by="ada")
    assert (first["name"], first["version"]) == ("station", 1)
    again = await certificate_profiles.set_profile(service, STATION_90.replace("90", "91"), by="ada")
    assert again["version"] == 2
    after = await add_station(service, "line-1", 5, csr(key), by="test")  # the same station may keep its key
    lifetime = timedelta(seconds=300)
    assert before.not_after - before.not_before == timedelta(days=365) + lifetime
    assert after.not_after - after.not_before == timedelta(days=91) + lifetime
    record = await leaf_of(service, after.serial)
    assert (record["profile"], record["profile_version"]) == ("station", 2)
    assert (await leaf_of(service, before.serial))["profile_version"] == 0
    row = await service.store.read(lambda tx: enrollments.certificate_by_serial(tx, after.serial))
    assert (await service.store.read(lambda tx: rows.by_id(tx, row.profile_id))).version == 2
    cert = x509.load_der_x509_certificate(after.der)
    assert_is_station(cert, station="line-1", service_name=NAME, issuer=issuer_of(service))


async def test_each_change_is_a_leaf(service):
    await certificate_profiles.set_profile(service, DEFAULTS["operator"], by="ada")
    found = await service.store.read(lambda tx: leaves.of_kind(tx, "certificate-profile"))
    record = json.loads(found[-1].record)
    assert (record["name"], record["by"], record["text"]) == ("operator", "ada", DEFAULTS["operator"])


async def test_another_process_sees_a_change(service, directory):
    other = load_profiles(service.store, service.config)
    assert not await other.refresh(service.store)
    version = (await certificate_profiles.set_profile(service, DEFAULTS["quarantine"], by="ada"))["version"]
    assert other.of_kind(Profile.QUARANTINE).version == 0
    assert await other.refresh(service.store)
    assert other.of_kind(Profile.QUARANTINE).version == version


async def test_profiles_are_listed_and_shown_by_version(service):
    text = DEFAULTS["service-tls"].replace("365", "100")
    version = (await certificate_profiles.set_profile(service, text, by="ada"))["version"]
    listed = {row["name"]: row for row in await certificate_profiles.list_profiles(service)}
    assert set(listed) >= set(Profile)
    assert (listed["service-tls"]["version"], listed["service-tls"]["by"]) == (version, "ada")
    assert (listed["root-ca"]["version"], listed["root-ca"]["by"]) == (0, "built-in")
    assert (await certificate_profiles.show_profile(service, "service-tls", None))["toml"] == text
    built_in = await certificate_profiles.show_profile(service, "service-tls", 0)
    assert (built_in["toml"], built_in["by"]) == (DEFAULTS["service-tls"], "built-in")
    for name, wanted in (("service-tls", version + 1), ("nobody", None), ("nobody", 0)):
        with pytest.raises(NotFound):
            await certificate_profiles.show_profile(service, name, wanted)


async def test_a_name_keeps_its_kind_and_faults_change_nothing(service):
    named = DEFAULTS["ldevid"].replace('name = "ldevid"', 'name = "short"')
    await certificate_profiles.set_profile(service, named, by="ada")
    with pytest.raises(StateConflict):
        await certificate_profiles.set_profile(
            service, named.replace('kind = "ldevid"', 'kind = "quarantine"').replace("30", "5"), by="ada"
        )
    with pytest.raises(ProfileMalformed):
        await certificate_profiles.set_profile(service, named.replace("30", "0"), by="ada")
    assert (await certificate_profiles.show_profile(service, "short", None))["version"] == 1


async def test_a_device_gets_what_its_record_names(service):
    await certificate_profiles.set_profile(service, DEFAULTS["gateway"] + 'dns_domain = "gateways.example"\n', by="ada")
    key = ec.generate_private_key(ec.SECP256R1())
    names = {"device_id": "gw-1", "serial_number": "sn-gw-1", "service_name": NAME, "issuer": issuer_of(service)}
    order = ldevid_order(service, Device("gw-1", "gateway"), spki(key), "e-gw-1")
    assert isinstance(order.wanted, Gateway)
    cert, made = await issued(service, order)
    assert_is_gateway(cert, hosts=("gw-1.gateways.example",), **names)
    assert (await leaf_of(service, made.serial))["profile"] == "gateway"
    cert, _ = await issued(
        service, ldevid_order(service, Device("gw-1"), spki(ec.generate_private_key(ec.SECP256R1())), "e-gw-2")
    )
    assert_is_ldevid(cert, **names)


@pytest.mark.parametrize("profile", ["nobody", "station", "issuing-ca", "idevid", ""])
def test_a_record_names_a_profile_for_devices_in_service(service, profile):
    with pytest.raises(ProfileUnknown):
        ldevid_order(service, Device("d", profile), spki(ec.generate_private_key(ec.SECP256R1())), "e")


async def test_an_idevid_has_no_end_and_no_name_of_the_device_in_service(service):
    key = ec.generate_private_key(ec.SECP256R1())
    cert, made = await issued(service, idevid_order(service, "d-1", "sn-1", spki(key), "idevid.1"))
    assert made.not_after == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert_is_idevid(cert, device_id="d-1", serial_number="sn-1", service_name=NAME, issuer=issuer_of(service))


async def test_an_order_may_ask_for_less_and_never_for_more(service):
    for days, wanted in ((1, 1), (10_000, 100)):
        key = ec.generate_private_key(ec.SECP256R1())
        order = Order(ServiceTls(NAME, (), spki(key)), NAME, days)
        text = DEFAULTS["service-tls"].replace("365", "100")
        await certificate_profiles.set_profile(service, text, by="ada")
        cert, made = await issued(service, order)
        assert made.not_after - made.not_before == timedelta(days=wanted, seconds=300)
        assert_is_service_tls(cert, service_name=NAME, hosts=(), issuer=issuer_of(service))


async def test_a_key_serves_one_identity(service):
    key = ec.generate_private_key(ec.SECP384R1())
    await add_station(service, "line-2", 5, csr(key), by="test")
    with pytest.raises(DeviceKeyReused):
        await add_station(service, "line-3", 5, csr(key), by="test")
    with pytest.raises(DeviceKeyReused):
        await issued(service, idevid_order(service, "d-2", "sn-2", spki(key), "idevid.2"))


KEYS = {
    "P-384": (lambda: ec.generate_private_key(ec.SECP384R1()), None),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate, None),
    "RSA 3072": (lambda: rsa.generate_private_key(65537, 3072), None),
    "RSA 2048": (lambda: rsa.generate_private_key(65537, 2048), KeyTooShort),
    "RSA 1024": (lambda: rsa.generate_private_key(65537, 1024), KeyTooShort),  # noqa: S505  it is refused
    "P-521": (lambda: ec.generate_private_key(ec.SECP521R1()), KeyKindRefused),
    "secp256k1": (lambda: ec.generate_private_key(ec.SECP256K1()), KeyKindRefused),
}


@pytest.mark.parametrize("name", KEYS)
async def test_a_station_has_a_key_that_its_profile_takes(service, name):
    make, refusal = KEYS[name]
    request, station = csr(make()), f"keys-{name.lower().replace(' ', '-')}"
    if refusal is not None:
        with pytest.raises(refusal):
            await add_station(service, station, 1, request, by="test")
        return
    made = await add_station(service, station, 1, request, by="test")
    cert = x509.load_der_x509_certificate(made.der)
    assert_is_station(cert, station=station, service_name=NAME, issuer=issuer_of(service))


async def test_a_listed_key_gets_no_certificate(service):
    listed = replace(service, debian_weak=lambda _key: True)
    with pytest.raises(KeyIsDebianWeak):
        await add_station(listed, "line-9", 1, csr(ec.generate_private_key(ec.SECP256R1())), by="test")


def test_a_profile_is_checked_without_a_service(tmp_path, capsys):
    file = tmp_path / "p.toml"
    file.write_text(DEFAULTS["ldevid"])
    assert cli.main(["profile", "check", str(file)]) == 0
    assert "can be used" in capsys.readouterr().out
    file.write_text(DEFAULTS["ldevid"].replace("30", "0").replace('"P-256"', '"P-1"'))
    assert cli.main(["profile", "check", str(file)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": line ")[0].endswith(str(file)) for line in said if ": line " in line] == [True, True]
    assert "line 4: keys names P-1" in "\n".join(said)
    assert "line 5: lifetime_days is missing" in "\n".join(said)


def test_a_list_of_weak_keys_is_used_and_one_that_cannot_be_is_told(directory, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    config, known = load_config(directory), subject_key(spki(key))
    (tmp_path / "blocklist.dat").write_bytes(fingerprint(known) + b"\x01")
    named = replace(config, weak_keys=(str(tmp_path / "blocklist.dat"),))
    assert debian_weak(directory, named)(known)
    assert not debian_weak(directory, config)(known)
    assert [found.status for found in weak_keys(directory, named)] == ["ok"]
    assert [found.status for found in weak_keys(directory, config)] == ["warn"]
    (tmp_path / "other.dat").write_bytes(b"no list")
    for name in ("other.dat", "missing.dat"):
        with pytest.raises(ConfigurationRefused):
            debian_weak(directory, replace(config, weak_keys=(str(tmp_path / name),)))
