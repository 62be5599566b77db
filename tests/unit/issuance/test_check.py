"""The look before signing: it passes what the builder writes, and nothing that differs from it in any field."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance import der
from provisioning.issuance.algorithms import algorithm_of
from provisioning.issuance.check import BACKDATED_MOST, check_tbs
from provisioning.issuance.keys import KeyKind
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
)
from provisioning.issuance.profiles import builtin
from provisioning.issuance.reader import pieces_of
from provisioning.issuance.tbs import Profile, serial_of
from provisioning.refusals import ToBeSignedRefused
from tests.support.certificates import spki

SPKI = spki(ec.generate_private_key(ec.SECP256R1()))
OTHER_SPKI = spki(ec.generate_private_key(ec.SECP256R1()))
P384 = spki(ec.generate_private_key(ec.SECP384R1()))
RSA_2048 = spki(rsa.generate_private_key(65537, 2048))
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
LIFE = {"serial": serial_of(bytes(range(16))), "not_before": NOW, "not_after": NOW + timedelta(days=7)}
ISSUER = Issuer(
    x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example issuing CA")]).public_bytes(),
    bytes(range(20)),
    datetime(2100, 1, 1, tzinfo=UTC),
    "http://muster.example/crl/issuing.crl",
    "http://muster.example/ca/issuing.crt",
    "http://muster.example/ocsp",
)
NAMES = {"device_id": "gw-0001", "serial_number": "sn-0001", "service_name": "muster.example"}
LDEVID = Ldevid(**NAMES, public_key=SPKI)
IDEVID = Idevid(**NAMES, public_key=SPKI)
QUARANTINE = Quarantine(**NAMES, public_key=SPKI)
GATEWAY = Gateway(**NAMES, hosts=("gw-0001.a.example",), public_key=SPKI)
STATION = Station("line-1", "muster.example", SPKI)
OPERATOR = Operator("ada", "muster.example", SPKI)
SERVICE = ServiceTls("muster.example", ("192.0.2.7", "a.example"), SPKI)
RESPONDER = OcspResponder("issuing", "muster.example", SPKI)
ISSUING = IssuingCa(
    "Example issuing CA", SPKI, ("muster.example",), ("muster.example",), ("192.0.2.0/24",), "m.example"
)
ROOT = RootCa("Example root CA", SPKI)
LEAVES = [LDEVID, IDEVID, QUARANTINE, GATEWAY, STATION, OPERATOR, SERVICE, RESPONDER]
ALL = [*((leaf, ISSUER) for leaf in LEAVES), (ISSUING, ISSUER), (ROOT, None)]
TBS = build(LDEVID, ISSUER, **LIFE)


@pytest.mark.parametrize(("wanted", "issuer"), ALL, ids=lambda v: type(v).__name__)
def test_what_the_builder_writes_passes(wanted, issuer):
    check_tbs(build(wanted, issuer, **LIFE), wanted, issuer)


@pytest.mark.parametrize("wanted", LEAVES, ids=lambda w: type(w).__name__)
def test_no_kind_passes_for_another(wanted):
    tbs = build(wanted, ISSUER, **LIFE)
    for other in LEAVES:
        if other is not wanted:
            with pytest.raises(ToBeSignedRefused) as caught:
                check_tbs(replace(tbs, profile=KIND_OF[type(other)]), other, ISSUER)
            assert "extensions" in {finding.what for finding in caught.value.findings}


OTHER = {
    "another id": (TBS, replace(LDEVID, device_id="gw-0002"), ISSUER, {"subject", "extensions"}),
    "another serial number": (TBS, replace(LDEVID, serial_number="sn-2"), ISSUER, {"subject"}),
    "another service": (TBS, replace(LDEVID, service_name="other.example"), ISSUER, {"extensions"}),
    "another key": (TBS, replace(LDEVID, public_key=OTHER_SPKI), ISSUER, {"public key", "extensions"}),
    "another issuer": (TBS, LDEVID, replace(ISSUER, name=der.distinguished_name()), {"issuer"}),
    "another issuer key": (TBS, LDEVID, replace(ISSUER, key_id=bytes(20)), {"extensions"}),
    "another algorithm of the issuer": (
        TBS,
        LDEVID,
        replace(ISSUER, algorithm=algorithm_of(ed25519.Ed25519PrivateKey.generate().public_key())),
        {"algorithm"},
    ),
    "another CRL": (TBS, LDEVID, replace(ISSUER, crl_url="http://other.example/"), {"extensions"}),
    "another responder": (TBS, LDEVID, replace(ISSUER, ocsp_url="http://other.example/"), {"extensions"}),
    "another issuer URL": (TBS, LDEVID, replace(ISSUER, ca_url="http://other.example/"), {"extensions"}),
    "no CRL": (TBS, LDEVID, replace(ISSUER, crl_url=None), {"extensions", "says where its issuer's CRL is"}),
    "an issuer that ends first": (TBS, LDEVID, replace(ISSUER, not_after=NOW), {"ends with its issuer"}),
    "not self-issued": (
        build(replace(ISSUING, common_name="Other CA"), ISSUER, **LIFE),
        RootCa("Example root CA", SPKI),
        None,
        {"kind", "issuer", "subject", "extensions"},
    ),
    "other constraints": (build(ISSUING, ISSUER, **LIFE), replace(ISSUING, permitted_ip=()), ISSUER, {"extensions"}),
    "a station's": (build(STATION, ISSUER, **LIFE), LDEVID, ISSUER, {"kind", "subject", "extensions"}),
    "a CA's": (build(ISSUING, ISSUER, **LIFE), LDEVID, ISSUER, {"kind", "subject", "extensions"}),
    "another kind noted": (replace(TBS, profile=Profile.STATION), LDEVID, ISSUER, {"kind"}),
    "another serial noted": (replace(TBS, serial=serial_of(bytes(16))), LDEVID, ISSUER, {"serial"}),
    "another begin noted": (replace(TBS, not_before=NOW - timedelta(1)), LDEVID, ISSUER, {"not before"}),
    "another end noted": (replace(TBS, not_after=NOW + timedelta(1)), LDEVID, ISSUER, {"not after"}),
    "a short serial": (
        build(LDEVID, ISSUER, **(LIFE | {"serial": 5})),
        LDEVID,
        ISSUER,
        {"serial is positive and has 64 bits or more"},
    ),
    "another host": (build(SERVICE, ISSUER, **LIFE), replace(SERVICE, hosts=("192.0.2.8",)), ISSUER, {"extensions"}),
    "another gateway": (build(GATEWAY, ISSUER, **LIFE), replace(GATEWAY, hosts=()), ISSUER, {"extensions"}),
}


@pytest.mark.parametrize("case", OTHER.values(), ids=OTHER.keys())
def test_a_certificate_that_says_something_else_is_refused_and_the_field_named(case):
    tbs, wanted, issuer, fields = case
    with pytest.raises(ToBeSignedRefused) as caught:
        check_tbs(tbs, wanted, issuer)
    assert {finding.what for finding in caught.value.findings} == fields


@pytest.mark.parametrize(("wanted", "issuer"), ALL, ids=lambda v: type(v).__name__)
def test_all_but_a_root_say_where_to_ask_about_them(wanted, issuer):
    if issuer is None:
        return
    needed = {"crl_url", "ca_url"} | (set() if wanted in (ISSUING, RESPONDER) else {"ocsp_url"})
    for name in ("crl_url", "ca_url", "ocsp_url"):
        mute = replace(issuer, **{name: None})
        tbs = build(wanted, mute, **LIFE)
        if name not in needed:
            check_tbs(tbs, wanted, mute)
            continue
        with pytest.raises(ToBeSignedRefused) as caught:
            check_tbs(tbs, wanted, mute)
        assert {finding.what for finding in caught.value.findings} == {"says where its issuer's CRL is"}


def refused_fields(wanted, profile, **life):
    with pytest.raises(ToBeSignedRefused) as caught:
        check_tbs(build(wanted, ISSUER, **(LIFE | life)), wanted, ISSUER, profile)
    return {finding.what for finding in caught.value.findings}


def test_the_profile_that_is_named_counts_and_else_the_built_in_one():
    days = builtin(Profile.LDEVID).lifetime.days
    longer = {"not_after": NOW + timedelta(days=days) + BACKDATED_MOST + timedelta(seconds=1)}
    assert refused_fields(LDEVID, None, **longer) == {"lifetime"}
    assert refused_fields(LDEVID, builtin(Profile.LDEVID), **longer) == {"lifetime"}
    lasting = replace(builtin(Profile.LDEVID), lifetime=timedelta(days=days + 1))
    check_tbs(build(LDEVID, ISSUER, **(LIFE | longer)), LDEVID, ISSUER, lasting)
    assert refused_fields(LDEVID, builtin(Profile.QUARANTINE)) == {"kind"}


def test_the_profile_says_which_keys():
    only = replace(builtin(Profile.LDEVID), keys=frozenset({KeyKind.P384}))
    assert refused_fields(LDEVID, only) == {"public key is good enough"}
    check_tbs(build(replace(LDEVID, public_key=P384), ISSUER, **LIFE), replace(LDEVID, public_key=P384), ISSUER, only)
    longer = replace(only, keys=frozenset({KeyKind.RSA}), rsa_bits_least=3072)
    assert refused_fields(replace(LDEVID, public_key=RSA_2048), longer) == {"public key is good enough"}
    enough = replace(longer, rsa_bits_least=2048)
    check_tbs(
        build(replace(LDEVID, public_key=RSA_2048), ISSUER, **LIFE),
        replace(LDEVID, public_key=RSA_2048),
        ISSUER,
        enough,
    )


def test_only_an_idevid_without_end_outlives_its_issuer():
    endless = LIFE | {"not_after": NO_END}
    check_tbs(build(IDEVID, ISSUER, **endless), IDEVID, ISSUER)
    long = replace(build(LDEVID, replace(ISSUER, not_after=NO_END), **endless))
    with pytest.raises(ToBeSignedRefused) as caught:
        check_tbs(long, LDEVID, ISSUER, replace(builtin(Profile.LDEVID), lifetime=NO_END - NOW))
    assert {finding.what for finding in caught.value.findings} == {"ends with its issuer"}


def edited(old: bytes, new: bytes) -> bytes:
    assert TBS.der.count(old) == 1
    assert len(old) == len(new)
    return TBS.der.replace(old, new)


EDITS = {
    "version 2": (bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), "parses"),
    "unused bits of the usage": (bytes.fromhex("03020780"), bytes.fromhex("03020480"), "extensions"),
    "another string": (b"\x13\x07sn-0001", b"\x0c\x07sn-0001", "subject"),
    "another algorithm": (bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a8648ce3d040303"), "algorithm"),
    "serverAuth": (bytes.fromhex("2b06010505070302"), bytes.fromhex("2b06010505070301"), "extensions"),
    "no longer critical": (bytes.fromhex("0603551d0f0101ff"), bytes.fromhex("0603551d0f010100"), "parses"),
    "another usage": (bytes.fromhex("03020780"), bytes.fromhex("03020040"), "extensions"),
    "no point of the curve": (SPKI[-8:], bytes(8), "parses"),
}


@pytest.mark.parametrize("case", EDITS.values(), ids=EDITS.keys())
def test_edited_bytes_are_refused(case):
    old, new, reason = case
    with pytest.raises(ToBeSignedRefused) as caught:
        check_tbs(replace(TBS, der=edited(old, new)), LDEVID, ISSUER)
    assert reason in caught.value.expected + caught.value.actual


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_single_bit_may_be_another():
    for position in range(len(TBS.der)):
        for bit in range(8):
            hostile = bytearray(TBS.der)
            hostile[position] ^= 1 << bit
            with pytest.raises(ToBeSignedRefused):
                check_tbs(replace(TBS, der=bytes(hostile)), LDEVID, ISSUER)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(data=st.data(), number=st.integers(0, len(ALL) - 1))
def test_a_changed_byte_never_passes(data, number):
    wanted, issuer = ALL[number]
    tbs = build(wanted, issuer, **LIFE)
    position = data.draw(st.integers(0, len(tbs.der) - 1))
    octet = data.draw(st.integers(0, 255).filter(lambda octet: octet != tbs.der[position]))
    hostile = tbs.der[:position] + bytes([octet]) + tbs.der[position + 1 :]
    with pytest.raises(ToBeSignedRefused):
        check_tbs(replace(tbs, der=hostile), wanted, issuer)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.integers(0, len(TBS.der)), st.integers(0, 40), st.binary(max_size=40))
def test_spliced_bytes_never_pass(at, gone, put):
    hostile = TBS.der[:at] + put + TBS.der[at + gone :]
    if hostile != TBS.der:
        with pytest.raises(ToBeSignedRefused):
            check_tbs(replace(TBS, der=hostile), LDEVID, ISSUER)


@given(st.integers(0, len(TBS.der)), st.integers(0, 40), st.binary(max_size=40))
def test_the_reader_takes_only_what_it_can_put_together_again(at, gone, put):
    """What it reads, it reads as `cryptography` does, or not at all: no length is read in two ways."""
    hostile = TBS.der[:at] + put + TBS.der[at + gone :]
    try:
        pieces = pieces_of(hostile)
    except ValueError:
        return
    ends = der.sequence(
        *(der.extension(oid, value, critical=critical) for oid, (critical, value) in pieces.extensions.items())
    )
    assert hostile.endswith(der.tlv(0xA3, ends))
    assert pieces.public_key + der.tlv(0xA3, ends) in hostile


def test_a_key_of_no_kind_is_refused():
    with pytest.raises(ToBeSignedRefused):
        check_tbs(TBS, replace(LDEVID, public_key=b"no key"), ISSUER)


EXTENSION = der.extension("2.5.29.15", bytes.fromhex("03020780"), critical=True)


def with_extensions(content):
    """The certificate with other extensions; every length around them is right."""
    begin, _, _ = TBS.der.partition(b"\xa3\x82")
    return der.sequence(begin[4:], der.tlv(0xA3, content))


MALFORMED = {
    "twice": (der.sequence(EXTENSION, EXTENSION), "stands twice"),
    "a long length of few octets": (b"\x30\x81" + bytes([len(EXTENSION)]) + EXTENSION, "shortest form"),
    "an indefinite length": (b"\x30\x80" + EXTENSION + b"\0\0", "is indefinite"),
    "longer than what holds it": (b"\x30\x70" + EXTENSION, "longer than what holds it"),
    "another tag": (der.tlv(der.SET, EXTENSION), "no element of tag"),
    "something behind": (der.sequence(EXTENSION) + b"\x05\x00", "belong to nothing"),
    "something behind the value": (
        der.sequence(der.sequence(der.oid("2.5.29.15"), der.tlv(der.OCTET_STRING, b""), b"\x05\x00")),
        "belong to nothing",
    ),
    "an identifier that does not end": (
        der.sequence(der.sequence(bytes.fromhex("060355 1d8f"), der.tlv(der.OCTET_STRING, b""))),
        "does not end",
    ),
    "an identifier of no octets": (
        der.sequence(der.sequence(b"\x06\x00", der.tlv(der.OCTET_STRING, b""))),
        "does not end",
    ),
    "an identifier with zeros in front": (
        der.sequence(der.sequence(bytes.fromhex("060455801d0f"), der.tlv(der.OCTET_STRING, b""))),
        "shortest form",
    ),
}


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED.keys())
def test_the_reader_refuses_what_der_does_not_write(case):
    content, why = case
    with pytest.raises(ValueError, match=why):
        pieces_of(with_extensions(content))
    assert pieces_of(with_extensions(der.sequence(EXTENSION))).extensions == {
        "2.5.29.15": (True, bytes.fromhex("03020780"))
    }


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(data):
    with pytest.raises(ToBeSignedRefused):
        check_tbs(replace(TBS, der=data), LDEVID, ISSUER)
