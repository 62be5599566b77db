"""The smallest edit of a policy: applied as text it accepts exactly this evidence, and all of it is needed."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.attestation.explanation import (
    PROPOSALS_MOST,
    changed,
    edit_of,
    proposals,
    together,
    whole_edit,
    withheld,
)
from provisioning.attestation.explanation_diff import Measurement, differences
from provisioning.attestation.explanation_edit import EditImpossible, Line, Put, edited
from provisioning.attestation.explanation_ima import unaccepted
from provisioning.attestation.explanation_values import FINDINGS_MOST, pcr_key, shown_digest, shown_values, value_key
from provisioning.attestation.ima import CoveredIma, parse_ima_log
from provisioning.attestation.ima_policy import FileDigest
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.quote import VerifiedPcrs
from provisioning.attestation.rejudging import Shown, judge_again, verify_shown
from provisioning.refusals import Finding, PolicyMalformed
from tests.support.boot_logs import LINE, SHIM, TPM, authority, booted, config, entry, grub, image, separator, signer
from tests.support.shown import FIRMWARE, ima_log_of, pcrs_after, signed_entry, stored

PCRS = tuple(range(11))
EXACT = (0, 1, 2, 3, 5, 6, 9)
FILES = {"/usr/bin/agent": hashlib.sha256(b"agent").digest(), "/usr/lib/a b.so": hashlib.sha256(b"so").digest()}


def exact_policy(happened, files=None, **changes) -> str:
    """Every PCR by its value, written in several ways."""
    values = pcrs_after(happened, files)
    fields = {"model": '"gateway"', "ek_trust": '"key"', "min_tpm_firmware": str(FIRMWARE), **changes}
    lines = [f"{name} = {value}" for name, value in fields.items()] + ["", "[pcrs.sha256]  # the first series"]
    for pcr in PCRS:
        value = values[pcr].hex()
        lines.append(f'{pcr} = ["{value}"]  # one' if pcr % 2 else f'"{pcr}" = [\n    "{value}",  # {pcr}\n]')
    return "\n".join(lines) + "\n"


def rule_policy(happened, files=FILES) -> str:
    """What can be judged by events and files is judged so."""
    values = pcrs_after(happened, files)
    digests = ", ".join(f'"{hashlib.sha256(b"image of " + name).hexdigest()}"' for name in (b"shim", b"grub"))
    words = '["ro", "quiet", "root=UUID=12-ab", "console=ttyS0,115200n8"]'
    lines = ['model = "gateway"', 'ek_trust = "key"', f"min_tpm_firmware = {FIRMWARE}", "[rules]", 'secure_boot = "on"']
    lines += [
        "[rules.signers]",
        'subjects = ["C=XX,CN=Distribution"]',
        "[rules.boot_loaders]",
        f"digests = [{digests}]",
    ]
    lines[-3:-2] = ['subjects = ["C=XX,CN=Distribution", "C=XX,CN=Maker"]']
    lines += ["[[rules.command_line]]", 'kernel = "/boot/vmlinuz-6.1.0"', f"required = {words}"]
    lines += ["[ima]", "files = '''", *(f"{digest.hex()}  {path}" for path, digest in files.items()), "'''"]
    lines += ["[pcrs.sha256]", *(f'"{pcr}" = ["{values[pcr].hex()}"]' for pcr in EXACT)]
    return "\n".join([*lines, *(f'"{pcr}" = []' for pcr in PCRS if pcr not in EXACT)])


def explained(evidence, text, before=None):
    found = proposals(verify_shown(evidence), before and verify_shown(before), parse_policy(text), {})
    return found, whole_edit(text, found, evidence, {})


def passes(evidence, text) -> bool:
    return judge_again(evidence, parse_policy(text), {}).outcome == "pass"


CHANGES = {
    "firmware blob": lambda happened, files: happened.insert(0, entry(0, 0x80000008, b"blob")),
    "image": lambda happened, files: happened.__setitem__(9, image(b"grub 2")),
    "image more": lambda happened, files: happened.append(image(b"kexec")),
    "signer": lambda happened, files: happened.insert(11, authority("Shim", signer("Stranger"), SHIM, owner=b"")),
    "command line": lambda happened, files: happened.append(grub("kernel_cmdline:", LINE + " init=/bin/sh")),
    "secure boot": lambda happened, files: happened.__setitem__(0, booted(secure_boot=b"\0")[0]),
    "file": lambda happened, files: files.update({"/usr/bin/new": hashlib.sha256(b"new").digest()}),
    "file changed": lambda happened, files: files.update({"/usr/bin/agent": hashlib.sha256(b"agent 2").digest()}),
}


def after(*names):
    happened, files = booted(), dict(FILES)
    for name in names:
        CHANGES[name](happened, files)
    return happened, files


@pytest.mark.parametrize("policy", [exact_policy, rule_policy])
def test_what_the_policy_accepts_needs_no_edit(policy):
    text = policy(booted(), FILES)
    evidence = stored(booted(), PCRS, FILES)
    assert passes(evidence, text)
    assert proposals(verify_shown(evidence), None, parse_policy(text), {}) == ()


@settings(deadline=None)
@given(
    names=st.sets(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=4), by_rules=st.booleans(), old=st.booleans()
)
def test_the_edit_accepts_exactly_this_evidence_and_each_part_of_it_is_needed(names, by_rules, old):
    text = (rule_policy if by_rules else exact_policy)(booted(), FILES)
    if old:
        text = text.replace(f"= {FIRMWARE}", f"= {FIRMWARE + 1}")
    happened, files = after(*sorted(names))
    evidence = stored(happened, PCRS, files)
    assert not passes(evidence, text)
    found, edit = explained(evidence, text)
    new = edited(text, together(found))
    assert passes(evidence, new)
    assert edit == edit_of(text, together(found))
    for change in together(found):
        assert not passes_as_edited(evidence, text, [one for one in together(found) if one != change])
    for other in sorted(CHANGES.keys() - names):
        otherwise, more = after(*sorted(names), other)
        if (otherwise, more) != (happened, files) and not ("secure boot" in names and other == "signer" and by_rules):
            assert not passes(stored(otherwise, PCRS, more), new), other


def passes_as_edited(evidence, text, changes) -> bool:
    try:
        return passes(evidence, edited(text, changes))
    except PolicyMalformed:  # an edit that is cut short may be no policy at all
        return False


def test_a_firmware_version_that_is_too_old_is_offered_as_the_least_one():
    text = exact_policy(booted()).replace(f"= {FIRMWARE}", f"= {FIRMWARE + 9}")
    evidence = stored(booted(), PCRS)
    (one,), edit = explained(evidence, text)
    assert (one.what, one.expected, one.actual) == ("firmware", f"at least {FIRMWARE + 9:#x}", f"{FIRMWARE:#x}")
    assert edit.lines == (f"min_tpm_firmware = {FIRMWARE:#x}",)
    assert withheld(one, 3, 3) is None
    assert withheld(one, 2, 3) == "seen on 2 of at least 3 devices"


def test_an_image_in_the_place_of_another_one_is_signed_where_secure_boot_was_on():
    happened, _ = after("image")
    before, evidence = stored(booted(), PCRS), stored(happened, PCRS)
    (one,), _ = explained(evidence, exact_policy(booted()), before)
    assert (one.what, one.judged.signed, withheld(one, 3, 3)) == ("PCR 4", True, None)
    (change,) = one.events
    assert (change.kind, change.now.number, change.before.number) == ("changed", 10, 10)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("image more",), "was added"),
        (("firmware blob",), "nothing signs what PCR 0 measures"),
        (("command line",), "nothing signs what PCR 8 measures"),
        (("signer",), "nothing signs what PCR 7 measures"),
        (("image", "signer"), "PCR 7 is not as the policy wants it"),
    ],
)
def test_what_nobody_signed_is_unsigned_and_says_why(names, why):
    happened, _ = after(*names)
    found, _ = explained(stored(happened, PCRS), exact_policy(booted()), stored(booted(), PCRS))
    assert any(why in one.judged.why for one in found)
    assert all(withheld(one, 1000, 1).startswith("unsigned: ") for one in found)


def test_an_image_is_unsigned_where_nothing_says_what_was_there_before():
    happened, _ = after("image")
    (one,), _ = explained(stored(happened, PCRS), exact_policy(booted()))
    assert not one.judged.signed
    assert "was added" in one.judged.why


def test_an_image_is_judged_by_the_policys_own_list_where_the_device_never_passed():
    happened, _ = after("image")
    listed = [one.measured for one in booted() if one.pcr == 4]
    events = "".join(f'[[events]]\npcr = 4\ndigest = "{hashlib.sha256(one).hexdigest()}"\n' for one in listed)
    (one,), _ = explained(stored(happened, PCRS), exact_policy(booted()) + events)
    assert one.judged.signed


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        ({}, None),
        ({0: booted(secure_boot=b"\0")[0]}, "Secure Boot"),
        ({0: entry(7, 0x80000001, b"no variable")}, "Secure Boot"),
        ({10: config("MokSBState", b"\1", SHIM)}, "Secure Boot"),
        ({0: config("Other", b"\1"), 11: config("SecureBoot", b"\1")}, "Secure Boot"),
        ({0: booted()[0].shown(data=b"SecureBoot")}, "Secure Boot"),
        ({0: booted()[0].shown(data=b"")}, "Secure Boot"),
        ({10: separator(7), 11: separator(7)}, "no certificate"),
        ({10: booted()[10].shown(data=b"x"), 11: booted()[11].shown(data=b"x")}, "Secure Boot"),
    ],
)
def test_secure_boot_has_to_be_on_and_a_certificate_to_vouch(spoiled, why):
    """Both boots are alike in PCR 7, and the policy takes it: only the image differs."""
    accepted, shown = booted(), booted(images=(b"shim", b"grub 2"))
    for number, one in spoiled.items():
        accepted[number] = shown[number] = one
    (one,), _ = explained(stored(shown, PCRS), exact_policy(accepted), stored(accepted, PCRS))
    assert one.what == "PCR 4"
    assert (why is None) == one.judged.signed
    assert why is None or why in one.judged.why


def test_a_listed_image_of_the_rules_is_signed_as_one_of_a_value_is():
    happened, _ = after("image")
    text = rule_policy(booted())
    (one,), edit = explained(stored(happened, PCRS, FILES), text, stored(booted(), PCRS, FILES))
    assert (one.what.startswith("rule boot_loaders, PCR 4"), one.judged.signed) == (True, True)
    assert hashlib.sha256(b"image of grub 2").hexdigest() in edit.lines[0]
    happened, _ = after("image", "signer")
    found, _ = explained(stored(happened, PCRS, FILES), text, stored(booted(), PCRS, FILES))
    assert [one.judged.signed for one in found] == [False, False]


def test_a_quote_without_a_log_is_explained_by_its_values_and_is_unsigned():
    happened, _ = after("image")
    bare = Shown(verify_shown(stored(happened, PCRS)).pcrs, None, None)
    (one,) = proposals(bare, None, parse_policy(exact_policy(booted())), {})
    assert (one.what, one.judged.signed, one.events) == ("PCR 4", False, ())
    assert "no boot log" in one.judged.why


def test_a_release_pcr_takes_the_values_of_its_releases():
    happened, _ = after("image")
    policy = parse_policy(exact_policy(booted(), release_pcrs="[4]"))
    shown = verify_shown(stored(happened, PCRS))
    released = {4: frozenset({pcrs_after(happened)[4]})}
    assert proposals(shown, None, policy, released) == ()
    assert [one.what for one in proposals(shown, None, policy, {})] == ["PCR 4"]


@pytest.mark.parametrize(
    "path",
    [
        f"/a\n{'00' * 32}  /usr/bin/evil",
        f"/a\r{'00' * 32}  /usr/bin/evil",
        f"/a\u2028{'00' * 32}  /usr/bin/evil",
        "/a\x1b[2J",
        "/a\u202e",
        "/a ",
        "a/b",
    ],
)
def test_a_path_that_would_be_more_than_one_path_is_offered_to_nobody(path):
    text, evidence = rule_policy(booted()), stored(booted(), PCRS, {**FILES, path: bytes(32)})
    found = proposals(verify_shown(evidence), None, parse_policy(text), {})
    assert [one.changes for one in found] == [()]
    with pytest.raises(EditImpossible, match="only a person"):
        whole_edit(text, found, evidence, {})


@pytest.mark.parametrize("path", ["/a'''b", '/a"""b', "/a\\", "/a  b", "/*x", "/ä", '/a"'])
def test_a_strange_path_is_one_path(path):
    text = rule_policy(booted()).replace("'''", '"""')
    evidence = stored(booted(), PCRS, {**FILES, path: bytes(32)})
    found, _ = explained(evidence, text)
    new = parse_policy(edited(text, together(found)))
    assert new.ima.files[FileDigest("ima", "sha256", bytes(32))] == {path}


def test_more_unknown_files_than_the_judge_names_are_all_in_the_edit():
    files = {f"/usr/bin/{number}": hashlib.sha256(bytes([number])).digest() for number in range(90)}
    text, evidence = rule_policy(booted()), stored(booted(), PCRS, {**FILES, **files})
    found, edit = explained(evidence, text)
    assert len(edit.lines) == 90
    assert passes(evidence, edited(text, together(found)))


def test_of_very_many_unknown_files_the_first_are_explained_and_no_edit_accepts_all():
    files = {f"/usr/bin/{number}": hashlib.sha256(b"%d" % number).digest() for number in range(300)}
    text, evidence = rule_policy(booted()), stored(booted(), PCRS, {**FILES, **files})
    found = proposals(verify_shown(evidence), None, parse_policy(text), {})
    assert len(found) == PROPOSALS_MOST
    with pytest.raises(EditImpossible, match="no edit of single values"):
        whole_edit(text, found, evidence, {})


def test_a_signature_that_no_key_of_the_policy_made_does_not_make_a_file_signed():
    values = pcrs_after(booted())
    log = ima_log_of(values, {}) + signed_entry("/usr/bin/x", bytes(32), b"\x03\x02\x04" + bytes(4) + b"\0\1x")
    covered = CoveredIma(parse_ima_log(log).entries, "template")
    policy = parse_policy(rule_policy(booted()))
    (one,) = unaccepted(covered, policy.ima, VerifiedPcrs("sha256", values, TPM))
    assert (one.judged.signed, "none of the policy's keys" in one.judged.why) == (False, True)
    assert one.changes == (Line(("ima", "files"), f"sha256:{'00' * 32}  /usr/bin/x"),)


def test_a_violation_is_accepted_by_a_switch_and_never_signed():
    values = pcrs_after(booted())
    log = bytearray(ima_log_of(values, {"/usr/bin/agent": FILES["/usr/bin/agent"]}))
    at = len(ima_log_of(values, {}))
    log[at + 4 : at + 24] = bytes(20)
    covered = CoveredIma(parse_ima_log(bytes(log)).entries, "template")
    (one,) = unaccepted(covered, parse_policy(rule_policy(booted())).ima, VerifiedPcrs("sha256", values, TPM))
    assert (one.changes, one.judged.signed) == ((Put(("ima", "violations"), "accept"),), False)


def test_another_boot_aggregate_and_no_aggregate_at_all_are_told_apart():
    values = pcrs_after(booted())
    policy = parse_policy(rule_policy(booted())).ima
    pcrs = VerifiedPcrs("sha256", {**values, 4: bytes(32)}, TPM)
    other = CoveredIma(parse_ima_log(ima_log_of(values, {})).entries, "template")
    (one,) = unaccepted(other, policy, pcrs)
    assert one.changes == (Put(("ima", "boot_aggregate"), "accept"),)
    files = ima_log_of(values, {"/usr/bin/agent": FILES["/usr/bin/agent"]})[len(ima_log_of(values, {})) :]
    (one,) = unaccepted(CoveredIma(parse_ima_log(files).entries, "template"), policy, pcrs)
    assert one.changes == ()


def test_what_changed_is_told_with_both_sides():
    happened, files = after("image", "file", "file changed")
    found = changed(verify_shown(stored(booted(), PCRS, FILES)), verify_shown(stored(happened, PCRS, files)))
    assert [one.pcr for one in found.pcrs] == [4, 10]
    assert [(one.pcr, one.kind) for one in found.events] == [(4, "changed")]
    told = {one.path: one.before is not None for one in found.files}
    assert told == {"/usr/bin/new": False, "/usr/bin/agent": True, "boot_aggregate": True}
    assert found
    assert not changed(verify_shown(stored(booted(), PCRS)), verify_shown(stored(booted(), PCRS)))


def test_logs_that_have_nothing_in_common_are_compared_in_bounded_time():
    many = [Measurement(bytes([number % 251]) * 32, "") for number in range(4000)]
    found = differences(8, many, [*many[1:], Measurement(b"x" * 32, "")])
    assert len(found) == 4000
    assert {one.kind for one in found} == {"changed"}


def test_an_event_that_moved_is_removed_there_and_added_here():
    one, two, three = (Measurement(bytes([number]) * 32, "") for number in range(3))
    assert [change.kind for change in differences(4, [one, two, three], [two, three, one])] == ["removed", "added"]
    assert differences(4, [one, two], [one, two]) == []


def test_the_same_value_has_one_hash_whatever_its_place_in_the_log():
    assert value_key("rule signers, PCR 7, event 12", "x") == value_key("rule signers, PCR 7, event 3", "x")
    assert value_key("IMA, entry 9", "x") == value_key("IMA, entry 10", "x")
    assert value_key("PCR 4", "x") != value_key("PCR 14", "x")
    assert value_key("a", "b c") != value_key("a b", "c")
    assert value_key("PCR 4", "00" * 32) == pcr_key(4, bytes(32))


def test_what_is_shown_is_counted_once_and_findings_are_bounded():
    pcrs = VerifiedPcrs("sha256", {4: bytes(32), 5: bytes(32)}, TPM)
    findings = tuple(Finding(f"IMA, entry {number}", "", f"/{number}") for number in range(FINDINGS_MOST + 9))
    assert len(shown_values(pcrs, findings)) == 2 + 1 + FINDINGS_MOST
    assert shown_digest(pcrs, ()) != shown_digest(pcrs, findings[:1])
    assert shown_digest(pcrs, ()) != shown_digest(VerifiedPcrs("sha384", pcrs.values, TPM), ())
    assert shown_digest(pcrs, ()) != shown_digest(VerifiedPcrs("sha256", {4: bytes(32)}, TPM), ())
    assert shown_digest(pcrs, ()) == shown_digest(VerifiedPcrs("sha256", dict(pcrs.values), TPM), ())
