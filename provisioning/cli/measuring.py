"""What a boot of a firmware image will show: predicted PCR values, and a policy that accepts them."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ota.firmware import IMAGE_MAX_BYTES, MAGIC, FirmwareImage, MalformedImage, Measurement, parse_image
from ota.firmware import measure as boot_of
from provisioning.cli.failures import Failed, Mistaken
from provisioning.cli.output import DataDir, Format, Output, directory_of, example, note, print_json, print_table

BANK = "sha256"
PCR_MOST = 23
RELEASE_PCRS = "8,9"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="The firmware image.")]
Bank = Annotated[str, typer.Option(metavar="BANK", help="The PCR bank; sha256 is what can be predicted.")]
Pcrs = Annotated[str, typer.Option(metavar="LIST", help="Which PCRs.  [default: all that the boot extends]")]
PolicyToml = Annotated[bool, typer.Option("--policy-toml", help="Print a policy that accepts this boot.")]
Model = Annotated[str | None, typer.Option(metavar="M", help="The policy's model.")]
EkRoots = Annotated[list[Path] | None, typer.Option("--ek-root", metavar="FILE", help="PEM of who certifies the TPMs.")]
Manufacturers = Annotated[
    list[str] | None, typer.Option("--manufacturer", metavar="ID", help="For whom it may, like id:00001014.")
]
SoftwareTpm = Annotated[bool, typer.Option("--software-tpm", help="Accept TPMs made of software.")]


def add_to(group: typer.Typer) -> None:
    """Put the command in."""
    group.command(
        "measure",
        epilog=example(
            "muster ota measure fw.img",
            "muster ota measure fw.img --policy-toml --model gateway --ek-root tpm.pem --manufacturer id:494E5443",
        ),
    )(measure)


def measure(
    image: Image,
    *,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    bank: Bank = BANK,
    pcrs: Pcrs = "",
    policy_toml: PolicyToml = False,
    model: Model = None,
    ek_root: EkRoots = None,
    manufacturer: Manufacturers = None,
    software_tpm: SoftwareTpm = False,
) -> None:
    """Predict the PCR values that booting an image shows, or print a policy that accepts them."""
    directory_of(data_dir)  # taken like everywhere; nothing of it is read
    if bank != BANK:
        raise Mistaken(f"--bank {bank!r}: the values of {BANK} can be predicted, and no others")
    parsed = parsed_image(image, read_image(image))
    boot = boot_of(parsed)
    values = shown_pcrs(boot, parse_pcrs(pcrs))
    if policy_toml:
        if not model or not ek_root or not manufacturer:
            raise Mistaken("--policy-toml needs --model, --ek-root and --manufacturer")
        roots = [(_pem(path), manufacturer) for path in ek_root]
        policy = policy_of(model, boot, values, roots, software_tpm=software_tpm)
        if output is Format.JSON:
            print_json({"model": model, "toml": policy})
        else:
            print(policy, end="")
    elif output is Format.JSON:
        print_json(_measured(parsed, boot, values))
    else:
        note(f"{image}: hardware {parsed.hardware}, version {parsed.version}, counter {parsed.release_counter}")
        print_table(("PCR", bank), values.items())


def read_image(file: Path) -> bytes:
    """An image's bytes. Raises: Failed, OSError."""
    data = file.read_bytes()
    if not data:
        raise Failed(f"{file}: is empty; name the firmware image")
    return data


def parsed_image(file: Path, data: bytes) -> FirmwareImage:
    """The image's own header and stages. Raises: Failed."""
    if len(data) > IMAGE_MAX_BYTES:
        raise Failed(f"{file}: is larger than {IMAGE_MAX_BYTES // 2**20} MiB; make a smaller image")
    try:
        return parse_image(data)
    except MalformedImage as error:
        raise Failed(
            f"{file}: is no firmware image ({error}); make it again, or measure a device that runs it"
        ) from error


def header_of(file: Path, data: bytes) -> FirmwareImage | None:
    """The parsed image, where it is one of the format that this program can predict. Raises: Failed."""
    return parsed_image(file, data) if data.startswith(MAGIC) else None


def parse_pcrs(text: str) -> tuple[int, ...]:
    """PCR numbers out of `0,4,8`. Raises: Failed."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(
        part.isascii() and part.isdigit() and len(part) <= len("23") and int(part) <= PCR_MOST for part in parts
    ):
        raise Failed(f"--pcrs {text!r}: write PCR numbers from 0 to {PCR_MOST}, with commas")
    return tuple(sorted({int(part) for part in parts}))


def shown_pcrs(boot: Measurement, pcrs: Collection[int]) -> dict[int, str]:
    """PCR to value in hex: those asked for, else all that the boot extends. Raises: Failed."""
    extended = sorted({event.pcr for event in boot.events})
    if missing := sorted(set(pcrs) - set(boot.pcrs)):
        raise Failed(f"--pcrs: the boot of this image says nothing about PCR {missing[0]}; leave it out")
    return {pcr: boot.pcrs[pcr].hex() for pcr in (sorted(pcrs) or extended)}


def release_values(image: FirmwareImage, pcrs: str) -> dict[int, bytes]:
    """The PCR values that a release of this image carries. Raises: Failed."""
    wanted = parse_pcrs(pcrs)
    shown = shown_pcrs(boot_of(image), wanted) if wanted else {}
    return {pcr: bytes.fromhex(value) for pcr, value in shown.items()}


def policy_of(
    model: str,
    boot: Measurement,
    values: dict[int, str],
    roots: Sequence[tuple[str, Sequence[str]]],
    *,
    software_tpm: bool,
) -> str:
    """A policy that accepts exactly this boot. `roots` are PEM texts with the manufacturers for whom they may speak."""
    release = sorted(set(parse_pcrs(RELEASE_PCRS)) & values.keys())
    lines = [
        f"model = {_text(model)}",
        f"software_tpm = {str(software_tpm).lower()}",
        f'banks = ["{BANK}"]',
        'boot_log = "required"',
        f"release_pcrs = {json.dumps(release)}",
        "",
        f"[pcrs.{BANK}]",
        *(f'"{pcr}" = ["{value}"]' for pcr, value in values.items()),
    ]
    for pem, manufacturers in roots:
        lines += ["", "[[ek_roots]]", f"manufacturers = [{', '.join(map(_text, manufacturers))}]"]
        lines.append(f'certificate = """\n{pem.strip()}\n"""')
    for event in boot.events:
        if event.pcr in values:
            lines += ["", "[[events]]", f"pcr = {event.pcr}", f'digest = "{event.digest.hex()}"']
            lines.append(f"description = {_text(event.description)}")
    return "\n".join(lines) + "\n"


def _measured(image: FirmwareImage, boot: Measurement, values: dict[int, str]) -> dict[str, object]:
    return {
        "hardware": image.hardware,
        "version": image.version,
        "release_counter": image.release_counter,
        "bank": BANK,
        "pcrs": {str(pcr): value for pcr, value in values.items()},
        "events": [
            {"pcr": event.pcr, "digest": event.digest.hex(), "description": event.description}
            for event in boot.events
            if event.pcr in values
        ],
    }


def _pem(path: Path) -> str:
    """The certificates of a PEM file, without whatever stands around them."""
    found = _PEM.findall(path.read_text(encoding="ascii", errors="replace"))
    if not found:
        raise Failed(f"{path}: holds no PEM certificate; convert it: openssl x509 -inform DER")
    return "\n".join(found)


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are among TOML's, and ASCII needs no others."""
    return json.dumps(value)
