"""JSON of this protocol: what is encoded comes back, and nothing else comes in."""

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.codec import (
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_TEXT,
    Cap,
    MalformedMessage,
    b64url,
    decode,
    encode,
    load,
    parse_json,
    parse_rfc3339,
    rfc3339,
    to_json,
    unb64url,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Inner:
    name: Annotated[str, Cap(8)]
    octets: Annotated[bytes, Cap(4)] = b""


@dataclass(frozen=True, slots=True)
class Sample:
    number: int
    flag: bool
    moment: datetime
    kind: Literal["a", "b"]
    inner: Inner
    many: Annotated[tuple[Inner, ...], Cap(2)] = ()
    named: Annotated[dict[str, Annotated[bytes, Cap(4)]], Cap(2)] = field(default_factory=dict)
    maybe: Annotated[str, Cap(4)] | None = None
    capped: Annotated[bytes | None, Cap(2)] = None


WHOLE = {"number": 1, "flag": True, "moment": "2026-11-21T12:00:00Z", "kind": "a", "inner": {"name": "x"}}


def sample(**changes):
    return json.dumps({**WHOLE, **changes}).encode()


def refusal(data, cls=Sample, limit=4096):
    with pytest.raises(MalformedMessage) as refused:
        decode(cls, data, limit=limit)
    return str(refused.value)


# --- what comes in ------------------------------------------------------------------------------------------------


def test_a_message_is_read_by_its_annotations():
    read = decode(
        Sample,
        sample(many=[{"name": "y", "octets": "AQI"}], named={"k": "AA"}, maybe="z", capped="AAA"),
        limit=4096,
    )
    inner = Inner("y", b"\1\2")
    assert read == Sample(1, True, NOON, "a", Inner("x"), (inner,), {"k": b"\0"}, "z", b"\0\0")


def test_none_stands_for_a_field_that_is_left_out():
    assert decode(Sample, sample(maybe=None, capped=None), limit=4096) == decode(Sample, sample(), limit=4096)


def test_encoding_is_canonical():
    message = Sample(1, True, NOON, "a", Inner("é", b"\xff\xef"))
    assert (
        encode(message)
        == (
            '{"flag":true,"inner":{"name":"é","octets":"_-8"},"kind":"a","many":[],'
            '"moment":"2026-11-21T12:00:00Z","named":{},"number":1}'
        ).encode()
    )


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001  hypothesis adds the zone
    st.sampled_from(["a", "b"]),
    st.lists(st.builds(Inner, st.text(max_size=8).filter(lambda t: "\0" not in t), st.binary(max_size=4)), max_size=2),
    st.none() | st.text("abc", max_size=4),
)
def test_what_is_encoded_comes_back(number, flag, moment, kind, many, maybe):
    message = Sample(number, flag, moment.replace(microsecond=0), kind, Inner("x"), tuple(many), {}, maybe)
    assert decode(Sample, encode(message), limit=4096) == message


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"number": "1"}, "number: is not an integer"),
        ({"number": True}, "number: is not an integer"),
        ({"number": 1.0}, "number: is not an integer"),
        ({"number": 2**63}, "number: is not an integer"),
        ({"number": -(2**63) - 1}, "number: is not an integer"),
        ({"number": None}, "number: is not an integer"),
        ({"flag": 1}, "flag: is not true or false"),
        ({"flag": "true"}, "flag: is not true or false"),
        ({"moment": 5}, "moment: is not a time"),
        ({"moment": "2026-11-21T12:00:00+00:00"}, "moment: is not a time"),
        ({"moment": "2026-11-21T12:00:00.5Z"}, "moment: is not a time"),
        ({"moment": "2026-11-21 12:00:00Z"}, "moment: is not a time"),
        ({"moment": "2026-1-1T1:0:0Z"}, "moment: is not a time"),
        ({"moment": "2026-02-30T12:00:00Z"}, "moment: is not a time"),
        ({"kind": "c"}, "kind: is not one of a, b"),
        ({"kind": None}, "kind: is not one of"),
        ({"kind": ["a"]}, "kind: is not one of"),
        ({"inner": []}, "inner: is not an object"),
        ({"inner": {}}, "inner.name: is missing"),
        ({"inner": {"name": "123456789"}}, "inner.name: is 9 characters, more than 8"),
        ({"inner": {"name": 5}}, "inner.name: is not a text"),
        ({"inner": {"name": "a\0"}}, "inner.name: has a character"),
        ({"inner": {"name": "\ud800"}}, "inner.name: has a character"),
        ({"inner": {"name": "x", "octets": "AAAAAAA"}}, "inner.octets: is more than 4 bytes"),
        ({"inner": {"name": "x", "octets": "AA=="}}, "inner.octets: is not base64url"),
        ({"inner": {"name": "x", "octets": "+/8"}}, "inner.octets: is not base64url"),
        ({"inner": {"name": "x", "octets": "A"}}, "inner.octets: is not base64url"),
        ({"inner": {"name": "x", "octets": "AB"}}, "inner.octets: is not base64url"),
        ({"inner": {"name": "x", "octets": "é"}}, "inner.octets: is not base64url"),
        ({"inner": {"name": "x", "octets": 7}}, "inner.octets: is not base64url"),
        ({"inner": {"name": "x", "more": 1}}, "inner.more: is not a field"),
        ({"many": {"0": 1}}, "many: is not a list"),
        ({"many": [{"name": "x"}] * 3}, "many: has 3 items, more than 2"),
        ({"many": [{"name": "x"}, {"name": 1}]}, "many[1].name: is not a text"),
        ({"named": []}, "named: is not an object"),
        ({"named": {"a": "AA", "b": "AA", "c": "AA"}}, "named: has 3 items, more than 2"),
        ({"named": {"a": 1}}, "named.a: is not base64url"),
        ({"maybe": "12345"}, "maybe: is 5 characters"),
        ({"capped": "AAAA"}, "capped: is more than 2 bytes"),
        ({"unknown": 1}, "unknown: is not a field"),
        ({"x" * 100: 1}, "x" * 64 + ": is not a field"),
    ],
)
def test_a_field_of_another_shape_is_refused_by_its_path(changes, where):
    assert refusal(sample(**changes)).startswith(where)


@pytest.mark.parametrize("missing", sorted(WHOLE))
def test_a_missing_field_is_named(missing):
    data = json.dumps({name: value for name, value in WHOLE.items() if name != missing}).encode()
    assert refusal(data) == f"{missing}: is missing"


def test_unknown_fields_are_the_callers_choice():
    newer = sample(unknown=1, inner={"name": "x", "newer": [1]})
    assert decode(Sample, newer, limit=4096, ignore_unknown=True) == decode(Sample, sample(), limit=4096)
    assert "inner.newer" in refusal(sample(inner={"name": "x", "newer": [1]}))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not UTF-8 JSON"),
        (b"{", "is not UTF-8 JSON"),
        (b"\xff{}", "is not UTF-8 JSON"),
        (b"{} {}", "is not UTF-8 JSON"),
        (b"[]", "is not an object"),
        (b"null", "is not an object"),
        (b'{"a":1,"a":1}', "names a field twice"),
        (b'{"a":{"b":1,"b":2}}', "names a field twice"),
        (b"[NaN]", "holds NaN"),
        (b"[Infinity]", "holds Infinity"),
        (b"[-Infinity]", "holds -Infinity"),
        (b"[" + b"1" * 21 + b"]", "holds an integer of more than 64 bits"),
        (b"[" * (MAX_DEPTH + 1), "is nested deeper"),
        (b'{"a":' * (MAX_DEPTH + 1), "is nested deeper"),
        (b"[" * 4000, "is nested deeper"),
    ],
)
def test_other_json_is_refused(data, why):
    assert why in refusal(data)


def test_brackets_in_texts_are_no_nesting():
    deep = "[" * 50 + '\\"' + "{" * 50
    assert parse_json(json.dumps({"a": deep, "b": "\\"}).encode(), limit=4096) == {"a": deep, "b": "\\"}


@pytest.mark.parametrize(
    ("body", "parts"),
    [(b"[]", 2), (b"[1,2]", 3), (b'["a","b"]', 5), (b'{"a":{"b":1},"c":2}', 8), (b"[" + b"{}," * 40 + b"{}]", 124)],
)
def test_who_may_be_anybody_sends_so_many_parts_and_no_more(body, parts):
    """Three million small objects of a body of 6 MB held the loop for 1.6 s; the text of its size takes 13 ms."""
    assert parse_json(body, limit=200, parts=parts) == parse_json(body, limit=200)
    if parts > MAX_DEPTH:  # fewer cost nothing worth a look
        with pytest.raises(MalformedMessage, match=f"has more than {parts - 1} parts"):
            parse_json(body, limit=200, parts=parts - 1)


def test_parts_are_counted_where_there_are_only_commas():
    with pytest.raises(MalformedMessage, match="has more than 99 parts"):
        parse_json(b"[" + b"0," * 100 + b"0]", limit=300, parts=99)
    commas = json.dumps({"text": "," * 300}).encode()
    assert parse_json(commas, limit=400, parts=4) == {"text": "," * 300}  # in a text they are none


@pytest.mark.parametrize("end", [b"", b"\\", b'\\"', b"\\\\"])
def test_a_text_that_never_ends_costs_no_more_than_its_length(end):
    """At each quote in it the search for brackets would begin anew: for this much, a quarter of an hour."""
    assert refusal(b"[" * (MAX_DEPTH + 1) + b'"' + b'\\"' * 200_000 + end, limit=1 << 20).endswith("deeper than 16")
    assert refusal(b"[]" * MAX_DEPTH + b'"' + b'\\"' * 200_000 + end, limit=1 << 20).endswith("is not UTF-8 JSON")


def test_the_size_is_judged_before_the_content():
    assert refusal(b"x" * 11, limit=10) == "message: is 11 bytes, more than 10"
    assert parse_json(b"[1,2,3,45]", limit=10) == [1, 2, 3, 45]


def test_fields_without_a_cap_have_one_too():
    @dataclass(frozen=True, slots=True)
    class Loose:
        text: str
        octets: bytes = b""
        many: tuple[int, ...] = ()

    assert load(Loose, {"text": "x" * MAX_TEXT, "many": [1] * MAX_ITEMS})
    for wrong in ({"text": "x" * (MAX_TEXT + 1)}, {"text": "", "many": [1] * (MAX_ITEMS + 1)}):
        with pytest.raises(MalformedMessage):
            load(Loose, wrong)
    with pytest.raises(MalformedMessage):
        load(Loose, {"text": "", "octets": b64url(bytes(MAX_TEXT + 1))})


def test_a_cap_of_bytes_is_exact_at_every_length():
    """Base64url of n bytes has ceil(4n/3) characters; no length may slip past its cap."""
    for cap in range(1, 12):
        cls = dataclass(frozen=True)(type("Capped", (), {"__annotations__": {"x": Annotated[bytes, Cap(cap)]}}))
        assert load(cls, {"x": b64url(bytes(cap))}).x == bytes(cap)
        with pytest.raises(MalformedMessage):
            load(cls, {"x": b64url(bytes(cap + 1))})


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(data):
    with pytest.raises(MalformedMessage):
        decode(Sample, data, limit=4096)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(Sample.__dataclass_fields__)), JSON))
def test_arbitrary_json_is_read_or_refused_by_name(changes):
    try:
        read = decode(Sample, sample(**changes), limit=65536)
    except MalformedMessage:
        return
    assert decode(Sample, encode(read), limit=65536) == read


# --- scalars ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=70))
def test_base64url_is_the_standards(data):
    text = b64url(data)
    assert unb64url(text) == data
    assert text == base64.urlsafe_b64encode(data).decode().rstrip("=")


@given(st.text("AB-_+/=é\n", max_size=9))
def test_each_byte_string_has_one_text(text):
    """Two texts of one value would be two identities of one message."""
    try:
        data = unb64url(text)
    except ValueError:
        return
    assert b64url(data) == text


def test_moments_are_in_utc_to_the_second():
    there = timezone(timedelta(hours=2))
    assert rfc3339(datetime(2026, 11, 21, 14, 0, 0, 999_999, tzinfo=there)) == "2026-11-21T12:00:00Z"
    assert parse_rfc3339("2026-11-21T12:00:00Z") == NOON


def test_everything_that_json_takes_is_passed_through():
    assert to_json({1: (b"\0", [NOON, None], Inner("x"))}) == {
        "1": ["AA", ["2026-11-21T12:00:00Z", None], {"name": "x", "octets": ""}]
    }
