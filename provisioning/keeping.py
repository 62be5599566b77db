"""Which stored evidence stays: rules about one device. Pure; `retention` and `logs` carry them out.

What stays whatever its age is what something that is kept, or open, rests on: the newest pass, what an explanation
compares a refusal with, what stood before a quarantine or an open finding, what a certificate in force was earned by.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOOKED_BACK = 20
"""How many evidences that passed an explanation looks through, newest first."""
FINDINGS_MOST = 4
"""Open findings of one device, the newest, whose evidence stays in any case."""
END_OF_TIME = 2**62


@dataclass(frozen=True, slots=True)
class Pass:
    """Evidence that passed. `softened`: by the policy's mode. `logs`: the hashes of those that it names."""

    id: str
    at: int
    softened: bool = False
    logs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Occasions:
    """When, in Unix seconds, something happened to a device that is still kept or open.

    `refused`: refusals whose evidence is kept; `found`: findings that are open; `fell`: when it lost its health.
    `earned`: the ids of the attestations by which its certificates in force were earned.
    """

    refused: tuple[int, ...] = ()
    found: tuple[int, ...] = ()
    fell: int | None = None
    earned: frozenset[str] = frozenset()

    @property
    def moments(self) -> tuple[int, ...]:
        """The times up to which passes are looked at; the last is the end of time."""
        fell = () if self.fell is None else (self.fell,)
        return (*self.refused, *sorted(self.found)[-FINDINGS_MOST:], *fell, END_OF_TIME)


@dataclass(frozen=True, slots=True)
class Use:
    """A body of logs that a device uses: when it named it newly, and its size in bytes."""

    body: int
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class Bound:
    """How many bodies one device may use, and how many bytes of them."""

    logs: int
    bytes: int

    def holds(self, uses: Sequence[Use]) -> bool:
        """Is that no more than it may?"""
        return len(uses) <= self.logs and sum(use.size for use in uses) <= self.bytes


def needed(passes: Iterable[Pass], occasions: Occasions) -> frozenset[str]:
    """The ids of the passes that stay with their logs: at most four, and one for each occasion.

    `passes` are at least the `LOOKED_BACK` newest up to each of `occasions.moments`.
    """
    newest = sorted(passes, key=lambda one: (one.at, one.id), reverse=True)
    found = [_first(newest), _clean(newest, END_OF_TIME)]
    softened = next((one for one in newest[:LOOKED_BACK] if one.softened), None)
    if softened is not None:
        found += [softened, _clean(newest, softened.at)]
    found += [_clean(newest, at) for at in occasions.refused]
    others = set(occasions.moments) - set(occasions.refused) - {END_OF_TIME}
    found += [_first(_until(newest, at)) for at in others]
    return frozenset(one.id for one in found if one is not None)


def given_up(uses: Sequence[Use], needed_bodies: frozenset[int], bound: Bound) -> tuple[int, ...]:
    """The bodies that a device's bound takes, the oldest first: what is needed stays, and counts."""
    rest = sorted((use for use in uses if use.body not in needed_bodies), key=lambda use: (use.at, use.body))
    left = list(uses)
    gone: list[int] = []
    for use in rest:
        if bound.holds(left):
            break
        left.remove(use)
        gone.append(use.body)
    return tuple(gone)


def expired(passes: Sequence[Pass], stays: frozenset[str], before: int) -> tuple[Pass, ...]:
    """Those from before then that nothing needs, the oldest first."""
    old = (one for one in passes if one.at < before and one.id not in stays)
    return tuple(sorted(old, key=lambda one: (one.at, one.id)))


def expired_refusals(refused: Sequence[tuple[str, int]], before: int, *, rests: bool) -> tuple[str, ...]:
    """The refusals (id, time) from before then whose evidence goes, the oldest first.

    `rests`: the device is failing or in quarantine, or a finding about it is open: its newest stays.
    """
    ordered = sorted(refused, key=lambda one: (one[1], one[0]))
    return tuple(name for name, at in (ordered[:-1] if rests else ordered) if at < before)


def _first(newest: Sequence[Pass]) -> Pass | None:
    return newest[0] if newest else None


def _until(newest: Sequence[Pass], at: int) -> Sequence[Pass]:
    return [one for one in newest if one.at <= at][:LOOKED_BACK]


def _clean(newest: Sequence[Pass], at: int) -> Pass | None:
    """What an explanation compares with: the newest without anything to be refused, until then."""
    return next((one for one in _until(newest, at) if not one.softened), None)
