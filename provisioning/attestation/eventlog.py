"""TCG boot event logs: parsed strictly, replayed, and only then believed (check 13).

TCG PC Client Platform Firmware Profile (PFP) 1.05, section 10 (event logging). All integers are little-endian. An
event's digest is what the TPM vouches for once the log replays; its data is believed only where the digest is over it.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from provisioning.attestation.algorithms import DIGEST_BYTES, HASH_NAMES, MAX_PCR
from provisioning.attestation.eventtext import EV_NO_ACTION, describe
from provisioning.refusals import BootLogDoesNotReplay, BootLogMalformed, Finding
from wire.messages import BOOT_LOG_MOST

MAX_EVENTS = 4096
_SHA1 = 0x0004
_SHA1_BYTES = 20
_DIGEST_BYTES = {_SHA1: _SHA1_BYTES, **DIGEST_BYTES, 0x0012: 32, 0x0027: 32, 0x0028: 48, 0x0029: 64}
"""What a log may hold, the banks that do not count among them: SHA-1, SM3-256, SHA3-256, SHA3-384, SHA3-512."""
_NAMES = {_SHA1: "sha1", **HASH_NAMES}

_SPEC_ID = b"Spec ID Event03\0"
_STARTUP_LOCALITY = b"StartupLocality\0"
_LOCALITIES = frozenset({0, 3, 4})
_OWN_LOG_PCRS = frozenset({10})
"""IMA extends PCR 10 and keeps a log of its own."""
_DYNAMIC_PCRS = range(17, 23)
"""PCRs 17 to 22 start with all bits set (PFP 1.05, 4.6.2)."""


LOGS_KEPT = 16
"""Parsed logs that are kept: devices of one model boot alike, and send the same bytes."""


@dataclass(frozen=True, slots=True)
class Event:
    """One measurement. `digests` by bank name; `number` counts from 0 in the log."""

    number: int
    pcr: int
    event_type: int
    digests: Mapping[str, bytes]
    data: bytes

    @property
    def text(self) -> str:
        """The event for people: its type's name and what its data says."""
        return describe(self.event_type, self.data, self.digests)


@dataclass(frozen=True, slots=True, eq=False)
class EventLog:
    """A parsed log. Nothing in it is true until it replays to quoted PCRs. Compared by identity: see `replay`."""

    banks: tuple[str, ...]
    locality: int
    events: tuple[Event, ...]


@lru_cache(maxsize=LOGS_KEPT)
def parse_event_log(data: bytes) -> EventLog:
    """A whole log, crypto-agile or SHA-1, with nothing behind its last event. Raises: BootLogMalformed."""
    if len(data) > BOOT_LOG_MOST:
        raise BootLogMalformed(expected=f"at most {BOOT_LOG_MOST} bytes", actual=f"{len(data)} bytes")
    reader = _Reader(data)
    first = _sha1_event(reader, 0)
    agile = first.event_type == EV_NO_ACTION and first.data.startswith(_SPEC_ID)
    sizes = _spec_id(first.data) if agile else {_SHA1: _SHA1_BYTES}
    events = [first]
    while not reader.ended():
        if len(events) == MAX_EVENTS:
            raise BootLogMalformed(expected=f"at most {MAX_EVENTS} events", actual="more")
        events.append(_agile_event(reader, sizes, len(events)) if agile else _sha1_event(reader, len(events)))
    banks = tuple(_NAMES[algorithm] for algorithm in sizes if algorithm in _NAMES)
    return EventLog(banks, _locality(events), tuple(events[1:] if agile else events))


@lru_cache(maxsize=LOGS_KEPT)
def replay(log: EventLog, bank: str) -> Mapping[int, bytes]:
    """The PCR values that the log's extends give in this bank, for every PCR (PFP 1.05, 10.2.5; Part 1, 17.2)."""
    size = hashlib.new(bank).digest_size
    pcrs = {pcr: (b"\xff" if pcr in _DYNAMIC_PCRS else b"\0") * size for pcr in range(MAX_PCR + 1)}
    pcrs[0] = log.locality.to_bytes(size, "big")
    for event in log.events:
        if event.event_type != EV_NO_ACTION:
            pcrs[event.pcr] = hashlib.new(bank, pcrs[event.pcr] + event.digests[bank]).digest()
    return MappingProxyType(pcrs)


def verify_replay(log: EventLog, bank: str, quoted: Mapping[int, bytes]) -> None:
    """Is this the log of the boot that was quoted? PCR 10 is left out: IMA's own log explains it.

    Not proven: the data of events whose digest is not over it. Raises: BootLogDoesNotReplay, with every PCR.
    """
    if bank not in log.banks:
        raise BootLogDoesNotReplay(expected=f"digests of the bank {bank}", actual=", ".join(log.banks) or "none")
    replayed = replay(log, bank)
    findings = tuple(
        Finding(f"PCR {pcr}", value.hex(), f"{replayed[pcr].hex()} by the log", "Send the log of this very boot.")
        for pcr, value in quoted.items()
        if pcr not in _OWN_LOG_PCRS and replayed[pcr] != value
    )
    if findings:
        names = ", ".join(finding.what for finding in findings)
        raise BootLogDoesNotReplay(expected="the quoted PCRs", actual=f"other values of {names}", findings=findings)


def _locality(events: list[Event]) -> int:
    """The startup locality, which is in PCR 0 before anything is (PFP 1.05, 10.4.5.3)."""
    named = [e for e in events if e.event_type == EV_NO_ACTION and e.data.startswith(_STARTUP_LOCALITY)]
    if not named:
        return 0
    locality = named[0].data[len(_STARTUP_LOCALITY) :]
    earlier = any(e.pcr == 0 and e.event_type != EV_NO_ACTION for e in events[: named[0].number])
    if len(named) > 1 or earlier or len(locality) != 1 or locality[0] not in _LOCALITIES:
        raise BootLogMalformed(expected="one startup locality, before all of PCR 0", actual=f"event {named[-1].number}")
    return locality[0]


def _spec_id(data: bytes) -> dict[int, int]:
    """TCG_EfiSpecIDEvent: the digest algorithms and sizes of all events behind it (PFP 1.05, 10.4.5.1)."""
    reader = _Reader(data)
    reader.take(len(_SPEC_ID) + 8, "specification version")
    sizes: dict[int, int] = {}
    for _ in range(reader.capped("number of algorithms", 1, len(_DIGEST_BYTES))):
        algorithm, size = reader.unpack(_ALGORITHM, "algorithm")
        if _DIGEST_BYTES.get(algorithm) != size or algorithm in sizes:
            raise BootLogMalformed(expected="known algorithms, each once", actual=f"{algorithm:#06x}, {size} bytes")
        sizes[algorithm] = size
    vendor = reader.take(1, "vendor information size")
    reader.take(vendor[0], "vendor information")
    if not reader.ended():
        raise BootLogMalformed(expected="nothing behind the vendor information", actual="more bytes")
    return sizes


def _sha1_event(reader: "_Reader", number: int) -> Event:
    """TCG_PCClientPCREvent (PFP 1.05, 10.2.1)."""
    pcr, event_type = reader.unpack(_INDEX_AND_TYPE, f"event {number}")
    digest = reader.take(_SHA1_BYTES, f"event {number}")
    return _event(number, pcr, event_type, {"sha1": digest}, reader.sized(f"event {number}"))


def _agile_event(reader: "_Reader", sizes: dict[int, int], number: int) -> Event:
    """TCG_PCR_EVENT2 (PFP 1.05, 10.2.2): one digest of each announced algorithm, no other, none twice."""
    pcr, event_type, count = reader.unpack(_INDEX_TYPE_COUNT, f"event {number}")
    if count != len(sizes):
        raise BootLogMalformed(expected=f"event {number}: {len(sizes)} digests", actual=f"{count}")
    digests: dict[str, bytes] = {}
    left = set(sizes)
    for _ in range(count):
        (algorithm,) = reader.unpack(_U16, f"event {number}")
        if algorithm not in left:
            raise BootLogMalformed(expected=f"event {number}: each announced digest", actual=f"{algorithm:#06x}")
        left.remove(algorithm)
        digests[_NAMES.get(algorithm, f"{algorithm:#06x}")] = reader.take(sizes[algorithm], f"event {number}")
    return _event(number, pcr, event_type, digests, reader.sized(f"event {number}"))


def _event(number: int, pcr: int, event_type: int, digests: dict[str, bytes], data: bytes) -> Event:
    if pcr > MAX_PCR and event_type != EV_NO_ACTION:
        raise BootLogMalformed(expected=f"event {number}: a PCR from 0 to {MAX_PCR}", actual=f"{pcr}")
    return Event(number, pcr, event_type, digests, data)


_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_ALGORITHM = struct.Struct("<HH")
_INDEX_AND_TYPE = struct.Struct("<II")
_INDEX_TYPE_COUNT = struct.Struct("<III")


class _Reader:
    """A cursor that refuses to read past the end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def unpack(self, layout: struct.Struct, field: str) -> tuple[int, ...]:
        values: tuple[int, ...] = layout.unpack(self.take(layout.size, field))
        return values

    def take(self, size: int, field: str) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise BootLogMalformed(expected=f"{field}: {size} bytes at {self._at}", actual=f"{len(piece)}")
        self._at += size
        return piece

    def sized(self, field: str) -> bytes:
        (size,) = self.unpack(_U32, field)
        return self.take(size, field)

    def capped(self, field: str, least: int, most: int) -> int:
        (value,) = self.unpack(_U32, field)
        if not least <= value <= most:
            raise BootLogMalformed(expected=f"{field}: {least} to {most}", actual=f"{value}")
        return value

    def ended(self) -> bool:
        return self._at == len(self._data)
