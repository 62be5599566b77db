"""The store of TPM manufacturers' certificates: which roots policies may name, and the intermediates below them."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from provisioning.cli.client import operator, segment
from provisioning.cli.failures import Failed, Mistaken
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    directory_of,
    example,
    note,
    print_fields,
    print_json,
    print_records,
    show,
)

_SHOWN = ("manufacturer", "role", "fingerprint", "not_after", "subject")

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="FILE|DIR|CAB", help="PEM, DER, PKCS#7, bundles of them; directories; TrustedTpm.cab."),
]
Maker = Annotated[
    str | None,
    typer.Option(
        "--manufacturer", metavar="NAME", help="The name to keep them under. [default: folder's or subject's]"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would be used and refused.")]
Fingerprint = Annotated[str, typer.Argument(metavar="FINGERPRINT", help="SHA-256 of the certificate, in hex.")]
Fingerprints = Annotated[list[str], typer.Argument(metavar="FINGERPRINT", help="SHA-256 of a certificate, in hex.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Whose TPMs count.", no_args_is_help=True, rich_markup_mode=None)
    examples = ("muster ek-roots import TrustedTpm.cab --dry-run", "muster ek-roots import certificates/ -o json")
    group.command("import", epilog=example(*examples))(import_roots)
    group.command("list", epilog=example("muster ek-roots list --manufacturer Infineon"))(list_roots)
    group.command("show", epilog=example("muster ek-roots show FINGERPRINT"))(show_root)
    group.command("remove", epilog=example("muster ek-roots remove FINGERPRINT"))(remove_roots)
    app.add_typer(group, name="ek-roots")


def import_roots(
    paths: Paths,
    manufacturer: Maker = None,
    dry_run: DryRun = False,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
) -> None:
    """Import certificates of TPM manufacturers. A policy says which of them it trusts: [[ek_roots]] store = NAME."""
    from provisioning.cli.ek_files import collect

    client = operator(directory_of(data_dir))
    collection = collect(paths)
    used: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = list(collection.refused)
    if collection.found:
        said = {} if manufacturer is None else {"manufacturer": manufacturer}
        candidates = [{"source": source, "der": der, **said} for source, der in collection.found]
        answer = client.send("POST", "/api/v1/ek-roots", {"certificates": candidates, "dry_run": dry_run})
        used, refused = answer["used"], sorted([*refused, *answer["refused"]], key=lambda one: str(one["source"]))
    if output is Format.JSON:
        print_json({"used": used, "refused": refused})
    else:
        print_records(sorted(used, key=lambda one: (one["manufacturer"], one["role"], one["subject"])), _SHOWN)
        for one in refused:
            note(f"refused {one['source']}: {one['reason']}")
    fresh = sum(one["new"] for one in used)
    verb = "would be new" if dry_run else "new"
    note(f"{len(used)} used, {fresh} of them {verb}; {len(refused)} refused")
    if not used:
        raise Failed("nothing was imported: no certificate among these can vouch for a TPM")


def list_roots(manufacturer: Maker = None, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """List what is in the store, by manufacturer."""
    query = "" if manufacturer is None else f"?manufacturer={quote(manufacturer)}"
    found = operator(directory_of(data_dir)).get(f"/api/v1/ek-roots{query}")
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["roots"], _SHOWN)


def show_root(fingerprint: Fingerprint, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show one certificate: where it came from, what stands above it, which policies trust it."""
    found = operator(directory_of(data_dir)).get(f"/api/v1/ek-roots/{_named(fingerprint)}")
    if output is Format.JSON:
        print_json(found)
    else:
        print_fields({name: value for name, value in found.items() if name != "der"})


def remove_roots(fingerprints: Fingerprints, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Take certificates out of the store. What they vouched for is refused from the next challenge on."""
    names = [_named(fingerprint) for fingerprint in fingerprints]
    client = operator(directory_of(data_dir))
    for name in names:
        answer = client.send("DELETE", f"/api/v1/ek-roots/{name}")
        show(output, answer)
        if answer["policies"]:
            note(f"policies that trusted it: {', '.join(answer['policies'])}")


def _named(fingerprint: str) -> str:
    """The fingerprint without the colons that openssl writes. Raises: Mistaken."""
    name = segment(fingerprint.replace(":", "").lower(), "fingerprint")
    if len(name) != 64 or set(name) - set("0123456789abcdef"):  # noqa: PLR2004  SHA-256
        raise Mistaken(f"{name!r} is no fingerprint; it is 64 hexadecimal digits: muster ek-roots list")
    return name
