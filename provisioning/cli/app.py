"""The commands, put together; the one place where what went wrong becomes a line and an exit status."""

import os
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from provisioning.cli import (
    attest,
    audit,
    ca,
    certificates,
    crl,
    demo,
    devices,
    ek_roots,
    est,
    explain,
    factory,
    findings,
    hsm,
    operators,
    ota,
    owner,
    policy,
    profile,
    results,
    simulate,
    trust,
)
from provisioning.cli.arguments import demand_files
from provisioning.cli.failures import UNREACHABLE, described
from provisioning.cli.output import clean

INTERRUPTED = 130
MODULE_SECONDS = 60.0
"""So long a command waits for one call into a PKCS#11 module: to make a key may take a token many seconds."""
LOOK_SECONDS = 0.25

app = typer.Typer(
    name="muster",
    help="Gives every device of a fleet an identity that it can prove. Exit status: 0 done, 1 refused or a check"
    " failed, 2 usage, 3 unreachable.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"muster {version('muster')}")
        raise typer.Exit


@app.callback()
def _muster(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Options of no command in particular."""


_GROUPS = (
    owner, hsm, audit, factory, devices, findings, certificates, ca, crl, est, policy, ek_roots, attest, profile,
    explain, trust, operators, ota, results, simulate, demo,
)  # fmt: skip
for module in _GROUPS:
    module.add_to(app)


def run(arguments: Sequence[str] | None) -> int:
    """Run one command; its exit status."""
    ended = threading.Event()
    threading.Thread(target=_watch_modules, args=(ended,), name="hsm watch", daemon=True).start()
    try:
        try:
            command = demand_files(typer.main.get_command(app))
            command(args=None if arguments is None else list(arguments), prog_name="muster")
        finally:
            ended.set()
            sys.stdout.flush()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BrokenPipeError:  # the reader had enough; nor is anything more written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the outer edge: users see one line, never a traceback
        status, lines = described(error)
        for line in lines:
            print(f"muster: {clean(line)}", file=sys.stderr)
        return status
    return 0


def _watch_modules(ended: threading.Event) -> None:
    """A call into a module cannot be broken off, nor can Python end around it: say so, and be gone."""
    while not ended.wait(LOOK_SECONDS):
        watch = sys.modules.get("hsm.watch")  # no command that only talks to a service imports it
        if watch is not None and watch.longest_seconds() > MODULE_SECONDS:
            line = f"muster: HSM: a PKCS#11 module has not answered for {MODULE_SECONDS:g} s; look after its token\n"
            os.write(2, line.encode())
            os._exit(UNREACHABLE)
