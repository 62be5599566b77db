"""Certificates out of files as manufacturers hand them over: DER, PEM, PKCS#7, and several of them in one file.

Found is not parsed, and parsed is not trusted: the octets go to `ek_store.judge`. What is there and cannot be used
comes back with the reason, so that nothing is passed over in silence.
"""

import base64
import binascii
import re
from dataclasses import dataclass

from asn1crypto import cms

from provisioning.attestation import der as shape
from provisioning.attestation.names import LENIENT_REFUSALS
from provisioning.refusals import CertificateMalformed

FILE_MOST = 8 * 1024 * 1024
"""Bytes of one file."""
FOUND_MOST = 10_000
"""Certificates of one file."""

_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_BEGIN = b"-----BEGIN "
_LABEL = re.compile(rb"([A-Z0-9 #]{1,40})-----")
_CERTIFICATES = (b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")
_PKCS7 = (b"PKCS7", b"CMS", b"PKCS #7 SIGNED DATA")
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]+")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_PADDING = frozenset({0x00, 0xFF})


@dataclass(frozen=True, slots=True)
class Found:
    """One thing in a file: the DER of what may be a certificate, or why there is none. `place` counts from 1."""

    place: int
    der: bytes
    reason: str = ""


def certificates_in(data: bytes) -> tuple[Found, ...]:
    """All that a file holds, in its order; at least one thing. Bounded by `FILE_MOST` and `FOUND_MOST`."""
    if len(data) > FILE_MOST:
        return (Found(1, b"", f"is larger than {FILE_MOST // 2**20} MiB"),)
    if data.startswith(_UTF16):
        data = data.decode("utf-16", "replace").encode("ascii", "replace")
    if not data.strip():
        return (Found(1, b"", "is empty"),)
    if data[0] == shape.SEQUENCE:
        found = _of_der(data)
    elif _BEGIN in data:
        found = _of_pem(data)
    elif (decoded := _unwrapped(data)) is not None:
        found = _of_der(decoded)
    else:
        found = ["holds no certificate"]
    return tuple(
        Found(place, b"", one) if isinstance(one, str) else Found(place, one)
        for place, one in enumerate(found[:FOUND_MOST], 1)
    ) + ((Found(FOUND_MOST + 1, b"", f"holds more than {FOUND_MOST} certificates"),) * (len(found) > FOUND_MOST))


def _of_pem(data: bytes) -> list[bytes | str]:
    found: list[bytes | str] = []
    for block in data.split(_BEGIN)[1:]:  # each ends before the next begins: no octet is looked at twice
        match = _LABEL.match(block)
        end = -1 if match is None else block.find(b"-----END " + match[1] + b"-----", match.end())
        if match is None or end < 0:
            found.append("has a PEM block without its end")
            continue
        label = match[1]
        if label not in _CERTIFICATES + _PKCS7:
            found.append(f"is a block {label.decode()!r}, not a certificate")
            continue
        try:
            der = base64.b64decode(b"".join(block[match.end() : end].split()), validate=True)
        except binascii.Error:
            found.append("has broken base64 in it")
            continue
        found += _of_pkcs7(der) if label in _PKCS7 else _of_der(der, aside=label == _CERTIFICATES[2])
        if len(found) > FOUND_MOST:
            break
    return found


def _of_der(data: bytes, *, aside: bool = False) -> list[bytes | str]:
    """Certificates and PKCS#7 one after the other; NV areas are padded. `aside`: OpenSSL's trust settings follow."""
    found: list[bytes | str] = []
    at = 0
    while at < len(data):
        if data[at] != shape.SEQUENCE:
            if set(data[at:]) <= _PADDING:
                break
            return [*found, "has other octets behind a certificate" if found else "holds no certificate"]
        try:
            one = shape.first(data, at)
        except CertificateMalformed as refusal:
            return [*found, f"is cut or broken: {refusal.actual}"]
        found += _of_pkcs7(one.raw) if _is_pkcs7(one) else [one.raw]
        at = len(data) if aside else at + len(one.raw)
        if len(found) > FOUND_MOST:
            return found
    return found or ["holds no certificate"]


def _is_pkcs7(one: shape.Element) -> bool:
    return one.content[:2] == bytes([shape.OID, len(_SIGNED_DATA)]) and one.content[2:11] == _SIGNED_DATA


def _of_pkcs7(der: bytes) -> list[bytes | str]:
    """The certificates of a SignedData (RFC 5652, 5.1). Its signatures say nothing here and are not looked at."""
    try:
        content = cms.ContentInfo.load(der, strict=True)
        if content["content_type"].native != "signed_data":
            return ["is PKCS#7 of another kind than signed data"]
        choices = content["content"]["certificates"]
        found: list[bytes | str] = [
            choice.chosen.dump() if choice.name == "certificate" else "is an attribute certificate in PKCS#7"
            for choice in choices or ()
        ]
    except LENIENT_REFUSALS as error:
        return [f"is broken PKCS#7 ({type(error).__name__})"]
    return found or ["is PKCS#7 without a certificate"]


def _unwrapped(data: bytes) -> bytes | None:
    """Base64 without the lines of PEM, as Windows writes .p7b."""
    if _BASE64.fullmatch(data) is None or not data.lstrip().startswith(b"MI"):
        return None
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        return None
