"""What findings of rules and IMA say, word by word: `explain` and people read them."""

import hashlib

import pytest

from provisioning.attestation.rules import CommandLineMatches, LineForm, SecureBootOn
from provisioning.attestation.rules_judge import judge_rules
from provisioning.refusals import Finding
from tests.support.boot_logs import (
    LINE,
    SHIM,
    action,
    authority,
    booted,
    config,
    entry,
    grub,
    quoted,
    replayed,
    separator,
    signer,
    variable,
)
from tests.unit.attestation import test_ima_policy as ima
from tests.unit.attestation.test_rules import BOOT_LOADERS, COMMAND_LINE, FORM, SIGNERS

SECURE_BOOT = SecureBootOn()
EVIL = hashlib.sha256(b"image of evil").hexdigest()
ADD_SIGNER = "Add its SHA-256 to sha256 of [rules.signers], if this signer is meant."
ADD_WORDS = "Add the words that are meant to the form."


def findings(rule, happened):
    return judge_rules((rule,), replayed(happened, quoted(happened, tuple(range(24)))), "sha256")


def boot(*more, **changes):
    return [*booted(**changes), *more]


LATE = len(booted()) + 1
"""The number of the first event behind a whole boot."""
NAMELESS = hashlib.sha256(b"\x30\x82").hexdigest()


@pytest.mark.parametrize(
    ("rule", "happened", "told"),
    [
        (
            SECURE_BOOT,
            boot(secure_boot=b"\0"),
            Finding(
                "rule secure_boot, PCR 7, event 1",
                "SecureBoot is on",
                "it is 00",
                "Switch Secure Boot on in the firmware's settings.",
            ),
        ),
        (
            SECURE_BOOT,
            [config("SecureBoot", b"\1")],
            Finding("rule secure_boot, PCR 7", "a separator that ends the firmware's part", "none"),
        ),
        (
            SECURE_BOOT,
            [separator(7)],
            Finding("rule secure_boot, PCR 7", "the variable SecureBoot once", "0 times"),
        ),
        (
            SECURE_BOOT,
            [separator(7), config("SecureBoot", b"\1")],
            Finding(
                "rule secure_boot, PCR 7, event 2",
                "SecureBoot before the separator",
                "behind it: not the firmware's word",
            ),
        ),
        (
            SECURE_BOOT,
            boot(action(7, "UEFI Debug Mode")),
            Finding(f"rule secure_boot, PCR 7, event {LATE}", "no firmware debugger", "UEFI Debug Mode"),
        ),
        (
            SECURE_BOOT,
            boot(entry(7, 0x800000E0, variable("MokSBState", b"\1", SHIM))),
            Finding(
                f"rule secure_boot, PCR 7, event {LATE}",
                "shim verifies",
                "MokSBState is on",
                "Switch shim's verification on again: mokutil --enable-validation.",
            ),
        ),
        (
            SECURE_BOOT,
            boot(entry(7, 5, b"shown", b"measured")),
            Finding(
                f"rule secure_boot, PCR 7, event {LATE}",
                "data that its digest is over",
                "other data: EV_ACTION shown (its data is not what was measured)",
            ),
        ),
        (
            SIGNERS,
            boot(signers=(authority("Shim", signer("Maker"), SHIM), authority("db", b"\2" * 32))),
            Finding(
                "rule signers, PCR 7, event 12",
                "a signer of the list",
                f"db: an image by its hash {'02' * 32}",
                ADD_SIGNER,
            ),
        ),
        (
            SIGNERS,
            boot(authority("x" * 70, b"\x30\x82", SHIM, owner=b"")),
            Finding(
                f"rule signers, PCR 7, event {LATE}",
                "a signer of the list",
                f"{'x' * 64}: sha256 {NAMELESS}, no certificate that can be read",
                ADD_SIGNER,
            ),
        ),
        (
            SIGNERS,
            boot(authority("db", b"\2" * 20)),
            Finding(
                f"rule signers, PCR 7, event {LATE}",
                "a signer of the list",
                "db: no certificate and no SHA-256, 36 bytes",
                ADD_SIGNER,
            ),
        ),
        (
            SIGNERS,
            boot(entry(7, 5, b"\xffstring " + b"x" * 200)),
            Finding(
                f"rule signers, PCR 7, event {LATE}",
                "a variable, or a known string",
                "\\xffstring " + "x" * 149,
            ),
        ),
        (
            SIGNERS,
            boot(signers=()),
            Finding("rule signers, PCR 7", "a signer of the list for what was booted", "none"),
        ),
        (
            BOOT_LOADERS,
            boot(images=(b"shim", b"evil")),
            Finding(
                "rule boot_loaders, PCR 4, event 10",
                "an image of the list",
                EVIL,
                f'Add "{EVIL}" to digests of [rules.boot_loaders], if this image (the log calls it '
                "EV_EFI_BOOT_SERVICES_APPLICATION an image of 0 bytes, no path) is meant.",
            ),
        ),
        (
            BOOT_LOADERS,
            boot(images=()),
            Finding("rule boot_loaders, PCR 4", "an image of the list", "none was started"),
        ),
        (
            COMMAND_LINE,
            boot(lines=(grub("kernel_cmdline:", "/evil ro x y"),)),
            Finding(
                "rule command_line, PCR 8, event 13",
                "a command line of the policy",
                "the kernel /evil; not allowed: x; not allowed: y; missing: root=UUID=* in: /evil ro x y",
                ADD_WORDS,
            ),
        ),
        (
            COMMAND_LINE,
            boot(lines=(grub("linux", "linux  "), grub("kernel_cmdline:", LINE))),
            Finding(
                "rule command_line, PCR 8, event 13",
                "a command line of the policy",
                "the kernel ; missing: ro; missing: root=UUID=* in:  ",
                ADD_WORDS,
            ),
        ),
        (
            COMMAND_LINE,
            boot(entry(8, 13, b"shown", b"measured")),
            Finding(
                f"rule command_line, PCR 8, event {LATE}",
                "a string that its digest is over",
                "other data: EV_IPL shown",
            ),
        ),
        (
            COMMAND_LINE,
            boot(entry(8, 13, b"set x\0y")),
            Finding(
                f"rule command_line, PCR 8, event {LATE}",
                "a string that its digest is over",
                "other data: EV_IPL 7365742078" + "0079",
            ),
        ),
        (
            COMMAND_LINE,
            boot(lines=()),
            Finding("rule command_line, PCR 8", "a kernel's command line", "none was measured"),
        ),
        (
            COMMAND_LINE,
            boot(lines=(grub("kernel_cmdline:", LINE),) * 17),
            Finding("rule command_line, PCR 8, event 29", "at most 16 command lines", "more"),
        ),
    ],
)
def test_a_finding_says_what_was_expected_what_was_there_and_what_mends_it(rule, happened, told):
    assert findings(rule, happened) == (told,)


@pytest.mark.parametrize(
    "text", [" /evil init=/x", "   linux /evil init=/x", "\n/evil init=/x", "set\n/evil", "\tset x"]
)
def test_blanks_before_a_line_hide_nothing(text):
    happened = boot(lines=(grub("grub_cmd:", text), grub("kernel_cmdline:", LINE)))
    assert [finding.what for finding in findings(COMMAND_LINE, happened)] == ["rule command_line, PCR 8, event 13"]


def test_only_spaces_part_the_words_of_a_line():
    """The kernel parts them at other blanks too: a word with one inside is none of the policy's."""
    happened = boot(lines=(grub("kernel_cmdline:", "/boot/vmlinuz-6.1.0 root=UUID=1 ro\tquiet"),))
    assert len(findings(COMMAND_LINE, happened)) == 1


@pytest.mark.parametrize(
    ("kernel", "path", "fits"),
    [
        ("/efi/*/linux", "/efi/a/linux", True),
        ("/efi/*/linux", "/efi/a/b/linux", False),
        ("/efi/*/linux", "/efi//linux", True),
        ("/efi/*/linux", "/efi/linux", False),
        ("/k*k", "/k", False),
        ("/k*k", "/kk", True),
        ("/k*", "/k", True),
        ("*k", "/k", False),
        ("*k", "k", True),
    ],
)
def test_a_star_stands_for_what_is_between(kernel, path, fits):
    rule = CommandLineMatches(8, "grub", (LineForm(FORM.required, (), kernel),))
    happened = boot(lines=(grub("kernel_cmdline:", f"{path} root=UUID=1 ro"),))
    assert (findings(rule, happened) == ()) is fits


# --- IMA ------------------------------------------------------------------------------------------------------------


def told_by_ima(covered, policy=ima.LISTED):
    pcrs = ima.VerifiedPcrs("sha256", ima.MappingProxyType(ima.BOOTED), ima.TPM)
    return ima.judge_ima(covered, policy, pcrs)


def test_findings_of_ima_say_what_mends_them():
    evil = "06" * 32
    assert told_by_ima(ima.measured(ima.EVIL_ENTRY)) == (
        Finding(
            "IMA, entry 1",
            "a listed or a signed file",
            f"/bin/evil sha256:{evil}, no signature",
            f'Add "sha256:{evil}  /bin/evil" to files of [ima], if this file is meant.',
        ),
    )
    verity = ima.measured(("ima-ngv2", ima.data_of("/bin/evil", b"\6" * 32, kind="verity:")))
    assert told_by_ima(verity)[0].cure.startswith(f'Add "verity:sha256:{evil}  /bin/evil"')
    assert told_by_ima(ima.measured(None)) == (
        Finding("IMA, entry 1", "a file that was measured", "a violation: it changed meanwhile"),
    )
    assert told_by_ima(ima.measured(("odd", b"data"))) == (
        Finding("IMA, entry 1", "data of a known template", "odd: 4 bytes"),
    )


def test_findings_of_a_whole_ima_log():
    assert told_by_ima(ima.verify_ima(ima.parse_ima_log(b""), "sha256", bytes(32))) == (
        Finding("IMA", "measured files", "none: IMA is off", "Start the kernel with an IMA policy: ima_policy=tcb."),
    )
    assert told_by_ima(ima.measured(ima.SHELL_ENTRY, padded=True)) == (
        Finding(
            "IMA",
            "entries hashed with sha256",
            "SHA-1 and zeros",
            'Linux 5.8 and later extend each bank by its own hash; or set sha1_template = "accept" in [ima].',
        ),
    )
    assert told_by_ima(ima.measured(ima.SHELL_ENTRY, aggregate=None)) == (
        Finding("IMA, entry 0", "boot_aggregate, which the kernel measures first", "another entry"),
    )
    both = " or ".join(sorted(f"sha256:{one.hex()}" for one in (ima.AGGREGATE, ima.OLD_AGGREGATE)))
    assert told_by_ima(ima.measured(ima.SHELL_ENTRY, aggregate=b"\3" * 32)) == (
        Finding("IMA, entry 0", both, f"sha256:{'03' * 32} as boot_aggregate"),
    )
    assert told_by_ima(ima.measured(*[ima.EVIL_ENTRY] * 40))[-1] == Finding(
        "IMA", "no more", "more than are named here"
    )


def test_as_many_findings_as_are_named_are_all_named():
    evil = [("ima-ng", ima.data_of(f"/evil/{number}")) for number in range(ima.FINDINGS_MOST)]
    assert [one.what for one in told_by_ima(ima.measured(*evil))] == [f"IMA, entry {n + 1}" for n in range(len(evil))]
    lines = [entry(8, 13, b"x", b"y")] * 15
    found = findings(COMMAND_LINE, boot(lines=tuple(lines)))
    assert len(found) == 16
    assert found[-1].actual == "none was measured"


def test_a_signature_that_cannot_be_read_says_why():
    (found,) = told_by_ima(ima.by_signature(b"\3"), ima.by_keys(ima.EC_KEY))
    assert found.actual == f"/opt/app sha256:{ima.SHELL.hex()}, a signature of 1 bytes"


def test_an_aggregate_that_nothing_can_be_held_against_says_what_is_not_quoted():
    pcrs = ima.VerifiedPcrs("sha256", ima.MappingProxyType({10: bytes(32)}), ima.TPM)
    (found,) = ima.judge_ima(ima.measured(ima.SHELL_ENTRY), ima.LISTED, pcrs)
    assert found.expected == "quoted PCRs 0 to 9"
