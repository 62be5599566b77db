"""What all parts of a policy's text share: the rule that a mistake names its line, and digests in hexadecimal."""

import re

from wire.codec import MalformedMessage

__all__ = ["POLICY_MOST", "demand", "digest_of", "line_of"]

POLICY_MOST = 1024 * 1024
"""Characters of a policy, at most: some hundred roots and reference values, or ten thousand files."""

# Possessive, so that a line of blanks inside a text costs its length, not its cube.
_HEADER = re.compile(r"\s*+(\[\[?)([^\]]++)\]")
_KEY = re.compile(r"\s*+(\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\s*=")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


def demand(holds: bool, where: str, why: str) -> None:  # noqa: FBT001  the fact itself, not a flag
    """Raises: MalformedMessage, whose `where` becomes a line, unless it holds."""
    if not holds:
        raise MalformedMessage(where, why)


def digest_of(where: str, text: str, sizes: tuple[int, ...]) -> bytes:
    """A digest in hexadecimal, of one of these numbers of bytes. Raises: MalformedMessage."""
    demand(_HEX.fullmatch(text) is not None, where, "is not hexadecimal")
    digest = bytes.fromhex(text)
    demand(len(digest) in sizes, where, f"has {len(digest)} bytes, not {' or '.join(map(str, sizes))}")
    return digest


def line_of(text: str, where: str) -> int:
    """The line that sets the field `where` (`ek_roots[0].certificate`), or its table's, or 1.

    The longest path that a line sets and that `where` starts with wins: a missing field is named by its table.
    """
    wanted = _path(where)
    best, line_number, table = 0, 1, []
    counted: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            name = header[2].strip()
            table = _path(name)
            if header[1] == "[[":
                counted[name] = counted.get(name, -1) + 1
                table.append(str(counted[name]))
            path = table
        elif key := _KEY.match(line):
            path = table + _path(key[1])
        else:
            continue
        if len(path) > best and wanted[: len(path)] == path:
            best, line_number = len(path), number
    return line_number


def _path(where: str) -> list[str]:
    return [part.strip("\"' ") for part in re.split(r"[.\[\]]+", where) if part.strip("\"' ")]
