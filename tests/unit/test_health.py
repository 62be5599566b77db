"""Health as a table: every event in every state, what narrows, what leads back, and who is asked when."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.health import NARROWED, NEXT, Event, Health, due_at, event_of, verify_not_narrowed
from provisioning.reattesting import next_step
from provisioning.refusals import (
    ApprovalRequired,
    DeviceKeyReused,
    EnrollmentQuotaSpent,
    MessageOutOfOrder,
    NoPolicyForModel,
    PassRequired,
    PcrsNotAccepted,
    SignatureWrong,
    TpmCleared,
    TpmWentBack,
)

H, U, F, S, Q = Health.HEALTHY, Health.UNKNOWN, Health.FAILING, Health.SILENT, Health.QUARANTINED
EXPECTED = {
    (H, Event.PASSED): H,
    (U, Event.PASSED): H,
    (F, Event.PASSED): H,
    (S, Event.PASSED): H,
    (Q, Event.PASSED): H,
    (H, Event.REFUSED): F,
    (U, Event.REFUSED): F,
    (F, Event.REFUSED): F,
    (S, Event.REFUSED): Q,
    (Q, Event.REFUSED): Q,
    (H, Event.FAILED): Q,
    (U, Event.FAILED): Q,
    (F, Event.FAILED): Q,
    (S, Event.FAILED): Q,
    (Q, Event.FAILED): Q,
    (H, Event.MISSED): U,
    (U, Event.MISSED): U,
    (F, Event.MISSED): F,
    (S, Event.MISSED): S,
    (Q, Event.MISSED): Q,
    (H, Event.SILENCE): S,
    (U, Event.SILENCE): S,
    (F, Event.SILENCE): S,
    (S, Event.SILENCE): S,
    (Q, Event.SILENCE): Q,
    (H, Event.CLONED): Q,
    (U, Event.CLONED): Q,
    (F, Event.CLONED): Q,
    (S, Event.CLONED): Q,
    (Q, Event.CLONED): Q,
    (H, Event.RELEASED): H,
    (U, Event.RELEASED): U,
    (F, Event.RELEASED): F,
    (S, Event.RELEASED): U,
    (Q, Event.RELEASED): U,
}


def test_every_event_is_answered_in_every_state_and_the_table_says_what_is_meant():
    assert EXPECTED == NEXT
    assert set(NEXT) == {(health, event) for health in Health for event in Event}


@given(start=st.sampled_from(Health), events=st.lists(st.sampled_from(Event), max_size=12))
def test_whatever_happens_only_a_pass_makes_healthy_and_only_a_pass_or_a_word_leads_out(start, events):
    state = start
    for event in events:
        before, state = state, NEXT[state, event]
        if state is H and before is not H:
            assert event is Event.PASSED
        if before in NARROWED and state not in NARROWED:
            assert event in (Event.PASSED, Event.RELEASED)
        if event is Event.PASSED:
            assert state is H


@pytest.mark.parametrize("health", Health)
def test_who_is_narrowed_may_use_nothing(health):
    device = SimpleNamespace(health=health.value)
    if health in (S, Q):
        with pytest.raises(PassRequired) as refused:
            verify_not_narrowed(device)
        assert health.value in refused.value.actual
    else:
        verify_not_narrowed(device)


def policy(**given):
    return SimpleNamespace(**{"on_failure": "quarantine", "attest_every": 1000, "silent_after": 3, **given})


@pytest.mark.parametrize("refusal", [PcrsNotAccepted, SignatureWrong, TpmWentBack])
def test_what_evidence_fails_to_prove_quarantines_unless_the_policy_says_refuse(refusal):
    assert event_of(refusal(), policy()) is Event.FAILED
    assert event_of(refusal(), policy(on_failure="refuse")) is Event.REFUSED
    assert event_of(refusal(), None) is Event.REFUSED


@pytest.mark.parametrize(
    "refusal",
    [TpmCleared, ApprovalRequired, EnrollmentQuotaSpent, DeviceKeyReused, NoPolicyForModel, MessageOutOfOrder],
)
def test_what_is_about_the_record_quarantines_nobody(refusal):
    assert event_of(refusal(), policy()) is Event.REFUSED


# --- when ---------------------------------------------------------------------------------------------------------


@given(every=st.integers(1, 10**8), at=st.integers(0, 2**33), drawn=st.binary(min_size=2, max_size=40))
def test_a_period_is_a_tenth_more_or_less(every, at, drawn):
    due = due_at(policy(attest_every=every), at, drawn)
    assert at + round(0.9 * every) - 1 <= due <= at + round(1.1 * every) + 1


def test_the_period_is_spread_by_what_was_drawn_and_never_means_never():
    assert due_at(policy(), 0, b"\0\0") == 900
    assert due_at(policy(), 0, b"\xff\xff") == 1100
    assert due_at(policy(attest_every=0), 0, b"\0\0") is None


def row(**given):
    told = {
        "state": "active",
        "assurance": "attested",
        "health": "healthy",
        "last_attested_at": 10_000,
        "registered_at": 5,
        "attest_asked": 0,
    }
    return SimpleNamespace(**{**told, **given})


def step(device, rules, at, drawn=b"\x7f\xff"):
    taken = next_step(device, rules, at, drawn)
    return taken.event, taken.ask, taken.due, taken.asked


def test_who_is_due_is_asked_once_and_is_due_again_a_period_later():
    assert step(row(), policy(), 11_000) == (None, True, 12_000, 1)


def test_who_was_asked_in_vain_is_unknown_and_asked_again():
    assert step(row(attest_asked=1), policy(), 12_000) == (Event.MISSED, True, 13_000, 2)
    assert step(row(attest_asked=2), policy(), 13_000) == (Event.MISSED, True, 14_000, 3)


def test_who_was_asked_silent_after_times_in_vain_is_silent_and_looked_at_no_more():
    assert step(row(attest_asked=3), policy(), 14_000) == (Event.SILENCE, False, None, 3)
    assert step(row(attest_asked=1), policy(silent_after=1), 12_000) == (Event.SILENCE, False, None, 1)


def test_a_service_that_was_down_for_a_month_asks_before_it_calls_anybody_silent():
    assert step(row(), policy(), 10_000 + 30 * 86400)[:2] == (None, True)


def test_a_longer_period_counts_from_the_pass():
    assert step(row(), policy(attest_every=5000), 11_000) == (None, False, 15_000, 0)


def test_a_shorter_period_asks_at_once():
    assert step(row(), policy(attest_every=10), 10_009) == (None, True, 10_019, 1)


@pytest.mark.parametrize(
    ("device", "rules"),
    [
        (row(), None),
        (row(), policy(attest_every=0)),
        (row(state="revoked"), policy()),
        (row(state="registered"), policy()),
        (row(assurance="token"), policy()),
        (row(health="silent"), policy()),
        (row(health="quarantined"), policy()),
    ],
)
def test_who_cannot_or_need_not_attest_is_not_asked(device, rules):
    assert step(device, rules, 50_000)[:3] == (None, False, None)


def test_who_fails_is_asked_further():
    assert step(row(health="failing"), policy(), 11_000)[1] is True
