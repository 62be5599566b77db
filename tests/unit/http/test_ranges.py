"""Ranges of files (RFC 9110 section 14): one part, inside the file, or the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.http.files import wanted_range


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=0-5000", (0, 100)),
        ("bytes=40-", (40, 60)),
        ("bytes=-10", (90, 10)),
        ("bytes=-5000", (0, 100)),
        ("bytes=99-99", (99, 1)),
    ],
)
def test_a_part_of_the_file_is_that_part(header, part):
    assert wanted_range(header, 100) == part


@pytest.mark.parametrize(
    "header",
    [
        "bytes=-",
        "bytes=5-2",
        "bytes=0-1,3-4",
        "bytes=a-b",
        "chars=0-1",
        "bytes= 0-1",
        "bytes=0-1\n",
        "",
        "bytes=" + "9" * 20 + "-",
    ],
)
def test_what_is_not_one_range_is_ignored(header):
    assert wanted_range(header, 100) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_without_a_byte_is_not_satisfiable(header):
    with pytest.raises(ValueError, match="bytes="):
        wanted_range(header, 100)


def test_an_empty_file_has_no_range():
    with pytest.raises(ValueError, match="bytes="):
        wanted_range("bytes=0-", 0)


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d{0,18}-\d{0,18}", fullmatch=True), st.integers(1, 10_000))
def test_no_header_leads_outside_the_file(header, size):
    try:
        part = wanted_range(header, size)
    except ValueError:
        return
    if part is not None:
        start, length = part
        assert start >= 0
        assert 1 <= length <= size - start
