"""The owner's commands for tokens and the keys in them."""

import typer

from provisioning.cli import ceremony


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Tokens and the keys in them.", no_args_is_help=True, rich_markup_mode=None)
    ceremony.add_to(group)
    # A group also while it has one command.
    group.callback()(lambda: None)
    app.add_typer(group, name="hsm")
