"""Certificate profiles: which keys are good enough, how long certificates last, what waits for approval."""

from pathlib import Path
from typing import Annotated

import typer

from provisioning.cli.client import RefusedByService, operator, segment
from provisioning.cli.failures import Failed
from provisioning.cli.output import DataDir, Format, Output, directory_of, example, print_json, print_records, show

PROFILE_MOST = 16 * 1024

File = Annotated[Path, typer.Argument(metavar="FILE", help="TOML.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The profile's name.")]
Version = Annotated[int | None, typer.Option("--version", metavar="N", min=0, help="Another than that in force.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Certificate profiles.", no_args_is_help=True, rich_markup_mode=None)
    group.command("set", epilog=example("muster profile set ldevid.toml"))(set_profile)
    group.command("show", epilog=example("muster profile show ldevid > ldevid.toml"))(show_profile)
    group.command("list", epilog=example("muster profile list"))(list_profiles)
    group.command("check", epilog=example("muster profile check ldevid.toml"))(check_profile)
    app.add_typer(group, name="profile")


def set_profile(file: File, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Set the next version of a profile. It counts for every certificate that is issued from then on."""
    text = _checked(file)
    client = operator(directory_of(data_dir))
    try:
        show(output, client.send("PUT", "/api/v1/profiles", {"toml": text}))
    except RefusedByService as refused:
        raise Failed(f"{file}: {refused.lines[0]}") from refused


def show_profile(name: Name, version: Version = None, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show a profile as it was set: a file for `muster profile set`."""
    path = f"/api/v1/profiles/{segment(name, 'profile')}" + ("" if version is None else f"?version={version}")
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
        return
    when = "" if found["created"] is None else f", set {found['created']}"
    print(f"# profile {found['name']}, version {found['version']}{when}, by {found['by']}")
    print("\n".join(line for line in found["toml"].splitlines() if not line.startswith("# profile ")))


def list_profiles(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """List the profiles in force."""
    found = operator(directory_of(data_dir)).get("/api/v1/profiles")
    if output is Format.JSON:
        print_json(found)
        return
    rows = [{**row, "keys": " ".join(row["keys"]), "lifetime": _lifetime(row)} for row in found["profiles"]]
    print_records(rows, ("name", "kind", "version", "lifetime", "keys", "created", "by"))


def check_profile(file: File, output: Output = Format.TABLE) -> None:
    """Check a profile without setting it. Needs no service; every fault is named with its line and its cure."""
    from provisioning.issuance.profiles import parse_profile

    profile = parse_profile(_checked(file), str(file))
    show(output, {"name": profile.name, "kind": profile.kind.value, "says": "can be used"})


def _checked(file: Path) -> str:
    """The file's text, once it is a profile: so that faults are named by the file. Raises: Failed, OSError."""
    from provisioning.issuance.profiles import parse_profile
    from provisioning.refusals import ProfileMalformed

    with file.open("rb") as opened:
        data = opened.read(PROFILE_MOST + 1)
    if len(data) > PROFILE_MOST:
        raise Failed(f"{file}: is larger than {PROFILE_MOST // 1024} KiB; is it a profile?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Failed(f"{file}: line {line}: is not UTF-8; save the file as UTF-8") from error
    try:
        parse_profile(text, str(file))
    except ProfileMalformed as refusal:
        raise Failed(*(f"{found.what} {found.actual}; {found.cure}" for found in refusal.findings)) from refusal
    return text


def _lifetime(row: dict[str, object]) -> str:
    seconds = row["lifetime_seconds"]
    if not isinstance(seconds, int):
        return "no end"
    days, rest = divmod(seconds, 86400)
    return f"{days} d" if not rest else f"{seconds // 3600} h"
