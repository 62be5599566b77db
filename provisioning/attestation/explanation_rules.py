"""Broken event rules explained: for each event that breaks one, the line of the policy that would accept it."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from provisioning.attestation.eventlog import Event, EventLog
from provisioning.attestation.eventtext_reading import MalformedData
from provisioning.attestation.eventtext_variables import parts
from provisioning.attestation.explanation_diff import EventChange
from provisioning.attestation.explanation_edit import Add, Change, Drop
from provisioning.attestation.explanation_signed import IMAGES_PCR, Judged
from provisioning.attestation.explanation_values import value_key
from provisioning.attestation.policy import Policy
from provisioning.attestation.rules import (
    BootLoadersListed,
    CommandLineMatches,
    EventRule,
    SecureBootOn,
    SignersListed,
)
from provisioning.attestation.rules_judge import judge_rules
from provisioning.refusals import Finding

_EVENT = re.compile(r", event (\d+)$")
_OWNER_BYTES = 16
_DER_SEQUENCE = b"\x30\x82"
_SHA256_BYTES = 32
_STARTS = frozenset(
    {"linux", "linux16", "linuxefi", "multiboot", "multiboot2", "module", "module2", "xen_hypervisor", "xen_module"}
)
"""Commands of GRUB that hand a command line over: it stands behind them (`rules_lines`)."""

Broken = tuple[Finding, tuple[Change, ...], tuple[Event, ...]]
"""A finding of a rule, what would accept it, and the event that it is about."""


def broken_rules(policy: Policy, log: EventLog, bank: str, quoted: Mapping[int, bytes]) -> list[Broken]:
    """Every finding of the policy's rules, with its edit; no changes where only a person can write it."""
    found: list[Broken] = []
    for rule in policy.rules:
        if not set(rule.pcrs) <= quoted.keys():
            continue
        for finding in judge_rules((rule,), log, bank):
            event = _event(finding, log)
            found.append((finding, _changes(rule, policy, event, bank, quoted), () if event is None else (event,)))
    return found


def _event(finding: Finding, log: EventLog) -> Event | None:
    named = _EVENT.search(finding.what)
    return None if named is None else log.events[int(named[1])]


def _changes(
    rule: EventRule, policy: Policy, event: Event | None, bank: str, quoted: Mapping[int, bytes]
) -> tuple[Change, ...]:
    match rule:
        case SecureBootOn():
            return _without_secure_boot(policy, bank, quoted)
        case SignersListed():
            fingerprint = None if event is None else _authority(event, bank)
            return () if fingerprint is None else (Add(("rules", "signers", "sha256"), fingerprint.hex()),)
        case BootLoadersListed():
            digest = None if event is None else event.digests[bank].hex()
            return () if digest is None else (Add(("rules", "boot_loaders", "digests"), digest),)
    form = None if event is None else _form(rule, event, bank)
    return () if form is None else (Add(("rules", "command_line"), form),)


def _without_secure_boot(policy: Policy, bank: str, quoted: Mapping[int, bytes]) -> tuple[Change, ...]:
    """Nothing less accepts it: without the rule, and without the signers that need it. What else judges PCR 7?"""
    changes: list[Change] = [Drop(("rules", "secure_boot"))]
    if any(isinstance(rule, SignersListed) for rule in policy.rules):
        changes.append(Drop(("rules", "signers")))
    kept = tuple(rule for rule in policy.rules if not isinstance(rule, SecureBootOn | SignersListed))
    judged = replace(policy, rules=kept).judged_by_rules
    alone = [pcr for pcr in SecureBootOn.pcrs if not policy.pcrs[bank].get(pcr) and pcr not in judged]
    return (*changes, *(Add(("pcrs", bank, str(pcr)), quoted[pcr].hex()) for pcr in alone))


def _authority(event: Event, bank: str) -> bytes | None:
    """What vouched for an image: the fingerprint of a certificate, or an image's hash."""
    data = event.measured(bank)
    try:
        value = b"" if data is None else parts(data).value
    except MalformedData:
        return None
    for certificate in (value, value[_OWNER_BYTES:]):
        if certificate.startswith(_DER_SEQUENCE):
            return hashlib.sha256(certificate).digest()
    digest = value[_OWNER_BYTES:]
    return digest if len(digest) == _SHA256_BYTES else None


def _form(rule: CommandLineMatches, event: Event, bank: str) -> dict[str, str | int | Sequence[str]] | None:
    """A form that takes exactly these words. None where a form would take more, or cannot be written."""
    data = event.measured(bank)
    if data is None:
        return None
    try:
        text = data.decode("utf-16-le" if rule.kind == "stub" else "utf-8").removesuffix("\0")
    except UnicodeDecodeError:
        return None
    words = [word for word in text.split(" ") if word]
    if rule.kind == "grub" and words and words[0] in _STARTS:
        words = words[1:]
    if any("*" in word for word in words):
        return None
    form: dict[str, str | int | Sequence[str]] = {"by": rule.kind, "pcr": rule.pcr}
    if rule.kind == "grub":
        if not words:
            return None
        form["kernel"], words = words[0], words[1:]
    return form | {"required": list(dict.fromkeys(words))} if words else None


def judged_rule(event: Sequence[Event], judge: Callable[[int], Judged]) -> Judged:
    """Is what broke a rule signed? Only an image in PCR 4 can be, `judge` says by the number of the event."""
    if not event:
        return Judged(signed=False, why="something is missing in the log: nothing can sign that")
    if event[0].pcr != IMAGES_PCR:
        return Judged(signed=False, why=f"nothing signs what PCR {event[0].pcr} measures")
    return judge(event[0].number)


def change_of(changes: Sequence[EventChange], number: int) -> tuple[EventChange, ...]:
    """How the event of that number differs from the boot that was accepted."""
    return tuple(change for change in changes if change.now is not None and change.now.number == number)


def finding_key(finding: Finding) -> bytes:
    """The hash of what a finding is about, as it was counted when it was recorded."""
    return value_key(finding.what, finding.actual)
