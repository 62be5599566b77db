"""`muster attest`: a second opinion on boot logs, IMA logs and quotes in files. No service, no data directory."""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning.cli.failures import Failed, Mistaken
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    clean,
    directory_of,
    example,
    note,
    print_fields,
    print_json,
    print_table,
)

TEXT_CHARACTERS = 160
_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2})*)")


class Kind(StrEnum):
    """Which log it is."""

    AUTO = "auto"
    BOOT = "boot"
    IMA = "ima"


class ImaExtension(StrEnum):
    """What the kernel extended into banks other than SHA-1."""

    TEMPLATE = "template"
    PADDED_SHA1 = "padded-sha1"


LogFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="binary_bios_measurements, or binary_ or ascii_runtime_measurements.")
]
KindOption = Annotated[Kind, typer.Option("--kind", help="Which log it is; auto looks at its beginning.")]
Extension = Annotated[
    ImaExtension,
    typer.Option("--ima-extension", help="IMA: a hash in each bank (Linux 5.8 and later), or padded SHA-1 (before)."),
]
Ak = Annotated[Path, typer.Option("--ak", metavar="FILE", help="The AK: PEM, TPM2B_PUBLIC or TPMT_PUBLIC.")]
Message = Annotated[Path, typer.Option("--message", metavar="FILE", help="The quote (TPMS_ATTEST).")]
SignatureFile = Annotated[
    Path, typer.Option("--signature", metavar="FILE", help="The signature: TPMT_SIGNATURE, or bare.")
]
Qualification = Annotated[
    str | None, typer.Option("--qualification", metavar="HEX", help="The nonce that the quote must answer.")
]
PcrFile = Annotated[
    Path | None, typer.Option("--pcrs", metavar="FILE", help="The PCR values, as tpm2_quote writes them, or bare.")
]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(
        help="A second opinion on logs and quotes in files; needs no service.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command(
        "log",
        epilog=example(
            "muster attest log /sys/kernel/security/tpm0/binary_bios_measurements",
            "muster attest log --kind ima /sys/kernel/security/ima/binary_runtime_measurements -o json",
        ),
    )(log)
    group.command(
        "quote",
        epilog=example(
            "muster attest quote --ak ak.pem --message quote.msg --signature quote.sig --pcrs quote.pcrs"
            " --qualification 0a1b2c"
        ),
    )(quote)
    app.add_typer(group, name="attest")


def log(
    file: LogFile,
    kind: KindOption = Kind.AUTO,
    ima_extension: Extension = ImaExtension.TEMPLATE,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
) -> None:
    """Decode a log and replay its PCRs. What it says is true only once a quote has the same values."""
    from wire.messages import IMA_LOG_MOST

    directory_of(data_dir)  # taken like everywhere; nothing of it is read
    data = _read(file, 2 * IMA_LOG_MOST)
    told = _told_ima(data, ima_extension) if _is_ima(data, kind) else _told_boot(data)
    if output is Format.JSON:
        print_json(told)
        return
    rows = ((e["number"], e["pcr"], e["type"], _short(e["text"])) for e in told["events"])
    print_table(("event", "PCR", "type", "what it says"), rows)
    print()
    values = ((bank, pcr, value) for bank, pcrs in told["pcrs"].items() for pcr, value in pcrs.items())
    print_table(("bank", "PCR", "replayed"), values)
    note("Not proven by this: that a TPM holds these values. Compare them with a quote (muster attest quote).")


def quote(
    ak: Ak,
    message: Message,
    signature: SignatureFile,
    qualification: Qualification = None,
    pcrs: PcrFile = None,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
) -> None:
    """Verify a quote of tpm2_quote, and say what that proves and what not."""
    from provisioning.attestation.second_opinion import FILE_MOST, verify_tool_quote

    directory_of(data_dir)  # taken like everywhere; nothing of it is read
    key, attested, signed = (_read(path, FILE_MOST) for path in (ak, message, signature))
    values = None if pcrs is None else _read(pcrs, FILE_MOST)
    opinion = verify_tool_quote(key, attested, signed, _qualification(qualification), values)
    parsed = opinion.quote
    shown: dict[str, Any] = {
        "ak_name": None if opinion.ak is None else opinion.ak.name.hex(),
        "qualified_signer": parsed.qualified_signer.hex(),
        "qualification": parsed.extra_data.hex(),
        "clock_ms": parsed.clock.clock,
        "reset_count": parsed.clock.reset_count,
        "restart_count": parsed.clock.restart_count,
        "safe": parsed.clock.safe,
        "firmware_version": f"{parsed.firmware_version:#018x}",
        "bank": opinion.bank,
        "pcrs": list(parsed.quoted.pcrs),
        "pcr_digest": parsed.quoted.digest.hex(),
    }
    values_shown = {opinion.bank: {str(pcr): value.hex() for pcr, value in opinion.values.items()}}
    said = {"proven": list(opinion.proven), "not_proven": list(opinion.not_proven)}
    if output is Format.JSON:
        print_json({**shown, "values": values_shown, **said})
        return
    print_fields(shown)
    if opinion.values:
        print()
        print_table(("bank", "PCR", "quoted"), ((opinion.bank, pcr, v.hex()) for pcr, v in opinion.values.items()))
    for title, sentences in (("Proven:", opinion.proven), ("NOT proven:", opinion.not_proven)):
        print(f"\n{title}")
        for sentence in sentences:
            print(f"  {clean(sentence)}")


def _is_ima(data: bytes, kind: Kind) -> bool:
    from provisioning.attestation.ima import is_ima_log
    from provisioning.attestation.ima_ascii import is_ima_ascii

    return kind is Kind.IMA or (kind is Kind.AUTO and (is_ima_log(data) or is_ima_ascii(data)))


def _told_boot(data: bytes) -> dict[str, Any]:
    from provisioning.attestation.eventlog import extended_pcrs, parse_event_log

    parsed = parse_event_log(data)
    events = []
    for event in parsed.events:
        words = event.words
        events.append(
            {
                "number": event.number,
                "pcr": event.pcr,
                "type": words.type,
                "digests": _hex(event.digests),
                "text": words.text,
                "details": words.details,
                "measured": words.measured,
                "doubted": words.doubted,
                "data_bytes": len(event.data),
            }
        )
    return {"events": events, "pcrs": {bank: _hex(values) for bank, values in extended_pcrs(parsed).items()}}


def _told_ima(data: bytes, extension: ImaExtension) -> dict[str, Any]:
    from provisioning.attestation import ima, ima_fields
    from provisioning.attestation.ima_ascii import is_ima_ascii, parse_ima_ascii

    parsed = parse_ima_ascii(data) if is_ima_ascii(data) else ima.parse_ima_log(data)
    names = {20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}
    events = []
    for entry in parsed.entries:
        text, details = ima_fields.words(entry)
        measured = ima_fields.measured(entry)
        events.append(
            {
                "number": entry.number,
                "pcr": entry.pcr,
                "type": entry.template,
                "digests": {names[len(entry.template_hash)]: entry.template_hash.hex()},
                "text": text,
                "details": details,
                "measured": measured is True,
                "doubted": measured is False,
                "data_bytes": len(entry.data),
            }
        )
    chosen: dict[ImaExtension, ima.Extension] = {
        ImaExtension.TEMPLATE: "template",
        ImaExtension.PADDED_SHA1: "padded-sha1",
    }
    pcrs = {bank: _hex(ima.replay_ima(parsed, bank, chosen[extension])) for bank in names.values()}
    return {"events": events, "pcrs": pcrs}


def _hex(values: Mapping[Any, bytes]) -> dict[str, str]:
    return {str(key): value.hex() for key, value in values.items()}


def _short(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"


def _qualification(text: str | None) -> bytes | None:
    if text is None:
        return None
    found = _HEX.fullmatch(text)
    if found is None:
        raise Mistaken("--qualification: write it in hex, two digits a byte")
    return bytes.fromhex(found[1])


def _read(path: Path, most: int) -> bytes:
    """At most so many bytes; pseudo-files of the kernel tell no size. Raises: Failed, OSError."""
    with path.open("rb") as opened:
        data = _whole(opened.read, most + 1)
    if len(data) > most:
        raise Failed(f"{path}: is larger than {most // 1024} KiB; is it the right file?")
    return data


def _whole(read: Callable[[int], bytes], most: int) -> bytes:
    pieces, left = [], most
    while left and (piece := read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
