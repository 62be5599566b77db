"""Devices, as an operator sees them and decides about them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning.cli.client import operator, segment
from provisioning.cli.evidence import evidence
from provisioning.cli.failures import Mistaken
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    directory_of,
    example,
    note,
    print_fields,
    print_json,
    print_records,
    show,
)
from provisioning.cli.results import result


class Reason(StrEnum):
    """Why something is revoked: the service's own list (`provisioning.issuance.revocation.REASONS`)."""

    AA_COMPROMISE = "aa-compromise"
    AFFILIATION_CHANGED = "affiliation-changed"
    CA_COMPROMISE = "ca-compromise"
    CERTIFICATE_HOLD = "certificate-hold"
    CESSATION_OF_OPERATION = "cessation-of-operation"
    KEY_COMPROMISE = "key-compromise"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"
    SUPERSEDED = "superseded"
    UNSPECIFIED = "unspecified"


PAGE_MOST = 500
FINDINGS_SHOWN = 3
"""Of one attestation, in the table."""
_WHAT = "device id or serial"
_LISTED = ("id", "serial", "model", "state", "health", "last_attested", "next_due", "release_version")
_PARTS = {
    "certificates": ("serial", "state", "not_before", "not_after", "revoked", "reason"),
    "commands": ("kind", "state", "created", "tries", "ordered_by", "result"),
    "attestations": ("id", "flow", "at", "findings", "removed"),
    "requests": ("key", "asked", "approved_until"),
    "findings": ("id", "kind", "last", "times", "response"),
}

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's id or serial.")]
After = Annotated[str, typer.Option(metavar="S", help="Start behind this serial.")]
Limit = Annotated[int, typer.Option(min=1, max=PAGE_MOST, metavar="N", help="At most so many.")]
Profile = Annotated[str, typer.Argument(metavar="PROFILE", help="A certificate profile of kind ldevid or gateway.")]
Group = Annotated[str | None, typer.Argument(metavar="[GROUP]", help="A group of its model.  [default: none]")]
Key = Annotated[str, typer.Option("--key", metavar="K", help="Which key, where several wait for approval by EST.")]
Why = Annotated[Reason, typer.Option("--reason", help="RFC 5280's reason.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(
        help="Devices: list, show, results, revoke, release, rotate, attest, approve, profile, group.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("list", epilog=example("muster devices list --limit 20 -o json"))(list_devices)
    group.command("show", epilog=example("muster devices show gateway-0017"))(show_device)
    group.command("evidence", epilog=example("muster devices evidence gateway-0017 --export proof"))(evidence)
    group.command("result", epilog=example("muster devices result gateway-0017 --aud rp.example --nonce 6eXvQ0zQ0bM"))(
        result
    )
    group.command("revoke", epilog=example("muster devices revoke gateway-0017 --reason key-compromise"))(revoke)
    group.command("release", epilog=example("muster devices release gateway-0017"))(release)
    group.command("rotate", epilog=example("muster devices rotate gateway-0017"))(rotate)
    group.command("attest", epilog=example("muster devices attest gateway-0017"))(attest)
    group.command("approve", epilog=example("muster devices approve gateway-0017"))(approve)
    group.command("profile", epilog=example("muster devices profile gateway-0017 gateway"))(set_profile)
    group.command("group", epilog=example("muster devices group gateway-0017 pilot"))(set_group)
    app.add_typer(group, name="devices")


def list_devices(
    data_dir: DataDir = None, output: Output = Format.TABLE, after: After = "", limit: Limit = 100
) -> None:
    """List devices in the order of their serials."""
    if after:
        segment(after, "serial")
    path = f"/api/v1/devices?limit={limit}" + (f"&after={after}" if after else "")
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["devices"], _LISTED)
    if len(found["devices"]) == limit:
        note(f"there may be more: --after {found['devices'][-1]['serial']}")


def show_device(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show everything about one device."""
    path = _path(name)
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
        return
    print_fields({key: value for key, value in found.items() if key not in _PARTS})
    for part, columns in _PARTS.items():
        if found[part]:
            print(f"\n{part}")
            rows = found[part] if part != "attestations" else [_in_short(row) for row in found[part]]
            print_records(rows, columns)


def _in_short(attestation: dict[str, Any]) -> dict[str, Any]:
    """One attestation for the table: of its findings where they are; what was expected, `muster explain` says."""
    where = [finding["what"] for finding in attestation["findings"]]
    more = [f"{len(where) - FINDINGS_SHOWN} more"] if len(where) > FINDINGS_SHOWN else []
    return {**attestation, "findings": "; ".join([*where[:FINDINGS_SHOWN], *more])}


def revoke(
    name: Name, data_dir: DataDir = None, output: Output = Format.TABLE, reason: Why = Reason.UNSPECIFIED
) -> None:
    """Revoke a device: its certificates, its MQTT session, its enrollments. Final, but for certificate-hold."""
    _order(output, data_dir, name, "revoke", {"reason": reason.value})


def release(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Bring a device back that an operator put on hold, or one that cannot attest out of quarantine."""
    _order(output, data_dir, name, "release")


def rotate(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Order a device to make a new key and attest for a new certificate."""
    _order(output, data_dir, name, "rotate")
    note(f"ordered; look: muster devices show {name}")


def attest(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Ask a device now to prove what it runs; one in quarantine comes back by passing."""
    _order(output, data_dir, name, "attest")
    note(f"ordered; look: muster devices show {name}")


def approve(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE, key: Key = "") -> None:
    """Accept, for one hour and once, a cleared TPM, another attestation key, or the key that waits by EST."""
    _order(output, data_dir, name, "approve", {"key_id": key} if key else {})


def set_profile(name: Name, profile: Profile, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Set the certificate profile of a device, from its next enrollment or rotation on."""
    _order(output, data_dir, name, "profile", {"profile": profile})
    note(f"what it has stays; for a certificate under it now: muster devices rotate {name}")


def set_group(name: Name, group: Group = None, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Put a device into a group: the group's policy counts before its model's. Without GROUP: into none."""
    _order(output, data_dir, name, "group", {"group": group})


def _order(output: Format, data_dir: Path | None, name: str, what: str, body: object = None) -> None:
    path = f"{_path(name)}/{what}"
    show(output, operator(directory_of(data_dir)).send("POST", path, body))


def _path(name: str) -> str:
    if not name:
        raise Mistaken("NAME is empty; give a device's id or serial")
    return f"/api/v1/devices/{segment(name, _WHAT)}"
