"""The owner's commands that check an installation: `doctor`, `fsck`, `audit verify`."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    clean,
    directory_of,
    example,
    note,
    print_json,
)
from provisioning.config import Config, DataDirectory, load_config

if TYPE_CHECKING:
    from provisioning.app.audit import Report
    from provisioning.app.findings import Finding
    from provisioning.db.store import Store

FAULTS_SHOWN = 20

Kept = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="A checkpoint kept elsewhere: was history rewritten?"),
]
Lint = Annotated[
    bool, typer.Option("--lint", help="Hold every certificate against its profile, and lint it: minutes for many.")
]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    app.command("doctor", epilog=example("muster doctor"))(doctor)
    app.command("fsck", epilog=example("muster fsck -o json", "muster fsck --lint"))(fsck)
    group = typer.Typer(help="The transparency log.", no_args_is_help=True, rich_markup_mode=None)
    group.command(
        "verify", epilog=example("muster audit verify", "muster audit verify --checkpoint last-month.checkpoint")
    )(verify)
    # One command, and a group all the same: more will stand beside it.
    group.callback()(lambda: None)
    app.add_typer(group, name="audit")


def doctor(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Examine an installation. Packages, HSM, TLS, broker, clock, database, expiry, permissions, with cures."""
    from provisioning.app.doctor import examine
    from provisioning.app.findings import FAIL

    findings = examine(directory_of(data_dir))
    if output is Format.JSON:
        print_json([{"check": one.check, "status": one.status, "says": one.says, "cure": one.cure} for one in findings])
    else:
        _print_findings(findings)
    if any(one.status == FAIL for one in findings):
        raise typer.Exit(1)


def fsck(lint: Lint = False, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Check the database's promises. Certificates, log, CRL, attestations, devices; nothing is changed."""
    from provisioning.app.audit import log_keys
    from provisioning.app.compose import clock, load_authorities
    from provisioning.app.fsck import check_installation

    directory, config = _installation(data_dir)
    keys = log_keys(directory, config)
    with ExitStack() as opened:
        store = _store(directory, config, opened)
        authorities = load_authorities(store, config)
        report = store.read_now(lambda tx: check_installation(tx, authorities, keys, clock()))
        if lint:
            from provisioning.app.fsck_lint import lint_installation

            report.checks += lint_installation(store.read_now, authorities, config.service_name).checks
    _end(output, report)


def verify(data_dir: DataDir = None, output: Output = Format.TABLE, checkpoint: Kept = None) -> None:
    """Verify the log: every leaf, the order, every root, every signature."""
    from provisioning.app.audit import log_keys, read_kept, verify_log

    directory, config = _installation(data_dir)
    keys = log_keys(directory, config)
    kept = None if checkpoint is None else read_kept(checkpoint)
    with ExitStack() as opened:
        report = _store(directory, config, opened).read_now(lambda tx: verify_log(tx, keys, kept))
    _end(output, report)


def _installation(data_dir: Path | None) -> tuple[DataDirectory, Config]:
    directory = directory_of(data_dir)
    return directory, load_config(directory)


def _store(directory: DataDirectory, config: Config, opened: ExitStack) -> "Store":
    from provisioning.db.schema import verify_schema
    from provisioning.db.store import Store, open_sqlite

    path = directory.database(config)
    path.stat()
    verify_schema(path)
    store = Store(open_sqlite(path, read_only=True))
    opened.callback(store.close)
    return store


def _end(output: Format, report: "Report") -> None:
    if output is Format.JSON:
        checks = [
            {
                "check": one.name,
                "ok": one.holds,
                "looked_at": one.looked_at,
                "faults": one.faults,
                "cure": _cure(one.holds, one.cure),
            }
            for one in report.checks
        ]
        print_json({"ok": report.holds, "checks": checks, "notes": report.notes})
    else:
        for check in report.checks:
            print(f"{'ok  ' if check.holds else 'FAIL'}  {check.name} ({check.looked_at})")
            for fault in check.faults[:FAULTS_SHOWN]:
                print(f"      {clean(fault)}")
            if len(check.faults) > FAULTS_SHOWN:
                print(f"      and {len(check.faults) - FAULTS_SHOWN} more")
        for line in report.notes:
            note(line)
    if not report.holds:
        failed = [check for check in report.checks if not check.holds]
        note(f"{len(failed)} of {len(report.checks)} checks failed; {failed[0].cure}")
        raise typer.Exit(1)


def _cure(holds: bool, cure: str) -> str:
    return "" if holds else cure


def _print_findings(findings: "list[Finding]") -> None:
    width = max(len(one.check) for one in findings)
    for one in findings:
        print(f"{one.status:<4}  {one.check:<{width}}  {clean(one.says)}")
        if one.cure:
            print(f"      {'':<{width}}  -> {clean(one.cure)}")
