"""Corners where a weaker verifier would pass every other test: seeds, PSS, the worst verdict, broken PEM."""

import json
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.attestation.bundles import certificates_in
from provisioning.attestation.certificates import parse_certificate
from provisioning.attestation.credential import make_credential
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.relying import parse_key_set
from provisioning.attestation.results import Tier
from provisioning.refusals import (
    AlgorithmRefused,
    EkCertificateRevoked,
    EkChainRefused,
    PolicyMalformed,
    ResultKeysMalformed,
    ResultMalformed,
)
from tests.support.ek_certificates import NOW, YEAR, ec_key, element, key_usage, name, pem, resigned, root, rsa_key
from tests.unit.attestation import test_credential as credentials
from tests.unit.attestation import test_results as results
from tests.unit.attestation.test_endorsement import ROOT, crl_of, endorse, policy_with
from tests.unit.attestation.test_evidence_mutants import both_sides, rooted, text, why

WORST_LAST = [Tier.AFFIRMING, Tier.WARNING, Tier.CONTRAINDICATED, Tier.NONE]


@pytest.mark.parametrize("verdicts", list(permutations(WORST_LAST, 2)), ids=" then ".join)
def test_of_any_two_verdicts_the_worse_one_counts(verdicts):
    """By AR4SI's order, which is not that of the alphabet."""
    parts = {str(number): {"ear_status": str(verdict)} for number, verdict in enumerate(verdicts)}
    found = results.verified(results.token(ear_status=None, submods=parts))
    assert found.status is max(verdicts, key=WORST_LAST.index)


def test_a_verdict_off_the_list_is_named():
    expected, actual = both_sides(ResultMalformed, results.verified, results.token(submods={"a": {"ear_status": 2}}))
    assert expected == "ear_status: one of AR4SI's tiers, in each submodule"
    assert "2" in actual


def test_what_is_no_key_set_shows_why():
    assert both_sides(ResultKeysMalformed, parse_key_set, b"[")[0] == "a JWK Set"
    assert parse_key_set(json.dumps({"keys": []}).encode()) == {}


@pytest.mark.parametrize(("key", "name_alg", "bits"), credentials.CASES, ids=credentials.IDS)
def test_a_seed_is_as_long_as_the_digest_of_the_name_algorithm(key, name_alg, bits):
    """Part 1, B.10.3 and C.6.3: shorter, and a TPM refuses it, or it could be guessed."""
    seeds = []
    for _ in range(2):
        _, encrypted = make_credential(credentials.trusted(key, name_alg, bits), credentials.NAME, b"s")
        secret = encrypted[2:]
        seeds.append(credentials.seed_of(key, name_alg, secret))
        assert int.from_bytes(encrypted[:2], "big") == len(secret)
        if isinstance(key, rsa.RSAPrivateKey):
            assert len(secret) == key.key_size // 8
    assert {len(seed) for seed in seeds} == {{0x0B: 32, 0x0C: 48}[name_alg]}
    halves = {half for seed in seeds for half in (seed[:16], seed[16:32])}
    assert len(halves) == 4


# --- revocation lists ---------------------------------------------------------------------------------------------


def pss_list(authority, *certificates):
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(authority.title))
    builder = builder.last_update(NOW - YEAR).next_update(NOW + YEAR)
    for der in certificates:
        serial = x509.load_der_x509_certificate(der).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - YEAR)
        builder = builder.add_revoked_certificate(revoked.build())
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    made = builder.sign(authority.key, hashes.SHA256(), rsa_padding=scheme)
    return made.public_bytes(Encoding.PEM).decode()


def test_a_list_that_is_signed_by_pss_revokes():
    maker = root("PSS Maker", rsa_key(3072))
    good, bad = maker.ek(), maker.ek()
    lines = ['model = "gateway"', "[[ek_roots]]", f'certificate = """{pem(maker.der)}"""']
    lines += ['manufacturers = ["id:494E5443"]', f'crls = """{pss_list(maker, bad)}"""', "[pcrs.sha256]"]
    policy = parse_policy("\n".join([*lines, f'"0" = ["{"00" * 32}"]']))
    assert endorse(good, policy).findings == ()
    with pytest.raises(EkCertificateRevoked):
        endorse(bad, policy)


def test_a_list_of_a_forger_is_named():
    told = both_sides(EkChainRefused, endorse, ROOT.ek(), policy_with(crl_of(ROOT, key=ec_key(number="forger"))))
    assert told == ("a CRL of the issuer of that name", "a CRL: its signature does not verify")


def test_a_broken_body_is_no_list_and_no_root():
    """Letters that base64 does not have are not passed over: another reader would find other octets."""
    listed = crl_of(ROOT)
    body = listed.split("\n")
    for at in (1, 2):
        broken = "\n".join([*body[:at], "!" + body[at], *body[at + 1 :]])
        with pytest.raises(PolicyMalformed) as refused:
            policy_with(broken)
        assert "ek_roots[0].crls" in refused.value.actual
    lines = pem(ROOT.der).split("\n")
    broken = "\n".join([lines[0], "!" + lines[1], *lines[2:]])
    assert why(text(rooted(broken))).startswith("ek_roots[0]")
    with pytest.raises(PolicyMalformed) as refused:
        policy_with("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----")
    assert refused.value.actual.endswith("is no X.509 CRL in DER")


# --- anchors ------------------------------------------------------------------------------------------------------

CA = (x509.BasicConstraints(ca=True, path_length=None), True)


def test_an_anchor_is_a_ca_that_may_sign_certificates():
    no_usage = ROOT.issue("No usage", ec_key(number="no usage"), [CA])
    assert parse_policy(text(rooted(pem(no_usage)))).ek_roots[0].certificate.der == no_usage
    for wrong in (
        ROOT.issue("Signs lists", ec_key(number="lists"), [CA, (key_usage(crl_sign=True), True)]),
        ROOT.issue("No CA", ec_key(number="no CA"), [(key_usage(key_cert_sign=True), True)]),
        ROOT.issue("Nothing", ec_key(number="nothing"), []),
    ):
        assert why(text(rooted(pem(wrong)))).endswith(" is not of a certificate authority")


def test_a_key_that_the_library_does_not_know_is_named():
    good = ROOT.ek(ec_key())
    tbs = x509.load_der_x509_certificate(good).tbs_certificate_bytes
    content = tbs[4:].replace(bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030102"))
    unknown = resigned(good, element(0x30, content), ROOT.key)
    assert both_sides(AlgorithmRefused, parse_certificate, unknown) == ("RSA, P-256 or P-384", "another kind of key")


# --- files --------------------------------------------------------------------------------------------------------


def test_octets_that_are_no_certificate_at_all():
    """The first octet decides the road; what follows a SEQUENCE decides its name."""
    assert [one.reason for one in certificates_in(pem(ROOT.der).encode() * 2)] == ["", ""]
    trusted = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert [one.reason for one in certificates_in(trusted)] == ["holds no certificate"]
    signed = element(0x30, bytes.fromhex("06092a864886f70d010701") + element(0xA0, element(0x04, b"data")))
    (found,) = certificates_in(signed)
    assert (found.der, found.reason) == (signed, "")
    block = b"-----BEGIN PKCS7-----\nMAA=\n-----END PKCS7-----\n"
    (found,) = certificates_in(block)
    assert found.reason.startswith("is broken PKCS#7 (")
    assert "NoneType" not in found.reason
