"""The owner's commands for what devices trust, as it changes: CAs, command and log keys, the trust root itself.

They talk to the service as an operator, and use tokens (root, trust) where these are: the service never has those.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar
from urllib.parse import quote

import typer

from provisioning.cli import client
from provisioning.cli.client import Client, Json, segment
from provisioning.cli.failures import Failed, Mistaken, naming
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
from provisioning.config import load_config

if TYPE_CHECKING:
    from provisioning.config import Config, DataDirectory

P = ParamSpec("P")
T = TypeVar("T")
KINDS = ("root", "issuing", "command", "log", "trust", "results")
_COLUMNS = ("name", "state", "certificates_in_use", "last_ends_at", "bundles", "devices_without", "next")
_AWAY = ("device", "serial", "trust_version", "last_seen_at")

Name = Annotated[str, typer.Argument(metavar="NAME", help="What muster ca status calls it, such as issuing-2.")]
OneName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Only this one, with everybody who depends on it.")
]
Kind = Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")]
KeyType = Annotated[str, typer.Option("--key", metavar="KIND", help="P-256, P-384, RSA-3072, RSA-4096, Ed25519.")]
Outside = Annotated[bool, typer.Option("--outside-ca", help="An outside CA will sign it: see muster ca csr.")]
Force = Annotated[bool, typer.Option("--force", help="Although devices depend on what was: they are named.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Most = Annotated[int, typer.Option("--most", metavar="N", help="So many devices at once.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Where to write it.  [default: standard output]")
]
Certificate = Annotated[
    Path, typer.Option("--certificate", metavar="FILE", help="What the outside CA made, PEM or DER.")
]
Chain = Annotated[list[Path], typer.Option("--chain", metavar="FILE", help="Each CA above it, the nearest first.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Change CAs and keys.", no_args_is_help=True, rich_markup_mode=None)
    group.command("status", epilog=example("muster ca status", "muster ca status issuing -o json"))(status)
    group.command("prepare", epilog=example("muster ca prepare issuing", "muster ca prepare root --key P-384"))(prepare)
    group.command("csr", epilog=example("muster ca csr issuing-2 --out issuing-2.csr"))(csr)
    group.command("import", epilog=example("muster ca import issuing-2 --certificate new.pem --chain root.pem"))(
        import_
    )
    group.command("publish", epilog=example("muster ca publish"))(publish)
    group.command("activate", epilog=example("muster ca activate issuing-2"))(activate)
    group.command("rotate", epilog=example("muster ca rotate issuing --most 500"))(rotate)
    group.command("retire", epilog=example("muster ca retire issuing"))(retire)
    app.add_typer(group, name="ca")


def status(name: OneName = None, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show CAs and keys, who holds which trust bundle, who is away, and what is safe to do next."""
    service = client.operator(directory_of(data_dir))
    if name is not None:
        _show_one(service, segment(name, "name"), output)
        return
    found = service.get("/api/v1/ca")
    if output is Format.JSON:
        print_json(found)
        return
    print_records(found["authorities"], _COLUMNS)
    print()
    print_fields({**found["bundle"], "held_by": found["bundle"]["held_by"] or None})
    if found["away"]:
        print()
        print_records(found["away"], _AWAY)


def prepare(
    kind: Kind,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    key: KeyType = "P-256",
    outside: Outside = False,
) -> None:
    """Prepare the next one: its key and its certificate. Nothing signs otherwise yet. Say it again to go on."""
    from hsm.kinds import KeyKind
    from provisioning.app import trusting

    if kind not in KINDS:
        raise Mistaken(f"{kind!r}: is none of {', '.join(KINDS)}")
    if key not in {one.value for one in KeyKind if one is not KeyKind.P521}:
        raise Mistaken(f"--key {key!r}: is none of P-256, P-384, RSA-3072, RSA-4096, Ed25519")
    directory = directory_of(data_dir)
    config, service = load_config(directory), client.operator(directory)
    begun = service.send("POST", "/api/v1/ca", {"kind": kind})
    name = begun["name"]
    if begun["key"] is None:
        made = apart(trusting.make_key, directory, config, kind, name, KeyKind(key))
        begun = service.send("PUT", f"/api/v1/ca/{name}/key", _told(kind, made))
    if not outside and kind in ("root", "issuing"):
        _sign_tasks(service, directory, config, name)
        begun = service.send("POST", "/api/v1/ca", {"kind": kind})
    show(output, begun)
    _say_next(service, name)


def _told(kind: str, made: Any) -> Json:  # noqa: ANN401  MadeKey, which is imported late
    from wire.codec import b64url

    told: Json = {"key": made.key}
    if kind in ("root", "trust"):
        told["public_key"] = b64url(made.public_key)
    return told


def _sign_tasks(service: Client, directory: "DataDirectory", config: "Config", name: str) -> None:
    """Have every certificate signed that waits for a root's key, as far as the tokens are here."""
    from provisioning.app import trusting
    from wire.codec import b64url, unb64url

    done: set[str] = set()
    while todo := [
        task for task in service.send("POST", f"/api/v1/ca/{name}/tasks")["tasks"] if task["serial"] not in done
    ]:
        asked = [(task["subject"], task["signer"], unb64url(task["tbs"])) for task in todo]
        for task, signature in zip(todo, apart(trusting.sign_cas, directory, config, asked, note), strict=True):
            service.send("POST", f"/api/v1/ca-signatures/{task['serial']}", {"signature": b64url(signature)})
            done.add(task["serial"])


def csr(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE, out: Out = None) -> None:
    """Write a request (PKCS #10, PEM) for an outside CA to sign."""
    from base64 import encodebytes

    from wire.codec import unb64url

    service = client.operator(directory_of(data_dir))
    request = unb64url(service.get(f"/api/v1/ca/{segment(name, 'name')}/request")["request"])
    text = f"-----BEGIN CERTIFICATE REQUEST-----\n{encodebytes(request).decode()}-----END CERTIFICATE REQUEST-----\n"
    if out is not None:
        with naming(out):
            out.write_text(text, encoding="ascii")
        note(f"the request is in {out}; the answer comes back by: muster ca import {name}")
    if output is Format.JSON:
        print_json({"name": name, "request": text})
    elif out is None:
        print(text, end="")


def import_(
    name: Name,
    certificate: Certificate,
    chain: Chain,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
) -> None:
    """Take the certificate that an outside CA made for a prepared issuing CA. A new root comes with it."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from provisioning.issuance.outside import CERTIFICATE_MOST, parse_certificate
    from wire.codec import b64url

    found = []
    for file in (certificate, *chain):
        with naming(file), file.open("rb") as content:
            parsed = parse_certificate(content.read(CERTIFICATE_MOST + 1))
        found.append(b64url(parsed.public_bytes(Encoding.DER)))
    service = client.operator(directory_of(data_dir))
    show(output, service.send("PUT", f"/api/v1/ca/{segment(name, 'name')}/certificate", {"chain": found}))
    _say_next(service, name)


def publish(data_dir: DataDir = None, output: Output = Format.TABLE, yes: Yes = False) -> None:
    """Sign the next trust bundle by the offline keys, if anything changed, and tell the devices to fetch it."""
    from provisioning.app import trusting

    directory = directory_of(data_dir)
    config = load_config(directory)

    def agree(wanted: Json) -> None:
        for sign, key in (("+", "adds"), ("-", "drops")):
            for line in wanted[key]:
                note(f"{sign} {line}")
        _ask(f"sign trust bundle {wanted['version']}?", yes=yes)

    with naming(directory.trust):
        version, new = apart(trusting.publish_changes, directory, config, agree)
    show(output, {"version": version, "published": new})
    if new:
        note("devices that are connected were told; the others look when they come back: muster ca status")
    else:
        note("nothing to publish: the bundle says what it should")


def activate(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE, force: Force = False) -> None:
    """Have it sign from now on; the one before it retires. Refused while devices do not know it."""
    directory = directory_of(data_dir)
    service = client.operator(directory)
    path = f"/api/v1/ca/{segment(name, 'name')}"
    known = service.get(path)["authority"]
    if known["kind"] == "trust" and known["state"] == "prepared" and known["key"] is not None:
        from provisioning.app import trusting

        with naming(directory.trust):
            version = apart(trusting.rotate_root, directory, load_config(directory), name)
        note(f"the trust root has new keys; bundle {version} was signed by them")
    show(output, service.send("POST", f"{path}/activate", {"force": force}))
    _say_next(service, name)


def rotate(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE, most: Most = 1000) -> None:
    """Order rotations of devices whose certificate is of a CA that retires."""
    if most < 1:
        raise Mistaken("--most: at least 1")
    service = client.operator(directory_of(data_dir))
    show(output, service.send("POST", f"/api/v1/ca/{segment(name, 'name')}/rotate", {"most": most}))


def retire(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE, force: Force = False) -> None:
    """End it: it signs nothing any more. Refused while devices depend on it. Final."""
    service = client.operator(directory_of(data_dir))
    show(output, service.send("POST", f"/api/v1/ca/{segment(name, 'name')}/retire", {"force": force}))
    note("devices trust it until the next bundle: muster ca publish")


def _show_one(service: Client, name: str, output: Format) -> None:
    """Every page of it."""
    whole: Json = service.get(f"/api/v1/ca/{name}")
    for kind, key in (("certificates", "serial"), ("without_bundle", "device")):
        page = whole[kind]
        while page:
            after = quote(str(page[-1][key]), safe="")
            page = service.get(f"/api/v1/ca/{name}?{kind}={after}")[kind]
            whole[kind] += page
    if output is Format.JSON:
        print_json(whole)
        return
    print_fields(whole["authority"])
    for title, kind, columns in (
        ("certificates of it in use:", "certificates", ("serial", "device", "not_after")),
        ("devices without a bundle that names it:", "without_bundle", _AWAY),
    ):
        if whole[kind]:
            print(f"\n{title}")
            print_records(whole[kind], columns)


def apart(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What works with tokens, on a thread of its own.

    SoftHSM leaves its own failed look-ups in OpenSSL's queue of errors, which is the thread's: TLS on the same thread
    would take them for its own.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work, *arguments, **options).result()


def _say_next(service: Client, name: str) -> None:
    note(f"next: {service.get(f'/api/v1/ca/{name}')['authority']['next']}")


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failed("nobody can be asked, there is no terminal; repeat with --yes")
    if not typer.confirm(question, err=True):
        raise Failed("nothing was signed")
