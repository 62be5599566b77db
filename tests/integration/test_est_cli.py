"""Tokens and IDevIDs as a person types for them: the token once and alone on standard output, all else beside it."""

import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.cli import Person, initialized, serving


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("est-cli")
    with serving(initialized(root / "D"), root / "serve.log") as made:
        yield made


@pytest.fixture
def person(directory, capsys):
    return Person(directory.root, capsys)


def test_a_token_is_printed_once_and_registers_a_new_serial(person, directory):
    token = person.types("est-token", "create", "--device", "sensor-1", "--lifetime", "30m", "--model", "thermometer")
    assert len(token.strip()) == 43
    assert "registered sensor-1 as d-" in person.err
    assert token.strip() not in person.err
    (listed,) = person.asks("est-token", "list", "--device", "sensor-1")["tokens"]
    assert (listed["state"], listed["serial"], listed["by"]) == ("open", "sensor-1", "owner")
    assert token.strip() not in str(listed)
    database = b"".join(path.read_bytes() for path in directory.root.glob("muster.db*"))
    assert token.strip().encode() not in database
    shown = person.asks("devices", "show", "sensor-1")
    assert (shown["assurance"], shown["model"], shown["ek_id"]) == ("token", "thermometer", None)
    again = person.asks("est-token", "create", "--device", shown["id"])
    assert again["registered"] is False
    assert again["token"] != token.strip()


def test_a_token_is_revoked_by_its_id_and_only_once(person):
    made = person.asks("est-token", "create", "--device", "sensor-2")
    assert person.asks("est-token", "revoke", made["id"])["state"] == "revoked"
    person.types("est-token", "revoke", made["id"], status=1)
    assert "MUSTER-ACC-009" in person.err
    person.types("est-token", "revoke", "0" * 16, status=1)
    assert "MUSTER-ACC-003" in person.err
    (listed,) = person.asks("est-token", "list", "--device", "sensor-2")["tokens"]
    assert listed["state"] == "revoked"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--device", "sensor-3", "--lifetime", "1 day"], 2),
        (["--device", "sensor-3", "--lifetime", "0s"], 2),
        (["--device", "sensor-3", "--lifetime", "1s"], 1),
        (["--device", "sensor-3", "--lifetime", "91d"], 1),
        (["--device", "sensor 3"], 1),
        (["--device", "d-0123456789abcdef"], 1),  # the id of no device: a typing error, not a serial
        (["--device", "sensor-3", "--model", "A model"], 1),
        (["--device", "sensor-3", "--profile", "station"], 1),
    ],
)
def test_what_is_no_token_is_not_made(person, arguments, status):
    assert person.types("est-token", "create", *arguments, status=status) == ""
    person.types("est-token", "list", "--device", "sensor-3", status=1)


def test_a_key_is_approved_by_name_only_where_it_asked(person):
    person.types("est-token", "create", "--device", "sensor-4", "--approval")
    person.types("devices", "approve", "sensor-4", status=1)
    assert "a key that waits for approval" in person.err
    person.types("devices", "approve", "sensor-4", "--key", "00" * 32, status=1)


@pytest.mark.parametrize("form", ["PEM", "DER"])
def test_a_station_writes_an_idevid_beside_its_request(person, tmp_path, form):
    station = f"line-{form.lower()}"
    person.types("factory", "station", "add", station, "--budget", "1")
    request = tmp_path / "sensor.csr"
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/"]
    command += ["-keyout", tmp_path / "sensor.key", "-out", request, "-outform", form]
    subprocess.run(command, check=True, capture_output=True)
    order = ("factory", "idevid", request, "--model", "sensor", "--station", station)
    made = person.asks(*order, "--serial", f"s-{form}")
    certificate, above = x509.load_pem_x509_certificates(Path(made["certificate"]).read_bytes())
    assert certificate.subject.rfc4514_string() == f"2.5.4.5=s-{form},CN=idevid:{made['device']}"
    certificate.verify_directly_issued_by(above)
    assert person.asks(*order, "--serial", f"s-{form}") == made  # again: the same, and the budget is not asked
    person.types(*order, "--serial", f"other-{form}", status=1)
    assert "MUSTER-" in person.err
    person.types(*order[:2], tmp_path / "none.csr", *order[3:], "--serial", "x", status=2)
    person.types(
        "factory", "idevid", request, "--model", "m", "--station", station, "--serial", "x", "--out", request, status=1
    )
    assert "name another file" in person.err
