"""Why evidence is not accepted, and the smallest edit of the policy that would accept it: text, applied by nobody.

Each `Proposal` is one thing that the policy does not accept, with the edit for it alone and whether what was measured
is signed. Which of them are shown is decided by `withheld`. All edits together make the policy accept exactly this
evidence: `whole_edit` judges it again before it says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provisioning.attestation.explanation_diff import (
    EventChange,
    FileChange,
    PcrChange,
    differences,
    event_changes,
    expected,
    file_changes,
    measurements,
    pcr_changes,
)
from provisioning.attestation.explanation_edit import (
    Add,
    Change,
    Drop,
    EditImpossible,
    Hexadecimal,
    Put,
    added_lines,
    difference,
    edited,
)
from provisioning.attestation.explanation_ima import unaccepted
from provisioning.attestation.explanation_rules import Broken, broken_rules, change_of, finding_key, judged_rule
from provisioning.attestation.explanation_signed import (
    AUTHORITIES_PCR,
    IMAGES_PCR,
    Judged,
    judge_events,
)
from provisioning.attestation.explanation_values import firmware_key, pcr_key
from provisioning.attestation.policy import Policy, parse_policy
from provisioning.attestation.rejudging import Shown, StoredEvidence, judge_again
from provisioning.refusals import PolicyMalformed

PROPOSALS_MOST = 256
"""Edits of one explanation, at most: a device whose every file is unknown is explained by its first ones."""
SECOND_PERSON = "An edit is put into force by another person than the one who proposes it (muster policy promote)."


@dataclass(frozen=True, slots=True)
class Proposal:
    """One thing that the policy does not accept. `value`: its hash, by which devices that show the same are counted.

    `what`: as the finding about it names it. `changes`: what would accept it; empty where only a person can say.
    """

    what: str
    expected: str
    actual: str
    value: bytes
    changes: tuple[Change, ...]
    judged: Judged
    events: tuple[EventChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """What is different since the device last passed."""

    pcrs: tuple[PcrChange, ...]
    events: tuple[EventChange, ...]
    files: tuple[FileChange, ...]
    firmware: tuple[int, int] | None

    def __bool__(self) -> bool:
        """Did anything change?"""
        return bool(self.pcrs or self.events or self.files or self.firmware)


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit as text: the lines that are new, and the difference as `diff -u` writes it."""

    lines: tuple[str, ...]
    diff: str


def changed(before: Shown, now: Shown) -> Changed:
    """How two evidences of one device differ. Values of another bank are not compared."""
    same_bank = before.pcrs.bank == now.pcrs.bank
    pcrs = pcr_changes(before.pcrs.values, now.pcrs.values) if same_bank else ()
    events: tuple[EventChange, ...] = ()
    if before.log is not None and now.log is not None and same_bank:
        both = before.pcrs.values.keys() & now.pcrs.values.keys()
        events = event_changes(before.log, now.log, now.pcrs.bank, both)
    files = () if before.ima is None or now.ima is None else file_changes(before.ima, now.ima)
    versions = (before.pcrs.tpm.firmware_version, now.pcrs.tpm.firmware_version)
    return Changed(pcrs, events, files, None if versions[0] == versions[1] else versions)


def proposals(
    shown: Shown, before: Shown | None, policy: Policy, release_values: Mapping[int, frozenset[bytes]]
) -> tuple[Proposal, ...]:
    """Everything of this evidence that the policy does not accept, each with its edit; the first `PROPOSALS_MOST`."""
    wrong = wrong_pcrs(shown, policy, release_values)
    broken = [] if shown.log is None else broken_rules(policy, shown.log, shown.pcrs.bank, shown.pcrs.values)
    state = _State(shown, before, policy, wrong, broken)
    found = [*_firmware(shown, policy), *_pcrs(state), *_rules(state), *_files(state)]
    return tuple(found[:PROPOSALS_MOST])


@dataclass(frozen=True, slots=True)
class _State:
    """One evidence with all that its policy does not accept. `before`: the evidence that passed last."""

    shown: Shown
    before: Shown | None
    policy: Policy
    wrong: Mapping[int, frozenset[bytes]]
    broken: Sequence[Broken]

    @property
    def pcr_7_accepted(self) -> bool:
        """Is PCR 7 quoted, judged, and as the policy wants it?"""
        judged = AUTHORITIES_PCR in self.policy.pcrs.get(self.shown.pcrs.bank, {})
        broken = any(event.pcr == AUTHORITIES_PCR for _, _, events in self.broken for event in events)
        quoted = AUTHORITIES_PCR in self.shown.pcrs.values
        return quoted and judged and AUTHORITIES_PCR not in self.wrong and not broken and not self._unplaced

    @property
    def _unplaced(self) -> bool:
        """Does a rule miss something in a log? Then it says nothing of who may sign."""
        return any(not events for _, _, events in self.broken)

    def events(self, pcr: int) -> tuple[EventChange, ...]:
        """How the events of a PCR differ from the boot that passed last, else from those that the policy lists."""
        return pcr_events(self.shown, self.before, self.policy, pcr)

    def judge(self, events: Sequence[EventChange]) -> Judged:
        """Are these events signed?"""
        bank = self.shown.pcrs.bank
        return judge_events(self.shown.log, bank, events, pcr_7_accepted=self.pcr_7_accepted)


def _firmware(shown: Shown, policy: Policy) -> list[Proposal]:
    version = shown.pcrs.tpm.firmware_version
    if version >= policy.min_tpm_firmware:
        return []
    judged = Judged(signed=True, why="the TPM itself says so, in a quote by a key of its endorsement hierarchy")
    change = Put(("min_tpm_firmware",), Hexadecimal(version))
    at_least = f"at least {policy.min_tpm_firmware:#x}"
    return [Proposal("firmware", at_least, f"{version:#x}", firmware_key(version), (change,), judged)]


def _pcrs(state: _State) -> list[Proposal]:
    bank, found = state.shown.pcrs.bank, []
    for pcr, accepted in state.wrong.items():
        value = state.shown.pcrs.values[pcr]
        events = state.events(pcr)
        change = Add(("pcrs", bank, str(pcr)), value.hex())
        meant = " or ".join(sorted(digest.hex() for digest in accepted)) or "a value of an assigned release"
        key = pcr_key(pcr, value)
        found.append(Proposal(f"PCR {pcr}", meant, value.hex(), key, (change,), state.judge(events), events))
    return found


def _rules(state: _State) -> list[Proposal]:
    found = []
    images = state.events(IMAGES_PCR) if IMAGES_PCR in state.shown.pcrs.values else ()
    for finding, changes, events in state.broken:
        judged = judged_rule(events, lambda number: state.judge(change_of(images, number)))
        key = finding_key(finding)
        found.append(Proposal(finding.what, finding.expected, finding.actual, key, changes, judged))
    return found


def _files(state: _State) -> list[Proposal]:
    """What IMA's part of the policy does not accept."""
    if state.policy.ima is None or state.shown.ima is None:
        return []
    found = []
    for one in unaccepted(state.shown.ima, state.policy.ima, state.shown.pcrs):
        finding, key = one.finding, finding_key(one.finding)
        found.append(Proposal(finding.what, finding.expected, finding.actual, key, one.changes, one.judged))
    return found


def wrong_pcrs(
    shown: Shown, policy: Policy, release_values: Mapping[int, frozenset[bytes]]
) -> dict[int, frozenset[bytes]]:
    """The quoted PCRs with none of their accepted values, which are told. PCRs that rules judge alone have none."""
    wrong = {}
    judged = policy.pcrs.get(shown.pcrs.bank, {})
    by_rules = policy.judged_by_rules - policy.release_pcrs
    for pcr, value in shown.pcrs.values.items():
        released = release_values.get(pcr, frozenset()) if pcr in policy.release_pcrs else frozenset()
        accepted = judged.get(pcr, frozenset()) | released
        if pcr in judged and value not in accepted and (accepted or pcr not in by_rules):
            wrong[pcr] = accepted
    return wrong


def pcr_events(shown: Shown, before: Shown | None, policy: Policy, pcr: int) -> tuple[EventChange, ...]:
    """How the events of a PCR differ from the boot that passed last, else from those that the policy lists."""
    if shown.log is None:
        return ()
    bank = shown.pcrs.bank
    known = expected(policy.events, pcr, len(shown.pcrs.values[pcr]))
    if before is not None and before.log is not None and bank in before.log.banks and pcr in before.pcrs.values:
        known = measurements(before.log, bank, pcr)
    return tuple(differences(pcr, known, measurements(shown.log, bank, pcr)))


def withheld(proposal: Proposal, devices: int, least: int) -> str | None:
    """Why the edit is not shown unless it is asked for all the same; None where it is shown.

    `devices`: how many devices of the model show the same value, this one included.
    """
    if not proposal.judged.signed:
        return f"unsigned: {proposal.judged.why}"
    if devices < least:
        return f"seen on {devices} of at least {least} devices"
    return None


def together(found: Sequence[Proposal]) -> list[Change]:
    """The changes of all proposals, each once, and none inside of what another one drops.

    Raises: EditImpossible, where one of them has none.
    """
    changes: list[Change] = []
    for proposal in found:
        if not proposal.changes:
            raise EditImpossible(f"{proposal.what}: only a person can write what would accept it")
        changes.extend(change for change in proposal.changes if change not in changes)
    dropped = [change.path for change in changes if isinstance(change, Drop)]
    inside = [one for one in changes if not isinstance(one, Drop) and any(one.path[: len(p)] == p for p in dropped)]
    return [change for change in changes if change not in inside]


def edit_of(text: str, changes: Sequence[Change]) -> Edit:
    """These changes as an edit of the policy's text, which stays a policy. Raises: EditImpossible."""
    new = edited(text, changes)
    _parsed(new)
    return Edit(added_lines(text, new), difference(text, new))


def whole_edit(
    text: str,
    found: Sequence[Proposal],
    stored: StoredEvidence,
    release_values: Mapping[int, frozenset[bytes]],
) -> Edit:
    """All edits together, judged: the policy as edited accepts this evidence. Raises: EditImpossible."""
    new = edited(text, together(found))
    if judge_again(stored, _parsed(new), release_values).outcome != "pass":
        raise EditImpossible("no edit of single values makes the policy accept it")
    return Edit(added_lines(text, new), difference(text, new))


def _parsed(text: str) -> Policy:
    try:
        return parse_policy(text)
    except PolicyMalformed as error:
        raise EditImpossible(f"the edited text would be no policy: {error.actual}") from error
