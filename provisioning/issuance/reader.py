"""The pieces of a TBSCertificate, as the bytes that they are (RFC 5280 section 4.1).

A strict reader of its own, which shares nothing with the writer (`der`, `profile`): lengths in their shortest form,
each element where it belongs, nothing behind the last. What an element means, `cryptography` reads.
"""

from dataclasses import dataclass
from functools import lru_cache

UTF8_STRING, PRINTABLE_STRING = 0x0C, 0x13
_SEQUENCE, _INTEGER, _OCTET_STRING, _OID, _SET = 0x30, 0x02, 0x04, 0x06, 0x31
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_CRITICAL = b"\x01\x01\xff"


@dataclass(frozen=True, slots=True)
class Pieces:
    """Each with tag and length. `extensions`: by object identifier in dots, whether critical, and the content."""

    issuer: bytes
    subject: bytes
    public_key: bytes
    extensions: dict[str, tuple[bool, bytes]]


def pieces_of(tbs: bytes) -> Pieces:
    """The pieces of a version 3 certificate with extensions. Raises: ValueError."""
    at, end = _element(tbs, 0, len(tbs), _SEQUENCE)
    _all_of(end, len(tbs))
    for tag in (_VERSION, _INTEGER, _SEQUENCE):  # version, serial, algorithm
        _, at = _element(tbs, at, end, tag)
    names = []
    for _ in range(4):  # issuer, validity, subject, public key
        _, after = _element(tbs, at, end, _SEQUENCE)
        names.append(tbs[at:after])
        at = after
    at, last = _element(tbs, at, end, _EXTENSIONS)
    _all_of(last, end)
    at, last = _element(tbs, at, end, _SEQUENCE)
    _all_of(last, end)
    issuer, _, subject, public_key = names
    return Pieces(issuer, subject, public_key, _extensions(tbs, at, end))


def attributes_of(name: bytes) -> tuple[tuple[str, int, bytes], ...]:
    """Each attribute of a name whose RDNs have one each: type in dots, tag, octets. Raises: ValueError."""
    at, end = _element(name, 0, len(name), _SEQUENCE)
    _all_of(end, len(name))
    found = []
    while at < end:
        at, last = _element(name, at, end, _SET)
        at, single = _element(name, at, last, _SEQUENCE)
        _all_of(single, last)
        begin, at = _element(name, at, last, _OID)
        oid = _dotted(name[begin:at])
        if at == last or name[at] not in (UTF8_STRING, PRINTABLE_STRING):
            raise ValueError(f"the attribute {oid} is no UTF8String or PrintableString")
        tag = name[at]
        begin, at = _element(name, at, last, tag)
        _all_of(at, last)
        found.append((oid, tag, name[begin:at]))
    return tuple(found)


def _extensions(tbs: bytes, at: int, end: int) -> dict[str, tuple[bool, bytes]]:
    found: dict[str, tuple[bool, bytes]] = {}
    while at < end:
        at, last = _element(tbs, at, end, _SEQUENCE)
        begin, at = _element(tbs, at, last, _OID)
        oid = _dotted(tbs[begin:at])
        critical = tbs.startswith(_CRITICAL, at)
        if critical:
            at += len(_CRITICAL)
        begin, at = _element(tbs, at, last, _OCTET_STRING)
        _all_of(at, last)
        if oid in found:
            raise ValueError(f"the extension {oid} stands twice")
        found[oid] = (critical, tbs[begin:at])
    return found


def _element(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the content of the element of that tag begins and ends; the element lies before `end`."""
    if at + 2 > end or data[at] != tag:
        raise ValueError(f"no element of tag {tag:#x} at octet {at}")
    size = data[at + 1]
    begin = at + 2
    if size > 0x80:  # noqa: PLR2004  the long form: so many octets of length
        begin += size - 0x80
        octets = data[at + 2 : begin]
        size = int.from_bytes(octets, "big")
        if size < 0x80 or octets[0] == 0 or len(octets) > 4:  # noqa: PLR2004  the short form's end; 4 GiB
            raise ValueError(f"the length at octet {at} is not in its shortest form")
    elif size == 0x80:  # noqa: PLR2004  the indefinite form
        raise ValueError(f"the length at octet {at} is indefinite")
    if begin + size > end:
        raise ValueError(f"the element at octet {at} is longer than what holds it")
    return begin, begin + size


def _all_of(at: int, end: int) -> None:
    if at != end:
        raise ValueError(f"octets {at} to {end} belong to nothing")


@lru_cache(maxsize=64)
def _dotted(content: bytes) -> str:
    arcs, value = [], 0
    for octet in content:
        if not value and octet == 0x80:  # noqa: PLR2004  a septet of zeros in front
            raise ValueError("an object identifier that is not in its shortest form")
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    if not content or content[-1] & 0x80:
        raise ValueError("an object identifier that does not end")
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
