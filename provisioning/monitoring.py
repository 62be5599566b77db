"""What deserves a person's look: rules about one device over time. Pure; `findings` writes down what they say.

Two rules hold for all of them. Only what a device has proven to be its own speaks about it: a stranger who knows an EK
certificate or replays a message opens no finding. And nothing here rests on addresses: a device that moves, restarts
or loses its line is none.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from provisioning.refusals import (
    ActivationProofWrong,
    AttestationKeyTaken,
    Refusal,
    SerialHasAnotherTpm,
    SignatureWrong,
    TpmWentBack,
)


class Kind(StrEnum):
    """What a finding is about."""

    EK_TWICE = "ek-twice"
    """One TPM under two serials."""
    AK_TWICE = "ak-twice"
    """One attestation key in two devices' records."""
    ROLLBACK = "rollback"
    """The TPM's clock or counters went back."""
    TWO_SESSIONS = "two-sessions"
    """Two agents live at once with one device's key."""
    CLONED_STATE = "cloned-state"
    """A device's state, or its key, in use with another TPM."""
    SILENT = "silent"
    """It was asked to attest, again and again, and did not."""
    MONITOR = "monitor"
    """What the policy would have refused, had it been in force."""


CLONES = frozenset({Kind.EK_TWICE, Kind.AK_TWICE, Kind.ROLLBACK, Kind.TWO_SESSIONS, Kind.CLONED_STATE})
"""The kinds that a policy's `on_clone` is about."""

DISPLACED_MOST = 8
"""Sessions of a device that are remembered after another one took their place."""
AUTHENTICATED_FLOWS = frozenset({"rotate", "attest"})
"""Flows whose messages the device's key in force signed."""


def suspicion(refusal: Refusal, flow: str) -> Kind | None:
    """What a refusal of evidence that is the device's *own* says beyond itself.

    The caller knows that it is: the activation proof was right, or the device's key in force signed it.
    """
    match refusal:
        case TpmWentBack():
            return Kind.ROLLBACK
        case AttestationKeyTaken():
            return Kind.AK_TWICE
        case SerialHasAnotherTpm():
            return Kind.EK_TWICE
        case ActivationProofWrong() | SignatureWrong() if flow in AUTHENTICATED_FLOWS:
            # Who has the device's key cannot use the EK or the AK of its TPM.
            return Kind.CLONED_STATE
    return None


# --- sessions -----------------------------------------------------------------------------------------------------


class Standing(StrEnum):
    """What a hello is, beside what was heard before."""

    CONTINUES = "continues"
    """The current session, later: after a reconnect, or because it reports something new."""
    BEGINS = "begins"
    """A new session with a higher number than every one before: a restart."""
    RESUMES = "resumes"
    """A session that was not known and has a low number, and proved to be alive: an agent that lost its state."""
    RETURNS = "returns"
    """A session that another one had displaced, and that proved to be alive after it: two agents."""
    FORKED = "forked"
    """The current session said two different things under one sequence: two agents with one memory."""
    QUESTIONED = "questioned"
    """A session that is not the current one. It may be a message that came late, or was replayed: ask it."""
    LATE = "late"
    """An old message of the current session."""


ACCEPTED = frozenset({Standing.CONTINUES, Standing.BEGINS, Standing.RESUMES, Standing.RETURNS})
TWO_AGENTS = frozenset({Standing.RETURNS, Standing.FORKED})


@dataclass(frozen=True, slots=True)
class Said:
    """What an authentic hello says of its session. `last_sequence` is the highest command that was accepted in it."""

    session: str
    number: int
    sequence: int
    last_sequence: int
    message_id: str


@dataclass(frozen=True, slots=True)
class Current:
    """The session that the service speaks to. `number` is the highest of any session of this device."""

    session: str
    number: int
    up_sequence: int
    hello_id: str | None
    hello_sequence: int | None


@dataclass(frozen=True, slots=True)
class Trace:
    """What is known of a device's other sessions: those displaced, and the one that was asked whether it lives."""

    displaced: tuple[str, ...] = ()
    probe_session: str | None = None
    probe_sequence: int = 0
    probed_at: int = 0


def standing_of(said: Said, current: Current | None, trace: Trace) -> Standing:
    """What this hello is.

    A hello of another session than the current one proves nothing by itself: brokers deliver late, and may replay. But
    who reports the sequence of a command that was made after that session was displaced, and for it alone, is alive.
    An agent that ended never answers; so a displaced session that does answer means two agents.

    Not proven: which of the two is the device. Not detected: a copy that never speaks while the other one is there,
    and whose number is higher than that of each session before.
    """
    if current is None:
        return Standing.BEGINS
    if said.session == current.session:
        if said.sequence > current.up_sequence:
            return Standing.CONTINUES
        same_place = said.sequence == current.hello_sequence
        return Standing.FORKED if same_place and said.message_id != current.hello_id else Standing.LATE
    displaced = said.session in trace.displaced
    if trace.probe_session == said.session and said.last_sequence >= trace.probe_sequence > 0:
        return Standing.RETURNS if displaced else Standing.RESUMES
    if not displaced and said.number > current.number:
        return Standing.BEGINS
    return Standing.QUESTIONED


def displace(trace: Trace, current: Current | None, by: str) -> Trace:
    """The trace once session `by` is the current one. A question that was asked before then proves nothing later."""
    kept = tuple(one for one in trace.displaced if one != by)
    if current is not None and current.session != by:
        kept = (*kept, current.session)[-DISPLACED_MOST:]
    return Trace(kept, None, 0, trace.probed_at)


def question(trace: Trace, said: Said, at: int, step: int) -> Trace | None:
    """The trace with a question to the session of this hello; None where one was asked this very second.

    `step` is random and positive: the question's sequence is one that this session has never seen. Asked again, a
    session gets the same question until it answers.
    """
    if at == trace.probed_at:
        return None
    asked_already = trace.probe_session == said.session and trace.probe_sequence > said.last_sequence
    sequence = trace.probe_sequence if asked_already else said.last_sequence + step
    return replace(trace, probe_session=said.session, probe_sequence=sequence, probed_at=at)
