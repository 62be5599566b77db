"""What an issuing CA may name, where that was asked for: written, read again, and obeyed by OpenSSL."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.issuance.check import check_tbs
from provisioning.issuance.profile import IssuingCa, RootCa, ServiceTls, build, issuer_of, permitted_of
from provisioning.issuance.tbs import serial_of
from provisioning.refusals import ToBeSignedRefused
from tests.support.certificates import issue, lint_certificate, spki

KEY = ec.generate_private_key(ec.SECP256R1())
CONSTRAINED = IssuingCa(
    "Example issuing CA",
    spki(KEY),
    permitted_dns=("example.test", "localhost"),
    permitted_uri=("example.test",),
    permitted_ip=("127.0.0.1/32",),
)
URLS = {"crl_url": "http://ca.example.test/crl/x.crl", "ca_url": "http://ca.example.test/ca/x.crt"}
# OpenSSL judges by the clock of today.
NOW = datetime.now(UTC)
LIFE = {"not_before": NOW - timedelta(hours=1), "not_after": NOW + timedelta(days=30)}


@pytest.fixture(scope="module")
def chain():
    """Root, constrained issuing CA, and how it signs."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = issue(RootCa("Example root CA", spki(key)), None, key, serial=serial_of(bytes(16)), **LIFE)
    by_root = issuer_of(root.public_bytes(Encoding.DER), **URLS)
    issuing = issue(CONSTRAINED, by_root, key, serial=serial_of(bytes(range(16))), **LIFE)
    return root, issuing, by_root


def test_they_are_written_critical_and_as_they_were_asked_for(chain):
    _, issuing, _ = chain
    found = issuing.extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    assert found.value == x509.NameConstraints(
        [
            x509.DNSName("example.test"),
            x509.DNSName("localhost"),
            x509.UniformResourceIdentifier("example.test"),
            x509.IPAddress(ip_network("127.0.0.1/32")),
        ],
        None,
    )
    assert lint_certificate(issuing.public_bytes(Encoding.DER)) == []


def test_none_are_written_where_none_were_asked_for(chain):
    _, _, by_root = chain
    tbs = build(IssuingCa("Example issuing CA", spki(KEY)), by_root, serial=serial_of(bytes(16)), **LIFE)
    assert bytes.fromhex("0603551d1e") not in tbs.der


@pytest.mark.parametrize(
    "wanted",
    [
        replace(CONSTRAINED, permitted_dns=("example.test",)),
        replace(CONSTRAINED, permitted_uri=("other.test",)),
        replace(CONSTRAINED, permitted_ip=("127.0.0.0/8",)),
        replace(CONSTRAINED, permitted_dns=(), permitted_uri=(), permitted_ip=()),
    ],
)
def test_the_look_before_signing_sees_other_constraints(chain, wanted):
    _, _, by_root = chain
    tbs = build(CONSTRAINED, by_root, serial=serial_of(bytes(16)), **LIFE)
    check_tbs(tbs, CONSTRAINED, by_root)
    with pytest.raises(ToBeSignedRefused, match="profile"):
        check_tbs(tbs, wanted, by_root)


@pytest.mark.parametrize(
    ("service", "hosts", "verdict"),
    [
        ("example.test", (), "OK"),
        ("other.test", (), "permitted subtree violation"),
        ("example.test", ("192.0.2.1",), "permitted subtree violation"),
    ],
)
def test_openssl_refuses_a_name_that_is_not_permitted(chain, tmp_path, service, hosts, verdict):
    root, issuing, _ = chain
    by_issuing = issuer_of(issuing.public_bytes(Encoding.DER), **URLS)
    leaf = issue(ServiceTls(service, hosts, spki(KEY)), by_issuing, KEY, serial=serial_of(bytes(16)), **LIFE)
    for name, certificate in (("root", root), ("issuing", issuing), ("leaf", leaf)):
        (tmp_path / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    said = subprocess.run(
        ["openssl", "verify", "-CAfile", "root.pem", "-untrusted", "issuing.pem", "leaf.pem"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert verdict in said.stdout + said.stderr


def test_they_are_read_as_they_were_asked_for(chain):
    root, issuing, _ = chain
    names = (CONSTRAINED.permitted_dns, CONSTRAINED.permitted_uri, CONSTRAINED.permitted_ip)
    assert permitted_of(issuing) == names
    assert permitted_of(root) == ((), (), ())


@pytest.mark.parametrize(
    "constraints",
    [
        x509.NameConstraints(None, [x509.DNSName("example.test")]),
        x509.NameConstraints([x509.DNSName("example.test"), x509.RFC822Name("example.test")], None),
    ],
    ids=["excluded", "mail"],
)
def test_what_we_cannot_say_of_others_constraints_is_refused_and_not_left_out(constraints):
    name = x509.Name.from_rfc4514_string("CN=Their CA")
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, LIFE["not_before"], LIFE["not_after"])
    with pytest.raises(ToBeSignedRefused):
        permitted_of(builder.add_extension(constraints, critical=True).sign(KEY, SHA256()))
