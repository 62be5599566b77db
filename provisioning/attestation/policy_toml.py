"""A policy's TOML, written anew: what `tomllib` read, with remarks behind single values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

_BARE = re.compile(r"[A-Za-z_-][A-Za-z0-9_-]*")
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class Remarked:
    """One value of a list, with a remark for whoever reads the file. In such a list all are."""

    value: str
    remark: str


def to_toml(document: Mapping[str, object], head: Sequence[str] = ()) -> str:
    """The document as TOML, `head` as comments above it. Comments of a text that was read are not in it any more.

    Values are those of TOML but dates, which no policy has. Raises: TypeError.
    """
    lines = [f"# {_remark(line)}".rstrip() for line in head]
    _table(lines, (), document)
    return "\n".join(lines) + "\n"


def _table(lines: list[str], path: tuple[str, ...], table: Mapping[str, object]) -> None:
    """Plain values first: behind a header they would belong to another table."""
    below = {name: value for name, value in table.items() if _is_table(value) or _is_tables(value)}
    plain = {name: value for name, value in table.items() if name not in below}
    if path and (plain or not below):
        lines.extend(["", f"[{_path(path)}]"])
    for name, value in plain.items():
        lines.append(f"{_key(name)} = {_value(value)}")
    for name, value in below.items():
        inner = (*path, name)
        if isinstance(value, Mapping):
            _table(lines, inner, value)
        else:
            for item in cast("list[Mapping[str, object]]", value):
                lines.extend(["", f"[[{_path(inner)}]]"])
                lines.extend(f"{_key(key)} = {_value(one)}" for key, one in item.items())


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _path(path: tuple[str, ...]) -> str:
    return ".".join(map(_key, path))


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, Sequence):
        return _list(value)
    msg = f"a policy has no {type(value).__name__}"
    raise TypeError(msg)


def _list(values: Sequence[object]) -> str:
    remarked = [value for value in values if isinstance(value, Remarked)]
    if not remarked:
        return "[" + ", ".join(map(_value, values)) + "]"
    lines = [f"  {_string(value.value)},  # {_remark(value.remark)}" for value in remarked]
    return "\n".join(["[", *lines, "]"])


def _text(text: str) -> str:
    """Lines as they are, where that can be: a certificate in PEM stays what a person knows."""
    plain = all(c.isprintable() or c == "\n" for c in text)
    return f"'''\n{text}'''" if "\n" in text and plain and "'''" not in text and text[-1] != "'" else _string(text)


def _string(text: str) -> str:
    escaped = (_ESCAPED.get(c) or (c if c.isprintable() else _unicode(c)) for c in text)
    return '"' + "".join(escaped) + '"'


def _unicode(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"  # noqa: PLR2004  what \u holds


def _remark(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
