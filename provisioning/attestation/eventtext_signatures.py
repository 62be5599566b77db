"""UEFI signature lists (PK, KEK, db, dbx, MokList …): certificates and hashes as a person can compare them.

UEFI 2.10, 32.4.1. Told, not verified: a certificate is shown as what its own fields say, beside its fingerprint.
"""

import hashlib
import warnings
from collections import Counter

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from provisioning.attestation.eventtext_reading import Cursor, MalformedData, guid_name, hex_of, printable

ENTRIES_MOST = 1024
"""Listed of one variable; the longest dbx that was published has some 400."""
CERTIFICATES_MOST = 64
"""Parsed of one variable: a hostile one could hold thousands."""

X509 = "x509"
_TYPES = {
    "a5c059a1-94e4-4aa7-87b5-ab155c2bf072": X509,
    "c1c41626-504c-4092-aca9-41f936934328": "sha256",
    "826ca512-cf10-4ac9-b187-be01496631bd": "sha1",
    "0b6e5233-a65c-44c9-9407-d9ab83bfc8bd": "sha224",
    "ff3e5307-9fd0-48c9-85f1-8ad56c701e01": "sha384",
    "093e0fae-a6c4-4f50-9f1b-d41e2b89c19a": "sha512",
    "57347f87-7a9b-403a-b93c-dc4afb7a0ebc": "sm3",
    "3c5766e8-269c-4e34-aa14-ed776e85b3b6": "rsa2048",
    "e2b36190-879b-4a3d-ad8d-f2e7bba32784": "rsa2048-sha256",
    "67f8444f-8743-48f1-a328-1eaab8736080": "rsa2048-sha1",
    "3bd2a492-96c0-4079-b420-fcf98ef103ed": "x509-sha256",
    "7076876e-80c2-4ee6-aad2-28b349a6865b": "x509-sha384",
    "446dbf63-2502-4cda-bcfa-2465d2b0fe9d": "x509-sha512",
    "4aafd29d-68df-49ee-8aa9-347d375665a7": "pkcs7",
    "452e8ced-dfff-4b8c-ae01-5118862e682c": "external management",
}
_HASHES = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512", "sm3"})
_OWNER_BYTES = 16
_DER_SEQUENCE = b"\x30\x82"
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)

Details = dict[str, object]


def signature_lists(data: bytes) -> list[Details]:
    """The entries of EFI_SIGNATURE_LISTs that stand one behind the other. Raises: MalformedData."""
    cursor, certificates = Cursor(data), 0
    entries: list[Details] = []
    while cursor.left:
        kind = cursor.guid("signature type")
        name = _TYPES.get(kind, kind)
        whole, header, size = cursor.unpack("III", "signature list")
        held = whole - 16 - 12 - header
        if held < 0 or size <= _OWNER_BYTES or held % size:
            raise MalformedData(f"signature list of {whole} bytes, entries of {size}")
        cursor.take(header, "signature header")
        listed = Cursor(cursor.take(held, "signatures"))
        while listed.left:
            if len(entries) >= ENTRIES_MOST:
                raise MalformedData(f"more than {ENTRIES_MOST} entries")
            certificates += name == X509
            entries.append(_entry(name, Cursor(listed.take(size)), readable=certificates <= CERTIFICATES_MOST))
    return entries


def signature_data(data: bytes) -> Details | None:
    """What vouched for an image: one EFI_SIGNATURE_DATA, or a certificate alone (shim's own); else None."""
    if data.startswith(_DER_SEQUENCE):
        return certificate(data)
    if data[_OWNER_BYTES:].startswith(_DER_SEQUENCE):
        return _entry(X509, Cursor(data), readable=True)
    names = {20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}
    name = names.get(len(data) - _OWNER_BYTES)
    return None if name is None else _entry(name, Cursor(data), readable=False)


def certificate(der: bytes) -> Details:
    """A certificate's names, validity and fingerprint; one that cannot be read has its fingerprint still."""
    shown: Details = {"type": X509, "sha256": hashlib.sha256(der).hexdigest()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a stranger's serial number; nothing that is issued here
            parsed = x509.load_der_x509_certificate(der)
            return shown | {
                "subject": printable(parsed.subject.rfc4514_string()),
                "issuer": printable(parsed.issuer.rfc4514_string()),
                "serial": f"{parsed.serial_number:x}",
                "not_before": parsed.not_valid_before_utc.isoformat(),
                "not_after": parsed.not_valid_after_utc.isoformat(),
            }
    except _UNREADABLE:
        return shown | {"malformed": f"no certificate that can be read, {len(der)} bytes"}


def told(entries: list[Details]) -> str:
    """The entries in one line: each certificate by its subject, and how many hashes."""
    certificates = [entry for entry in entries if entry["type"] == X509]
    parts = [name_of(entry) for entry in certificates]
    counted = Counter(str(entry["type"]) for entry in entries if entry["type"] != X509)
    return "; ".join([*parts, *(f"{count} {kind}" for kind, count in counted.items())]) or "empty"


def name_of(entry: Details) -> str:
    """One entry in few words."""
    if entry["type"] == X509:
        return f"certificate {entry.get('subject', entry.get('malformed'))} (sha256 {str(entry['sha256'])[:16]}…)"
    return f"{entry['type']} {entry['value']}"


def _entry(kind: str, cursor: Cursor, *, readable: bool) -> Details:
    owner = cursor.guid("signature owner")
    value = cursor.rest()
    shown: Details = {"owner": guid_name(owner)}
    if kind == X509 and readable:
        return certificate(value) | shown
    if kind == X509:
        return {"type": X509, "sha256": hashlib.sha256(value).hexdigest(), "malformed": "one of many: not read"} | shown
    return {"type": kind, "value": value.hex() if kind in _HASHES else hex_of(value)} | shown
