"""Every message of the protocol: each has a payload type of its own, and a value that survives the wire."""

import dataclasses
import types
from datetime import UTC, datetime
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from wire import messages, problems
from wire.codec import Cap, MalformedMessage, decode, encode
from wire.messages import DOWN, PAYLOAD_TYPE, UP, Message

EVERY = sorted(
    (
        value
        for module in (messages, problems)
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == module.__name__
    ),
    key=lambda cls: cls.__name__,
)


def value_of(hint, size=None):
    """A value of this annotation, as large as its cap allows (but for lists, which get one item)."""
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        return value_of(base, next(note.most for note in notes if isinstance(note, Cap)))
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return value_of(next(arg for arg in get_args(hint) if arg is not type(None)), size)
    if origin is Literal:
        return get_args(hint)[0]
    if origin is tuple:
        return (value_of(get_args(hint)[0]),)
    if origin is dict:
        return {"k": value_of(get_args(hint)[1])}
    if dataclasses.is_dataclass(hint):
        return sample(hint)
    return {
        str: "x" * (size or 1),
        bytes: b"\xff" * (size or 1),
        int: 2**63 - 1,
        bool: True,
        datetime: datetime(2026, 11, 21, tzinfo=UTC),
    }[hint]


def sample(cls):
    hints = get_type_hints(cls, include_extras=True)
    return cls(**{field.name: value_of(hints[field.name]) for field in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_a_message_at_its_caps_survives_the_wire(cls):
    message = sample(cls)
    assert decode(cls, encode(message), limit=16 * 1024 * 1024) == message


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_a_message_has_no_room_for_more(cls):
    data = encode(sample(cls))[:-1] + b',"zzz":1}'
    with pytest.raises(MalformedMessage):
        decode(cls, data, limit=16 * 1024 * 1024)


def test_every_mqtt_message_has_a_payload_type_and_a_direction():
    kinds = {cls for cls in EVERY if issubclass(cls, Message) and cls is not Message}
    assert set(PAYLOAD_TYPE) == kinds == set(DOWN) | set(UP)
    assert not set(DOWN) & set(UP)
    assert len(set(PAYLOAD_TYPE.values())) == len(PAYLOAD_TYPE)


def test_evidence_fits_its_cap():
    """What an honest device sends stays far below what is read at all."""
    assert messages.EVIDENCE_BODY_MOST > messages.EVIDENCE_MOST + messages.BOOT_LOG_MOST
