"""What an entry of an IMA log says: digest, file, signature, buffer. Believed only of covered entries (`ima`).

Templates and fields: the kernel's Documentation/security/IMA-templates.rst. Signatures: struct signature_v2_hdr
(security/integrity/integrity.h), big-endian.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from provisioning.attestation.eventtext_reading import Cursor, MalformedData, hex_of, printable
from provisioning.attestation.eventtext_signatures import Details
from provisioning.attestation.ima import ImaEntry
from provisioning.refusals import ImaLogMalformed

TEMPLATES = {
    "ima": "d|n",
    "ima-ng": "d-ng|n-ng",
    "ima-ngv2": "d-ngv2|n-ng",
    "ima-sig": "d-ng|n-ng|sig",
    "ima-sigv2": "d-ngv2|n-ng|sig",
    "ima-buf": "d-ng|n-ng|buf",
    "ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
    "evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}
"""The kernel's own templates. One that the administrator made up has its fields for a name."""

FIELDS = frozenset("|".join(TEMPLATES.values()).split("|"))
_OLD_DIGEST_BYTES = 20
_HASH_NAMES = (
    *("md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224", "rmd128", "rmd256", "rmd320"),
    *("wp256", "wp384", "wp512", "tgr128", "tgr160", "tgr192", "sm3", "streebog256", "streebog512"),
    *("sha3-256", "sha3-384", "sha3-512"),
)
"""enum hash_algo (include/uapi/linux/hash_info.h)."""
_SIGNATURE_TYPES = {3: "ima", 5: "evm-portable", 6: "verity"}
_SIGNATURE_HEADER = struct.Struct(">BBBIH")


@dataclass(frozen=True, slots=True)
class Signature:
    """A file's signature, as its extended attribute had it. Not verified; `key_id` names a key, and proves none.

    `kind`: `ima` over the file's digest, `verity` over its fs-verity digest, `evm-portable` over its metadata.
    """

    kind: str
    hash: str
    key_id: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one entry. `digest_type`: `ima` (the file's bytes) or `verity` (the digest of its Merkle tree).

    `buffer`: what was measured is this very buffer (a kernel command line, a key). `others`: fields without a name
    here, by their id.
    """

    algorithm: str
    digest: bytes
    digest_type: str
    path: str
    signature: bytes
    buffer: bytes
    others: Mapping[str, bytes]


def fields_of(entry: ImaEntry) -> Fields:
    """The entry's fields, each of them there and nothing behind. Raises: ImaLogMalformed."""
    try:
        return _fields(entry)
    except MalformedData as error:
        raise ImaLogMalformed(expected=f"entry {entry.number}: data of {entry.template}", actual=str(error)) from error


def signature_of(data: bytes) -> Signature:
    """The parts of a signature field. Raises: MalformedData."""
    if len(data) < _SIGNATURE_HEADER.size:
        raise MalformedData(f"a signature of {len(data)} bytes")
    kind, version, algorithm, key_id, size = _SIGNATURE_HEADER.unpack_from(data)
    value = data[_SIGNATURE_HEADER.size :]
    if kind not in _SIGNATURE_TYPES or version not in {2, 3} or size != len(value):
        raise MalformedData(f"a signature of type {kind}, version {version}, {len(value)} bytes of {size}")
    name = _HASH_NAMES[algorithm] if algorithm < len(_HASH_NAMES) else f"hash {algorithm}"
    return Signature(_SIGNATURE_TYPES[kind], name, key_id.to_bytes(4, "big"), value)


def measured(entry: ImaEntry) -> bool | None:
    """Is the list's own template hash over the entry's data? None where nothing can be said: a violation."""
    names = {20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}
    if entry.violation:
        return None
    return hashlib.new(names[len(entry.template_hash)], entry.hashed).digest() == entry.template_hash


def words(entry: ImaEntry) -> tuple[str, Details]:
    """The entry for people: a line, and the same as fields. Never raises."""
    shown: Details = {"template": entry.template, "violation": entry.violation}
    try:
        found = _fields(entry)
    except MalformedData as error:
        return f"malformed: {error}", shown | {"malformed": str(error), "value": hex_of(entry.data)}
    digest = f"{found.algorithm}:{found.digest.hex()}"
    shown |= {"path": printable(found.path), "digest": digest, "digest_type": found.digest_type}
    line = f"{found.path} {digest}"
    if found.signature:
        told = _signature(found.signature)
        shown["signature"] = told
        line += f", signed by {told['key_id']}" if "key_id" in told else ", signature malformed"
    if found.buffer:
        shown["buffer"] = found.buffer.hex()
        line += f", buffer {hex_of(found.buffer)}"
    shown |= {name: hex_of(value) for name, value in found.others.items()}
    if entry.violation:
        line = f"violation: {line}"
    elif measured(entry) is False:
        line += " (its data is not what was measured)"
    return printable(line), shown


def _signature(data: bytes) -> Details:
    try:
        found = signature_of(data)
    except MalformedData as error:
        return {"malformed": str(error), "value": hex_of(data)}
    return {"kind": found.kind, "hash": found.hash, "key_id": found.key_id.hex(), "value": found.value.hex()}


def _fields(entry: ImaEntry) -> Fields:
    cursor = Cursor(entry.data)
    if entry.template == "ima":
        digest = cursor.take(_OLD_DIGEST_BYTES, "digest")
        return Fields("sha1", digest, "ima", _text(_sized(cursor)), b"", b"", MappingProxyType({}))
    names = TEMPLATES.get(entry.template, entry.template).split("|")
    if unknown := [name for name in names if name not in FIELDS]:
        raise MalformedData(f"unknown field {unknown[0]}")
    found = {name: _sized(cursor) for name in names}
    if cursor.left:
        raise MalformedData(f"{cursor.left} bytes behind the last field")
    algorithm, digest_type, digest = "", "ima", b""
    for name in ("d-ng", "d-ngv2"):
        if name in found:
            algorithm, digest_type, digest = _digest(found.pop(name))
    path = _text(found.pop("n-ng", found.pop("n", b"")))
    signature, buffer = found.pop("sig", b""), found.pop("buf", b"")
    return Fields(algorithm, digest, digest_type, path, signature, buffer, MappingProxyType(found))


def _sized(cursor: Cursor) -> bytes:
    return cursor.take(cursor.u32("field size"), "field")


def _digest(field: bytes) -> tuple[str, str, bytes]:
    """`sha256:`, NUL, digest; `verity:sha256:`, NUL, digest."""
    head, nul, digest = field.partition(b":\0")
    kind, colon, algorithm = head.rpartition(b":")
    if not nul or not head.isascii():
        raise MalformedData("a digest without its algorithm")
    return printable(algorithm.decode("ascii")), printable(kind.decode("ascii")) if colon else "ima", digest


def _text(field: bytes) -> str:
    return field.removesuffix(b"\0").decode("utf-8", errors="backslashreplace")
