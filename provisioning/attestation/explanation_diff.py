"""What is different between two boots of one device: PCRs, events of the boot log, files, the TPM's firmware."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from provisioning.attestation.eventlog import Event, EventLog
from provisioning.attestation.eventtext import EV_NO_ACTION
from provisioning.attestation.ima import CoveredIma, ImaEntry
from provisioning.attestation.ima_fields import fields_of
from provisioning.attestation.policy import ExpectedEvent
from provisioning.refusals import ImaLogMalformed

COMPARED_MOST = 256
"""Events of a PCR that are aligned, where two logs differ: behind that they are compared by their place."""

Kind = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class PcrChange:
    """A PCR's values; None where it was not quoted."""

    pcr: int
    before: bytes | None
    now: bytes | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One event of one PCR, in one bank: `text` is the log's word, the digest the TPM's. `number` counts in the log."""

    digest: bytes
    text: str
    number: int | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class EventChange:
    """An event that is there now, or was, or another one in its place."""

    pcr: int
    before: Measurement | None
    now: Measurement | None

    @property
    def kind(self) -> Kind:
        """What happened to it."""
        if self.before is None:
            return "added"
        return "removed" if self.now is None else "changed"


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that IMA measured now and not before (`before` is None), or with another digest."""

    path: str
    before: str | None
    now: str


def pcr_changes(before: Mapping[int, bytes], now: Mapping[int, bytes]) -> tuple[PcrChange, ...]:
    """The PCRs that were quoted both times, or once, with another value."""
    numbers = sorted(before.keys() | now.keys())
    found = (PcrChange(number, before.get(number), now.get(number)) for number in numbers)
    return tuple(change for change in found if change.before != change.now)


def event_changes(before: EventLog, now: EventLog, bank: str, pcrs: Iterable[int]) -> tuple[EventChange, ...]:
    """How the events of these PCRs differ, in the order of the PCRs and of the later log."""
    found: list[EventChange] = []
    for pcr in sorted(pcrs):
        found.extend(differences(pcr, measurements(before, bank, pcr), measurements(now, bank, pcr)))
    return tuple(found)


def measurements(log: EventLog, bank: str, pcr: int) -> list[Measurement]:
    """What extended a PCR, in order."""
    return [
        Measurement(event.digests[bank], event.text, event.number, event)
        for event in log.events
        if event.pcr == pcr and event.event_type != EV_NO_ACTION
    ]


def expected(events: Sequence[ExpectedEvent], pcr: int, size: int) -> list[Measurement]:
    """What a policy expects to extend a PCR, with digests of this size."""
    mine = (event for event in events if event.pcr == pcr and len(event.digest) == size)
    return [Measurement(event.digest, event.description) for event in mine]


def differences(pcr: int, before: Sequence[Measurement], now: Sequence[Measurement]) -> list[EventChange]:
    """How one PCR's events differ: what stands in the place of another one is `changed`."""
    start, stop_before, stop_now = _common(before, now)
    old, new = before[start:stop_before], now[start:stop_now]
    if len(old) > COMPARED_MOST or len(new) > COMPARED_MOST:  # a hostile log: aligning is quadratic
        return _paired(pcr, old, new)
    found: list[EventChange] = []
    matcher = SequenceMatcher(None, [one.digest for one in old], [one.digest for one in new], autojunk=False)
    for tag, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if tag != "equal":
            found.extend(_paired(pcr, old[old_from:old_to], new[new_from:new_to]))
    return found


def _common(before: Sequence[Measurement], now: Sequence[Measurement]) -> tuple[int, int, int]:
    """Where both begin to differ, and behind which place each they are the same again."""
    least = min(len(before), len(now))
    start = 0
    while start < least and before[start].digest == now[start].digest:
        start += 1
    behind = 0
    while behind < least - start and before[-1 - behind].digest == now[-1 - behind].digest:
        behind += 1
    return start, len(before) - behind, len(now) - behind


def _paired(pcr: int, old: Sequence[Measurement], new: Sequence[Measurement]) -> list[EventChange]:
    both = [EventChange(pcr, was, one) for was, one in zip(old, new, strict=False) if was.digest != one.digest]
    gone = [EventChange(pcr, was, None) for was in old[len(new) :]]
    return [*both, *gone, *(EventChange(pcr, None, one) for one in new[len(old) :])]


def file_changes(before: CoveredIma, now: CoveredIma) -> tuple[FileChange, ...]:
    """Files that were measured now, and not, or otherwise, before. What was not used this time is no change."""
    known: dict[str, set[str]] = {}
    for path, digest in _files(before):
        known.setdefault(path, set()).add(digest)
    found: dict[FileChange, None] = {}
    for path, digest in _files(now):
        if digest not in known.get(path, ()):
            found[FileChange(path, min(known[path], default=None) if path in known else None, digest)] = None
    return tuple(found)


def _files(ima: CoveredIma) -> Iterable[tuple[str, str]]:
    for entry in ima.entries:
        named = file_of(entry)
        if named is not None:
            yield named


def file_of(entry: ImaEntry) -> tuple[str, str] | None:
    """Path and `algorithm:digest` of an entry; None for a violation, and for what cannot be read."""
    if entry.violation:
        return None
    try:
        fields = fields_of(entry)
    except ImaLogMalformed:
        return None
    kind = "" if fields.digest_type == "ima" else f"{fields.digest_type}:"
    return fields.path, f"{kind}{fields.algorithm}:{fields.digest.hex()}"
