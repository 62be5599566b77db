"""The rate limit: what conforms passes, what does not waits as long as it is told, and the table stays small."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.access.rates import Rate, RateTable, conforms, retry_after, source_key


def passed(rate, times):
    arrival, count = 0.0, 0
    for now in times:
        arrival, wait = conforms(arrival, now, rate)
        count += wait == 0
    return count


def test_a_burst_passes_and_the_next_one_does_not():
    assert passed(Rate(10, 5), [100.0] * 8) == 5


def test_after_the_wait_that_was_named_one_passes():
    rate = Rate(10, 1)
    arrival, _ = conforms(0.0, 100.0, rate)
    _, wait = conforms(arrival, 100.0, rate)
    assert conforms(arrival, 100.0 + wait, rate)[1] == 0


def test_asking_too_often_does_not_lengthen_the_wait():
    rate = Rate(1, 1)
    arrival, _ = conforms(0.0, 100.0, rate)
    for _ in range(1000):
        arrival, wait = conforms(arrival, 100.5, rate)
    assert wait == pytest.approx(0.5)


@given(
    st.lists(st.floats(0, 60, allow_nan=False), max_size=200),
    st.floats(0.5, 100, allow_nan=False),
    st.integers(1, 50),
)
def test_no_schedule_passes_more_than_burst_plus_rate(times, per_second, burst):
    times = sorted(1000 + t for t in times)
    span = times[-1] - times[0] if times else 0
    assert passed(Rate(per_second, burst), times) <= burst + span * per_second + 1e-6 + 1


@given(st.floats(0.5, 100, allow_nan=False), st.integers(1, 20), st.integers(1, 100))
def test_who_keeps_the_rate_always_passes(per_second, burst, count):
    times = [1000 + n * (1 / per_second) * 1.000001 for n in range(count)]
    assert passed(Rate(per_second, burst), times) == count


def test_one_source_does_not_spend_anothers_rate():
    table = RateTable(Rate(1, 1))
    assert table.wait_seconds("a", 10.0) == 0
    assert table.wait_seconds("a", 10.0) > 0
    assert table.wait_seconds("b", 10.0) == 0


def test_the_table_never_grows_beyond_its_size():
    table = RateTable(Rate(0.001, 1), most=100)
    for number in range(10_000):
        table.wait_seconds(f"source {number}", 10.0)
    assert len(table) <= 100


def test_a_full_table_forgets_first_who_owes_nothing():
    table = RateTable(Rate(1, 1), most=10)
    for number in range(8):
        table.wait_seconds(f"old {number}", 10.0)
    table.wait_seconds("debtor", 1000.0)
    for number in range(3):
        table.wait_seconds(f"new {number}", 1000.5)
    assert table.wait_seconds("debtor", 1000.6) > 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_source_is_an_address_or_the_network_of_one_subscriber(address, key):
    assert source_key(address) == key


def test_retry_after_is_never_zero():
    assert [retry_after(wait) for wait in (0.001, 1.0, 1.2)] == [1, 1, 2]
