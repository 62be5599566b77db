"""Files as manufacturers hand them over: what is found in them, and what is said of the rest."""

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation import bundles
from provisioning.attestation.bundles import FILE_MOST, FOUND_MOST, certificates_in
from tests.support.ek_certificates import element, pem, root

ROOTS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "ek-roots"
ONE, TWO = root("One").der, root("Two").der
PKCS7 = pkcs7.serialize_certificates([x509.load_der_x509_certificate(der) for der in (ONE, TWO)], Encoding.DER)


def ders(data):
    return [one.der for one in certificates_in(data) if not one.reason]


def reasons(data):
    return [one.reason for one in certificates_in(data) if one.reason]


def pem_of(label, der):
    body = base64.encodebytes(der)
    return f"-----BEGIN {label}-----\n".encode() + body + f"-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        ONE + TWO,
        pem(ONE, TWO).encode(),
        pem(ONE, TWO).replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + pem(ONE, TWO).encode(),
        pem(ONE, TWO).encode("utf-16"),
        b"subject=/CN=One\n" + pem_of("X509 CERTIFICATE", ONE) + b"text between\n" + pem_of("CERTIFICATE", TWO),
        PKCS7,
        pem_of("PKCS7", PKCS7),
        pem_of("CMS", PKCS7),
        base64.encodebytes(PKCS7),
        ONE + TWO + bytes(700),
        ONE + TWO + b"\xff" * 700,
        pem_of("TRUSTED CERTIFICATE", ONE + element(0x30, element(0x0C, b"alias"))) + pem_of("CERTIFICATE", TWO),
    ],
    ids=[
        *("DER", "PEM", "PEM of Windows", "PEM with a mark", "UTF-16", "PEM with text"),
        *("PKCS7", "PKCS7 in PEM", "CMS in PEM", "PKCS7 in base64", "padded by 0", "padded by 1", "trusted"),
    ],
)
def test_two_certificates_are_found_in_any_form(data):
    assert sorted(ders(data)) == sorted([ONE, TWO])  # PKCS#7 is a set, which DER sorts
    assert reasons(data) == []
    assert [one.place for one in certificates_in(data)] == [1, 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"a text", "holds no certificate"),
        (b"MI is how base64 of DER begins", "is cut or broken"),
        (b"MI==A", "holds no certificate"),
        (bytes(20), "holds no certificate"),
        (b"\x30\x82\x05", "is cut or broken"),
        (ONE[:-1], "is cut or broken"),
        (b"\x30\x80\x00\x00", "is cut or broken: an element of indefinite length"),
        (ONE + b"more", "has other octets behind a certificate"),
        (pem_of("PRIVATE KEY", b"secret"), "is a block 'PRIVATE KEY', not a certificate"),
        (pem_of("X509 CRL", b"list"), "is a block 'X509 CRL', not a certificate"),
        (b"-----BEGIN CERTIFICATE-----\nMI\n", "has a PEM block without its end"),
        (b"-----BEGIN CERTIFICATE-----\nM!I\n-----END CERTIFICATE-----\n", "has broken base64 in it"),
        (pem_of("PKCS7", element(0x30, b"\x06\x01\x01")), "is PKCS#7 of another kind than signed data"),
        (pem_of("PKCS7", b"\x30\x03"), "is broken PKCS#7"),
        (b"\x00" * (FILE_MOST + 1), "is larger than 8 MiB"),
    ],
)
def test_what_is_no_certificate_is_said_to_be_none(data, reason):
    (one,) = [found for found in certificates_in(data) if found.reason]
    assert one.reason.startswith(reason)
    assert one.der == b""


def test_a_bundle_with_a_bad_part_gives_the_good_ones():
    data = pem_of("CERTIFICATE", ONE) + pem_of("PRIVATE KEY", b"secret") + pem_of("CERTIFICATE", TWO)
    found = certificates_in(data)
    assert [(one.place, one.der, bool(one.reason)) for one in found] == [
        (1, ONE, False),
        (2, b"", True),
        (3, TWO, False),
    ]
    assert b"secret" not in repr(found).encode()


def test_the_number_of_certificates_is_bounded(monkeypatch):
    monkeypatch.setattr(bundles, "FOUND_MOST", 3)
    found = certificates_in(ONE * 5)
    assert len([one for one in found if not one.reason]) == 3
    assert found[-1].reason == "holds more than 3 certificates"
    assert certificates_in(ONE * 3)[-1].reason == ""


@pytest.mark.parametrize("data", [b"-----BEGIN A-----" * 100_000, ONE * (FOUND_MOST + 1)], ids=["pem", "der"])
def test_many_parts_are_read_in_one_pass(data):
    """Octets that were looked at once for each part made this minutes."""
    found = certificates_in(data)
    assert len(found) == FOUND_MOST + 1
    assert found[-1].reason == f"holds more than {FOUND_MOST} certificates"


def test_a_block_without_end_takes_nothing_from_the_next():
    data = b"-----BEGIN CERTIFICATE-----\nMI\n" + pem_of("CERTIFICATE", ONE)
    assert [(one.der, one.reason) for one in certificates_in(data)] == [
        (b"", "has a PEM block without its end"),
        (ONE, ""),
    ]


@given(st.binary(max_size=400))
def test_any_octets_are_found_or_refused(data):
    for begin in (
        b"",
        b"\x30",
        b"\x30\x82",
        ONE[:40],
        b"-----BEGIN CERTIFICATE-----\n",
        PKCS7[:60],
        b"\xff\xfe",
        b"MI",
    ):
        found = certificates_in(begin + data)
        assert found
        assert all(bool(one.der) != bool(one.reason) for one in found)


@given(st.integers(0, len(PKCS7) - 1), st.integers(1, 255))
def test_a_changed_octet_in_pkcs7_is_found_or_refused(at, change):
    data = PKCS7[:at] + bytes([PKCS7[at] ^ change]) + PKCS7[at + 1 :]
    assert all(bool(one.der) != bool(one.reason) for one in certificates_in(data))


@pytest.mark.skipif(not ROOTS.is_dir(), reason="no roots: ../shared/vectors is absent")
def test_every_file_of_real_roots_holds_one_certificate():
    for file in sorted(ROOTS.iterdir()):
        (one,) = certificates_in(file.read_bytes())
        assert not one.reason, file.name
