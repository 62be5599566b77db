"""The key ceremony, for the people in the room or by a file of answers. No PIN is ever an argument."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.cli.failures import Failed, Mistaken, naming
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    clean,
    directory_of,
    example,
    note,
    print_json,
    print_table,
    show,
)
from provisioning.config import DataDirectory

if TYPE_CHECKING:
    from provisioning.app.ceremony import Begun, Done
    from provisioning.app.ceremony_plan import Ceremony
    from provisioning.issuance.outside import OutsideAuthority

ANSWERS_MOST = 64 * 1024
COMMAND_MOST = 2000

AnswersFile = Annotated[
    Path | None,
    typer.Option("--answers", metavar="FILE", help="Answers in TOML; without, they are asked on the terminal."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, look at tokens and PINs, write nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for a confirmation.")]
PlanHash = Annotated[
    str, typer.Option("--plan", metavar="SHA256", help="Refuse every plan but the one that was looked at before.")
]
OutsideCa = Annotated[
    bool, typer.Option("--outside-ca", help="Another CA signs the issuing CA: write issuing.csr and wait.")
]
Import = Annotated[
    Path | None,
    typer.Option("--import", metavar="CERT", help="Go on with the outside CA's certificate; CHAIN follows."),
]
Chain = Annotated[
    list[Path] | None, typer.Argument(metavar="[CHAIN]...", help="The CAs above CERT, nearest first, its root last.")
]
Discard = Annotated[bool, typer.Option("--discard", help="Give up one that waits or was killed: destroy its keys.")]
Verify = Annotated[
    Path | None, typer.Option("--verify", metavar="TRANSCRIPT", help="Compare a transcript with the log and the CA.")
]


def add_to(group: typer.Typer) -> None:
    """Put the command in."""
    group.command(
        "ceremony",
        epilog=example(
            "muster hsm ceremony --dry-run",
            "muster hsm ceremony --answers answers.toml --plan SHA256 --yes",
            "muster hsm ceremony --import issuing.pem policy-ca.pem root.pem",
            "muster hsm ceremony --verify transcript.json",
        ),
    )(ceremony)


def ceremony(
    chain: Chain = None,
    *,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    answers: AnswersFile = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    plan: PlanHash = "",
    outside_ca: OutsideCa = False,
    import_: Import = None,
    discard: Discard = False,
    verify: Verify = None,
) -> None:
    """Make root, issuing CA and all keys in tokens, and an installation that serves with them."""
    directory = directory_of(data_dir)
    _refuse_mixture(chain, answers, dry_run, plan, outside_ca, import_, discard, verify)
    if verify is not None:
        _verify(directory, output, verify)
    elif discard:
        _discard(directory, output, yes=yes)
    elif import_ is not None:
        _import(directory, output, import_, chain or [], dry_run=dry_run, yes=yes)
    else:
        planned = _planned(answers, outside_ca=outside_ca)
        _hold(directory, output, planned, expected=plan, dry_run=dry_run, yes=yes)


def _refuse_mixture(
    chain: Sequence[Path] | None,
    answers: Path | None,
    dry_run: bool,
    plan: str,
    outside_ca: bool,
    import_: Path | None,
    discard: bool,
    verify: Path | None,
) -> None:
    doing = [
        name
        for name, given in (
            ("--import", import_ is not None),
            ("--discard", discard),
            ("--verify", verify is not None),
        )
        if given
    ]
    of_a_new_one = answers is not None or plan or outside_ca or (dry_run and doing != ["--import"])
    if len(doing) > 1 or (doing and of_a_new_one):
        raise Mistaken(f"{', '.join(doing)}: stands alone; no other way of --help goes with it")
    if bool(chain) != (import_ is not None):
        raise Mistaken("--import CERT and CHAIN belong together: every certificate up to the outside CA's root")


# --- a new one --------------------------------------------------------------------------------------------------------


def _planned(file: Path | None, *, outside_ca: bool) -> "Ceremony":
    from provisioning.app.ceremony_answers import AnswersRefused, parse_answers
    from provisioning.app.ceremony_plan import plan
    from provisioning.cli.asking import asked_answers

    try:
        if file is None:
            answers, text = asked_answers(outside=outside_ca), ""
        else:
            text = _text(file)
            answers = parse_answers(text, str(file))
        if outside_ca:
            answers = replace(answers, root=replace(answers.root, outside=True))
        return plan(answers, name=str(file or "answers"), text=text)
    except AnswersRefused as refused:
        raise Failed(*refused.lines) from refused


def _text(file: Path) -> str:
    from ota.files import read_at_most

    data = read_at_most(file, ANSWERS_MOST)
    if data is None:
        raise Failed(f"{file}: is not there; check the name")
    if len(data) > ANSWERS_MOST:
        raise Failed(f"{file}: is larger than {ANSWERS_MOST // 1024} KiB; name the file of answers")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Failed(f"{file}: is not UTF-8; save it as UTF-8") from error


def _hold(
    directory: DataDirectory, output: Format, ceremony: "Ceremony", *, expected: str, dry_run: bool, yes: bool
) -> None:
    from provisioning.app.ceremony_plan import fingerprint
    from provisioning.app.ceremony_transcript import plan_text
    from provisioning.app.installation import install, request

    sha256 = fingerprint(ceremony)
    if dry_run and output is Format.JSON:
        print_json({"plan_sha256": sha256, "plan": asdict(ceremony), "looked_at": _examined(directory, ceremony)})
        return
    text = plan_text(ceremony, sha256)
    print(text, end="", flush=True, file=sys.stdout if dry_run or output is Format.TABLE else sys.stderr)
    if expected and expected.lower() != sha256:
        raise Failed(f"--plan {expected}: is another plan than this one, {sha256}; look at it again: --dry-run")
    looked = _examined(directory, ceremony)
    if dry_run:
        print_table(("looked at", "found"), [(each["what"], each["fault"] or "ok") for each in looked])
        return
    _confirm("Carry out this plan?", yes=yes)
    with naming(directory.root):
        if ceremony.outside:
            file = request(directory, ceremony, _begun())
            show(output, {"data_dir": str(directory.root), "request": str(file), "plan_sha256": sha256})
            note("next: have it signed as a CA of path length 0; then: muster hsm ceremony --import CERT CHAIN...")
            return
        done = install(directory, ceremony, _begun())
    _told(directory, output, done)


def _examined(directory: DataDirectory, ceremony: "Ceremony") -> list[dict[str, str]]:
    """What was looked at before anything is made. Raises: Failed, with everything that is wrong."""
    from provisioning.app.ceremony_tokens import examine
    from provisioning.app.configuration import configuration_of
    from provisioning.app.installation import refuse_occupied, refuse_unwritable

    refuse_occupied(directory)
    refuse_unwritable(directory)
    looked = examine(ceremony, configuration_of(ceremony, "muster.toml"))
    if wrong := [f"{each.what}: {each.fault}" for each in looked if each.fault]:
        raise Failed(*wrong, "nothing was made")
    return [asdict(each) for each in looked]


def _told(directory: DataDirectory, output: Format, done: "Done") -> None:
    from provisioning.app.ceremony_transcript import digests

    sha256, text_sha256 = digests(done.transcript)
    show(
        output,
        {
            "data_dir": str(directory.root),
            "service_name": done.transcript.service_name,
            "root_certificate": str(directory.ca / "root.pem"),
            "anchor": str(directory.anchor),
            "transcript": str(directory.ceremony / "transcript.json"),
            "transcript_sha256": sha256,
            "paper": str(directory.ceremony / "transcript.txt"),
            "paper_sha256": text_sha256,
        },
    )
    note("next: print the paper and sign it; then take these away, each with its PIN:")
    for token in done.transcript.tokens:
        if token.offline:
            note(f"  {token.label}{f': {directory.root / token.place}' if token.place else ''}")
    note("then: muster serve")


# --- what comes later -------------------------------------------------------------------------------------------------


def _import(
    directory: DataDirectory, output: Format, certificate: Path, chain: Sequence[Path], *, dry_run: bool, yes: bool
) -> None:
    from cryptography.hazmat.primitives import hashes

    from provisioning.app.installation import complete

    outside = _verified(directory, certificate, chain)
    root = outside.root

    note(f"issuing CA  {outside.certificate.subject.rfc4514_string()}, until {outside.certificate.not_valid_after_utc}")
    note(f"root        {root.subject.rfc4514_string()}, SHA-256 {root.fingerprint(hashes.SHA256()).hex()}")
    if dry_run:
        show(output, {"data_dir": str(directory.root), "certificate": "would be taken"})
        return
    _confirm("Is this the root that the outside CA published? Devices will trust it.", yes=yes)
    with naming(directory.root):
        done = complete(directory, outside, _begun())
    _told(directory, output, done)


def _verified(directory: DataDirectory, certificate: Path, chain: Sequence[Path]) -> "OutsideAuthority":
    from ota.files import read_at_most
    from provisioning.app.blocklists import debian_weak
    from provisioning.app.compose import clock
    from provisioning.app.configuration import configuration_of
    from provisioning.app.installation import outside_wishes, waiting
    from provisioning.issuance.outside import CERTIFICATE_MOST, verify_outside

    files = []
    for file in (certificate, *chain):
        data = read_at_most(file, CERTIFICATE_MOST)
        if data is None:
            raise Failed(f"{file}: is not there; check the name")
        files.append(data)
    key, names = outside_wishes(directory)
    weak = debian_weak(directory, configuration_of(waiting(directory)[0], "muster.toml"))
    return verify_outside(files[0], files[1:], public_key=key, now=clock(), names=names, debian_weak=weak)


def _discard(directory: DataDirectory, output: Format, *, yes: bool) -> None:
    from provisioning.app.installation import discard

    _confirm("Destroy the keys of the ceremony that waits or was killed here?", yes=yes)
    gone = discard(directory)
    show(output, {"data_dir": str(directory.root), "destroyed": gone})


def _verify(directory: DataDirectory, output: Format, file: Path) -> None:
    from ota.files import read_at_most
    from provisioning.app.ceremony_check import compare
    from provisioning.app.ceremony_transcript import TRANSCRIPT_MOST

    data = read_at_most(file, TRANSCRIPT_MOST)
    if data is None:
        raise Failed(f"{file}: is not there; check the name")
    transcript, leaf = compare(directory, data)
    show(
        output,
        {
            "transcript": str(file),
            "service_name": transcript.service_name,
            "ended_at": transcript.ended_at.isoformat(),
            "people": [person.name for person in transcript.people],
            "keys": len(transcript.keys),
            "certificates": [record.name for record in transcript.certificates],
            "leaf": leaf,
        },
    )
    note("it is the transcript that the log holds; the CA certificates and the keys are those of today")


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failed("nobody can be asked, there is no terminal; look at the plan (--dry-run), then say --yes")
    if not typer.confirm(question, err=True):
        raise Failed("nothing was made")


def _begun() -> "Begun":
    from provisioning.app.ceremony import Begun
    from provisioning.app.compose import clock

    typed = sys.argv[1:] if Path(sys.argv[0]).name == "muster" else ["hsm", "ceremony"]
    return Begun(clock(), (clean(shlex.join(["muster", *typed]))[:COMMAND_MOST],))
