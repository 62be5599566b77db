"""`muster doctor`: a fresh installation is fit; each damage is named, with what mends it, and nothing is changed."""

import json
import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest

from provisioning import cli
from provisioning.app import doctor
from provisioning.app.compose import clock as system_clock
from provisioning.app.doctor import examine
from provisioning.app.findings import FAIL, OK, WARN
from tests.support.enrolled import copy_of
from tests.support.service import make_installation


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("doctor") / "D")


@pytest.fixture
def directory(installed, tmp_path):
    return copy_of(installed, tmp_path / "D")


def bad(directory):
    """What is not in order: check to (status, says, cure)."""
    return {one.check: (one.status, one.says, one.cure) for one in examine(directory) if one.status != OK}


def test_a_fresh_installation_is_fit_to_serve(directory):
    found = examine(directory)
    assert {one.check for one in found} >= {
        *("packages", "TPM", "configuration", "permissions", "HSM", "root CA", "issuing CA", "TLS"),
        *("database", "disk", "clock", "issuing CRL", "root CRL", "trust", "image repository", "service"),
    }
    assert not [one for one in found if one.status == FAIL]
    assert [one.check for one in found if one.status == WARN and one.check != "disk"] == ["offline keys", "weak keys"]


def remove(name):
    return lambda directory: (directory.root / name).unlink()


def write(name, content):
    return lambda directory: (directory.root / name).write_bytes(content)


def mode(name, bits):
    return lambda directory: (directory.root / name).chmod(bits)


def sql(statement):
    def change(directory):
        with closing(sqlite3.connect(directory.root / "muster.db")) as database, database:
            assert database.execute(statement).rowcount > 0

    return change


def another_key(directory):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    (directory.tls / "service.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def another_name(directory):
    text = directory.config.read_text().replace('advertised_host = "127.0.0.1"', 'advertised_host = "192.0.2.7"')
    directory.config.write_text(text)


def wrong_pin(directory):
    directory.pin("muster").write_text("not the PIN at all")


def damaged_page(directory):
    path = directory.root / "muster.db"
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 4] = bytes(4096)
    path.write_bytes(data)


DAMAGES = {
    "no configuration": (remove("muster.toml"), "configuration", "is no Muster data directory", "muster init"),
    "bad configuration": (write("muster.toml", b"x = ["), "configuration", "is not TOML", "correct"),
    "endless configuration": (write("muster.toml", b"x = " + b"9" * 5000), "configuration", "is not TOML", "correct"),
    "not UTF-8": (write("muster.toml", b"\xff"), "configuration", "is not UTF-8", "save it"),
    "an open token file": (mode("secrets/operator.token", 0o644), "permissions", "mode 644", "chmod 600"),
    "an open PIN file": (mode("secrets/root.pin", 0o640), "permissions", "mode 640", "chmod 600"),
    "an open TLS key": (mode("tls/service.key", 0o604), "permissions", "mode 604", "chmod 600"),
    "an open PIN of the service": (mode("secrets/muster.pin", 0o644), "HSM", "others may read this PIN", "chmod 600"),
    "a wrong PIN": (wrong_pin, "HSM", "PIN", ""),
    "no PIN": (remove("secrets/muster.pin"), "HSM", "cannot be read", "muster.pin"),
    "a missing root certificate": (remove("ca/root.pem"), "CA", "is not the certificate of root", "restore"),
    "another TLS key": (another_key, "TLS", "do not belong together", "--renew-tls"),
    "another address": (another_name, "TLS", "does not name 192.0.2.7", "--renew-tls"),
    "no TLS certificate": (remove("tls/service.pem"), "TLS", "service.pem: No such file", "restore"),
    "a damaged database": (damaged_page, "database", "", ""),
    "a newer database": (
        sql("update alembic_version set version_num = '9999'"),
        "database",
        "has schema 9999",
        "update this program",
    ),
    "no database": (remove("muster.db"), "database", "muster.db: No such file", "restore"),
    "a clock that went back": (sql("update leaf set at = at + 864000"), "clock", "is before the last record", "NTP"),
    "no CRL": (remove("ca/issuing.crl"), "CRL", "issuing.crl: No such file", "restore"),
    "no anchor": (remove("anchor.json"), "trust", "anchor.json: No such file", "restore"),
    "a damaged anchor": (write("anchor.json", b"{}"), "trust", "anchor.json", "restore"),
    "forged trust metadata": (
        write("trust/metadata/timestamp.json", b"{}"),
        "trust",
        "a device would refuse it",
        "muster trust publish",
    ),
    "endpoints that are none": (write("run/endpoints.json", b"[]"), "service", "endpoints.json", "muster serve"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named_with_its_cure(directory, damage):
    harm, check, says, cure = DAMAGES[damage]
    harm(directory)
    found = bad(directory)
    assert check in found, found
    status, said, mends = found[check]
    assert status == FAIL
    assert says in said
    assert cure in f"{said} {mends}"


def test_a_crl_that_is_not_the_newest_is_told(directory):
    sql("update crl set der = cast(der || x'00' as blob)")(directory)
    found = bad(directory)
    assert {found[name][0] for name in ("issuing CRL", "root CRL")} == {WARN}


def test_a_ca_that_is_only_prepared_may_be_on_record_before_its_files_are_there(directory):
    with closing(sqlite3.connect(directory.root / "muster.db")) as database, database:
        database.execute("create temp table next as select * from authority where name = 'issuing'")
        database.execute("update next set name = 'issuing-2', state = 'prepared'")
        database.execute("insert into authority select * from next")
    found = bad(directory)
    assert [found[check][0] for check in ("CA", "issuing-2 CRL")] == [WARN, WARN]
    assert FAIL not in {status for status, _, _ in found.values()}


def test_a_port_that_nobody_listens_on_is_told(directory):
    urls = {name: f"{scheme}://127.0.0.1:1" for name, scheme in (("device", "https"), ("operator", "https"))}
    directory.endpoints.write_text(json.dumps({**urls, "public": "http://127.0.0.1:1", "mqtt": "mqtts://127.0.0.1:1"}))
    found = bad(directory)
    assert {found[name][0] for name in ("device", "operator", "broker")} == {FAIL}
    assert "refused" in found["device"][1]


@pytest.mark.parametrize(
    ("days", "checks"),
    [
        (6, {"issuing CRL", "trust"}),
        (8, {"issuing CRL", "trust"}),
        (340, {"issuing CRL", "root CRL", "trust", "trust keys", "TLS"}),
        (400, {"issuing CRL", "root CRL", "trust", "trust keys", "TLS"}),
        (8000, {"issuing CRL", "root CRL", "trust", "trust keys", "TLS", "issuing CA", "root CA"}),
    ],
)
def test_what_expires_is_told_in_time(directory, monkeypatch, days, checks):
    monkeypatch.setattr(doctor, "clock", lambda: system_clock() + timedelta(days=days))
    found = {name for name, (status, said, _) in bad(directory).items() if "expire" in said or "good until" in said}
    assert found == checks


def test_a_full_disk_and_a_missing_broker_are_told(directory, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1024}))
    monkeypatch.setattr(doctor.shutil, "which", lambda *_args, **_named: None)
    found = bad(directory)
    assert found["disk"][::2] == (FAIL, "free some space: nothing can be issued without")
    assert found["packages"] == (FAIL, "mosquitto is not installed", "apt install mosquitto")


def test_nothing_is_changed_and_no_secret_is_shown(directory, capsys):
    def state():
        return {
            path: (path.stat().st_mode, path.read_bytes())
            for path in directory.root.rglob("*")
            if path.is_file() and path.name != "muster.db-shm" and "softhsm" not in path.name
        }

    before = state()
    assert cli.main(["doctor", "--data-dir", str(directory.root), "-o", "json"]) == 0
    out = capsys.readouterr().out
    assert {one["status"] for one in json.loads(out)} == {"ok", "warn"}
    assert {
        path: value for path, value in state().items() if "muster.db" not in path.name and "tokens" not in path.parts
    } == {path: value for path, value in before.items() if "muster.db" not in path.name and "tokens" not in path.parts}
    for secret in directory.secrets.iterdir():
        assert secret.read_text() not in out


def test_the_command_ends_with_1_where_something_fails(directory, capsys):
    (directory.ca / "issuing.crl").unlink()
    assert cli.main(["doctor", "--data-dir", str(directory.root)]) == 1
    out = capsys.readouterr().out
    assert "FAIL  CRL" in out
    assert "-> restore it from a backup" in out
