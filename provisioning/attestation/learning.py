"""A policy's reference values out of what chosen devices showed: a text for people to look at, then to propose.

Learning believes the chosen devices: what one of them runs becomes what all may run.
"""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from provisioning.attestation.ima import IMA_PCR, CoveredIma
from provisioning.attestation.ima_fields import Fields, fields_of
from provisioning.attestation.ima_policy import FileDigest
from provisioning.attestation.ima_policy_judge import AGGREGATE, AGGREGATED, excludes
from provisioning.attestation.ima_policy_signatures import why_not_signed
from provisioning.attestation.policy import Policy, parse_policy
from provisioning.attestation.policy_toml import Remarked, to_toml
from provisioning.attestation.rejudging import Shown
from provisioning.refusals import ImaLogMalformed, PolicyMalformed

FILES_MOST = 16_384
"""Files that one learning lists: more than fit into a policy."""
_LISTABLE = frozenset({"sha256", "sha384", "sha512"})


@dataclass(slots=True)
class Lessons:
    """What devices showed, counted one by one: no log is kept, however many there are."""

    policy: Policy
    serials: list[str] = field(default_factory=list)
    values: list[tuple[str, Mapping[int, bytes]]] = field(default_factory=list)
    """Of each device: the bank, and the values of its PCRs."""
    files: Counter[str] = field(default_factory=Counter)
    """Lines of `[ima]`'s `files`, and on how many devices each was seen."""
    measured: int = 0
    """How many devices had an IMA log."""
    left_out: set[str] = field(default_factory=set)
    """Paths that no line can say: an old hash, a line's end in a name."""

    def add(self, serial: str, shown: Shown) -> None:
        """One device more. Raises: PolicyMalformed (more files than a policy may list)."""
        self.serials.append(serial)
        self.values.append((shown.pcrs.bank, shown.pcrs.values))
        if shown.ima is not None and self.policy.ima_log != "none":
            self.measured += 1
            self.files.update(set(self._lines(shown.ima)))
        if len(self.files) > FILES_MOST:
            raise PolicyMalformed(expected=f"at most {FILES_MOST} files", actual="more; sign them, or exclude paths")

    def _lines(self, covered: CoveredIma) -> Iterator[str]:
        """The files that must be listed: those of a listed key, and of an excluded path, pass without."""
        ima = self.policy.ima
        for entry in covered.entries:
            if entry.pcr != IMA_PCR or entry.violation:
                continue
            try:
                fields = fields_of(entry)
            except ImaLogMalformed:
                self.left_out.add(f"entry {entry.number}")
                continue
            if fields.path == AGGREGATE or (ima is not None and any(excludes(p, fields.path) for p in ima.excludes)):
                continue
            digest = FileDigest(fields.digest_type, fields.algorithm, fields.digest)
            if ima is not None and fields.signature and why_not_signed(ima.keys, digest, fields.signature) is None:
                continue
            if (line := _line(fields)) is None:
                self.left_out.add(fields.path)
            else:
                yield line


def learned(text: str, lessons: Lessons, head: Sequence[str] = ()) -> str:
    """The policy with the values that these devices showed in the place of its own; each says on how many.

    What rules or releases alone judge stays without values. A PCR that none of them showed keeps the values that it
    has. A policy that learns comes back as one that monitors: the next step. Its own comments are not kept.

    Raises: PolicyMalformed: nothing to learn from, or what came out is none.
    """
    policy = parse_policy(text)
    document = dict(tomllib.loads(text))
    if policy.mode == "learn":
        document["mode"] = "monitor"
    document.pop("learn_from", None)
    tables = {bank: _bank(policy, bank, lessons) for bank in policy.pcrs}
    known = {bank: table for bank, table in tables.items() if table}
    document["pcrs"] = known
    banks = [bank for bank in policy.banks if bank in known]
    if not banks or not lessons.serials:
        wanted = f"evidence over {' or '.join(policy.banks)} of a device to learn from"
        raise PolicyMalformed(expected=wanted, actual="none")
    if banks != list(policy.banks):
        document["banks"] = banks
    if lessons.files:
        document["ima"] = _ima(document, lessons, known)
    written = to_toml(document, [*head, *_left_out(lessons)])
    parse_policy(written)
    return written


def _bank(policy: Policy, bank: str, lessons: Lessons) -> dict[str, list[Remarked]]:
    seen = [values for named, values in lessons.values if named == bank]
    open_to = policy.judged_by_rules | policy.release_pcrs
    table: dict[str, list[Remarked]] = {}
    for pcr, accepted in policy.pcrs[bank].items():
        if not accepted and pcr in open_to:
            table[str(pcr)] = []
        elif values := _values(pcr, accepted, seen):
            table[str(pcr)] = values
    return table


def _values(pcr: int, accepted: frozenset[bytes], seen: Sequence[Mapping[int, bytes]]) -> list[Remarked]:
    """The values of one PCR, the most frequent first."""
    showing = [values[pcr] for values in seen if pcr in values]
    if not showing:
        return [Remarked(value.hex(), "no device showed this PCR: as it was") for value in sorted(accepted)]
    counted = sorted(Counter(showing).items(), key=lambda one: (-one[1], one[0]))
    return [Remarked(value.hex(), _seen(count, len(showing))) for value, count in counted]


def _ima(document: Mapping[str, object], lessons: Lessons, known: Mapping[str, Mapping[str, object]]) -> object:
    """`[ima]` with the files in the place of its own; its keys and excludes stay."""
    before = document.get("ima")
    whole = all(str(pcr) in table for table in known.values() for pcr in AGGREGATED[0])
    ima: dict[str, object] = {} if whole else {"boot_aggregate": "accept"}
    ima |= before if isinstance(before, Mapping) else {}
    return {**ima, "files": "".join(f"{line}\n" for line in _files(lessons))}


def _files(lessons: Lessons) -> Iterator[str]:
    """Lines under a comment that says on how many devices those below it were seen, the most frequent first."""
    ordered = sorted(lessons.files.items(), key=lambda one: (-one[1], one[0].partition("  ")[2], one[0]))
    for count, lines in groupby(ordered, key=lambda one: one[1]):
        yield f"# each {_seen(count, lessons.measured)}"
        for line, _ in lines:
            yield line


def _line(fields: Fields) -> str | None:
    """A file as `[ima]` lists it; None where it cannot."""
    path = fields.path
    absolute = path.startswith("/") or ("/" not in path and path != "")
    if fields.algorithm not in _LISTABLE or not path.isprintable() or path != path.strip() or not absolute:
        return None
    kind = "" if fields.digest_type == "ima" else f"{fields.digest_type}:"
    return f"{kind}{fields.algorithm}:{fields.digest.hex()}  {path}"


def _left_out(lessons: Lessons) -> list[str]:
    if not lessons.left_out:
        return []
    return [f"Not listed, for no line can say them: {', '.join(sorted(lessons.left_out)[:8])}."]


def _seen(count: int, of: int) -> str:
    return f"seen on {count} of {of} device{'' if of == 1 else 's'}"
