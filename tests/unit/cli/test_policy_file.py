"""A policy file: its certificates are put in its place, every line keeps its number, what is wrong is named."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.cli.failures import Failed
from provisioning.cli.policy_files import _basic_string, with_certificates

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
TEXT = """model = "gateway"
[[ek_roots]]
manufacturers = ["id:494E5443"]  # Intel
  certificate_file = "roots/intel.pem" # theirs

[[ek_roots]]
certificate_file = 'own.pem'
[pcrs.sha256]
"0" = []
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "intel.pem").write_text("Intel's:\n" + PEM)
    (tmp_path / "own.pem").write_text(PEM)
    return tmp_path


def policy(folder, text):
    (folder / "gateway.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "gateway.toml"


def refused(file):
    with pytest.raises(Failed) as caught:
        with_certificates(file)
    return caught.value.lines[0]


def test_certificates_stand_in_the_text_and_lines_keep_their_numbers(folder):
    text = with_certificates(policy(folder, TEXT))
    first, second = tomllib.loads(text)["ek_roots"]
    assert first == {"manufacturers": ["id:494E5443"], "certificate": "Intel's:\n" + PEM}
    assert second == {"certificate": PEM}
    assert len(text.splitlines()) == len(TEXT.splitlines())
    assert text.splitlines()[7:] == TEXT.splitlines()[7:]


def test_a_policy_without_files_is_sent_as_it_is(folder):
    text = 'model = "x"\r\n# certificate_file = "nowhere"\r\n'
    assert with_certificates(policy(folder, text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "x\n', "is not TOML"),
        ("pcrs = " + "9" * 5000, "is not TOML"),
        ("pcrs = " + "[" * 5000, "is not TOML"),
        (b"# first\nmodel = '\xe4'\n", "line 2: is not UTF-8"),
        ('[[ek_roots]]\ncertificate_file = "nowhere.pem"\n', "line 2: {folder}/nowhere.pem: No such file"),
        (
            '[[ek_roots]]\ncertificate_file = "gateway.toml"\n',
            "line 2: {folder}/gateway.toml: holds no PEM certificate",
        ),
        ('[[ek_roots]]\ncertificate_file = "\\u0000"\n', "line 2"),
        ('ek_roots = [{certificate_file = "own.pem"}]\n', "does not stand on a line of its own"),
        ("#" * 1_100_000, "is larger than 1024 KiB"),
    ],
)
def test_what_is_wrong_is_named(folder, text, said):
    line = refused(policy(folder, text))
    assert line.startswith(str(folder / "gateway.toml"))
    assert said.format(folder=folder) in line


@given(st.text(st.characters(max_codepoint=127)))
def test_any_ascii_text_is_one_line_of_toml(text):
    written = _basic_string(text)
    assert len(written.splitlines()) == 1
    assert tomllib.loads(f"x = {written}")["x"] == text.replace("\r\n", "\n")
