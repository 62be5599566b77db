"""Event rules: what a replayed boot log shows, and the forgeries that replay as well."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation.eventlog import parse_event_log
from provisioning.attestation.eventtext_types import (
    EV_EFI_ACTION,
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_BOOT,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_EVENT_TAG,
    EV_IPL,
    EV_SEPARATOR,
    TYPE_NAMES,
)
from provisioning.attestation.rules import (
    BootLoadersListed,
    CommandLineMatches,
    LineForm,
    SecureBootOn,
    SignersListed,
    pcrs_of,
)
from provisioning.attestation.rules_judge import FINDINGS_MOST, judge_rules
from provisioning.attestation.rules_lines import LINE_MOST, LINES_MOST
from tests.support.boot_logs import (
    DATABASES,
    GLOBAL,
    LINE,
    SHIM,
    action,
    authority,
    booted,
    config,
    entry,
    grub,
    image,
    quoted,
    replayed,
    separator,
    signature_list,
    signer,
    stub,
    variable,
)

LOGS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "boot-logs"
ALL = tuple(range(24))
SECURE_BOOT = SecureBootOn()
SIGNERS = SignersListed(
    frozenset({hashlib.sha256(signer("Maker")).digest()}), frozenset({"C=XX,CN=Distribution", "C=XX,CN=Distribution 2"})
)
DIGESTS = frozenset(hashlib.new(b, b"image of " + n).digest() for b in ("sha256", "sha384") for n in (b"shim", b"grub"))
BOOT_LOADERS = BootLoadersListed(DIGESTS)
FORM = LineForm(("ro", "root=UUID=*"), ("quiet", "console=*"), "/boot/vmlinuz-*")
COMMAND_LINE = CommandLineMatches(8, "grub", (FORM,))
RULES = (SECURE_BOOT, SIGNERS, BOOT_LOADERS, COMMAND_LINE)


def broken(rules, happened, sent=None, bank="sha256"):
    """What breaks the rules where this happened, and that was sent: it has to replay."""
    rules = rules if isinstance(rules, tuple) else (rules,)
    log = replayed(happened if sent is None else sent, quoted(happened, ALL, bank))
    return [(finding.what, finding.actual) for finding in judge_rules(rules, log, bank)]


def places(found):
    return [what for what, _ in found]


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_a_good_boot_breaks_no_rule(bank):
    assert broken(RULES, booted(), bank=bank) == []


def test_rules_name_the_pcrs_that_they_read():
    assert pcrs_of(RULES) == {4, 7, 8}
    assert pcrs_of(()) == frozenset()


# --- Secure Boot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "told"), [(b"\x00", "00"), (b"", "empty"), (b"\x02", "02"), (b"\x01\x00", "0100")])
def test_secure_boot_that_is_off_is_refused(value, told):
    assert broken(SECURE_BOOT, booted(secure_boot=value)) == [("rule secure_boot, PCR 7, event 1", f"it is {told}")]


def test_forged_data_with_the_true_digest_is_refused():
    """The classic: Secure Boot was off, its digest must stay, so the log shows other data beside it."""
    happened = booted(secure_boot=b"\x00")
    sent = [happened[0].shown(data=variable("SecureBoot", b"\x01")), *happened[1:]]
    found = broken(SECURE_BOOT, happened, sent)
    assert places(found) == ["rule secure_boot, PCR 7, event 1", "rule secure_boot, PCR 7"]
    assert "other data" in found[0][1]
    assert found[1][1] == "0 times"


@pytest.mark.parametrize("kind", [*TYPE_NAMES.keys() - {3}, 0x12345678])
def test_an_event_that_is_given_another_type_is_still_read(kind):
    """Types are not measured. Whatever they say, the variable that was measured counts."""
    happened = booted(secure_boot=b"\x00")
    sent = [happened[0].shown(kind=kind), *happened[1:]]
    assert ("rule secure_boot, PCR 7, event 1", "it is 00") in broken(SECURE_BOOT, happened, sent)
    happened = booted()
    assert broken(SECURE_BOOT, happened, [one.shown(kind=kind) if one.pcr == 7 else one for one in happened]) == []


def test_who_runs_the_device_cannot_add_secure_boot_behind():
    """PCRs can be extended by anybody, behind what the firmware measured."""
    on, off = config("SecureBoot", b"\x01"), booted(secure_boot=b"\x00")
    assert ("rule secure_boot, PCR 7", "2 times") in broken(SECURE_BOOT, [*off, on])
    hidden = [off[0].shown(data=b"\x01"), *off[1:], on]
    found = broken(SECURE_BOOT, [*off, on], hidden)
    assert "rule secure_boot, PCR 7, event 1" in places(found)
    never = [separator(7), on]
    assert broken(SECURE_BOOT, never) == [
        ("rule secure_boot, PCR 7, event 2", "behind it: not the firmware's word"),
    ]


def test_the_firmware_must_end_its_part():
    assert broken(SECURE_BOOT, [config("SecureBoot", b"\x01")]) == [("rule secure_boot, PCR 7", "none")]
    error = [config("SecureBoot", b"\x01"), entry(7, EV_SEPARATOR, b"\1\0\0\0")]
    assert broken(SECURE_BOOT, error) == [("rule secure_boot, PCR 7", "none")]
    ones = [config("SecureBoot", b"\x01"), entry(7, EV_SEPARATOR, b"\xff" * 4)]
    assert broken(SECURE_BOOT, ones) == []


@pytest.mark.parametrize("name", ["MokSBState", "MokSBStateRT"])
def test_shim_that_does_not_verify_is_refused(name):
    off = entry(7, EV_EFI_VARIABLE_AUTHORITY, variable(name, b"\x01", SHIM))
    found = broken(SECURE_BOOT, [*booted(), off])
    assert [actual for _, actual in found] == [f"{name} is on"]
    on = entry(7, EV_EFI_VARIABLE_AUTHORITY, variable(name, b"\x00", SHIM))
    assert broken((SECURE_BOOT, SIGNERS), [*booted(), on]) == []
    hidden = off.shown(data=variable(name, b"\x00", SHIM))
    found = broken(SECURE_BOOT, [*booted(), off], [*booted(), hidden])
    assert len(found) == 1
    assert found[0][1].startswith("other data: ")


def test_a_debugger_of_the_firmware_is_refused():
    happened = booted()
    happened.insert(5, action(7, "UEFI Debug Mode"))
    assert [actual for _, actual in broken(SECURE_BOOT, happened)] == ["UEFI Debug Mode"]
    happened[5] = action(7, "DMA Protection Disabled")
    assert broken((SECURE_BOOT, SIGNERS), happened) == []


def test_a_variable_of_another_vendor_is_not_secure_boot():
    happened = [config("SecureBoot", b"\x01", SHIM), *booted(secure_boot=b"\x00")]
    assert ("rule secure_boot, PCR 7, event 2", "it is 00") in broken(SECURE_BOOT, happened)
    assert ("rule secure_boot, PCR 7", "0 times") in broken(SECURE_BOOT, [*happened[:1], separator(7)])


# --- signers --------------------------------------------------------------------------------------------------------


def with_signers(*entries):
    return booted(signers=entries)


def test_a_signer_counts_by_its_fingerprint_or_its_subject():
    maker = authority("db", signer("Maker"))
    assert broken(SIGNERS, with_signers(maker)) == []
    assert broken(SIGNERS, with_signers(authority("Shim", signer("Distribution"), SHIM))) == []
    assert broken(SIGNERS, with_signers(authority("vendor_db", signer("Distribution"), DATABASES))) == []
    assert broken(SIGNERS, with_signers(authority("db", signer("Distribution 2")))) == []
    # shim before 15.3 logs six bytes too many and measures five of them
    assert broken(SIGNERS, with_signers(authority("Shim", signer("Distribution"), SHIM, behind=bytes(6)))) == []


def test_a_signer_that_is_not_listed_is_refused():
    stranger = signer("Stranger")
    found = broken(SIGNERS, with_signers(authority("db", signer("Maker")), authority("db", stranger)))
    assert places(found) == ["rule signers, PCR 7, event 12"]
    assert found[0][1] == f"db: sha256 {hashlib.sha256(stranger).hexdigest()}, C=XX,CN=Stranger"


def test_a_subject_does_not_count_where_the_owner_writes_it():
    """Whoever can enroll a machine owner's key writes any subject into it. Its fingerprint he cannot choose."""
    for name, guid in (("MokList", SHIM), ("MokListRT", SHIM), ("db", SHIM), ("Shim", GLOBAL), ("db", GLOBAL)):
        found = broken(SIGNERS, with_signers(authority(name, signer("Distribution"), guid)))
        assert places(found) == ["rule signers, PCR 7, event 11", "rule signers, PCR 7"]
        assert broken(SIGNERS, with_signers(authority(name, signer("Maker"), guid))) == []


def test_a_boot_for_which_nobody_vouched_is_refused():
    """With Secure Boot off nobody is asked: an empty list of signers is no pass."""
    assert broken(SIGNERS, with_signers()) == [("rule signers, PCR 7", "none")]


@pytest.mark.parametrize("kind", [EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_ACTION, EV_SEPARATOR, EV_EVENT_TAG, EV_IPL])
def test_a_signer_cannot_be_hidden_by_another_type_or_other_data(kind):
    maker, stranger = authority("db", signer("Maker")), authority("db", signer("Stranger"))
    happened = with_signers(maker, stranger)
    place = "rule signers, PCR 7, event 12"
    for data in (
        stranger.data,
        maker.data,
        b"DMA Protection Disabled",
        bytes(4),
        b"",
        variable("SbatLevel", b"1", SHIM),
    ):
        sent = [one.shown(kind=kind, data=data) if one is stranger else one for one in happened]
        assert places(broken(SIGNERS, happened, sent)) == [place]


def test_an_authority_before_the_separator_is_no_configuration():
    """Some firmware starts its own tools early. What vouched for them has another form than the database's state."""
    stranger = authority("db", signer("Stranger")).shown(kind=EV_EFI_VARIABLE_DRIVER_CONFIG)
    happened = booted()
    happened.insert(3, stranger)
    assert places(broken(SIGNERS, happened)) == ["rule signers, PCR 7, event 4"]
    happened[3] = authority("db", signer("Maker"))
    assert broken(SIGNERS, happened) == []


def test_the_state_of_a_database_behind_the_separator_is_no_configuration():
    late = config("db", signature_list(signer("Maker")), DATABASES)
    assert places(broken(SIGNERS, [*booted(), late])) == ["rule signers, PCR 7, event 16"]


def test_an_image_that_its_hash_vouched_for_is_listed_by_it():
    listed = SignersListed(SIGNERS.sha256 | {b"\7" * 32}, frozenset())
    assert broken(listed, with_signers(authority("db", b"\7" * 32))) == []
    found = broken(listed, with_signers(authority("db", b"\1" * 32)))
    assert found[0][1] == f"db: an image by its hash {'01' * 32}"
    assert "no certificate and no SHA-256" in broken(listed, with_signers(authority("db", b"\1" * 20)))[0][1]


def test_what_vouches_for_nothing_is_passed_over_by_name_and_vendor():
    level = entry(7, EV_EFI_VARIABLE_AUTHORITY, variable("SbatLevel", b"sbat,1,2023012900\n", SHIM))
    assert broken(SIGNERS, [*booted(), level]) == []
    other = entry(7, EV_EFI_VARIABLE_AUTHORITY, variable("SbatLevel", b"sbat,1,2023012900\n", GLOBAL))
    assert places(broken(SIGNERS, [*booted(), other])) == ["rule signers, PCR 7, event 16"]
    unknown = action(7, "Something else")
    assert broken(SIGNERS, [*booted(), unknown]) == [("rule signers, PCR 7, event 16", "Something else")]


def test_a_certificate_that_nobody_can_read_has_no_subject():
    found = broken(SIGNERS, with_signers(authority("db", b"\x30\x82" + b"\0" * 40)))
    assert "no certificate that can be read" in found[0][1]


# --- boot loaders ---------------------------------------------------------------------------------------------------


def test_an_image_that_is_not_listed_is_refused_by_its_digest():
    happened = booted(images=(b"shim", b"evil"))
    digest = hashlib.sha256(b"image of evil").hexdigest()
    assert broken(BOOT_LOADERS, happened) == [("rule boot_loaders, PCR 4, event 10", digest)]


@pytest.mark.parametrize("kind", [EV_EFI_ACTION, EV_SEPARATOR, EV_IPL, EV_EFI_BOOT_SERVICES_APPLICATION])
def test_an_image_cannot_be_hidden_by_another_type_or_other_data(kind):
    happened = booted(images=(b"shim", b"evil"))
    evil = happened[9]
    for data in (b"Calling EFI Application from Boot Option", bytes(4), image(b"grub").data, b""):
        sent = [one.shown(kind=kind, data=data) if one is evil else one for one in happened]
        assert places(broken(BOOT_LOADERS, happened, sent)) == ["rule boot_loaders, PCR 4, event 10"]


def test_an_empty_boot_is_refused():
    assert broken(BOOT_LOADERS, booted(images=())) == [("rule boot_loaders, PCR 4", "none was started")]


def test_the_first_images_can_vouch_for_the_others():
    first = BootLoadersListed(DIGESTS, 2)
    assert broken(first, booted(images=(b"shim", b"grub", b"kernel 6.1"))) == []
    assert places(broken(BOOT_LOADERS, booted(images=(b"shim", b"grub", b"kernel 6.1")))) != []
    assert places(broken(first, booted(images=(b"shim", b"evil", b"grub")))) == ["rule boot_loaders, PCR 4, event 10"]
    assert places(broken(first, booted(images=(b"evil", b"shim", b"grub")))) == ["rule boot_loaders, PCR 4, event 9"]


def test_other_strings_in_pcr_4_are_judged_as_images():
    found = broken(BOOT_LOADERS, [*booted(), action(4, "Booting BCV Device 80h, - Disk")])
    assert places(found) == ["rule boot_loaders, PCR 4, event 16"]


# --- command lines --------------------------------------------------------------------------------------------------


def with_lines(*entries):
    return booted(lines=entries)


def line(text, label="kernel_cmdline:"):
    return with_lines(grub(label, text))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro init=/bin/sh", "not allowed: init=/bin/sh"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro rw", "not allowed: rw"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1", "missing: ro"),
        ("/boot/vmlinuz-6.1.0 ro", "missing: root=UUID=*"),
        ("/tmp/vmlinuz-6.1.0 root=UUID=1 ro", "the kernel /tmp/vmlinuz-6.1.0"),
        ("/boot/vmlinuz-../../tmp/evil root=UUID=1 ro", "the kernel /boot/vmlinuz-../../tmp/evil"),
        ("(hd1,gpt1)/boot/vmlinuz-6.1.0 root=UUID=1 ro", "the kernel (hd1"),
        ("/boot/vmlinuz-6.1.0", "missing: ro"),
        ('/boot/vmlinuz-6.1.0 root=UUID=1 ro console="a init=/bin/sh"', "not allowed"),
        ('/boot/vmlinuz-6.1.0 root=UUID=1 ro "init=/bin/sh"', "not allowed"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro console=a\tinit=/bin/sh", "not allowed"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro console=a\ninit=/bin/sh", "not allowed"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro console=a\u00a0init=x", "not allowed"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro console", "not allowed: console"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro quiet=1", "not allowed: quiet=1"),
        ("/boot/vmlinuz-6.1.0 root=UUID=1 ro xquiet", "not allowed: xquiet"),
    ],
)
def test_a_line_with_another_word_is_refused(text, wrong):
    found = broken(COMMAND_LINE, line(text))
    assert places(found) == ["rule command_line, PCR 8, event 13"]
    assert wrong in found[0][1]


@pytest.mark.parametrize("label", ["kernel_cmdline:", "grub_kernel_cmdline", "anything", "grub_cmd:"])
def test_the_label_before_a_line_is_not_believed(label):
    """GRUB measures the bare string. A command line that is called a command stays one; what is good stays good."""
    assert broken(COMMAND_LINE, line(LINE, label)) == []
    evil = grub("kernel_cmdline:", f"{LINE} init=/bin/sh")
    good = grub("kernel_cmdline:", LINE)
    happened = with_lines(good, evil)
    sent = [*happened[:-1], evil.shown(data=f"{label} {LINE} init=/bin/sh".encode())]
    assert places(broken(COMMAND_LINE, happened, sent)) == ["rule command_line, PCR 8, event 14"]


def test_a_line_cannot_be_hidden_behind_other_data():
    evil, good = grub("kernel_cmdline:", f"{LINE} init=/bin/sh"), grub("kernel_cmdline:", LINE)
    happened = with_lines(good, evil)
    for data in (good.data, b"grub_cmd: set x=1\0", b"", bytes(4), b"set x=1"):
        for kind in (EV_IPL, EV_SEPARATOR, EV_EFI_VARIABLE_BOOT, EV_EVENT_TAG):
            sent = [*happened[:-1], evil.shown(data=data, kind=kind)]
            found = broken(COMMAND_LINE, happened, sent)
            assert places(found) == ["rule command_line, PCR 8, event 14"]
            assert found[0][1].startswith("other data: ")


@pytest.mark.parametrize("command", ["linux", "linuxefi", "linux16", "multiboot2", "module2"])
def test_what_a_command_hands_over_is_judged_too(command):
    """Also where the path has no slash (over a network), so that the line alone might be taken for a command."""
    assert broken(COMMAND_LINE, with_lines(grub("grub_cmd:", f"{command} {LINE}"))) == []
    found = broken(COMMAND_LINE, with_lines(grub("grub_cmd:", f"{command} search init=/bin/sh")))
    assert places(found) == ["rule command_line, PCR 8, event 13"]


@pytest.mark.parametrize("text", ["chainloader /evil.efi init=/bin/sh", "devicetree /x.dtb", "vmlinuz ro", "acpi /x"])
def test_a_string_that_is_no_known_command_is_judged_as_a_line(text):
    found = broken(COMMAND_LINE, with_lines(grub("grub_cmd:", text), grub("kernel_cmdline:", LINE)))
    assert places(found) == ["rule command_line, PCR 8, event 13"]


def test_a_function_of_grub_cfg_is_known_by_the_policy():
    happened = with_lines(grub("grub_cmd:", "tuned_setup a b"), grub("kernel_cmdline:", LINE))
    assert places(broken(COMMAND_LINE, happened)) == ["rule command_line, PCR 8, event 13"]
    assert broken(CommandLineMatches(8, "grub", (FORM,), frozenset({"tuned_setup"})), happened) == []


def test_commands_that_start_no_kernel_are_passed_over():
    texts = ["[ -f /x ]", "x=1", "load_video", "menuentry x {\n linux /evil\n}", "", " set a=b ", "initrd /boot/initrd"]
    happened = with_lines(*(grub("grub_cmd:", text) for text in texts), grub("kernel_cmdline:", LINE))
    assert broken(COMMAND_LINE, happened) == []


def test_no_line_is_no_pass():
    happened = with_lines(grub("grub_cmd:", "set x=1"))
    assert broken(COMMAND_LINE, happened) == [("rule command_line, PCR 8", "none was measured")]


def test_one_of_several_forms_is_enough():
    rescue = LineForm((), ("single",), "/boot/rescue")
    both = CommandLineMatches(8, "grub", (FORM, rescue))
    assert broken(both, line("/boot/rescue single")) == []
    assert broken(both, line(LINE)) == []
    found = broken(both, line("/boot/rescue double"))
    assert found[0][1] == "not allowed: double in: /boot/rescue double"
    assert broken(both, line("/boot/rescue root=UUID=1 ro"))[0][1].startswith("the kernel /boot/rescue in")


def test_what_kernels_would_cut_is_refused():
    """A word at the end that the policy requires would not reach the kernel."""
    room = LINE_MOST - len(LINE) - 1
    fits = f"{LINE} {'console=' + 'x' * (room - 8)}"
    assert broken(COMMAND_LINE, line(fits)) == []
    assert broken(COMMAND_LINE, line(f"{fits}x"))[0][1] == f"{LINE_MOST + 1} characters, more than {LINE_MOST}"


def test_lines_without_end_are_bounded():
    good = grub("kernel_cmdline:", LINE)
    assert broken(COMMAND_LINE, with_lines(*[good] * LINES_MOST)) == []
    assert [actual for _, actual in broken(COMMAND_LINE, with_lines(*[good] * (LINES_MOST + 2)))] == ["more"]


def test_findings_without_end_are_bounded():
    happened = with_lines(*[entry(8, EV_IPL, b"x", b"y")] * 100)
    found = broken(COMMAND_LINE, happened)
    assert len(found) == FINDINGS_MOST + 1
    assert found[-1] == ("rule command_line", "more than are named here")


def test_systemds_stub_measures_the_line_in_utf_16():
    rule = CommandLineMatches(12, "stub", (LineForm(("ro",), ("quiet", "root=UUID=*")),))
    assert broken(rule, [stub("root=UUID=1 ro quiet")]) == []
    assert "not allowed: init=/x" in broken(rule, [stub("root=UUID=1 ro init=/x")])[0][1]
    assert broken(rule, [separator(12), stub("ro")]) == []
    assert places(broken(rule, [])) == ["rule command_line, PCR 12"]
    # also as a tagged event, whose digest is over what stands behind the tag
    text = "ro quiet\0".encode("utf-16-le")
    tagged = entry(12, EV_EVENT_TAG, b"\1\0\0\0" + len(text).to_bytes(4, "little") + text, text)
    assert broken(rule, [tagged]) == []


def test_in_the_stubs_pcr_everything_is_a_line():
    """No command of GRUB's, and nothing that the log does not hold (a credential) can be a hidden line."""
    rule = CommandLineMatches(12, "stub", (LineForm(("ro",)),))
    assert len(broken(rule, [stub("ro"), stub("set x")])) == 1
    assert len(broken(rule, [stub("ro"), entry(12, EV_IPL, "credentials\0".encode("utf-16-le"), b"cpio")])) == 1
    assert len(broken(rule, [stub("ro"), entry(12, EV_IPL, b"odd")])) == 1
    assert len(broken(rule, [stub("ro"), stub("ro\0init=/x")])) == 1


# --- real logs ------------------------------------------------------------------------------------------------------

MICROSOFT = "CN=Microsoft Corporation UEFI CA 2011,O=Microsoft Corporation,L=Redmond,ST=Washington,C=US"
NO_LOGS = pytest.mark.skipif(not LOGS.is_dir(), reason="no boot logs: ../shared/vectors is absent")


def real(name):
    log = parse_event_log((LOGS / name).read_bytes())
    return log, next(bank for bank in ("sha384", "sha256") if bank in log.banks)


@NO_LOGS
@pytest.mark.parametrize(
    ("name", "on"),
    [
        ("cos-85-amd-sev.bin", True),
        ("rhel8-uefi.bin", True),
        ("sb_cert_eventlog.bin", True),
        ("secureboot-laptop.bin", True),
        ("crypto_agile_eventlog.bin", False),
        ("gdc-host.bin", False),
        ("glinux-alex.bin", False),
        ("ubuntu-1804-amd-sev.bin", False),
        ("ubuntu-2104-no-secure-boot.bin", False),
    ],
)
def test_secure_boot_of_real_machines(name, on):
    found = judge_rules((SECURE_BOOT,), *real(name))
    assert (found == ()) is on
    assert on or [finding.expected for finding in found] == ["SecureBoot is on"]


@NO_LOGS
def test_signers_of_real_machines():
    redhat = bytes.fromhex("40175d4c7c5ab4bd753a493f47952f1d8dcf1c219b836968a693e48bd4766135")
    both = SignersListed(frozenset({redhat}), frozenset({MICROSOFT}))
    for name in ("rhel8-uefi.bin", "secureboot-laptop.bin"):
        assert judge_rules((both,), *real(name)) == ()
        alone = judge_rules((SignersListed(frozenset(), frozenset({MICROSOFT})),), *real(name))
        assert [redhat.hex() in finding.actual for finding in alone] == [True]
    canonical = "CN=Canonical Ltd. Master Certificate Authority,O=Canonical Ltd.,L=Douglas,ST=Isle of Man,C=GB"
    assert (
        judge_rules((SignersListed(frozenset(), frozenset({MICROSOFT, canonical})),), *real("sb_cert_eventlog.bin"))
        == ()
    )
    assert [f.actual for f in judge_rules((both,), *real("gdc-host.bin"))] == ["none"]


@NO_LOGS
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("ubuntu-1804-amd-sev.bin", LineForm(("ro",), ("root=LABEL=*", "console=ttyS0"), "/boot/vmlinuz-*-gcp")),
        (
            "ubuntu-2104-no-secure-boot.bin",
            LineForm(("ro", "root=PARTUUID=*"), ("console=ttyS0", "panic=-1"), "/boot/vmlinuz-*-gcp"),
        ),
        (
            "gdc-host.bin",
            LineForm(("ro",), ("root=/dev/mapper/*", "nohibernate", "*=on"), "/vmlinuz-*"),
        ),
    ],
)
def test_command_lines_of_real_machines(name, form):
    rule = CommandLineMatches(8, "grub", (form,))
    assert judge_rules((rule,), *real(name)) == ()
    tighter = CommandLineMatches(8, "grub", (LineForm(form.required, form.allowed[1:], form.kernel),))
    assert judge_rules((tighter,), *real(name)) != ()


@NO_LOGS
def test_boot_loaders_of_a_real_machine():
    digests = (
        "27b12463e599b3147635f272e3722960e443def60fef088eba600697017529f2",
        "0abc88ee4d2915c3c5c010a331be980766d6445419c22fe236867b92d254f01f",
    )
    listed = frozenset(map(bytes.fromhex, digests))
    log, bank = real("secureboot-laptop.bin")
    assert judge_rules((BootLoadersListed(listed, 2),), log, bank) == ()
    kernel = judge_rules((BootLoadersListed(listed),), log, bank)
    assert [finding.actual for finding in kernel] == [
        "219b8b53c54951cd07a580622e384391bbd9e113448a12ad319903fcafb81e79"
    ]


# --- anything -------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from([4, 7, 8]),
            st.sampled_from([*TYPE_NAMES.keys() - {3}]),
            st.binary(max_size=80),
            st.binary(max_size=80),
        ),
        max_size=6,
    )
)
def test_what_a_log_shows_beside_true_digests_never_turns_a_refusal_into_a_pass(shown):
    """Whatever the log says of what was measured: a boot that breaks the rules breaks them still."""
    happened = booted(
        secure_boot=b"\x00",
        signers=(authority("db", signer("Stranger")),),
        images=(b"evil",),
        lines=(grub("kernel_cmdline:", "/evil"),),
    )
    sent = list(happened)
    for at, (pcr, kind, data, _) in enumerate(shown):
        candidates = [number for number, one in enumerate(happened) if one.pcr == pcr]
        number = candidates[at % len(candidates)]
        sent[number] = happened[number].shown(kind=kind, data=data)
    extended = [entry(pcr, kind, data, measured) for pcr, kind, data, measured in shown]
    for rule in RULES:
        assert broken(rule, [*happened, *extended], [*sent, *extended])


_VARIABLES = st.builds(
    variable,
    st.sampled_from(["SecureBoot", "db", "Shim", "MokSBState", "SbatLevel", "vendor_db", "x"]),
    st.binary(max_size=70) | st.binary(max_size=60).map(lambda tail: b"\x30\x82" + tail),
    st.sampled_from([GLOBAL, DATABASES, SHIM]),
)


@given(st.lists(st.tuples(st.sampled_from([4, 7, 8, 12]), st.binary(max_size=120) | _VARIABLES), max_size=8))
def test_whatever_was_measured_is_judged_and_none_of_it_adds_a_signer(measured):
    """No crash, whatever firmware and boot loaders measure; and noise beside a good boot accepts nothing new."""
    extended = [entry(pcr, EV_IPL, data) for pcr, data in measured]
    stub_rule = CommandLineMatches(12, "stub", (LineForm(("ro",)),))
    broken((*RULES, stub_rule), [*booted(), *extended])
    off = booted(secure_boot=b"\x00", images=(b"evil",), lines=(grub("kernel_cmdline:", "/evil"),))
    off = [authority("db", signer("Stranger")) if one == authority("db", signer("Maker")) else one for one in off]
    for rule in RULES:
        assert broken(rule, [*off, *extended])
