"""A CA under another CA: the same name and key, and nothing that the CA did not have."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.issuance.cross import build_cross, check_cross
from provisioning.issuance.profile import IssuingCa, RootCa, build, issuer_of
from provisioning.issuance.tbs import Profile, assemble, serial_of
from provisioning.refusals import ToBeSignedRefused

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SERIAL = serial_of(bytes(range(16)))
OLD, NEW, BELOW = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate(), None
URLS = {"crl_url": "http://ca.example/crl/root-2.crl", "ca_url": "http://ca.example/ca/root-2.crt"}


def spki(key):
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(key, tbs):
    return key.sign(tbs) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(tbs, ec.ECDSA(SHA256()))


def root(name, key, days=7000):
    tbs = build(RootCa(name, spki(key)), None, serial=SERIAL, not_before=NOW, not_after=NOW + timedelta(days=days))
    return assemble(tbs.der, sign(key, tbs.der))


OLD_ROOT, NEW_ROOT = root("old root", OLD), root("new root", NEW, days=9000)
ISSUING_KEY = ec.generate_private_key(ec.SECP384R1())


@pytest.fixture(scope="module")
def issuing():
    wanted = IssuingCa("issuing", spki(ISSUING_KEY), permitted_dns=("fleet.example",), service_name="fleet.example")
    life = {"not_before": NOW, "not_after": NOW + timedelta(days=3000)}
    tbs = build(wanted, issuer_of(OLD_ROOT), serial=SERIAL, **life)
    return assemble(tbs.der, sign(OLD, tbs.der))


def crossed(certificate, by=None):
    return build_cross(certificate, by or issuer_of(NEW_ROOT, **URLS), serial=SERIAL + 1, not_before=NOW)


@pytest.mark.parametrize("which", ["issuing", "root"])
def test_a_ca_keeps_all_that_it_is_and_verifies_under_the_new_root(issuing, which):
    ca = issuing if which == "issuing" else OLD_ROOT
    tbs = crossed(ca)
    check_cross(tbs, ca, issuer_of(NEW_ROOT, **URLS))
    before = x509.load_der_x509_certificate(ca)
    after = x509.load_der_x509_certificate(assemble(tbs.der, sign(NEW, tbs.der)))
    after.verify_directly_issued_by(x509.load_der_x509_certificate(NEW_ROOT))
    assert after.subject == before.subject
    assert after.public_key() == before.public_key()
    assert after.serial_number == SERIAL + 1
    assert after.not_valid_after_utc == before.not_valid_after_utc
    kept = {each.oid: (each.critical, each.value) for each in before.extensions}
    for oid, value in kept.items():
        if oid != x509.AuthorityKeyIdentifier.oid:
            assert (found := after.extensions.get_extension_for_oid(oid))
            assert (found.critical, found.value) == value
    points = after.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert points[0].full_name[0].value == URLS["crl_url"]
    assert tbs.profile is (Profile.ISSUING_CA if which == "issuing" else Profile.ROOT_CA)


def test_it_ends_with_whoever_signs():
    tbs = build_cross(NEW_ROOT, issuer_of(OLD_ROOT), serial=SERIAL, not_before=NOW)
    assert tbs.not_after == NOW + timedelta(days=7000)
    check_cross(tbs, NEW_ROOT, issuer_of(OLD_ROOT))


def test_a_signer_that_has_ended_signs_nothing():
    ended = replace(issuer_of(NEW_ROOT), not_after=NOW)
    with pytest.raises(ToBeSignedRefused):
        crossed(OLD_ROOT, ended)


@pytest.mark.parametrize(
    ("made", "of", "wrong"),
    [
        ("other CA", "issuing", {"subject", "public key", "what it may do", "not after"}),
        ("same", "issuer", {"issuer", "issuer's key"}),
        ("serial", "issuing", {"serial"}),
    ],
)
def test_what_differs_is_named(issuing, made, of, wrong):
    by = issuer_of(NEW_ROOT, **URLS)
    tbs = crossed(OLD_ROOT if made == "other CA" else issuing)
    if made == "serial":
        tbs = replace(tbs, serial=SERIAL)
    with pytest.raises(ToBeSignedRefused) as refused:
        check_cross(tbs, issuing, issuer_of(OLD_ROOT) if of == "issuer" else by)
    assert wrong <= {finding.what for finding in refused.value.findings}


def test_an_extension_more_is_refused(issuing):
    """The look before signing would see a CA that may do more than it could."""
    wide = IssuingCa("issuing", spki(ISSUING_KEY), service_name="fleet.example")
    life = {"not_before": NOW, "not_after": NOW + timedelta(days=3000)}
    without = build(wide, issuer_of(OLD_ROOT), serial=SERIAL, **life)
    unconstrained = assemble(without.der, sign(OLD, without.der))
    by = issuer_of(NEW_ROOT, **URLS)
    with pytest.raises(ToBeSignedRefused) as refused:
        check_cross(crossed(unconstrained), issuing, by)
    assert {finding.what for finding in refused.value.findings} == {"what it may do"}
    with pytest.raises(ToBeSignedRefused) as refused:
        check_cross(crossed(issuing), unconstrained, by)
    assert "no other extension" in {finding.what for finding in refused.value.findings}


@pytest.mark.parametrize("garbage", [b"", b"\x30\x00", OLD_ROOT[:-1], bytes(500)])
def test_what_is_no_certificate_is_refused_by_name(garbage):
    with pytest.raises(ToBeSignedRefused):
        build_cross(garbage, issuer_of(NEW_ROOT), serial=SERIAL, not_before=NOW)
