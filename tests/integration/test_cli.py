"""The commands as a user types them, against a service that runs: stations, devices, policies, trust, releases."""

import csv
import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from lab.firmware import make_image
from lab.light_fleet import make_fleet
from ota.firmware import build_image
from tests.support.cli import Person, initialized, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def served(root):
    with serving(initialized(root / "D"), root / "serve.log") as directory:
        yield directory


@pytest.fixture
def person(served, capsys):
    return Person(served.root, capsys)


@pytest.fixture(scope="module")
def fleet(root):
    return make_fleet(root / "fleet", 4)


@pytest.fixture(scope="module")
def eks(fleet):
    with fleet.registrations[0].open() as file:
        return {row["serial"]: row["ek_certificate"] for row in csv.DictReader(file)}


def write_csv(file, *rows):
    file.write_text("serial,model,ek_certificate\n" + "".join(f"{','.join(row)}\n" for row in rows))
    return file


# --- stations and registration ----------------------------------------------------------------------------------------


def test_a_station_keeps_its_key_and_gets_a_fresh_budget_by_the_same_command(person):
    made = person.asks("factory", "station", "add", "line-1", "--budget", 2)
    key, certificate = Path(made["key"]), Path(made["certificate"])
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    before = key.read_bytes(), certificate.read_bytes()
    person.types("factory", "station", "add", "line-1", "--budget", 3)
    assert (key.read_bytes(), certificate.read_bytes() != before[1]) == (before[0], True)
    stations = {one["name"]: one for one in person.asks("factory", "station", "list")["stations"]}
    assert stations["line-1"] == {"name": "line-1", "budget": 3, "used": 0, "left": 3}
    assert "line-1" in person.types("factory", "station", "list")


def test_a_factory_registers_until_its_budget_is_spent(person, eks, tmp_path):
    (serial, ek), (second, other), (third, last), _ = eks.items()
    person.types("factory", "station", "add", "line-2", "--budget", 2)
    pem = tmp_path / "one.pem"
    pem.write_text(f"-----BEGIN CERTIFICATE-----\n{ek}\n-----END CERTIFICATE-----\n")
    file = write_csv(tmp_path / "devices.csv", (serial, "light", "one.pem"), (second, "light", other))
    answer = person.asks("factory", "register", file, "--station", "line-2")
    assert [one["serial"] for one in answer["devices"]] == [serial, second]
    assert answer["budget_left"] == 0
    listed = {one["serial"]: one["id"] for one in person.asks("devices", "list")["devices"]}
    assert {one["serial"]: one["id"] for one in answer["devices"]}.items() <= listed.items()
    more = write_csv(tmp_path / "more.csv", (third, "light", last))
    person.types("factory", "register", more, "--station", "line-2", status=1)
    assert "(MUSTER-FAC-001)" in person.err
    assert "nothing was registered" in person.err


def test_what_the_service_refuses_is_said_of_the_line_of_the_file(person, eks, tmp_path):
    person.types("factory", "station", "add", "line-3", "--budget", 9)
    *_, (serial, ek) = eks.items()
    person.types("factory", "register", write_csv(tmp_path / "a.csv", (serial, "light", ek)), "--station", "line-3")
    file = tmp_path / "b.csv"
    file.write_text(f"serial,model,ek_certificate\n\n\n{serial},light,{ek}\n")
    person.types("factory", "register", file, "--station", "line-3", status=1)
    assert person.err.startswith(f"muster: {file}: The serial is registered already (MUSTER-FAC-003)")
    assert "line 4: expected a new serial" in person.err
    assert "devices[" not in person.err
    assert len(person.err.splitlines()) == 1


def test_a_tpm_that_is_registered_under_another_serial_is_a_finding_until_a_person_closes_it(person, eks, tmp_path):
    *_, (serial, ek) = eks.items()
    file = write_csv(tmp_path / "again.csv", ("relabelled", "light", ek))
    person.types("factory", "register", file, "--station", "line-3", status=1)
    assert "(MUSTER-FAC-004)" in person.err
    (found,) = person.asks("findings", "list", "--device", serial)["findings"]
    assert (found["kind"], found["serial"], found["detail"]["as_serial"]) == ("ek-twice", serial, "relabelled")
    assert "as_serial relabelled" in person.types("findings", "list")
    assert person.asks("devices", "show", serial)["findings"] == [found]
    assert "ek-twice" in person.types("devices", "show", serial)
    closed = person.asks("findings", "close", found["id"])
    assert closed["closed"] is not None
    assert person.asks("findings", "list")["findings"] == []
    assert person.asks("findings", "list", "--all")["findings"] == [closed]
    person.types("findings", "close", found["id"], status=1)
    assert "(MUSTER-ACC-009)" in person.err
    person.types("findings", "close", 999_999, status=1)
    person.types("findings", "list", "--device", "nobody", status=1)
    assert "(MUSTER-ACC-003)" in person.err


def test_a_file_with_a_bad_row_is_not_sent(person, eks, tmp_path):
    before = person.asks("devices", "list")
    (_, ek), *_ = eks.items()
    file = write_csv(tmp_path / "bad.csv", ("new-1", "light", ek), ("new 2", "light", ek))
    person.types("factory", "register", file, "--station", "line-1", status=1)
    assert "bad.csv: line 3: serial 'new 2'" in person.err
    assert person.asks("devices", "list") == before


def test_a_station_that_nobody_made_is_named(person, eks, tmp_path):
    (serial, ek), *_ = eks.items()
    file = write_csv(tmp_path / "a.csv", (serial, "light", ek))
    person.types("factory", "register", file, "--station", "line-9", status=1)
    assert "make the station: muster factory station add" in person.err


def test_a_replaced_station_certificate_registers_nothing(person, served, eks, tmp_path):
    person.types("factory", "station", "add", "line-4", "--budget", 9)
    certificate = served.root / "stations" / "line-4" / "cert.pem"
    old = certificate.read_bytes()
    person.types("factory", "station", "add", "line-4", "--budget", 9)
    certificate.write_bytes(old)
    (_, ek), *_ = eks.items()
    file = write_csv(tmp_path / "a.csv", ("new-3", "light", ek))
    person.types("factory", "register", file, "--station", "line-4", status=1)
    assert "(MUSTER-FAC-002)" in person.err


def test_a_refused_station_leaves_no_key_behind(person, served):
    token = served.operator_token.read_text()
    try:
        served.operator_token.write_text("x" * 43)
        person.types("factory", "station", "add", "line-5", "--budget", 1, status=1)
    finally:
        served.operator_token.write_text(token)
    assert "(MUSTER-ACC-001)" in person.err
    assert not (served.root / "stations" / "line-5").exists()


# --- devices, policies, explanations ----------------------------------------------------------------------------------


def test_a_device_is_shown_ordered_and_revoked_by_serial_or_id(person, eks, tmp_path):
    serial = next(iter(eks))
    device = person.asks("devices", "show", serial)
    assert device["state"] == "registered"
    assert person.asks("devices", "show", device["id"]) == device
    assert serial in person.types("devices", "show", serial)
    person.types("devices", "rotate", serial, status=1)
    assert "expected an active device's id or serial" in person.err
    assert person.asks("devices", "approve", serial)["device"] == device["id"]
    assert person.asks("devices", "revoke", serial, "--reason", "key-compromise")["reason"] == "key-compromise"
    person.types("devices", "revoke", serial, status=1)
    assert "(MUSTER-ACC-009)" in person.err
    person.types("devices", "show", "nobody", status=1)
    assert "(MUSTER-ACC-003)" in person.err


def test_devices_are_listed_page_by_page(person):
    whole = [one["serial"] for one in person.asks("devices", "list")["devices"]]
    assert whole == sorted(whole)
    assert len(whole) >= 3
    first = [one["serial"] for one in person.asks("devices", "list", "--limit", 1)["devices"]]
    assert first == whole[:1]
    assert f"--after {whole[0]}" in person.err
    rest = person.asks("devices", "list", "--after", whole[0])["devices"]
    assert [one["serial"] for one in rest] == whole[1:]


def test_a_policy_is_set_from_a_file_with_its_root_beside_it(person, fleet, tmp_path):
    text = fleet.policy.read_text()
    start, end = text.index('certificate = """'), text.index('"""', text.index('certificate = """') + 20) + 3
    (tmp_path / "root.pem").write_bytes(fleet.ek_root.read_bytes())
    file = tmp_path / "light.toml"
    file.write_text(text[:start] + 'certificate_file = "root.pem"' + text[end:])
    answer = person.asks("policy", "set", file)
    assert answer["model"] == "light"
    assert person.asks("policy", "show", "light")["version"] == answer["version"]
    assert "light" in person.types("policy", "list")
    shown = person.types("policy", "show", "light")
    assert "-----BEGIN CERTIFICATE-----" in shown


def test_a_policy_that_cannot_be_used_is_refused_at_its_line(person, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text('model = "light"\nek_roots = []\n[pcrs.sha256]\n"0" = ["00"]\n')
    person.types("policy", "set", file, status=1)
    assert person.err.startswith(f"muster: {file}: The policy cannot be used (MUSTER-POL-001)")
    assert "line 2" in person.err
    person.types("policy", "show", "no-such-model", status=1)
    assert "(MUSTER-ACC-003)" in person.err


def test_there_is_nothing_to_explain_about_who_was_never_refused(person, eks):
    person.types("explain", list(eks)[1], status=1)
    assert "expected a refusal id, or a device that was refused" in person.err


# --- trust and releases -----------------------------------------------------------------------------------------------


def test_a_publisher_signs_and_the_service_records(person, served, tmp_path):
    place = ["--repository", tmp_path / "publisher"]
    made = person.asks("ota", "init", *place)
    for secret in (tmp_path / "publisher" / "secrets").iterdir():
        assert secret.stat().st_mode & 0o777 == 0o600
    person.types("ota", "init", *place, status=1)
    assert "is there already and not empty" in person.err

    image = tmp_path / "fw.img"
    image.write_bytes(build_image(make_image("gateway", "7", 7)))
    added = person.asks("ota", "add", image, *place)
    measured = person.asks("ota", "measure", image)
    assert added["target"] == "gateway-7.img"
    assert added["reference_values"] == {pcr: measured["pcrs"][pcr] for pcr in ("8", "9")}

    person.types("ota", "publish", *place, status=1)
    assert "the image repository's root in the trust bundle" in person.err
    before = person.asks("trust", "show")["version"]
    assert person.asks("trust", "publish", "--image-root", made["root"])["version"] == before + 1
    recorded = person.asks("ota", "publish", *place)["releases"]
    assert [(one["target"], one["release_counter"]) for one in recorded] == [("gateway-7.img", 7)]
    assert "gateway-7.img" in person.types("ota", "list")
    stored = served.image / "targets"
    assert [path.read_bytes() for path in stored.iterdir()] == [image.read_bytes()]
    person.types("ota", "assign", "nobody", "gateway-7.img", status=1)
    assert "(MUSTER-ACC-003)" in person.err


def test_fewer_keys_than_the_threshold_sign_nothing(person, tmp_path):
    publisher = tmp_path / "publisher"
    place = ["--repository", publisher, "--offline"]
    person.types("ota", "init", *place[:2])
    before = sorted((path, path.read_bytes()) for path in (publisher / "image" / "metadata").iterdir())
    pin = f"pin-source=file:{publisher}/secrets"
    stolen = f"pkcs11:token=image-1;object=image-root?{pin}/image-1.pin"
    person.types("ota", "publish", *place, "--key", stolen, status=1)
    assert "MUSTER-OTA-160" in person.err
    targets = f"pkcs11:token=publisher;object=image-targets?{pin}/publisher.pin"
    person.types("ota", "publish", *place, "--key", targets, status=1)
    assert "MUSTER-OTA-160" in person.err
    assert sorted((path, path.read_bytes()) for path in (publisher / "image" / "metadata").iterdir()) == before
    online = f"pkcs11:token=publisher;object=image-online?{pin}/publisher.pin"
    assert person.asks("ota", "publish", *place, "--key", targets, "--key", online)["targets_version"] == 2


def test_a_bundle_is_signed_by_two_of_three_and_a_root_must_be_one(person, served, tmp_path):
    away = [served.pin(label) for label in ("trust-1", "trust-3")]
    person.types("trust", "publish", "--image-root", served.config, status=1)
    assert "is no root of a repository" in person.err
    before = person.asks("trust", "show")
    away[0].rename(tmp_path / "trust-1.pin")
    try:
        assert person.asks("trust", "publish")["version"] == before["version"] + 1  # by the two that are here
        away[1].rename(tmp_path / "trust-3.pin")
        try:
            person.types("trust", "publish", status=1)
        finally:
            (tmp_path / "trust-3.pin").rename(away[1])
    finally:
        (tmp_path / "trust-1.pin").rename(away[0])
    assert "2 must sign" in person.err
    assert person.asks("trust", "show")["version"] == before["version"] + 1
    assert person.asks("trust", "show")["image_root"] == before["image_root"]


# --- an outside CA ----------------------------------------------------------------------------------------------------


def test_an_outside_ca_signs_the_next_issuing_ca(person, tmp_path):
    assert person.asks("ca", "prepare", "issuing", "--outside-ca")["state"] == "prepared"
    request, made, root = (tmp_path / name for name in ("issuing-2.csr", "issuing-2.pem", "root.pem"))
    person.types("ca", "csr", "issuing-2", "--out", request)
    assert person.types("ca", "csr", "issuing-2").startswith("-----BEGIN CERTIFICATE REQUEST-----\n")
    asked = x509.load_pem_x509_csr(request.read_bytes())
    assert person.asks("ca", "csr", "issuing-2")["name"] == "issuing-2"
    assert x509.load_pem_x509_csr(person.asks("ca", "csr", "issuing-2")["request"].encode()).subject == asked.subject
    (tmp_path / "ext").write_text(
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    )
    for line in (
        "req -x509 -newkey rsa:3072 -nodes -keyout k.pem -out root.pem -subj /CN=Theirs -addext keyUsage=keyCertSign",
        "x509 -req -in issuing-2.csr -CA root.pem -CAkey k.pem -CAcreateserial -days 9 -extfile ext -out issuing-2.pem",
    ):
        subprocess.run(["openssl", *line.split()], check=True, capture_output=True, cwd=tmp_path)
    person.types("ca", "import", "issuing-2", "--certificate", root, "--chain", root, status=1)
    assert "MUSTER-CER-001" in person.err
    person.types("ca", "import", "issuing-2", "--certificate", made, "--chain", root)
    assert "muster ca publish" in person.err
    assert {one["name"]: one["state"] for one in person.asks("ca", "status")["authorities"]}["root-2"] == "prepared"


# --- the installation as a whole --------------------------------------------------------------------------------------


def test_after_all_that_the_installation_is_sound(person):
    answer = person.asks("fsck")
    assert answer["ok"], answer
    assert person.asks("audit", "verify")["ok"]
    found = person.asks("doctor")
    assert not [one for one in found if one["status"] == "FAIL"]
    assert {"device", "operator", "broker"} <= {one["check"] for one in found if "TLSv1" in one["says"]}


def test_every_operator_action_is_in_the_log(person, served):
    with closing(sqlite3.connect(served.root / "muster.db")) as database:
        kinds = {row[0] for row in database.execute("select distinct kind from leaf")}
    assert kinds >= {
        "station",
        "registration",
        "finding",
        "policy",
        "approval",
        "revocation",
        "release",
        "trust",
        "certificate",
    }


# --- operators --------------------------------------------------------------------------------------------------------


def test_an_operators_token_is_printed_once_and_the_last_admin_stays(person):
    token = person.types("operators", "add", "ada", "--role", "viewer").strip()
    assert len(token) == 43
    assert token not in person.err
    listed = person.asks("operators", "list")["operators"]
    assert [(one["name"], one["role"]) for one in listed] == [("ada", "viewer"), ("owner", "admin")]
    assert token not in json.dumps(listed)
    person.types("operators", "remove", "owner", status=1)
    assert "(MUSTER-ACC-009)" in person.err
    assert "removed" in person.types("operators", "remove", "ada")
    person.types("operators", "add", "ada", "--role", "root", status=2)
    person.types("devices", "profile", "nobody", "gateway", status=1)
    assert "(MUSTER-ACC-003)" in person.err
