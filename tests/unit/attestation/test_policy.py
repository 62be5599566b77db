"""Policies: a whole one or none, and the line that is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation.policy import POLICY_MOST, line_of, normal_manufacturer, parse_policy
from provisioning.refusals import PolicyMalformed
from tests.support.ek_certificates import pem, root

ROOT = root()
VALUE = "ab" * 32
TEXT = f'''# the gateways
model = "gateway"
software_tpm = true
expired_ek = "accept"
banks = ["sha384", "sha256"]
boot_log = "optional"
release_pcrs = [8, 9]
min_tpm_firmware = 7
enrollments_per_day = 5

[[ek_roots]]
certificate = """
{pem(ROOT.der, ROOT.der)}"""
manufacturers = ["id:00001014", "id:494e5443"]

[[events]]
pcr = 4
digest = "{VALUE}"
description = "the boot loader"

[pcrs.sha256]
"4" = ["{VALUE}", "{VALUE.upper()}"]
"0" = ["{VALUE}"]
"8" = []
"9" = []

[pcrs.sha384]
"8" = []
"9" = []
"7" = ["{"cd" * 48}"]
'''


def test_a_whole_policy_is_read():
    policy = parse_policy(TEXT)
    assert (policy.model, policy.software_tpm, policy.expired_ek, policy.boot_log) == (
        *("gateway", True, "accept", "optional"),
    )
    assert (policy.banks, policy.release_pcrs) == (("sha384", "sha256"), {8, 9})
    assert (policy.min_tpm_firmware, policy.enrollments_per_day) == (7, 5)
    assert len(policy.ek_roots) == 2
    assert policy.ek_roots[0].manufacturers == {"id:00001014", "id:494E5443"}
    assert list(policy.pcrs["sha256"]) == [0, 4, 8, 9]
    assert policy.pcrs["sha256"][4] == {bytes.fromhex(VALUE)}
    assert policy.pcrs["sha256"][8] == frozenset()
    assert policy.events[0].description == "the boot loader"


def test_what_is_not_said_is_strict():
    lines = ['model = "m"', "[[ek_roots]]", f'certificate = """{pem(ROOT.der)}"""', 'manufacturers = ["id:494E5443"]']
    policy = parse_policy("\n".join([*lines, "[pcrs.sha256]", f'"0" = ["{VALUE}"]']))
    assert (policy.software_tpm, policy.expired_ek, policy.boot_log) == (False, "refuse", "required")
    assert (policy.banks, policy.release_pcrs, policy.events) == (("sha256",), frozenset(), ())


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ('model = "gateway"', 'model = "Gate Way"', 2, "model is not"),
        ('model = "gateway"', 'name = "gateway"', 1, "model is missing"),
        ("software_tpm = true", 'software_tpm = "yes"', 3, "software_tpm is not true or false"),
        ('expired_ek = "accept"', 'expired_ek = "ignore"', 4, "expired_ek is not one of"),
        ('banks = ["sha384", "sha256"]', 'banks = ["sha256", "sha1"]', 5, "banks[1] is not sha256"),
        ('banks = ["sha384", "sha256"]', "banks = []", 5, "banks is empty"),
        ('banks = ["sha384", "sha256"]', 'banks = ["sha512"]', 5, "banks[0] has no table [pcrs.sha512]"),
        ('boot_log = "optional"', 'boot_log = "maybe"', 6, "boot_log is not one of"),
        ("release_pcrs = [8, 9]", "release_pcrs = [7, 8]", 7, "release_pcrs names 7: a release never"),
        ("release_pcrs = [8, 9]", "release_pcrs = [0, 3]", 7, "names 0, 3"),
        ("release_pcrs = [8, 9]", "release_pcrs = [8, 9, 11]", 7, "names 11, which [pcrs.sha256] does not select"),
        ("release_pcrs = [8, 9]", "release_pcrs = [8]", None, "accepts no value, and is no release PCR"),
        ("min_tpm_firmware = 7", "min_tpm_firmware = -1", 8, "min_tpm_firmware is negative"),
        ("enrollments_per_day = 5", "enrollments_per_day = 0", 9, "is less than 1"),
        ("enrollments_per_day = 5", "enrollment_per_day = 5", 9, "is not a field"),
        ('"id:494e5443"]', '"Intel"]', None, "ek_roots[0].manufacturers[1] is not like id:494E5443"),
        ('["id:00001014", "id:494e5443"]', "[]", None, "is empty: no TPM could pass"),
        ("-----BEGIN CERTIFICATE-----", "-----BEGIN ANYTHING-----", None, "holds no PEM certificate"),
        ("pcr = 4", "pcr = 24", None, "events[0].pcr is not a PCR from 0 to 23"),
        (f'digest = "{VALUE}"', 'digest = "xy"', None, "events[0].digest is not hexadecimal"),
        (f'digest = "{VALUE}"', 'digest = "abcd"', None, "has 2 bytes, not 32 or 48 or 64"),
        ('"0" = [', '"24" = [', None, "pcrs.sha256.24 is not a PCR"),
        ('"0" = [', '"00" = [', None, "pcrs.sha256.00 is not a PCR"),
        ('"0" = [', '"x" = [', None, "pcrs.sha256.x is not a PCR"),
        (f'"0" = ["{VALUE}"]', '"0" = ["abcd"]', None, "pcrs.sha256.0 has 2 bytes, not 32"),
        (f'"0" = ["{VALUE}"]', '"0" = []', None, "pcrs.sha256.0 accepts no value"),
        ("[pcrs.sha384]", "[pcrs.sha1]", 5, "banks[0] has no table [pcrs.sha384]"),
    ],
)
def test_a_wrong_policy_names_its_line(old, new, line, why):
    assert old in TEXT
    changed = TEXT.replace(old, new)
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy(changed)
    assert why in refused.value.actual
    named = int(refused.value.actual.removeprefix("line ").split(":")[0])
    assert named == line if line is not None else named > 9


def test_a_bank_that_never_counts_is_refused():
    only = TEXT.replace('banks = ["sha384", "sha256"]', 'banks = ["sha256"]').replace("[pcrs.sha384]", "[pcrs.sha1]")
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy(only)
    assert "pcrs.sha1 is not sha256" in refused.value.actual


def test_an_empty_selection_is_refused():
    """A quote over nothing proves nothing."""
    lines = ['model = "m"', "[[ek_roots]]", f'certificate = """{pem(ROOT.der)}"""', 'manufacturers = ["id:494E5443"]']
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy("\n".join([*lines, "[pcrs.sha256]"]))
    assert "names no PCR" in refused.value.actual


def test_no_roots_is_refused():
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy(f'model = "m"\nek_roots = []\n[pcrs.sha256]\n"0" = ["{VALUE}"]')
    assert refused.value.actual.startswith("line 2: ek_roots is empty")


def test_a_root_must_be_an_authority():
    text = TEXT.replace(pem(ROOT.der, ROOT.der), pem(ROOT.ek()))
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy(text)
    assert "is not of a certificate authority" in refused.value.actual


def test_a_damaged_root_is_refused():
    for damage in ("AAAA", "AAA"):
        text = TEXT.replace(
            pem(ROOT.der, ROOT.der), f"-----BEGIN CERTIFICATE-----\n{damage}\n-----END CERTIFICATE-----"
        )
        with pytest.raises(PolicyMalformed) as refused:
            parse_policy(text)
        assert "ek_roots[0].certificate is not usable" in refused.value.actual


def test_what_is_no_toml_names_its_line():
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy('model = "gateway"\nbanks = [')
    assert "line 2" in refused.value.actual


def test_a_policy_over_its_cap_is_refused():
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy(TEXT.ljust(POLICY_MOST + 1, "#"))
    assert refused.value.expected == f"at most {POLICY_MOST} characters"
    assert parse_policy(TEXT.ljust(POLICY_MOST, "#"))


def test_manufacturers_are_written_one_way():
    assert normal_manufacturer("ID:494e5443") == "id:494E5443"
    assert normal_manufacturer("intel") == "intel"


def test_lines_of_repeated_tables_are_told_apart():
    text = 'a = 1\n[[t]]\nx = 1\n[[t]]\n"x" = 2\ny.z = 3\n[u.v]\n"0" = 4'
    assert line_of(text, "t[0].x") == 3
    assert line_of(text, "t[1].x") == 5
    assert line_of(text, "t[1].y.z") == 6
    assert line_of(text, "t[1].missing") == 4
    assert line_of(text, "u.v.0") == 8
    assert line_of(text, "nowhere") == 1


@given(st.text(max_size=300))
def test_any_text_is_a_policy_or_refused_by_name(text):
    for candidate in (text, TEXT + text, TEXT.replace("gateway", text)):
        try:
            parse_policy(candidate)
        except PolicyMalformed:
            continue


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000], ids=["a number without end", "nested without end"])
def test_toml_that_pythons_parser_chokes_on_is_refused_by_name(value):
    with pytest.raises(PolicyMalformed):
        parse_policy(f"model = {value}")
