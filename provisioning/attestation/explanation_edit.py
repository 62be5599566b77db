"""Edits of a policy's text: some lines, and nothing else, so that a person can read what would be accepted.

An edit is text and is applied by nobody here. Whether it does what it says is checked twice before it is shown: the
new text must parse to the old values with exactly these changes, and `explanation` judges the evidence by it.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

from provisioning.attestation.explanation_toml import NotFound, Path, Places, Span, places

Value = str | int | bool | Mapping[str, "Value"] | Sequence["Value"]
"""What an edit writes."""


class EditImpossible(ValueError):
    """The policy is written in a way that this edit cannot be written into. A person can."""


@dataclass(frozen=True, slots=True)
class Add:
    """One element more in the array at `path`; a table, where the array is one of tables."""

    path: Path
    value: Value


@dataclass(frozen=True, slots=True)
class Put:
    """The value at `path`, whatever it was; at the top of the text where there was none."""

    path: Path
    value: Value


@dataclass(frozen=True, slots=True)
class Drop:
    """Without the key at `path`, or the whole table."""

    path: Path


@dataclass(frozen=True, slots=True)
class Line:
    """One line more in the text at `path`, which is a list with a line for each thing. `line` is printable."""

    path: Path
    line: str


Change = Add | Put | Drop | Line


class Hexadecimal(int):
    """A number that is written as people compare it."""


def edited(text: str, changes: Sequence[Change]) -> str:
    """The text with these changes; comments and everything else stay as they are. Raises: EditImpossible."""
    try:
        pieces = _pieces(text, places(text), changes)
        changed = text
        for start, end, piece in sorted(pieces, reverse=True):
            changed = changed[:start] + piece + changed[end:]
        lines = {change.path for change in changes if isinstance(change, Line)}
        same = _listed(tomllib.loads(changed), lines) == _changed(_listed(tomllib.loads(text), lines), changes)
    except (ValueError, LookupError, RecursionError) as error:  # what is no TOML is a ValueError; so is `NotFound`
        raise EditImpossible(f"the policy's text cannot be edited by itself: {error}") from error
    if not same:
        raise EditImpossible("the policy's text cannot be edited by itself")
    return changed


def difference(before: str, after: str) -> str:
    """Which lines change, as `diff -u` shows it, with three lines around each."""
    lines = unified_diff(before.splitlines(), after.splitlines(), "policy", "policy", lineterm="")
    return "\n".join(lines)


def added_lines(before: str, after: str) -> tuple[str, ...]:
    """The lines of the new text that were not in the old one."""
    lines = unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return tuple(line[1:] for line in lines if line.startswith("+") and not line.startswith("+++"))


def _pieces(text: str, found: Places, changes: Sequence[Change]) -> list[tuple[int, int, str]]:
    """What is written where: from, to, what. Additions to one array go together."""
    pieces: list[tuple[int, int, str]] = []
    added: dict[Path, list[Value]] = {}
    lines: dict[Path, list[str]] = {}
    for change in changes:
        if isinstance(change, Add):
            added.setdefault(change.path, []).append(change.value)
        elif isinstance(change, Line):
            lines.setdefault(change.path, []).append(change.line)
        elif isinstance(change, Put):
            pieces.append(_put(text, found, change))
        else:
            pieces.append((*_dropped(text, found, change.path), ""))
    pieces.extend(_more_lines(text, found, path, more) for path, more in lines.items())
    tables = ""
    for path, values in added.items():
        if path in found.values:
            pieces.extend(_additions(text, found.values[path], values))
        elif path[:-1] in found.spans and not any(isinstance(value, Mapping) for value in values):
            pieces.append(_first_of_table(text, found, path, _written(values)))
        else:
            tables += "".join(_table(path, value) for value in values)
    if tables:
        pieces.append((len(text), len(text), ("" if text.endswith("\n") or not text else "\n") + tables))
    return pieces


def _dropped(text: str, found: Places, path: Path) -> tuple[int, int]:
    """A table with all behind its header; or the lines of a key and its value."""
    if path in found.spans:
        return found.spans[path]
    span = found.values[path]
    return text.rfind("\n", 0, span.start) + 1, text.find("\n", span.end) + 1 or len(text)


def _put(text: str, found: Places, change: Put) -> tuple[int, int, str]:
    if (span := found.values.get(change.path)) is not None:
        return span.start, span.end, _written(change.value)
    if len(change.path) != 1:
        return _first_of_table(text, found, change.path, _written(change.value))
    model = found.values.get(("model",))
    at = found.header if model is None else min(text.find("\n", model.end) + 1 or len(text), found.header)
    newline = "" if at == 0 or text[at - 1] == "\n" else "\n"
    return at, at, f"{newline}{change.path[0]} = {_written(change.value)}\n"


def _first_of_table(text: str, found: Places, path: Path, written: str) -> tuple[int, int, str]:
    """A new key behind the header of its table."""
    if path[:-1] not in found.spans:
        raise NotFound(f"no table at {path[:-1]}")
    at = text.find("\n", found.spans[path[:-1]][0]) + 1 or len(text)
    newline = "" if text[at - 1] == "\n" else "\n"
    return at, at, f"{newline}{path[-1]} = {written}\n"


def _more_lines(text: str, found: Places, path: Path, lines: Sequence[str]) -> tuple[int, int, str]:
    """Lines behind the last one of a string, whichever of TOML's four kinds it is."""
    span = found.values.get(path)
    if span is None:
        return _first_of_table(text, found, path, '"""\n' + "".join(f"{_escaped(one)}\n" for one in lines) + '"""')
    quotes = text[span.start : span.start + 3]
    if quotes == "'''":
        if any(quotes in line for line in lines):
            raise NotFound("three quotes in a literal string")
        return _behind(text, span, "".join(f"{line}\n" for line in lines))
    if quotes == '"""':
        return _behind(text, span, "".join(f"{_escaped(line)}\n" for line in lines))
    old = tomllib.loads(f"value = {text[span.start : span.end]}")["value"].splitlines()
    return span.start, span.end, '"""\n' + "".join(f"{_escaped(one)}\n" for one in [*old, *lines]) + '"""'


def _behind(text: str, span: Span, piece: str) -> tuple[int, int, str]:
    """Before the closing quotes, and before the blanks that indent them."""
    at = span.end - 3
    while text[at - 1] in " \t":
        at -= 1
    return at, at, piece if text[at - 1] == "\n" else f"\n{piece}"


def _additions(text: str, span: Span, values: Sequence[Value]) -> list[tuple[int, int, str]]:
    """More elements behind the last one: on lines of their own where the array ends on one."""
    if not span.array:
        raise NotFound("no array")
    written = [_written(value) for value in values]
    if not span.ends:
        return [(span.start + 1, span.start + 1, ", ".join(written))]
    bracket = text.rfind("\n", span.ends[-1], span.end) + 1
    if not bracket or text[bracket : span.end - 1].strip():
        return [(span.ends[-1], span.ends[-1], "".join(f", {one}" for one in written))]
    last = text.rfind("\n", 0, span.ends[-1]) + 1
    indent = text[last : len(text) - len(text[last:].lstrip(" \t"))]
    comma = [] if span.comma else [(span.ends[-1], span.ends[-1], ",")]
    return [*comma, (bracket, bracket, "".join(f"{indent}{one},\n" for one in written))]


def _table(path: Path, value: Value) -> str:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in path):
        raise NotFound(f"no array at {path}")
    lines = [f"[[{'.'.join(map(str, path))}]]", *(f"{name} = {_written(inner)}" for name, inner in value.items())]
    return "\n".join(lines) + "\n"


def _written(value: Value) -> str:
    """A value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:#x}" if isinstance(value, Hexadecimal) else str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_written(inner)}" for name, inner in value.items()) + " }"
    return "[" + ", ".join(map(_written, value)) + "]"


def _string(text: str) -> str:
    """A basic string."""
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """The inside of a basic string. What is not printable is escaped: nobody should accept what he cannot see."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in escaped)


def _listed(values: dict[str, Any], paths: Collection[Path]) -> dict[str, Any]:
    """The values with these texts as lists of their lines, but empty ones."""
    for path in paths:
        parent = _at(values, path[:-1])
        text = parent.get(path[-1], "")
        parent[path[-1]] = [line for line in text.splitlines() if line.strip()]
    return values


def _changed(values: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """The values with the changes, which is all that the new text may differ in."""
    new: Any = deepcopy(values)
    gone: list[Path] = []
    for change in changes:
        if isinstance(change, Line):
            _at(new, change.path).append(change.line)
        elif isinstance(change, Add):
            _array_at(new, change.path).append(_plain(change.value))
        elif isinstance(change, Put):
            _at(new, change.path[:-1])[change.path[-1]] = _plain(change.value)
        else:
            gone.append(change.path)
    for path in gone:
        del _at(new, path[:-1])[path[-1]]
    return dict(new)


def _at(values: Any, path: Path) -> Any:  # noqa: ANN401  whatever TOML holds
    for key in path:
        values = values[key]
    return values


def _array_at(values: Any, path: Path) -> list[Any]:  # noqa: ANN401  whatever TOML holds
    parent = _at(values, path[:-1])
    if isinstance(parent, dict) and path[-1] not in parent:
        parent[str(path[-1])] = []
    array: list[Any] = parent[path[-1]]
    return array


def _plain(value: Value) -> Any:  # noqa: ANN401  what tomllib gives
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, str | int):
        return value
    return [_plain(inner) for inner in value]
