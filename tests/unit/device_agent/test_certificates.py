"""What the service issues is believed only where all of it is what this device asked for."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from device_agent.certificates import CertificateRefused, Expectation, verify_issued
from provisioning.issuance.profile import Gateway, Issuer, Ldevid, build
from provisioning.issuance.tbs import assemble
from tests.unit.device_agent.builders import DEVICE, NOW, SERVICE, Authority, certificate, der, new_key, spki

KEY = new_key()
CA = Authority()
DAY = timedelta(days=1)


def _extensions(of):
    """What a certificate has beyond its key identifiers."""
    return [
        one.value
        for one in of.extensions
        if not isinstance(one.value, x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier)
    ]


def expectation(**changes):
    return replace(Expectation(SERVICE, spki(KEY), (der(CA.root),), NOW, DEVICE), **changes)


def test_the_certificate_that_was_asked_for_is_accepted():
    verify_issued(der(CA.ldevid(KEY)), CA.chain, DEVICE, expectation())


@pytest.mark.parametrize("hosts", [(), ("gw.gateways.example",)])
def test_the_certificate_of_a_gateway_is_accepted(hosts):
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    verify_issued(der(CA.ldevid(KEY, eku=purposes, hosts=hosts)), CA.chain, DEVICE, expectation())


def test_what_the_service_itself_writes_is_accepted():
    """Every extension of the service's own profiles, with the addresses of CRL, responder and issuer."""
    names = x509.SubjectKeyIdentifier.from_public_key(CA.issuing_key.public_key()).digest
    issuer = Issuer(
        CA.issuing.subject.public_bytes(),
        names,
        CA.issuing.not_valid_after_utc,
        "http://ca.example/crl/issuing.crl",
        "http://ca.example/ca/issuing.crt",
        "http://ca.example/ocsp",
    )
    life = {"serial": 2**126 + 1, "not_before": NOW - DAY / 24, "not_after": NOW + DAY}
    device = (DEVICE, "sn-1", SERVICE)
    for wanted in (Ldevid(*device, spki(KEY)), Gateway(*device, ("gw.example",), spki(KEY))):
        tbs = build(wanted, issuer, **life).der
        leaf = assemble(tbs, CA.issuing_key.sign(tbs, ec.ECDSA(SHA256())))
        verify_issued(leaf, CA.chain, DEVICE, expectation())


def test_an_enrollment_learns_its_device_id():
    verify_issued(der(CA.ldevid(KEY, device="d-other")), CA.chain, "d-other", expectation(device_id=None))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"key": new_key()}, "not over the key"),
        ({"service": "other.example"}, "not this device at this service"),
        ({"san": f"spiffe://{SERVICE}/device/d-other"}, "not this device at this service"),
        ({"san": f"spiffe://{SERVICE}/quarantine/{DEVICE}"}, "not this device at this service"),
        ({"san": f"spiffe://{SERVICE}/idevid/{DEVICE}"}, "not this device at this service"),
        ({"hosts": ["a.example"]}, "is not a gateway's"),
        ({"hosts": ["a.example"], "without": (x509.ExtendedKeyUsage,)}, "is not a gateway's"),
        ({"eku": [ExtendedKeyUsageOID.SERVER_AUTH]}, "neither for TLS clients alone"),
        ({"eku": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]}, "neither for TLS clients alone"),
        ({"eku": [ExtendedKeyUsageOID.OCSP_SIGNING]}, "neither for TLS clients alone"),
        ({"ca": True}, "is a CA's"),
        ({"sign": False}, "may not sign"),
        ({"without": (x509.SubjectAlternativeName,)}, "no subject alternative name"),
        ({"without": (x509.ExtendedKeyUsage,)}, "lacks an extension"),
        ({"without": (x509.KeyUsage,)}, "lacks an extension"),
        ({"without": (x509.BasicConstraints,)}, "lacks an extension"),
        ({"start": NOW + DAY}, "valid from"),
        ({"start": NOW - 2 * DAY, "end": NOW - DAY}, "ended at"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_certificate_that_differs_is_refused_by_name(made, reason):
    leaf = CA.ldevid(made.pop("key", KEY), **made)
    with pytest.raises(CertificateRefused, match=reason):
        verify_issued(der(leaf), CA.chain, DEVICE, expectation())


def test_a_certificate_for_another_device_is_refused():
    with pytest.raises(CertificateRefused, match="is for d-other"):
        verify_issued(der(CA.ldevid(KEY, device="d-other")), CA.chain, "d-other", expectation())


def test_an_answer_whose_id_is_not_the_certificates_is_refused():
    with pytest.raises(CertificateRefused, match="common name"):
        verify_issued(der(CA.ldevid(KEY, device="d-other")), CA.chain, DEVICE, expectation())


@pytest.mark.parametrize("device", ["", "UPPER", "a/b", "+", "a" * 64])
def test_what_is_no_device_id_is_refused(device):
    with pytest.raises(CertificateRefused, match="device id is not one"):
        verify_issued(der(CA.ldevid(KEY)), CA.chain, device, expectation(device_id=None))


def test_a_chain_to_another_root_is_refused():
    other = Authority()
    with pytest.raises(CertificateRefused, match="root of the trust bundle"):
        verify_issued(der(other.ldevid(KEY)), other.chain, DEVICE, expectation())


def test_a_pinned_root_behind_a_foreign_issuer_is_refused():
    other = Authority()
    with pytest.raises(CertificateRefused, match="not signed by the next"):
        verify_issued(der(other.ldevid(KEY)), (der(other.issuing), der(CA.root)), DEVICE, expectation())


def test_a_ca_that_the_bundle_names_is_accepted():
    verify_issued(der(CA.ldevid(KEY)), CA.chain, DEVICE, expectation(issuing_keys=(spki(CA.issuing_key),)))


def test_a_ca_that_a_root_signed_and_the_bundle_does_not_name_is_refused():
    """So a retired one counts no more."""
    with pytest.raises(CertificateRefused, match="by a CA that the trust bundle does not name"):
        verify_issued(der(CA.ldevid(KEY)), CA.chain, DEVICE, expectation(issuing_keys=(spki(new_key()),)))


def test_a_certificate_right_under_a_root_is_refused_where_the_bundle_names_cas():
    leaf = certificate(DEVICE, KEY, CA.root, CA.root_key, _extensions(CA.ldevid(KEY)))
    with pytest.raises(CertificateRefused, match="by a CA that the trust bundle does not name"):
        verify_issued(der(leaf), (der(CA.root),), DEVICE, expectation(issuing_keys=(spki(CA.issuing_key),)))


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (ec.generate_private_key(ec.SECP384R1()), SHA384()),
        (rsa.generate_private_key(65537, 3072), SHA256()),
        (ed25519.Ed25519PrivateKey.generate(), None),
    ],
    ids=["P-384", "RSA-3072", "Ed25519"],
)
def test_ca_keys_of_every_allowed_kind_verify(key, digest):
    root = signed("root", key, None, key, digest, _extensions(CA.root))
    issuing = signed("issuing", key, root, key, digest, _extensions(CA.issuing))
    leaf = signed(DEVICE, KEY, issuing, key, digest, _extensions(CA.ldevid(KEY)))
    roots, keys = (der(root),), (spki(key),)
    verify_issued(der(leaf), (der(issuing), der(root)), DEVICE, expectation(roots=roots, issuing_keys=keys))
    other = signed("issuing", key, root, new_key(), SHA256(), _extensions(CA.issuing))
    with pytest.raises(CertificateRefused, match="not signed by the next"):
        verify_issued(der(leaf), (der(other), der(root)), DEVICE, expectation(roots=roots))


def signed(name, key, issuer, issuer_key, digest, extensions):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject if issuer is None else issuer.subject)
    builder = builder.public_key(key.public_key()).serial_number(7).not_valid_before(NOW - DAY)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.not_valid_after(NOW + DAY).sign(issuer_key, digest)


def test_a_chain_without_the_issuing_ca_is_refused():
    with pytest.raises(CertificateRefused, match="not signed by the next"):
        verify_issued(der(CA.ldevid(KEY)), (der(CA.root),), DEVICE, expectation())


def test_no_chain_is_refused():
    with pytest.raises(CertificateRefused, match="root of the trust bundle"):
        verify_issued(der(CA.ldevid(KEY)), (), DEVICE, expectation())


def test_a_device_certificate_cannot_issue_another():
    """Another device of the fleet signs a certificate with its own LDevID."""
    thief = new_key()
    stolen = CA.ldevid(thief, device="d-thief")
    forged = certificate(DEVICE, KEY, stolen, thief, _extensions(CA.ldevid(KEY)))
    with pytest.raises(CertificateRefused, match="is not a CA's"):
        verify_issued(der(forged), (der(stolen), *CA.chain), DEVICE, expectation())


def test_a_path_length_is_obeyed():
    """The issuing CA (path length 0) has made a CA below itself."""
    below_key = new_key()
    extensions = [
        x509.BasicConstraints(ca=True, path_length=None),
        CA.issuing.extensions.get_extension_for_class(x509.KeyUsage).value,
    ]
    below = certificate("below", below_key, CA.issuing, CA.issuing_key, extensions)
    leaf = certificate(DEVICE, KEY, below, below_key, _extensions(CA.ldevid(KEY)))
    with pytest.raises(CertificateRefused, match="longer than"):
        verify_issued(der(leaf), (der(below), *CA.chain), DEVICE, expectation())


@pytest.mark.parametrize("octets", [b"", b"\x30", b"not DER", b"\x30\x82\xff\xff"])
def test_bytes_that_are_no_certificate_are_refused(octets):
    with pytest.raises(CertificateRefused, match="cannot be parsed"):
        verify_issued(octets, CA.chain, DEVICE, expectation())
    with pytest.raises(CertificateRefused, match="cannot be parsed"):
        verify_issued(der(CA.ldevid(KEY)), (octets,), DEVICE, expectation())


def test_the_dates_of_the_whole_chain_are_judged():
    late = NOW + timedelta(days=31)
    leaf = CA.ldevid(KEY, end=NOW + timedelta(days=60))
    with pytest.raises(CertificateRefused, match="ended at"):
        verify_issued(der(leaf), CA.chain, DEVICE, expectation(now=late))
