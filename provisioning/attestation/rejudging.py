"""Stored evidence under another policy: would it pass? The freshness was judged when it came; all else is done again.

The quote's signature, its digest over the PCR values and the replay of the logs are verified from the stored bytes:
a database that was written to says nothing by itself.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from provisioning.attestation.appraisal import appraise
from provisioning.attestation.attestation_key import verify_attestation_key
from provisioning.attestation.eventlog import EventLog, parse_event_log, verify_replay
from provisioning.attestation.ima import IMA_PCR, CoveredIma, parse_ima_log, verify_ima
from provisioning.attestation.policy import Policy
from provisioning.attestation.quote import VerifiedPcrs, verify_firmware, verify_quote
from provisioning.attestation.structures import parse_quote
from provisioning.refusals import BootLogMalformed, ImaLogMalformed, Refusal, RequestMalformed
from wire.codec import MalformedMessage, decode
from wire.messages import EVIDENCE_MOST, Attestation, Digest, Pcrs, PcrSelection

REMOVED = "removed by retention"
"""Of a log that the evidence names and that is not there: it was judged with it, so it was."""
Outcome = Literal["pass", "fail", "unjudged"]
"""`unjudged`: nothing that it shows is refused, but the policy asks for more than it shows."""


@dataclass(frozen=True, slots=True)
class StoredEvidence:
    """Evidence as it was stored: the message, the AK that it was judged with, and the logs that it named."""

    message: bytes
    ak_public: bytes
    boot_log: bytes | None
    ima_log: bytes | None


@dataclass(frozen=True, slots=True)
class Shown:
    """What stored evidence proves of a platform at the time it was given: a quote by that AK, and logs that replay.

    Not proven: when that was, and that the AK is in a genuine TPM.
    """

    pcrs: VerifiedPcrs
    log: EventLog | None
    ima: CoveredIma | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy that enforces says of stored evidence. `lacks`: what it asks for and the evidence does not show."""

    outcome: Outcome
    refusals: tuple[Refusal, ...] = ()
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Message:
    """The part of stored evidence, of whatever flow, that speaks of the platform."""

    quote: Attestation
    pcrs: Pcrs
    boot_log_sha256: Digest | None = None
    ima_log_sha256: Digest | None = None


def judge_again(
    stored: StoredEvidence,
    policy: Policy,
    release_values: Mapping[int, frozenset[bytes]],
) -> Verdict:
    """Would a policy accept this evidence, as if its mode were `enforce`? What it would refuse is named, all of it.

    Not judged: continuity (16), the key and its request (14, 15, 19), the EK (2, 3).
    """
    try:
        pcrs = verify_stored_quote(stored)
    except Refusal as refusal:
        return Verdict("fail", (refusal,))
    if pcrs.bank not in policy.banks:
        return Verdict("unjudged", lacks=(f"a quote over {' or '.join(policy.banks)}: it is over {pcrs.bank}",))
    wanted = policy.pcrs[pcrs.bank]
    values = MappingProxyType({pcr: value for pcr, value in pcrs.values.items() if pcr in wanted})
    pcrs = VerifiedPcrs(pcrs.bank, values, pcrs.tpm)
    lacks = [f"PCR {pcr} in the quote" for pcr in wanted if pcr not in values]
    try:
        log = _boot_log(stored, policy, pcrs, lacks)
        ima = _ima_log(stored, policy, pcrs, lacks)
    except Refusal as refusal:
        return Verdict("fail", (refusal,), tuple(lacks))
    judging = _judgeable(policy, pcrs, log, ima, lacks)
    try:
        if judging is None:
            verify_firmware(pcrs.tpm, policy.min_tpm_firmware)
        else:
            appraise(pcrs, log, ima, judging, release_values)
    except Refusal as refusal:
        return Verdict("fail", (refusal,), tuple(lacks))
    return Verdict("unjudged" if lacks else "pass", lacks=tuple(lacks))


def verify_stored_quote(stored: StoredEvidence) -> VerifiedPcrs:
    """(9, 10, 12) The PCR values that the stored quote covers. Its nonce was judged when it came.

    Raises: RequestMalformed, and what `verify_attestation_key` and `verify_quote` raise.
    """
    message = _message(stored)
    quote = parse_quote(message.quote.attest)
    bank = next(iter(message.pcrs), "")
    selection = PcrSelection(bank, quote.quoted.pcrs)
    ak = verify_attestation_key(stored.ak_public)
    return verify_quote(message.quote, message.pcrs, selection, ak, quote.extra_data)


def verify_shown(stored: StoredEvidence) -> Shown:
    """All that stored evidence proves of the platform, with each log that it has. Raises: Refusal."""
    pcrs = verify_stored_quote(stored)
    log = None if stored.boot_log is None else _replayed(stored, stored.boot_log, pcrs)
    ima = None if stored.ima_log is None or IMA_PCR not in pcrs.values else _covered(stored, stored.ima_log, pcrs)
    return Shown(pcrs, log, ima)


def _message(stored: StoredEvidence) -> _Message:
    try:
        return decode(_Message, stored.message, limit=EVIDENCE_MOST, ignore_unknown=True)
    except MalformedMessage as error:
        raise RequestMalformed(expected="stored evidence", actual=f"{error.where} {error.why}") from error


def _boot_log(stored: StoredEvidence, policy: Policy, pcrs: VerifiedPcrs, lacks: list[str]) -> EventLog | None:
    """(13) Raises: BootLogMalformed, BootLogDoesNotReplay."""
    if policy.boot_log == "none":
        return None
    if stored.boot_log is None:
        if policy.boot_log == "required" or policy.rules:
            lacks.append(_lacking("a boot log", _message(stored).boot_log_sha256))
        return None
    return _replayed(stored, stored.boot_log, pcrs)


def _replayed(stored: StoredEvidence, data: bytes, pcrs: VerifiedPcrs) -> EventLog:
    named = _message(stored).boot_log_sha256
    if (digest := hashlib.sha256(data).digest()) != named:
        raise BootLogMalformed(expected=named or "no log", actual=digest)
    log = parse_event_log(data)
    verify_replay(log, pcrs.bank, pcrs.values)
    return log


def _ima_log(stored: StoredEvidence, policy: Policy, pcrs: VerifiedPcrs, lacks: list[str]) -> CoveredIma | None:
    """(13) Raises: ImaLogMalformed, ImaLogDoesNotReplay."""
    if policy.ima_log == "none":
        return None
    if stored.ima_log is None:
        if policy.ima_log == "required" or policy.ima is not None:
            lacks.append(_lacking("an IMA log", _message(stored).ima_log_sha256))
        return None
    return _covered(stored, stored.ima_log, pcrs) if IMA_PCR in pcrs.values else None


def _lacking(what: str, named: bytes | None) -> str:
    return what if named is None else f"{what}: {REMOVED}"


def _covered(stored: StoredEvidence, data: bytes, pcrs: VerifiedPcrs) -> CoveredIma:
    named = _message(stored).ima_log_sha256
    if (digest := hashlib.sha256(data).digest()) != named:
        raise ImaLogMalformed(expected=named or "no log", actual=digest)
    return verify_ima(parse_ima_log(data), pcrs.bank, pcrs.values[IMA_PCR])


def _judgeable(
    policy: Policy, pcrs: VerifiedPcrs, log: EventLog | None, ima: CoveredIma | None, lacks: list[str]
) -> Policy | None:
    """The part of the policy that this evidence can be held against, enforced; None where there is no PCR for it."""
    enforced = replace(
        policy,
        mode="enforce",
        rules=tuple(rule for rule in policy.rules if log is not None and set(rule.pcrs) <= set(pcrs.values)),
        ima=policy.ima if ima is not None else None,
        ima_log=policy.ima_log if ima is not None else "none",
    )
    open_to = policy.judged_by_rules | policy.release_pcrs
    lacks.extend(f"values of PCR {pcr} in the policy" for pcr in pcrs.values if _learned(policy, pcrs, pcr, open_to))
    judged_by = enforced.judged_by_rules | policy.release_pcrs
    wanted = {
        pcr: accepted
        for pcr, accepted in policy.pcrs[pcrs.bank].items()
        if pcr in pcrs.values and (accepted or pcr in judged_by)
    }
    banks = MappingProxyType({pcrs.bank: MappingProxyType(wanted)})
    return replace(enforced, pcrs=banks) if wanted else None


def _learned(policy: Policy, pcrs: VerifiedPcrs, pcr: int, open_to: frozenset[int]) -> bool:
    """Does the policy still learn what this PCR may be?"""
    return not policy.pcrs[pcrs.bank][pcr] and pcr not in open_to
