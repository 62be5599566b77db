"""Files that a command line names: one that is not there is a mistake of that line, with every command: status 2."""

from pathlib import Path
from typing import Any

from typer.models import TyperPath

from provisioning.cli.failures import Mistaken

WRITTEN = frozenset({"--data-dir", "--export", "--out", "--repository"})
"""Options whose path a command makes, or whose absence it explains better: they need not exist."""


def demand_files(command: Any) -> Any:  # noqa: ANN401  typer's own copy of click has no public name
    """The command, of whose subcommands each refuses a path that is to be read and is not there, before it begins."""
    for child in getattr(command, "commands", {}).values():
        demand_files(child)
    for parameter in command.params:
        if isinstance(parameter.type, TyperPath) and WRITTEN.isdisjoint(parameter.opts):
            parameter.type.exists, parameter.type.readable = True, False  # who may not read it is told how to mend that
            parameter.type.dir_okay = "DIR" in (parameter.metavar or "")
    return command


def existing(path: Path) -> Path:
    """The file, where a word may name a file or something else. Raises: Mistaken."""
    if not path.exists() or path.is_dir():
        why = "is a directory; name a file" if path.is_dir() else "does not exist; check the name"
        raise Mistaken(f"{path}: {why}")
    return path
