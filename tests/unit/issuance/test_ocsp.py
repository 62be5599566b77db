"""OCSP: requests are read strictly, answers say what was meant and lint clean, and nothing else passes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.issuance import der
from provisioning.issuance.algorithms import ECDSA_SHA256
from provisioning.issuance.ocsp import (
    ASKED_MOST,
    CertId,
    OcspRequest,
    Standing,
    assemble_response,
    build_response,
    check_response,
    issuer_ids,
    parse_request,
)
from provisioning.issuance.revocation import Reason
from provisioning.refusals import OcspRequestMalformed, ToBeSignedRefused
from tests.support.certificates import sign
from tests.support.ocsp import NULL, SHA1, SHA256, cert_id, lint, nonce, request

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
UNTIL = NOW + timedelta(hours=1)
SERIAL = 0x5A1C0D3E9F2B47A68C1DE0F39B7A2C55
KEY_HASH = bytes(range(20))


# --- requests -----------------------------------------------------------------------------------------------------


@given(
    serial=st.integers(1, 2**159 - 1),
    algorithm=st.sampled_from([hashes.SHA1(), hashes.SHA256()]),  # noqa: S303  what OCSP clients send
    hashed=st.binary(min_size=64, max_size=64),
    said=st.none() | st.binary(min_size=1, max_size=128),
)
def test_a_request_is_read_as_cryptography_writes_it(serial, algorithm, hashed, said):
    name, key = hashed[: algorithm.digest_size], hashed[32 : 32 + algorithm.digest_size]
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name, key, serial, algorithm)
    if said is not None:
        builder = builder.add_extension(x509.OCSPNonce(said), critical=False)
    written = builder.build().public_bytes(Encoding.DER)
    read = parse_request(written)
    (asked,) = read.asked
    kind = der.oid(SHA1 if algorithm.digest_size == 20 else SHA256)
    assert asked.serial == serial
    assert asked.issuer == kind + der.tlv(4, name) + der.tlv(4, key)
    assert read.nonce == said
    assert read.plain is (said is None)


@pytest.mark.parametrize("kind", [SHA1, SHA256])
@pytest.mark.parametrize("parameters", [NULL, b""])
def test_an_issuer_is_known_by_both_hashes_however_their_parameters_are_written(hierarchy, kind, parameters):
    (asked,) = parse_request(request(cert_id(hierarchy.issuing, SERIAL, kind, parameters))).asked
    point = hierarchy.issuing.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert asked.issuer in issuer_ids(hierarchy.issuing.subject.public_bytes(), point)
    assert asked.issuer not in issuer_ids(hierarchy.root.subject.public_bytes(), point)
    assert asked.issuer not in issuer_ids(hierarchy.issuing.subject.public_bytes(), point[:-1] + b"\x00")


def test_what_may_stand_in_a_request_beside_the_certificate_is_read_over(hierarchy):
    one = cert_id(hierarchy.issuing, SERIAL)
    name = der.tlv(0xA1, der.tlv(0xA4, der.sequence()))
    signature = der.tlv(0xA0, der.sequence(der.sequence(der.oid("1.2.840.10045.4.3.2")), der.bits(b"x")))
    other = der.extension("1.3.6.1.4.1.99999.1", b"whatever")
    preferred = der.extension("1.3.6.1.5.5.7.48.1.8", b"0\x00", critical=True)
    for written in (
        request(one, before=der.tlv(0xA0, der.integer(0))),
        request(one, before=name),
        request(one, behind=signature),
        request(one, extensions=other + preferred),
        request(one, single=other),
    ):
        assert parse_request(written) == OcspRequest(parse_request(request(one)).asked, None, plain=False)
    assert parse_request(request(one)).plain


def test_one_request_asks_about_several(hierarchy):
    serials = list(range(1, ASKED_MOST + 1))
    several = [cert_id(hierarchy.issuing, serial) for serial in serials]
    read = parse_request(request(*several))
    assert [asked.serial for asked in read.asked] == serials
    assert [asked.der for asked in read.asked] == several
    assert not read.plain


def _one(hierarchy):
    return cert_id(hierarchy.issuing, SERIAL)


UNKNOWN_CRITICAL = der.extension("1.3.6.1.4.1.99999.1", b"", critical=True)
MALFORMED = {
    "nothing": lambda _: b"",
    "no certificate": lambda _: request(),
    "too many": lambda h: request(*[_one(h)] * (ASKED_MOST + 1)),
    "bytes behind it": lambda h: request(_one(h)) + b"\x00",
    "cut": lambda h: request(_one(h))[:-1],
    "no sequence": lambda h: b"\x31" + request(_one(h))[1:],
    "version 2": lambda h: request(_one(h), before=der.tlv(0xA0, der.integer(1))),
    "a nonce of 0 octets": lambda h: request(_one(h), extensions=nonce(b"")),
    "a nonce of 129 octets": lambda h: request(_one(h), extensions=nonce(bytes(129))),
    "a nonce that is no octet string": lambda h: request(_one(h), extensions=der.extension(NONCE_OID, b"\x02\x01\x01")),
    "bytes behind the nonce": lambda h: request(_one(h), extensions=der.extension(NONCE_OID, b"\x04\x01\x01\x00")),
    "a nonce twice": lambda h: request(_one(h), extensions=nonce(b"1") + nonce(b"2")),
    "a critical unknown extension": lambda h: request(_one(h), extensions=UNKNOWN_CRITICAL),
    "the same for one certificate": lambda h: request(_one(h), single=UNKNOWN_CRITICAL),
    "parameters of the hash": lambda h: request(cert_id(h.issuing, SERIAL, SHA1, b"\x04\x20" + bytes(32))),
    "a NULL with content": lambda h: request(cert_id(h.issuing, SERIAL, SHA1, b"\x05\x01\x00")),
    "a serial of 22 octets": lambda h: request(cert_id(h.issuing, 1 << 168)),
    "a serial with a zero before it": lambda h: request(_one(h)).replace(b"\x02\x10\x5a", b"\x02\x11\x00\x5a"),
    "an indefinite length": lambda h: b"\x30\x80" + request(_one(h))[2:] + b"\x00\x00",
    "a length that is too long": lambda h: b"\x30\x81" + request(_one(h))[1:],
    "a length of 4 octets": lambda h: b"\x30\x84\x00\x00\x00" + request(_one(h))[1:],
}
NONCE_OID = "1.3.6.1.5.5.7.48.1.2"


@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_refused_by_name(hierarchy, make):
    with pytest.raises(OcspRequestMalformed):
        parse_request(make(hierarchy))


@pytest.mark.parametrize("size", [1, 16, 32, 128])
def test_nonces_of_1_to_128_octets_are_taken(hierarchy, size):
    assert parse_request(request(_one(hierarchy), extensions=nonce(bytes(size)))).nonce == bytes(size)


def _refused_or_read(data):
    try:
        return parse_request(data)
    except OcspRequestMalformed:
        return None


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_name(data):
    _refused_or_read(data)


def test_every_flipped_bit_is_refused_or_is_another_request(hierarchy):
    whole = request(_one(hierarchy), extensions=nonce(bytes(range(32))))
    read = parse_request(whole)
    for position in range(len(whole)):
        for bit in range(8):
            hostile = bytearray(whole)
            hostile[position] ^= 1 << bit
            assert _refused_or_read(bytes(hostile)) != read


@settings(max_examples=300)
@given(st.data())
def test_spliced_requests_are_refused_by_name(hierarchy, data):
    whole = request(_one(hierarchy), cert_id(hierarchy.root, 7, SHA256), extensions=nonce(b"0123456789abcdef"))
    at = data.draw(st.integers(0, len(whole)))
    until = data.draw(st.integers(at, len(whole)))
    _refused_or_read(whole[:at] + data.draw(st.binary(max_size=40)) + whole[until:])


# --- responses ----------------------------------------------------------------------------------------------------


def _asked(hierarchy, serial=SERIAL, kind=SHA1):
    return parse_request(request(cert_id(hierarchy.issuing, serial, kind))).asked[0]


STANDINGS = {
    "good": Standing(),
    "unknown": Standing(known=False),
    **{reason.text: Standing(at=NOW - timedelta(days=1), reason=reason) for reason in Reason},
}


@pytest.mark.parametrize("said", [None, bytes(32)], ids=["no nonce", "nonce"])
@pytest.mark.parametrize("kind", [SHA1, SHA256])
@pytest.mark.parametrize("standing", STANDINGS.values(), ids=STANDINGS.keys())
def test_responses_lint_clean_and_say_what_was_meant(hierarchy, standing, kind, said):
    asked = _asked(hierarchy, kind=kind)
    tbs = build_response([(asked, standing)], KEY_HASH, this_update=NOW, next_update=UNTIL, nonce=said)
    check_response(tbs, ECDSA_SHA256)
    key = hierarchy.issuing_key
    certificate = hierarchy.issuing.public_bytes(Encoding.DER)
    whole = assemble_response(tbs.der, ECDSA_SHA256, sign(key, tbs.der), certificate)
    assert lint(whole) == []
    read = ocsp.load_der_ocsp_response(whole)
    status = "UNKNOWN" if not standing.known else "GOOD" if standing.at is None else "REVOKED"
    assert read.certificate_status is ocsp.OCSPCertStatus[status]
    assert read.serial_number == SERIAL
    assert (read.this_update_utc, read.next_update_utc, read.produced_at_utc) == (NOW, UNTIL, NOW)
    assert read.revocation_time_utc == standing.at
    assert [extension.value.nonce for extension in read.extensions] == ([] if said is None else [said])
    assert [found.public_bytes(Encoding.DER) for found in read.certificates] == [certificate]
    assert read.responder_key_hash == KEY_HASH


def test_one_response_answers_about_several(hierarchy):
    answers = [(_asked(hierarchy, serial), standing) for serial, standing in enumerate(STANDINGS.values(), 1)]
    tbs = build_response(answers, KEY_HASH, this_update=NOW, next_update=UNTIL)
    check_response(tbs, ECDSA_SHA256)
    read = ocsp.load_der_ocsp_response(assemble_response(tbs.der, ECDSA_SHA256, b"0", None))
    assert [single.serial_number for single in read.responses] == list(range(1, len(answers) + 1))


def test_a_response_that_ends_at_once_is_refused(hierarchy):
    with pytest.raises(ToBeSignedRefused):
        build_response([(_asked(hierarchy), Standing())], KEY_HASH, this_update=NOW, next_update=NOW)


def _flipped(octets):
    return octets[:-1] + bytes([octets[-1] ^ 1])


HELD = Standing(at=NOW - timedelta(days=1), reason=Reason.CERTIFICATE_HOLD)
OTHERS = {
    "another serial": lambda asked: {"answers": ((replace(asked, serial=7), HELD),)},
    "another issuer": lambda asked: {"answers": ((replace(asked, issuer=_flipped(asked.issuer)), HELD),)},
    "good": lambda asked: {"answers": ((asked, Standing()),)},
    "another reason": lambda asked: {"answers": ((asked, replace(HELD, reason=Reason.SUPERSEDED)),)},
    "another time": lambda asked: {"answers": ((asked, replace(HELD, at=NOW)),)},
    "no answer": lambda _: {"answers": ()},
    "another responder": lambda _: {"key_hash": bytes(20)},
    "another begin": lambda _: {"this_update": NOW - timedelta(1)},
    "another end": lambda _: {"next_update": UNTIL + timedelta(1)},
    "another nonce": lambda _: {"nonce": b"x"},
    "no nonce": lambda _: {"nonce": None},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_a_response_that_says_something_else_is_not_signed(hierarchy, other):
    asked = _asked(hierarchy)
    tbs = build_response([(asked, HELD)], KEY_HASH, this_update=NOW, next_update=UNTIL, nonce=b"said")
    check_response(tbs, ECDSA_SHA256)
    with pytest.raises(ToBeSignedRefused):
        check_response(replace(tbs, **other(asked)), ECDSA_SHA256)


def test_no_single_bit_of_a_response_may_be_another(hierarchy):
    tbs = build_response([(_asked(hierarchy), HELD)], KEY_HASH, this_update=NOW, next_update=UNTIL, nonce=b"said")
    for position in range(len(tbs.der)):
        for bit in range(8):
            hostile = bytearray(tbs.der)
            hostile[position] ^= 1 << bit
            with pytest.raises(ToBeSignedRefused):
                check_response(replace(tbs, der=bytes(hostile)), ECDSA_SHA256)


def test_a_cert_id_is_repeated_as_it_came(hierarchy):
    for parameters in (NULL, b""):
        one = cert_id(hierarchy.issuing, SERIAL, SHA256, parameters)
        (asked,) = parse_request(request(one)).asked
        assert asked == CertId(one, asked.issuer, SERIAL)
        tbs = build_response([(asked, Standing())], KEY_HASH, this_update=NOW, next_update=UNTIL)
        assert one in tbs.der
        check_response(tbs, ECDSA_SHA256)
