"""`muster hsm list|test|audit|bench` and the doctor, on tokens with good and bad keys."""

import json
import shutil
import subprocess
import sys

import pytest
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm.kinds import KeyKind
from provisioning.app.doctor_hsm import tokens
from provisioning.app.findings import FAIL, OK, WARN
from provisioning.app.places import open_token
from provisioning.config import DataDirectory, load_config
from tests.support.cli import Person
from tests.support.service import make_installation
from tests.support.tokens import PIN, Nss, P11Kit, write_pin


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = make_installation(tmp_path_factory.mktemp("hsm") / "data")
    with open_token(directory, load_config(directory), "trust-3") as token:
        for kind in (KeyKind.P384, KeyKind.RSA3072, KeyKind.ED25519):
            token.generate_key(kind.value, kind)
    return directory


@pytest.fixture
def directory(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "data")
    return DataDirectory(tmp_path / "data")


@pytest.fixture
def person(directory, capsys):
    return Person(directory.root, capsys)


def put_bad_key(directory, label="trust-3"):
    """A secret that was in memory: brought in, and open to be taken out again."""
    with open_token(directory, load_config(directory), label) as token:
        session = token._sessions._login.token.open(rw=True)
        template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: KeyType.EC, Attribute.TOKEN: True}
        template |= {Attribute.LABEL: "brought", Attribute.ID: b"\x01", Attribute.EXTRACTABLE: True}
        parameters = bytes.fromhex("06082a8648ce3d030107")
        session.create_object(template | {Attribute.EC_PARAMS: parameters, Attribute.VALUE: bytes(31) + b"\x01"})
        session.close()


def keys_of(tokens_, label):
    (token,) = [token for token in tokens_ if token["label"] == label]
    return {key["label"]: key for key in token["keys"]}


def test_tokens_and_keys_are_listed_with_kind_size_and_attributes(person):
    shown = person.asks("hsm", "list")
    assert {token["label"] for token in shown} == {"muster", "root", "trust-1", "trust-2", "trust-3"}
    assert all(token["serial"] and token["module"].endswith("libsofthsm2.so") for token in shown)
    keys = keys_of(shown, "trust-3")
    assert {key["kind"]: key["bits"] for key in keys.values()} == {
        "P-256": 256,
        "P-384": 384,
        "RSA-3072": 3072,
        "Ed25519": 255,
    }
    assert all(key["sensitive"] and key["local"] and not key["extractable"] for key in keys.values())
    table = person.types("hsm", "list", "trust-3")
    assert "RSA-3072" in table
    assert "never extractable" in table


def test_a_token_is_named_by_a_uri(person):
    serial = person.asks("hsm", "list", "trust-3")[0]["serial"]
    (shown,) = person.asks("hsm", "list", f"pkcs11:token=trust-3;serial={serial}")
    assert (shown["label"], shown["serial"], len(shown["keys"])) == ("trust-3", serial, 4)
    person.types("hsm", "list", "pkcs11:token=trust-3;object=trust", status=1)
    assert "names a key" in person.err


def test_every_key_signs_and_verifies(person):
    shown = person.asks("hsm", "test")
    assert sum(len(token["keys"]) for token in shown) >= 12
    assert not any(key["faults"] for token in shown for key in token["keys"])
    assert "signs" in person.types("hsm", "test", "trust-3", "--key", "Ed25519")


def test_a_key_without_its_public_half_fails_the_test(person, directory):
    put_bad_key(directory)
    shown = json.loads(person.types("hsm", "test", "trust-3", "-o", "json", status=1))
    faults = {label: key["faults"] for label, key in keys_of(shown, "trust-3").items() if key["faults"]}
    assert list(faults) == ["brought"]
    assert "public keys" in faults["brought"][0]


def test_the_audit_passes_protected_keys_and_names_everything_about_another(person, directory):
    assert "never left, and cannot leave" in person.types("hsm", "audit")
    put_bad_key(directory)
    shown = json.loads(person.types("hsm", "audit", "-o", "json", status=1))
    faults = {label: key["faults"] for label, key in keys_of(shown, "trust-3").items() if key["faults"]}
    assert faults == {
        "brought": [
            "can be read in plain text",
            "can be wrapped and taken out",
            "could once be read in plain text",
            "could once be taken out",
            "was made elsewhere and brought in",
        ]
    }
    assert "FAIL" in person.types("hsm", "audit", "trust-3", status=1)


def test_bench_measures_each_key_for_as_long_as_it_is_told(person):
    (token,) = person.asks("hsm", "bench", "trust-3", "--seconds", "1", "--threads", "2", "--key", "P-384")
    (key,) = token["keys"]
    assert key["kind"] == "P-384"
    assert key["signatures_per_second"] > 0
    for wrong in (("--seconds", "0"), ("--seconds", "61"), ("--threads", "0")):
        person.types("hsm", "bench", *wrong, status=2)


def test_a_token_that_does_not_open_and_a_key_that_is_nowhere_are_failures(person, directory):
    directory.pin("trust-3").write_text("wrong-pin")
    shown = json.loads(person.types("hsm", "list", "-o", "json", status=1))
    failures = {token["label"]: token["failure"] for token in shown if token["failure"]}
    assert list(failures) == ["trust-3"]
    assert "refused the PIN" in failures["trust-3"]
    assert "wrong-pin" not in person.err + json.dumps(shown)
    person.types("hsm", "test", "muster", "--key", "nobody", status=2)


def test_other_modules_are_examined_as_the_configuration_describes_them(person, directory, tmp_path):
    nss, remote = Nss(tmp_path / "nss"), P11Kit(tmp_path / "remote")
    try:
        for place in (nss, remote):
            with place.token(sessions=1) as token:
                token.generate_key("issuing", KeyKind.P384)
        named = {"nss": "NSS%20Certificate%20DB", "remote": "ca"}
        pin = "pin-source=credential:ca.pin"
        uris = [f"pkcs11:token={label};object=issuing?module-name={name}&{pin}" for name, label in named.items()]
        text = (
            directory.config.read_text() + f"[hsm.keys]\nelsewhere = {uris}\n" + nss.toml("nss") + remote.toml("remote")
        )
        directory.config.write_text(text)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("CREDENTIALS_DIRECTORY", str(remote.directory))
            assert remote.pin_file.read_text() == nss.pin_file.read_text() == PIN
            shown = person.asks("hsm", "test")
            assert [key["kind"] for key in keys_of(shown, "ca").values()] == ["P-384"]
            assert [key["kind"] for key in keys_of(shown, "NSS Certificate DB").values()] == ["P-384"]
            person.types("hsm", "audit", uris[1].replace(";object=issuing", ""))
            # NSS does not say that it made a key itself.
            said = json.loads(
                person.types("hsm", "audit", uris[0].replace(";object=issuing", ""), "-o", "json", status=1)
            )
            assert keys_of(said, "NSS Certificate DB")["issuing"]["faults"] == ["was made elsewhere and brought in"]
    finally:
        remote.close()


# --- the doctor -----------------------------------------------------------------------------------------------------


def statuses(directory):
    return [(one.status, one.says) for one in tokens(directory, load_config(directory))]


def test_the_doctor_says_what_a_second_token_lacks(directory, tmp_path):
    remote = P11Kit(tmp_path / "remote")
    try:
        uris = ["pkcs11:object=issuing", "pkcs11:token=ca;object=issuing?module-name=remote"]
        settings = f"[hsm.keys]\nissuing = {uris}\n[hsm.pins]\nca = 'file:{remote.pin_file}'\n{remote.toml('remote')}"
        directory.config.write_text(directory.config.read_text() + settings)
        found = statuses(directory)
        assert found[0][0] == OK
        assert (WARN, "has no key 'issuing'") in [(status, says[-20:]) for status, says in found]
        with remote.token(sessions=1) as token:
            token.generate_key("issuing")
        assert any(status == FAIL and "is not that of the first token" in says for status, says in statuses(directory))
        remote.kill()
        found = statuses(directory)
        assert [status for status, _ in found] == [OK, WARN]
        write_pin(remote.pin_file)
    finally:
        remote.close()


IMPATIENT = "import sys; from provisioning.cli import app; app.MODULE_SECONDS = 0.5; sys.exit(app.run(sys.argv[1:]))"


@pytest.mark.parametrize("command", [("hsm", "list"), ("hsm", "test"), ("doctor",)])
def test_a_command_gives_up_on_a_module_that_hangs(directory, tmp_path, command):
    remote = P11Kit(tmp_path / "remote")
    try:
        with remote.token(sessions=1) as token:
            token.generate_key("issuing")
        uri = "pkcs11:token=ca;object=issuing?module-name=remote"
        settings = (
            f"[hsm.keys]\nissuing = ['{uri}']\n[hsm.pins]\nca = 'file:{remote.pin_file}'\n{remote.toml('remote')}"
        )
        directory.config.write_text(directory.config.read_text() + settings)
        with remote.hanging():
            argv = [sys.executable, "-c", IMPATIENT, *command, "--data-dir", str(directory.root)]
            ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stderr.count("\n")) == (3, 1), ended.stderr
        assert "has not answered for 0.5 s" in ended.stderr
    finally:
        remote.close()


def test_the_doctor_says_which_key_is_missing(directory):
    text = "[hsm.keys]\nlog = ['pkcs11:object=nobody']\n"
    directory.config.write_text(directory.config.read_text() + text)
    assert (FAIL, "key log is in no token") in statuses(directory)
