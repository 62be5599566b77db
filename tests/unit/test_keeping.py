"""What stays of one device's evidence: by examples, and for every history."""

from hypothesis import given
from hypothesis import strategies as st

from provisioning.keeping import (
    FINDINGS_MOST,
    LOOKED_BACK,
    Bound,
    Occasions,
    Pass,
    Use,
    expired,
    expired_refusals,
    given_up,
    needed,
)

TIMES = st.integers(0, 60)
PASSES = st.lists(st.tuples(TIMES, st.booleans()), max_size=60).map(
    lambda rows: [Pass(f"p{number:03}", at, softened) for number, (at, softened) in enumerate(rows)]
)
OCCASIONS = st.builds(
    Occasions,
    st.lists(TIMES, max_size=2).map(tuple),
    st.lists(TIMES, max_size=8).map(tuple),
    st.none() | TIMES,
)
USES = st.lists(st.tuples(TIMES, st.integers(0, 9)), max_size=12).map(
    lambda rows: [Use(number, at, size) for number, (at, size) in enumerate(rows)]
)
BOUNDS = st.builds(Bound, st.integers(1, 8), st.integers(1, 40))


def days(*softened: bool) -> list[Pass]:
    """One pass a day, the first on day 0."""
    return [Pass(f"day {day}", day, let_pass) for day, let_pass in enumerate(softened)]


def test_the_newest_pass_and_what_refusals_are_compared_with_stay():
    history = days(False, False, True, False, True, True, False, True)
    assert needed(history, Occasions()) == {"day 7", "day 6"}
    assert needed(history, Occasions(refused=(4,))) == {"day 7", "day 6", "day 3"}
    assert needed(history, Occasions(refused=(2,))) == {"day 7", "day 6", "day 1"}


def test_what_a_mode_let_pass_stays_with_what_it_is_compared_with():
    history = days(False, True, True, False)
    assert needed(history, Occasions()) == {"day 3", "day 2", "day 0"}


def test_what_passed_last_before_a_finding_or_a_fall_stays():
    history = days(*[False] * 10)
    assert needed(history, Occasions(found=(3,))) == {"day 9", "day 3"}
    assert needed(history, Occasions(fell=5)) == {"day 9", "day 5"}
    many = Occasions(found=tuple(range(9)))
    assert needed(history, many) == {"day 9", *(f"day {day}" for day in range(9 - FINDINGS_MOST, 9))}


def test_nothing_stays_of_a_device_that_never_passed():
    assert needed([], Occasions((1,), (2,), 3)) == frozenset()


def test_the_newest_refused_evidence_stays_while_something_rests_on_it():
    refused = [("second", 20), ("first", 10)]
    assert expired_refusals(refused, 30, rests=False) == ("first", "second")
    assert expired_refusals(refused, 30, rests=True) == ("first",)
    assert expired_refusals(refused, 20, rests=False) == ("first",)
    assert expired_refusals([], 20, rests=True) == ()


def test_a_bound_takes_the_oldest_and_no_more_than_it_must():
    uses = [Use(1, 10, 5), Use(2, 20, 5), Use(3, 30, 5)]
    assert given_up(uses, frozenset(), Bound(3, 15)) == ()
    assert given_up(uses, frozenset(), Bound(2, 15)) == (1,)
    assert given_up(uses, frozenset(), Bound(3, 9)) == (1, 2)
    assert given_up(uses, frozenset({1}), Bound(2, 15)) == (2,)
    assert given_up(uses, frozenset({1, 2, 3}), Bound(1, 1)) == ()


@given(PASSES, OCCASIONS)
def test_what_stays_is_bounded_and_the_newest_is_in_it(passes, occasions):
    stays = needed(passes, occasions)
    assert stays <= {one.id for one in passes}
    assert len(stays) <= 4 + 2 + FINDINGS_MOST + 1
    newest = sorted(passes, key=lambda one: (one.at, one.id), reverse=True)[:LOOKED_BACK]
    assert {one.id for one in newest[:1]} <= stays
    assert {one.id for one in [one for one in newest if not one.softened][:1]} <= stays


@given(PASSES, OCCASIONS, TIMES)
def test_removing_what_is_old_takes_nothing_that_is_needed_then_or_later(passes, occasions, before):
    stays = needed(passes, occasions)
    gone = expired(passes, stays, before)
    assert all(one.at < before and one.id not in stays for one in gone)
    rest = [one for one in passes if one not in gone]
    assert all(one.at >= before or one.id in stays for one in rest)
    assert stays <= needed(rest, occasions)
    assert expired(rest, needed(rest, occasions), before) == ()


@given(USES, BOUNDS, st.sets(st.integers(0, 11)))
def test_a_bound_holds_for_all_but_what_is_needed_and_takes_the_oldest_first(uses, bound, kept):
    gone = set(given_up(uses, frozenset(kept), bound))
    rest = [use for use in uses if use.body not in gone]
    assert not gone & kept
    assert bound.holds(rest) or {use.body for use in rest} <= kept
    free = [use for use in rest if use.body not in kept]
    taken = [use for use in uses if use.body in gone]
    assert all((old.at, old.body) < (new.at, new.body) for old in taken for new in free)
    for last in sorted(taken, key=lambda use: (use.at, use.body))[-1:]:
        assert not bound.holds([*rest, last])
