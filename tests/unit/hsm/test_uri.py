"""PKCS#11 URIs: what is read, what is refused, and that writing and reading are each other's inverse."""

import re
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.errors import UriRefused
from hsm.uri import MAX_URI_CHARACTERS, Pkcs11Uri, parse_uri


def printable(size):
    characters = st.characters(codec="utf-8").filter(str.isprintable)
    return st.text(characters, min_size=1, max_size=size).filter(lambda text: len(text.encode()) <= size)


def path(prefix=""):
    return printable(100).map(lambda text: prefix + "/" + text)


URIS = st.builds(
    Pkcs11Uri,
    token=st.none() | printable(32),
    manufacturer=st.none() | printable(32),
    serial=st.none() | printable(16),
    model=st.none() | printable(16),
    object=st.none() | printable(64),
    id=st.none() | st.binary(min_size=1, max_size=32),
    module_path=st.none() | path(),
    pin_source=st.none() | path() | path("file:"),
)


@given(URIS)
def test_a_written_uri_is_read_back_as_the_same(uri):
    assert parse_uri(str(uri)) == uri


@given(URIS)
def test_a_written_uri_is_ascii_without_blanks(uri):
    assert re.fullmatch(r"pkcs11:[!-~]*", str(uri))


@given(st.text() | st.text("pkcs1:;?&=%/tokenidbjc-valuer0aF\n").map("pkcs11:".__add__))
def test_any_text_is_read_or_refused_by_name(text):
    try:
        uri = parse_uri(text)
    except UriRefused:
        return
    assert parse_uri(str(uri)) == uri


def test_every_attribute_is_read():
    uri = parse_uri(
        "pkcs11:token=Root%20CA;manufacturer=SoftHSM%20project;serial=0123;model=v2;object=issuing;id=%00%ff"
        "?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin"
    )
    assert uri == Pkcs11Uri(
        token="Root CA",
        manufacturer="SoftHSM project",
        serial="0123",
        model="v2",
        object="issuing",
        id=b"\x00\xff",
        module_path="/usr/lib/softhsm/libsofthsm2.so",
        pin_source="file:/run/pin",
    )
    assert uri.pin_path() == PurePosixPath("/run/pin")


def test_what_is_not_said_is_none():
    assert parse_uri("pkcs11:") == Pkcs11Uri()
    assert parse_uri("pkcs11:object=a").pin_path() is None


def test_characters_that_need_no_escape_stay_as_they_are():
    assert str(Pkcs11Uri(object="a:b@c&d=e", pin_source="/a?b|c")) == "pkcs11:object=a:b@c&d=e?pin-source=/a?b|c"


def test_a_separator_inside_a_value_is_escaped():
    assert str(Pkcs11Uri(token="a;b?c/d%e")) == "pkcs11:token=a%3Bb%3Fc%2Fd%25e"


HOSTILE = [
    ("", "pkcs11:"),
    ("http:token=a", "pkcs11:"),
    ("PKCS11:token=a", "pkcs11:"),
    (" pkcs11:token=a", "pkcs11:"),
    ("pkcs11:token=" + "a" * MAX_URI_CHARACTERS, "longer than 2048"),
    ("pkcs11:token=a?pin-value=1234", "pin-value"),
    ("pkcs11:token=a;pin-value=1234", "pin-value"),
    ("pkcs11:token=a?pin-value=", "pin-value"),
    ("pkcs11:colour=red", "unknown"),
    ("pkcs11:x-vendor=1", "unknown"),
    ("pkcs11:slot-id=1", "unknown"),
    ("pkcs11:Token=a", "unknown"),
    ("pkcs11:to%6ben=a", "unknown"),
    ("pkcs11:pin-source=/pin", "unknown"),
    ("pkcs11:?token=a", "unknown"),
    ("pkcs11:token=a;", "unknown"),
    ("pkcs11:;token=a", "unknown"),
    ("pkcs11:token=a?pin-source=/a&", "unknown"),
    ("pkcs11:token", "no value"),
    ("pkcs11:token=", "no value"),
    ("pkcs11:token=a;id=", "no value"),
    ("pkcs11:token=a?", "no query"),
    ("pkcs11:token=a;token=a", "twice"),
    ("pkcs11:token=a?pin-source=/a&pin-source=/b", "twice"),
    ("pkcs11:token=a b", "percent-encoded"),
    ("pkcs11:token=a/b", "percent-encoded"),
    ("pkcs11:token=é", "percent-encoded"),
    ("pkcs11:token=a%", "percent-encoded"),
    ("pkcs11:token=a%4", "percent-encoded"),
    ("pkcs11:token=a%zz", "percent-encoded"),
    ("pkcs11:token=a\n", "percent-encoded"),
    ("pkcs11:token=a\x00", "percent-encoded"),
    ("pkcs11:token=%ff", "UTF-8"),
    ("pkcs11:token=%ed%a0%80", "UTF-8"),
    ("pkcs11:token=a%00", "control"),
    ("pkcs11:token=%0aroot", "control"),
    ("pkcs11:token=%1b[2J", "control"),
    ("pkcs11:object=%e2%80%ae", "control"),
    ("pkcs11:token=" + "a" * 33, "longer than 32"),
    ("pkcs11:serial=" + "1" * 17, "longer than 16"),
    ("pkcs11:id=" + "%00" * 256, "longer than 255"),
    ("pkcs11:token=" + "%c3%a9" * 17, "longer than 32"),
    ("pkcs11:?module-path=libsofthsm2.so", "absolute"),
    ("pkcs11:?pin-source=pin.txt", "absolute"),
    ("pkcs11:?pin-source=file:pin.txt", "absolute"),
    ("pkcs11:?pin-source=|/bin/cat%20/pin", "absolute"),
    ("pkcs11:?pin-source=https://a/pin", "absolute"),
]


@pytest.mark.parametrize(("text", "reason"), HOSTILE)
def test_a_hostile_uri_is_refused_for_its_own_reason(text, reason):
    with pytest.raises(UriRefused, match=reason):
        parse_uri(text)


def test_a_refusal_repeats_no_value():
    with pytest.raises(UriRefused) as refusal:
        parse_uri("pkcs11:token=a?pin-value=c4n4ry")
    assert "c4n4ry" not in str(refusal.value)


@pytest.mark.parametrize(
    "change", [{"token": ""}, {"id": b""}, {"token": "a\n"}, {"pin_source": "pin"}, {"serial": "1" * 17}]
)
def test_a_uri_that_could_not_be_read_cannot_be_made(change):
    with pytest.raises(UriRefused):
        replace(Pkcs11Uri(token="a"), **change)
