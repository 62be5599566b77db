"""The certificate writer: equal to cryptography's builder, clean to a linter, and right in every extension."""

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance.profile import (
    Issuer,
    IssuingCa,
    Ldevid,
    RootCa,
    ServiceTls,
    Station,
    build,
    issuer_of,
    key_id_of,
)
from provisioning.issuance.tbs import Profile, assemble, serial_of, serial_text
from provisioning.refusals import ToBeSignedRefused
from tests.support.certificates import (
    assert_is_issuing_ca,
    assert_is_ldevid,
    assert_is_root_ca,
    assert_is_service_tls,
    assert_is_station,
    issue,
    lint_certificate,
    spki,
)

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = spki(KEY)
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
SERIAL = serial_of(bytes(range(16)))
LIFE = {"serial": SERIAL, "not_before": NOW, "not_after": NOW + timedelta(days=90)}
ISSUER = Issuer(
    x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example issuing CA")]).public_bytes(),
    bytes(range(20)),
    datetime(2100, 1, 1, tzinfo=UTC),
)
LDEVID = Ldevid("gw-0001", "sn-0001", "muster.example", SPKI)
STATION = Station("line 1", SPKI)
SERVICE = ServiceTls("muster.example", ("gateway.example", "192.0.2.7", "2001:db8::1"), SPKI)
ISSUING = IssuingCa("Example issuing CA", SPKI)
ROOT = RootCa("Example root CA", SPKI)
LEAVES = [LDEVID, STATION, SERVICE]


def by_builder(wanted, issuer, *, serial, not_before, not_after):
    """The same certificate by cryptography's builder: the oracle. A software key signs, only the TBS is looked at."""
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    ) | {"decipher_only": False}
    attributes = [(NameOID.COMMON_NAME, getattr(wanted, "common_name", ""))]
    names, purpose, length = [], ExtendedKeyUsageOID.CLIENT_AUTH, None
    if isinstance(wanted, Ldevid):
        attributes = [(NameOID.COMMON_NAME, wanted.device_id), (NameOID.SERIAL_NUMBER, wanted.serial_number)]
        uri = f"spiffe://{wanted.service_name}/device/{wanted.device_id}"
        names = [x509.UniformResourceIdentifier(uri)]
    if isinstance(wanted, Station):
        attributes = [(NameOID.COMMON_NAME, f"station:{wanted.name}")]
    if isinstance(wanted, ServiceTls):
        attributes = [(NameOID.COMMON_NAME, wanted.service_name)]
        purpose = ExtendedKeyUsageOID.SERVER_AUTH
        names = [x509.DNSName(wanted.service_name), x509.DNSName("localhost")]
        names += [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("gateway.example")]
        names += [x509.IPAddress(ipaddress.ip_address(host)) for host in ("192.0.2.7", "2001:db8::1")]
    if isinstance(wanted, IssuingCa):
        length = 0
    ca = isinstance(wanted, IssuingCa | RootCa)
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    builder = (
        x509.CertificateBuilder(subject_name=subject, public_key=KEY.public_key(), serial_number=serial)
        .issuer_name(
            subject if issuer is None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example issuing CA")])
        )
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=length), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier(key_id_of(wanted.public_key)), critical=False)
    if issuer is not None:
        authority = x509.AuthorityKeyIdentifier(issuer.key_id, None, None)
        builder = builder.add_extension(authority, critical=False)
        if issuer.crl_url:
            where = x509.DistributionPoint([x509.UniformResourceIdentifier(issuer.crl_url)], None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([where]), critical=False)
    return builder.sign(KEY, hashes.SHA256()).tbs_certificate_bytes


@pytest.mark.parametrize("wanted", [LDEVID, STATION, SERVICE, ISSUING, ROOT], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("crl_url", [None, "http://muster.example:8080/crl/issuing.crl"])
def test_the_writer_equals_the_builder(wanted, crl_url):
    issuer = None if wanted is ROOT else replace(ISSUER, crl_url=crl_url)
    assert build(wanted, issuer, **LIFE).der == by_builder(wanted, issuer, **LIFE)


@given(
    device_id=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
    serial_number=st.from_regex(r"[A-Za-z0-9 '()+,\-./:=?]{1,64}", fullmatch=True),
    service_name=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", fullmatch=True),
    entropy=st.binary(min_size=16, max_size=20),
    not_before=st.datetimes(datetime(1970, 1, 1), datetime(2080, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    days=st.integers(1, 7300),
)
def test_the_ldevid_writer_equals_the_builder_for_all_values(
    device_id, serial_number, service_name, entropy, not_before, days
):
    wanted = Ldevid(device_id, serial_number, service_name, SPKI)
    not_before = not_before.replace(microsecond=0)
    not_after = min(not_before + timedelta(days=days), ISSUER.not_after)
    life = {"serial": serial_of(entropy), "not_before": not_before, "not_after": not_after}
    tbs = build(wanted, ISSUER, **life)
    assert tbs.der == by_builder(wanted, ISSUER, **life)
    assert (tbs.serial, tbs.profile) == (serial_of(entropy), Profile.LDEVID)
    assert (tbs.not_before, tbs.not_after) == (not_before, not_after)


def test_fractions_of_seconds_are_cut_off_and_other_zones_become_utc():
    zone = NOW.astimezone(tz=None)
    odd = build(LDEVID, ISSUER, **(LIFE | {"not_before": zone.replace(microsecond=999_999)}))
    assert odd == build(LDEVID, ISSUER, **LIFE)


@pytest.mark.parametrize("wanted", LEAVES, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("crl_url", [None, "http://muster.example:8080/crl/issuing.crl"])
def test_leaves_lint_clean(hierarchy, wanted, crl_url):
    issuer = replace(hierarchy.issuer, crl_url=crl_url)
    cert = issue(wanted, issuer, hierarchy.issuing_key, **LIFE)
    assert lint_certificate(cert.public_bytes(Encoding.DER)) == []


def test_cas_lint_clean(hierarchy):
    assert lint_certificate(hierarchy.root.public_bytes(Encoding.DER)) == []
    assert lint_certificate(hierarchy.issuing.public_bytes(Encoding.DER)) == []


def test_the_linter_finds_a_bad_certificate(hierarchy):
    """A linter that finds nothing anywhere proves nothing: here the SAN's tag says e-mail and holds a URI."""
    cert = issue(LDEVID, hierarchy.issuer, hierarchy.issuing_key, **LIFE)
    der = cert.public_bytes(Encoding.DER)
    uri = b"spiffe://muster.example/device/gw-0001"
    broken = der.replace(b"\x86" + bytes((len(uri),)) + uri, b"\x81" + bytes((len(uri),)) + uri)
    assert broken != der
    assert lint_certificate(broken) != []


def test_an_ldevid_has_every_extension_of_its_profile(hierarchy):
    cert = issue(LDEVID, hierarchy.issuer, hierarchy.issuing_key, **LIFE)
    assert_is_ldevid(
        cert, device_id="gw-0001", serial_number="sn-0001", service_name="muster.example", issuer=hierarchy.issuing
    )


def test_a_station_and_a_service_certificate_have_every_extension_of_theirs(hierarchy):
    station = issue(STATION, hierarchy.issuer, hierarchy.issuing_key, **LIFE)
    assert_is_station(station, station="line 1", issuer=hierarchy.issuing)
    service = issue(SERVICE, hierarchy.issuer, hierarchy.issuing_key, **LIFE)
    assert_is_service_tls(service, service_name="muster.example", hosts=SERVICE.hosts, issuer=hierarchy.issuing)


def test_the_cas_have_every_extension_of_theirs(hierarchy):
    assert_is_root_ca(hierarchy.root, common_name="Example root CA")
    assert_is_issuing_ca(hierarchy.issuing, common_name="Example issuing CA", issuer=hierarchy.root)


def test_hosts_that_always_stand_are_named_once(hierarchy):
    wanted = ServiceTls("localhost", ("127.0.0.1", "localhost", "a.example", "a.example"), SPKI)
    cert = issue(wanted, hierarchy.issuer, hierarchy.issuing_key, **LIFE)
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "127.0.0.1", "a.example"]


def test_an_issuer_is_what_its_certificate_says(hierarchy):
    url = "http://muster.example/crl/issuing.crl"
    issuer = issuer_of(hierarchy.issuing.public_bytes(Encoding.DER), url)
    assert issuer.name == hierarchy.issuing.subject.public_bytes()
    assert issuer.key_id == key_id_of(spki(hierarchy.issuing_key))
    assert issuer.not_after == hierarchy.issuing.not_valid_after_utc
    assert issuer.crl_url == url


REFUSED = {
    "root with an issuer": (ROOT, ISSUER, {}, "its own"),
    "leaf without an issuer": (LDEVID, None, {}, "its own"),
    "compressed point": (replace(LDEVID, public_key=SPKI[:26] + b"\x02" + SPKI[27:]), ISSUER, {}, "P-256"),
    "bytes behind the key": (replace(LDEVID, public_key=SPKI + b"\x00"), ISSUER, {}, "P-256"),
    "ends as it begins": (LDEVID, ISSUER, {"not_after": NOW}, "an end after"),
    "outlives its issuer": (LDEVID, ISSUER, {"not_after": datetime(2100, 1, 1, 0, 0, 1, tzinfo=UTC)}, "issuer's"),
    "serial with underscore": (replace(LDEVID, serial_number="sn_1"), ISSUER, {}, "PrintableString"),
    "no serial": (replace(LDEVID, serial_number=""), ISSUER, {}, "PrintableString"),
    "serial with line end": (replace(LDEVID, serial_number="sn-1\n"), ISSUER, {}, "PrintableString"),
    "empty id": (replace(LDEVID, device_id=""), ISSUER, {}, "common name"),
    "id too long": (replace(LDEVID, device_id="a" * 65), ISSUER, {}, "common name"),
    "name not ASCII": (replace(LDEVID, service_name="müster.example"), ISSUER, {}, "ASCII"),
    "name with control": (replace(LDEVID, service_name="a\x00b"), ISSUER, {}, "ASCII"),
    "hostile host": (replace(SERVICE, hosts=("*.example",)), ISSUER, {}, "DNS name"),
    "host with line end": (replace(SERVICE, hosts=("a.example\n",)), ISSUER, {}, "DNS name"),
    "host too long": (replace(SERVICE, hosts=(".".join(["a" * 63] * 4),)), ISSUER, {}, "DNS name"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_the_profile_is_refused(case):
    wanted, issuer, life, reason = case
    with pytest.raises(ToBeSignedRefused) as caught:
        build(wanted, issuer, **(LIFE | life))
    assert reason in caught.value.expected


def test_serials_are_positive_of_one_length_and_random_but_for_two_bits():
    assert serial_of(bytes(16)) == 1 << 126
    assert serial_of(b"\xff" * 16) == (1 << 127) - 1
    assert serial_of(b"\xff" * 15 + b"\xfe" + b"more") == (1 << 127) - 2
    assert serial_text(serial_of(bytes(16))) == "4" + "0" * 31


def test_a_serial_of_too_little_entropy_is_not_made():
    with pytest.raises(ValueError, match="16 random bytes"):
        serial_of(bytes(15))


def test_an_assembled_certificate_keeps_the_bytes_that_were_signed():
    tbs = build(LDEVID, ISSUER, **LIFE)
    signature = KEY.sign(tbs.der, ec.ECDSA(hashes.SHA256()))
    cert = x509.load_der_x509_certificate(assemble(tbs.der, signature))
    assert cert.tbs_certificate_bytes == tbs.der
    assert cert.signature == signature
