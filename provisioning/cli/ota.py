"""The publisher's commands. Keys stay with the publisher; the service gets signed files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provisioning.cli import measuring
from provisioning.cli.client import Client, operator
from provisioning.cli.failures import Failed, Mistaken, naming
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

if TYPE_CHECKING:
    from ota.firmware import FirmwareImage
    from provisioning.cli.publisher import Publisher

TARGET_NAME_MOST = 63
"""Characters: with the hash before it, a target's name is one part of a URL's path, of at most 128."""

Repository = Annotated[
    Path | None,
    typer.Option(
        "--repository", metavar="P", help="The publisher's folder.  [default: publisher in the data directory]"
    ),
]
Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="The firmware image.")]
ReferencePcrs = Annotated[str, typer.Option("--pcrs", metavar="LIST", help="PCRs whose values the release carries.")]
Version = Annotated[str | None, typer.Option(metavar="V", help="The release's version.  [default: the image's own]")]
Hardware = Annotated[str | None, typer.Option(metavar="H", help="The hardware it runs on.  [default: the image's own]")]
Counter = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The release counter.  [default: the image's own]")
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="URI", help="Sign with this PKCS#11 key only (RFC 7512, pin-source).  [default: all]"
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Sign, but do not upload.")]
Device = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id or serial.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="The release's target, like gateway-2.img.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Releases: sign, publish, assign.", no_args_is_help=True, rich_markup_mode=None)
    group.command("init", epilog=example("muster ota init --repository ~/releases"))(init)
    measuring.add_to(group)
    group.command("add", epilog=example("muster ota add fw2.img --version 2 --hardware gateway --counter 2"))(add)
    group.command(
        "publish",
        epilog=example(
            "muster ota publish",
            "muster ota publish --key 'pkcs11:token=publisher;object=image-targets?pin-source=file:/run/pin'",
        ),
    )(publish)
    group.command("list", epilog=example("muster ota list -o json"))(list_releases)
    group.command("assign", epilog=example("muster ota assign gateway-0017 gateway-2.img"))(assign)
    app.add_typer(group, name="ota")


def init(data_dir: DataDir = None, output: Output = Format.TABLE, repository: Repository = None) -> None:
    """Make the publisher's folder: signing tokens, and an image repository whose root is 2 of 3."""
    from provisioning.cli.publisher import make

    publisher = _publisher(data_dir, repository)
    with naming(publisher.root):
        make(publisher)
    show(output, {"repository": str(publisher.root), "root": str(publisher.root_file)})
    note(f"next, on the service: muster trust publish --image-root {publisher.root_file}")


def add(
    image: Image,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    repository: Repository = None,
    version: Version = None,
    hardware: Hardware = None,
    counter: Counter = None,
    pcrs: ReferencePcrs = measuring.RELEASE_PCRS,
) -> None:
    """Stage an image for the next publish, with the PCR values that it will show."""
    from ota.publishing import add_image

    publisher = _publisher(data_dir, repository)
    publisher.verify_made()
    data = measuring.read_image(image)
    header = measuring.header_of(image, data)
    named = _named(image, header, version, hardware, counter)
    values: dict[int, bytes] = {}
    if header is not None:
        values = measuring.release_values(header, pcrs)
    else:
        note(f"{image}: its boot cannot be predicted; the release carries no PCR values")
    with naming(publisher.image):
        target = add_image(publisher.image, data, named[0], named[1], named[2], values)
    staged = {"target": target, "version": named[0], "hardware": named[1], "release_counter": named[2]}
    show(output, {**staged, "reference_values": {str(pcr): value.hex() for pcr, value in values.items()}})
    note("staged; sign and upload it: muster ota publish")


def publish(
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    repository: Repository = None,
    key: Keys = None,
    offline: Offline = False,
) -> None:
    """Sign what is staged, upload it, and have the service record the releases."""
    from ota import repository as tuf
    from provisioning.cli.publisher import now, opened_keys

    publisher = _publisher(data_dir, repository)
    publisher.verify_made()
    client = None if offline else operator(directory_of(data_dir))
    with naming(publisher.image), opened_keys(publisher, key or ()) as signers:
        version = tuf.publish(publisher.image, signers, now())
    files = tuf.files_in_order(publisher.image)
    recorded = {} if client is None else _upload(client, publisher.image, files)
    if output is Format.JSON:
        print_json({"targets_version": version, "files": list(files), **recorded})
    elif client is None:
        show(output, {"targets_version": version, "files": len(files)})
    else:
        _show_releases(output, recorded)
    done = "not uploaded" if client is None else f"{len(files)} files uploaded"
    note(f"signed: version {version} of the targets; {done}")


def list_releases(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """List the releases that the service has on record."""
    _show_releases(output, operator(directory_of(data_dir)).get("/api/v1/ota/releases"))


def assign(device: Device, target: Target, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Tell a device to run a release. It verifies both sides, installs, attests, commits."""
    answer = operator(directory_of(data_dir)).send("POST", "/api/v1/ota/assign", {"device": device, "target": target})
    show(output, answer)
    note(f"assigned; look: muster devices show {device}")


def _publisher(data_dir: Path | None, repository: Path | None) -> "Publisher":
    from provisioning.cli.publisher import Publisher

    return Publisher((repository or directory_of(data_dir).root / "publisher").absolute())


def _named(
    file: Path, header: "FirmwareImage | None", version: str | None, hardware: str | None, counter: int | None
) -> tuple[str, str, int]:
    """Version, hardware, counter: as they are given, and as the image itself says where it says it."""
    if header is not None:
        for name, given, own in (
            ("version", version, header.version),
            ("hardware", hardware, header.hardware),
            ("counter", counter, header.release_counter),
        ):
            if given is not None and given != own:
                raise Failed(
                    f"{file}: calls itself {name} {own}, not {given}; leave out --{name}, or build the image again"
                )
        version, hardware, counter = header.version, header.hardware, header.release_counter
    if version is None or hardware is None or counter is None:
        raise Mistaken(f"{file}: says nothing about itself; give --version, --hardware and --counter")
    if len(f"{hardware}-{version}.img") > TARGET_NAME_MOST:
        raise Mistaken(
            f"{hardware}-{version}.img: is longer than {TARGET_NAME_MOST} characters; take a shorter version"
        )
    return version, hardware, counter


def _upload(client: Client, folder: Path, files: tuple[str, ...]) -> dict[str, Any]:
    """Targets first, the timestamp last: a device in the middle of a fetch finds the old set or the new one."""
    for name in files:
        client.upload(f"/api/v1/ota/image/{name}", folder / name)
    return client.send("POST", "/api/v1/ota/release")


def _show_releases(output: Format, found: dict[str, Any]) -> None:
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["releases"], ("target", "version", "hardware", "release_counter", "length", "withdrawn"))
