"""Is what a device booted otherwise than before vouched for by a signature? Only then its value is offered freely.

A log's digests are the TPM's word once it replays; its types and labels are not. And whoever runs the device later can
extend a PCR further, but never take back what the firmware extended. So an event counts as signed only where all of
this holds, and as unsigned otherwise:

- Secure Boot was on, by the rule `secure_boot` (`rules_judge`), and shim's own verification was not switched off;
- a certificate vouched for an image, and PCR 7 is quoted and as the policy wants it: it says who may sign;
- the event is of PCR 4, which measures the images that the firmware started, and stands in the place of another one:
  an event more, at the end, may be the work of whoever ran by then.

Not proven: which certificate vouched for which image, and that the firmware is honest (pin PCR 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from provisioning.attestation.eventlog import Event, EventLog
from provisioning.attestation.eventtext import EV_NO_ACTION
from provisioning.attestation.eventtext_reading import MalformedData
from provisioning.attestation.eventtext_signatures import X509, signature_data
from provisioning.attestation.eventtext_variables import parts
from provisioning.attestation.explanation_diff import EventChange
from provisioning.attestation.rules import SecureBootOn
from provisioning.attestation.rules_judge import judge_rules

IMAGES_PCR = 4
AUTHORITIES_PCR = 7
_VOUCHING = frozenset({"db", "Shim", "vendor_db", "vendor_cert"})
"""The firmware's list, and what is built into shim; not MokList, into which a machine's owner writes any key."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Is it signed, and a sentence that says why, or why not."""

    signed: bool
    why: str


def judge_events(log: EventLog | None, bank: str, changes: Sequence[EventChange], *, pcr_7_accepted: bool) -> Judged:
    """Are all these events of one PCR signed, as far as a log can show? See the module for when they are.

    `log` has replayed to the quote, and `changes` are how it differs from a boot that was accepted.
    `pcr_7_accepted`: PCR 7 is quoted, and the policy takes its value.
    """
    if log is None:
        return Judged(signed=False, why="there is no boot log: nothing says what was measured")
    if not changes:
        return Judged(signed=False, why="no event differs from an accepted boot: nothing says what made the difference")
    for change in changes:
        event = change.now or change.before
        if change.pcr != IMAGES_PCR:
            return Judged(signed=False, why=f"nothing signs what PCR {change.pcr} measures")
        if change.kind != "changed":
            number = "" if event is None or event.number is None else f" {event.number}"
            why = f"event{number} of PCR {change.pcr} was {change.kind}: whoever runs the device can do that"
            return Judged(signed=False, why=why)
    if not pcr_7_accepted:
        return Judged(signed=False, why="PCR 7 is not as the policy wants it: who may sign is not known")
    if (missing := _unverified(log, bank)) is not None:
        return Judged(signed=False, why=missing)
    return Judged(signed=True, why="Secure Boot was on, and started only what a listed certificate vouched for")


def _unverified(log: EventLog, bank: str) -> str | None:
    """Why the log does not show that the firmware verified signatures; None where it does."""
    events = [event for event in log.events if event.pcr == AUTHORITIES_PCR and event.event_type != EV_NO_ACTION]
    if judge_rules((SecureBootOn(),), log, bank):
        return "the log does not show that Secure Boot was on, and stayed on"
    if not any(_is_certificate(event, bank) for event in events):
        return "no certificate vouched for an image"
    return None


def _is_certificate(event: Event, bank: str) -> bool:
    try:
        found = parts(event.measured(bank) or b"")
        entry = signature_data(found.value)
    except MalformedData:
        return False
    return found.name in _VOUCHING and entry is not None and entry["type"] == X509
