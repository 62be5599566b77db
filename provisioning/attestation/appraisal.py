"""Is what the platform booted and ran acceptable? Check 13, last part, and 17. Every mismatch is named, at once.

Appraisal stands on authentic values only (`quote`, `eventlog`): its words are then the device's own doing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from provisioning.attestation.algorithms import HASH_IDS
from provisioning.attestation.eventlog import Event, EventLog
from provisioning.attestation.eventtext import EV_NO_ACTION
from provisioning.attestation.ima import CoveredIma
from provisioning.attestation.ima_policy_judge import judge_ima
from provisioning.attestation.policy import ExpectedEvent, Policy, parse_policy
from provisioning.attestation.quote import VerifiedPcrs, verify_firmware
from provisioning.attestation.rules_judge import judge_rules
from provisioning.refusals import (
    BankRefused,
    EventRuleBroken,
    Finding,
    ImaLogMissing,
    ImaNotAccepted,
    OnlySha1Banks,
    PcrsNotAccepted,
    Refusal,
    TpmFirmwareRefused,
)
from wire.messages import PcrSelection

__all__ = ["Policy", "appraise", "parse_policy", "select_pcrs", "softened"]


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


@dataclass(frozen=True, slots=True)
class _Broken:
    """A part of the policy that does not accept what was shown: the refusal that it is, and each mismatch."""

    refusal: type[Refusal]
    expected: str
    actual: str
    findings: tuple[Finding, ...]


def appraise(
    pcrs: VerifiedPcrs,
    log: EventLog | None,
    ima: CoveredIma | None,
    policy: Policy,
    release_values: Mapping[int, frozenset[bytes]],
    *,
    device: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Does the policy accept what was booted, and run? What passed, but should be known, comes back as findings.

    `log` has replayed to `pcrs`, or is None; `ima` is what PCR 10 of `pcrs` covers, or None. `release_values` count
    for the policy's release PCRs only. `device`: the id and the serial by which an operator may have named it.

    In mode "monitor", and in mode "learn" for a device that `learn_from` names, nothing here refuses: each finding
    that would have is `refused`. A finding's `what` is `firmware`, or begins with `PCR n`, `rule NAME, PCR n` or
    `IMA`, and then may name an `event n` or an `entry n`.

    Raises: the first of TpmFirmwareRefused, PcrsNotAccepted, EventRuleBroken, ImaLogMissing, ImaNotAccepted that
    applies, with the findings of all.
    """
    judged = policy.pcrs.get(pcrs.bank, {})
    unjudged = tuple(Finding(f"PCR {pcr}", "a value in the policy", "none") for pcr in pcrs.values if pcr not in judged)
    broken = [
        part
        for part in (
            _firmware(pcrs, policy),
            _reference_values(pcrs, log, policy, release_values),
            _rules(pcrs, log, policy),
            _ima(pcrs, ima, policy),
        )
        if part is not None
    ]
    findings = tuple(finding for part in broken for finding in part.findings)
    if softened(policy, device):
        return unjudged + tuple(replace(finding, refused=True) for finding in findings)
    if broken:
        raise broken[0].refusal(expected=broken[0].expected, actual=broken[0].actual, findings=findings)
    return unjudged


def softened(policy: Policy, device: Collection[str]) -> bool:
    """Does the policy's mode only report what it would refuse of this device?"""
    learns = policy.mode == "learn" and any(name in policy.learn_from for name in device)
    return learns or policy.mode == "monitor"


def _firmware(pcrs: VerifiedPcrs, policy: Policy) -> _Broken | None:
    """(17) The TPM's firmware is new enough."""
    try:
        verify_firmware(pcrs.tpm, policy.min_tpm_firmware)
    except TpmFirmwareRefused as refusal:
        finding = Finding("firmware", refusal.expected, refusal.actual, refusal.cure)
        return _Broken(TpmFirmwareRefused, refusal.expected, refusal.actual, (finding,))
    return None


def _reference_values(
    pcrs: VerifiedPcrs, log: EventLog | None, policy: Policy, release_values: Mapping[int, frozenset[bytes]]
) -> _Broken | None:
    judged = policy.pcrs.get(pcrs.bank, {})
    findings = [Finding(f"PCR {pcr}", "to be quoted", "not quoted") for pcr in judged if pcr not in pcrs.values]
    for pcr, value in pcrs.values.items():
        accepted = judged.get(pcr)
        if accepted is None or value in accepted:
            continue
        release = pcr in policy.release_pcrs
        if release:
            accepted |= release_values.get(pcr, frozenset())
        # What rules judge needs no values; a release PCR always needs some.
        open_to_rules = not accepted and not release and pcr in policy.judged_by_rules
        if value not in accepted and not open_to_rules:
            findings.extend(_explain(pcr, value, accepted, pcrs.bank, log, policy))
    if not findings and judged:
        return None
    wrong = ", ".join(dict.fromkeys(finding.what.partition(",")[0] for finding in findings)) or "every PCR"
    return _Broken(PcrsNotAccepted, "the values of the policy", wrong, tuple(findings))


def _rules(pcrs: VerifiedPcrs, log: EventLog | None, policy: Policy) -> _Broken | None:
    """Event rules, over events of quoted PCRs alone: the log replayed to no others."""
    if not policy.rules:
        return None
    quoted = tuple(rule for rule in policy.rules if all(pcr in pcrs.values for pcr in rule.pcrs))
    findings = [
        Finding(f"rule {rule.name}, PCR {pcr}", "to be quoted", "not quoted")
        for rule in policy.rules
        for pcr in rule.pcrs
        if pcr not in pcrs.values
    ]
    if log is None:
        findings += [Finding(f"rule {rule.name}, PCR {rule.pcrs[0]}", "a boot log", "none was sent") for rule in quoted]
    else:
        findings += judge_rules(quoted, log, pcrs.bank)
    if not findings:
        return None
    names = ", ".join(dict.fromkeys(finding.what.partition(",")[0] for finding in findings))
    return _Broken(EventRuleBroken, "the rules of the policy", names, tuple(findings))


def _ima(pcrs: VerifiedPcrs, ima: CoveredIma | None, policy: Policy) -> _Broken | None:
    if policy.ima is None:
        return None
    if ima is None:
        finding = Finding("IMA", "an IMA log", "none was sent", ImaLogMissing.cure)
        return _Broken(ImaLogMissing, finding.expected, finding.actual, (finding,))
    findings = judge_ima(ima, policy.ima, pcrs)
    return _Broken(ImaNotAccepted, "the files of the policy", findings[0].actual, findings) if findings else None


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
