"""One-time tokens for devices without a TPM: made here, printed once, used by any EST client."""

import re
from typing import Annotated

import typer

from provisioning.cli.client import operator, segment
from provisioning.cli.failures import Mistaken
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

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LIFETIME = re.compile(r"([1-9]\d{0,7})([smhd])")
_LISTED = ("id", "serial", "state", "profile", "created", "expires", "used", "by")

Device = Annotated[str, typer.Option("--device", metavar="NAME", help="The device's id or serial; a new serial too.")]
OneDevice = Annotated[str, typer.Option("--device", metavar="NAME", help="Only this device's.")]
Profile = Annotated[str, typer.Option("--profile", metavar="P", help="The certificate profile of the record.")]
Model = Annotated[str, typer.Option("--model", metavar="M", help="The model of a device that is registered by this.")]
Lifetime = Annotated[str, typer.Option("--lifetime", metavar="T", help="How long it may be used: 90s, 30m, 24h, 7d.")]
Approval = Annotated[bool, typer.Option("--approval", help="An operator approves each key of this device.")]
TokenId = Annotated[str, typer.Argument(metavar="ID", help="The token's id, as it is listed.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="One-time tokens for EST.", no_args_is_help=True, rich_markup_mode=None)
    group.command("create", epilog=example("muster est-token create --device sensor-0042 --lifetime 24h"))(create)
    group.command("list", epilog=example("muster est-token list --device sensor-0042"))(list_tokens)
    group.command("revoke", epilog=example("muster est-token revoke 5f2a9c0e11d4b7a3"))(revoke)
    app.add_typer(group, name="est-token")


def create(
    device: Device,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    profile: Profile = "",
    model: Model = "",
    lifetime: Lifetime = "",
    approval: Approval = False,
) -> None:
    """Make a token and print it, once. A serial that is not in the inventory is registered with assurance token."""
    named = {"profile": profile, "model": model, "lifetime_seconds": _seconds(lifetime), "approval": approval}
    body = {"device": device, **{name: value for name, value in named.items() if value}}
    made = operator(directory_of(data_dir)).send("POST", "/api/v1/est-tokens", body)
    if output is Format.JSON:
        print_json(made)
    else:
        print(made["token"])
    if made["registered"]:
        note(f"registered {made['serial']} as {made['device']} with assurance token: no attestation stands behind it")
    if made.get("warning"):
        note(f"warning: {made['warning']}")
    note(f"token {made['id']} for {made['serial']}, good once until {made['expires_at']}; it is not shown again")


def list_tokens(data_dir: DataDir = None, output: Output = Format.TABLE, device: OneDevice = "") -> None:
    """List the newest tokens and what became of them. The tokens themselves are not stored."""
    path = "/api/v1/est-tokens" + (f"?device={segment(device, 'device id or serial')}" if device else "")
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["tokens"], _LISTED)


def revoke(token_id: TokenId, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """End a token that was not used yet."""
    path = f"/api/v1/est-tokens/{segment(token_id, 'token id')}/revoke"
    show(output, operator(directory_of(data_dir)).send("POST", path))


def _seconds(text: str) -> int:
    if not text:
        return 0
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise Mistaken(f"{text!r} is no lifetime; write 90s, 30m, 24h or 7d")
    return int(match[1]) * _UNITS[match[2]]
