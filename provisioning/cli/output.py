"""What commands print: data on standard output, as a table or JSON; notes on standard error. No control character."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning.config import DataDirectory, data_directory


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"


DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="D", help="The data directory.  [default: $MUSTER_DATA_DIR, else .muster]"),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="How data is printed.")]


def example(*lines: str) -> str:
    """The examples under a command's help; the backspace keeps the lines as they are."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def directory_of(given: Path | None) -> DataDirectory:
    """The data directory that the options and the environment name."""
    return data_directory(given)


def clean(value: object) -> str:
    """The value without control characters: a hostile field cannot move the cursor, nor forge a line."""
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """A line for the person, on standard error."""
    print(clean(text), file=sys.stderr, flush=True)


def print_json(data: object) -> None:
    """The data, on standard output. ASCII only, so that nothing in it reaches the terminal raw."""
    print(json.dumps(data, indent=2), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One line for each row; cells are never cut. Without rich: importing that takes longer than the command."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[number]) for row in [list(columns), *cells]) for number in range(len(columns))]
    head, *lines = (
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [list(columns), *cells]
    )
    print(f"\x1b[1m{head}\x1b[0m" if sys.stdout.isatty() else head)
    for line in lines:
        print(line)


def print_records(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Records as a table of those of their fields that `columns` names."""
    titles = [column.replace("_", " ") for column in columns]
    print_table(titles, ([record.get(column) for column in columns] for record in records))


def print_fields(fields: Mapping[str, Any]) -> None:
    """One line for each field that has a value."""
    shown = {name.replace("_", " "): value for name, value in fields.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {_cell(value)}")


def show(output: Format, data: Mapping[str, Any]) -> None:
    """Flat data, as fields or as JSON."""
    if output is Format.JSON:
        print_json(data)
    else:
        print_fields(data)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{clean(name)}={_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return clean(value)
