"""Each kind of edit by itself: TPMs, command lines, signers, files; and what no edit accepts."""

import hashlib
from dataclasses import replace

import pytest
from cryptography import x509

from provisioning.attestation.ek_store import EMPTY, EkStore, Role, judge
from provisioning.attestation.ek_store import stored as kept_as
from provisioning.attestation.endorsement import RegisteredEk, ek_id_of, ek_id_of_public
from provisioning.attestation.explanation import changed, edit_of, proposals, whole_edit
from provisioning.attestation.explanation_diff import file_changes, file_of
from provisioning.attestation.explanation_edit import Add, Drop, EditImpossible, Put
from provisioning.attestation.explanation_ek import endorsement_changes
from provisioning.attestation.explanation_ima import unaccepted
from provisioning.attestation.ima import CoveredIma, parse_ima_log
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.quote import VerifiedPcrs
from provisioning.attestation.rejudging import Shown, verify_shown
from provisioning.refusals import (
    EkCertificateExpired,
    EkChainRefused,
    EkManufacturerRefused,
    EkTrustTooLow,
    SoftwareTpmRefused,
)
from tests.support.boot_logs import DATABASES, OWNER, TPM, booted, entry, grub, stub, variable
from tests.support.ek_certificates import MANUFACTURER, NOW, YEAR, pem, root, tpm_name
from tests.support.ek_certificates import TPM as MAKER
from tests.support.shown import ima_log_of, pcrs_after, signed_entry, stored
from tests.unit.attestation.test_ek_store import old_authorities, store_of
from tests.unit.attestation.test_endorsement import ek_public
from wire.messages import EnrollmentRequest

PCRS = (0, 4, 7, 8, 12)
EV_IPL, EV_AUTHORITY = 0x0D, 0x800000E0


# --- TPMs ---------------------------------------------------------------------------------------------------------


def policy_of(*tables, **fields) -> str:
    lines = ['model = "gateway"', *(f"{name} = {value}" for name, value in fields.items())]
    for table in tables:
        lines += ["[[ek_roots]]", *(f"{name} = {value}" for name, value in table.items())]
    return "\n".join([*lines, "[pcrs.sha256]", f'"0" = ["{"00" * 32}"]']) + "\n"


def vouching(authority, manufacturers='["id:494E5443"]'):
    return {"certificate": f'"""{pem(authority.der)}"""', "manufacturers": manufacturers}


def asked(text, certificate, store=EMPTY, now=NOW, registered=None):
    request = EnrollmentRequest(ak_public=b"", pcr_banks=("sha256",), ek_certificate=certificate)
    known = registered or RegisteredEk(ek_id_of(certificate), "certificate", certificate)
    found = endorsement_changes(text, request, known, now, store)
    return [(type(refusal), change) for refusal, change in found]


def store_with(*authorities) -> EkStore:
    return EkStore(kept_as(judge(one.der, NOW), "Intel", Role.SELF_SIGNED) for one in authorities)


ROOT = root("Maker root")


def test_a_tpm_that_the_policy_trusts_needs_no_edit():
    assert asked(policy_of(vouching(ROOT)), ROOT.ek()) == []


def test_an_imported_root_is_named_by_its_fingerprint():
    below = ROOT.intermediate("Maker CA")
    text, store = policy_of(vouching(root("Other root"))), store_with(ROOT, below)
    ((refusal, change),) = asked(text, below.ek(), store)
    fingerprint = hashlib.sha256(ROOT.der).hexdigest()
    assert refusal is EkChainRefused
    assert change == Add(("ek_roots",), {"fingerprint": fingerprint, "manufacturers": ("id:494E5443",)})
    assert fingerprint in edit_of(text, [change]).diff


def test_a_chain_over_sha1_is_a_switch_of_its_own():
    top, middle = old_authorities()
    text, store = policy_of({"store": '"Intel"'}), store_of(top, middle)
    assert asked(text, middle.ek(), store) == [(EkChainRefused, Put(("sha1_authorities",), "accept"))]
    text = policy_of({"store": '"Intel"'}, sha1_authorities='"accept"')
    ((_, change),) = asked(text, ROOT.ek(), store_of(top, ROOT, role=Role.INTERMEDIATE))
    assert change.value["fingerprint"] == hashlib.sha256(ROOT.der).hexdigest()


def test_a_certificate_that_is_for_no_tpm_has_no_edit():
    with pytest.raises(EditImpossible, match="no setting of the policy"):
        asked(policy_of(vouching(ROOT)), ROOT.ek(replace={x509.KeyUsage: None}))


def test_a_root_that_nobody_imported_is_no_edit():
    with pytest.raises(EditImpossible, match="does not chain"):
        asked(policy_of(vouching(root("Other root"))), ROOT.ek())


def test_a_manufacturer_is_added_to_the_table_of_the_root_that_vouched():
    text = policy_of(vouching(root("Other root")), vouching(ROOT, '["id:00001014"]'))
    assert asked(text, ROOT.ek()) == [(EkManufacturerRefused, Add(("ek_roots", 1, "manufacturers"), "id:494E5443"))]


def test_tables_that_are_written_inline_are_found_too():
    table = vouching(ROOT, '["id:00001014"]')["certificate"].replace("\n", "\\n").replace('"""', '"')
    roots = f'[{{ store = "Intel" }}, {{ certificate = {table}, manufacturers = ["id:00001014"] }}]'
    text = policy_of(ek_roots=roots)
    assert asked(text, ROOT.ek()) == [(EkManufacturerRefused, Add(("ek_roots", 1, "manufacturers"), "id:494E5443"))]


def test_everything_that_the_policy_refuses_of_a_tpm_is_named():
    software = tpm_name({**MAKER, MANUFACTURER: "id:00001014"})
    certificate = ROOT.ek(replace={x509.SubjectAlternativeName: software})
    found = asked(policy_of(vouching(ROOT)), certificate, now=NOW + 2 * YEAR)
    assert found == [
        (EkManufacturerRefused, Add(("ek_roots", 0, "manufacturers"), "id:00001014")),
        (SoftwareTpmRefused, Put(("software_tpm",), value=True)),
        (EkCertificateExpired, Put(("expired_ek",), "accept")),
    ]


def test_a_key_without_certificate_needs_the_lower_trust():

    public = ek_public()
    request = EnrollmentRequest(ak_public=b"", pcr_banks=("sha256",), ek_public=public)
    registered = RegisteredEk(ek_id_of_public(public), "key")
    ((refusal, change),) = endorsement_changes(policy_of(vouching(ROOT)), request, registered, NOW, EMPTY)
    assert (type(refusal), change) == (EkTrustTooLow, Put(("ek_trust",), "key"))
    with pytest.raises(EditImpossible, match="was registered"):
        endorsement_changes(policy_of(vouching(ROOT)), request, RegisteredEk("00", "key"), NOW, EMPTY)


# --- rules --------------------------------------------------------------------------------------------------------


def rules(happened, *lines, pcrs=PCRS) -> str:
    values = pcrs_after(happened)
    open_ones = {"7": "secure_boot", "8": '"grub"', "12": '"stub"'}
    table = "\n".join(lines)
    wanted = [
        f'"{pcr}" = []' if open_ones.get(str(pcr), "?") in table else f'"{pcr}" = ["{values[pcr].hex()}"]'
        for pcr in pcrs
    ]
    return "\n".join(['model = "gateway"', 'ek_trust = "key"', *lines, "[pcrs.sha256]", *wanted]) + "\n"


def found_by(text, happened):
    evidence = stored(happened, PCRS)
    return proposals(verify_shown(evidence), None, parse_policy(text), {}), evidence


STUB = ["[[rules.command_line]]", 'by = "stub"', 'required = ["ro"]']
GRUB = ["[[rules.command_line]]", 'by = "grub"', 'kernel = "/vmlinuz"', 'required = ["ro"]']


def test_a_command_line_of_a_stub_is_one_more_form():
    happened = [*booted(), stub("ro quiet quiet")]
    text = rules(happened, *STUB)
    (one,), evidence = found_by(text, happened)
    assert one.changes == (Add(("rules", "command_line"), {"by": "stub", "pcr": 12, "required": ["ro", "quiet"]}),)
    assert whole_edit(text, [one], evidence, {}).lines[0] == "[[rules.command_line]]"


@pytest.mark.parametrize(
    "event",
    [
        grub("kernel_cmdline:", "/vmlinuz ro root=*"),
        grub("kernel_cmdline:", "/vmlinuz"),
        grub("grub_cmd:", "linux"),
        entry(8, EV_IPL, b"kernel_cmdline: /vmlinuz rw", b"something else"),
        entry(8, EV_IPL, b"\xff\xfe\xfd"),
    ],
)
def test_a_command_line_that_a_form_cannot_say_exactly_is_a_persons_work(event):
    happened = booted(lines=(grub("kernel_cmdline:", "/vmlinuz ro"), event))
    found, evidence = found_by(rules(happened, *GRUB), happened)
    assert [one.changes for one in found] == [()]
    with pytest.raises(EditImpossible, match="only a person"):
        whole_edit(rules(happened, *GRUB), found, evidence, {})


def test_a_word_that_no_policy_may_hold_makes_no_edit():
    happened = booted(lines=(grub("kernel_cmdline:", "/vmlinuz ro"), grub("kernel_cmdline:", "/vmlinuz ro\tx")))
    text = rules(happened, *GRUB)
    (one,), _ = found_by(text, happened)
    with pytest.raises(EditImpossible, match="would be no policy"):
        edit_of(text, one.changes)


def test_a_log_without_command_lines_is_told_and_unsigned():
    happened = booted(lines=(grub("grub_cmd:", "set root=hd0"),))
    (one,), _ = found_by(rules(happened, *GRUB), happened)
    assert (one.changes, one.judged.signed) == ((), False)
    assert "missing" in one.judged.why


SIGNERS = ["[rules]", 'secure_boot = "on"', "[rules.signers]", 'subjects = ["C=XX,CN=Distribution", "C=XX,CN=Maker"]']


@pytest.mark.parametrize(
    ("data", "listed"),
    [
        (variable("db", OWNER + b"\7" * 32, DATABASES), (b"\7" * 32).hex()),
        (variable("db", OWNER + b"\7" * 20, DATABASES), None),
        (b"no variable at all", None),
    ],
)
def test_what_vouched_by_its_hash_is_listed_by_it(data, listed):
    happened = [*booted(), entry(7, EV_AUTHORITY, data)]
    (one,), _ = found_by(rules(happened, *SIGNERS), happened)
    assert one.changes == (() if listed is None else (Add(("rules", "signers", "sha256"), listed),))


def test_an_authority_whose_data_was_not_measured_is_nothing_to_list():
    happened = [*booted(), entry(7, EV_AUTHORITY, b"shown", b"measured")]
    found, _ = found_by(rules(happened, "[rules]", 'secure_boot = "on"'), happened)
    assert [one.changes[0] for one in found] == [Drop(("rules", "secure_boot"))]
    found, _ = found_by(rules(happened, *SIGNERS), happened)
    assert () in [one.changes for one in found]


def test_a_rule_over_pcrs_that_were_not_quoted_is_no_edit():
    happened = booted()
    text = rules(happened, *SIGNERS)
    evidence = stored(happened, (0, 4))
    assert proposals(verify_shown(evidence), None, parse_policy(text), {}) == ()
    with pytest.raises(EditImpossible, match="no edit of single values"):
        whole_edit(text, (), evidence, {})


def test_without_secure_boot_pcr_7_keeps_a_judge():
    happened = booted(secure_boot=b"\0")
    text = rules(happened, *SIGNERS)
    found, evidence = found_by(text, happened)
    assert whole_edit(text, found, evidence, {}).lines == (f'"7" = ["{pcrs_after(happened)[7].hex()}"]',)
    # Where it has its value besides, dropping the rule is all.
    text = text.replace('"7" = []', f'"7" = ["{pcrs_after(happened)[7].hex()}"]')
    found, evidence = found_by(text, happened)
    assert whole_edit(text, found, evidence, {}).lines == ()


# --- files --------------------------------------------------------------------------------------------------------


def ima_policy(**fields):
    lines = [f"{name} = {value}" for name, value in {"files": '"00' + "00" * 31 + '  /a"', **fields}.items()]
    pcrs = "\n".join(f'"{pcr}" = []' for pcr in range(11))
    return parse_policy(f'model = "m"\nek_trust = "key"\n[ima]\n{chr(10).join(lines)}\n[pcrs.sha256]\n{pcrs}\n').ima


def covered(log, extension="template"):
    return CoveredIma(parse_ima_log(log).entries, extension)


VALUES = pcrs_after(booted())
QUOTED = VerifiedPcrs("sha256", VALUES, TPM)


def test_entries_of_an_old_kernel_are_a_switch():
    (one,) = unaccepted(covered(ima_log_of(VALUES, {}), "padded-sha1"), ima_policy(), QUOTED)
    assert one.changes == (Put(("ima", "sha1_template"), "accept"),)


def test_no_measured_file_at_all_is_no_edit():
    (one,) = unaccepted(CoveredIma((), "template"), ima_policy(), QUOTED)
    assert (one.changes, one.judged.signed) == ((), False)


def test_a_digest_that_a_policy_cannot_list_is_no_edit():
    log = ima_log_of(VALUES, {}) + signed_entry("/x", bytes(32), b"").replace(b"sha256:\0", b"sha224:\0")
    entries = covered(log).entries
    (one,) = unaccepted(CoveredIma(entries, "template"), ima_policy(), QUOTED)
    assert one.changes == ()
    broken = replace(entries[1], data=b"\0")
    (one,) = unaccepted(CoveredIma((entries[0], broken), "template"), ima_policy(), QUOTED)
    assert one.changes == ()
    assert file_of(broken) is None


def test_a_file_of_fs_verity_is_listed_as_one():
    log = ima_log_of(VALUES, {}) + signed_entry("/x", bytes(32), b"")
    verity = replace(covered(log).entries[1], template="ima-sigv2")
    verity = replace(verity, data=verity.data.replace(b"\x28\0\0\0sha256:\0", b"\x2f\0\0\0verity:sha256:\0"))
    (one,) = unaccepted(CoveredIma((covered(log).entries[0], verity), "template"), ima_policy(), QUOTED)
    assert one.changes[0].line == f"verity:sha256:{'00' * 32}  /x"
    assert file_of(verity) == ("/x", f"verity:sha256:{'00' * 32}")


def test_a_digest_that_is_listed_for_another_path_gets_one_more():
    log = ima_log_of(VALUES, {"/b": bytes(32)})
    (one,) = unaccepted(covered(log), ima_policy(), QUOTED)
    assert one.changes[0].line.endswith("  /b")
    assert unaccepted(covered(log), ima_policy(files='"' + "00" * 32 + '"'), QUOTED) == []


def test_a_violation_is_no_change_of_a_file():
    log = bytearray(ima_log_of(VALUES, {"/b": bytes(32)}))
    at = len(ima_log_of(VALUES, {})) + 4
    log[at : at + 20] = bytes(20)
    assert file_changes(covered(ima_log_of(VALUES, {})), covered(bytes(log))) == ()


def test_a_violation_is_no_file():
    log = bytearray(ima_log_of(VALUES, {"/b": bytes(32)}))
    log[4:24] = bytes(20)
    assert file_of(parse_ima_log(bytes(log)).entries[0]) is None
    (first,) = (
        one for one in unaccepted(covered(bytes(log)), ima_policy(), QUOTED) if one.finding.what == "IMA, entry 0"
    )
    assert first.changes == ()


# --- what changed -------------------------------------------------------------------------------------------------


def test_values_of_another_bank_are_not_compared():
    one = verify_shown(stored(booted(), PCRS))
    other = Shown(VerifiedPcrs("sha384", {0: bytes(48)}, replace(one.pcrs.tpm, firmware_version=3)), None, None)
    found = changed(other, one)
    assert (found.pcrs, found.events, found.files) == ((), (), ())
    assert found.firmware == (3, one.pcrs.tpm.firmware_version)
    assert found


def test_a_log_on_one_side_alone_is_compared_by_values():
    one = verify_shown(stored(booted(), PCRS))
    assert not changed(Shown(one.pcrs, None, None), one)


def test_a_manufacturer_that_no_policy_can_name_has_no_edit():
    unnamed = tpm_name({**MAKER, MANUFACTURER: "Nobody & Sons"})
    with pytest.raises(EditImpossible, match="no setting of the policy"):
        asked(policy_of(vouching(ROOT)), ROOT.ek(replace={x509.SubjectAlternativeName: unnamed}))
