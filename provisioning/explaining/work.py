"""The work of an explanation, on a thread: evidence is verified again, compared and judged by the policy in force."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from provisioning.attestation.ek_store import EkStore
from provisioning.attestation.endorsement import RegisteredEk
from provisioning.attestation.explanation import (
    Changed,
    Edit,
    Proposal,
    changed,
    edit_of,
    proposals,
    whole_edit,
)
from provisioning.attestation.explanation_edit import EditImpossible
from provisioning.attestation.explanation_ek import WHY, endorsement_changes
from provisioning.attestation.explanation_values import value_key
from provisioning.attestation.policy import Policy
from provisioning.attestation.rejudging import Shown, StoredEvidence, judge_again, verify_shown, verify_stored_quote
from provisioning.db.devices import Record
from provisioning.refusals import Refusal, refusal_class
from wire.codec import unb64url
from wire.messages import EnrollmentRequest

NOT_KEPT = "not kept: only a device's newest refusals of what it showed itself are"
EXPIRED = "not kept: retention removes evidence that was refused after {} days"
OF_AN_EK = frozenset({2, 3})
"""The checks that are about the EK."""
Logs = tuple[bytes | None, bytes | None]
"""Boot log and IMA log."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is explained: the record of it, the evidence if it is kept, and what the device showed before.

    `row` is a refusal's, or with `monitor` an attestation's. `releases`: PCR values that the device may show.
    """

    row: Record
    monitor: bool
    device: Record | None
    in_force: Record | None
    policy: Policy | None
    judged_by: Record | None
    evidence: Record | None
    logs: Logs
    before: Record | None
    before_logs: Logs
    releases: Mapping[int, frozenset[bytes]]
    why_none: str = NOT_KEPT
    """Why there is no evidence, where there is none."""
    removed: tuple[str, ...] = ()
    """What retention removed of the evidence, and of that which it is compared with."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What came of it. `evidence` says whether there was any to look at; `edit` is for all proposals together."""

    evidence: str
    changed: Changed | None = None
    proposals: tuple[Proposal, ...] = ()
    edit: Edit | None = None
    why_no_edit: str | None = None
    accepted_now: bool | None = None


def explained(case: Case, now: datetime, store: EkStore) -> Explained:
    """Everything that the evidence and the policy in force say. Nothing is read or written."""
    if case.evidence is None:
        return _endorsed(case, now, store) or Explained(case.why_none)
    stored = StoredEvidence(case.evidence.evidence, case.evidence.ak_public, *case.logs)
    try:
        shown, said = _shown(stored)
    except Refusal as refusal:
        return Explained(f"cannot be verified any more: {refusal.title}")
    said = "; ".join((said, *case.removed))
    before = _before(case)
    difference = None if before is None else changed(before, shown)
    if case.policy is None or case.device is None or case.in_force is None:
        return Explained(said, difference)
    found = proposals(shown, before, case.policy, case.releases)
    verdict = judge_again(stored, case.policy, case.releases)
    if verdict.outcome == "pass":
        return Explained(said, difference, why_no_edit="the policy in force accepts it", accepted_now=True)
    try:
        edit = whole_edit(case.in_force.text, found, stored, case.releases) if found else None
        why = None if edit is not None else "no value of the policy decides this"
    except EditImpossible as error:
        edit, why = None, str(error)
    return Explained(said, difference, found, edit, why, accepted_now=False)


def _endorsed(case: Case, now: datetime, store: EkStore) -> Explained | None:
    """A refusal of the EK: it is on record, so no evidence is needed. None where it was another refusal."""
    device, in_force = case.device, case.in_force
    if case.monitor or refusal_class(case.row.code).check not in OF_AN_EK or device is None or in_force is None:
        return None
    if device.ek_certificate is None and device.ek_public is None:
        return None
    request = EnrollmentRequest(
        ak_public=b"",
        pcr_banks=(),
        ek_certificate=device.ek_certificate,
        ek_public=device.ek_public if device.ek_certificate is None else None,
        ek_intermediates=tuple(unb64url(text) for text in json.loads(device.ek_intermediates)),
    )
    registered = RegisteredEk(device.ek_id, device.ek_trust, device.ek_certificate)
    said = "none: a TPM is refused before it shows anything"
    try:
        changes = endorsement_changes(in_force.text, request, registered, now, store)
        if not changes:
            return Explained(said, why_no_edit="the policy in force accepts this TPM", accepted_now=True)
        edit = edit_of(in_force.text, [change for _, change in changes])
    except (EditImpossible, Refusal) as error:
        return Explained(said, why_no_edit=str(error), accepted_now=False)
    found = tuple(
        Proposal(refusal.title, refusal.expected, refusal.actual, value_key("EK", refusal.code), (change,), WHY)
        for refusal, change in changes
    )
    return Explained(said, None, found, edit, None, accepted_now=False)


def _shown(stored: StoredEvidence) -> tuple[Shown, str]:
    """What the evidence proves: with its logs, or where one does not replay, the quote alone. Raises: Refusal."""
    try:
        return verify_shown(stored), "kept"
    except Refusal as refusal:
        pcrs = verify_stored_quote(stored)
        return Shown(pcrs, None, None), f"kept, and of its logs nothing is believed: {refusal.title}"


def _before(case: Case) -> Shown | None:
    if case.before is None:
        return None
    try:
        return verify_shown(StoredEvidence(case.before.evidence, case.before.ak_public, *case.before_logs))
    except Refusal:  # stored by an older version, or damaged: nothing to compare with
        return None
