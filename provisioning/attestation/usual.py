"""The shape that nearly every TPM gives a structure, read at one stroke: P-256, SHA-256, no policy, nothing shortened.

Bytes of any other shape are None here, and nothing is refused: `structures` then reads them field by field, and says
what is wrong with them. That both ways read the same is a property in the tests.
"""

import struct
from operator import itemgetter
from typing import Any


class Usual:
    """A shape: octets that are always the same, and between them what differs, as `struct` spells it."""

    __slots__ = ("_constants", "_layout", "_octets", "_values")

    def __init__(self, *parts: bytes | str) -> None:
        """At least two of each kind."""
        forms = [f"{len(part)}s" if isinstance(part, bytes) else part for part in parts]
        self._layout = struct.Struct(">" + "".join(forms))
        self._octets = tuple(part for part in parts if isinstance(part, bytes))
        constants: list[int] = []
        values: list[int] = []
        at = 0
        for part, form in zip(parts, forms, strict=True):
            fields = 1 if form[-1] == "s" else len(form)
            (constants if isinstance(part, bytes) else values).extend(range(at, at + fields))
            at += fields
        self._constants, self._values = itemgetter(*constants), itemgetter(*values)

    def read(self, data: bytes) -> tuple[Any, ...] | None:
        """What differs, in its order; None where the bytes are of another shape."""
        if len(data) != self._layout.size:
            return None
        found = self._layout.unpack(data)
        if self._constants(found) != self._octets:
            return None
        values: tuple[Any, ...] = self._values(found)
        return values


_NAME = (b"\x00\x22", "34s")
_DIGEST = (b"\x00\x20", "32s")
_SIGNER_NONCE_CLOCK = (*_NAME, *_DIGEST, "QIIBQ")
"""qualifiedSigner, a nonce of 32 octets, clockInfo, firmwareVersion (Part 2, 10.12.12)."""
_POINT = (b"\x00\x03\x00\x10", *_DIGEST, *_DIGEST)
"""P-256, no KDF, x and y (Part 2, 12.2.3.6, 11.2.5.2)."""

QUOTE = Usual(b"\xffTCG\x80\x18", *_SIGNER_NONCE_CLOCK, b"\x00\x00\x00\x01\x00\x0b\x03", "3s", *_DIGEST)
"""With one bank of SHA-256, of which three octets select."""
CERTIFY = Usual(b"\xffTCG\x80\x17", *_SIGNER_NONCE_CLOCK, *_NAME, *_NAME)
SIGNATURE = Usual(b"\x00\x18\x00\x0b", *_DIGEST, *_DIGEST)
"""ECDSA with SHA-256: r, s."""
SIGNING_KEY = Usual(b"\x00\x23\x00\x0b", "I", b"\x00\x00\x00\x10\x00\x18\x00\x0b", *_POINT)
"""Attributes and point of a key for ECDSA with SHA-256 alone: an AK."""
KEY = Usual(b"\x00\x23\x00\x0b", "I", b"\x00\x00\x00\x10\x00\x10", *_POINT)
"""Attributes and point of a key without a scheme: a device key."""
