"""Is what the platform booted acceptable? Check 13, last part: reference values. Every mismatch is named, at once.

Appraisal stands on authentic values only (`quote`, `eventlog`): its words are then the device's own doing.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest

from provisioning.attestation.algorithms import HASH_IDS
from provisioning.attestation.eventlog import Event, EventLog
from provisioning.attestation.eventtext import EV_NO_ACTION
from provisioning.attestation.ima import CoveredIma
from provisioning.attestation.policy import ExpectedEvent, Policy, parse_policy
from provisioning.attestation.quote import VerifiedPcrs
from provisioning.refusals import BankRefused, Finding, OnlySha1Banks, PcrsNotAccepted
from wire.messages import PcrSelection

__all__ = ["Policy", "appraise", "parse_policy", "select_pcrs"]


def select_pcrs(policy: Policy, offered: Sequence[str]) -> PcrSelection:
    """What the quote must cover: the policy's first bank that the TPM has, and all PCRs that the policy judges in it.

    Check 1: the device offers, the policy's order decides. Raises: OnlySha1Banks, BankRefused.
    """
    if "sha1" in offered and not any(bank in HASH_IDS for bank in offered):
        raise OnlySha1Banks(expected="a SHA-256 bank, or stronger", actual=", ".join(offered))
    for bank in policy.banks:
        if bank in offered:
            return PcrSelection(bank, tuple(policy.pcrs[bank]))
    raise BankRefused(expected=", ".join(policy.banks), actual=", ".join(offered) or "none")


def appraise(
    pcrs: VerifiedPcrs,
    log: EventLog | None,
    ima: CoveredIma | None,
    policy: Policy,
    release_values: Mapping[int, frozenset[bytes]],
    *,
    device: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Does the policy accept every PCR that it judges? What passed, but should be known, comes back as findings.

    `log` has replayed to `pcrs`, or is None. `release_values` count for the policy's release PCRs only.

    Raises: PcrsNotAccepted, with one finding for each PCR and one for the first event in which it went another way.
    """
    judged = policy.pcrs.get(pcrs.bank, {})
    unjudged = tuple(Finding(f"PCR {pcr}", "a value in the policy", "none") for pcr in pcrs.values if pcr not in judged)
    missing = tuple(Finding(f"PCR {pcr}", "to be quoted", "not quoted") for pcr in judged if pcr not in pcrs.values)
    findings = list(missing)
    for pcr, value in pcrs.values.items():
        released = release_values.get(pcr, frozenset()) if pcr in policy.release_pcrs else frozenset()
        accepted = judged.get(pcr, frozenset()) | released
        if pcr in judged and value not in accepted:
            findings.extend(_explain(pcr, value, accepted, pcrs.bank, log, policy))
    if findings or not judged:
        wrong = ", ".join(dict.fromkeys(finding.what.partition(",")[0] for finding in findings)) or "every PCR"
        raise PcrsNotAccepted(expected="the values of the policy", actual=wrong, findings=tuple(findings))
    return unjudged


def _explain(
    pcr: int, value: bytes, accepted: frozenset[bytes], bank: str, log: EventLog | None, policy: Policy
) -> list[Finding]:
    expected = " or ".join(sorted(digest.hex() for digest in accepted)) or "a value of an assigned release"
    cure = f'Boot what the policy names; or, if this boot is meant, add "{value.hex()}" to "{pcr}" of [pcrs.{bank}].'
    findings = [Finding(f"PCR {pcr}", expected, value.hex(), cure)]
    if log is not None:
        measured = [e for e in log.events if e.pcr == pcr and e.event_type != EV_NO_ACTION]
        size = len(value)
        findings.extend(
            _first_deviation(pcr, bank, measured, [e for e in policy.events if e.pcr == pcr and len(e.digest) == size])
        )
    return findings


def _first_deviation(pcr: int, bank: str, measured: list[Event], expected: list[ExpectedEvent]) -> list[Finding]:
    """The first event that is not the one that the policy expects there; nothing where the policy lists none."""
    if not expected:
        return []
    for number, (event, wanted) in enumerate(zip_longest(measured, expected)):
        if event is not None and wanted is not None and event.digests[bank] == wanted.digest:
            continue
        where = f"event {event.number}" if event is not None else f"its event {number}"
        shown = f"{event.digests[bank].hex()} {event.text}" if event is not None else "the log ends"
        meant = f"{wanted.digest.hex()} {wanted.description}".rstrip() if wanted is not None else "no further event"
        return [Finding(f"PCR {pcr}, {where}", meant, shown)]
    return []
