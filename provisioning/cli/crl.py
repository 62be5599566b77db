"""The owner's commands about CRLs: those of roots are signed by hand, while the root's token is there."""

import asyncio
from typing import Annotated

import typer

from provisioning.cli.devices import Reason
from provisioning.cli.failures import Mistaken, naming
from provisioning.cli.output import DataDir, Format, Output, directory_of, example, print_json, print_records, show
from provisioning.config import load_config

_LISTED = ("authority", "number", "this_update", "next_update", "entries")

Name = Annotated[str, typer.Option("--authority", metavar="NAME", help="Whose CRL.")]
Serial = Annotated[str, typer.Option("--revoke", metavar="SERIAL", help="An issuing CA's certificate, ended with it.")]
Why = Annotated[Reason, typer.Option("--reason", help="RFC 5280's reason, for --revoke.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Revocation lists: list, sign.", no_args_is_help=True, rich_markup_mode=None)
    group.command("list", epilog=example("muster crl list"))(list_crls)
    group.command(
        "sign",
        epilog=example(
            "muster crl sign --authority root",
            "muster crl sign --authority root --revoke 5a1c0d3e9f2b47a68c1de0f39b7a2c55 --reason ca-compromise",
        ),
    )(sign)
    app.add_typer(group, name="crl")


def list_crls(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """List the published CRLs. They are read from their files, and not verified."""
    from provisioning.app.crls import published

    directory = directory_of(data_dir)
    load_config(directory)
    with naming(directory.ca):
        found = published(directory)
    if output is Format.JSON:
        print_json({"crls": found})
    else:
        print_records(found, _LISTED)


def sign(
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    authority: Name = "root",
    revoke: Serial = "",
    reason: Why = Reason.UNSPECIFIED,
) -> None:
    """Sign an authority's next CRL now. A root's token must be there. The service may run."""
    from provisioning.app.crls import sign_now

    if revoke and not all(character in "0123456789abcdefABCDEF" for character in revoke):
        raise Mistaken(f"{revoke!r} is no serial in hex; look: muster certificates list")
    directory = directory_of(data_dir)
    with naming(directory.root):
        signed = asyncio.run(sign_now(directory, load_config(directory), authority, revoke, reason.value))
    show(output, signed)
