"""`muster simulate`: a fleet of virtual devices. One of the two commands that import `lab`, late."""

from importlib import import_module
from typing import Annotated

import typer

from provisioning.cli.failures import Failed
from provisioning.cli.output import DataDir, Format, Output, directory_of, example
from provisioning.config import DataDirectory

DEVICES_MOST = 10_000

Devices = Annotated[int, typer.Option(min=1, max=DEVICES_MOST, metavar="N", help="How many virtual devices.")]
Up = Annotated[bool, typer.Option("--up", help="Make and run a service of their own, until Ctrl-C.")]


def add_to(app: typer.Typer) -> None:
    """Put the command in."""
    app.command("simulate", epilog=example("muster simulate --devices 3 --up"))(simulate)


def simulate(devices: Devices = 3, up: Up = False, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Run virtual devices. Software TPMs, measured boot, the real agent."""
    try:
        lab = import_module("lab.simulate")
    except ModuleNotFoundError as missing:
        raise Failed(f"simulate: {missing.name} is not installed; run it in a clone: make up") from missing
    # A fleet of its own lives in a folder of its own: beside the demo's, not around it.
    directory = DataDirectory(directory_of(None).root / "up") if up and data_dir is None else directory_of(data_dir)
    status = lab.main(directory, devices=devices, up=up, output=output.value)
    if status:
        raise typer.Exit(status)
