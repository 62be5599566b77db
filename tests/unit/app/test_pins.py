"""PINs come from a file, the environment, a systemd credential or a person; never from an argument."""

import io
import sys

import pytest

from hsm.errors import PinUnreadable
from provisioning.app.pins import pin_reader
from provisioning.config import ConfigurationRefused


def test_a_file_is_read_without_its_line_ending(tmp_path):
    path = tmp_path / "pin"
    path.write_text("secret\n")
    path.chmod(0o600)
    assert pin_reader(f"file:{path}", "root")() == "secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    path = tmp_path / "pin"
    path.write_text("secret")
    path.chmod(mode)
    with pytest.raises(ConfigurationRefused, match="others may read this PIN"):
        pin_reader(f"file:{path}", "root")()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        pin_reader(f"file:{tmp_path}/pin", "root")()


def test_the_environment_is_asked_at_each_login(monkeypatch):
    read = pin_reader("env:ROOT_PIN", "root")
    monkeypatch.setenv("ROOT_PIN", "secret")
    assert read() == "secret"
    monkeypatch.delenv("ROOT_PIN")
    with pytest.raises(PinUnreadable, match="ROOT_PIN"):
        read()


def test_a_credential_lies_where_systemd_says(monkeypatch, tmp_path):
    (tmp_path / "root-pin").write_text("secret\n")
    read = pin_reader("credential:root-pin", "root")
    with pytest.raises(PinUnreadable, match="LoadCredential=root-pin"):
        read()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read() == "secret"


def test_nobody_is_asked_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    with pytest.raises(PinUnreadable, match="there is no terminal"):
        pin_reader("prompt", "root")()


@pytest.mark.parametrize(
    "source", ["", "1234", "file:pin", "env:", "env:A=B", "credential:../x", "credential:", "prompt:x"]
)
def test_what_is_no_source_is_refused_without_being_repeated(source):
    with pytest.raises(ConfigurationRefused, match="is no source") as refused:
        pin_reader(source, "root")
    assert "1234" not in str(refused.value)
