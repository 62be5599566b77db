"""Predicted PCR values, the policy that accepts them, and what a release says of its image."""

import json

import pytest

from lab.firmware import make_image
from ota.firmware import build_image, measure
from provisioning import cli
from provisioning.attestation.policy import parse_policy
from provisioning.cli import measuring, ota
from provisioning.cli.failures import Failed, Mistaken
from tests.support.ek_certificates import pem, root

IMAGE = make_image("gateway", "2", 2)
BOOT = measure(IMAGE)


def test_without_a_list_all_pcrs_that_the_boot_extends_are_shown():
    shown = measuring.shown_pcrs(BOOT, ())
    assert set(shown) == {event.pcr for event in BOOT.events}
    assert shown[8] == BOOT.pcrs[8].hex()


def test_a_pcr_that_no_boot_extends_cannot_be_asked_for():
    with pytest.raises(Failed, match="PCR 23"):
        measuring.shown_pcrs(BOOT, (8, 23))


@pytest.mark.parametrize("text", ["a", "8,,9", "24", "-1", "8;9", "٣", "8," * 3])
def test_a_list_of_pcrs_is_numbers_with_commas(text):
    with pytest.raises(Failed, match="PCR numbers from 0 to 23"):
        measuring.parse_pcrs(text)


def test_the_printed_policy_accepts_exactly_this_boot():
    values = measuring.shown_pcrs(BOOT, ())
    text = measuring.policy_of("gateway", BOOT, values, [(pem(root().der), ["id:00001014"])], software_tpm=True)
    policy = parse_policy(text)
    assert (policy.model, policy.software_tpm, policy.boot_log) == ("gateway", True, "required")
    assert policy.release_pcrs == {8, 9}
    assert policy.pcrs["sha256"] == {pcr: frozenset({BOOT.pcrs[pcr]}) for pcr in values}
    assert [(event.pcr, event.digest) for event in policy.events] == [(e.pcr, e.digest) for e in BOOT.events]
    assert policy.ek_roots[0].manufacturers == {"id:00001014"}


def test_a_hostile_model_name_stays_a_text():
    text = measuring.policy_of('x"\nsoftware_tpm = true\n#', BOOT, {0: "00" * 32}, [], software_tpm=False)
    assert text.count("software_tpm = true") == 1
    assert "software_tpm = false" in text.splitlines()


def test_a_release_carries_the_values_of_its_pcrs():
    assert measuring.release_values(IMAGE, "8,9") == {8: BOOT.pcrs[8], 9: BOOT.pcrs[9]}
    assert measuring.release_values(IMAGE, "") == {}


@pytest.mark.parametrize("data", [b"\x7fELF", build_image(IMAGE)[:-1], build_image(IMAGE) + b"x"])
def test_a_file_that_is_no_image_is_named(tmp_path, data):
    (tmp_path / "fw.img").write_bytes(data)
    with pytest.raises(Failed, match=r"fw\.img: is no firmware image"):
        measuring.parsed_image(tmp_path / "fw.img", data)


def test_an_empty_image_is_refused(tmp_path):
    (tmp_path / "fw.img").touch()
    with pytest.raises(Failed, match="is empty"):
        measuring.read_image(tmp_path / "fw.img")


def test_an_image_says_itself_what_it_is(tmp_path):
    assert ota._named(tmp_path / "fw.img", IMAGE, None, "gateway", None) == ("2", "gateway", 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("3", None, None), "version 2, not 3"),
        ((None, "pump", None), "hardware gateway"),
        ((None, None, 1), "counter 2"),
    ],
)
def test_another_word_than_the_images_own_is_refused(tmp_path, given, said):
    with pytest.raises(Failed, match=said):
        ota._named(tmp_path / "fw.img", IMAGE, *given)


def test_an_image_that_says_nothing_needs_all_three(tmp_path):
    assert ota._named(tmp_path / "fw.img", None, "3", "pump", 7) == ("3", "pump", 7)
    with pytest.raises(Mistaken, match="give --version, --hardware and --counter"):
        ota._named(tmp_path / "fw.img", None, "3", "pump", None)


@pytest.fixture
def image(tmp_path):
    (tmp_path / "fw.img").write_bytes(build_image(IMAGE))
    return tmp_path / "fw.img"


def test_the_command_prints_a_table_json_or_a_policy(image, tmp_path, capsys):
    assert cli.main(["ota", "measure", str(image), "--pcrs", "8"]) == 0
    assert capsys.readouterr().out.splitlines() == ["PCR  sha256", f"8    {BOOT.pcrs[8].hex()}"]
    assert cli.main(["ota", "measure", str(image), "-o", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["pcrs"]["9"] == BOOT.pcrs[9].hex()
    assert len(answer["events"]) == len(BOOT.events)
    (tmp_path / "root.pem").write_text("Ours:\n" + pem(root().der))
    command = [
        "ota",
        "measure",
        str(image),
        "--policy-toml",
        "--model",
        "gateway",
        "--ek-root",
        str(tmp_path / "root.pem"),
    ]
    assert cli.main([*command, "--manufacturer", "id:00001014", "--manufacturer", "id:494E5443"]) == 0
    policy = parse_policy(capsys.readouterr().out)
    assert policy.ek_roots[0].manufacturers == {"id:00001014", "id:494E5443"}
    assert not policy.software_tpm
    assert cli.main(command) == 2
    assert "--policy-toml needs --model, --ek-root and --manufacturer" in capsys.readouterr().err


def test_a_root_that_is_no_pem_is_named(image, capsys):
    command = ["ota", "measure", str(image), "--policy-toml", "--model", "x", "--manufacturer", "id:00001014"]
    assert cli.main([*command, "--ek-root", str(image)]) == 1
    assert "fw.img: holds no PEM certificate" in capsys.readouterr().err


def test_a_policy_as_json_is_json(tmp_path, capsys):
    (tmp_path / "fw.img").write_bytes(build_image(IMAGE))
    (tmp_path / "root.pem").write_text(pem(root().der))
    command = ["ota", "measure", str(tmp_path / "fw.img"), "--policy-toml", "--model", "gateway", "-o", "json"]
    assert cli.main([*command, "--ek-root", str(tmp_path / "root.pem"), "--manufacturer", "id:00001014"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == "gateway"
    assert parse_policy(printed["toml"]).release_pcrs == {8, 9}
