"""Keys that are known to be weak, by their fingerprint: sorted entries of 16 octets, as badkeys publishes them.

An entry is the first 15 octets of SHA-256 over the key's number (RSA: the modulus; on a curve: x; Ed25519: the encoded
point; big-endian, without leading zeros) and one octet that says from which list it comes. A stranger's key is found by
chance with 2^-120 times the number of entries.
"""

import hashlib
from collections.abc import Callable, Sequence

from provisioning.issuance.keys import KeyKind, SubjectKey

ENTRY_OCTETS = 16
_PRINT_OCTETS = 15


def fingerprint(key: SubjectKey) -> bytes:
    """What an entry for that key starts with."""
    number = key.modulus
    if key.kind is KeyKind.ED25519:
        number = int.from_bytes(key.content, "big")
    elif key.kind is not KeyKind.RSA:
        size = len(key.content) // 2  # 04, x, y
        number = int.from_bytes(key.content[1 : 1 + size], "big")
    return hashlib.sha256(number.to_bytes((number.bit_length() + 7) // 8, "big")).digest()[:_PRINT_OCTETS]


def listed_in(lists: Sequence[memoryview]) -> Callable[[SubjectKey], bool]:
    """Does any of these lists hold the key? Each is sorted, and of whole entries: see `is_list`."""

    def is_listed(key: SubjectKey) -> bool:
        if not lists:
            return False
        wanted = fingerprint(key)
        return any(_holds(entries, wanted) for entries in lists)

    return is_listed


def is_list(entries: memoryview) -> bool:
    """Whole entries, in their order? Sampled, so that a large list costs no time: a lookup needs no more."""
    count, rest = divmod(len(entries), ENTRY_OCTETS)
    if rest or not count:
        return False
    step = max(count // 1000, 1)
    sampled = [_print_at(entries, at) for at in range(0, count, step)]
    return sampled == sorted(sampled)


def _holds(entries: memoryview, wanted: bytes) -> bool:
    low, high = 0, len(entries) // ENTRY_OCTETS
    while low < high:
        middle = (low + high) // 2
        found = _print_at(entries, middle)
        if found == wanted:
            return True
        if found < wanted:
            low = middle + 1
        else:
            high = middle
    return False


def _print_at(entries: memoryview, number: int) -> bytes:
    at = number * ENTRY_OCTETS
    return bytes(entries[at : at + _PRINT_OCTETS])
