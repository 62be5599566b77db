"""Findings about devices: what the service noticed, for a person to look at and to close."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from provisioning.cli.client import operator
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    directory_of,
    example,
    note,
    print_json,
    print_records,
    show,
)

_PATH = "/api/v1/findings"
PAGE_MOST = 500
COLUMNS = ("id", "kind", "device", "serial", "last", "times", "response", "closed", "detail")

Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Only those about this device, by id or serial.")]
Everything = Annotated[bool, typer.Option("--all", help="Those that were closed, too.")]
Before = Annotated[int | None, typer.Option("--before", min=1, metavar="ID", help="Only those older than this one.")]
Limit = Annotated[int, typer.Option(min=1, max=PAGE_MOST, metavar="N", help="At most so many.")]
Number = Annotated[int, typer.Argument(metavar="ID", min=1, help="The number that `findings list` shows.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(
        help="Findings about devices: clones, rollback, silence.", no_args_is_help=True, rich_markup_mode=None
    )
    examples = ("muster findings list", "muster findings list --device gateway-0017 --all -o json")
    group.command("list", epilog=example(*examples))(list_findings)
    group.command("close", epilog=example("muster findings close 12"))(close)
    app.add_typer(group, name="findings")


def list_findings(
    device: Device = "",
    everything: Everything = False,
    before: Before = None,
    limit: Limit = 100,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
) -> None:
    """List the findings that are open, the newest first."""
    path = f"{_PATH}?limit={limit}" + (f"&device={quote(device, safe='')}" if device else "")
    path += ("&all=true" if everything else "") + (f"&before={before}" if before is not None else "")
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
    else:
        print_records([{**one, "detail": in_words(one["detail"])} for one in found["findings"]], COLUMNS)
    if len(found["findings"]) == limit:
        note(f"there may be more: --before {found['findings'][-1]['id']}")


def close(number: Number, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Close a finding. What its policy did to the device stays: see `devices release`, `devices attest`."""
    closed = operator(directory_of(data_dir)).send("POST", f"{_PATH}/{number}/close")
    show(output, {**closed, "detail": in_words(closed["detail"])} if output is Format.TABLE else closed)


def in_words(detail: dict[str, Any]) -> str:
    """A finding's details on one line."""
    return ", ".join(f"{name} {value}" for name, value in detail.items())
