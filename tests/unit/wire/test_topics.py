"""Topics and problem types: a device id is never more than one topic level, a problem never more than its class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.problems import PREFIX, REACTION, Problem, problem_of
from wire.topics import EVERY_UP, device_of, down, is_device_id, up


@pytest.mark.parametrize("text", ["a", "0", "gw-1", "a.b_c-d", "x" * 63])
def test_device_ids(text):
    assert is_device_id(text)
    assert device_of(up(text)) == text
    assert down(text) == f"muster/v1/{text}/down"


@pytest.mark.parametrize(
    "text",
    ["", "A", "-a", ".a", "_a", "a/b", "+", "#", "a+", "a#", "$SYS", "a b", "a\n", "é", "x" * 64, "station:a", "a\0"],
)
def test_what_is_no_device_id(text):
    """Upper case, levels, wildcards, a line break at the end: each would be another topic, or somebody else's."""
    assert not is_device_id(text)
    assert device_of(up(text)) is None


@pytest.mark.parametrize(
    "topic", ["", "muster/v1/a", "muster/v1/a/down", "muster/v1/a/up/x", "muster/v2/a/up", "x/v1/a/up", EVERY_UP, "/"]
)
def test_other_topics_are_of_no_device(topic):
    assert device_of(topic) is None


@given(st.text(max_size=80))
def test_a_topic_names_at_most_the_device_that_it_was_made_for(text):
    assert device_of(up(text)) == (text if is_device_id(text) else None)
    assert device_of(text) is None or up(device_of(text)) == text


def test_every_problem_has_a_type_and_a_reaction():
    assert set(REACTION) == set(Problem)
    assert len({problem.uri for problem in Problem}) == len(Problem)
    for problem in Problem:
        assert problem_of(problem.uri) is problem


@pytest.mark.parametrize(
    "text", ["", "malformed", PREFIX, PREFIX + "unheard-of", "about:blank", PREFIX.upper() + "malformed"]
)
def test_a_type_of_a_newer_service_is_no_problem_of_this_one(text):
    assert problem_of(text) is None
