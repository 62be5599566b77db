"""`muster demo`, as `make demo` runs it: it passes, and what it leaves behind convinces other people's tools."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from provisioning.attestation.structures import parse_quote
from tests.support.residents import living_in, wait_until_nobody_lives_in

pytestmark = pytest.mark.timeout(400)
MUSTER = Path(sys.executable).with_name("muster")
EXPORTED = (
    "root.pem",
    "issuing.pem",
    "first.pem",
    "rotated.pem",
    "issuing.crl",
    "ak.pem",
    "quote.msg",
    "quote.sig",
    "quote.pcrs",
    "qualification.hex",
    "summary.json",
)
REFUSALS = (
    "MUSTER-FAC-001",
    "MUSTER-ATT-049",
    "MUSTER-ATT-001",
    "MUSTER-ATT-002",
    "MUSTER-OTA-104",
    "Not authorized",
    "certificate revoked",
    "MUSTER-OTA-122",
    "MUSTER-OTA-126",
)


@pytest.fixture(scope="module")
def demo():
    """The folder of one whole demo, its exit status and what it said."""
    folder = Path(tempfile.mkdtemp(prefix="demo-"))
    try:
        ended = _run_demo(folder / "d")
        yield folder / "d", ended
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def export(demo, tmp_path):
    """A copy of what the demo left for outsiders."""
    return Path(shutil.copytree(demo[0] / "export", tmp_path / "export"))


def _run_demo(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MUSTER, "demo", "--data-dir", root], capture_output=True, text=True, timeout=360, check=False
    )


def _openssl(export: Path, certificate: str) -> subprocess.CompletedProcess[str]:
    command = "openssl verify -crl_check -CAfile root.pem -untrusted issuing.pem -CRLfile issuing.crl"
    return subprocess.run([*command.split(), certificate], cwd=export, capture_output=True, text=True, check=False)


def _checkquote(export: Path) -> subprocess.CompletedProcess[str]:
    qualification = (export / "qualification.hex").read_text().strip()
    command = "tpm2_checkquote -u ak.pem -m quote.msg -s quote.sig -f quote.pcrs -q"
    return subprocess.run([*command.split(), qualification], cwd=export, capture_output=True, text=True, check=False)


PCRS_FIRST_VALUE = 4 + 16 * 8 + 4 + 4 + 2
"""Offset in quote.pcrs: a count, 16 selections, a count of lists, a count of values, a size. Much behind is padding."""


def _flip(file: Path) -> None:
    """Another byte in the middle: of the base64 text in PEM and hex, so that the file stays readable as such."""
    content = bytearray(file.read_bytes())
    middle = PCRS_FIRST_VALUE if file.suffix == ".pcrs" else len(content) // 2
    if file.suffix in (".pem", ".hex"):
        content[middle] = ord("1") if content[middle] == ord("2") else ord("2")
    else:
        content[middle] ^= 1
    file.write_bytes(content)


def test_the_demo_passes(demo):
    root, ended = demo
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    summary = json.loads((root / "export" / "summary.json").read_text())
    assert summary["ok"] is True
    assert summary["device_id"].startswith("d-")
    assert summary["versions"]["muster"]
    assert len(summary["steps"]) == 10
    for step in summary["steps"]:
        assert set(step) == {"name", "ok", "seconds"}
        assert step["ok"] is True
        assert step["seconds"] >= 0


def test_it_leaves_what_outsiders_need_and_nobody_behind(demo):
    root, _ = demo
    assert {path.name for path in (root / "export").iterdir()} == set(EXPORTED)
    assert living_in(root) == {}


def test_each_attack_was_refused_for_its_own_reason(demo):
    _, ended = demo
    for reason in REFUSALS:
        assert f"refused, as it must be: {reason}\n" in ended.stdout


def test_the_changed_byte_is_explained_to_the_operator(demo):
    _, _, told = demo[1].stdout.partition("$ muster explain gw-002\n")
    told = told.partition("✔")[0]
    for part in ("PCR 8", "kernel", "expected", "actual", "cure", "seen on   0 other devices", "unsigned"):
        assert part in told
    # Nobody signed it, and one device shows it: nothing that would accept it is offered.
    assert "[pcrs.sha256]" not in told
    assert "--show-unsafe" in told


def test_each_term_is_explained_where_it_is_used_first(demo):
    text = " ".join(demo[1].stdout.split())
    for term, words in (
        ("EK", "EK (the TPM's own built-in key)"),
        ("AK", "AK (a TPM key for attesting)"),
        ("PCR", "PCRs (a hash of what booted)"),
        ("LDevID", "LDevID (certificate that your CA issued)"),
    ):
        assert text.index(f" {term}") in (text.index(words) - 1, text.index(words)), term


def test_a_pipe_gets_plain_lines(demo):
    assert "\x1b" not in demo[1].stdout


def test_no_secret_is_told(demo):
    root, ended = demo
    told = ended.stdout + ended.stderr + "".join(log.read_text() for log in root.glob("*.log"))
    secrets = [*(root / "service" / "secrets").iterdir(), *(root / "publisher" / "secrets").iterdir()]
    assert len(secrets) >= 5
    for file in secrets:
        assert file.read_text().strip() not in told, file


def test_openssl_accepts_the_certificate_in_use(export):
    done = _openssl(export, "rotated.pem")
    assert done.returncode == 0, done.stderr


def test_openssl_finds_the_first_certificate_revoked(export):
    done = _openssl(export, "first.pem")
    assert done.returncode != 0
    assert "certificate revoked" in done.stderr


def test_tpm2_tools_accept_the_quote(export):
    done = _checkquote(export)
    assert done.returncode == 0, done.stderr


def test_the_qualification_is_what_the_tpm_signed(export):
    quote = parse_quote((export / "quote.msg").read_bytes())
    assert quote.extra_data.hex() == (export / "qualification.hex").read_text().strip()


@pytest.mark.parametrize("name", ["ak.pem", "quote.msg", "quote.sig", "quote.pcrs", "qualification.hex"])
def test_one_changed_byte_makes_tpm2_tools_refuse(export, name):
    _flip(export / name)
    assert _checkquote(export).returncode != 0


@pytest.mark.parametrize("name", ["root.pem", "issuing.pem", "issuing.crl", "rotated.pem"])
def test_one_changed_byte_makes_openssl_refuse(export, name):
    _flip(export / name)
    assert _openssl(export, "rotated.pem").returncode != 0


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    ended = _run_demo(tmp_path)
    assert ended.returncode == 1
    assert "holds something that no demo made" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_every_child_ends_with_the_demo(sent, status):
    folder = Path(tempfile.mkdtemp(prefix="demo-"))
    try:
        child = subprocess.Popen(
            [MUSTER, "demo", "--data-dir", folder / "d"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        endpoints = folder / "d" / "service" / "run" / "endpoints.json"
        deadline = time.monotonic() + 100
        while not endpoints.exists():
            assert child.poll() is None, "it ended too early"
            assert time.monotonic() < deadline, "the service does not come up"
            time.sleep(0.05)
        os.kill(child.pid, sent)
        assert child.wait(60) == status
        wait_until_nobody_lives_in(folder)
    finally:
        shutil.rmtree(folder)
