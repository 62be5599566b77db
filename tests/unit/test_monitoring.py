"""Rules about one device over time: which session speaks, and which refusals mean more than a refusal."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning import refusals
from provisioning.monitoring import (
    ACCEPTED,
    CLONES,
    DISPLACED_MOST,
    TWO_AGENTS,
    Current,
    Kind,
    Said,
    Standing,
    Trace,
    displace,
    question,
    standing_of,
    suspicion,
)

STEP = 1000


def said(session="one", number=10, sequence=1, last_sequence=0, message_id=None):
    return Said(session, number, sequence, last_sequence, message_id or f"{session}-{sequence}")


def current(session="one", number=10, up_sequence=1, hello_sequence=1):
    return Current(session, number, up_sequence, f"{session}-{hello_sequence}", hello_sequence)


# --- hello, case by case ------------------------------------------------------------------------------------------


def test_the_first_hello_of_a_device_begins_a_session():
    assert standing_of(said(), None, Trace()) is Standing.BEGINS


def test_a_reconnect_goes_on_with_the_session():
    assert standing_of(said(sequence=2), current(), Trace()) is Standing.CONTINUES


def test_a_restart_begins_a_session_and_is_no_finding():
    assert standing_of(said("two", 11), current(), Trace()) is Standing.BEGINS


def test_a_message_that_came_twice_is_late_and_no_fork():
    assert standing_of(said(), current(), Trace()) is Standing.LATE


def test_an_earlier_message_of_the_session_is_late():
    assert standing_of(said(sequence=1), current(up_sequence=5, hello_sequence=5), Trace()) is Standing.LATE


def test_another_message_in_the_place_of_the_last_hello_is_a_fork():
    assert standing_of(said(message_id="another"), current(), Trace()) is Standing.FORKED


def test_another_message_before_the_last_hello_proves_no_fork():
    """What stood in that place is not known any more."""
    before = current(up_sequence=9, hello_sequence=7)
    assert standing_of(said(sequence=8, message_id="another"), before, Trace()) is Standing.LATE


@pytest.mark.parametrize("number", [9, 10])
def test_a_session_without_a_higher_number_is_questioned(number):
    assert standing_of(said("two", number), current(), Trace()) is Standing.QUESTIONED


def test_a_displaced_session_is_questioned_whatever_its_number():
    assert standing_of(said("two", 99), current(), Trace(("two",))) is Standing.QUESTIONED


def test_a_displaced_session_that_answers_means_two_agents():
    asked = Trace(("two",), "two", 5, 1)
    assert standing_of(said("two", 9, last_sequence=5), current(), asked) is Standing.RETURNS


def test_an_unknown_session_that_answers_lost_its_number_and_is_no_finding():
    asked = Trace((), "two", 5, 1)
    assert standing_of(said("two", 9, last_sequence=5), current(), asked) is Standing.RESUMES


@pytest.mark.parametrize(
    "trace",
    [
        Trace(("two",), "two", 5, 1),  # reports less
        Trace(("two",), "three", 4, 1),  # another one was asked
        Trace(("two",)),  # nobody was
    ],
)
def test_a_displaced_session_that_does_not_answer_the_question_proves_nothing(trace):
    assert standing_of(said("two", 9, last_sequence=4), current(), trace) is Standing.QUESTIONED


def test_a_question_ends_with_the_change_that_it_was_asked_after():
    asked = Trace(("two",), "two", 5, 7)
    assert displace(asked, current(), "two") == Trace(("one",), None, 0, 7)


def test_a_session_that_is_current_again_is_displaced_no_more():
    assert displace(Trace(("two", "three")), current("one"), "two").displaced == ("three", "one")


def test_the_oldest_displaced_sessions_are_forgotten():
    trace = Trace()
    for number in range(20):
        trace = displace(trace, current(f"s{number}"), f"s{number + 1}")
    assert trace.displaced == tuple(f"s{number}" for number in range(20 - DISPLACED_MOST, 20))


def test_a_question_stands_above_all_that_the_session_has_seen():
    asked = question(Trace(("two",)), said("two", last_sequence=40), 7, STEP)
    assert asked == Trace(("two",), "two", 40 + STEP, 7)


def test_a_question_without_answer_is_repeated_as_it_was():
    asked = question(Trace((), "two", 77, 7), said("two", last_sequence=40), 8, STEP)
    assert asked == Trace((), "two", 77, 8)


def test_a_session_that_has_seen_its_question_gets_another_one():
    asked = question(Trace((), "two", 77, 7), said("two", last_sequence=77), 8, STEP)
    assert asked == Trace((), "two", 77 + STEP, 8)


def test_one_question_a_second():
    assert question(Trace((), "two", 77, 7), said("three"), 7, STEP) is None


# --- hello, over time ---------------------------------------------------------------------------------------------


@dataclass
class Service:
    """What the service remembers, and does with a hello (`sessions.greet` over the same rules)."""

    current: Current | None = None
    trace: Trace = field(default_factory=Trace)
    at: int = 1
    sent: list = field(default_factory=list)
    down: dict = field(default_factory=dict)
    found: bool = False

    def hear(self, hello):
        standing = standing_of(hello, self.current, self.trace)
        self.found |= standing in TWO_AGENTS
        if standing is Standing.QUESTIONED:
            asked = question(self.trace, hello, self.at, STEP)
            if asked is not None:
                self.trace = asked
                self.sent.append((hello.session, asked.probe_sequence, True))
        elif standing in ACCEPTED:
            before = self.current
            if before is None or before.session != hello.session:
                self.trace = displace(self.trace, before, hello.session)
                self.down[hello.session] = hello.last_sequence
            number = max(hello.number, 0 if before is None else before.number)
            self.current = Current(hello.session, number, hello.sequence, hello.message_id, hello.sequence)
            self.down[hello.session] = max(self.down[hello.session], hello.last_sequence) + 1
            self.sent.append((hello.session, self.down[hello.session], False))


@dataclass
class Agent:
    session: str
    number: int
    sequence: int = 0
    last_sequence: int = 0

    def hello(self):
        self.sequence += 1
        return Said(self.session, self.number, self.sequence, self.last_sequence, f"{self.session}-{self.sequence}")

    def obey(self, command):
        """Does it ask for a hello?"""
        session, sequence, again = command
        if session != self.session or sequence <= self.last_sequence:
            return False
        self.last_sequence = sequence
        return again


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["hello", "restart", "up", "down", "tick", "enrolled"]), st.integers(0, 200)), max_size=60
)


@settings(max_examples=400, deadline=None)
@given(ACTIONS)
def test_one_honest_agent_is_never_two_whatever_the_broker_delays_drops_or_repeats(actions):
    """It restarts, reconnects and enrolls anew at will; messages come late, in any order, again and again, or never."""
    service, agent, ups = Service(), Agent("s0", 1), []
    for action, which in actions:
        if action == "hello":
            ups.append(agent.hello())
        elif action == "restart":
            agent = Agent(f"s{agent.number}", agent.number + 1 + which % 3)
        elif action == "up" and ups:
            service.hear(ups[which % len(ups)])
        elif action == "down" and service.sent and agent.obey(service.sent[which % len(service.sent)]):
            ups.append(agent.hello())
        elif action == "tick":
            service.at += 1
        elif action == "enrolled":
            service.current = None
        assert not service.found


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_two_agents_that_take_the_line_from_each_other_are_found(number, other, restarts):
    """Copies of one state folder, started at any time: each that connects says hello, and hears what is for it."""
    service, one = Service(), Agent("one", number)
    for _ in range(restarts):
        service.hear(one.hello())
        one = Agent(f"one-{one.number}", one.number + 1)
    two, ups = Agent("two", other), 0
    while not service.found and ups < 6:
        agent = (one, two)[ups % 2]
        service.at += 1
        heard = len(service.sent)
        service.hear(agent.hello())
        while heard < len(service.sent):
            heard += 1
            if agent.obey(service.sent[heard - 1]):
                service.hear(agent.hello())
        ups += 1
    assert service.found


def test_two_agents_with_one_memory_are_found():
    """A machine that was copied while it ran: both go on from the same session and sequence."""
    service, one = Service(), Agent("one", 5)
    service.hear(one.hello())
    two = Agent("one", 5, one.sequence, one.last_sequence)
    service.hear(one.hello())
    copied = two.hello()
    service.hear(Said(copied.session, copied.number, copied.sequence, copied.last_sequence, "of-the-copy"))
    assert service.found


def test_an_agent_that_lost_its_number_is_heard_and_is_no_finding():
    service, agent = Service(), Agent("before", 1_000_000)
    service.hear(agent.hello())
    agent = Agent("after", 0)
    service.at += 1
    service.hear(agent.hello())
    assert service.current.session == "before"
    assert agent.obey(service.sent[-1])
    service.hear(agent.hello())
    assert service.current.session == "after"
    assert not service.found


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "flow", "kind"),
    [
        (refusals.TpmWentBack(), "enroll", Kind.ROLLBACK),
        (refusals.TpmWentBack(), "attest", Kind.ROLLBACK),
        (refusals.AttestationKeyTaken(), "enroll", Kind.AK_TWICE),
        (refusals.SerialHasAnotherTpm(), "enroll", Kind.EK_TWICE),
        (refusals.ActivationProofWrong(), "rotate", Kind.CLONED_STATE),
        (refusals.ActivationProofWrong(), "attest", Kind.CLONED_STATE),
        (refusals.SignatureWrong(), "attest", Kind.CLONED_STATE),
        (refusals.SignatureWrong(), "enroll", None),
        (refusals.ActivationProofWrong(), "enroll", None),
        (refusals.TpmCleared(), "attest", None),
        (refusals.PcrsNotAccepted(), "attest", None),
        (refusals.ChallengeExpired(), "attest", None),
    ],
)
def test_what_a_refusal_of_own_evidence_says_beyond_itself(refusal, flow, kind):
    assert suspicion(refusal, flow) is kind


def test_silence_and_monitoring_are_not_clones():
    assert set(Kind) - CLONES == {Kind.SILENT, Kind.MONITOR}
