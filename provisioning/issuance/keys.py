"""The keys that a certificate may be for: their kind, their size, and the bits that a key identifier is made of.

Read from the SubjectPublicKeyInfo by comparison with the one encoding that each kind has: no parser, and so nothing
that means the same in other bytes. It does not prove that the point is on its curve or that the key is strong:
`cryptography` and `weakkeys` do.
"""

from dataclasses import dataclass
from enum import StrEnum

from provisioning.issuance import der


class KeyKind(StrEnum):
    """A kind of subject key. The values stand in profiles."""

    P256 = "P-256"
    P384 = "P-384"
    P521 = "P-521"
    ED25519 = "Ed25519"
    RSA = "RSA"


SPKI_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200") + b"\x04"
"""What the SubjectPublicKeyInfo of every P-256 key starts with: the uncompressed point's x and y follow."""
SPKI_P384 = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200") + b"\x04"
SPKI_P521 = bytes.fromhex("30819b301006072a8648ce3d020106052b8104002303818600") + b"\x04"
SPKI_ED25519 = bytes.fromhex("302a300506032b6570032100")
_FIXED: tuple[tuple[KeyKind, bytes, int, int, int], ...] = (
    (KeyKind.P256, SPKI_P256, 64, 65, 256),
    (KeyKind.P384, SPKI_P384, 96, 97, 384),
    (KeyKind.P521, SPKI_P521, 132, 133, 521),
    (KeyKind.ED25519, SPKI_ED25519, 32, 32, 256),
)
"""Kind, prefix, octets behind it, octets of the BIT STRING's content, bits of the key."""
_SPKI_RSA = der.sequence(der.oid("1.2.840.113549.1.1.1"), b"\x05\x00")
RSA_BITS_MOST = 4096
SPKI_MOST = 1024
"""Octets: RSA of 4096 bits has 550."""


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """A SubjectPublicKeyInfo (`spki`, DER) of a known kind. `content` is that of its BIT STRING, `bits` its size."""

    spki: bytes
    kind: KeyKind
    bits: int
    content: bytes
    modulus: int = 0
    exponent: int = 0


def subject_key(spki: bytes) -> SubjectKey | None:
    """What kind of key these bytes are, None where they are not to the octet one of the kinds above."""
    for kind, prefix, behind, content, bits in _FIXED:
        if spki.startswith(prefix):
            return SubjectKey(spki, kind, bits, spki[-content:]) if len(spki) == len(prefix) + behind else None
    return _rsa(spki) if len(spki) <= SPKI_MOST else None


def _rsa(spki: bytes) -> SubjectKey | None:
    """Read loosely, write strictly, compare: what differs from its own re-encoding is no RSA key here."""
    start = spki.find(_SPKI_RSA)
    numbers = _integers(spki[start + len(_SPKI_RSA) :]) if start >= 0 else None
    if numbers is None:
        return None
    modulus, exponent = numbers
    content = der.sequence(der.integer(modulus), der.integer(exponent))
    if der.sequence(_SPKI_RSA, der.bits(content)) != spki:
        return None
    return SubjectKey(spki, KeyKind.RSA, modulus.bit_length(), content, modulus, exponent)


def _integers(bit_string: bytes) -> tuple[int, int] | None:
    """The two INTEGERs of `BIT STRING { SEQUENCE { modulus, exponent } }`, whatever the lengths around them say."""
    try:
        at = header(bit_string, 0)[0] + 1
        at, _ = header(bit_string, at)
        first, end = header(bit_string, at)
        second, last = header(bit_string, end)
    except IndexError:
        return None
    return int.from_bytes(bit_string[first:end], "big"), int.from_bytes(bit_string[second:last], "big")


def header(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends. For DER that a parser accepted: nothing is judged.

    Raises: IndexError.
    """
    size = data[at + 1]
    begin = at + 2
    if size >= der.SHORT_FORM_BELOW:
        begin += size & 0x7F
        size = int.from_bytes(data[at + 2 : begin], "big")
    return begin, begin + size
