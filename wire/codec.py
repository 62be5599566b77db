"""Strict JSON <-> frozen dataclass: sizes first, then types, then nothing unknown.

The annotation of a field is its whole rule. Understood are `str`, `int`, `bool`, `bytes` (base64url without
padding), `datetime` (RFC 3339, UTC, `Z`), `Literal[...]`, `T | None`, `tuple[T, ...]`, `dict[str, T]`, other
dataclasses, and `Annotated[T, Cap(n)]`, which bounds the length of a text, a byte string, a tuple or a dict.

A decoded message has the right shape. That is all: nothing in it is authentic, in range or true.
"""

import binascii
import dataclasses
import json
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
# A string that never ends is one to the end of the text: else the search would begin anew at each quote in it, and
# the time of it grow with the square of what a stranger sends. Possessive, so nothing is tried twice.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = frozenset({str, int, bool, type(None)})
MAX_DEPTH = 16
MAX_TEXT = 4096
MAX_ITEMS = 256
MAX_INT = 2**63 - 1
MAX_DIGITS = 20


class MalformedMessage(ValueError):
    """The bytes are not a message of this type. `where` is the path of the field, e.g. `quote.attest`."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where or 'message'}: {why}")
        self.where = where
        self.why = why

    def within(self, name: str) -> "MalformedMessage":
        """The same, as seen from the field (`name`) or the item (`[3]`) that holds it."""
        dot = "." if self.where and not self.where.startswith("[") else ""
        return MalformedMessage(f"{name}{dot}{self.where}", self.why)


@dataclass(frozen=True, slots=True)
class Cap:
    """The most that a field may hold: characters, bytes or items."""

    most: int


def encode(message: Any) -> bytes:
    """The message as canonical JSON: sorted keys, no spaces, `None` left out."""
    return _ENCODER.encode(to_json(message)).encode()


def decode(cls: type[T], data: bytes, *, limit: int, ignore_unknown: bool = False, parts: int | None = None) -> T:
    """A message of `cls` out of untrusted bytes.

    `limit` is in bytes and is judged before anything is parsed. `ignore_unknown` is for the agent, which must
    live with a newer service; fields that a response names in `crit` are its caller's to check. `parts`: as
    `parse_json` takes it.

    Raises: MalformedMessage.
    """
    return load(cls, parse_json(data, limit=limit, parts=parts), ignore_unknown=ignore_unknown)


def parse_json(data: bytes, *, limit: int, parts: int | None = None) -> Any:
    """JSON out of untrusted bytes: no duplicate names, no NaN, bounded depth and numbers (RFC 8259, I-JSON).

    `parts`: how many texts, brackets and commas there may be, where the sender may be anybody. A million empty objects
    cost a hundred times what one text of their size does.
    """
    if len(data) > limit:
        raise MalformedMessage("", f"is {len(data)} bytes, more than {limit}")
    try:
        text = data.decode("utf-8")
        _verify_shape(text, parts)
        return _DECODER.decode(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MalformedMessage("", "is not UTF-8 JSON") from error


def load(cls: type[T], value: Any, *, ignore_unknown: bool = False, where: str = "") -> T:
    """A message of `cls` out of parsed JSON (or TOML). Raises: MalformedMessage."""
    hint: Any = cls
    try:
        result: T = _loader(hint, ignore_unknown)(value)
    except MalformedMessage as error:
        raise (error.within(where) if where else error) from error.__cause__
    return result


def to_json(value: Any) -> Any:
    """The value as what `json.dumps` takes."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if kind is bytes:
        return b64url(value)
    if names := _field_names(kind):
        return {
            name: item if type(item) in _PLAIN else to_json(item)
            for name in names
            if (item := getattr(value, name)) is not None
        }
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, dict):
        return {str(key): item if type(item) in _PLAIN else to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [item if type(item) in _PLAIN else to_json(item) for item in value]
    return value


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/\0\0\0")
_LAST = {2: "AQgw", 3: "AEIMQUYcgkosw048"}
"""By the length modulo four: the last characters whose bits behind the last byte are zero."""


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 4648 section 5)."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def unb64url(text: str) -> bytes:
    """The bytes of canonical base64url without padding. Raises: ValueError."""
    rest = len(text) % 4
    if rest == 1 or (rest and text[-1] not in _LAST[rest]):
        msg = "not canonical base64url"
        raise ValueError(msg)
    standard = text.encode("ascii").translate(_FROM_URL) + b"=" * (-rest % 4)
    return binascii.a2b_base64(standard, strict_mode=True)


def rfc3339(moment: datetime) -> str:
    """The moment in UTC to the second, as `2026-11-21T12:00:00Z`."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")[: -len("+00:00")] + "Z"


def parse_rfc3339(text: str) -> datetime:
    """The inverse of `rfc3339`, nothing else. Raises: ValueError."""
    moment = datetime.fromisoformat(text[:-1]) if _MOMENT.fullmatch(text) else None
    if moment is None or f"{moment.isoformat()}Z" != text:
        msg = "not RFC 3339 in UTC with seconds"
        raise ValueError(msg)
    return moment.replace(tzinfo=UTC)


_Loader = Callable[[Any], Any]
"""Raises MalformedMessage with a `where` of its own; whoever holds the value says where that is."""


@cache
def _loader(hint: Any, ignore_unknown: bool) -> _Loader:  # noqa: FBT001  a key of the cache
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        cap = next(note.most for note in notes if isinstance(note, Cap))
        return _value_loader(base, cap, ignore_unknown)
    return _value_loader(hint, None, ignore_unknown)


def _value_loader(hint: Any, cap: int | None, ignore_unknown: bool) -> _Loader:  # noqa: FBT001  a key of the cache
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _optional(hint, cap, ignore_unknown)
    if origin is Literal:
        return _literal(get_args(hint))
    if origin is tuple:
        return _tuple(_loader(get_args(hint)[0], ignore_unknown), cap or MAX_ITEMS)
    if origin is dict:
        return _dict(_loader(get_args(hint)[1], ignore_unknown), cap or MAX_ITEMS)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, ignore_unknown)
    scalars: dict[Any, _Loader] = {
        str: _text(cap or MAX_TEXT),
        bytes: _bytes(cap or MAX_TEXT),
        int: _int,
        bool: _bool,
        datetime: _datetime,
    }
    return scalars[hint]


def _optional(hint: Any, cap: int | None, ignore_unknown: bool) -> _Loader:  # noqa: FBT001  a key of the cache
    (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
    loader = _loader(inner, ignore_unknown) if cap is None else _value_loader(inner, cap, ignore_unknown)
    return lambda value: None if value is None else loader(value)


def _literal(allowed: tuple[Any, ...]) -> _Loader:
    def loader(value: Any) -> Any:
        if not any(value == option and type(value) is type(option) for option in allowed):
            raise MalformedMessage("", "is not one of " + ", ".join(map(str, allowed)))
        return value

    return loader


def _text(cap: int) -> _Loader:
    def loader(value: Any) -> str:
        if not isinstance(value, str):
            raise MalformedMessage("", "is not a text")
        if len(value) > cap:
            raise MalformedMessage("", f"is {len(value)} characters, more than {cap}")
        if "\0" in value or not (value.isascii() or _SURROGATE.search(value) is None):  # ASCII is told at once
            raise MalformedMessage("", "has a character that no database stores")
        return value

    return loader


def _bytes(cap: int) -> _Loader:
    def loader(value: Any) -> bytes:
        if not isinstance(value, str):
            raise MalformedMessage("", "is not base64url text")
        if len(value) > (cap * 4 + 2) // 3:
            raise MalformedMessage("", f"is more than {cap} bytes")
        try:
            return unb64url(value)
        except ValueError as error:  # binascii.Error is one
            raise MalformedMessage("", "is not base64url without padding") from error

    return loader


def _int(value: Any) -> int:
    if type(value) is not int or not -MAX_INT - 1 <= value <= MAX_INT:
        raise MalformedMessage("", "is not an integer of 64 bits")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise MalformedMessage("", "is not true or false")
    return value


def _datetime(value: Any) -> datetime:
    try:
        return parse_rfc3339(value)
    except (TypeError, ValueError) as error:
        raise MalformedMessage("", "is not a time like 2026-11-21T12:00:00Z") from error


def _tuple(item: _Loader, cap: int) -> _Loader:
    def loader(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise MalformedMessage("", "is not a list")
        if len(value) > cap:
            raise MalformedMessage("", f"has {len(value)} items, more than {cap}")
        loaded = []
        for entry in value:
            try:
                loaded.append(item(entry))
            except MalformedMessage as error:
                raise error.within(f"[{len(loaded)}]") from error.__cause__
        return tuple(loaded)

    return loader


def _dict(item: _Loader, cap: int) -> _Loader:
    name = _text(MAX_TEXT)

    def loader(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise MalformedMessage("", "is not an object")
        if len(value) > cap:
            raise MalformedMessage("", f"has {len(value)} items, more than {cap}")
        loaded = {}
        for key, entry in value.items():
            name(key)
            try:
                loaded[key] = item(entry)
            except MalformedMessage as error:
                raise error.within(key) from error.__cause__
        return loaded

    return loader


def _dataclass(cls: Any, ignore_unknown: bool) -> _Loader:  # noqa: FBT001  a key of the cache
    hints = get_type_hints(cls, include_extras=True)
    fields = {f.name: _loader(hints[f.name], ignore_unknown) for f in dataclasses.fields(cls) if f.init}
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }

    def loader(value: Any) -> Any:
        if not isinstance(value, dict):
            raise MalformedMessage("", "is not an object")
        if not value.keys() >= required:
            raise MalformedMessage(min(required - value.keys()), "is missing")
        if not value.keys() <= fields.keys():
            if not ignore_unknown:
                raise MalformedMessage(min(value.keys() - fields.keys())[:64], "is not a field of this message")
            value = {name: value[name] for name in value if name in fields}
        loaded = {}
        for name, entry in value.items():
            try:
                loaded[name] = fields[name](entry)
            except MalformedMessage as error:
                raise error.within(name) from error.__cause__
        return cls(**loaded)

    return loader


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedMessage("", "names a field twice")
    return result


def _no_constant(name: str) -> Any:
    raise MalformedMessage("", f"holds {name}, which is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:  # int() of a long text is quadratic
        raise MalformedMessage("", "holds an integer of more than 64 bits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_integer)
"""What `json.loads` would make anew for each text."""


def _verify_shape(text: str, parts: int | None) -> None:
    """Is it neither too deep nor of too many parts? Without recursion: json.loads recurses once a level."""
    brackets = text.count("[") + text.count("{")
    if brackets <= MAX_DEPTH and (parts is None or text.count(",") <= parts):
        return
    depth = 0
    for seen, found in enumerate(_STRING_OR_BRACKET.finditer(text), start=1):
        if parts is not None and seen > parts:
            raise MalformedMessage("", f"has more than {parts} parts")
        character = found[0]
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedMessage("", f"is nested deeper than {MAX_DEPTH}")
        elif character in "]}":
            depth -= 1
