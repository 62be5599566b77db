"""The smallest edit of a policy: applied as text it accepts exactly this evidence, and nothing of it can be left out."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.attestation.explanation import (
    changed,
    edit_of,
    proposals,
    together,
    whole_edit,
    withheld,
)
from provisioning.attestation.explanation_edit import Add, EditImpossible, Put, edited
from provisioning.attestation.explanation_values import value_key
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.rejudging import judge_again, verify_shown
from tests.support.boot_logs import LINE, SHIM, authority, booted, entry, grub, image, signer
from tests.support.shown import FIRMWARE, pcrs_after, stored

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
    except Exception as error:  # an edit that is cut short may be no policy at all
        assert type(error).__name__ == "PolicyMalformed", error
        return False
