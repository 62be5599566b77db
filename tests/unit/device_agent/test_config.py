"""The configuration is complete and right, or one line says what is wrong and where."""

from datetime import UTC, datetime

import pytest

from device_agent.config import ConfigMistake, load_config, read_authorisation

GOOD = {
    "service": "https://127.0.0.1:8443",
    "public": "http://127.0.0.1:8080",
    "anchor": "anchor.json",
    "hardware": "gateway",
    "build_time": "2026-11-21T12:00:00Z",
}


def write(folder, without=(), text="", **changes):
    values = {key: value for key, value in {**GOOD, **changes}.items() if key not in without}
    lines = (f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in values.items())
    (folder / "agent.toml").write_text("\n".join(lines) + "\n" + text)
    return folder


def test_paths_are_relative_to_the_file(tmp_path):
    config = load_config(write(tmp_path, slots="../slots", boot_log="/sys/log"))
    assert config.anchor == tmp_path / "anchor.json"
    assert config.slots == tmp_path.parent / "slots"
    assert str(config.boot_log) == "/sys/log"
    assert config.state_dir == tmp_path / "state"
    assert config.tcti == "device:/dev/tpmrm0"
    assert config.build_time == datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_a_makers_certificates_are_in_nv_or_in_files_of_the_agent(tmp_path):
    config = load_config(write(tmp_path, iak_certificate="nv:0x1c90000", iak_handle=0x81080000))
    assert (config.iak_certificate, config.idevid_certificate, config.iak_handle) == (0x1C90000, None, 0x81080000)
    config = load_config(write(tmp_path, iak_certificate="maker/iak.pem", idevid_certificate="/etc/idevid.pem"))
    assert (config.iak_certificate, config.iak_handle) == (tmp_path / "maker" / "iak.pem", None)
    assert str(config.idevid_certificate) == "/etc/idevid.pem"


def test_the_ima_log_is_the_kernels_unless_another_file_is_named(tmp_path):
    assert str(load_config(write(tmp_path)).ima_log) == "/sys/kernel/security/ima/binary_runtime_measurements"
    assert load_config(write(tmp_path, ima_log="../ima.bin")).ima_log == tmp_path.parent / "ima.bin"


def test_a_time_of_toml_is_taken_too(tmp_path):
    write(tmp_path, without=("build_time",), text="build_time = 2026-11-21T13:00:00+01:00\n")
    assert load_config(tmp_path).build_time == datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"without": ("service",)}, "service: is missing"),
        ({"colour": "red"}, "colour: is not a setting"),
        ({"service": "http://plain:1"}, "service: is not a URL"),
        ({"service": "https://"}, "service: is not a URL"),
        ({"service": "https://host:99999"}, "service: is not a URL"),
        ({"public": "ftp://host"}, "public: is not a URL"),
        ({"service": "https://user@host"}, "service: is not a URL"),
        ({"ek": "dsa"}, "ek: is not one of rsa, ecc"),
        ({"build_time": "yesterday"}, "build_time: is not a time"),
        ({"ownership_epoch": -1}, "ownership_epoch: is negative"),
        ({"iak_handle": 0x81080000}, "iak_certificate: is missing"),
        ({"idevid_certificate": "i.pem"}, "iak_certificate: is missing"),
        ({"iak_certificate": "nv:"}, "iak_certificate: is no NV index"),
        ({"iak_certificate": "nv:0x81000000"}, "iak_certificate: is no NV index"),
        ({"iak_certificate": "i.pem", "idevid_certificate": "nv:zero"}, "idevid_certificate: is no NV index"),
        ({"iak_certificate": "i.pem", "iak_handle": 0x40000001}, "iak_handle: is no persistent handle"),
        ({"text": "this is not TOML"}, "line 6"),
        ({"text": "hardware = 'twice'"}, "overwrite"),
        ({"text": "ownership_epoch = " + "9" * 5000}, "agent.toml"),
        ({"text": "slots = " + "[" * 5000}, "agent.toml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_that_names_file_and_setting(tmp_path, changes, says):
    with pytest.raises(ConfigMistake, match=says) as caught:
        load_config(write(tmp_path, **changes))
    assert str(tmp_path / "agent.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_huge_file_is_said(tmp_path):
    with pytest.raises(ConfigMistake, match="is missing"):
        load_config(tmp_path)
    (tmp_path / "agent.toml").write_text("#" * 70_000)
    with pytest.raises(ConfigMistake, match="larger than"):
        load_config(tmp_path)


def test_an_authorisation_is_read_only_from_a_private_file(tmp_path):
    secret = tmp_path / "owner"
    secret.write_bytes(b"canary\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigMistake, match="chmod 600") as caught:
        read_authorisation(secret)
    assert "canary" not in str(caught.value)
    secret.chmod(0o600)
    assert read_authorisation(secret) == b"canary"
    assert read_authorisation(None) == b""
    with pytest.raises(ConfigMistake, match="No such file"):
        read_authorisation(tmp_path / "absent")
    secret.write_bytes(b"x" * 65)
    with pytest.raises(ConfigMistake, match="longer than 64"):
        read_authorisation(secret)
