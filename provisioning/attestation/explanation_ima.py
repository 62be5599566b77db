"""Files that a policy does not accept, explained: for each of them the line that would."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from provisioning.attestation.algorithms import HASH_IDS
from provisioning.attestation.explanation_edit import Change, Line, Put
from provisioning.attestation.explanation_signed import Judged
from provisioning.attestation.ima import CoveredIma, ImaEntry
from provisioning.attestation.ima_fields import Fields, fields_of
from provisioning.attestation.ima_policy import FileDigest, ImaPolicy
from provisioning.attestation.ima_policy_judge import AGGREGATE, judge_ima
from provisioning.attestation.quote import VerifiedPcrs
from provisioning.refusals import Finding, ImaLogMalformed

ROUNDS_MOST = 8
"""How often is judged again with what was found: the judge names some files at a time."""
_AND_MORE = "no more"
"""The judge's last word where it names no more of them."""
_ENTRY = re.compile(r"^IMA, entry (\d+)$")


@dataclass(frozen=True, slots=True)
class Unaccepted:
    """A finding about an IMA log and what would accept it: nothing where only a person can say."""

    finding: Finding
    changes: tuple[Change, ...]
    judged: Judged


def unaccepted(covered: CoveredIma, policy: ImaPolicy, pcrs: VerifiedPcrs) -> list[Unaccepted]:
    """What the policy does not accept of this log."""
    found: dict[tuple[str, str], Unaccepted] = {}
    entries = {entry.number: entry for entry in covered.entries}
    for _ in range(ROUNDS_MOST):
        accepted: dict[FileDigest, frozenset[str] | None] = dict(policy.files)
        for finding in judge_ima(covered, policy, pcrs):
            if finding.expected == _AND_MORE:
                continue
            one = _explained(finding, entries)
            found.setdefault((finding.what, finding.actual), one)
            _accept(accepted, finding, entries)
        if accepted == dict(policy.files):
            break
        policy = replace(policy, files=MappingProxyType(accepted))
    return list(found.values())


def _explained(finding: Finding, entries: Mapping[int, ImaEntry]) -> Unaccepted:
    entry = _entry(finding, entries)
    if entry is None:
        sha1 = finding.actual == "SHA-1 and zeros"
        change = (Put(("ima", "sha1_template"), "accept"),) if sha1 else ()
        return Unaccepted(finding, change, Judged(signed=False, why="nothing signs how the kernel measures"))
    if entry.violation:
        why = "the file changed while it was measured: nobody knows what it was"
        change = (Put(("ima", "violations"), "accept"),) if entry.number else ()
        return Unaccepted(finding, change, Judged(signed=False, why=why))
    fields = _fields(entry)
    if fields is not None and entry.number == min(entries, default=0):
        change = (Put(("ima", "boot_aggregate"), "accept"),) if fields.path == AGGREGATE else ()
        return Unaccepted(finding, change, Judged(signed=False, why=f"nothing signs the {AGGREGATE}"))
    line = None if fields is None else _line(fields)
    why = "nothing signs this file"
    if fields is not None and fields.signature:
        why = "the file's signature is none of the policy's keys"
    return Unaccepted(finding, () if line is None else (Line(("ima", "files"), line),), Judged(signed=False, why=why))


def _accept(
    accepted: dict[FileDigest, frozenset[str] | None], finding: Finding, entries: Mapping[int, ImaEntry]
) -> None:
    """The file of a finding as if the policy listed it."""
    entry = _entry(finding, entries)
    fields = None if entry is None or entry.violation else _fields(entry)
    if fields is None or fields.path == AGGREGATE:
        return
    digest = FileDigest(fields.digest_type, fields.algorithm, fields.digest)
    accepted[digest] = (accepted.get(digest) or frozenset()) | {fields.path}


def _line(fields: Fields) -> str | None:
    """The file as the policy lists it. None where its path, or its digest, cannot be written there.

    A path is the device's word: one that holds a line break would be two lines.
    """
    path = fields.path
    if fields.algorithm not in HASH_IDS or not path or not path.isprintable() or path != path.strip():
        return None
    if "/" in path and not path.startswith("/"):
        return None
    kind = "" if fields.digest_type == "ima" else f"{fields.digest_type}:"
    return f"{kind}{fields.algorithm}:{fields.digest.hex()}  {path}"


def _entry(finding: Finding, entries: Mapping[int, ImaEntry]) -> ImaEntry | None:
    named = _ENTRY.match(finding.what)
    return None if named is None else entries.get(int(named[1]))


def _fields(entry: ImaEntry) -> Fields | None:
    try:
        return fields_of(entry)
    except ImaLogMalformed:
        return None
