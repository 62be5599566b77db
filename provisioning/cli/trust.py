"""The owner's commands for what devices trust: the bundle of the trust repository, signed 2 of 3."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provisioning.cli.failures import Failed, naming
from provisioning.cli.output import DataDir, Format, Output, directory_of, example, note, print_fields, print_json
from provisioning.config import DataDirectory, load_config

if TYPE_CHECKING:
    from wire.messages import TrustBundle

ImageRoot = Annotated[
    Path | None,
    typer.Option("--image-root", metavar="FILE", help="The publisher's root: what muster ota init printed."),
]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="What devices trust.", no_args_is_help=True, rich_markup_mode=None)
    group.command("publish", epilog=example("muster trust publish --image-root publisher/image/metadata/1.root.json"))(
        publish
    )
    group.command("show", epilog=example("muster trust show"))(show_trust)
    app.add_typer(group, name="trust")


def publish(data_dir: DataDir = None, output: Output = Format.TABLE, image_root: ImageRoot = None) -> None:
    """Sign the next trust bundle by 2 of the 3 offline keys, and tell the devices to fetch it."""
    from provisioning.app import trusting

    directory = directory_of(data_dir)
    config = load_config(directory)
    root = None if image_root is None else _verified_root(image_root)
    with naming(directory.trust):
        version = trusting.publish(directory, config, image_root=root)
    _show(output, directory)
    note(f"bundle {version} is published; devices that are connected were told")


def show_trust(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show what devices trust, and until when it is signed."""
    directory = directory_of(data_dir)
    load_config(directory)
    _show(output, directory)


def described(bundle: "TrustBundle") -> dict[str, Any]:
    """The bundle, for a person: fingerprints and key ids, no bytes."""
    from cryptography import x509

    from wire.binding import key_id

    roots = [x509.load_der_x509_certificate(der) for der in bundle.ca_roots]
    return {
        "version": bundle.version,
        "service_name": bundle.service_name,
        "ca_roots": [
            f"{root.subject.rfc4514_string()} sha256:{hashlib.sha256(der).hexdigest()}"
            for root, der in zip(roots, bundle.ca_roots, strict=True)
        ],
        "command_keys": [key_id(key) for key in bundle.command_keys],
        "log_keys": [key_id(key) for key in bundle.log_keys],
        "issuing_keys": [key_id(key) for key in bundle.issuing_keys],
        "image_root": None if bundle.image_root is None else hashlib.sha256(bundle.image_root).hexdigest(),
        "director_root": None if bundle.director_root is None else hashlib.sha256(bundle.director_root).hexdigest(),
    }


def _show(output: Format, directory: DataDirectory) -> None:
    from ota.bundle import published_bundle
    from ota.repository import online_expiry
    from wire.codec import rfc3339

    data = described(published_bundle(directory.trust))
    data["online_until"] = rfc3339(online_expiry(directory.trust))
    if output is Format.JSON:
        print_json(data)
    else:
        print_fields(data)


def _verified_root(file: Path) -> bytes:
    """A TUF root that its own keys sign. Raises: Failed, OSError."""
    from ota.files import read_at_most
    from ota.refusals import UpdateRefused
    from ota.source import NotFoundAtSource
    from ota.verify import ROOT_MOST, verify_roots

    data = read_at_most(file, ROOT_MOST)
    if data is None:
        raise Failed(f"{file}: is not there; make it: muster ota init")

    def no_later_one(path: str, _most: int) -> bytes:
        raise NotFoundAtSource(path)

    try:
        return verify_roots(data, no_later_one).data
    except UpdateRefused as refused:
        raise Failed(f"{file}: is no root of a repository: {refused}; name what muster ota init printed") from refused
