"""A factory's CSV file, read wholly and judged wholly: every bad row is named, and nothing is sent if there is one."""

import base64
import binascii
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provisioning.attestation.endorsement import ek_id_of, ek_id_of_public
from provisioning.cli.failures import Failed
from provisioning.cli.output import clean
from provisioning.refusals import Refusal
from wire.factory import Registration
from wire.topics import is_device_id

WAYS = ("ek_certificate", "ek_public", "ek_sha256", "iak_certificate", "idevid_certificate")
"""How the third column names a device's TPM: by its EK, or by its maker's certificate for a key in it."""
CERTIFICATES = {"ek_certificate": "EK", "iak_certificate": "IAK", "idevid_certificate": "IDevID"}
COLUMNS = ("serial", "model", WAYS[0])
GROUP_COLUMN = "group"
"""An optional fourth column: the group of its model that a device belongs to; an empty cell is none."""
ROWS_MOST = 1000
FILE_MOST = 16 * 1024 * 1024
CERTIFICATE_MOST = 8 * 1024
PUBLIC_MOST = 2 * 1024
PEM_MOST = 64 * 1024
# The service's own rules (provisioning.factory, which a client does not import).
SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
MODEL = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class Row:
    """One device, and the line of the file that its row starts on."""

    line: int
    device: Registration
    ek_id: str


class _Bad(Exception):
    """What is wrong with a row, and its cure."""


def read_registrations(file: Path) -> list[Row]:
    """The rows of the file. Raises: Failed, with one line for each bad row; OSError."""
    rows: list[Row] = []
    faults: list[str] = []
    for line, header, cells in _records(file, _text(file)):
        try:
            rows.append(_row(line, header, cells, file.parent))
        except _Bad as bad:
            faults.append(f"{file}: line {line}: {bad}")
    faults += _duplicates(file, rows)
    if not rows and not faults:
        faults.append(f"{file}: line 2: there is no row; write one line for each device under the header")
    if len(rows) > ROWS_MOST:
        faults.append(f"{file}: line {rows[ROWS_MOST].line}: more than {ROWS_MOST} devices; split the file")
    if faults:
        raise Failed(*faults, f"{file}: nothing was sent")
    return rows


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        data = opened.read(FILE_MOST + 1)
    if len(data) > FILE_MOST:
        raise Failed(f"{file}: is larger than {FILE_MOST // 2**20} MiB; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Failed(f"{file}: line {line}: is not UTF-8; save the file as UTF-8") from error


def _records(file: Path, text: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """Each record with its line and the header, which is judged; blank lines are passed over."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    header: list[str] | None = None
    before = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Failed(f"{file}: line {before + 1}: {error}; close the quotes, or take them out") from error
        line, before = before + 1, reader.line_num
        if cells is None:
            if header is None:
                raise Failed(f"{file}: line 1: the header is missing; write: {','.join(COLUMNS)}")
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            known = header[: len(COLUMNS)] if header[len(COLUMNS) :] == [GROUP_COLUMN] else header
            if tuple(known[:2]) != COLUMNS[:2] or len(known) != len(COLUMNS) or known[2] not in WAYS:
                raise Failed(
                    f"{file}: line {line}: the header is {clean(','.join(header))[:100]!r}; write: {','.join(COLUMNS)}"
                    f" (or {' or '.join(WAYS[1:])} as the third; {GROUP_COLUMN} as a fourth, where there are groups)"
                )
            continue
        yield line, header, [cell.strip() for cell in cells]


def _row(line: int, header: list[str], cells: list[str], folder: Path) -> Row:
    if len(cells) != len(header):
        raise _Bad(f"has {len(cells)} fields instead of {len(header)}; write: {','.join(header)}")
    (serial, model, named), way = cells[: len(COLUMNS)], header[2]
    row = _device(line, way, (serial, model, named), folder)
    group = cells[len(COLUMNS)] if len(cells) > len(COLUMNS) else ""
    if group and not is_device_id(group):
        raise _Bad(f"group {clean(group)[:80]!r}: write 1 to 63 characters of a-z 0-9 . _ -, a letter or digit first")
    return replace(row, device=replace(row.device, group=group or None))


def _device(line: int, way: str, cells: tuple[str, str, str], folder: Path) -> Row:
    serial, model, named = cells
    if SERIAL.fullmatch(serial) is None:
        raise _Bad(
            f"serial {clean(serial)[:80]!r}: write 1 to 63 characters of A-Z a-z 0-9 . -, a letter or digit first"
        )
    if MODEL.fullmatch(model) is None:
        raise _Bad(f"model {clean(model)[:80]!r}: write 1 to 63 characters of a-z 0-9 . -, a letter or digit first")
    if way == "ek_sha256":
        if _SHA256.fullmatch(named.lower()) is None:
            raise _Bad(f"ek_sha256 {clean(named)[:80]!r}: write the SHA-256 of the SubjectPublicKeyInfo, 64 hex digits")
        return Row(line, Registration(serial, model, ek_sha256=bytes.fromhex(named)), named.lower())
    if way == "ek_public":
        public = _public(named, folder)
        return Row(line, Registration(serial, model, ek_public=public), _id_of_public(public))
    certificate = _certificate(way, named, folder)
    try:
        ek_id = ek_id_of(certificate)
    except Refusal as refusal:
        why = refusal.actual or refusal.title
        raise _Bad(
            f"{way} is no {CERTIFICATES[way]} certificate that can be read ({clean(why)[:120]}); {refusal.cure}"
        ) from refusal
    known_by: dict[str, Any] = {way: certificate}
    return Row(line, Registration(serial, model, **known_by), ek_id)


def _public(named: str, folder: Path) -> bytes:
    """The TPMT_PUBLIC that a cell names: base64, or a file of tpm2-tools; TPM2B_PUBLIC has its size before it."""
    if not named:
        raise _Bad("ek_public is empty; write base64 of TPMT_PUBLIC or TPM2B_PUBLIC, or the path of a file of it")
    try:
        octets = base64.b64decode(named, validate=True)
    except ValueError:  # binascii.Error is one; text that is not ASCII is the other
        try:
            with (folder / named).open("rb") as opened:
                octets = opened.read(PUBLIC_MOST + 1)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "is no path"
            raise _Bad(f"ek_public {clean(named)[:200]}: {why}; write base64, or the path of a file") from error
    if len(octets) > PUBLIC_MOST:
        raise _Bad(f"ek_public has more than {PUBLIC_MOST} bytes; it is TPMT_PUBLIC or TPM2B_PUBLIC")
    return octets[2:] if int.from_bytes(octets[:2], "big") == len(octets) - 2 else octets


def _id_of_public(public: bytes) -> str:
    try:
        return ek_id_of_public(public)
    except Refusal as refusal:
        why = refusal.actual or refusal.title
        raise _Bad(f"ek_public is no EK that can be read ({clean(why)[:120]}); {refusal.cure}") from refusal


def _certificate(way: str, named: str, folder: Path) -> bytes:
    """The DER that a cell names: a PEM file, relative to the CSV, or base64 DER itself."""
    if not named:
        raise _Bad(f"{way} is empty; write the path of a PEM file, or base64 DER")
    der = _from_base64(named)
    if der is None:
        der = _from_pem(way, folder / named)
    if len(der) > CERTIFICATE_MOST:
        raise _Bad(f"{way} has more than {CERTIFICATE_MOST} bytes; check the certificate")
    return der


def _from_base64(text: str) -> bytes | None:
    """DER starts with a SEQUENCE of two or three octets of length: in base64 that is MI, which few paths start with."""
    if not text.startswith("MI"):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one; text that is not ASCII is the other
        return None


def _from_pem(way: str, path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            data = opened.read(PEM_MOST + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is no path"
        raise _Bad(f"{way} {clean(path)[:200]}: {why}; write the path of a PEM file, or base64 DER") from error
    found = _PEM.findall(data)
    if len(data) > PEM_MOST or len(found) != 1:
        raise _Bad(
            f"{way} {clean(path)}: holds {len(found)} PEM certificates; it must hold one, the {CERTIFICATES[way]}'s"
        )
    try:
        return base64.b64decode(b"".join(found[0].split()), validate=True)
    except binascii.Error as error:
        raise _Bad(f"{way} {clean(path)}: holds broken base64; export the certificate again") from error


def _what(row: Row) -> str:
    """What a row names its TPM by."""
    return next((name for way, name in CERTIFICATES.items() if getattr(row.device, way) is not None), "EK")


def _duplicates(file: Path, rows: list[Row]) -> list[str]:
    faults: list[str] = []
    serials: dict[str, int] = {}
    eks: dict[str, int] = {}
    for row in rows:
        first = serials.setdefault(row.device.serial, row.line)
        if first != row.line:
            faults.append(
                f"{file}: line {row.line}: serial {row.device.serial} stands on line {first} already; correct one"
            )
        first = eks.setdefault(row.ek_id, row.line)
        if first != row.line:
            faults.append(
                f"{file}: line {row.line}: the same {_what(row)} stands on line {first} already; "
                "each device has its own TPM"
            )
    return faults
