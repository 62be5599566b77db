"""Certificates one by one: what was issued, and its end."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from provisioning.cli.client import operator, segment
from provisioning.cli.devices import After, Limit, Reason, Why
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

_WHAT = "serial in hex"
_LISTED = ("serial", "issuer", "profile", "subject", "state", "not_after", "reason")


class State(StrEnum):
    """Where a certificate stands."""

    RESERVED = "reserved"
    ISSUED = "issued"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"


Serial = Annotated[str, typer.Argument(metavar="SERIAL", help="The certificate's serial, in hex.")]
OfState = Annotated[State | None, typer.Option("--state", help="Only those that stand there.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Certificates: list, show, revoke, release.", no_args_is_help=True, rich_markup_mode=None)
    serial = "5a1c0d3e9f2b47a68c1de0f39b7a2c55"
    group.command("list", epilog=example("muster certificates list --state revoked -o json"))(list_certificates)
    group.command("show", epilog=example(f"muster certificates show {serial}"))(show_certificate)
    group.command("revoke", epilog=example(f"muster certificates revoke {serial} --reason superseded"))(revoke)
    group.command("release", epilog=example(f"muster certificates release {serial}"))(release)
    app.add_typer(group, name="certificates")


def list_certificates(
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    after: After = "",
    limit: Limit = 100,
    state: OfState = None,
) -> None:
    """List certificates in the order of their serials."""
    path = f"/api/v1/certificates?limit={limit}"
    if after:
        path += f"&after={segment(after, _WHAT)}"
    if state is not None:
        path += f"&state={state.value}"
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["certificates"], _LISTED)
    if len(found["certificates"]) == limit:
        note(f"there may be more: --after {found['certificates'][-1]['serial']}")


def show_certificate(serial: Serial, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show one certificate's record."""
    show(output, operator(directory_of(data_dir)).get(_path(serial)))


def revoke(
    serial: Serial, data_dir: DataDir = None, output: Output = Format.TABLE, reason: Why = Reason.UNSPECIFIED
) -> None:
    """Revoke one certificate; its device stays in service. Final, but for certificate-hold."""
    _order(output, data_dir, serial, "revoke", {"reason": reason.value})


def release(serial: Serial, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Bring one certificate back that is on hold."""
    _order(output, data_dir, serial, "release")


def _order(output: Format, data_dir: Path | None, serial: str, what: str, body: object = None) -> None:
    show(output, operator(directory_of(data_dir)).send("POST", f"{_path(serial)}/{what}", body))


def _path(serial: str) -> str:
    return f"/api/v1/certificates/{segment(serial, _WHAT)}"
