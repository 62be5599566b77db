"""The look before signing: it passes what the builder writes, and nothing that differs from it in any field."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance import der
from provisioning.issuance.check import check_tbs
from provisioning.issuance.profile import Issuer, IssuingCa, Ldevid, RootCa, ServiceTls, Station, build
from provisioning.issuance.tbs import Profile, serial_of
from provisioning.refusals import ToBeSignedRefused
from tests.support.certificates import spki

SPKI = spki(ec.generate_private_key(ec.SECP256R1()))
OTHER_SPKI = spki(ec.generate_private_key(ec.SECP256R1()))
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
LIFE = {"serial": serial_of(bytes(range(16))), "not_before": NOW, "not_after": NOW + timedelta(days=90)}
ISSUER = Issuer(
    x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example issuing CA")]).public_bytes(),
    bytes(range(20)),
    datetime(2100, 1, 1, tzinfo=UTC),
    "http://muster.example/crl/issuing.crl",
)
LDEVID = Ldevid("gw-0001", "sn-0001", "muster.example", SPKI)
STATION = Station("line 1", SPKI)
SERVICE = ServiceTls("muster.example", ("192.0.2.7", "a.example"), SPKI)
ISSUING = IssuingCa("Example issuing CA", SPKI)
ROOT = RootCa("Example root CA", SPKI)
ALL = [(LDEVID, ISSUER), (STATION, ISSUER), (SERVICE, ISSUER), (ISSUING, ISSUER), (ROOT, None)]
TBS = build(LDEVID, ISSUER, **LIFE)


@pytest.mark.parametrize(("wanted", "issuer"), ALL, ids=lambda v: type(v).__name__)
def test_what_the_builder_writes_passes(wanted, issuer):
    check_tbs(build(wanted, issuer, **LIFE), wanted, issuer)
    bare = replace(issuer, crl_url=None) if issuer else None
    check_tbs(build(wanted, bare, **LIFE), wanted, bare)


OTHER = {
    "another id": (TBS, replace(LDEVID, device_id="gw-0002"), ISSUER, {"subject", "extensions"}),
    "another serial number": (TBS, replace(LDEVID, serial_number="sn-2"), ISSUER, {"subject"}),
    "another service": (TBS, replace(LDEVID, service_name="other.example"), ISSUER, {"extensions"}),
    "another key": (
        TBS,
        replace(LDEVID, public_key=OTHER_SPKI),
        ISSUER,
        {"public key", "public key, to the byte", "extensions"},
    ),
    "another issuer": (TBS, LDEVID, replace(ISSUER, name=der.distinguished_name()), {"issuer"}),
    "another issuer key": (TBS, LDEVID, replace(ISSUER, key_id=bytes(20)), {"extensions"}),
    "another CRL": (TBS, LDEVID, replace(ISSUER, crl_url="http://other.example/"), {"extensions"}),
    "no CRL": (TBS, LDEVID, replace(ISSUER, crl_url=None), {"extensions"}),
    "an issuer that ends first": (TBS, LDEVID, replace(ISSUER, not_after=NOW), {"ends with its issuer"}),
    "not self-issued": (
        build(replace(ISSUING, common_name="Other CA"), ISSUER, **LIFE),
        RootCa("Example root CA", SPKI),
        None,
        {"profile", "issuer", "subject", "extensions"},
    ),
    "a station's": (
        build(STATION, ISSUER, **LIFE),
        LDEVID,
        ISSUER,
        {"profile", "subject", "extensions"},
    ),
    "a CA's": (build(ISSUING, ISSUER, **LIFE), LDEVID, ISSUER, {"profile", "subject", "extensions"}),
    "another profile noted": (replace(TBS, profile=Profile.STATION), LDEVID, ISSUER, {"profile"}),
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
}


@pytest.mark.parametrize("case", OTHER.values(), ids=OTHER.keys())
def test_a_certificate_that_says_something_else_is_refused_and_the_field_named(case):
    tbs, wanted, issuer, fields = case
    with pytest.raises(ToBeSignedRefused) as caught:
        check_tbs(tbs, wanted, issuer)
    assert {finding.what for finding in caught.value.findings} == fields


def edited(old: bytes, new: bytes) -> bytes:
    assert TBS.der.count(old) == 1
    assert len(old) == len(new)
    return TBS.der.replace(old, new)


EDITS = {
    "version 2": (bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), "parses"),
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
    """But in three octets whose other value means the same to `cryptography`: the two tags that say in which alphabet
    the subject's text is written, and how many bits of the key usage do not count. (That the writer writes the right
    ones, the comparison with the builder says.)"""
    same = {TBS.der.index(b"\x0c\x07gw-0001"), TBS.der.index(b"\x13\x07sn-0001")}
    same.add(TBS.der.index(bytes.fromhex("03020780")) + 2)
    for position in set(range(len(TBS.der))) - same:
        for bit in range(8):
            hostile = bytearray(TBS.der)
            hostile[position] ^= 1 << bit
            with pytest.raises(ToBeSignedRefused):
                check_tbs(replace(TBS, der=bytes(hostile)), LDEVID, ISSUER)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(data):
    with pytest.raises(ToBeSignedRefused):
        check_tbs(replace(TBS, der=data), LDEVID, ISSUER)
