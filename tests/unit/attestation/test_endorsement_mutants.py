"""Certificates of TPMs and of their makers: what a refusal says, each boundary from both sides, what a file holds."""

import base64
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID, ObjectIdentifier

from provisioning.attestation import bundles, chains, manufacturers
from provisioning.attestation.bundles import FILE_MOST, certificates_in
from provisioning.attestation.certificates import parse_certificate, read_leniently, read_strictly
from provisioning.attestation.ek_store import EMPTY, EkStore, Role, judge, roles, stored, way_up
from provisioning.attestation.endorsement import RegisteredEk, TrustedEk, ek_id_of, ek_id_of_public, verify_endorsement
from provisioning.attestation.evidence import verify_activation
from provisioning.attestation.identity import VERIFIED_TPM_RESIDENCY, verify_answer, verify_idevid, verify_own_quote
from provisioning.attestation.names import attribute_of, name_key, name_text
from provisioning.attestation.signatures import why_not_signed
from provisioning.refusals import (
    ActivationProofWrong,
    AlgorithmRefused,
    AnswersAnotherChallenge,
    CertificateMalformed,
    EkCertificateExpired,
    EkCertificateRevoked,
    EkCertificateUnfit,
    EkChainRefused,
    EkManufacturerRefused,
    EkPublicNotRegistered,
    EkRootRefused,
    EkTrustTooLow,
    Finding,
    IdentityCertificateUnfit,
    IdentityChainRefused,
    IdentityKeyDiffers,
    IdevidOfAnotherTpm,
    PcrValuesNotQuoted,
    Refusal,
    RequestMalformed,
    SoftwareTpmRefused,
    Tpm12Refused,
)
from tests.support.ek_certificates import (
    EK_PURPOSE,
    MODEL,
    NOW,
    TPM,
    YEAR,
    ec_key,
    element,
    key_usage,
    pem,
    root,
    rsa_key,
    tpm_name,
)
from tests.unit.attestation import test_ek_store as store_tests
from tests.unit.attestation import test_identity as identity_tests
from tests.unit.attestation.test_endorsement import (
    ROOT,
    crl_of,
    ek_public,
    endorse,
    endorse_key,
    policy_for,
    policy_with,
)
from wire.messages import EnrollmentRequest

SECOND = timedelta(seconds=1)
STRANGE = [(x509.UnrecognizedExtension(ObjectIdentifier(oid), b"\5\0"), True) for oid in ("1.2.3.4", "1.2.3.5")]
CLIENT = ObjectIdentifier("1.3.6.1.5.5.7.3.2")


def both_sides(refusal, call, *arguments, **given):
    with pytest.raises(Refusal) as refused:
        call(*arguments, **given)
    assert type(refused.value) is refusal
    return refused.value.expected, refused.value.actual


def findings(call, *arguments, **given):
    """What a refusal found, the first of them being what it says itself."""
    with pytest.raises(Refusal) as refused:
        call(*arguments, **given)
    first = refused.value.findings[0]
    assert refused.value.expected == f"{first.what}: {first.expected}"
    assert refused.value.actual == first.actual
    return list(refused.value.findings)


# --- EK certificates ----------------------------------------------------------------------------------------------


def test_every_mismatch_of_an_ek_certificate_says_what_would_be_right():
    wrong = {
        x509.BasicConstraints: x509.BasicConstraints(ca=True, path_length=None),
        x509.KeyUsage: key_usage(digital_signature=True, key_agreement=True),
        x509.ExtendedKeyUsage: x509.ExtendedKeyUsage([CLIENT, ObjectIdentifier("1.2.3")]),
        x509.SubjectAlternativeName: None,
    }
    begin = NOW + timedelta(days=2)
    certificate = ROOT.ek(replace=wrong, more=STRANGE, begin=begin)
    assert findings(endorse, certificate) == [
        Finding("basic constraints", "no CA", "a CA"),
        Finding("key usage", "key_encipherment", "digital_signature, key_agreement"),
        Finding("extended key usage", EK_PURPOSE.dotted_string, "1.2.3, 1.3.6.1.5.5.7.3.2"),
        Finding("subject alternative name", "the TPM's manufacturer", "none"),
        Finding("subject alternative name", "the TPM's model", "none"),
        Finding("subject alternative name", "the TPM's version", "none"),
        Finding("critical extensions", "known ones", "1.2.3.4, 1.2.3.5"),
        Finding("validity", f"begun by {NOW:%Y-%m-%d}", f"from {begin:%Y-%m-%d}"),
    ]
    none = dict.fromkeys((x509.KeyUsage, x509.ExtendedKeyUsage))
    assert findings(endorse, ROOT.ek(ec_key(), replace=none)) == [
        Finding("key usage", "key_agreement", "none"),
        Finding("extended key usage", EK_PURPOSE.dotted_string, "none"),
    ]


def test_a_certificate_begins_and_ends_with_its_second():
    skew = timedelta(minutes=5)
    assert endorse(ROOT.ek(begin=NOW), now=NOW - skew)
    assert both_sides(EkCertificateUnfit, endorse, ROOT.ek(begin=NOW + SECOND), now=NOW - skew)
    ending = ROOT.ek(end=NOW)
    assert endorse(ending).findings == ()
    told = both_sides(EkCertificateExpired, endorse, ending, now=NOW + SECOND)
    assert told == (f"valid at {NOW:%Y-%m-%d}", f"{NOW:%Y-%m-%d}")
    accepted = endorse(ending, policy_for(ROOT, expired_ek='"accept"'), now=NOW + SECOND)
    assert accepted.findings == (Finding("EK certificate", "valid today", f"expired on {NOW:%Y-%m-%d}"),)


def test_an_old_authority_is_a_finding_from_the_second_after_its_end():
    old = root("Old", end=NOW)
    ek = old.ek(begin=NOW - YEAR / 2)
    assert endorse(ek, policy_for(old)).findings == ()
    told = Finding("manufacturer CA", "valid today", f"Common Name: Old expired on {NOW:%Y-%m-%d}")
    assert endorse(ek, policy_for(old), now=NOW + SECOND).findings == (told,)


def test_an_authority_that_signed_by_sha1_is_a_finding():
    top, middle = store_tests.old_authorities()
    by = store_tests.policy('store = "Intel"', sha1_authorities='"accept"')
    told = Finding("manufacturer CA", "signed with SHA-256 or better", "Common Name: Old Intermediate: SHA-1")
    assert store_tests.endorse(middle.ek(), store_tests.store_of(top, middle), by).findings == (told,)


def test_what_is_refused_of_an_ek_says_both_sides():
    others = policy_for(ROOT, manufacturers='["id:53544D20", "id:4E544300"]')
    told = both_sides(EkManufacturerRefused, endorse, ROOT.ek(), others)
    assert told == ("Common Name: Root for id:4E544300, id:53544D20", "id:494E5443")
    swtpm = ROOT.ek(replace={x509.SubjectAlternativeName: tpm_name({**TPM, MODEL: "SwTPM 1"})})
    assert both_sides(SoftwareTpmRefused, endorse, swtpm) == ("a hardware TPM", "id:494E5443 SwTPM 1")
    assert both_sides(EkChainRefused, endorse, root("Other").ek())[0] == "a chain to one of 1 roots of the policy"
    assert both_sides(AlgorithmRefused, endorse, ROOT.ek(rsa_key(4096))) == (
        "an EK of RSA-2048, RSA-3072, P-256 or P-384",
        "RSA-4096",
    )
    either = ("either ek_certificate or ek_public", "both, or neither")
    assert both_sides(RequestMalformed, endorse, None) == either
    assert both_sides(RequestMalformed, endorse, ROOT.ek(), ek_public=b"x") == either
    old = ROOT.ek(more=[(store_tests.specification("1.2"), False)])
    assert both_sides(Tpm12Refused, endorse, old) == ("a TPM 2.0", "a TPM 1.2, by its own certificate")
    for family in ("1.1", "2.0", "12", ""):
        assert endorse(ROOT.ek(more=[(store_tests.specification(family), False)]))


def test_a_revoked_certificate_is_named_by_its_serial():
    bad = ROOT.ek()
    serial = x509.load_der_x509_certificate(bad).serial_number
    told = both_sides(EkCertificateRevoked, endorse, bad, policy_with(crl_of(ROOT, bad)))
    assert told == ("not revoked", f"serial {serial:x}")
    ending = policy_with(crl_of(ROOT, next_update=NOW))
    assert endorse(ROOT.ek(), ending).findings == ()
    overdue = Finding("manufacturer CRL", "current", f"due on {NOW:%Y-%m-%d}")
    assert endorse(ROOT.ek(), ending, now=NOW + SECOND).findings == (overdue,)


# --- bare keys ----------------------------------------------------------------------------------------------------

EK_ATTRIBUTES = "fixedTPM, fixedParent, sensitiveDataOrigin, restricted, decrypt"


def test_a_registered_key_is_trusted_as_nothing_but_a_key():
    public = ek_public()
    ek_id = ek_id_of_public(public)
    key = ec_key().public_key()
    found = endorse_key(public, ek_id)
    assert found == TrustedEk(ek_id, found.public_key, 0x0B, 128, "registered-key", "", "", "", ())
    assert found.public_key.public_numbers() == key.public_numbers()


def test_a_bare_key_that_does_not_count_says_why():
    public = ek_public()
    ek_id = ek_id_of_public(public)
    assert both_sides(EkPublicNotRegistered, endorse_key, public, None) == ("a registered key", ek_id)
    assert both_sides(EkPublicNotRegistered, endorse_key, public, "ab" * 32) == ("ab" * 32, ek_id)
    low = ("a manufacturer's certificate", "a key that was registered without one")
    assert both_sides(EkTrustTooLow, endorse_key, public, ek_id, '"certificate"') == low
    told = both_sides(AlgorithmRefused, endorse_key, ek_public("ecc256:aes256cfb"), ek_id)
    assert told == ("the TCG's template for this key", "another name algorithm or cipher")
    for attributes in (0x000300B0, 0x000100B2, 0x000700B2, 0x000200B2):
        expected, actual = both_sides(AlgorithmRefused, endorse_key, ek_public(attributes=attributes), ek_id)
        assert expected == EK_ATTRIBUTES
        assert actual not in {EK_ATTRIBUTES, "none"}


def endorse_bare(registered, by, store=EMPTY):
    request = EnrollmentRequest(ak_public=b"", pcr_banks=("sha256",), ek_public=ek_public())
    return verify_endorsement(request, by, NOW, registered, store)


def test_the_factorys_certificate_is_used_where_the_registration_rests_on_it():
    ek = ROOT.ek(ec_key())
    by_key, by_certificate = policy_for(ROOT, ek_trust='"key"'), policy_for(ROOT)
    certified = RegisteredEk(ek_id_of(ek), "certificate", ek)
    assert endorse_bare(certified, by_certificate).trust == "certificate"
    assert endorse_bare(certified, by_key).trust == "certificate"
    keyed = RegisteredEk(ek_id_of(ek), "key", ek)
    assert endorse_bare(keyed, by_key).trust == "registered-key"
    with pytest.raises(EkTrustTooLow):
        endorse_bare(keyed, by_certificate)
    with pytest.raises(EkPublicNotRegistered):
        endorse_bare(RegisteredEk(ek_id_of(ek), "certificate"), by_key)
    with pytest.raises(EkPublicNotRegistered):
        endorse_bare(None, by_key)


# --- a maker's certificate for an AK ------------------------------------------------------------------------------


def test_every_mismatch_of_an_identity_certificate_says_what_would_be_right():
    other = x509.SubjectAlternativeName(
        [
            x509.OtherName(identity_tests.HARDWARE_MODULE_NAME, identity_tests.module_name(b"\6\1\1", b"")),
            x509.OtherName(identity_tests.HARDWARE_MODULE_NAME, identity_tests.module_name()),
        ]
    )
    wrong = {
        x509.KeyUsage: key_usage(key_agreement=True, key_encipherment=True),
        x509.CertificatePolicies: identity_tests.policies("1.2.4", "1.2.3"),
        x509.SubjectAlternativeName: other,
    }
    more = [
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (x509.ExtendedKeyUsage([CLIENT, ObjectIdentifier("1.2.3")]), False),
        *STRANGE,
    ]
    begin, end = NOW - 2 * YEAR, NOW - timedelta(days=1)
    serial = b"\x00\x00\x10\x14:serial".hex()
    certificate = identity_tests.iak(replace=wrong, more=more, begin=begin, end=end)
    assert findings(identity_tests.identified, certificate) == [
        Finding("basic constraints", "no CA", "a CA"),
        Finding("key usage", "digitalSignature", "key_agreement, key_encipherment"),
        Finding("extended key usage", "2.23.133.8.3, or none at all", "1.2.3, 1.3.6.1.5.5.7.3.2"),
        Finding("certificate policies", "tcg-cap-verifiedTPMResidency (2.23.133.11.1.1)", "1.2.3, 1.2.4"),
        Finding("certificate policies", "tcg-cap-verifiedTPMRestricted (2.23.133.11.1.3)", "1.2.3, 1.2.4"),
        Finding(
            "hardwareModuleName",
            "one of type 6781050102 with a serial",
            f"type 01, serial none, type 6781050102, serial {serial}",
        ),
        Finding("critical extensions", "known ones", "1.2.3.4, 1.2.3.5"),
        Finding("validity", f"valid at {NOW:%Y-%m-%d}", f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}"),
    ]
    nothing = dict.fromkeys((x509.KeyUsage, x509.CertificatePolicies, x509.SubjectAlternativeName))
    found = findings(identity_tests.identified, identity_tests.iak(replace=nothing))
    assert [one.actual for one in found] == ["none"] * 4


def test_an_identity_certificate_is_good_from_its_first_to_its_last_second():
    skew = timedelta(minutes=5)
    certificate = identity_tests.iak(begin=NOW, end=NOW + YEAR)
    for now in (NOW - skew, NOW, NOW + YEAR):
        assert identity_tests.identified(certificate, now=now)
    for now in (NOW - skew - SECOND, NOW + YEAR + SECOND):
        assert both_sides(IdentityCertificateUnfit, identity_tests.identified, certificate, now=now)


def test_what_is_refused_of_an_identity_says_both_sides():
    other = ec_key(number="another AK")
    known = identity_tests.identified()
    certificate = identity_tests.iak(other)
    told = both_sides(IdentityKeyDiffers, identity_tests.identified, certificate)
    assert told == (known.certificate_id, ek_id_of(certificate))
    assert known.certificate_id == ek_id_of(identity_tests.CERTIFICATE) == known.ak.key_id
    assert known.subject == "Common Name: IAK of device 1"
    stranger = identity_tests.iak(issuer=root("Somebody"))
    told = both_sides(IdentityChainRefused, identity_tests.identified, stranger)
    assert told == (
        "a chain to one of 1 identity roots of the policy",
        "no certificate of its issuer, Common Name: Somebody",
    )
    broken = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.32"), b"\x30\x03\x02\x01\x01")
    malformed = identity_tests.iak(replace={x509.CertificatePolicies: broken})
    assert both_sides(CertificateMalformed, identity_tests.identified, malformed)[0] == "certificate policies"
    trailing = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.32"), b"\x30\0\5\0")
    malformed = identity_tests.iak(replace={x509.CertificatePolicies: trailing})
    assert both_sides(CertificateMalformed, identity_tests.identified, malformed) == (
        "certificate policies",
        "ValueError",
    )
    no_type = element(0x30, element(0x04, b"no type"))
    names = x509.SubjectAlternativeName([x509.OtherName(identity_tests.HARDWARE_MODULE_NAME, no_type)])
    malformed = identity_tests.iak(replace={x509.SubjectAlternativeName: names})
    told = both_sides(CertificateMalformed, identity_tests.identified, malformed)
    assert told == ("hwType and hwSerialNum", "other fields")


def test_an_old_maker_and_an_old_list_are_findings():
    old = root("Old Maker", end=NOW)
    certificate = identity_tests.iak(issuer=old, begin=NOW - YEAR / 2)
    by = identity_tests.policy(old)
    assert identity_tests.identified(certificate, by=by).findings == ()
    told = Finding("device maker's CA", "valid today", f"Common Name: Old Maker expired on {NOW:%Y-%m-%d}")
    assert identity_tests.identified(certificate, by=by, now=NOW + SECOND).findings == (told,)
    listed = identity_tests.policy(old, extra=f'crls = """{crl_of(old, next_update=NOW)}"""')
    due = Finding("manufacturer CRL", "current", f"due on {NOW:%Y-%m-%d}")
    assert identity_tests.identified(certificate, by=listed, now=NOW + SECOND).findings == (due, told)


# --- the store of roots -------------------------------------------------------------------------------------------


def test_every_mismatch_of_a_root_is_told():
    der = ROOT.intermediate("Low", ca=False, usage=key_usage(digital_signature=True, crl_sign=True), more=STRANGE).der
    with pytest.raises(EkRootRefused) as refused:
        judge(der, NOW)
    assert list(refused.value.findings) == [
        Finding("basic constraints", "a certificate authority", "an end entity"),
        Finding("key usage", "keyCertSign", "crl_sign, digital_signature"),
        Finding("critical extensions", "known ones", "1.2.3.4, 1.2.3.5"),
    ]
    assert refused.value.expected == "a certificate authority's certificate"
    told = "basic constraints: an end entity; key usage: crl_sign, digital_signature"
    assert refused.value.actual == f"{told}; critical extensions: 1.2.3.4, 1.2.3.5"
    bare = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.15"), b"\x03\x02\x07\x00")
    nothing = ROOT.issue("Low", ec_key(), [(x509.BasicConstraints(ca=True, path_length=None), True), (bare, True)])
    with pytest.raises(EkRootRefused) as refused:
        judge(nothing, NOW)
    assert refused.value.actual == "key usage: none"


def test_a_damaged_root_says_that_its_own_signature_does_not_verify():
    with pytest.raises(EkRootRefused) as refused:
        judge(ROOT.der[:-1] + bytes([ROOT.der[-1] ^ 1]), NOW)
    (found,) = refused.value.findings
    assert (found.what, found.expected, found.actual) == (
        "self-signature",
        "to verify",
        "its signature does not verify",
    )


def test_what_is_to_be_known_of_a_root_is_noted_from_the_second_on():
    one = root("Noted", begin=NOW, end=NOW + YEAR)
    assert judge(one.der, NOW).notes == ()
    assert judge(one.der, NOW + YEAR).notes == ()
    assert judge(one.der, NOW - SECOND).notes == (f"begins on {NOW:%Y-%m-%d}",)
    end = f"{NOW + YEAR:%Y-%m-%d}"
    assert judge(one.der, NOW + YEAR + SECOND).notes == (f"expired on {end}: counts for EKs that were made before",)
    _, middle = store_tests.old_authorities()
    note = 'signed with SHA-1: an intermediate only where a policy says sha1_authorities = "accept"'
    assert judge(middle.der, NOW).notes == (note,)


def test_the_store_finds_by_the_exact_name_first():
    exact, other = root("A Root"), root("a  root", ec_key(number="other"))
    kept = [stored(judge(one.der, NOW), "Intel", Role.SELF_SIGNED) for one in (other, exact)]
    store = EkStore(kept)
    names = [parse_certificate(one.der).subject for one in (exact, other)]
    assert [one.der for one in store.named(names[0])] == [exact.der]
    assert [one.der for one in store.named(names[1])] == [other.der]
    assert kept[0].subject == names[1]
    third = parse_certificate(root("A ROOT", ec_key(number="third")).der).subject
    assert {one.der for one in store.named(third)} == {exact.der, other.der}
    assert store.named(parse_certificate(root("B").der).subject) == ()
    assert store.certificate(kept[0]) is store.certificate(kept[0])


def test_who_steps_back_was_the_topmost_and_nothing_else():
    """An intermediate stays what it is, and a root of a folder too, when their signer comes."""
    middle = ROOT.intermediate("Middle")
    for role in (Role.INTERMEDIATE, Role.ROOT_FOLDER):
        known = store_tests.kept(middle, role=role)
        added = store_tests.kept(ROOT)
        assert roles([added], [known]) == {added.fingerprint: Role.SELF_SIGNED}


def test_the_way_up_goes_over_a_signature_by_sha1():
    top, middle = store_tests.old_authorities()
    assert way_up(parse_certificate(middle.der), store_tests.store_of(top)) == ("Common Name: Old Root",)
    assert roles([store_tests.kept(middle), store_tests.kept(top)], ())[
        store_tests.kept(middle).fingerprint
    ] is Role.INTERMEDIATE  # fmt: skip


# --- chains -------------------------------------------------------------------------------------------------------


def test_why_an_authority_may_not_issue_is_told_with_its_name():
    impostor = ROOT.intermediate("Device", ca=False)
    assert both_sides(EkChainRefused, endorse, impostor.ek(), None, impostor)[1] == (
        "Common Name: Device is no certificate authority"
    )
    narrow = ROOT.intermediate("Narrow", more=STRANGE)
    assert both_sides(EkChainRefused, endorse, narrow.ek(), None, narrow)[1] == (
        "Common Name: Narrow has critical extensions that nobody here understands: 1.2.3.4, 1.2.3.5"
    )
    late = ROOT.intermediate("Late", begin=NOW - timedelta(days=1))
    born = NOW - YEAR
    assert both_sides(EkChainRefused, endorse, late.ek(), None, late)[1] == (
        f"Common Name: Late was valid from {NOW - timedelta(days=1):%Y-%m-%d} to {NOW + YEAR:%Y-%m-%d}, "
        f"the EK was made on {born:%Y-%m-%d}"
    )


def test_reasons_are_told_once_each_and_the_search_goes_on():
    """A bad candidate of the right name stands before the good one."""
    good = ROOT.intermediate("Twin")
    bad = root("Elsewhere").intermediate("Twin", key=ec_key(number="bad"))
    assert endorse(good.ek(), None, bad, good)
    actual = both_sides(EkChainRefused, endorse, good.ek(), None, bad, bad)[1]
    assert actual == "Common Name: Twin did not issue Common Name: EK: its signature does not verify"
    lost = root("Lost").intermediate("Twin", key=good.key)
    actual = both_sides(EkChainRefused, endorse, good.ek(), None, bad, lost)[1]
    assert actual == (
        "Common Name: Twin did not issue Common Name: EK: its signature does not verify; "
        "no certificate of the issuer Common Name: Lost"
    )


def test_an_authority_vouches_on_the_first_and_last_second_of_its_own():
    born = NOW - YEAR / 2
    for begin, end in ((born, NOW), (NOW - YEAR, born)):
        exact = ROOT.intermediate("Exact", begin=begin, end=end)
        assert endorse(exact.ek(begin=born), None, exact)
    for begin, end in ((born + SECOND, NOW), (NOW - YEAR, born - SECOND)):
        missed = ROOT.intermediate("Exact", begin=begin, end=end)
        assert "was valid from" in both_sides(EkChainRefused, endorse, missed.ek(begin=born), None, missed)[1]


def test_the_last_signature_within_the_bound_is_judged():
    """`TRIES_MOST` - 1 that did not sign, then the one that did; one more of the others, and it is not reached."""

    def crowd(number):
        return [
            root(f"Elsewhere {one}").intermediate("Twin", key=ec_key(number=f"crowd {one}")) for one in range(number)
        ]

    good = ROOT.intermediate("Twin")
    others = crowd(chains.TRIES_MOST - 1)
    assert endorse(good.ek(), None, *others[:-1], good)
    actual = both_sides(EkChainRefused, endorse, good.ek(), None, *others, good)[1]
    assert f"Common Name: Root was not tried: {chains.TRIES_MOST} signatures were judged before" in actual


def test_a_path_length_is_kept_exactly():
    lower = ROOT.intermediate("Lower", path_length=0)
    assert endorse(lower.ek(), None, lower)
    lowest = lower.intermediate("Lowest")
    actual = both_sides(EkChainRefused, endorse, lowest.ek(), None, lower, lowest)[1]
    assert "Common Name: Lower allows 0 authorities below it, not 1" in actual


# --- certificates -------------------------------------------------------------------------------------------------


def test_a_malformed_certificate_says_what_was_expected():
    assert both_sides(CertificateMalformed, parse_certificate, b"") == ("one X.509 certificate in DER", "ValueError")
    assert both_sides(CertificateMalformed, parse_certificate, bytes(8193)) == ("at most 8192 bytes", "8193 bytes")
    assert both_sides(CertificateMalformed, parse_certificate, bytes(8192))[0] == "one X.509 certificate in DER"
    twice = bytearray(ROOT.ek(more=[(x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.20"), b"\x30\0"), False)]))
    twice[twice.index(bytes.fromhex("0603551d14")) + 4] = 0x13
    assert both_sides(CertificateMalformed, read_leniently, bytes(twice)) == ("each extension once", "2.5.29.19 twice")
    other = ROOT.issue("EK", ed25519.Ed25519PrivateKey.generate(), [])
    for read in (read_strictly, read_leniently):
        assert both_sides(AlgorithmRefused, read, other)[0]


def test_both_readers_agree_where_extensions_are_missing_or_unknown():
    bare = ROOT.issue("EK", ec_key(), STRANGE)
    empty = ROOT.ek(replace=dict.fromkeys((x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage)), more=STRANGE)
    for der in (bare, empty):
        strict, lenient = read_strictly(der), read_leniently(der)
        for field in strict.__dataclass_fields__:
            if field != "public_key":
                assert getattr(strict, field) == getattr(lenient, field), field
        assert strict.unhandled == ("1.2.3.4", "1.2.3.5")
        assert (strict.key_usage, strict.is_ca, strict.path_length) == (None, False, None)


# --- names --------------------------------------------------------------------------------------------------------


def named(*attributes):
    """A name in DER: pairs of OID and text."""
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes]).public_bytes()


def test_an_attribute_of_a_name_is_its_first_value():
    name = named((NameOID.ORGANIZATION_NAME, "Acme"), (NameOID.COMMON_NAME, "one"), (NameOID.COMMON_NAME, "two"))
    assert attribute_of(name, "organization_name") == "Acme"
    assert attribute_of(name, "common_name") == "one"
    assert attribute_of(name, "locality_name") == ""
    assert attribute_of(b"no name", "common_name") == ""
    assert attribute_of(name + b"\0", "common_name") == ""
    assert "Acme" in name_text(name)
    assert name_key(name) != name_key(name + b"\0")


@pytest.mark.parametrize(
    ("attributes", "manufacturer"),
    [
        ([(NameOID.ORGANIZATION_NAME, "Infineon Technologies AG")], "Infineon"),
        ([(NameOID.COMMON_NAME, "NTC TPM EK Root CA 01")], "Nuvoton"),
        ([(NameOID.ORGANIZATION_NAME, "Acme"), (NameOID.COMMON_NAME, "Intel TPM")], "Intel"),
        ([(NameOID.ORGANIZATION_NAME, "AMD"), (NameOID.COMMON_NAME, "Intel TPM")], "AMD"),
        ([(NameOID.ORGANIZATIONAL_UNIT_NAME, "Winbond-TPM")], "Winbond"),
        ([(NameOID.COMMON_NAME, "x-STMicroelectronics-y")], "STMicroelectronics"),
        ([(NameOID.COMMON_NAME, "Mystm TPM")], "Mystm TPM"),
        ([(NameOID.ORGANIZATION_NAME, "Acme"), (NameOID.COMMON_NAME, "TPM CA")], "Acme"),
        ([(NameOID.COMMON_NAME, "TPM CA")], "TPM CA"),
        ([(NameOID.ORGANIZATION_NAME, "Acme")], "Acme"),
        ([(NameOID.LOCALITY_NAME, "Somewhere")], manufacturers.UNKNOWN),
    ],
)
def test_a_subject_names_its_manufacturer(attributes, manufacturer):
    assert manufacturers.of_subject(named(*attributes)) == manufacturer


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("TrustedTpm.cab\\Intel\\RootCA\\x.crt", "Intel"),
        ("a/Acme/Root-CA/x.crt", "Acme"),
        ("a/Acme/Intermediate CA/x.crt", "Acme"),
        ("a/ST-Micro/x.crt", "STMicroelectronics"),
        ("a/hewlett packard enterprise/x.crt", "HPE"),
        ("RootCA/Intel/x.crt", "Intel"),
    ],
)
def test_folders_are_read_whatever_separates_their_words(source, name):
    assert manufacturers.of_folder(source) == name


def test_aliases_are_found_whatever_separates_their_words():
    assert manufacturers.named("ST-Micro") == manufacturers.named("s.t.m") == "STMicroelectronics"
    assert manufacturers.named("Texas   Instruments") == "Texas Instruments"
    assert manufacturers.named("") == ""


# --- files of certificates ----------------------------------------------------------------------------------------

ONE, TWO = root("One").der, root("Two").der


def told(data):
    return [(one.place, one.der, one.reason) for one in certificates_in(data)]


def pem_block(label, body):
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()


def signed_data(*certificates):
    """PKCS#7 SignedData that holds these elements where certificates stand."""
    data = element(0x06, bytes.fromhex("2a864886f70d010701"))
    inner = b"\x02\x01\x01" + element(0x31, b"") + element(0x30, data)
    inner += element(0xA0, b"".join(certificates)) if certificates else b""
    inner += element(0x31, b"")
    return element(0x30, element(0x06, bytes.fromhex("2a864886f70d010702")) + element(0xA0, element(0x30, inner)))


def test_what_is_said_of_files():
    assert told(b"") == [(1, b"", "is empty")]
    assert told(bytes(FILE_MOST + 1)) == [(1, b"", "is larger than 8 MiB")]
    assert told(bytes(FILE_MOST)) == [(1, b"", "holds no certificate")]
    assert told(ONE + b"more") == [(1, ONE, ""), (2, b"", "has other octets behind a certificate")]
    assert told(b"text") == [(1, b"", "holds no certificate")]
    assert told(signed_data()) == [(1, b"", "is PKCS#7 without a certificate")]
    assert told(signed_data(ONE)) == [(1, ONE, "")]


def test_more_certificates_than_the_cap_are_said_to_be_there(monkeypatch):
    monkeypatch.setattr(bundles, "FOUND_MOST", 3)
    three = [(place, ONE, "") for place in (1, 2, 3)]
    assert told(ONE * 3) == three
    for data in (ONE * 4, ONE * 9, pem(*[ONE] * 5).encode()):
        assert told(data) == [*three, (4, b"", "holds more than 3 certificates")]


def test_pem_of_which_a_part_is_broken_gives_the_rest():
    good = pem(TWO).encode()
    for broken in ("M!I", "MII", "ä"):
        assert told(pem_block("CERTIFICATE", broken) + good) == [
            (1, b"", "has broken base64 in it"),
            (2, TWO, ""),
        ]
    assert told(pem_block("PRIVATE KEY", "AAAA") + good) == [
        (1, b"", "is a block 'PRIVATE KEY', not a certificate"),
        (2, TWO, ""),
    ]
    assert told(good + b"-----BEGIN CERTIFICATE-----\nMII") == [
        (1, TWO, ""),
        (2, b"", "has a PEM block without its end"),
    ]
    assert told(good + good) == [(1, TWO, ""), (2, TWO, "")]
    assert told(pem_block("CERTIFICATE", "AAAA") + good) == [(1, b"", "holds no certificate"), (2, TWO, "")]


def test_an_attribute_certificate_in_pkcs7_is_said_to_be_one():
    attribute = b"\xa2" + element(0x30, b"")[1:]
    reasons = [one.reason for one in certificates_in(signed_data(attribute))]
    assert len(reasons) == 1
    assert reasons[0].startswith(("is an attribute certificate in PKCS#7", "is broken PKCS#7 ("))


def test_base64_may_begin_with_blanks():
    assert told(b"\n " + base64.encodebytes(ONE)) == [(1, ONE, "")]
    assert told(base64.encodebytes(b"AAAA")) == [(1, b"", "holds no certificate")]


def test_padding_ends_a_file():
    for padding in (b"", b"\0", b"\xff", b"\0\xff"):
        assert told(ONE + padding) == [(1, ONE, "")]


# --- signatures ---------------------------------------------------------------------------------------------------


def test_a_salt_of_any_length_to_its_cap_counts():
    authority = root("PSS Root", rsa_key(3072))
    for salt, good in ((0, True), (1, True), (64, True), (65, False)):
        signed = store_tests.pss_signed(authority, salt=salt)
        why = why_not_signed(parse_certificate(signed.der), authority.key.public_key())
        assert why == (None if good else "its RSASSA-PSS parameters do not count")


def test_why_a_signature_is_none_is_told():
    certificate = parse_certificate(ROOT.der)
    assert why_not_signed(certificate, ROOT.key.public_key()) is None
    assert why_not_signed(certificate, ec_key(number="other").public_key()) == "its signature does not verify"
    assert why_not_signed(certificate, rsa_key().public_key()) == (
        "its signature algorithm 1.2.840.10045.4.3.2 does not count, or is not of its issuer's key"
    )


# --- an IDevID beside the IAK, and the answer of a certified AK -------------------------------------------------------


SERIAL = b"\x00\x00\x10\x14:serial"


def idevid(serial=SERIAL, *, issuer=identity_tests.MAKER, key=None, replace=None, **given):
    """Right in every field: the same TPM, by the same maker."""
    name = x509.OtherName(identity_tests.HARDWARE_MODULE_NAME, identity_tests.module_name(serial=serial))
    values = {
        x509.CertificatePolicies: identity_tests.policies(VERIFIED_TPM_RESIDENCY),
        x509.SubjectAlternativeName: x509.SubjectAlternativeName([name]),
        **(replace or {}),
    }
    return identity_tests.iak(key or ec_key(number="IDevID"), issuer, replace=values, **given)


def judged_idevid(certificate, *intermediates, by=None, now=NOW, store=EMPTY):
    ders = tuple(one.der for one in intermediates)
    return verify_idevid(certificate, ders, identity_tests.identified(), by or identity_tests.policy(), now, store)


def test_an_idevid_is_of_the_tpm_of_its_iak():
    assert judged_idevid(idevid()) == ()
    assert judged_idevid(idevid(more=[(x509.ExtendedKeyUsage([CLIENT]), False)])) == ()
    root_id = ek_id_of(identity_tests.MAKER.der)
    assert identity_tests.identified().root_id == root_id
    mine = f"hardware serial {SERIAL.hex()}, root {root_id}"
    told = both_sides(IdevidOfAnotherTpm, judged_idevid, idevid(b"another"))
    assert told == (mine, f"hardware serial {b'another'.hex()}, root {root_id}")
    other = root("Other Maker")
    by = identity_tests.policy(identity_tests.MAKER, other)
    told = both_sides(IdevidOfAnotherTpm, judged_idevid, idevid(issuer=other), by=by)
    assert told == (mine, mine.replace(root_id, ek_id_of(other.der)))


def test_an_idevid_is_judged_as_any_certificate():
    with pytest.raises(IdentityChainRefused):
        judged_idevid(idevid(issuer=root("Somebody")))
    middle = identity_tests.MAKER.intermediate("Maker CA")
    low = idevid(issuer=middle)
    with pytest.raises(IdentityChainRefused):
        judged_idevid(low)
    assert judged_idevid(low, middle) == ()
    kept = EkStore([stored(judge(middle.der, NOW), "Maker", Role.INTERMEDIATE)])
    assert judged_idevid(low, store=kept) == ()
    with pytest.raises(IdentityCertificateUnfit):
        judged_idevid(idevid(replace={x509.CertificatePolicies: identity_tests.policies("1.2.3")}))
    with pytest.raises(IdentityCertificateUnfit):
        judged_idevid(idevid(), now=NOW + 2 * YEAR)
    with pytest.raises(AlgorithmRefused):
        judged_idevid(idevid(key=ec_key(ec.SECP521R1)))
    bad = idevid()
    with pytest.raises(EkCertificateRevoked):
        judged_idevid(bad, by=identity_tests.policy(extra=f'crls = """{crl_of(identity_tests.MAKER, bad)}"""'))
    due = identity_tests.policy(extra=f'crls = """{crl_of(identity_tests.MAKER, next_update=NOW - SECOND)}"""')
    assert [finding.what for finding in judged_idevid(idevid(), by=due)] == ["manufacturer CRL"]


def test_the_challenge_says_which_proof_is_an_answer():
    line = identity_tests.evidence_tests
    device = line.LightDevice("device", line.rsa_key(), b"", line.BOOT)
    evidence, stored_one = line.honest(device)
    opened = verify_answer(evidence, evidence.csr, stored_one)
    assert (opened.challenge, opened.csr) == (stored_one, evidence.csr)
    with pytest.raises(ActivationProofWrong):
        verify_answer(replace(evidence, activation_proof=b""), evidence.csr, stored_one)
    with pytest.raises(ActivationProofWrong):
        verify_answer(evidence, b"another CSR", stored_one)
    by_quote = replace(stored_one, proof="quote")
    bare = replace(evidence, activation_proof=b"")
    quoted = verify_answer(bare, evidence.csr, by_quote)
    assert (quoted.challenge, quoted.csr, quoted.ak.public) == (by_quote, evidence.csr, stored_one.ak_public)
    with pytest.raises(AnswersAnotherChallenge):
        verify_answer(bare, b"another CSR", by_quote)
    with pytest.raises(PcrValuesNotQuoted):
        verify_answer(replace(bare, pcrs={"sha256": {"0": bytes(32)}}), evidence.csr, by_quote)
    with pytest.raises(ActivationProofWrong):
        verify_own_quote(evidence.quote, evidence.pcrs, evidence.csr, stored_one)
    with pytest.raises(ActivationProofWrong):
        verify_activation(evidence.activation_proof, evidence.csr, by_quote)
