"""A certificate from an outside CA: what makes an issuing CA here, and each thing that does not."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance.outside import CERTIFICATE_MOST, ca_request, parse_certificate, permits, verify_outside
from provisioning.refusals import OutsideCertificateRefused
from tests.support.certificates import spki

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
OURS, THEIRS, MIDDLE = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
RSA_2048, RSA_3072 = (rsa.generate_private_key(65537, bits) for bits in (2048, 3072))
NAMES = ("muster.test", "localhost", "127.0.0.1", "spiffe://muster.test/device/any")
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class Made:
    """How a CA certificate is made; everything is right unless told."""

    name: str = "issuing"
    key: Any = OURS
    issuer: str = "root"
    issuer_key: Any = THEIRS
    begins: timedelta = -timedelta(days=1)
    ends: timedelta = timedelta(days=3000)
    ca: bool = True
    path_length: int | None = 0
    critical: bool = True
    usage: tuple[str, ...] = ("key_cert_sign", "crl_sign")
    key_id: bool = True
    authority_key_id: bytes | None = None
    digest: Any = field(default_factory=hashes.SHA256)
    more: tuple[tuple[x509.ExtensionType, bool], ...] = ()

    def der(self):
        def named(text):
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])

        builder = (
            x509.CertificateBuilder()
            .subject_name(named(self.name))
            .issuer_name(named(self.issuer))
            .public_key(self.key.public_key())
            .serial_number(7)
            .not_valid_before(NOW + self.begins)
            .not_valid_after(NOW + self.ends)
            .add_extension(x509.BasicConstraints(self.ca, self.path_length if self.ca else None), self.critical)
        )
        if self.usage:
            wanted = dict.fromkeys(_USAGES, False) | dict.fromkeys(self.usage, True)
            builder = builder.add_extension(x509.KeyUsage(**wanted), critical=True)
        if self.key_id:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
        if self.authority_key_id is not None:
            builder = builder.add_extension(x509.AuthorityKeyIdentifier(self.authority_key_id, None, None), False)
        for extension, critical in self.more:
            builder = builder.add_extension(extension, critical)
        digest = None if isinstance(self.issuer_key, ed25519.Ed25519PrivateKey) else self.digest
        return builder.sign(self.issuer_key, digest).public_bytes(Encoding.DER)


ROOT = Made(name="root", key=THEIRS, path_length=None, ends=timedelta(days=7000))


def judged(certificate, above, *, names=NAMES, weak=lambda _: False):
    return verify_outside(certificate, above, public_key=spki(OURS), now=NOW, names=names, debian_weak=weak)


def verified(ours=None, *above, **told):
    return judged((ours or Made()).der(), [each.der() for each in above or (ROOT,)], **told)


def test_a_ca_of_path_length_0_over_our_key_is_taken_with_its_chain():
    outside = verified()
    assert list(outside.chain) == [outside.certificate.public_bytes(Encoding.DER), outside.chain[1]]
    assert outside.root.subject == outside.root.issuer


def test_a_chain_through_another_ca_is_taken():
    middle = Made(name="policy", key=MIDDLE, path_length=1, ends=timedelta(days=5000))
    outside = verified(Made(issuer="policy", issuer_key=MIDDLE), middle, ROOT)
    assert len(outside.chain) == 3


@pytest.mark.parametrize(
    "key", [RSA_3072, ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_the_outside_ca_may_have_a_key_of_every_kind_of_ours(key):
    verified(Made(issuer_key=key), Made(name="root", key=key, issuer_key=key, path_length=None, ends=ROOT.ends))


def test_pem_is_taken_as_der_is():
    der = Made().der()
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    assert judged(pem, [ROOT.der()]).chain[0] == der


REFUSED = [
    (Made(key=MIDDLE), "its key is the one that was made here"),
    (Made(path_length=1), "path length 0"),
    (Made(path_length=None), "path length 0"),
    (Made(ca=False), "ours: is a CA"),
    (Made(critical=False), "ours: basic constraints are critical"),
    (Made(usage=("key_cert_sign",)), "ours: key usage cRLSign"),
    (Made(usage=("crl_sign",)), "ours: key usage keyCertSign"),
    (Made(usage=()), "ours: key usage keyCertSign"),
    (Made(usage=("key_cert_sign", "crl_sign", "key_encipherment")), "key usage without encipherment"),
    (Made(usage=("key_cert_sign", "crl_sign", "key_agreement")), "key usage without encipherment"),
    (Made(begins=timedelta(days=1)), "ours: has begun"),
    (Made(ends=timedelta(0)), "ours: has not ended"),
    (Made(name=""), "subject is a name"),
    (Made(key_id=False), "subject key identifier is there"),
    (
        Made(more=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),)),
        "ours: no critical extension that is not known here",
    ),
    (
        Made(more=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),)),
        "ours: extended key usages that certificates here need",
    ),
    (
        Made(more=((x509.NameConstraints([x509.DNSName("other.test")], None), True),)),
        "ours: name constraints permit what certificates here hold",
    ),
    (
        Made(more=((x509.NameConstraints(None, [x509.UniformResourceIdentifier("muster.test")]), True),)),
        "ours: name constraints permit what certificates here hold",
    ),
]


@pytest.mark.parametrize(("ours", "what"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_makes_no_issuing_ca_is_named(ours, what):
    with pytest.raises(OutsideCertificateRefused) as refused:
        verified(ours)
    assert what in [finding.what for finding in refused.value.findings]


@pytest.mark.parametrize(
    ("above", "what"),
    [
        (Made(name="root", key=THEIRS, path_length=0), "CA 1: its path length allows what is below"),
        (Made(name="root", key=THEIRS, path_length=None, ends=timedelta(0)), "CA 1: has not ended"),
        (Made(name="root", key=THEIRS, path_length=None, usage=("crl_sign",)), "CA 1: key usage keyCertSign"),
        (Made(name="root", key=THEIRS, ca=False), "CA 1: is a CA"),
    ],
)
def test_what_stands_above_must_be_able_to(above, what):
    with pytest.raises(OutsideCertificateRefused) as refused:
        verified(Made(), above)
    assert what in [finding.what for finding in refused.value.findings]


def test_a_weak_key_above_is_refused():
    root = Made(name="root", key=RSA_2048, issuer_key=RSA_2048, path_length=None, ends=ROOT.ends)
    with pytest.raises(OutsideCertificateRefused) as refused:
        verified(Made(issuer_key=RSA_2048), root)
    (finding,) = refused.value.findings
    assert finding.what == "CA 1: its key is strong"
    assert "RSA of 2048 bits" in finding.actual


def test_a_key_that_is_known_to_be_weak_is_refused():
    with pytest.raises(OutsideCertificateRefused) as refused:
        verified(weak=lambda key: key.spki == spki(THEIRS))
    assert [finding.what for finding in refused.value.findings] == ["CA 1: its key is strong"]


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(OutsideCertificateRefused) as refused:
        verified(Made(key=MIDDLE, path_length=3, usage=("key_cert_sign",), ends=timedelta(0)))
    assert len(refused.value.findings) >= 4


@pytest.mark.parametrize(
    ("ours", "above", "expected"),
    [
        (Made(issuer_key=MIDDLE), ROOT, "signed by"),
        (Made(issuer="other"), ROOT, "signed by"),
        (Made(), Made(name="root", key=THEIRS, issuer_key=MIDDLE, path_length=None, ends=ROOT.ends), "signed by"),
        (Made(), Made(name="root", key=THEIRS, issuer="top", path_length=None, ends=ROOT.ends), "signed by"),
        (Made(authority_key_id=bytes(20)), ROOT, "key identifier"),
        (Made(ends=timedelta(days=8000)), ROOT, "an end not after its issuer's"),
    ],
    ids=["another key", "another name", "a root by another key", "a root that another signs", "key id", "longer"],
)
def test_a_chain_that_does_not_hold_is_refused(ours, above, expected):
    with pytest.raises(OutsideCertificateRefused) as refused:
        verified(ours, above)
    assert refused.value.findings == ()
    assert expected in refused.value.expected


def test_a_certificate_without_chain_or_with_a_very_long_one_is_refused():
    for above in ([], [ROOT.der()] * 9):
        with pytest.raises(OutsideCertificateRefused, match="outside CA") as refused:
            judged(Made().der(), above)
        assert "CA certificates above" in refused.value.expected


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nx", bytes(CERTIFICATE_MOST + 1)])
def test_what_is_no_certificate_is_refused(data):
    with pytest.raises(OutsideCertificateRefused):
        parse_certificate(data)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_no_damaged_certificate_ends_in_anything_but_a_refusal_or_ours(at, change):
    der = bytearray(Made().der())
    der[at % len(der)] ^= change
    try:
        outside = judged(bytes(der), [ROOT.der()])
    except OutsideCertificateRefused:
        return
    assert outside.certificate.public_key() == OURS.public_key()


@pytest.mark.parametrize(
    ("permitted", "excluded", "name", "may"),
    [
        (["muster.test"], [], "muster.test", True),
        (["muster.test"], [], "a.muster.test", True),
        (["muster.test"], [], "xmuster.test", False),
        ([], ["test"], "muster.test", False),
        ([], ["other"], "muster.test", True),
    ],
)
def test_dns_constraints_are_those_of_rfc_5280(permitted, excluded, name, may):
    trees = [[x509.DNSName(each) for each in names] or None for names in (permitted, excluded)]
    assert permits(x509.NameConstraints(*trees), name) is may


@pytest.mark.parametrize(
    ("tree", "name", "may"),
    [
        (x509.UniformResourceIdentifier("muster.test"), "spiffe://muster.test/device/a", True),
        (x509.UniformResourceIdentifier("muster.test"), "spiffe://a.muster.test/device/a", False),
        (x509.UniformResourceIdentifier(".test"), "spiffe://muster.test/device/a", True),
        (x509.UniformResourceIdentifier(".muster.test"), "spiffe://muster.test/device/a", False),
        (x509.IPAddress(ip_network("127.0.0.0/8")), "127.0.0.1", True),
        (x509.IPAddress(ip_network("10.0.0.0/8")), "127.0.0.1", False),
        (x509.IPAddress(ip_network("10.0.0.0/8")), "::1", False),
        (x509.DNSName("other.test"), "127.0.0.1", True),
    ],
)
def test_uri_and_address_constraints_are_those_of_rfc_5280(tree, name, may):
    assert permits(x509.NameConstraints([tree], None), name) is may


@pytest.mark.parametrize(
    "key", [OURS, ec.generate_private_key(ec.SECP384R1()), RSA_3072, ed25519.Ed25519PrivateKey.generate()]
)
def test_the_request_asks_for_a_ca_of_path_length_0_by_a_key_of_every_kind(key):
    request = x509.load_pem_x509_csr(ca_request(key, "our issuing CA"))
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=our issuing CA"
    assert request.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    usage = request.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature
