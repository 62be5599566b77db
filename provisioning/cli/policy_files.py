"""A policy's file as the service takes it: one text, with the certificates that it names put in."""

import re
import tomllib
from pathlib import Path
from typing import Any

from provisioning.cli.failures import Failed

POLICY_MOST = 1024 * 1024
PEM_MOST = 256 * 1024
_FILE_LINE = re.compile(r"(?P<indent>\s*)certificate_file\s*=\s*(?P<value>\"[^\"]*\"|'[^']*')\s*(?:#.*)?")


def with_certificates(file: Path) -> str:
    """The policy's text with each `certificate_file` as PEM text in its place; every line keeps its number.

    Raises: Failed, OSError.
    """
    with file.open("rb") as opened:
        data = opened.read(POLICY_MOST + 1)
    if len(data) > POLICY_MOST:
        raise Failed(f"{file}: is larger than {POLICY_MOST // 1024} KiB; is it a policy?")
    text = _decoded(file, data)
    if not _files_of(file, text):
        return text
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if (match := _FILE_LINE.fullmatch(line.rstrip("\r"))) is not None:
            path = file.parent / tomllib.loads(f"path = {match['value']}")["path"]
            lines[number] = f"{match['indent']}certificate = {_basic_string(_pem(file, number + 1, path))}"
    inlined = "\n".join(lines)
    if left := _files_of(file, inlined):
        raise Failed(f"{file}: certificate_file = {left[0]!r} does not stand on a line of its own; put it there")
    return inlined


def _decoded(file: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Failed(f"{file}: line {line}: is not UTF-8; save the file as UTF-8") from error


def _files_of(file: Path, text: str) -> list[Any]:
    try:
        parsed = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number without end
        raise Failed(f"{file}: is not TOML: {error}; correct that line") from error
    found = [parsed.get(name, []) for name in ("ek_roots", "identity_roots")]
    tables = [table for roots in found if isinstance(roots, list) for table in roots]
    return [root["certificate_file"] for root in tables if isinstance(root, dict) and "certificate_file" in root]


def _pem(file: Path, line: int, path: Path) -> str:
    try:
        with path.open("rb") as opened:
            data = opened.read(PEM_MOST + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is no path"
        raise Failed(f"{file}: line {line}: {path}: {why}; name a PEM file, relative to the policy") from error
    if len(data) > PEM_MOST or b"-----BEGIN CERTIFICATE-----" not in data or not data.isascii():
        raise Failed(f"{file}: line {line}: {path}: holds no PEM certificate; convert it: openssl x509 -inform DER")
    return data.decode("ascii")


def _basic_string(text: str) -> str:
    """The text as a TOML basic string on one line."""
    escaped = text.replace("\r\n", "\n").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
