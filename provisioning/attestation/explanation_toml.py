"""Where in a TOML text each value stands: what an edit of a policy's text needs, so that everything else stays.

Of TOML 1.0 as `tomllib` takes it: the text was parsed before. What is found here is checked against `tomllib` by
`explanation_edit`: a place that was found wrongly leads to no edit, never to a wrong one.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

Path = tuple[str | int, ...]
"""Keys of tables and numbers of array elements, from the top."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


class NotFound(ValueError):
    """The text is written in a way that is not read here."""


@dataclass(slots=True)
class Span:
    """A value from its first character to behind its last one. Of an array: where its elements end."""

    start: int
    end: int
    array: bool = False
    ends: list[int] = field(default_factory=list)
    comma: bool = False
    """Does a comma stand behind the last element?"""


@dataclass(slots=True)
class Places:
    """The values by path. `header`: where the first table begins, or the text ends. `tables`: arrays of tables."""

    values: dict[Path, Span] = field(default_factory=dict)
    header: int = 0
    tables: dict[Path, int] = field(default_factory=dict)
    """How many tables an array has that is written as `[[…]]`."""
    spans: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """From the header of a table to the next header, or the end of the text."""


@lru_cache(maxsize=2)
def places(text: str) -> Places:
    """Every value of a valid TOML text. Raises: NotFound."""
    try:
        return _Scanner(text).scan()
    except (LookupError, OverflowError, RecursionError, ValueError) as error:
        raise NotFound(f"not TOML, as far as it was read: {error}") from error


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found = Places(header=len(text))
        self._table: Path = ()

    def scan(self) -> Places:
        opened: tuple[Path, int] | None = None
        while self._skip(_SPACE) < len(self._text):
            if self._text[self._at] != "[":
                self._assignment(self._table)
                continue
            start = self._at
            self._found.header = min(self._found.header, start)
            self._close(opened, start)
            self._header()
            opened = self._table, start
        self._close(opened, len(self._text))
        return self._found

    def _close(self, opened: tuple[Path, int] | None, end: int) -> None:
        if opened is not None:
            self._found.spans[opened[0]] = opened[1], end

    def _header(self) -> None:
        double = self._text.startswith("[[", self._at)
        self._at += 2 if double else 1
        keys = self._keys("]")
        self._expect("]]" if double else "]")
        path = self._resolved(keys[:-1])
        if double:
            number = self._found.tables.get((*path, keys[-1]), 0)
            self._found.tables[(*path, keys[-1])] = number + 1
            self._table = (*path, keys[-1], number)
        else:
            self._table = self._resolved(keys)

    def _resolved(self, keys: list[str]) -> Path:
        """The path of a header: a key that names an array of tables means its last one."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self._found.tables:
                path = (*path, self._found.tables[path] - 1)
        return path

    def _assignment(self, table: Path) -> None:
        keys = self._keys("=")
        self._expect("=")
        self._skip(_BLANK)
        self._value((*table, *keys))

    def _keys(self, end: str) -> list[str]:
        keys = []
        while True:
            self._skip(_BLANK)
            keys.append(self._key())
            self._skip(_BLANK)
            if self._text[self._at] == end:
                return keys
            self._expect(".")

    def _key(self) -> str:
        if self._text[self._at] in "\"'":
            return self._string()
        bare = _BARE.match(self._text, self._at)
        if bare is None:
            raise NotFound(f"no key at {self._at}")
        self._at = bare.end()
        return bare[0]

    def _value(self, path: Path) -> None:
        start, first = self._at, self._text[self._at]
        span = Span(start, start, array=first == "[")
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path, span)
        elif first == "{":
            self._inline(path)
        else:
            scalar = _SCALAR.match(self._text, self._at)
            if scalar is None:
                raise NotFound(f"no value at {self._at}")
            self._at += len(scalar[0].rstrip())
        span.end = self._at
        self._found.values[path] = span

    def _array(self, path: Path, span: Span) -> None:
        self._at += 1
        while True:
            self._skip(_SPACE)
            if self._text[self._at] == "]":
                self._at += 1
                return
            self._value((*path, len(span.ends)))
            span.ends.append(self._at)
            self._skip(_SPACE)
            span.comma = self._text[self._at] == ","
            if span.comma:
                self._at += 1

    def _inline(self, path: Path) -> None:
        self._at += 1
        self._skip(_BLANK)
        while self._text[self._at] != "}":
            self._assignment(path)
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK)
        self._at += 1

    def _string(self) -> str:
        """Past a string of any of the four kinds; the words of a short one, which a key is."""
        quote = self._text[self._at]
        if self._text.startswith(quote * 3, self._at):
            return self._long(quote * 3)
        self._at += 1
        found = []
        while (one := self._text[self._at]) != quote:
            if one == "\\" and quote == '"':
                self._at += 1
                one = self._escaped()
            found.append(one)
            self._at += 1
        self._at += 1
        return "".join(found)

    def _escaped(self) -> str:
        one = self._text[self._at]
        if one in "uU":
            digits = 4 if one == "u" else 8
            code = self._text[self._at + 1 : self._at + 1 + digits]
            self._at += digits
            return chr(int(code, 16))
        return _ESCAPES[one]

    def _long(self, quotes: str) -> str:
        self._at += 3
        while not self._text.startswith(quotes, self._at):
            self._at += 2 if self._text[self._at] == "\\" and quotes == '"""' else 1
        self._at += 3
        while self._at < len(self._text) and self._text[self._at] == quotes[0]:  # up to two quotes may end the words
            self._at += 1
        return ""

    def _expect(self, token: str) -> None:
        if not self._text.startswith(token, self._at):
            raise NotFound(f"no {token} at {self._at}")
        self._at += len(token)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self._text, self._at)
        self._at = self._at if found is None else found.end()
        return self._at
