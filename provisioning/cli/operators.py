"""Operators: who may call the operator listener. Tokens are made by the service and printed once."""

from typing import Annotated

import typer

from provisioning.access import Role
from provisioning.cli.client import operator, segment
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

_PATH = "/api/v1/operators"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The operator's name: a-z 0-9 . -")]
Wanted = Annotated[Role, typer.Option("--role", help="What the operator may do: docs/operations.md.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(
        help="Operators and their tokens: add, list, remove.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("add", epilog=example("muster operators add ada --role operator > ada.token"))(add)
    group.command("list", epilog=example("muster operators list"))(list_operators)
    group.command("remove", epilog=example("muster operators remove ada"))(remove)
    app.add_typer(group, name="operators")


def add(name: Name, role: Wanted, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Make an operator and print the bearer token, once. Only an admin may."""
    made = operator(directory_of(data_dir)).send("POST", _PATH, {"name": segment(name, "name"), "role": role.value})
    if output is Format.JSON:
        print_json(made)
    else:
        print(made["token"])
    note(f"operator {made['name']}, role {made['role']}; the token is not shown again")


def list_operators(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """List operators and their roles. The tokens themselves are not stored."""
    found = operator(directory_of(data_dir)).get(_PATH)
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["operators"], ("name", "role", "created"))


def remove(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Remove an operator: the token opens nothing any more. The last admin stays."""
    show(output, operator(directory_of(data_dir)).send("DELETE", f"{_PATH}/{segment(name, 'name')}"))
