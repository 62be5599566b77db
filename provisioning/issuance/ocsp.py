"""OCSP (RFC 6960; RFC 5019 where it fits): requests read, responses written, and the look before they are signed.

A request is read by a strict DER reader of our own, because `cryptography` reads requests for one certificate only. A
response is written by our own writer, for the same reason as a certificate, and read again by `cryptography`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509 import ocsp

from provisioning.issuance import der
from provisioning.issuance.algorithms import SignatureAlgorithm
from provisioning.issuance.revocation import Reason
from provisioning.issuance.tbs import UNPARSED
from provisioning.refusals import Finding, OcspRequestMalformed, ToBeSignedRefused

REQUEST_MOST = 8 * 1024
"""Bytes of a request."""
ASKED_MOST = 16
"""Certificates that one request may ask about."""
NONCE_MOST = 128
"""Octets (RFC 9654 section 2.1): a nonce has 1 to 128."""
SERIAL_MOST = 20
"""Octets (RFC 5280 section 4.1.2.2)."""
UNAUTHORIZED = bytes.fromhex("30030a0106")
"""An OCSPResponse that says: not a certificate that this responder can speak about. Nobody signs it (section 2.3)."""

_NULL = b"\x05\x00"
_SHA1, _SHA256 = der.oid("1.3.14.3.2.26"), der.oid("2.16.840.1.101.3.4.2.1")
_BASIC = der.oid("1.3.6.1.5.5.7.48.1.1")
_NONCE = "1.3.6.1.5.5.7.48.1.2"
# Extensions that a request may mark critical without changing what an answer is: the nonce, which answer types it takes
# (ours is the only one), where to ask instead, which algorithms it prefers (section 4.4).
_KNOWN = frozenset(map(der.oid, (_NONCE, "1.3.6.1.5.5.7.48.1.4", "1.3.6.1.5.5.7.48.1.7", "1.3.6.1.5.5.7.48.1.8")))
_GOOD, _UNKNOWN = der.tlv(0x80, b""), der.tlv(0x82, b"")


@dataclass(frozen=True, slots=True)
class CertId:
    """Which certificate is asked about (section 4.1.1). `der` is the CertID as it came: a response repeats it."""

    der: bytes
    issuer: bytes
    """Hash algorithm, hash of the issuer's name, hash of its key, as `issuer_ids` makes them."""
    serial: int


@dataclass(frozen=True, slots=True)
class OcspRequest:
    """A well-formed request."""

    asked: tuple[CertId, ...]
    nonce: bytes | None
    plain: bool
    """Is it nothing but one CertID? Then its bytes stand for what it asks, and an answer can be kept under them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is said about one certificate: revoked (`at`, `reason`), else good; unknown where it was never issued."""

    known: bool = True
    at: datetime | None = None
    reason: Reason = Reason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class ResponseToBeSigned:
    """A ResponseData (`der`) and what it says. `key_hash` is SHA-1 over the responder's key (section 4.2.1)."""

    der: bytes
    answers: tuple[tuple[CertId, Standing], ...]
    key_hash: bytes
    this_update: datetime
    next_update: datetime
    nonce: bytes | None


class _Malformed(Exception):
    """Says what stands where something else is expected."""


class _Reader:
    """DER, one element after the other: definite lengths in their shortest form, nothing behind the end."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self._data, self._at, self._end = data, start, len(data) if end is None else end

    def next_is(self, tag: int) -> bool:
        return self._at < self._end and self._data[self._at] == tag

    def element(self, tag: int) -> bytes:
        """The next element, whole."""
        start = self._at
        self._content(tag)
        return self._data[start : self._at]

    def value(self, tag: int) -> bytes:
        """The next element's content."""
        start, end = self._content(tag)
        return self._data[start:end]

    def inside(self, tag: int) -> "_Reader":
        """A reader of the next element's content."""
        return _Reader(self._data, *self._content(tag))

    @property
    def more(self) -> bool:
        return self._at < self._end

    def end(self) -> None:
        if self._at != self._end:
            raise _Malformed(f"{self._end - self._at} bytes too many")

    def _content(self, tag: int) -> tuple[int, int]:
        data, at = self._data, self._at
        if self._end - at < 2:  # noqa: PLR2004  a tag and a length
            raise _Malformed(f"nothing where tag {tag:#x} is due")
        if data[at] != tag:
            raise _Malformed(f"tag {data[at]:#x} where {tag:#x} is due")
        length, start = data[at + 1], at + 2
        if length >= der.SHORT_FORM_BELOW:
            octets = length & 0x7F
            length = int.from_bytes(data[start : start + octets], "big")
            start += octets
            if not 1 <= octets <= 2 or length < (der.SHORT_FORM_BELOW if octets == 1 else 0x100):  # noqa: PLR2004  64 KiB
                raise _Malformed("a length that is not in its shortest form, or too long")
        if start + length > self._end:
            raise _Malformed("an element that is longer than what holds it")
        self._at = start + length
        return start, self._at


def parse_request(data: bytes) -> OcspRequest:
    """A request out of its DER. Its signature, if it has one, is not verified: everybody may ask (section 4.1.2).

    Raises: OcspRequestMalformed.
    """
    try:
        return _request(data)
    except _Malformed as error:
        raise OcspRequestMalformed(expected="an OCSPRequest in DER (RFC 6960 section 4.1.1)", actual=error) from error


def issuer_ids(name: bytes, key: bytes) -> tuple[bytes, ...]:
    """Every way in which a CertID may name an issuer here.

    `name` is its Name in DER, `key` the content of the BIT
    STRING of its public key, without the number of unused bits.

    SHA-1 is what the protocol's clients use for a look-up; nothing is believed because of it.
    """
    return tuple(
        algorithm
        + der.tlv(der.OCTET_STRING, new(name, usedforsecurity=False).digest())
        + der.tlv(der.OCTET_STRING, new(key, usedforsecurity=False).digest())
        for new, algorithm in ((hashlib.sha1, _SHA1), (hashlib.sha256, _SHA256))
    )


def build_response(
    answers: Sequence[tuple[CertId, Standing]],
    key_hash: bytes,
    *,
    this_update: datetime,
    next_update: datetime,
    nonce: bytes | None = None,
) -> ResponseToBeSigned:
    """The to-be-signed bytes of a response, produced at `this_update`. Raises: ToBeSignedRefused."""
    this_update = this_update.astimezone(UTC).replace(microsecond=0)
    next_update = next_update.astimezone(UTC).replace(microsecond=0)
    if not this_update < next_update:
        raise ToBeSignedRefused(expected=f"a next update after {this_update}", actual=next_update)
    produced, until = _time(this_update), der.tlv(0xA0, _time(next_update))
    single = (der.sequence(asked.der, _status(standing), produced, until) for asked, standing in answers)
    extensions = b""
    if nonce is not None:
        extensions = der.tlv(0xA1, der.sequence(der.extension(_NONCE, der.tlv(der.OCTET_STRING, nonce))))
    responder = der.tlv(0xA2, der.tlv(der.OCTET_STRING, key_hash))
    data = der.sequence(responder, produced, der.sequence(*single), extensions)
    return ResponseToBeSigned(data, tuple(answers), key_hash, this_update, next_update, nonce)


def assemble_response(tbs: bytes, algorithm: SignatureAlgorithm, signature: bytes, certificate: bytes | None) -> bytes:
    """The whole OCSPResponse. `certificate` is the delegated responder's; None where the CA itself signed."""
    chain = b"" if certificate is None else der.tlv(0xA0, der.sequence(certificate))
    basic = der.sequence(tbs, algorithm.identifier, der.bits(signature), chain)
    return der.sequence(
        der.tlv(der.ENUMERATED, b"\x00"), der.tlv(0xA0, der.sequence(_BASIC, der.tlv(der.OCTET_STRING, basic)))
    )


def check_response(tbs: ResponseToBeSigned, algorithm: SignatureAlgorithm) -> None:
    """Does this response say exactly that? Read again by `cryptography`. Raises: ToBeSignedRefused."""
    wanted = [_said(asked, standing, tbs) for asked, standing in tbs.answers]
    nonces = [] if tbs.nonce is None else [tbs.nonce]
    try:
        found = ocsp.load_der_ocsp_response(assemble_response(tbs.der, algorithm, algorithm.unsigned, None))
        facts = (
            ("status", ocsp.OCSPResponseStatus.SUCCESSFUL, found.response_status),
            ("algorithm", algorithm.oid, found.signature_algorithm_oid.dotted_string),
            ("responder", (tbs.key_hash, None), (found.responder_key_hash, found.responder_name)),
            ("produced at", tbs.this_update, found.produced_at_utc),
            ("bytes", tbs.der, found.tbs_response_bytes),
            ("answers", wanted, [_read(single) for single in found.responses]),
            ("extensions", nonces, [_nonce(extension) for extension in found.extensions]),
        )
    except UNPARSED as error:
        raise ToBeSignedRefused(expected="an OCSP response that parses", actual=error) from error
    if wrong := tuple(Finding(what, str(right), str(actual)) for what, right, actual in facts if right != actual):
        names = ", ".join(finding.what for finding in wrong)
        raise ToBeSignedRefused(expected="that OCSP response", actual=f"differs in: {names}", findings=wrong)


# --- the request --------------------------------------------------------------------------------------------------


def _request(data: bytes) -> OcspRequest:
    outer = _Reader(data)
    request = outer.inside(der.SEQUENCE)
    outer.end()
    tbs = request.inside(der.SEQUENCE)
    plain = not request.more
    if request.more:  # the requestor's signature
        wrapped = request.inside(0xA0)
        signature = wrapped.inside(der.SEQUENCE)
        signature.element(der.SEQUENCE)
        signature.element(der.BIT_STRING)
        wrapped.end()
        request.end()
    if tbs.next_is(0xA0):
        plain = False
        version = tbs.inside(0xA0)
        if version.value(der.INTEGER) != b"\x00":
            raise _Malformed("a version that is not 1")
        version.end()
    if tbs.next_is(0xA1):  # the requestor's name
        plain = False
        tbs.element(0xA1)
    wanted = tbs.inside(der.SEQUENCE)
    asked: list[CertId] = []
    while wanted.more:
        single = wanted.inside(der.SEQUENCE)
        asked.append(_cert_id(single.element(der.SEQUENCE)))
        if single.more:
            plain = False
            _extensions(single.inside(0xA0))
        single.end()
        if len(asked) > ASKED_MOST:
            raise _Malformed(f"more than {ASKED_MOST} certificates")
    if not asked:
        raise _Malformed("no certificate")
    nonce = None
    if tbs.more:
        plain = False
        nonce = _extensions(tbs.inside(0xA2))
    tbs.end()
    return OcspRequest(tuple(asked), nonce, plain and len(asked) == 1)


def _cert_id(data: bytes) -> CertId:
    fields = _Reader(data).inside(der.SEQUENCE)
    algorithm = fields.inside(der.SEQUENCE)
    kind = algorithm.element(der.OID)
    # Parameters are absent or NULL (RFC 5754 section 2): whatever stood there would be repeated, and signed.
    if algorithm.more and algorithm.element(0x05) != _NULL:
        raise _Malformed("parameters of a hash that are not NULL")
    algorithm.end()
    name, key = fields.element(der.OCTET_STRING), fields.element(der.OCTET_STRING)
    serial = fields.value(der.INTEGER)
    fields.end()
    if not 1 <= len(serial) <= SERIAL_MOST + 1:
        raise _Malformed(f"a serial of {len(serial)} octets")
    if len(serial) > 1 and serial[0] in (0x00, 0xFF) and serial[0] >> 7 == serial[1] >> 7:
        raise _Malformed("a serial that is not in its shortest form")
    return CertId(data, kind + name + key, int.from_bytes(serial, "big", signed=True))


def _extensions(wrapped: _Reader) -> bytes | None:
    """The nonce, if there is one. An extension that is critical and unknown is refused (RFC 5280 section 4.2)."""
    found = wrapped.inside(der.SEQUENCE)
    wrapped.end()
    seen: dict[bytes, bytes] = {}
    while found.more:
        extension = found.inside(der.SEQUENCE)
        kind = extension.element(der.OID)
        critical = extension.next_is(0x01) and extension.value(0x01) != b"\x00"
        value = extension.value(der.OCTET_STRING)
        extension.end()
        if kind in seen:
            raise _Malformed("an extension twice")
        if critical and kind not in _KNOWN:
            raise _Malformed("a critical extension that is not known here")
        seen[kind] = value
    if not seen:
        raise _Malformed("no extension in a list of extensions")
    if (encoded := seen.get(der.oid(_NONCE))) is None:
        return None
    reader = _Reader(encoded)
    nonce = reader.value(der.OCTET_STRING)
    reader.end()
    if not 1 <= len(nonce) <= NONCE_MOST:
        raise _Malformed(f"a nonce of {len(nonce)} octets")
    return nonce


# --- the response -------------------------------------------------------------------------------------------------


def _time(moment: datetime) -> bytes:
    return der.tlv(der.GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _status(standing: Standing) -> bytes:
    if not standing.known:
        return _UNKNOWN
    if standing.at is None:
        return _GOOD
    reason = b""  # absent where it says nothing, as in CRLs
    if standing.reason is not Reason.UNSPECIFIED:
        reason = der.tlv(0xA0, der.tlv(der.ENUMERATED, bytes((standing.reason.value,))))
    return der.tlv(0xA1, _time(standing.at.astimezone(UTC)) + reason)


def _said(asked: CertId, standing: Standing, tbs: ResponseToBeSigned) -> tuple[object, ...]:
    """What `_read` is to find."""
    status, at, reason = ocsp.OCSPCertStatus.GOOD, None, None
    if not standing.known:
        status = ocsp.OCSPCertStatus.UNKNOWN
    elif standing.at is not None:
        status, at = ocsp.OCSPCertStatus.REVOKED, standing.at.astimezone(UTC).replace(microsecond=0)
        if standing.reason is not Reason.UNSPECIFIED:
            reason = x509.ReasonFlags[standing.reason.name.lower()]
    return asked.serial, asked.issuer, status, at, reason, tbs.this_update, tbs.next_update


def _read(single: ocsp.OCSPSingleResponse) -> tuple[object, ...]:
    algorithm = {"sha1": _SHA1, "sha256": _SHA256}[single.hash_algorithm.name]
    issuer = (
        algorithm
        + der.tlv(der.OCTET_STRING, single.issuer_name_hash)
        + der.tlv(der.OCTET_STRING, single.issuer_key_hash)
    )
    status, at, reason = single.certificate_status, single.revocation_time_utc, single.revocation_reason
    return single.serial_number, issuer, status, at, reason, single.this_update_utc, single.next_update_utc


def _nonce(extension: "x509.Extension[x509.ExtensionType]") -> bytes | None:
    return extension.value.nonce if isinstance(extension.value, x509.OCSPNonce) else None
