"""`muster demo`: the main job, end to end, on real parts. One of the two commands that import `lab`, late."""

from importlib import import_module

import typer

from provisioning.cli.failures import Failed
from provisioning.cli.output import DataDir, Format, Output, directory_of, example


def add_to(app: typer.Typer) -> None:
    """Put the command in."""
    app.command("demo", epilog=example("muster demo"))(demo)


def demo(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show everything once. Register, attest, enroll, rotate, update, and the attacks that fail."""
    try:
        lab = import_module("lab.demo")
    except ModuleNotFoundError as missing:
        raise Failed(f"demo: {missing.name} is not installed; run it in a clone: make demo") from missing
    root = data_dir.absolute() if data_dir is not None else directory_of(None).root / "demo"
    status = lab.main(root, output=output.value)
    if status:
        raise typer.Exit(status)
