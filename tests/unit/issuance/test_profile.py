"""The certificate writer: equal to cryptography's builder, clean to a linter, and right in every extension."""

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance.algorithms import algorithm_of
from provisioning.issuance.check import check_tbs
from provisioning.issuance.extensions import key_id_of
from provisioning.issuance.profile import (
    KIND_OF,
    NO_END,
    Gateway,
    Idevid,
    Issuer,
    IssuingCa,
    Ldevid,
    OcspResponder,
    Operator,
    Quarantine,
    RootCa,
    ServiceTls,
    Station,
    build,
    issuer_of,
    spiffe_id,
)
from provisioning.issuance.tbs import Profile, assemble, serial_of, serial_text
from provisioning.refusals import ToBeSignedRefused
from tests.support.certificates import (
    assert_is_gateway,
    assert_is_idevid,
    assert_is_issuing_ca,
    assert_is_ldevid,
    assert_is_ocsp_responder,
    assert_is_operator,
    assert_is_quarantine,
    assert_is_root_ca,
    assert_is_service_tls,
    assert_is_station,
    issue,
    spki,
)

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = spki(KEY)
SUBJECT_KEYS = {
    "P-256": KEY,
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA-2048": rsa.generate_private_key(65537, 2048),
    "RSA-3072": rsa.generate_private_key(65537, 3072),
    "RSA-4096": rsa.generate_private_key(65537, 4096),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
CA_KEYS = {name: SUBJECT_KEYS[name] for name in ("P-256", "P-384", "RSA-3072", "Ed25519")}
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
SERIAL = serial_of(bytes(range(16)))
LIFE = {"serial": SERIAL, "not_before": NOW, "not_after": NOW + timedelta(days=7)}
ISSUER = Issuer(
    x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example issuing CA")]).public_bytes(),
    bytes(range(20)),
    datetime(2100, 1, 1, tzinfo=UTC),
    "http://muster.example:8080/crl/issuing.crl",
    "http://muster.example:8080/ca/issuing.crt",
    "http://muster.example:8080/ocsp",
)
BARE = replace(ISSUER, crl_url=None, ca_url=None, ocsp_url=None)
NAMES = {"device_id": "gw-0001", "serial_number": "sn-0001", "service_name": "muster.example"}
LDEVID = Ldevid(**NAMES, public_key=SPKI)
IDEVID = Idevid(**NAMES, public_key=SPKI)
QUARANTINE = Quarantine(**NAMES, public_key=SPKI)
GATEWAY = Gateway(**NAMES, hosts=("gw-0001.gateways.example",), public_key=SPKI)
STATION = Station("line-1", "muster.example", SPKI)
OPERATOR = Operator("ada", "muster.example", SPKI)
SERVICE = ServiceTls("muster.example", ("gateway.example", "192.0.2.7", "2001:db8::1"), SPKI)
RESPONDER = OcspResponder("issuing", "muster.example", SPKI)
ISSUING = IssuingCa("Example issuing CA", SPKI, service_name="muster.example")
CONSTRAINED = replace(
    ISSUING,
    permitted_dns=("muster.example",),
    permitted_uri=("muster.example",),
    permitted_ip=("192.0.2.0/24", "2001:db8::/32"),
)
ROOT = RootCa("Example root CA", SPKI)
LEAVES = [LDEVID, IDEVID, QUARANTINE, GATEWAY, STATION, OPERATOR, SERVICE, RESPONDER]
ALL = [*LEAVES, ISSUING, CONSTRAINED, replace(ISSUING, service_name=""), ROOT]
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
PURPOSES = {
    Ldevid: [CLIENT],
    Idevid: [],
    Quarantine: [CLIENT],
    Gateway: [CLIENT, SERVER],
    Station: [CLIENT],
    Operator: [CLIENT],
    ServiceTls: [SERVER],
    OcspResponder: [ExtendedKeyUsageOID.OCSP_SIGNING],
    IssuingCa: [],
    RootCa: [],
}
COMMON_NAMES = {
    Idevid: "idevid:gw-0001",
    Station: "station:line-1",
    Operator: "operator:ada",
    ServiceTls: "muster.example",
    OcspResponder: "ocsp:issuing",
    IssuingCa: "Example issuing CA",
    RootCa: "Example root CA",
}
URIS = {
    Idevid: "spiffe://muster.example/idevid/gw-0001",
    Quarantine: "spiffe://muster.example/quarantine/gw-0001",
    Station: "spiffe://muster.example/station/line-1",
    Operator: "spiffe://muster.example/operator/ada",
    ServiceTls: "spiffe://muster.example/service",
    OcspResponder: "spiffe://muster.example/ocsp/issuing",
    IssuingCa: "spiffe://muster.example",
}


def signed_by(builder, key):
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, hashes.SHA384() if getattr(key, "key_size", 0) == 384 else digest)


def names_of(wanted):
    """The subject and the alternative names, said a second time."""
    common_name, uri = COMMON_NAMES.get(type(wanted)), URIS.get(type(wanted))
    if isinstance(wanted, Ldevid | Gateway | Quarantine):
        common_name = wanted.device_id
    if isinstance(wanted, Ldevid | Gateway):
        uri = f"spiffe://{wanted.service_name}/device/{wanted.device_id}"
    attributes = [(NameOID.COMMON_NAME, common_name)]
    if hasattr(wanted, "serial_number"):
        attributes.append((NameOID.SERIAL_NUMBER, wanted.serial_number))
    names = []
    if isinstance(wanted, ServiceTls):
        names = [x509.DNSName(wanted.service_name), x509.DNSName("localhost")]
        names += [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("gateway.example")]
        names += [x509.IPAddress(ipaddress.ip_address(host)) for host in ("192.0.2.7", "2001:db8::1")]
    if isinstance(wanted, Gateway):
        names = [x509.DNSName(host) for host in wanted.hosts]
    if uri is not None and wanted.service_name:
        names.append(x509.UniformResourceIdentifier(uri))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes]), names


def by_builder(wanted, issuer, *, serial, not_before, not_after, subject_key=KEY, key=KEY):
    """The same certificate by cryptography's builder: the oracle. A software key signs, only the TBS is looked at."""
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    ) | {"decipher_only": False}
    ca = isinstance(wanted, IssuingCa | RootCa)
    subject, names = names_of(wanted)
    builder = (
        x509.CertificateBuilder(subject_name=subject, public_key=subject_key.public_key(), serial_number=serial)
        .issuer_name(
            subject if issuer is None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example issuing CA")])
        )
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(
            x509.BasicConstraints(ca=ca, path_length=0 if isinstance(wanted, IssuingCa) else None), critical=True
        )
        .add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), critical=True)
    )
    if purposes := PURPOSES[type(wanted)]:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if isinstance(wanted, OcspResponder):
        builder = builder.add_extension(x509.OCSPNoCheck(), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if getattr(wanted, "permitted_dns", ()):
        builder = builder.add_extension(constraints(), critical=True)
    digest = x509.SubjectKeyIdentifier(key_id_of(wanted.public_key))
    builder = builder.add_extension(digest, critical=False)
    if issuer is not None:
        builder = about_issuer(builder, issuer, is_responder=isinstance(wanted, OcspResponder))
    return signed_by(builder, key).tbs_certificate_bytes


def constraints():
    return x509.NameConstraints(
        [
            x509.DNSName("muster.example"),
            x509.UniformResourceIdentifier("muster.example"),
            x509.IPAddress(ipaddress.ip_network("192.0.2.0/24")),
            x509.IPAddress(ipaddress.ip_network("2001:db8::/32")),
        ],
        None,
    )


def about_issuer(builder, issuer, *, is_responder):
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(issuer.key_id, None, None), critical=False)
    if issuer.crl_url:
        where = x509.DistributionPoint([x509.UniformResourceIdentifier(issuer.crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([where]), critical=False)
    access = [(AuthorityInformationAccessOID.OCSP, issuer.ocsp_url)] if not is_responder else []
    access.append((AuthorityInformationAccessOID.CA_ISSUERS, issuer.ca_url))
    described = [x509.AccessDescription(how, x509.UniformResourceIdentifier(url)) for how, url in access if url]
    if described:
        builder = builder.add_extension(x509.AuthorityInformationAccess(described), critical=False)
    return builder


@pytest.mark.parametrize("wanted", ALL, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("issuer", [ISSUER, BARE, replace(BARE, ca_url=ISSUER.ca_url)], ids=["all", "bare", "ca"])
def test_the_writer_equals_the_builder(wanted, issuer):
    issuer = None if wanted is ROOT else issuer
    assert build(wanted, issuer, **LIFE).der == by_builder(wanted, issuer, **LIFE)


@pytest.mark.parametrize("subject", SUBJECT_KEYS)
@pytest.mark.parametrize("signer", CA_KEYS)
def test_the_writer_equals_the_builder_for_every_key_and_algorithm(subject, signer):
    key = CA_KEYS[signer]
    issuer = replace(ISSUER, algorithm=algorithm_of(key.public_key()))
    wanted = replace(LDEVID, public_key=spki(SUBJECT_KEYS[subject]))
    tbs = build(wanted, issuer, **LIFE)
    assert tbs.der == by_builder(wanted, issuer, **LIFE, subject_key=SUBJECT_KEYS[subject], key=key)


@pytest.mark.parametrize("signer", CA_KEYS)
def test_a_root_signs_by_the_algorithm_of_its_own_key(signer):
    key = CA_KEYS[signer]
    wanted = RootCa("Example root CA", spki(key))
    assert build(wanted, None, **LIFE).der == by_builder(wanted, None, **LIFE, subject_key=key, key=key)
    assert_is_root_ca(issue(wanted, None, key, **LIFE), common_name="Example root CA")


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


@pytest.mark.parametrize("signer", CA_KEYS)
@pytest.mark.parametrize("wanted", LEAVES, ids=lambda w: type(w).__name__)
def test_every_leaf_of_every_signer_is_clean_and_passes_the_check(signer, wanted):
    key = CA_KEYS[signer]
    issuer = replace(ISSUER, algorithm=algorithm_of(key.public_key()))
    check_tbs(build(wanted, issuer, **LIFE), wanted, issuer)
    issue(wanted, issuer, key, **LIFE)


def test_cas_are_clean(hierarchy):
    issue(CONSTRAINED, issuer_of(hierarchy.root.public_bytes(Encoding.DER)), hierarchy.root_key, **LIFE)


def test_each_kind_has_every_extension_of_its_profile(hierarchy):
    def made(wanted):
        issuer = replace(ISSUER, name=hierarchy.issuer.name, key_id=hierarchy.issuer.key_id)
        return issue(wanted, issuer, hierarchy.issuing_key, **LIFE)

    issuer = hierarchy.issuing
    assert_is_ldevid(made(LDEVID), **NAMES, issuer=issuer)
    assert_is_idevid(made(IDEVID), **NAMES, issuer=issuer)
    assert_is_quarantine(made(QUARANTINE), **NAMES, issuer=issuer)
    assert_is_gateway(made(GATEWAY), **NAMES, hosts=GATEWAY.hosts, issuer=issuer)
    assert_is_station(made(STATION), station="line-1", service_name="muster.example", issuer=issuer)
    assert_is_operator(made(OPERATOR), operator="ada", service_name="muster.example", issuer=issuer)
    assert_is_service_tls(made(SERVICE), service_name="muster.example", hosts=SERVICE.hosts, issuer=issuer)
    assert_is_ocsp_responder(made(RESPONDER), authority="issuing", service_name="muster.example", issuer=issuer)


def test_an_ldevid_has_every_extension_of_its_profile(hierarchy):
    cert = issue(LDEVID, hierarchy.issuer, hierarchy.issuing_key, **LIFE)
    assert_is_ldevid(cert, **NAMES, issuer=hierarchy.issuing)


def test_the_cas_have_every_extension_of_theirs(hierarchy):
    assert_is_root_ca(hierarchy.root, common_name="Example root CA")
    assert_is_issuing_ca(hierarchy.issuing, common_name="Example issuing CA", issuer=hierarchy.root)
    root = issuer_of(hierarchy.root.public_bytes(Encoding.DER))
    cert = issue(CONSTRAINED, root, hierarchy.root_key, **LIFE)
    names = {"common_name": "Example issuing CA", "service_name": "muster.example"}
    assert_is_issuing_ca(cert, **names, issuer=hierarchy.root, permitted=constraints())


def test_an_idevid_may_have_no_end_and_nothing_else_may(hierarchy):
    life = LIFE | {"not_after": NO_END}
    cert = issue(IDEVID, hierarchy.issuer, hierarchy.issuing_key, **life)
    assert b"\x18\x0f99991231235959Z" in cert.tbs_certificate_bytes
    assert_is_idevid(cert, **NAMES, issuer=hierarchy.issuing)
    check_tbs(build(IDEVID, ISSUER, **life), IDEVID, ISSUER)
    for wanted in LEAVES:
        if wanted is not IDEVID:
            with pytest.raises(ToBeSignedRefused) as caught:
                build(wanted, hierarchy.issuer, **life)
            assert "issuer's" in caught.value.expected
    with pytest.raises(ToBeSignedRefused):
        build(IDEVID, hierarchy.issuer, **(life | {"not_after": NO_END - timedelta(seconds=1)}))


def test_only_a_device_in_service_has_its_spiffe_id_and_only_it_its_name():
    in_service = [each for each in LEAVES if spiffe_id(each) == "spiffe://muster.example/device/gw-0001"]
    assert in_service == [LDEVID, GATEWAY]
    assert len({spiffe_id(each) for each in LEAVES}) == len(LEAVES) - 1
    assert set(KIND_OF.values()) == set(Profile)


def test_hosts_that_always_stand_are_named_once(hierarchy):
    wanted = ServiceTls("localhost", ("127.0.0.1", "localhost", "a.example", "a.example"), SPKI)
    cert = issue(wanted, hierarchy.issuer, hierarchy.issuing_key, **LIFE)
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "127.0.0.1", "a.example", "spiffe://localhost/service"]


def test_an_issuer_is_what_its_certificate_says(hierarchy):
    url = "http://muster.example/crl/issuing.crl"
    der = hierarchy.issuing.public_bytes(Encoding.DER)
    issuer = issuer_of(der, url, ca_url="http://muster.example/ca", ocsp_url="http://muster.example/ocsp")
    assert issuer.name == hierarchy.issuing.subject.public_bytes()
    assert issuer.key_id == key_id_of(spki(hierarchy.issuing_key))
    assert issuer.not_after == hierarchy.issuing.not_valid_after_utc
    assert (issuer.crl_url, issuer.ca_url, issuer.ocsp_url) == (
        url,
        "http://muster.example/ca",
        "http://muster.example/ocsp",
    )
    assert issuer.algorithm is algorithm_of(hierarchy.issuing.public_key())


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
    "trust domain not ASCII": (replace(LDEVID, service_name="müster.example"), ISSUER, {}, "SPIFFE"),
    "trust domain with control": (replace(LDEVID, service_name="a\x00b"), ISSUER, {}, "SPIFFE"),
    "trust domain in upper case": (replace(LDEVID, service_name="Muster.example"), ISSUER, {}, "SPIFFE"),
    "trust domain with a port": (replace(LDEVID, service_name="muster.example:1"), ISSUER, {}, "SPIFFE"),
    "path that climbs": (replace(STATION, name=".."), ISSUER, {}, "SPIFFE"),
    "path with a segment more": (replace(STATION, name="a/b"), ISSUER, {}, "SPIFFE"),
    "path with an empty segment": (replace(STATION, name=""), ISSUER, {}, "SPIFFE"),
    "path with a line end": (replace(OPERATOR, name="ada\n"), ISSUER, {}, "SPIFFE"),
    "URL not ASCII": (LDEVID, replace(ISSUER, crl_url="http://müster.example/"), {}, "ASCII"),
    "key of no kind": (replace(LDEVID, public_key=spki(ec.generate_private_key(ec.SECP256K1()))), ISSUER, {}, "P-256"),
    "root with a key that signs nothing": (replace(ROOT, public_key=spki(SUBJECT_KEYS["P-521"])), None, {}, "P-384"),
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
