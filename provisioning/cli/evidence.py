"""`muster devices evidence`: what a TPM said, in files that tpm2-tools and OpenSSL verify without us."""

from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning.cli.client import operator, segment
from provisioning.cli.failures import Failed
from provisioning.cli.output import DataDir, Format, Output, directory_of, note, print_fields, print_json
from provisioning.export import pem, tpm2_tools_pcrs
from wire.codec import unb64url

BANKS = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's id or serial.")]
Flow = Annotated[str, typer.Option("--flow", metavar="enroll|rotate|attest", help="The newest evidence of this flow.")]
Export = Annotated[Path | None, typer.Option("--export", metavar="DIR", help="Write the files here.")]


def evidence(
    name: Name, flow: Flow = "enroll", export: Export = None, data_dir: DataDir = None, output: Output = Format.TABLE
) -> None:
    """Show evidence that passed; with --export, write it as ak.pem, quote.* and certificate.pem for other tools."""
    path = f"/api/v1/devices/{segment(name, 'device id or serial')}/evidence?flow={segment(flow, 'flow')}"
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
    else:
        print_fields({key: found[key] for key in ("device", "serial", "attestation", "flow", "at", "qualification")})
    if export is not None:
        export.mkdir(parents=True, exist_ok=True)
        for file, content in files_of(found).items():
            (export / file).write_bytes(content)
        note(
            f"check it: cd {export} && tpm2_checkquote -u ak.pem -m quote.msg -s quote.sig -f quote.pcrs"
            " -q $(cat qualification.hex)"
        )


def files_of(found: dict[str, Any]) -> dict[str, bytes]:
    """The evidence as files, by name. Raises: Failed."""
    try:
        quote, bank = found["evidence"]["quote"], found["bank"]
        values = found["evidence"]["pcrs"][BANKS[bank]]
        files = {
            "ak.pem": pem("PUBLIC KEY", unb64url(found["ak_spki"])),
            "quote.msg": unb64url(quote["attest"]),
            "quote.sig": unb64url(quote["signature"]),
            "quote.pcrs": tpm2_tools_pcrs(bank, {pcr: unb64url(values[str(pcr)]) for pcr in found["pcrs"]}),
            "qualification.hex": found["qualification"].encode() + b"\n",
        }
        if found["certificate"] is not None:
            files["certificate.pem"] = pem("CERTIFICATE", unb64url(found["certificate"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Failed("the service's answer is no evidence of this version; is this muster as new as it?") from error
    return files
