"""What EST carries: base64 both ways, certs-only, CSR attributes, the names of a renewal; and nothing else passes."""

import base64
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.issuance.csr import verify_possession
from provisioning.issuance.est import (
    BODY_MOST,
    body_of,
    certs_only,
    csr_attributes,
    parse_request,
    verify_same_names,
)
from provisioning.issuance.keys import KeyKind
from provisioning.refusals import CsrRefused, EstBodyMalformed, KeyPointRefused, NamesDiffer
from wire.messages import CSR_MOST

KEY = ec.generate_private_key(ec.SECP256R1())
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d-1"), x509.NameAttribute(NameOID.SERIAL_NUMBER, "sn-1")])
URI = x509.UniformResourceIdentifier("spiffe://muster.test/device/d-1")


def request(key=KEY, subject=SUBJECT, names=(URI,)):
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def certificate(names=(URI,)):

    now = datetime(2026, 11, 21, tzinfo=UTC)
    builder = x509.CertificateBuilder(SUBJECT, SUBJECT, KEY.public_key(), 77, now, now + timedelta(days=1))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


CSR, PRESENTED = request(), certificate()


@given(st.binary(min_size=1, max_size=600), st.integers(1, 80), st.sampled_from([b"\n", b"\r\n", b" ", b"\t\r\n "]))
def test_a_request_is_read_with_whatever_white_space_stands_in_it(content, width, space):
    text = base64.b64encode(content)
    body = space.join(text[at : at + width] for at in range(0, len(text), width)) + space
    assert parse_request(body) == content


@given(st.binary(max_size=200))
def test_what_is_no_canonical_base64_is_refused(body):
    text = body.translate(None, b" \t\r\n")
    try:
        fits = bool(text) and base64.b64encode(base64.b64decode(text, validate=True)) == text
    except ValueError:
        fits = False
    if not fits:
        with pytest.raises(EstBodyMalformed):
            parse_request(body)


def test_the_cap_of_a_body_holds_the_largest_request_in_short_lines():
    lines = base64.encodebytes(bytes(CSR_MOST))
    assert len(lines) <= BODY_MOST
    assert len(parse_request(lines)) == CSR_MOST


@given(st.binary(min_size=1, max_size=5000))
def test_an_answer_is_base64_in_lines_of_64(content):
    body = body_of(content)
    assert base64.b64decode(body) == content
    assert max(map(len, body.split(b"\n"))) <= 64
    assert body.endswith(b"\n")


def test_certs_only_holds_exactly_the_certificates_in_der():
    made = [PRESENTED, certificate(())]
    content = certs_only(made)
    found = pkcs7.load_der_pkcs7_certificates(content)
    assert {one.public_bytes(Encoding.DER) for one in found} == set(made)
    assert certs_only(made[::-1]) == content  # a set has no order
    fields = core.Sequence.load(content, strict=True)
    assert fields[0].native == "1.2.840.113549.1.7.2"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (KeyKind.P256, ["1.2.840.10045.2.1", "1.2.840.10045.3.1.7", "1.2.840.10045.4.3.2"]),
        (KeyKind.P384, ["1.2.840.10045.2.1", "1.3.132.0.34", "1.2.840.10045.4.3.3"]),
        (KeyKind.P521, ["1.2.840.10045.2.1", "1.3.132.0.35", "1.2.840.10045.4.3.4"]),
        (KeyKind.RSA, ["1.2.840.113549.1.1.1", 3072, "1.2.840.113549.1.1.11"]),
        (KeyKind.ED25519, ["1.3.101.112"]),
    ],
)
def test_attributes_say_the_kind_of_key_and_how_to_sign(kind, told):
    found = []

    def walk(data):
        while data:
            size = len(core.load(data).dump())
            value = core.load(data[:size], strict=True)
            if isinstance(value, core.Sequence | core.Set):
                walk(value.contents)
            else:
                found.append(value.native)
            data = data[size:]

    walk(csr_attributes(kind, 3072))
    assert found == told


# --- the names of a renewal -------------------------------------------------------------------------------------------


def test_the_names_of_the_presented_certificate_pass():
    verify_same_names(CSR, PRESENTED)
    verify_same_names(request(names=()), certificate(()))


def test_how_a_name_is_encoded_does_not_count():
    other = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "d-1", x509.name._ASN1Type.PrintableString),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "sn-1"),
        ]
    )
    assert other.public_bytes() != SUBJECT.public_bytes()
    verify_same_names(request(subject=other), PRESENTED)


@pytest.mark.parametrize(
    ("csr", "what"),
    [
        (request(names=()), "subject alternative name"),
        (request(names=(URI, x509.DNSName("a.example"))), "subject alternative name"),
        (
            request(names=(x509.UniformResourceIdentifier("spiffe://muster.test/device/d-2"),)),
            "subject alternative name",
        ),
        (request(names=(x509.DNSName("spiffe://muster.test/device/d-1"),)), "subject alternative name"),
        (request(subject=x509.Name([])), "subject"),
        (request(subject=x509.Name(list(SUBJECT)[:1])), "subject"),
        (request(subject=x509.Name(list(SUBJECT)[::-1])), "subject"),
        (request(subject=x509.Name([x509.RelativeDistinguishedName(SUBJECT)])), "subject"),
    ],
)
def test_other_names_are_refused(csr, what):
    with pytest.raises(NamesDiffer) as refused:
        verify_same_names(csr, PRESENTED)
    assert [finding.what for finding in refused.value.findings] == [what]


# --- hostile requests -------------------------------------------------------------------------------------------------

GOOD = [
    CSR,
    request(names=()),
    request(rsa.generate_private_key(65537, 2048)),
    request(ec.generate_private_key(ec.SECP384R1())),
]


def mutated(csr, seed):
    """One to four edits: a bit, a byte, a length, a cut, a piece twice, a piece of another request."""
    rng, data = random.Random(seed), bytearray(csr)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, len(data)))
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
            case 1:
                data[at : at + 1] = bytes([rng.choice((0, 0x7F, 0x80, 0x81, 0x82, 0x84, 0xFF, 0x30, 0x06, 0x03))])
            case 2:
                del data[at : at + rng.randint(1, 40)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case 4:
                other = rng.choice(GOOD)
                data[at:at] = other[at : at + rng.randint(1, 60)]
            case 5:
                data = data[: max(1, at)]
    return bytes(data)


@settings(max_examples=2500, deadline=None)
@given(st.sampled_from(GOOD), st.integers(0, 2**48))
def test_a_damaged_request_is_refused_by_name_or_proves_its_key(csr, seed):
    damaged = mutated(csr, seed)
    try:
        accepted = verify_possession(damaged)
    except (CsrRefused, KeyPointRefused):  # and nothing else
        return
    assert x509.load_der_x509_csr(accepted.der).is_signature_valid


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(GOOD[:2]), st.integers(0, 2**48))
def test_the_names_of_a_damaged_request_are_refused_by_name(csr, seed):
    with suppress(CsrRefused, NamesDiffer):  # and nothing else
        verify_same_names(mutated(csr, seed), PRESENTED)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(data):
    with pytest.raises(CsrRefused):
        verify_possession(data)
    with pytest.raises((CsrRefused, NamesDiffer)):
        verify_same_names(data, PRESENTED)


def test_a_key_of_a_kind_that_signs_no_request_is_refused():
    key = ed448.Ed448PrivateKey.generate()
    csr = x509.CertificateSigningRequestBuilder().subject_name(SUBJECT).sign(key, None).public_bytes(Encoding.DER)
    with pytest.raises(CsrRefused):
        verify_possession(csr)
