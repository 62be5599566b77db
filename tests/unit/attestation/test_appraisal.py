"""Appraisal: what a policy's mode softens, and what it never does."""

import hashlib
from dataclasses import replace
from types import MappingProxyType

import pytest

from provisioning.attestation.appraisal import appraise
from provisioning.attestation.ima import CoveredIma, ImaEntry
from provisioning.attestation.ima_policy import FileDigest, ImaPolicy
from provisioning.attestation.policy import Policy
from provisioning.attestation.rules import SecureBootOn
from provisioning.refusals import (
    EventRuleBroken,
    Finding,
    ImaLogMissing,
    ImaNotAccepted,
    PcrsNotAccepted,
    Refusal,
    TpmFirmwareRefused,
)
from tests.support.boot_logs import booted, quoted, replayed

HAPPENED = booted(secure_boot=b"\x00")
GOOD = booted()
PCRS = (4, 7, 10)
FILE = hashlib.sha256(b"file").digest()


def sized(data):
    return len(data).to_bytes(4, "little") + data


def covered(*paths):
    entries = []
    for number, path in enumerate(("boot_aggregate", *paths)):
        data = sized(b"sha256:\0" + FILE) + sized(path.encode() + b"\0")
        entries.append(ImaEntry(number, 10, hashlib.sha256(data).digest(), "ima-ng", data))
    return CoveredIma(tuple(entries), "template")


def values(entries):
    shown = quoted(entries, PCRS).values
    return MappingProxyType({"sha256": MappingProxyType({4: frozenset({shown[4]}), 7: frozenset(), 10: frozenset()})})


POLICY = Policy(
    model="gateway",
    software_tpm=True,
    expired_ek="refuse",
    banks=("sha256",),
    boot_log="required",
    release_pcrs=frozenset(),
    min_tpm_firmware=7,
    enrollments_per_day=20,
    ek_roots=(),
    pcrs=values(GOOD),
    events=(),
    rules=(SecureBootOn(),),
    ima=ImaPolicy(MappingProxyType({FileDigest("ima", "sha256", FILE): frozenset({"/good"})}), boot_aggregate="accept"),
    ima_log="required",
)
ALL_WRONG = replace(POLICY, min_tpm_firmware=8, pcrs=values(booted(images=(b"other",))))


def judge(policy, happened=GOOD, ima=None, **given):
    pcrs = quoted(happened, PCRS)
    log = replayed(happened, pcrs)
    return appraise(pcrs, log, covered("/good") if ima is None else ima, policy, {}, **given)


def test_what_the_policy_accepts_leaves_no_finding():
    assert judge(POLICY) == ()


@pytest.mark.parametrize(
    ("refusal", "policy", "happened", "ima"),
    [
        (TpmFirmwareRefused, replace(POLICY, min_tpm_firmware=8), GOOD, None),
        (PcrsNotAccepted, replace(POLICY, pcrs=values(booted(images=(b"other",)))), GOOD, None),
        (EventRuleBroken, POLICY, HAPPENED, None),
        (ImaNotAccepted, POLICY, GOOD, covered("/evil")),
    ],
)
def test_each_part_refuses_by_its_own_name_and_monitor_reports_it(refusal, policy, happened, ima):
    with pytest.raises(refusal) as refused:
        judge(policy, happened, ima)
    assert len(refused.value.findings) == 1
    assert not refused.value.findings[0].refused
    found = judge(replace(policy, mode="monitor"), happened, ima)
    assert found == tuple(replace(one, refused=True) for one in refused.value.findings)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(TpmFirmwareRefused) as refused:
        judge(ALL_WRONG, HAPPENED, covered("/evil"))
    assert [finding.what for finding in refused.value.findings] == [
        *("firmware", "PCR 4", "rule secure_boot, PCR 7, event 1", "IMA, entry 1"),
    ]


def test_learning_lets_pass_whom_the_operator_named_and_nobody_else():
    policy = replace(ALL_WRONG, mode="learn", learn_from=("gw-1", "SN-2"))
    for device in (("gw-1", "SN-1"), ("gw-2", "SN-2")):
        found = judge(policy, HAPPENED, covered("/evil"), device=device)
        assert len(found) == 4
        assert all(finding.refused for finding in found)
    for device in ((), ("gw-3", "SN-3"), ("gw", "SN"), ("",)):
        with pytest.raises(TpmFirmwareRefused):
            judge(policy, HAPPENED, covered("/evil"), device=device)


def test_a_name_in_learn_from_counts_in_no_other_mode():
    with pytest.raises(TpmFirmwareRefused):
        judge(replace(ALL_WRONG, learn_from=("gw-1",)), device=("gw-1",))


def test_what_was_not_judged_is_told_and_would_not_be_refused():
    policy = replace(POLICY, pcrs=MappingProxyType({"sha256": MappingProxyType({7: frozenset(), 10: frozenset()})}))
    for mode in ("enforce", "monitor"):
        assert [(f.what, f.refused) for f in judge(replace(policy, mode=mode))] == [("PCR 4", False)]


def test_a_pcr_without_values_that_no_rule_judges_is_refused():
    """Also while it is learned: for everybody but the devices that it is learned from."""
    bare = replace(POLICY, rules=(), mode="learn", learn_from=("gw-1",))
    with pytest.raises(PcrsNotAccepted) as refused:
        judge(bare, device=("gw-2",))
    assert [finding.what for finding in refused.value.findings] == ["PCR 7"]
    assert [finding.refused for finding in judge(bare, device=("gw-1",))] == [True]


def test_a_pcr_with_values_needs_one_of_them_whatever_rules_say():
    pcrs = MappingProxyType({"sha256": MappingProxyType({**POLICY.pcrs["sha256"], 7: frozenset({b"\1" * 32})})})
    with pytest.raises(PcrsNotAccepted):
        judge(replace(POLICY, pcrs=pcrs))


def test_a_release_pcr_needs_the_releases_values_whatever_rules_say():
    policy = replace(POLICY, release_pcrs=frozenset({7}))
    with pytest.raises(PcrsNotAccepted):
        judge(policy)
    pcrs = quoted(GOOD, PCRS)
    released = {7: frozenset({pcrs.values[7]})}
    assert appraise(pcrs, replayed(GOOD, pcrs), covered("/good"), policy, released) == ()


def test_rules_are_not_judged_by_events_of_a_pcr_that_was_not_quoted():
    """The log replayed to the quoted PCRs alone: of the others it says what it likes."""
    pcrs = quoted(HAPPENED, (4, 10))
    forged = replayed([*HAPPENED[8:], *GOOD[:8]], replace(pcrs, values={10: pcrs.values[10]}))
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(pcrs, forged, covered("/good"), POLICY, {})
    assert [finding.what for finding in refused.value.findings] == ["PCR 7", "rule secure_boot, PCR 7"]
    assert refused.value.findings[1].actual == "not quoted"


def test_rules_need_a_log():
    with pytest.raises(EventRuleBroken) as refused:
        appraise(quoted(GOOD, PCRS), None, covered("/good"), POLICY, {})
    assert refused.value.findings[0].actual == "none was sent"


def test_ima_needs_a_log():
    pcrs = quoted(GOOD, PCRS)
    with pytest.raises(ImaLogMissing):
        appraise(pcrs, replayed(GOOD, pcrs), None, POLICY, {})
    assert appraise(pcrs, replayed(GOOD, pcrs), None, replace(POLICY, ima=None), {}) == ()


def test_another_bank_is_refused_whole():
    pcrs = quoted(GOOD, PCRS, "sha384")
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(pcrs, replayed(GOOD, pcrs), covered("/good"), POLICY, {})
    assert refused.value.actual == "every PCR"


def test_refusals_say_what_was_expected_and_name_what_was_wrong():
    def refusal(policy, happened=GOOD, ima=None):
        with pytest.raises(Refusal) as refused:
            judge(policy, happened, ima)
        return refused.value.expected, refused.value.actual, refused.value.findings

    firmware = Finding("firmware", "at least 0x8", "0x7", TpmFirmwareRefused.cure)
    assert refusal(replace(POLICY, min_tpm_firmware=8)) == ("at least 0x8", "0x7", (firmware,))
    assert refusal(POLICY, HAPPENED)[:2] == ("the rules of the policy", "rule secure_boot")
    shown = f"/evil sha256:{FILE.hex()}, no signature"
    assert refusal(POLICY, ima=covered("/evil", "/worse"))[:2] == ("the files of the policy", shown)
    assert refusal(replace(POLICY, pcrs=values(booted(images=(b"x",)))))[:2] == ("the values of the policy", "PCR 4")


def test_what_is_missing_is_named():
    pcrs, narrow = quoted(GOOD, PCRS), quoted(GOOD, (4, 10))
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(narrow, replayed(GOOD, narrow), covered("/good"), POLICY, {})
    assert refused.value.findings == (
        Finding("PCR 7", "to be quoted", "not quoted"),
        Finding("rule secure_boot, PCR 7", "to be quoted", "not quoted"),
    )
    with pytest.raises(EventRuleBroken) as refused:
        appraise(pcrs, None, covered("/good"), POLICY, {})
    assert refused.value.findings == (Finding("rule secure_boot, PCR 7", "a boot log", "none was sent"),)
    with pytest.raises(ImaLogMissing) as refused:
        appraise(pcrs, replayed(GOOD, pcrs), None, POLICY, {})
    assert refused.value.findings == (Finding("IMA", "an IMA log", "none was sent", ImaLogMissing.cure),)
    assert (refused.value.expected, refused.value.actual) == ("an IMA log", "none was sent")
    unjudged = replace(POLICY, pcrs=MappingProxyType({"sha256": MappingProxyType({7: frozenset(), 10: frozenset()})}))
    assert judge(unjudged) == (Finding("PCR 4", "a value in the policy", "none"),)
