"""Distinguished names: their text for people, and a key under which two encodings of one name are the same."""

import hashlib
import unicodedata
from functools import lru_cache

from asn1crypto import x509 as lenient

LENIENT_REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""What asn1crypto raises on hostile bytes."""


def name_text(der: bytes) -> str:
    """A distinguished name for people; hex where it cannot be read."""
    try:
        text = str(lenient.Name.load(der, strict=True).human_friendly)
    except LENIENT_REFUSALS:
        return der.hex()
    return "".join(c if c.isprintable() else "?" for c in text)


@lru_cache(maxsize=1024)
def name_key(der: bytes) -> str:
    """The same for two names that RFC 5280, 7.1 calls equal: string types, case and blanks do not matter.

    Proves nothing: it only finds candidates, whose signatures are judged.
    """
    try:
        name = lenient.Name.load(der, strict=True)
        relative = [
            sorted((attribute["type"].dotted, _folded(str(attribute["value"].native))) for attribute in one)
            for one in name.chosen
        ]
    except LENIENT_REFUSALS:
        return hashlib.sha256(der).hexdigest()
    return hashlib.sha256(repr(relative).encode()).hexdigest()


def attribute_of(der: bytes, kind: str) -> str:
    """The first value of that attribute (asn1crypto's name of it, `organization_name`) of a name; empty: none."""
    try:
        value = lenient.Name.load(der, strict=True).native.get(kind, "")
    except LENIENT_REFUSALS:
        return ""
    found = value[0] if isinstance(value, list) and value else value
    return found if isinstance(found, str) else ""


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
