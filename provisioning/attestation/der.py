"""The shape of DER, element by element (X.690, 8.1): for what no library gives as its original bytes.

Content is not interpreted. Lengths are judged against what is there, so walking hostile bytes ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from provisioning.refusals import CertificateMalformed

SEQUENCE, SET, OID, OCTET_STRING = 0x30, 0x31, 0x06, 0x04
_LONG, _INDEFINITE, _LENGTH_MOST, _HIGH_TAG = 0x80, 0x80, 4, 0x1F


@dataclass(frozen=True, slots=True)
class Element:
    """One element: its first octet, its content, and all of its octets."""

    tag: int
    content: bytes
    raw: bytes


def first(data: bytes, at: int = 0) -> Element:
    """The element that begins at `at`; what follows it is not looked at. Raises: CertificateMalformed."""
    begin, end = _bounds(data, at)
    return Element(data[at], data[begin:end], data[at:end])


def elements(data: bytes) -> Iterator[Element]:
    """The elements that the bytes consist of, to the last octet. Raises: CertificateMalformed."""
    at = 0
    while at < len(data):
        begin, end = _bounds(data, at)
        yield Element(data[at], data[begin:end], data[at:end])
        at = end


def children(data: bytes, tag: int) -> tuple[Element, ...]:
    """What stands in the one element that the bytes are. Raises: CertificateMalformed."""
    outer = first(data)
    if outer.tag != tag or len(outer.raw) != len(data):
        raise CertificateMalformed(expected=f"one element of tag {tag:#04x}", actual=f"tag {outer.tag:#04x}")
    return tuple(elements(outer.content))


def _bounds(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends."""
    if len(data) < at + 2 or data[at] & _HIGH_TAG == _HIGH_TAG:
        raise CertificateMalformed(expected="a DER element", actual="none, or one of a high tag number")
    length, begin = data[at + 1], at + 2
    if length == _INDEFINITE:
        raise CertificateMalformed(expected="DER", actual="an element of indefinite length")
    if length & _LONG:
        size = length & ~_LONG
        begin += size
        if size > _LENGTH_MOST or begin > len(data):
            raise CertificateMalformed(expected="a length of at most 4 octets", actual=f"{size} octets")
        length = int.from_bytes(data[at + 2 : begin], "big")
    if begin + length > len(data):
        raise CertificateMalformed(expected=f"{begin + length - at} octets", actual=f"{len(data) - at} octets")
    return begin, begin + length
