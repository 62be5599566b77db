"""The usual shape of a structure is read at one stroke, and no differently from field by field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation import structures
from provisioning.attestation.structures import parse_certify, parse_public, parse_quote, parse_signature
from provisioning.attestation.usual import Usual
from tests.unit.attestation.test_structures import NAMED, certify, ecc_public, ecdsa, quote

ALONE = {
    parse_public: structures.read_public,
    parse_quote: structures.read_quote,
    parse_certify: structures.read_certify,
    parse_signature: structures.read_signature,
}
USUAL = [
    *[(parse_public, ecc_public(scheme=scheme)) for scheme in (b"\0\x18\0\x0b", b"\0\x10")],
    *[(parse_quote, quote(select=select)) for select in (b"\x91\0\0", b"\xff" * 3, b"\0\0\x80")],
    *[(parse_certify, certify()), (parse_signature, ecdsa())],
]


def read(parse, data):
    try:
        return parse(data)
    except NAMED as refused:
        return type(refused), refused.expected, refused.actual


@pytest.mark.parametrize(("parse", "data"), USUAL)
def test_each_octet_of_the_usual_shape_is_read_as_it_is_field_by_field(parse, data):
    """Whatever one octet says: the same structure, or the same refusal."""
    for at in range(len(data)):
        for value in {data[at] ^ bit for bit in (0, 1, 2, 4, 8, 16, 32, 64, 128)} | {0, 0xFF}:
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            assert read(parse, changed) == read(ALONE[parse], changed)


@given(st.sampled_from(USUAL), st.data())
def test_the_usual_shape_is_read_as_it_is_field_by_field(case, data):
    parse, valid = case
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(changed[: len(changed) - data.draw(st.sampled_from([0, 0, 0, 1, 32]))])
    assert read(parse, changed) == read(ALONE[parse], changed)


@pytest.mark.parametrize(("parse", "data"), USUAL)
def test_what_is_usual_is_read_at_one_stroke(parse, data, monkeypatch):
    monkeypatch.delattr(structures, ALONE[parse].__name__)
    assert parse(data) == ALONE[parse](data)


def test_a_shape_names_what_differs_in_its_order():
    shape = Usual(b"\1", "HB", b"\2\3", "2s")
    assert shape.read(b"\1\0\7\x08\2\3ab") == (7, 8, b"ab")
    assert shape.read(b"\1\0\7\x08\2\4ab") is None
    assert shape.read(b"\1\0\7\x08\2\3a") is None
