"""Whose TPM this is: what chains, what does not, and by which name each is refused."""

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st
from tpm2_pytss.types import TPMT_PUBLIC

from provisioning.attestation.certificates import parse_certificate, read_leniently, read_strictly
from provisioning.attestation.endorsement import RegisteredEk, ek_id_of, ek_id_of_public, verify_endorsement
from provisioning.attestation.names import name_text
from provisioning.attestation.policy import parse_policy
from provisioning.refusals import (
    AlgorithmRefused,
    CertificateMalformed,
    EkCertificateExpired,
    EkCertificateRevoked,
    EkCertificateUnfit,
    EkChainRefused,
    EkManufacturerRefused,
    EkPublicNotRegistered,
    PolicyMalformed,
    Refusal,
    RequestMalformed,
    SoftwareTpmRefused,
    StructureMalformed,
)
from tests.support.ek_certificates import (
    MANUFACTURER,
    MODEL,
    NOW,
    TPM,
    VERSION,
    YEAR,
    Authority,
    ec_key,
    element,
    key_usage,
    name,
    pem,
    resigned,
    root,
    rsa_key,
    tpm_name,
)
from wire.messages import EnrollmentRequest

ROOTS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "ek-roots"
ROOT = root()


def policy_for(*roots, manufacturers='["id:494E5443"]', **fields):
    lines = ['model = "gateway"', *(f"{name} = {value}" for name, value in fields.items())]
    for one in roots:
        lines += ["[[ek_roots]]", f'certificate = """{pem(one.der)}"""', f"manufacturers = {manufacturers}"]
    return parse_policy("\n".join([*lines, "[pcrs.sha256]", f'"0" = ["{"00" * 32}"]']))


def endorse(certificate, policy=None, *intermediates, now=NOW, **given):
    request = EnrollmentRequest(
        ak_public=b"",
        pcr_banks=("sha256",),
        ek_certificate=certificate,
        ek_intermediates=tuple(one.der for one in intermediates),
        **given,
    )
    return verify_endorsement(request, policy or policy_for(ROOT), now)


# --- who is trusted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "template"),
    [
        (rsa_key(), (0x0B, 128)),
        (rsa_key(3072), (0x0C, 256)),
        (ec_key(ec.SECP256R1), (0x0B, 128)),
        (ec_key(ec.SECP384R1), (0x0C, 256)),
    ],
    ids=["RSA-2048", "RSA-3072", "P-256", "P-384"],
)
def test_an_ek_of_a_named_root_is_trusted_in_its_standard_template(key, template):
    trusted = endorse(ROOT.ek(key))
    assert (trusted.name_alg, trusted.symmetric_bits) == template
    assert trusted.trust == "certificate"
    assert (trusted.manufacturer, trusted.model, trusted.version) == ("id:494E5443", "PTT", "id:00020000")
    assert trusted.findings == ()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert trusted.ek_id == hashlib.sha256(spki).hexdigest() == ek_id_of(ROOT.ek(key))


def test_intermediates_may_come_from_the_device():
    upper = ROOT.intermediate("Upper", path_length=1)
    lower = upper.intermediate("Lower")
    assert endorse(lower.ek(), None, lower, upper).trust == "certificate"
    assert endorse(lower.ek(), None, upper, lower).trust == "certificate"


def test_an_intermediate_that_the_policy_names_is_an_anchor():
    """Its own signature is not asked for: an old one may be by SHA-1."""
    lower = ROOT.intermediate("Lower", end=NOW - timedelta(days=1))
    trusted = endorse(lower.ek(begin=NOW - YEAR / 2), policy_for(lower))
    assert [(finding.what, "Lower" in finding.actual) for finding in trusted.findings] == [("manufacturer CA", True)]


def test_rsa_authorities_sign_too():
    maker = root("RSA Root", rsa_key(3072))
    assert endorse(maker.ek(algorithm=hashes.SHA384()), policy_for(maker)).trust == "certificate"


def test_one_of_several_roots_of_one_name_is_found():
    """Two roots of the same name: the one that signed is taken, in whichever order they stand."""
    twin = root("Root", ec_key(number="twin"))
    for roots in ((ROOT, twin), (twin, ROOT)):
        assert endorse(twin.ek(), policy_for(*roots)).trust == "certificate"


# --- chains -------------------------------------------------------------------------------------------------------


def refused_chain(certificate, policy=None, *intermediates):
    with pytest.raises(EkChainRefused) as refused:
        endorse(certificate, policy, *intermediates)
    return refused.value.actual


def test_an_ek_of_another_root_is_refused():
    assert "no certificate of its issuer" in refused_chain(root("Stranger").ek())


def test_a_forged_root_of_the_right_name_is_refused():
    forged = root("Root", ec_key(number="forged"))
    assert "did not issue" in refused_chain(forged.ek())
    assert "did not issue" in refused_chain(forged.ek(), None, forged)


def test_a_missing_intermediate_is_named():
    lower = ROOT.intermediate("Lower")
    assert "Lower" in refused_chain(lower.ek())
    unanchored = root("Other").intermediate("Lower")
    assert "Other" in refused_chain(unanchored.ek(), None, unanchored)


def test_an_end_entity_cannot_vouch_for_an_ek():
    """Another device's EK, or any other certificate of that maker, is not an authority."""
    for impostor in (
        ROOT.intermediate("Device", ca=False),
        ROOT.intermediate("Signer", usage=key_usage(crl_sign=True)),
    ):
        assert "no certificate authority" in refused_chain(impostor.ek(), None, impostor)


def test_more_authorities_than_the_path_length_allows_are_refused():
    lower = ROOT.intermediate("Lower", path_length=0)
    lowest = lower.intermediate("Lowest")
    assert "allows 0 authorities" in refused_chain(lowest.ek(), None, lower, lowest)


def test_an_authority_must_have_been_valid_when_the_ek_was_made():
    late = ROOT.intermediate("Late", begin=NOW - timedelta(days=1))
    early = ROOT.intermediate("Early", begin=NOW - 3 * YEAR, end=NOW - 2 * YEAR)
    for authority in (late, early):
        assert "was valid from" in refused_chain(authority.ek(), None, authority)
    expired = ROOT.intermediate("Expired", end=NOW - timedelta(days=1))
    findings = endorse(expired.ek(begin=NOW - YEAR / 2), None, expired).findings
    assert [finding.what for finding in findings] == ["manufacturer CA"]


def test_an_authority_with_constraints_that_nobody_checks_is_refused():
    constrained = x509.NameConstraints([x509.DNSName("example.org")], None)
    narrow = ROOT.intermediate("Narrow", more=[(constrained, True)])
    assert "2.5.29.30" in refused_chain(narrow.ek(), None, narrow)


def test_a_signature_that_does_not_count_is_refused():
    maker = root("RSA Root", rsa_key(3072))
    weak = bytearray(maker.ek())
    while (at := bytes(weak).find(bytes.fromhex("2a864886f70d01010b"))) >= 0:
        weak[at + 8] = 0x05  # sha1WithRSAEncryption
    assert "does not count" in refused_chain(bytes(weak), policy_for(maker))


def test_certificates_in_a_circle_end():
    """Cross-signed authorities that only know each other."""
    first = Authority(ec_key(number="a"), b"", "A")
    second = Authority(ec_key(number="b"), b"", "B")
    a = second.intermediate("A", key=first.key, path_length=3)
    b = first.intermediate("B", key=second.key, path_length=3)
    assert "no certificate of the issuer" in refused_chain(a.ek(), None, a, b, a, b)


# --- revocation lists ---------------------------------------------------------------------------------------------


def crl_of(authority, *certificates, key=None, next_update=NOW + YEAR, extension=None):
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(authority.title))
    builder = builder.last_update(NOW - YEAR).next_update(next_update)
    for der in certificates:
        serial = x509.load_der_x509_certificate(der).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - YEAR)
        builder = builder.add_revoked_certificate(revoked.build())
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key or authority.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def policy_with(*crls):
    lines = ['model = "gateway"', "[[ek_roots]]", f'certificate = """{pem(ROOT.der)}"""']
    lines += ['manufacturers = ["id:494E5443"]', f'crls = """{"".join(crls)}"""']
    return parse_policy("\n".join([*lines, "[pcrs.sha256]", f'"0" = ["{"00" * 32}"]']))


def test_a_revoked_ek_is_refused():
    good, bad = ROOT.ek(), ROOT.ek()
    policy = policy_with(crl_of(ROOT, bad))
    assert endorse(good, policy).findings == ()
    with pytest.raises(EkCertificateRevoked):
        endorse(bad, policy)


def test_a_revoked_authority_takes_its_eks_with_it():
    lower = ROOT.intermediate("Lower")
    assert endorse(lower.ek(), policy_with(crl_of(ROOT), crl_of(lower)), lower)
    with pytest.raises(EkCertificateRevoked):
        endorse(lower.ek(), policy_with(crl_of(lower), crl_of(ROOT, lower.der)), lower)


def test_a_list_of_another_issuer_says_nothing():
    ek = ROOT.ek()
    assert endorse(ek, policy_with(crl_of(root("Other"), ek)))


def test_a_list_that_the_issuer_did_not_sign_is_refused():
    """Not passed over: whoever put it there meant something by it."""
    with pytest.raises(EkChainRefused) as refused:
        endorse(ROOT.ek(), policy_with(crl_of(ROOT, key=ec_key(number="forger"))))
    assert "does not verify" in refused.value.actual


def test_an_old_list_is_a_finding_and_still_revokes():
    bad = ROOT.ek()
    policy = policy_with(crl_of(ROOT, bad, next_update=NOW - timedelta(days=1)))
    assert [finding.what for finding in endorse(ROOT.ek(), policy).findings] == ["manufacturer CRL"]
    with pytest.raises(EkCertificateRevoked):
        endorse(bad, policy)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no list", "holds no PEM CRL"),
        ("-----BEGIN X509 CRL-----\nAAA\n-----END X509 CRL-----", "is not usable"),
        ("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----", "is no X.509 CRL"),
        (crl_of(ROOT, extension=x509.DeltaCRLIndicator(1)), "is partial"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_the_policy(text, why):
    with pytest.raises(PolicyMalformed) as refused:
        policy_with(text)
    assert why in refused.value.actual


# --- the certificate itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replace", "what"),
    [
        ({x509.BasicConstraints: x509.BasicConstraints(ca=True, path_length=0)}, "basic constraints"),
        ({x509.KeyUsage: key_usage(digital_signature=True)}, "key usage"),
        ({x509.KeyUsage: key_usage(key_agreement=True)}, "key usage"),
        ({x509.KeyUsage: None}, "key usage"),
        ({x509.ExtendedKeyUsage: None}, "extended key usage"),
        ({x509.ExtendedKeyUsage: x509.ExtendedKeyUsage([ObjectIdentifier("1.3.6.1.5.5.7.3.2")])}, "extended key usage"),
        ({x509.SubjectAlternativeName: None}, "subject alternative name"),
        ({x509.SubjectAlternativeName: tpm_name({MODEL: "PTT", VERSION: "id:1"})}, "subject alternative name"),
        (
            {x509.SubjectAlternativeName: tpm_name({MANUFACTURER: "id:494E5443", VERSION: "id:1"})},
            "subject alternative name",
        ),
        (
            {x509.SubjectAlternativeName: tpm_name({MANUFACTURER: "id:494E5443", MODEL: "PTT"})},
            "subject alternative name",
        ),
    ],
)
def test_what_is_no_ek_certificate_is_refused(replace, what):
    with pytest.raises(EkCertificateUnfit) as refused:
        endorse(ROOT.ek(replace=replace))
    assert {finding.what for finding in refused.value.findings} == {what}


def test_every_mismatch_of_a_certificate_is_named():
    nothing = dict.fromkeys((x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName))
    with pytest.raises(EkCertificateUnfit) as refused:
        endorse(ROOT.ek(replace=nothing))
    assert len(refused.value.findings) == 5


def test_a_critical_extension_that_nobody_understands_is_refused():
    strange = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0")
    assert endorse(ROOT.ek(more=[(strange, False)]))
    with pytest.raises(EkCertificateUnfit) as refused:
        endorse(ROOT.ek(more=[(strange, True)]))
    assert refused.value.actual == "1.2.3.4"


def test_a_certificate_of_the_future_is_refused():
    with pytest.raises(EkCertificateUnfit, match="not an EK certificate"):
        endorse(ROOT.ek(begin=NOW + timedelta(hours=1)))
    assert endorse(ROOT.ek(begin=NOW + timedelta(minutes=1)))


def test_an_expired_certificate_is_the_policys_choice():
    expired = ROOT.ek(end=NOW - timedelta(days=1))
    with pytest.raises(EkCertificateExpired):
        endorse(expired)
    trusted = endorse(expired, policy_for(ROOT, expired_ek='"accept"'))
    assert [finding.what for finding in trusted.findings] == ["EK certificate"]


def test_a_root_speaks_only_for_its_manufacturers():
    with pytest.raises(EkManufacturerRefused) as refused:
        endorse(ROOT.ek(), policy_for(ROOT, manufacturers='["id:53544D20", "id:4E544300"]'))
    assert refused.value.actual == "id:494E5443"
    assert endorse(ROOT.ek(), policy_for(ROOT, manufacturers='["id:53544d20", "ID:494e5443"]'))


@pytest.mark.parametrize(
    ("manufacturer", "model"),
    [("id:00001014", "TPM"), ("id:49424D00", "TPM"), ("id:494E5443", "swtpm"), ("id:494E5443", "my LibTPMS 2")],
)
def test_a_software_tpm_needs_a_policy_that_says_so(manufacturer, model):
    names = {x509.SubjectAlternativeName: tpm_name({MANUFACTURER: manufacturer, MODEL: model, VERSION: "id:1"})}
    certificate = ROOT.ek(replace=names)
    allowed = f'["{manufacturer}"]'
    with pytest.raises(SoftwareTpmRefused):
        endorse(certificate, policy_for(ROOT, manufacturers=allowed))
    assert endorse(certificate, policy_for(ROOT, manufacturers=allowed, software_tpm="true")).model == model


@pytest.mark.parametrize("key", [ec_key(ec.SECP521R1), rsa_key(4096), ec_key(ec.SECP256K1)])
def test_a_key_without_a_template_is_refused(key):
    with pytest.raises(AlgorithmRefused):
        endorse(ROOT.ek(key))


def test_a_key_of_another_kind_is_refused():
    with pytest.raises(AlgorithmRefused):
        parse_certificate(ROOT.issue("EK", ed25519.Ed25519PrivateKey.generate(), []))


def test_a_key_on_an_unheard_of_curve_is_refused():
    good = ROOT.ek(ec_key())
    tbs = x509.load_der_x509_certificate(good).tbs_certificate_bytes
    content = tbs[4:].replace(bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030102"))
    with pytest.raises(AlgorithmRefused):
        parse_certificate(resigned(good, element(0x30, content), ROOT.key))


def test_a_short_key_is_refused():
    with pytest.raises(AlgorithmRefused):
        endorse(ROOT.ek(rsa_key(1024)))


def test_exactly_one_way_to_name_the_ek():
    with pytest.raises(RequestMalformed):
        endorse(None)
    with pytest.raises(RequestMalformed):
        endorse(ROOT.ek(), ek_public=b"x")


# --- a bare key (check 3) -----------------------------------------------------------------------------------------


def ek_public(kind="ecc256:aes128cfb", attributes=0x000300B2):
    area = TPMT_PUBLIC.parse(kind, objectAttributes=attributes)
    numbers = ec_key().public_key().public_numbers()
    area.unique.ecc.x = numbers.x.to_bytes(32, "big")
    area.unique.ecc.y = numbers.y.to_bytes(32, "big")
    return area.marshal()


def endorse_key(public, registered, ek_trust='"key"'):
    request = EnrollmentRequest(ak_public=b"", pcr_banks=("sha256",), ek_public=public)
    known = None if registered is None else RegisteredEk(registered, "key")
    return verify_endorsement(request, policy_for(ROOT, ek_trust=ek_trust), NOW, known)


def test_a_bare_key_counts_only_where_it_was_registered():
    public = ek_public()
    trusted = endorse_key(public, ek_id_of_public(public))
    assert (trusted.trust, trusted.name_alg, trusted.symmetric_bits) == ("registered-key", 0x0B, 128)
    for registered in (None, "0" * 64):
        with pytest.raises(EkPublicNotRegistered):
            endorse_key(public, registered)


def test_a_bare_key_off_the_template_is_refused():
    for public in (ek_public("ecc256:aes256cfb"), ek_public(attributes=0x000300B0), ek_public(attributes=0x000700B2)):
        with pytest.raises(AlgorithmRefused):
            endorse_key(public, ek_id_of_public(public))


def test_an_empty_bare_key_is_refused():
    with pytest.raises(StructureMalformed):
        endorse_key(b"", None)


# --- encodings that strict parsers refuse -------------------------------------------------------------------------

EXPLICIT_FALSE = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.19"), bytes.fromhex("3003010100"))


def test_intels_explicit_false_is_read_over_the_original_bytes():
    der = ROOT.ek(replace={x509.BasicConstraints: EXPLICIT_FALSE})
    with pytest.raises(ValueError, match="EncodedDefault"):
        read_strictly(der)
    trusted = endorse(der)
    assert trusted.ek_id == ek_id_of(der) == ek_id_of(ROOT.ek())


def test_a_changed_byte_in_such_a_certificate_is_refused():
    der = bytearray(ROOT.ek(replace={x509.BasicConstraints: EXPLICIT_FALSE}))
    der[der.index(b"PTT")] ^= 1
    assert "did not issue" in refused_chain(bytes(der))


def test_nuvotons_set_order_is_read_over_the_original_bytes():
    """A multi-valued name whose parts stand in the wrong order, truly signed so."""
    good = ROOT.ek()
    tbs = x509.load_der_x509_certificate(good).tbs_certificate_bytes
    plain = bytes.fromhex("310b300906035504030c02") + b"EK"
    parts = [bytes.fromhex("300906035504030c02") + b"EK", bytes.fromhex("300906035504060c02") + b"TW"]
    wrong = element(0x31, b"".join(sorted(parts, reverse=True)))
    names = element(0x30, wrong)
    assert element(0x30, plain) in tbs
    content = tbs[4:].replace(element(0x30, plain), names)
    der = resigned(good, element(0x30, content), ROOT.key)
    with pytest.raises(ValueError, match="InvalidSetOrdering"):
        x509.load_der_x509_certificate(der).subject.rfc4514_string()
    assert endorse(der).trust == "certificate"


def test_an_rsa_key_marked_for_oaep_is_an_rsa_key():
    """Infineon's way of old (RFC 4055)."""
    good = ROOT.ek()
    tbs = x509.load_der_x509_certificate(good).tbs_certificate_bytes
    oid = bytes.fromhex("06092a864886f70d0101")
    content = tbs[4:].replace(oid + b"\x01" + b"\x05\0", oid + b"\x07" + b"\x30\0")
    der = resigned(good, element(0x30, content), ROOT.key)
    assert endorse(der).ek_id == ek_id_of(good)


@pytest.mark.parametrize("der", [ROOT.ek(), ROOT.der, ROOT.intermediate("Lower").der], ids=["EK", "root", "CA"])
def test_both_readers_agree(der):
    strict, lenient = read_strictly(der), read_leniently(der)
    for field in strict.__dataclass_fields__:
        if field != "public_key":
            assert getattr(strict, field) == getattr(lenient, field), field
    assert strict.public_key.public_numbers() == lenient.public_key.public_numbers()


def test_an_attribute_or_extension_that_stands_twice_is_refused():
    """Two readers could take different ones."""
    twice = x509.SubjectAlternativeName([x509.DirectoryName(n.value) for n in tpm_name(TPM)] * 2)
    with pytest.raises(CertificateMalformed):
        parse_certificate(ROOT.ek(replace={x509.SubjectAlternativeName: twice}))
    alias = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.20"), bytes.fromhex("3003010100"))
    der = bytearray(ROOT.ek(more=[(alias, True)]))
    der[der.index(bytes.fromhex("0603551d14")) + 4] = 0x13  # a second basicConstraints
    with pytest.raises(CertificateMalformed):
        parse_certificate(bytes(der))
    with pytest.raises(CertificateMalformed):
        read_leniently(bytes(der))


def test_bytes_behind_a_certificate_are_refused():
    for der in (ROOT.ek(), ROOT.ek(replace={x509.BasicConstraints: EXPLICIT_FALSE})):
        with pytest.raises(CertificateMalformed):
            parse_certificate(der + b"\0")


def test_a_certificate_over_its_cap_is_refused():
    comment = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), bytes(8 * 1024))
    with pytest.raises(CertificateMalformed) as refused:
        parse_certificate(ROOT.ek(more=[(comment, False)]))
    assert refused.value.expected == "at most 8192 bytes"


def test_other_alternative_names_are_passed_over():
    more = tpm_name({**TPM, ObjectIdentifier("2.5.4.3"): "a name"})
    names = x509.SubjectAlternativeName([x509.DNSName("tpm.example"), *more])
    der = ROOT.ek(replace={x509.SubjectAlternativeName: names})
    assert read_strictly(der).tpm == read_leniently(der).tpm == parse_certificate(ROOT.ek()).tpm


def test_names_of_certificates_are_shown_without_control_characters():
    hostile = ROOT.intermediate("Lower\n[31m")
    assert "\n" not in name_text(parse_certificate(hostile.der).subject)
    assert name_text(b"no name") == b"no name".hex()


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_certificate(data):
    with pytest.raises(CertificateMalformed):
        parse_certificate(data)


SAMPLES = (ROOT.ek(), ROOT.ek(replace={x509.BasicConstraints: EXPLICIT_FALSE}), ROOT.der)


@given(st.sampled_from(SAMPLES), st.data())
def test_mutated_certificates_are_refused_by_name(valid, data):
    """Whatever is changed in an EK certificate, it is not trusted, and the refusal has a name."""
    mutated = bytearray(valid)
    at = data.draw(st.integers(0, len(mutated) - 1))
    mutated[at] = data.draw(st.integers(0, 255).filter(lambda value: value != mutated[at]))
    with pytest.raises(Refusal):
        endorse(bytes(mutated))


# --- real certificates --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ROOTS.is_dir(), reason="no EK roots: ../shared/vectors is absent")
@pytest.mark.parametrize("path", sorted(ROOTS.glob("*")), ids=lambda path: path.name)
def test_a_manufacturers_certificate_serves_as_a_root(path):
    content = path.read_bytes()
    if b"-----BEGIN" not in content:
        content = x509.load_der_x509_certificate(content).public_bytes(Encoding.PEM)
    text = f'model = "gateway"\n[[ek_roots]]\ncertificate = """{content.decode()}"""\nmanufacturers = ["id:494E5443"]\n'
    policy = parse_policy(text + f'[pcrs.sha256]\n"0" = ["{"00" * 32}"]')
    assert policy.ek_roots[0].certificate.is_ca
    with pytest.raises(Refusal):
        endorse(ROOT.ek(), policy)
