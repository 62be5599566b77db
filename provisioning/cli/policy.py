"""Policies: what a model's devices must be and boot. Set, or proposed, tried on stored evidence and promoted."""

from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning.cli.arguments import existing
from provisioning.cli.client import RefusedByService, operator, segment
from provisioning.cli.failures import REFUSED, Failed
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    clean,
    directory_of,
    example,
    note,
    print_json,
    print_records,
    show,
)
from provisioning.cli.policy_files import with_certificates

_PATH = "/api/v1/policies"
_LISTED = ("model", "group", "version", "state", "mode", "created", "by", "promoted_by")
_TESTED = ("serial", "attested", "verdict", "what", "expected", "actual")

File = Annotated[Path, typer.Argument(metavar="FILE", help="TOML; roots may name certificate_file = PATH.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Group = Annotated[str | None, typer.Option("--group", metavar="G", help="The policy of this group of the model.")]
Version = Annotated[int | None, typer.Option("--version", metavar="N", min=1, help="Another than that in force.")]
Draft = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The draft's version.")]
To = Annotated[str, typer.Option("--to", metavar="VERSION|FILE", help="With what.  [default: the newest draft]")]
Subject = Annotated[str, typer.Argument(metavar="FILE|MODEL", help="A policy's file, or a model (its newest draft).")]
Every = Annotated[bool, typer.Option("--all", help="All stored evidence, not only each device's newest.")]
From = Annotated[list[str] | None, typer.Option("--device", metavar="D", help="Learn from this one; repeatable.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(
        help="Policies: set, propose, promote; show, list, diff, test, learn.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("set", epilog=example("muster policy set gateway.toml"))(set_policy)
    group.command("propose", epilog=example("muster policy propose gateway.toml"))(propose)
    group.command("promote", epilog=example("muster policy promote gateway 7"))(promote)
    group.command("show", epilog=example("muster policy show gateway", "muster policy show gateway --version 6"))(
        show_policy
    )
    group.command("list", epilog=example("muster policy list"))(list_policies)
    group.command("diff", epilog=example("muster policy diff gateway", "muster policy diff gateway --to new.toml"))(
        diff
    )
    group.command("test", epilog=example("muster policy test new.toml", "muster policy test gateway --version 7"))(
        try_policy
    )
    group.command("learn", epilog=example("muster policy learn gateway > learned.toml"))(learn)
    app.add_typer(group, name="policy")


def set_policy(file: File, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Put a policy into force at once. Another mode, or accepting what was refused, needs propose and promote."""
    show(output, _sent(file, data_dir, "PUT", _PATH))


def propose(file: File, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Propose a policy: a draft that counts for nothing until another operator promotes it."""
    kept = _sent(file, data_dir, "POST", "/api/v1/policy-drafts")
    show(output, kept)
    note(f"a draft; try it: muster policy test {kept['model']} --version {kept['version']}")


def promote(model: Model, version: Draft, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Put a draft into force that another operator proposed. Look first: muster policy diff, muster policy test."""
    path = f"{_PATH}/{segment(model, 'model')}/promote"
    show(output, operator(directory_of(data_dir)).send("POST", path, {"version": version}))


def show_policy(
    model: Model,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    group: Group = None,
    version: Version = None,
) -> None:
    """Show a model's policy, as it was set."""
    found = operator(directory_of(data_dir)).get(_path(model, "", group=group, version=version))
    if output is Format.JSON:
        print_json(found)
        return
    of_group = "" if found["group"] is None else f", group {found['group']}"
    head = f"model {found['model']}{of_group}, version {found['version']}, {found['state']}"
    note(f"{head}, set {found['created']} by {found['by']}")
    print(found["toml"], end="" if found["toml"].endswith("\n") else "\n")  # the very text: it may be set again


def list_policies(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """List the policies in force, and the drafts."""
    found = operator(directory_of(data_dir)).get(_PATH)
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["policies"], _LISTED)


def diff(
    model: Model, data_dir: DataDir = None, output: Output = Format.TABLE, to: To = "", group: Group = None
) -> None:
    """Show what a draft, a version or a file changes of the policy in force."""
    client = operator(directory_of(data_dir))
    if to and not _is_version(to):
        body = {"toml": with_certificates(existing(Path(to))), "group": group}
        found = _named(Path(to), lambda: client.send("POST", _path(model, "/diff"), body))
    else:
        found = client.get(_path(model, "/diff", group=group, to=to or None))
    if output is Format.JSON:
        print_json(found)
        return
    for line in found["lines"]:
        print(clean(line))
    if not found["changed"]:
        note("no difference")


def try_policy(
    subject: Subject,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    group: Group = None,
    version: Version = None,
    every: Every = False,
) -> None:
    """Judge stored evidence by a policy, as if it were enforced: who would fail, and why. Status 1 if somebody would.

    The newest evidence of each device counts. What the policy asks for and no evidence shows yet is "unjudged".
    """
    client, file = operator(directory_of(data_dir)), Path(subject)
    asked: dict[str, Any] = {"every": every}
    if file.is_file() or file.suffix == ".toml" or "/" in subject:
        if group is not None or version is not None:
            raise Failed(f"{subject}: a file says its model and group itself; leave --group and --version out")
        asked |= {"toml": with_certificates(existing(file))}
    else:
        asked |= {"model": segment(subject, "model"), "group": group, "version": version}
    result: dict[str, Any] = {"judged": 0, "devices": []}
    behind: str | None = ""
    while behind is not None:
        page = _named(file, lambda at=behind: client.send("POST", "/api/v1/policy-tests", {**asked, "behind": at}))
        if "model" in asked:
            asked["version"] = page["version"]  # a draft that is proposed meanwhile is not this one
        behind = page.pop("behind")
        told = {"judged": result["judged"] + page["judged"], "devices": [*result["devices"], *page["devices"]]}
        told |= {"removed": result["removed"]} if "removed" in result else {}
        result = {**page, **told}
    _tell(output, result)


def learn(
    model: Model,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    group: Group = None,
    version: Version = None,
    device: From = None,
) -> None:
    """Print a policy whose reference values are those that chosen devices showed: learn_from, or --device.

    Look at it, then: muster policy propose FILE. Devices that were compromised when they attested teach just that.
    """
    body = {"group": group, "version": version, "devices": device or []}
    path = _path(model, "/learn")
    found = operator(directory_of(data_dir)).send("POST", path, body)
    if output is Format.JSON:
        print_json(found)
        return
    print(found["toml"], end="")
    if found["without_evidence"]:
        note(f"no evidence of {', '.join(found['without_evidence'])}")


def _tell(output: Format, result: dict[str, Any]) -> None:
    """The result of a test. Raises: typer.Exit."""
    counts = {verdict: sum(row["verdict"] == verdict for row in result["devices"]) for verdict in ("fail", "unjudged")}
    counts = {"pass": result["judged"] - sum(counts.values()), **counts}
    if output is Format.JSON:
        print_json({**result, **counts})
    else:
        rows = [line for row in result["devices"] for line in _lines(row)]
        if rows:
            print_records(rows, _TESTED)
        version = "" if result["version"] is None else f", version {result['version']}"
        of_group = "" if result["group"] is None else f", group {result['group']}"
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        note(f"model {result['model']}{of_group}{version}: {result['judged']} judged, {told}")
        if result.get("removed"):
            note(f"{result['removed']} older ones of the model were removed by retention: nothing is said of them")
    if result["devices"]:
        raise typer.Exit(REFUSED)


def _lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each thing that a person must mend."""
    shared = {"serial": row["serial"], "attested": row["at"], "verdict": row["verdict"]}
    lines: list[dict[str, Any]] = []
    for refusal in row["refusals"]:
        found = refusal["findings"] or [{"what": refusal["title"], **{k: refusal[k] for k in ("expected", "actual")}}]
        lines += [{**shared, **finding} for finding in found]
    lines += [
        {**shared, "what": what, "expected": "in the evidence", "actual": why or "not there yet"}
        for what, _, why in (lack.partition(": ") for lack in row["lacks"])
    ]
    return lines


def _sent(file: Path, data_dir: Path | None, method: str, path: str) -> dict[str, Any]:
    """A policy's file to the service. Raises: Failed, OSError."""
    text = with_certificates(file)
    client = operator(directory_of(data_dir))
    return _named(file, lambda: client.send(method, path, {"toml": text}))


def _named(file: Path, ask: Any) -> dict[str, Any]:  # noqa: ANN401  a call without arguments
    """The answer; a refusal says which file it is about. Raises: Failed."""
    try:
        found: dict[str, Any] = ask()
    except RefusedByService as refused:
        raise Failed(f"{clean(file)}: {refused.lines[0]}") from refused
    return found


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _path(model: str, what: str, **fields: object) -> str:
    given = [f"{name}={segment(str(value), name)}" for name, value in fields.items() if value is not None]
    return f"{_PATH}/{segment(model, 'model')}{what}" + ("?" + "&".join(given) if given else "")
