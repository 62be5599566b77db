"""TCG boot event logs: parsed strictly, replayed, and only then believed (check 13).

TCG PC Client Platform Firmware Profile (PFP) 1.05, section 10 (event logging). All integers are little-endian. An
event's digest is what the TPM vouches for once the log replays; its data is believed only where the digest is over it
(`eventtext.measured`).
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Protocol

from provisioning.attestation.algorithms import MAX_PCR
from provisioning.attestation.eventtext import Words, decode, describe, measured
from provisioning.attestation.eventtext_types import EV_EFI_HCRTM_EVENT, EV_NO_ACTION, type_name
from provisioning.refusals import BootLogDoesNotReplay, BootLogMalformed, Finding
from wire.messages import BOOT_LOG_MOST

MAX_EVENTS = 4096
MAX_ALGORITHMS = 16
MAX_DIGEST_BYTES = 64
_SHA1 = 0x0004
_SHA1_BYTES = 20


class _Hash(Protocol):
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Bank:
    """A PCR bank: its name, the bytes of its digests, and its hash."""

    name: str
    size: int
    hash: Callable[[bytes], _Hash]


_BANKS = {
    _SHA1: Bank("sha1", _SHA1_BYTES, hashlib.sha1),
    0x000B: Bank("sha256", 32, hashlib.sha256),
    0x000C: Bank("sha384", 48, hashlib.sha384),
    0x000D: Bank("sha512", 64, hashlib.sha512),
    0x0012: Bank("sm3_256", 32, partial(hashlib.new, "sm3")),
    0x0027: Bank("sha3_256", 32, hashlib.sha3_256),
    0x0028: Bank("sha3_384", 48, hashlib.sha3_384),
    0x0029: Bank("sha3_512", 64, hashlib.sha3_512),
}
"""What a log may hold, by TPM_ALG_ID; which of them a quote may be over is `algorithms`' and the policy's matter."""
BANKS = {bank.name: bank for bank in _BANKS.values() if bank.name != "sm3_256" or "sm3" in hashlib.algorithms_available}
"""The banks that can be replayed here, by name."""

_SPEC_ID = b"Spec ID Event03\0"
_STARTUP_LOCALITY = b"StartupLocality\0"
_LOCALITIES = frozenset({0, 3, 4})
_HCRTM_LOCALITY = 4
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
        """The event for people: its type's name and what its data says, on a short line."""
        return describe(self.event_type, self.data, self.digests)

    @property
    def words(self) -> Words:
        """The event for people, whole, and as fields."""
        return decode(self.event_type, self.data, self.digests)

    def measured(self, bank: str) -> bytes | None:
        """The part of the data that this bank's digest is over, or None (`eventtext.measured`). Believe no more."""
        digest = self.digests.get(bank)
        return None if digest is None else measured(self.event_type, self.data, bank, digest)

    @property
    def type_name(self) -> str:
        """The type's name; its number where it is unknown."""
        return type_name(self.event_type)


@dataclass(frozen=True, slots=True, eq=False)
class EventLog:
    """A parsed log. Nothing in it is true until it replays to quoted PCRs. Compared by identity: see `replay`.

    `banks`: those that every extending event has a digest of. `partial`: announced, and not in every event: firmware
    announces banks that are switched off. `locality` is the number that PCR 0 starts from.
    """

    banks: tuple[str, ...]
    partial: tuple[str, ...]
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
    layout = _Layout(_spec_id(first.data)) if agile else None
    events = [first]
    while not reader.ended():
        number = len(events)
        if number == MAX_EVENTS:
            raise BootLogMalformed(expected=f"at most {MAX_EVENTS} events", actual="more")
        events.append(_sha1_event(reader, number) if layout is None else _agile_event(reader, layout, number))
    announced = ("sha1",) if layout is None else tuple(name for name in layout.names if name in BANKS)
    extending = [event for event in events if event.event_type != EV_NO_ACTION]
    banks = tuple(name for name in announced if all(name in event.digests for event in extending))
    return EventLog(banks, tuple(b for b in announced if b not in banks), _locality(events), tuple(events))


@lru_cache(maxsize=LOGS_KEPT)
def replay(log: EventLog, bank: str) -> Mapping[int, bytes]:
    """The PCR values that the log's extends give in this bank, for every PCR (PFP 1.05, 10.2.5; Part 1, 17.2).

    Of a bank of `log.partial` they are only what its digests give. SHA-1 is for display: no verdict rests on it.
    """
    hashed, size = BANKS[bank].hash, BANKS[bank].size
    pcrs = {pcr: (b"\xff" if pcr in _DYNAMIC_PCRS else b"\0") * size for pcr in range(MAX_PCR + 1)}
    pcrs[0] = log.locality.to_bytes(size, "big")
    for event in log.events:
        if event.event_type != EV_NO_ACTION and bank in event.digests:
            pcrs[event.pcr] = hashed(pcrs[event.pcr] + event.digests[bank]).digest()
    return MappingProxyType(pcrs)


def extended_pcrs(log: EventLog) -> dict[str, dict[int, bytes]]:
    """The replayed values of each bank, for the PCRs that the log extends: of the others it says nothing."""
    told = {}
    for bank in (*log.banks, *log.partial):
        values = replay(log, bank)
        extended = {e.pcr for e in log.events if e.event_type != EV_NO_ACTION and bank in e.digests}
        told[bank] = {pcr: values[pcr] for pcr in sorted(extended)}
    return told


def verify_replay(log: EventLog, bank: str, quoted: Mapping[int, bytes]) -> None:
    """Is this the log of the boot that was quoted? PCR 10 is left out: IMA's own log explains it.

    Not proven: the data of events whose digest is not over it, and the events' types, which nothing measures.
    Raises: BootLogDoesNotReplay, with every PCR.
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
    """What is in PCR 0 before anything is extended: the startup locality (PFP 1.05, 10.4.5.3), or 4 after an H-CRTM.

    With an H-CRTM the TPM sets PCR 0 to 4 and extends it before TPM2_Startup, whose locality has no effect then
    (TPM 2.0 Library, Part 1, 34.3).
    """
    named = [e for e in events if e.event_type == EV_NO_ACTION and e.data.startswith(_STARTUP_LOCALITY)]
    extending = next((e for e in events if e.pcr == 0 and e.event_type != EV_NO_ACTION), None)
    locality = b"\0"
    if named:
        locality = named[0].data[len(_STARTUP_LOCALITY) :]
        late = extending is not None and extending.number < named[0].number
        if len(named) > 1 or late or len(locality) != 1 or locality[0] not in _LOCALITIES:
            actual = f"event {named[-1].number}"
            raise BootLogMalformed(expected="one startup locality, before all of PCR 0", actual=actual)
    if extending is not None and extending.event_type == EV_EFI_HCRTM_EVENT:
        return _HCRTM_LOCALITY
    return locality[0]


def _spec_id(data: bytes) -> dict[int, int]:
    """TCG_EfiSpecIDEvent: the digest algorithms and sizes of all events behind it (PFP 1.05, 10.4.5.1)."""
    reader = _Reader(data)
    reader.take(len(_SPEC_ID) + 8, "specification version")
    sizes: dict[int, int] = {}
    for _ in range(reader.capped("number of algorithms", 1, MAX_ALGORITHMS)):
        algorithm, size = reader.unpack(_ALGORITHM, "algorithm")
        expected = _BANKS[algorithm].size if algorithm in _BANKS else size
        if size != expected or not 0 < size <= MAX_DIGEST_BYTES or algorithm in sizes:
            actual = f"{algorithm:#06x}, {size} bytes"
            raise BootLogMalformed(expected="each algorithm once, with its digest's size", actual=actual)
        sizes[algorithm] = size
    vendor = reader.take(1, "vendor information size")
    reader.take(vendor[0], "vendor information")
    if not reader.ended():
        raise BootLogMalformed(expected="nothing behind the vendor information", actual="more bytes")
    return sizes


_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_ALGORITHM = struct.Struct("<HH")
_SHA1_EVENT = struct.Struct("<II20sI")
_INDEX_TYPE_COUNT = struct.Struct("<III")


class _Layout:
    """How an event of a crypto-agile log lies in memory where it has each announced digest, in the announced order."""

    __slots__ = ("algorithms", "names", "sizes", "whole")

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = sizes
        self.algorithms = tuple(sizes)
        self.names = tuple(_BANKS[one].name if one in _BANKS else f"{one:#06x}" for one in sizes)
        self.whole = struct.Struct("<III" + "".join(f"H{size}s" for size in sizes.values()) + "I")


def _sha1_event(reader: "_Reader", number: int) -> Event:
    """TCG_PCClientPCREvent (PFP 1.05, 10.2.1)."""
    pcr, event_type, digest, size = reader.fields(_SHA1_EVENT, f"event {number}")
    return _event(number, pcr, event_type, {"sha1": digest}, reader.take(size, f"event {number}"))


def _agile_event(reader: "_Reader", layout: _Layout, number: int) -> Event:
    """TCG_PCR_EVENT2 (PFP 1.05, 10.2.2): digests of announced algorithms, no other, none twice."""
    found = reader.peek(layout.whole)
    if found is not None and found[2] == len(layout.algorithms) and found[3:-1:2] == layout.algorithms:
        reader.take(layout.whole.size, "event")
        digests = dict(zip(layout.names, found[4:-1:2], strict=True))
        return _event(number, found[0], found[1], digests, reader.take(found[-1], f"event {number}"))
    return _unusual_event(reader, layout, number)


def _unusual_event(reader: "_Reader", layout: _Layout, number: int) -> Event:
    """The same where digests are left out or stand in another order."""
    pcr, event_type, count = reader.unpack(_INDEX_TYPE_COUNT, f"event {number}")
    if not 1 <= count <= len(layout.sizes):
        raise BootLogMalformed(expected=f"event {number}: 1 to {len(layout.sizes)} digests", actual=f"{count}")
    digests: dict[str, bytes] = {}
    left = dict(zip(layout.algorithms, layout.names, strict=True))
    for _ in range(count):
        (algorithm,) = reader.unpack(_U16, f"event {number}")
        if algorithm not in left:
            raise BootLogMalformed(expected=f"event {number}: announced digests, each once", actual=f"{algorithm:#06x}")
        digests[left.pop(algorithm)] = reader.take(layout.sizes[algorithm], f"event {number}")
    (size,) = reader.unpack(_U32, f"event {number}")
    return _event(number, pcr, event_type, digests, reader.take(size, f"event {number}"))


def _event(number: int, pcr: int, event_type: int, digests: dict[str, bytes], data: bytes) -> Event:
    if pcr > MAX_PCR and event_type != EV_NO_ACTION:
        raise BootLogMalformed(expected=f"event {number}: a PCR from 0 to {MAX_PCR}", actual=f"{pcr}")
    return Event(number, pcr, event_type, digests, data)


class _Reader:
    """A cursor that refuses to read past the end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def peek(self, layout: struct.Struct) -> tuple[Any, ...] | None:
        """The fields that follow, unread; None where fewer bytes are left."""
        if self._at + layout.size > len(self._data):
            return None
        return layout.unpack_from(self._data, self._at)

    def fields(self, layout: struct.Struct, field: str) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size, field))

    def unpack(self, layout: struct.Struct, field: str) -> tuple[int, ...]:
        return self.fields(layout, field)

    def take(self, size: int, field: str) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise BootLogMalformed(expected=f"{field}: {size} bytes at {self._at}", actual=f"{len(piece)}")
        self._at += size
        return piece

    def capped(self, field: str, least: int, most: int) -> int:
        (value,) = self.unpack(_U32, field)
        if not least <= value <= most:
            raise BootLogMalformed(expected=f"{field}: {least} to {most}", actual=f"{value}")
        return value

    def ended(self) -> bool:
        return self._at == len(self._data)
