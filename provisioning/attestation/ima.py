"""IMA runtime logs of Linux: parsed strictly, replayed to the quoted PCR 10, and only as far believed (check 13).

The kernel's `binary_runtime_measurements`: security/integrity/ima/ima_fs.c (list), ima_template.c and ima_crypto.c
(what is hashed), ima_queue.c (what is extended). Integers are little-endian, as all machines write that we know of
(big-endian ones with `ima_canonical_fmt`). What an entry's data says stands in `ima_fields`.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from provisioning.attestation.algorithms import HASH_IDS, MAX_PCR
from provisioning.attestation.eventlog import BANKS
from provisioning.refusals import ImaLogDoesNotReplay, ImaLogMalformed
from wire.messages import IMA_LOG_MOST

MAX_ENTRIES = 65_536
IMA_PCR = 10
TEMPLATE_NAME_MOST = 128
"""Longer than every template's name, and than the longest format that stands in a name's place."""

Extension = Literal["template", "padded-sha1"]
"""What the kernel extends into a bank that is not SHA-1.

`template`: the bank's own hash of the template data (Linux 5.8 and later). `padded-sha1`: the SHA-1 hash and zeros
(Linux before 5.8, and later where the kernel lacks the bank's hash): no stronger than SHA-1.
"""
EXTENSIONS: tuple[Extension, ...] = ("template", "padded-sha1")

_OLD_TEMPLATE = "ima"
_OLD_DIGEST_BYTES = 20
_OLD_NAME_BYTES = 256
_SHA1_BYTES = 20
_HASH_SIZES = (20, 32, 48, 64)
_TEMPLATE_NAME = re.compile(rb"[a-z0-9][a-z0-9|-]{0,127}")
_U32 = struct.Struct("<I")
_TEMPLATES_FIRST_FIELD = 8
"""Bytes of the list's first entry before the template's name, without the digest."""


@dataclass(frozen=True, slots=True)
class ImaEntry:
    """One measurement. `data` is the template's data as logged; `template_hash` the list's word, which is not believed.

    An entry of zeros for a hash is a violation: the kernel knows that a file changed while it was measured, and extends
    ones. Nothing of such an entry's data is measured.
    """

    number: int
    pcr: int
    template_hash: bytes
    template: str
    data: bytes

    @property
    def violation(self) -> bool:
        """Did the kernel invalidate the PCR in the place of measuring?"""
        return not any(self.template_hash)

    @property
    def hashed(self) -> bytes:
        """What the template hash is over: the data; of the old template `ima`, digest and padded name."""
        if self.template == _OLD_TEMPLATE:
            return self.data[:_OLD_DIGEST_BYTES] + self.data[_OLD_DIGEST_BYTES + 4 :].ljust(_OLD_NAME_BYTES, b"\0")
        return self.data


@dataclass(frozen=True, slots=True, eq=False)
class ImaLog:
    """A parsed log. Nothing in it is true until a beginning of it replays: see `verify_ima`."""

    hash_bytes: int
    entries: tuple[ImaEntry, ...]


@dataclass(frozen=True, slots=True)
class CoveredIma:
    """The entries that the quote covers. What stands behind them in the log was not quoted, and is not here.

    No entries: PCR 10 was quoted before anything was measured, or IMA is off. Judge that by policy.
    """

    entries: tuple[ImaEntry, ...]
    extension: Extension


def parse_ima_log(data: bytes) -> ImaLog:
    """A whole list with nothing behind its last entry. Raises: ImaLogMalformed."""
    if len(data) > IMA_LOG_MOST:
        raise ImaLogMalformed(expected=f"at most {IMA_LOG_MOST} bytes", actual=f"{len(data)} bytes")
    size = _hash_bytes(data)
    head = struct.Struct(f"<I{size}sI")
    entries: list[ImaEntry] = []
    at = 0
    while at < len(data):
        number = len(entries)
        if number == MAX_ENTRIES:
            raise ImaLogMalformed(expected=f"at most {MAX_ENTRIES} entries", actual="more")
        if at + head.size > len(data):
            raise ImaLogMalformed(expected=f"entry {number}: {head.size} bytes at {at}", actual=f"{len(data) - at}")
        pcr, template_hash, length = head.unpack_from(data, at)
        if pcr > MAX_PCR:
            raise ImaLogMalformed(expected=f"entry {number}: a PCR from 0 to {MAX_PCR}", actual=f"{pcr}")
        at += head.size
        name, at = _template(data, at, length, number)
        body, at = _body(data, at, name, number)
        entries.append(ImaEntry(number, pcr, template_hash, name, body))
    return ImaLog(size, tuple(entries))


def verify_ima(log: ImaLog, bank: str, quoted: bytes, pcr: int = IMA_PCR) -> CoveredIma:
    """Which entries does the quoted value of this PCR cover? A beginning of the log: the kernel goes on measuring.

    Not proven: that the kernel measured everything (its policy decides), what violations are about, and the order of
    entries of other PCRs. With `padded-sha1` two entries of one SHA-1 hash cannot be told apart.

    Raises: ImaLogDoesNotReplay.
    """
    if bank not in HASH_IDS:
        raise ImaLogDoesNotReplay(expected=f"a bank of {', '.join(HASH_IDS)}", actual=bank)
    replayed = b""
    for extension in EXTENSIONS:
        replayed = bytes(BANKS[bank].size)
        if replayed == quoted:
            return CoveredIma((), extension)
        for entry, digest in _extended(log, bank, extension, pcr):
            replayed = BANKS[bank].hash(replayed + digest).digest()
            if replayed == quoted:
                return CoveredIma(log.entries[: entry.number + 1], extension)
    raise ImaLogDoesNotReplay(expected=quoted, actual=f"{replayed.hex()} after all of {len(log.entries)} entries")


def replay_ima(log: ImaLog, bank: str, extension: Extension = "template") -> Mapping[int, bytes]:
    """The values that the whole log gives to the PCRs that it extends, in this bank."""
    hashed, pcrs = BANKS[bank].hash, dict[int, bytes]()
    for pcr in sorted({entry.pcr for entry in log.entries}):
        pcrs[pcr] = bytes(BANKS[bank].size)
        for _, digest in _extended(log, bank, extension, pcr):
            pcrs[pcr] = hashed(pcrs[pcr] + digest).digest()
    return MappingProxyType(pcrs)


def _extended(log: ImaLog, bank: str, extension: Extension, pcr: int) -> Iterator[tuple[ImaEntry, bytes]]:
    """What was extended into this PCR, by entry: hashes of the data, so that what replays is what was measured."""
    size = BANKS[bank].size
    hashed = BANKS[bank if extension == "template" else "sha1"].hash
    measured_bytes = size if extension == "template" else _SHA1_BYTES
    violation = (b"\xff" * measured_bytes).ljust(size, b"\0")
    nothing = bytes(log.hash_bytes)
    for entry in log.entries:
        if entry.pcr == pcr:
            known = entry.template_hash != nothing
            yield entry, hashed(entry.hashed).digest().ljust(size, b"\0") if known else violation


def _hash_bytes(data: bytes) -> int:
    """The size of the list's hashes: SHA-1's, or a bank's (`binary_runtime_measurements_sha256`, Linux 6.10)."""
    for size in _HASH_SIZES:
        start = size + _TEMPLATES_FIRST_FIELD
        if start > len(data):
            break
        (length,) = _U32.unpack_from(data, size + 4)
        if 0 < length <= TEMPLATE_NAME_MOST and _TEMPLATE_NAME.fullmatch(data[start : start + length]):
            return size
    if data:
        raise ImaLogMalformed(expected="a template's name in the first entry", actual=f"{len(data)} bytes without")
    return _SHA1_BYTES


def _template(data: bytes, at: int, length: int, number: int) -> tuple[str, int]:
    name = data[at : at + length] if length <= TEMPLATE_NAME_MOST else b""
    if len(name) != length or not _TEMPLATE_NAME.fullmatch(name):
        raise ImaLogMalformed(expected=f"entry {number}: a template's name at {at}", actual=f"{length} bytes")
    return name.decode("ascii"), at + length


def _body(data: bytes, at: int, template: str, number: int) -> tuple[bytes, int]:
    """The template's data: behind its length; of the old template a digest, and a name behind its length."""
    start, before = at, _OLD_DIGEST_BYTES if template == _OLD_TEMPLATE else 0
    if at + before + 4 > len(data):
        raise ImaLogMalformed(expected=f"entry {number}: template data at {at}", actual=f"{len(data) - at} bytes")
    (length,) = _U32.unpack_from(data, at + before)
    end = at + before + 4 + length
    if end > len(data) or (before and length >= _OLD_NAME_BYTES):
        raise ImaLogMalformed(expected=f"entry {number}: {length} bytes of data at {at}", actual=f"{len(data) - at}")
    return data[start if before else at + 4 : end], end


def is_ima_log(data: bytes) -> bool:
    """Does this look like the binary list, from its first entry?"""
    try:
        return bool(data) and bool(_hash_bytes(data))
    except ImaLogMalformed:
        return False
