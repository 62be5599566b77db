"""Stored evidence under another policy: what is verified again, what refuses it, and what cannot be said of it."""

import hashlib
import json
from dataclasses import replace

import pytest

from provisioning.attestation.policy import parse_policy
from provisioning.attestation.rejudging import StoredEvidence, judge_again, verify_shown, verify_stored_quote
from provisioning.refusals import (
    BootLogDoesNotReplay,
    BootLogMalformed,
    EventRuleBroken,
    ImaLogDoesNotReplay,
    ImaLogMalformed,
    ImaNotAccepted,
    PcrsNotAccepted,
    PcrValuesNotQuoted,
    Refusal,
    RequestMalformed,
    SignatureWrong,
    TpmFirmwareRefused,
)
from tests.support.boot_logs import booted, entry, log_of
from tests.support.shown import FIRMWARE, pcrs_after, stored
from wire.codec import b64url, unb64url

PCRS = tuple(range(11))
FILES = {"/usr/bin/agent": hashlib.sha256(b"agent").digest()}
WRONG = bytes([1]) * 32
LISTED = f"[ima]\nfiles = '''\n{FILES['/usr/bin/agent'].hex()}  /usr/bin/agent\n'''\n"


def policy(*, values=None, pcrs=PCRS, more="", **changes):
    """The values of a good boot, or others, for these PCRs."""
    known = pcrs_after(booted(), FILES) | (values or {})
    fields = {"model": '"gateway"', "ek_trust": '"key"', **changes}
    lines = [*(f"{name} = {value}" for name, value in fields.items()), more, "[pcrs.sha256]"]
    lines += [f'"{pcr}" = ["{known[pcr].hex()}"]' for pcr in pcrs]
    return parse_policy("\n".join(lines) + "\n")


def evidence(pcrs=PCRS, *, files=FILES, happened=None):
    return stored(happened or booted(), pcrs, files)


def names(verdict):
    return [type(refusal) for refusal in verdict.refusals]


def test_evidence_that_the_policy_accepts_passes():
    verdict = judge_again(evidence(), policy(), {})
    assert (verdict.outcome, verdict.refusals, verdict.lacks) == ("pass", (), ())


def test_every_value_that_the_policy_refuses_is_named():
    verdict = judge_again(evidence(), policy(values={0: WRONG, 4: WRONG}), {})
    assert (verdict.outcome, names(verdict)) == ("fail", [PcrsNotAccepted])
    assert [finding.what for finding in verdict.refusals[0].findings] == ["PCR 0", "PCR 4"]


@pytest.mark.parametrize(
    "fields", [{"mode": '"monitor"'}, {"mode": '"learn"', "learn_from": '["serial"]'}], ids=["monitor", "learn"]
)
def test_a_softer_mode_is_judged_as_if_it_were_enforced(fields):
    assert names(judge_again(evidence(), policy(values={0: WRONG}, **fields), {})) == [PcrsNotAccepted]


def test_values_of_a_release_count_for_its_pcrs():
    judged = policy(values={8: WRONG, 9: WRONG}, release_pcrs="[8, 9]")
    shown = pcrs_after(booted(), FILES)
    assert judge_again(evidence(), judged, {8: {shown[8]}, 9: {shown[9]}}).outcome == "pass"
    assert judge_again(evidence(), judged, {8: {shown[8]}}).outcome == "fail"


def test_what_the_policy_asks_for_and_the_quote_does_not_cover_is_not_judged():
    verdict = judge_again(evidence(tuple(range(8)), files=None), policy(pcrs=range(10)), {})
    assert (verdict.outcome, verdict.lacks) == ("unjudged", ("PCR 8 in the quote", "PCR 9 in the quote"))


def test_what_is_refused_is_refused_whatever_else_is_missing():
    verdict = judge_again(evidence((0, 1), files=None), policy(pcrs=(1, 2), values={1: WRONG}), {})
    assert (verdict.outcome, verdict.lacks, names(verdict)) == ("fail", ("PCR 2 in the quote",), [PcrsNotAccepted])


def test_pcrs_that_the_policy_does_not_ask_for_are_passed_over():
    assert judge_again(evidence(), policy(pcrs=(0, 4)), {}).outcome == "pass"


def test_a_quote_of_which_the_policy_asks_for_nothing_is_judged_by_its_firmware_alone():
    judged = policy(pcrs=(3,))
    assert judge_again(evidence((0,), files=None), judged, {}).outcome == "unjudged"
    newer = policy(pcrs=(3,), min_tpm_firmware=str(FIRMWARE + 1))
    assert names(judge_again(evidence((0,), files=None), newer, {})) == [TpmFirmwareRefused]


def test_an_older_firmware_is_refused_beside_what_was_booted():
    newer = policy(values={0: WRONG}, min_tpm_firmware=str(FIRMWARE + 1))
    verdict = judge_again(evidence(), newer, {})
    assert names(verdict) == [TpmFirmwareRefused]
    assert [finding.what for finding in verdict.refusals[0].findings] == ["firmware", "PCR 0"]


def test_a_quote_over_another_bank_is_not_judged():
    text = f'model = "m"\nek_trust = "key"\nbanks = ["sha384"]\n[pcrs.sha384]\n0 = ["{"0" * 96}"]\n'
    verdict = judge_again(evidence(), parse_policy(text), {})
    assert (verdict.outcome, verdict.lacks) == ("unjudged", ("a quote over sha384: it is over sha256",))


def never_named(stored, log):
    """The evidence of a device that had no such log."""
    message = json.loads(stored.message)
    message.pop(log, None)
    return replace(stored, message=json.dumps(message).encode())


# --- logs ---------------------------------------------------------------------------------------------------------


def test_a_boot_log_that_is_asked_for_and_was_not_kept_is_not_judged():
    without = replace(evidence(), boot_log=None)
    assert judge_again(without, policy(), {}).lacks == ("a boot log: removed by retention",)
    assert judge_again(never_named(without, "boot_log_sha256"), policy(), {}).lacks == ("a boot log",)
    assert judge_again(without, policy(boot_log='"optional"'), {}).outcome == "pass"


def test_a_boot_log_is_replayed_again_where_the_policy_reads_it():
    other = log_of([*booted(), entry(0, 0x80000008, b"more")])
    swapped = replace(evidence(), boot_log=other)
    assert names(judge_again(swapped, policy(), {})) == [BootLogMalformed]  # not the log that the evidence named
    message = json.loads(swapped.message)
    message["boot_log_sha256"] = b64url(hashlib.sha256(other).digest())
    told = replace(swapped, message=json.dumps(message).encode())
    assert names(judge_again(told, policy(), {})) == [BootLogDoesNotReplay]
    assert judge_again(told, policy(boot_log='"none"'), {}).outcome == "pass"


def test_event_rules_are_judged_and_need_the_log():
    judged = policy(more='[rules]\nsecure_boot = "on"')
    assert judge_again(evidence(), judged, {}).outcome == "pass"
    assert judge_again(replace(evidence(), boot_log=None), judged, {}).lacks == ("a boot log: removed by retention",)
    off = booted(secure_boot=b"\0")
    values = {7: pcrs_after(off, FILES)[7], 10: pcrs_after(off, FILES)[10]}
    again = judge_again(evidence(happened=off), policy(values=values, more='[rules]\nsecure_boot = "on"'), {})
    assert names(again) == [EventRuleBroken]


def test_files_are_judged_and_need_the_log():
    judged = policy(more=LISTED)
    assert judge_again(evidence(), judged, {}).outcome == "pass"
    without = replace(evidence(), ima_log=None)
    assert (judge_again(without, judged, {}).outcome, judge_again(without, judged, {}).lacks) == (
        "unjudged",
        ("an IMA log: removed by retention",),
    )
    assert judge_again(never_named(without, "ima_log_sha256"), judged, {}).lacks == ("an IMA log",)
    more = {**FILES, "/tmp/x": hashlib.sha256(b"x").digest()}
    values = {10: pcrs_after(booted(), more)[10]}
    assert names(judge_again(evidence(files=more), policy(values=values, more=LISTED), {})) == [ImaNotAccepted]


def test_a_log_that_may_be_missing_is_not_missed():
    judged = policy(ima_log='"optional"')
    assert judge_again(replace(evidence(), ima_log=None), judged, {}).outcome == "pass"


def test_an_ima_log_is_replayed_again():
    judged, shown = policy(more=LISTED), evidence()
    assert names(judge_again(replace(shown, ima_log=shown.ima_log[:-1]), judged, {})) == [ImaLogMalformed]
    message = json.loads(shown.message)
    other = evidence(files={"/usr/bin/other": WRONG}).ima_log
    message["ima_log_sha256"] = b64url(hashlib.sha256(other).digest())
    swapped = replace(shown, message=json.dumps(message).encode(), ima_log=other)
    assert names(judge_again(swapped, judged, {})) == [ImaLogDoesNotReplay]


def test_pcrs_that_are_still_learned_are_not_judged():
    text = 'model = "m"\nek_trust = "key"\nmode = "learn"\nlearn_from = ["a"]\n[pcrs.sha256]\n0 = []\n'
    verdict = judge_again(evidence(), parse_policy(text), {})
    assert (verdict.outcome, verdict.lacks) == ("unjudged", ("values of PCR 0 in the policy",))


# --- the evidence itself ------------------------------------------------------------------------------------------


def tampered(**changes):
    message = json.loads(evidence().message)
    for path, change in changes.items():
        part, _, field = path.partition("_")
        message[part][field] = change(message[part][field])
    return replace(evidence(), message=json.dumps(message).encode())


def flipped(text):
    data = bytearray(unb64url(text))
    data[-1] ^= 1
    return b64url(bytes(data))


@pytest.mark.parametrize(
    ("stored_", "refusal"),
    [
        (tampered(quote_attest=flipped), SignatureWrong),
        (tampered(quote_signature=flipped), SignatureWrong),
        (tampered(pcrs_sha256=lambda values: values | {"0": b64url(WRONG)}), PcrValuesNotQuoted),
        (tampered(pcrs_sha256=lambda _: {}), PcrValuesNotQuoted),
        (replace(evidence(), message=b"{}"), RequestMalformed),
        (replace(evidence(), message=b"\xff"), RequestMalformed),
        (
            replace(evidence(), message=evidence().message.replace(b'"pcrs":{', b'"pcrs":{"sha1":{},')),
            PcrValuesNotQuoted,
        ),
    ],
    ids=["quote", "signature", "value", "no values", "nothing", "no text", "two banks"],
)
def test_bytes_that_were_written_to_prove_nothing(stored_: StoredEvidence, refusal):
    verdict = judge_again(stored_, policy(), {})
    assert (verdict.outcome, len(names(verdict))) == ("fail", 1)
    assert issubclass(names(verdict)[0], Refusal)
    assert names(verdict) == [refusal] or names(verdict)[0].__name__ == "PcrSelectionWrong"
    with pytest.raises(Refusal):
        verify_shown(stored_)


def test_what_is_shown_is_the_quote_and_both_logs():
    shown = verify_shown(evidence())
    assert dict(shown.pcrs.values) == {pcr: pcrs_after(booted(), FILES)[pcr] for pcr in PCRS}
    assert len(shown.log.events) > len(booted()) - 1
    assert [e.number for e in shown.ima.entries] == [0, 1]
    assert verify_stored_quote(evidence()).tpm.firmware_version == FIRMWARE


def test_what_was_not_kept_or_not_quoted_is_not_shown():
    shown = verify_shown(replace(evidence((0, 1)), boot_log=None))
    assert (shown.log, shown.ima) == (None, None)
