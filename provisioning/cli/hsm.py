"""The owner's commands for tokens and the keys in them."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provisioning.cli import ceremony
from provisioning.cli.failures import Mistaken
from provisioning.cli.output import DataDir, Format, Output, directory_of, example, note, print_json, print_table
from provisioning.config import load_config

if TYPE_CHECKING:
    from pathlib import Path

    from provisioning.app.inspecting import KeyFindings, TokenFindings

SECONDS_MOST, THREADS_MOST = 60, 64

Tokens = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TOKEN]...", help="Labels or PKCS#11 URIs.  [default: all that the configuration names]"),
]
Key = Annotated[str | None, typer.Option("--key", metavar="LABEL", help="Only keys of this label.")]
Seconds = Annotated[int, typer.Option(metavar="S", help=f"How long for each key: 1 to {SECONDS_MOST}.")]
Threads = Annotated[int, typer.Option(metavar="N", help=f"How many sign at once: 1 to {THREADS_MOST}.")]
_FLAGS = ("sensitive", "extractable", "always_sensitive", "never_extractable", "local", "needs_login")


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Tokens and the keys in them.", no_args_is_help=True, rich_markup_mode=None)
    ceremony.add_to(group)
    group.command("list", epilog=example("muster hsm list", "muster hsm list 'pkcs11:token=muster' -o json"))(list_)
    group.command("test", epilog=example("muster hsm test muster --key issuing"))(try_)
    group.command("audit", epilog=example("muster hsm audit -o json"))(audit)
    group.command("bench", epilog=example("muster hsm bench muster --key issuing --seconds 5 --threads 4"))(bench)
    app.add_typer(group, name="hsm")


def list_(tokens: Tokens = None, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """List tokens and keys. Kind, size and attributes of every key."""
    from provisioning.app.inspecting import listed

    found = _examine(data_dir, tokens, listed, None)
    if output is Format.JSON:
        print_json([_token(one) for one in found])
    else:
        print_table(
            ("token", "serial", "key", "id", "kind", "attributes"),
            [
                (one.label, one.facts and one.facts.serial, *cells)
                for one in found
                for cells in [_cells(key) for key in one.keys] or [("-", "-", "-", one.failure or "no keys")]
            ],
        )
    _end(found)


def try_(tokens: Tokens = None, key: Key = None, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Sign and verify with every key. The signatures go nowhere."""
    from provisioning.app.inspecting import tested

    _verdicts(_examine(data_dir, tokens, tested, key), output, "signs")


def audit(tokens: Tokens = None, key: Key = None, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Check the attributes of every key. SENSITIVE, ALWAYS_SENSITIVE, not EXTRACTABLE, NEVER_EXTRACTABLE, LOCAL."""
    from provisioning.app.inspecting import audited

    _verdicts(_examine(data_dir, tokens, audited, key), output, "never left, and cannot leave")


def bench(
    tokens: Tokens = None,
    key: Key = None,
    seconds: Seconds = 2,
    threads: Threads = 1,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
) -> None:
    """Measure signatures a second. By key; other work on this machine and in the token slows it."""
    from provisioning.app.inspecting import measured

    if not (1 <= seconds <= SECONDS_MOST and 1 <= threads <= THREADS_MOST):
        raise Mistaken(f"--seconds takes 1 to {SECONDS_MOST}, --threads 1 to {THREADS_MOST}")
    found = _examine(data_dir, tokens, measured(seconds, threads), key)
    if output is Format.JSON:
        print_json([_token(one) for one in found])
    else:
        rows = [
            (one.label, each.info.label, each.info.algorithm, None if each.rate is None else f"{each.rate:.0f}")
            for one in found
            for each in one.keys
        ]
        print_table(("token", "key", "kind", "signatures/s"), rows)
    _end(found)


def _examine(
    data_dir: "Path | None", tokens: list[str] | None, look: "Callable[..., KeyFindings]", key: str | None
) -> "list[TokenFindings]":
    from provisioning.app.inspecting import examine

    directory = directory_of(data_dir)
    found = list(examine(directory, load_config(directory), tokens or (), look, label=key))
    if key is not None and not any(one.keys or one.failure for one in found):
        raise Mistaken(f"no token has a key {key!r}; look: muster hsm list")
    return found


def _verdicts(found: "list[TokenFindings]", output: Format, good: str) -> None:
    if output is Format.JSON:
        print_json([_token(one) for one in found])
    else:
        rows = [
            ("FAIL" if key.faults else "ok", one.label, key.info.label, key.info.algorithm or key.info.kind, says)
            for one in found
            for key in one.keys
            for says in key.faults or (good,)
        ]
        rows += [("FAIL", one.label, "-", "-", one.failure) for one in found if one.failure]
        print_table(("", "token", "key", "kind", "says"), rows)
    _end(found)


def _token(one: "TokenFindings") -> dict[str, Any]:
    said = {} if one.facts is None else asdict(one.facts)
    keys = [_key(key) for key in one.keys]
    return {"label": one.label, "module": str(one.place.module.path), **said, "keys": keys, "failure": one.failure}


def _key(key: "KeyFindings") -> dict[str, Any]:
    said = {"label": key.info.label, "id": key.info.id.hex(), "kind": key.info.algorithm or key.info.kind}
    flags = {name: getattr(key.info, name) for name in _FLAGS}
    rate = {} if key.rate is None else {"signatures_per_second": round(key.rate, 1)}
    return {**said, "bits": key.bits, **flags, "faults": list(key.faults), **rate}


def _cells(key: "KeyFindings") -> tuple[str, str, str, str]:
    flags = ", ".join(name.replace("_", " ") for name in _FLAGS if getattr(key.info, name))
    return key.info.label, key.info.id.hex(), key.info.algorithm or key.info.kind, flags


def _end(found: "list[TokenFindings]") -> None:
    for one in found:
        if one.failure:
            note(f"token {one.label!r} was not looked at: {one.failure}")
    if not all(one.holds for one in found):
        raise typer.Exit(1)
