"""Modes, groups, event rules and IMA in a policy's text: a whole one or none, and the line that is wrong."""

import pytest

from provisioning.attestation.policy import parse_policy
from provisioning.attestation.rules import (
    BootLoadersListed,
    CommandLineMatches,
    LineForm,
    SecureBootOn,
    SignersListed,
)
from provisioning.refusals import PolicyMalformed

VALUE = "ab" * 32
TEXT = f'''model = "gateway"
group = "edge"
mode = "learn"
learn_from = ["gw-1", "SN 2"]
ek_trust = "key"
ima_log = "required"
explain_least = 5
attest_every = 3600
silent_after = 2
on_clone = "revoke"
on_failure = "refuse"
banks = ["sha256"]

[rules]
secure_boot = "on"

[rules.signers]
sha256 = ["{"11" * 32}"]
subjects = ["CN=Maker"]

[rules.boot_loaders]
digests = ["{"22" * 32}", "{"33" * 48}"]
first = 2

[[rules.command_line]]
kernel = "/boot/vmlinuz-*"
required = ["ro"]
allowed = ["quiet", "console=*"]
commands = ["tuned"]

[[rules.command_line]]
kernel = "/boot/rescue"
allowed = ["single"]

[[rules.command_line]]
by = "stub"
required = ["ro"]

[ima]
files = """
{"44" * 32}  /bin/sh
"""
excludes = ["/var/log/*"]

[pcrs.sha256]
0 = ["{VALUE}"]
1 = []
2 = []
3 = []
4 = []
5 = []
6 = []
7 = []
8 = []
9 = []
10 = []
12 = []
'''


def refused(text):
    with pytest.raises(PolicyMalformed) as found:
        parse_policy(text)
    return found.value.actual


def test_all_of_it_is_read():
    policy = parse_policy(TEXT)
    assert (policy.group, policy.mode, policy.learn_from) == ("edge", "learn", ("gw-1", "SN 2"))
    assert (policy.explain_least, policy.attest_every, policy.silent_after) == (5, 3600, 2)
    assert (policy.on_clone, policy.on_failure) == ("revoke", "refuse")
    forms = (LineForm(("ro",), ("quiet", "console=*"), "/boot/vmlinuz-*"), LineForm((), ("single",), "/boot/rescue"))
    assert policy.rules == (
        SecureBootOn(),
        SignersListed(frozenset({b"\x11" * 32}), frozenset({"CN=Maker"})),
        BootLoadersListed(frozenset({b"\x22" * 32, b"\x33" * 48}), 2),
        CommandLineMatches(8, "grub", forms, frozenset({"tuned"})),
        CommandLineMatches(12, "stub", (LineForm(("ro",)),)),
    )
    assert policy.ima is not None
    assert policy.ima.excludes == ("/var/log/*",)
    assert (policy.ima.boot_aggregate, policy.ima.violations, policy.ima.sha1_template) == ("check", "refuse", "refuse")
    assert policy.judged_by_rules == {*range(11), 12}


def test_what_is_not_said_is_strict():
    policy = parse_policy(f'model = "m"\nek_trust = "key"\n[pcrs.sha256]\n0 = ["{VALUE}"]')
    assert (policy.mode, policy.group, policy.learn_from, policy.rules, policy.ima) == ("enforce", None, (), (), None)
    assert (policy.ima_log, policy.explain_least, policy.attest_every, policy.silent_after) == ("none", 3, 86400, 3)
    assert (policy.on_clone, policy.on_failure) == ("quarantine", "quarantine")
    assert policy.judged_by_rules == frozenset()


def test_ima_asks_for_its_log():
    assert parse_policy(TEXT.replace('ima_log = "required"\n', "")).ima_log == "required"


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ('group = "edge"', 'group = "The edge"', 2, "group is not"),
        ('mode = "learn"', 'mode = "warn"', 3, "mode is not one of learn, monitor, enforce"),
        ('learn_from = ["gw-1", "SN 2"]', "learn_from = []", 4, 'mode = "learn" needs devices'),
        ('ima_log = "required"', 'ima_log = "optional"', 6, 'is not "required": [ima] reads it'),
        ('ima_log = "required"', 'ima_log = "none"', 6, 'is not "required": [ima] reads it'),
        ('ima_log = "required"', 'boot_log = "optional"', 6, 'boot_log is not "required": [rules] read it'),
        ("explain_least = 5", "explain_least = 0", 7, "explain_least is less than 1"),
        ("attest_every = 3600", "attest_every = 59", 8, "attest_every is not 0, nor 60 to"),
        ("attest_every = 3600", "attest_every = -1", 8, "attest_every is not 0"),
        ("silent_after = 2", "silent_after = 0", 9, "silent_after is less than 1"),
        ('on_clone = "revoke"', 'on_clone = "ignore"', 10, "on_clone is not one of"),
        ('on_failure = "refuse"', 'on_failure = "pass"', 11, "on_failure is not one of"),
        ('secure_boot = "on"', 'secure_boot = "off"', 15, "rules.secure_boot is not one of on"),
        ('secure_boot = "on"', "", 17, "rules.signers needs secure_boot"),
        (f'sha256 = ["{"11" * 32}"]\nsubjects = ["CN=Maker"]', "", 17, "names no signer"),
        (f'sha256 = ["{"11" * 32}"]', 'sha256 = ["11"]', 18, "has 1 bytes, not 32"),
        ('subjects = ["CN=Maker"]', 'subjects = [" "]', 19, "rules.signers.subjects[0] is empty"),
        (f'digests = ["{"22" * 32}", "{"33" * 48}"]', "digests = []", 22, "is empty"),
        ("first = 2", "first = -1", 23, "rules.boot_loaders.first is negative"),
        ('kernel = "/boot/vmlinuz-*"', "", 25, "rules.command_line[0].kernel is GRUB's first word"),
        ('kernel = "/boot/vmlinuz-*"', 'kernel = "/boot/*/vmlinuz-*"', 26, "has more than one *"),
        ('required = ["ro"]\nallowed', 'required = ["ro root=x"]\nallowed', 27, "is not one word"),
        ('"console=*"', '"*"', 28, "is * alone"),
        ('"console=*"', '"console=\\u00e4"', 28, "is not one word"),
        ('"console=*"', '""', 28, "is not one word"),
        ('commands = ["tuned"]', 'commands = ["a b"]', 29, "is not a name of GRUB's"),
        ('allowed = ["single"]', "", 31, "rules.command_line[1] accepts no word"),
        ('by = "stub"\n', 'by = "stub"\npcr = 24\n', 37, "is not a PCR from 0 to 23"),
        ('by = "stub"\n', 'by = "stub"\npcr = 8\n', 36, "is not what the other forms of PCR 8 say"),
        ('by = "stub"\n', 'by = "stub"\nkernel = "/x"\n', 37, "is GRUB's first word"),
        ('by = "stub"\n', 'by = "stub"\ncommands = ["x"]\n', 37, "are GRUB's alone"),
        ('by = "stub"\n', 'by = "lilo"\n', 36, "is not one of grub, stub"),
        (f"{'44' * 32}  /bin/sh", "44", 40, "in its line 1 has no digest of SHA-256"),
        ('excludes = ["/var/log/*"]', 'excludes = ["*"]', 43, "is neither an absolute path"),
        ("12 = []\n", "", 45, 'does not select PCR 12, for command_line of [rules]: add "12" = []'),
        ("\n10 = []\n", "\n", 45, "does not select PCR 10, for the IMA log"),
        ("\n9 = []\n", "\n", 45, "does not select PCR 9, for boot_aggregate of [ima]"),
    ],
)
def test_a_wrong_text_names_its_line(old, new, line, why):
    assert TEXT.count(old) == 1
    actual = refused(TEXT.replace(old, new))
    assert why in actual
    assert actual.startswith(f"line {line}:")


def test_a_pcr_without_values_is_one_that_rules_judge():
    base = 'model = "m"\nek_trust = "key"\n{}\n[pcrs.sha256]\n7 = []\n4 = ["' + VALUE + '"]\n{}'
    why = "pcrs.sha256.7 accepts no value, and is no release PCR, and no rule judges it"
    assert why in refused(base.format("", ""))
    assert parse_policy(base.format('[rules]\nsecure_boot = "on"', "")).pcrs["sha256"][7] == frozenset()
    assert why in refused(base.format('ima_log = "required"', "10 = []"))
    assert parse_policy(
        base.format('[rules]\nsecure_boot = "on"\n', "").replace("ek_trust", 'ima_log="optional"\nek_trust') + "10 = []"
    )
    assert parse_policy(base.format('mode = "learn"\nlearn_from = ["a"]', ""))
    for mode in ("monitor", "enforce"):
        assert why in refused(base.format(f'mode = "{mode}"\nlearn_from = ["a"]', ""))


def test_a_boot_aggregate_that_is_not_checked_reads_no_pcrs():
    text = f'model = "m"\nek_trust = "key"\n[ima]\nfiles = "{VALUE}"\n[pcrs.sha256]\n0 = ["{VALUE}"]\n10 = []\n'
    assert "does not select PCR 1, for boot_aggregate" in refused(text)
    accepts = text.replace("[ima]", '[ima]\nboot_aggregate = "accept"')
    assert parse_policy(accepts).judged_by_rules == {10}
    assert "pcrs.sha256.0 accepts no value" in refused(accepts.replace(f'0 = ["{VALUE}"]', "0 = []"))


def test_command_lines_need_a_boot_loader_that_measures_them():
    """Whoever starts a loader of his own can write any command line into the PCR behind it."""
    rules = '[[rules.command_line]]\nkernel = "/k"\nrequired = ["ro"]\n'
    text = f'model = "m"\nek_trust = "key"\n{rules}[pcrs.sha256]\n8 = []\n'
    assert "has no values of PCR 4, and there are no boot_loaders" in refused(text)
    assert parse_policy(f'{text}4 = ["{VALUE}"]\n')
    loaders = f'[rules.boot_loaders]\ndigests = ["{VALUE}"]\n'
    assert parse_policy(text.replace("[[rules", f"{loaders}[[rules") + "4 = []\n")


def test_every_bank_selects_what_the_rules_read():
    banks = f'[pcrs.sha256]\n7 = []\n[pcrs.sha384]\n0 = ["{"ab" * 48}"]\n'
    text = f'model = "m"\nek_trust = "key"\n[rules]\nsecure_boot = "on"\n{banks}'
    assert "pcrs.sha384 does not select PCR 7, for secure_boot of [rules]" in refused(text)
    assert parse_policy(text + "7 = []\n")


def test_attestation_may_be_on_demand_alone():
    text = f'model = "m"\nek_trust = "key"\nattest_every = 0\n[pcrs.sha256]\n0 = ["{VALUE}"]'
    assert parse_policy(text).attest_every == 0


@pytest.mark.parametrize(
    "line", ["[" + " " * 300_000, " " * 300_000 + "x", "[[" + " a" * 150_000, "a." * 150_000 + " "]
)
def test_a_long_line_in_a_text_costs_its_length_where_a_mistake_is_looked_for(line):
    """Ten thousand blanks behind a bracket took minutes, and the loop stood still. Any operator may propose."""
    with pytest.raises(PolicyMalformed) as found:
        parse_policy(f'model = "m"\nx = """\n{line}\n"""\n')
    assert found.value.actual == "line 1: pcrs is missing"
