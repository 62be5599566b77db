"""A device maker's certificate for an AK (TCG, TPM 2.0 Keys for Device Identity and Attestation): what it must say."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from lab.light import make_ak
from provisioning.attestation.bundles import certificates_in
from provisioning.attestation.certificates import read_leniently, read_strictly
from provisioning.attestation.ek_store import EMPTY, EkStore, Role, judge, stored
from provisioning.attestation.evidence import verify_activation, verify_evidence
from provisioning.attestation.identity import (
    AIK_CERTIFICATE,
    VERIFIED_TPM_RESIDENCY,
    VERIFIED_TPM_RESTRICTED,
    verify_answer,
    verify_identity,
    verify_idevid,
    verify_own_quote,
)
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.structures import name_of
from provisioning.refusals import (
    ActivationProofWrong,
    AkAttributesRefused,
    AlgorithmRefused,
    AnswersAnotherChallenge,
    CertificateMalformed,
    EkCertificateRevoked,
    IdentityCertificateUnfit,
    IdentityChainRefused,
    IdentityKeyDiffers,
    IdevidOfAnotherTpm,
    PcrValuesNotQuoted,
    Refusal,
    SignatureWrong,
    StructureMalformed,
)
from tests.support.ek_certificates import NOW, YEAR, ec_key, element, key_usage, pem, root
from tests.unit.attestation import test_evidence as evidence_tests

VECTORS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "idevid"
MAKER = root("Device Maker Root")
HARDWARE_MODULE_NAME = ObjectIdentifier("1.3.6.1.5.5.7.8.4")
TPM_2_0 = bytes.fromhex("0605678105010 2".replace(" ", ""))
AK = make_ak()


def module_name(kind=TPM_2_0, serial=b"\x00\x00\x10\x14:serial"):
    return element(0x30, kind + element(0x04, serial))


def policies(*oids):
    return x509.CertificatePolicies([x509.PolicyInformation(ObjectIdentifier(oid), None) for oid in oids])


def iak(key=None, issuer=MAKER, *, replace=None, more=(), **given):
    """An IAK certificate by the TCG's profile; `replace` exchanges an extension by its class, None takes it out."""
    values = {
        x509.KeyUsage: key_usage(digital_signature=True),
        x509.CertificatePolicies: policies(VERIFIED_TPM_RESIDENCY, VERIFIED_TPM_RESTRICTED),
        x509.SubjectAlternativeName: x509.SubjectAlternativeName([x509.OtherName(HARDWARE_MODULE_NAME, module_name())]),
        **(replace or {}),
    }
    extensions = [(value, kind is x509.KeyUsage) for kind, value in values.items() if value is not None]
    return issuer.issue("IAK of device 1", key or AK.private, [*extensions, *more], **given)


CERTIFICATE = iak()


def policy(*roots, extra=""):
    lines = ['model = "server"']
    for one in roots or (MAKER,):
        lines += ["[[identity_roots]]", f'certificate = """{pem(one.der)}"""', 'manufacturers = ["id:48504500"]', extra]
    return parse_policy("\n".join([*lines, "[pcrs.sha256]", f'"0" = ["{"00" * 32}"]']))


def identified(certificate=None, *intermediates, by=None, ak=AK.public, now=NOW, store=EMPTY):
    return verify_identity(
        ak, certificate or iak(), tuple(one.der for one in intermediates), by or policy(), now, store
    )


def unfit(certificate):
    with pytest.raises(IdentityCertificateUnfit) as refused:
        identified(certificate)
    return [finding.what for finding in refused.value.findings]


def test_an_ak_with_its_makers_certificate_is_known():
    known = identified()
    assert known.ak.name == name_of(AK.public)
    assert known.hardware_serial == b"\x00\x00\x10\x14:serial".hex()
    assert "IAK of device 1" in known.subject
    assert known.findings == ()


def test_intermediates_come_from_the_device_or_from_the_store():
    middle = MAKER.intermediate("Device Maker CA 7")
    certificate = iak(issuer=middle)
    with pytest.raises(IdentityChainRefused, match="does not chain"):
        identified(certificate)
    assert identified(certificate, middle)
    store = EkStore([stored(judge(middle.der, NOW), "Maker", Role.INTERMEDIATE)])
    assert identified(certificate, store=store)


def test_a_root_for_eks_is_none_for_identities():
    """The two lists of a policy are two matters: who may say "a genuine TPM" may not thereby say "this key"."""
    lines = ['model = "server"', "[[ek_roots]]", f'certificate = """{pem(MAKER.der)}"""']
    lines += ['manufacturers = ["id:48504500"]', "[pcrs.sha256]", f'"0" = ["{"00" * 32}"]']
    with pytest.raises(IdentityChainRefused):
        identified(by=parse_policy("\n".join(lines)))


def test_a_certificate_of_another_maker_is_refused():
    for impostor in (root("Somebody"), root("Device Maker Root", ec_key(number="forged"))):
        with pytest.raises(IdentityChainRefused):
            identified(iak(issuer=impostor))


def test_the_certificate_is_for_this_ak_and_no_other():
    with pytest.raises(IdentityKeyDiffers):
        identified(iak(ec_key(number="another AK")))


def test_a_key_that_is_not_restricted_is_refused_whatever_its_certificate_says():
    attributes = AK.public[4:8]
    loose = int.from_bytes(attributes, "big") & ~(1 << 16)
    with pytest.raises(AkAttributesRefused):
        identified(ak=AK.public[:4] + loose.to_bytes(4, "big") + AK.public[8:])


@pytest.mark.parametrize("missing", [VERIFIED_TPM_RESIDENCY, VERIFIED_TPM_RESTRICTED])
def test_both_words_of_the_ca_about_the_tpm_are_needed(missing):
    other = {VERIFIED_TPM_RESIDENCY, VERIFIED_TPM_RESTRICTED} - {missing}
    assert unfit(iak(replace={x509.CertificatePolicies: policies(*other)})) == ["certificate policies"]


def test_an_idevid_is_no_iak():
    """Its key signs anything: tcg-cap-verifiedTPMFixed says that it stays in the TPM, not what it signs."""
    fixed = policies(VERIFIED_TPM_RESIDENCY, "2.23.133.11.1.2")
    assert unfit(iak(replace={x509.CertificatePolicies: fixed})) == ["certificate policies"]


@pytest.mark.parametrize(
    "name",
    [
        None,
        x509.SubjectAlternativeName([x509.DNSName("device.example")]),
        x509.SubjectAlternativeName(
            [x509.OtherName(HARDWARE_MODULE_NAME, module_name(bytes.fromhex("0605678105010 0".replace(" ", ""))))]
        ),
        x509.SubjectAlternativeName([x509.OtherName(HARDWARE_MODULE_NAME, module_name(serial=b""))]),
        x509.SubjectAlternativeName([x509.OtherName(HARDWARE_MODULE_NAME, module_name())] * 2),
    ],
    ids=["none", "a host name", "a TPM 1.2", "no serial", "two of them"],
)
def test_it_names_one_tpm_2_0(name):
    assert unfit(iak(replace={x509.SubjectAlternativeName: name})) == ["hardwareModuleName"]


def test_a_broken_hardware_module_name_is_malformed():
    broken = x509.SubjectAlternativeName(
        [x509.OtherName(HARDWARE_MODULE_NAME, element(0x30, element(0x04, b"no type")))]
    )
    with pytest.raises(CertificateMalformed):
        identified(iak(replace={x509.SubjectAlternativeName: broken}))


def test_broken_policies_are_malformed():
    broken = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.32"), b"\x30\x03\x02\x01\x01")
    with pytest.raises(CertificateMalformed):
        identified(iak(replace={x509.CertificatePolicies: broken}))


def test_key_usage_extended_key_usage_and_dates_count():
    assert unfit(iak(replace={x509.KeyUsage: None})) == ["key usage"]
    assert unfit(iak(replace={x509.KeyUsage: key_usage(key_agreement=True)})) == ["key usage"]
    purposes = x509.ExtendedKeyUsage([ObjectIdentifier("1.3.6.1.5.5.7.3.2")])
    assert unfit(iak(more=[(purposes, False)])) == ["extended key usage"]
    assert identified(iak(more=[(x509.ExtendedKeyUsage([ObjectIdentifier(AIK_CERTIFICATE)]), False)]))
    assert unfit(iak(end=NOW - timedelta(seconds=1))) == ["validity"]
    assert unfit(iak(begin=NOW + timedelta(hours=1))) == ["validity"]
    strange = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0")
    assert unfit(iak(more=[(strange, True)])) == ["critical extensions"]
    authority = x509.BasicConstraints(ca=True, path_length=None)
    assert unfit(iak(more=[(authority, True)])) == ["basic constraints"]


def test_every_mismatch_is_named():
    nothing = dict.fromkeys((x509.KeyUsage, x509.CertificatePolicies, x509.SubjectAlternativeName))
    wrong = ["key usage", "certificate policies", "certificate policies", "hardwareModuleName", "validity"]
    assert unfit(iak(replace=nothing, end=NOW - timedelta(days=1))) == wrong


def test_an_expired_ca_is_a_finding_and_a_revoked_certificate_is_refused():
    old = root("Old Maker", end=NOW - timedelta(days=1))
    known = identified(iak(issuer=old, begin=NOW - YEAR / 2), by=policy(old))
    assert [finding.what for finding in known.findings] == ["device maker's CA"]
    from tests.unit.attestation.test_endorsement import crl_of

    bad = iak()
    with pytest.raises(EkCertificateRevoked):
        identified(bad, by=policy(extra=f'crls = """{crl_of(MAKER, bad)}"""'))


def test_what_is_no_certificate_or_no_key_is_named():
    with pytest.raises(CertificateMalformed):
        identified(b"\x30\x03\x02\x01\x01")
    with pytest.raises(StructureMalformed):
        identified(ak=b"")
    with pytest.raises(AlgorithmRefused):
        identified(iak(ec_key(ec.SECP521R1)))


# --- what it signs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def device():
    return evidence_tests.LightDevice("device", evidence_tests.rsa_key(), b"", evidence_tests.BOOT)


def answered(evidence, stored):
    return verify_own_quote(evidence.quote, evidence.pcrs, evidence.csr, stored)


def test_evidence_of_an_identified_key_is_judged_by_the_same_line(device):
    """The quote stands for the activation; certify, CSR, PCRs and binding are what they are for any AK."""
    evidence, stored = evidence_tests.honest(device)
    evidence, stored = replace(evidence, activation_proof=b""), replace(stored, proof="quote")
    known = identified(iak(device.ak.private), ak=device.ak.public)
    assert known.ak.public == stored.ak_public
    verified = verify_evidence(evidence, None, answered(evidence, stored), evidence_tests.POLICY, None, {})
    assert verified.csr.spki


def test_a_quote_for_another_challenge_or_by_another_key_proves_nothing(device):
    evidence, stored = evidence_tests.honest(device)
    stored = replace(stored, proof="quote")
    for other in ({"nonce": b"m" * 32}, {"enrollment_id": "enrollment-2"}, {"audience": "another.test"}):
        with pytest.raises(AnswersAnotherChallenge):
            answered(evidence, replace(stored, **other))
    with pytest.raises(AnswersAnotherChallenge):
        verify_own_quote(evidence.quote, evidence.pcrs, b"another CSR", stored)
    with pytest.raises(SignatureWrong):
        answered(evidence, replace(stored, ak_public=AK.public))
    with pytest.raises(PcrValuesNotQuoted):
        verify_own_quote(evidence.quote, {"sha256": {"0": bytes(32)}}, evidence.csr, stored)


def test_neither_proof_stands_for_the_other(device):
    """A challenge says by what it is answered: no stranger gets along without the credential that was made."""
    evidence, stored = evidence_tests.honest(device)
    assert verify_answer(evidence, evidence.csr, stored)
    with pytest.raises(ActivationProofWrong):
        verify_own_quote(evidence.quote, evidence.pcrs, evidence.csr, stored)
    certified = replace(stored, proof="quote")
    with pytest.raises(ActivationProofWrong):
        verify_activation(evidence.activation_proof, evidence.csr, certified)
    assert verify_answer(replace(evidence, activation_proof=b""), evidence.csr, certified).csr == evidence.csr
    with pytest.raises(ActivationProofWrong):
        verify_answer(replace(evidence, activation_proof=b""), evidence.csr, stored)


# --- the IDevID beside it ---------------------------------------------------------------------------------------------


def idevid(issuer=MAKER, **given):
    """An IDevID certificate by the TCG's profile; its key signs nothing here."""
    resident = {x509.CertificatePolicies: policies(VERIFIED_TPM_RESIDENCY), **given.pop("replace", {})}
    return iak(ec_key(number="idevid"), issuer, replace=resident, **given)


def beside(certificate, *intermediates, by=None):
    return verify_idevid(certificate, tuple(one.der for one in intermediates), identified(by=by), by or policy(), NOW)


def test_an_idevid_of_the_same_tpm_is_believed_with_its_iak():
    assert beside(idevid()) == ()
    middle = MAKER.intermediate("Device Maker CA 8")
    assert beside(idevid(middle), middle) == ()
    usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    assert beside(idevid(more=[(usage, False)])) == ()  # it is no AK: it may be for TLS


def test_an_idevid_of_another_tpm_or_another_maker_is_refused():
    elsewhere = x509.SubjectAlternativeName([x509.OtherName(HARDWARE_MODULE_NAME, module_name(serial=b"another"))])
    with pytest.raises(IdevidOfAnotherTpm, match="not of the TPM"):
        beside(idevid(replace={x509.SubjectAlternativeName: elsewhere}))
    other = root("Another Maker")
    both = policy(MAKER, other)
    with pytest.raises(IdevidOfAnotherTpm):
        beside(idevid(other), by=both)
    with pytest.raises(IdentityChainRefused):
        beside(idevid(other))


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        (x509.CertificatePolicies, policies(VERIFIED_TPM_RESTRICTED), "certificate policies"),
        (x509.CertificatePolicies, None, "certificate policies"),
        (x509.KeyUsage, key_usage(key_agreement=True), "key usage"),
        (x509.SubjectAlternativeName, None, "hardwareModuleName"),
    ],
    ids=["not resident", "no policies", "no signatures", "no TPM"],
)
def test_an_idevid_says_what_it_must(kind, value, what):
    with pytest.raises(IdentityCertificateUnfit) as refused:
        beside(idevid(replace={kind: value}))
    assert [finding.what for finding in refused.value.findings] == [what]


@given(st.data())
def test_a_changed_octet_is_never_accepted(data):
    certificate = CERTIFICATE
    at = data.draw(st.integers(0, len(certificate) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    changed = certificate[:at] + bytes([certificate[at] ^ bit]) + certificate[at + 1 :]
    with pytest.raises(Refusal):
        identified(changed)


@pytest.mark.parametrize("read", [read_strictly, read_leniently])
def test_a_signature_of_fewer_bits_is_not_overlooked(read):
    """Where its last bit is zero, one bit less is the same number."""
    even = next(one for one in iter(iak, None) if not one[-1] & 1)
    at = even.rindex(b"\0" + read(even).signature)
    with pytest.raises(CertificateMalformed) as refused:
        read(even[:at] + b"\x01" + even[at + 1 :])
    assert refused.value.expected == "a signature of whole octets"


@pytest.mark.skipif(not VECTORS.is_dir(), reason="no IDevID chain: ../shared/vectors is absent")
def test_a_real_makers_chain_is_taken_as_identity_roots():
    lines = ['model = "server"']
    chain = (VECTORS / "iak_idevid_chain.pem").read_text()
    lines += ["[[identity_roots]]", f'certificate = """{chain}"""', 'manufacturers = ["id:48504500"]']
    parsed = parse_policy("\n".join([*lines, "[pcrs.sha256]", f'"0" = ["{"00" * 32}"]']))
    assert len(parsed.identity_roots) == 2
    found = [judge(one.der, NOW) for one in certificates_in(chain.encode())]
    assert [one.self_signed for one in found] == [False, True]
