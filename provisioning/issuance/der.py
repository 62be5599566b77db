"""DER writing, as much as certificates and CRLs need (X.690). It writes what it is given: it checks nothing."""

from datetime import datetime
from functools import cache

SEQUENCE = 0x30
SET = 0x31
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
ENUMERATED = 0x0A
UTF8_STRING = 0x0C
PRINTABLE_STRING = 0x13
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18

TRUE = b"\x01\x01\xff"
SHORT_FORM_BELOW = 0x80
"""Octets: from here on a length is written in its long form."""


def tlv(tag: int, content: bytes) -> bytes:
    """Tag, definite length in its shortest form, content."""
    size = len(content)
    if size < SHORT_FORM_BELOW:
        return bytes((tag, size)) + content
    octets = (size.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + size.to_bytes(octets, "big") + content


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE of parts that are DER already."""
    return tlv(SEQUENCE, b"".join(parts))


def integer(value: int) -> bytes:
    """A non-negative INTEGER in its shortest form: a leading zero octet only where the sign bit would be set."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@cache
def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER, tag and length included. For constants: every answer is kept."""
    first, second, *rest = map(int, dotted.split("."))
    content = bytearray()
    for arc in (first * 40 + second, *rest):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | arc & 0x7F)
        content += bytes(reversed(septets))
    return tlv(OID, bytes(content))


def bits(content: bytes, unused: int = 0) -> bytes:
    """BIT STRING; `unused` bits of its last octet do not count."""
    return tlv(BIT_STRING, bytes((unused,)) + content)


def named_bits(numbers: set[int]) -> bytes:
    """A BIT STRING of named bits: trailing zero bits are left out (X.690 section 11.2.2)."""
    last = max(numbers)
    octets = bytearray(last // 8 + 1)
    for number in numbers:
        octets[number // 8] |= 0x80 >> number % 8
    return bits(bytes(octets), 7 - last % 8)


def time(moment: datetime) -> bytes:
    """UTCTime up to 2049, GeneralizedTime from 2050 (RFC 5280 section 4.1.2.5). `moment` is in UTC."""
    if moment.year < 2050:  # noqa: PLR2004  the clause's own year
        return tlv(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    """One Extension (RFC 5280 section 4.1): FALSE is the default and is therefore not written."""
    return sequence(oid(dotted), TRUE if critical else b"", tlv(OCTET_STRING, value))


def distinguished_name(*attributes: tuple[str, int, str]) -> bytes:
    """A Name of one attribute a level: `(object identifier, string tag, text)`."""
    return sequence(*(tlv(SET, sequence(oid(kind), tlv(tag, text.encode()))) for kind, tag, text in attributes))
