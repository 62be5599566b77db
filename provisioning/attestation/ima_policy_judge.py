"""Does IMA's part of the policy accept every file that a device measured? Check 13, behind the replay to PCR 10.

Judged are the entries that the quoted PCR 10 covers (`ima.verify_ima`); what stands behind them in the log was not
quoted, and the next attestation covers it. An entry's data is all measured: path, digest, signature.
"""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice

from provisioning.attestation.eventtext_reading import printable
from provisioning.attestation.ima import IMA_PCR, CoveredIma, ImaEntry
from provisioning.attestation.ima_fields import Fields, fields_of
from provisioning.attestation.ima_policy import FileDigest, ImaPolicy
from provisioning.attestation.ima_policy_signatures import why_not_signed
from provisioning.attestation.quote import VerifiedPcrs
from provisioning.refusals import Finding, ImaLogMalformed

FINDINGS_MOST = 32
"""Named of one log. What follows is not judged any more: it would change nothing."""
AGGREGATE = "boot_aggregate"
AGGREGATED = (range(10), range(8))
"""PCRs of the boot aggregate: since Linux 5.8, and before (ima_crypto.c, ima_calc_boot_aggregate_tfm)."""
_PATH_SHOWN = 256


def judge_ima(covered: CoveredIma, policy: ImaPolicy, pcrs: VerifiedPcrs) -> tuple[Finding, ...]:
    """What the policy does not accept; nothing where it accepts all.

    Not proven: that the kernel's own IMA policy measures what it should, that a path names the file that it names on
    another device, and what runs without being a file (scripts that are typed, memory).
    """
    found = list(islice(_wrong(covered, policy, pcrs), FINDINGS_MOST + 1))
    if len(found) > FINDINGS_MOST:
        found[FINDINGS_MOST:] = [Finding("IMA", "no more", "more than are named here")]
    return tuple(found)


def _wrong(covered: CoveredIma, policy: ImaPolicy, pcrs: VerifiedPcrs) -> Iterator[Finding]:
    entries = [entry for entry in covered.entries if entry.pcr == IMA_PCR]
    if not entries:
        yield Finding(
            "IMA", "measured files", "none: IMA is off", "Start the kernel with an IMA policy: ima_policy=tcb."
        )
        return
    if covered.extension == "padded-sha1" and policy.sha1_template == "refuse":
        cure = 'Linux 5.8 and later extend each bank by its own hash; or set sha1_template = "accept" in [ima].'
        yield Finding("IMA", f"entries hashed with {pcrs.bank}", "SHA-1 and zeros", cure)
    yield from _first(entries[0], policy, pcrs)
    accepted = set[bytes]()
    for entry in entries[1:]:
        if entry.violation:
            if policy.violations == "refuse":
                yield Finding(_place(entry), "a file that was measured", "a violation: it changed meanwhile")
        elif entry.data not in accepted:
            why = _why_not(entry, policy, entries[0])
            if why is None:
                accepted.add(entry.data)
            else:
                yield why


def _first(entry: ImaEntry, policy: ImaPolicy, pcrs: VerifiedPcrs) -> Iterator[Finding]:
    """The kernel's first entry is the boot aggregate: the hash of what was booted, as quoted."""
    fields = _fields(entry)
    if entry.violation or fields is None or fields.path != AGGREGATE:
        yield Finding(_place(entry), f"{AGGREGATE}, which the kernel measures first", "another entry")
    elif policy.boot_aggregate == "check":
        accepted = _aggregates(pcrs)
        if (fields.algorithm, fields.digest) not in accepted:
            expected = (
                " or ".join(sorted({f"{name}:{value.hex()}" for name, value in accepted})) or "quoted PCRs 0 to 9"
            )
            yield Finding(_place(entry), expected, f"{fields.algorithm}:{fields.digest.hex()[:128]} as {AGGREGATE}")


def _aggregates(pcrs: VerifiedPcrs) -> set[tuple[str, bytes]]:
    """What the quoted PCRs aggregate to: nothing where one of them is not quoted."""
    return {
        (pcrs.bank, hashlib.new(pcrs.bank, b"".join(pcrs.values[pcr] for pcr in which)).digest())
        for which in AGGREGATED
        if all(pcr in pcrs.values for pcr in which)
    }


def _why_not(entry: ImaEntry, policy: ImaPolicy, first: ImaEntry) -> Finding | None:
    """The finding of an entry that nothing accepts."""
    fields = _fields(entry)
    if fields is None:
        return Finding(
            _place(entry), "data of a known template", f"{printable(entry.template)}: {len(entry.data)} bytes"
        )
    digest = FileDigest(fields.digest_type, fields.algorithm, fields.digest)
    again = fields.path == AGGREGATE and entry.data == first.data  # a kernel that kexec started measures it again
    if again or _listed(policy.files, digest, fields.path) or any(excludes(p, fields.path) for p in policy.excludes):
        return None
    unsigned = why_not_signed(policy.keys, digest, fields.signature) if fields.signature else "no signature"
    if unsigned is None:
        return None
    shown = (
        f"{fields.algorithm}:{fields.digest.hex()}"
        if digest.kind == "ima"
        else ":".join((*digest[:2], digest.value.hex()))
    )
    path = printable(fields.path)[:_PATH_SHOWN]
    cure = f'Add "{shown}  {path}" to files of [ima], if this file is meant.'
    return Finding(_place(entry), "a listed or a signed file", f"{path} {shown}, {unsigned}", cure)


def _listed(files: Mapping[FileDigest, frozenset[str] | None], digest: FileDigest, path: str) -> bool:
    paths = files.get(digest, frozenset())
    return paths is None or path in paths


def excludes(pattern: str, path: str) -> bool:
    """Is the whole path what the pattern says? One `*` at most: no backtracking."""
    before, star, behind = pattern.partition("*")
    if not star:
        return path == pattern
    return len(path) >= len(before) + len(behind) and path.startswith(before) and path.endswith(behind)


def _fields(entry: ImaEntry) -> Fields | None:
    try:
        return fields_of(entry)
    except ImaLogMalformed:
        return None


def _place(entry: ImaEntry) -> str:
    return f"IMA, entry {entry.number}"
