"""The appraisal policy of one model: which TPMs, which boot, how much of it must be shown. No policy, no acceptance.

A policy is TOML text that an operator wrote; `parse_policy` names the line that is wrong.
"""

import base64
import binascii
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Literal

from provisioning.attestation.algorithms import DIGEST_BYTES, HASH_IDS, MAX_PCR
from provisioning.attestation.certificates import Certificate, parse_certificate
from provisioning.attestation.crls import Crl, CrlMalformed, parse_crl
from provisioning.refusals import AlgorithmRefused, CertificateMalformed, PolicyMalformed, WeakKey
from wire.codec import Cap, MalformedMessage, load
from wire.messages import BootLogRule
from wire.topics import is_device_id

POLICY_MOST = 1024 * 1024
"""Characters of a policy, at most: some hundred roots and reference values."""
NEVER_RELEASE_PCRS = frozenset({0, 1, 2, 3, 7})
"""Firmware, its configuration and Secure Boot: a publisher's release never changes what these may be."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")

_PEM_CRL = re.compile(r"-----BEGIN X509 CRL-----\s+([A-Za-z0-9+/=\s]+?)-----END X509 CRL-----")


@dataclass(frozen=True, slots=True)
class EkRoot:
    """A certificate that vouches for EKs, and the manufacturers for whom it may (`id:` and eight hex digits)."""

    certificate: Certificate
    manufacturers: frozenset[str]


@dataclass(frozen=True, slots=True)
class ExpectedEvent:
    """One event that the policy expects in a PCR, so that a mismatch can be explained by name."""

    pcr: int
    digest: bytes
    description: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What the devices of one model must be and boot.

    `banks` in order of preference. `pcrs`: bank, PCR, acceptable values; its keys are the selection that a quote must
    cover. A PCR of `release_pcrs` may in addition show the values of a release that is being rolled out. `crls` are the
    manufacturers' revocation lists that the operator imported.
    """

    model: str
    software_tpm: bool
    expired_ek: Literal["refuse", "accept"]
    banks: tuple[str, ...]
    boot_log: BootLogRule
    release_pcrs: frozenset[int]
    min_tpm_firmware: int
    enrollments_per_day: int
    ek_roots: tuple[EkRoot, ...]
    pcrs: Mapping[str, Mapping[int, frozenset[bytes]]]
    events: tuple[ExpectedEvent, ...]
    crls: tuple[Crl, ...] = ()


@dataclass(frozen=True, slots=True)
class _RootText:
    certificate: Annotated[str, Cap(256 * 1024)]
    manufacturers: Annotated[tuple[Annotated[str, Cap(64)], ...], Cap(64)]
    crls: Annotated[str, Cap(512 * 1024)] = ""


@dataclass(frozen=True, slots=True)
class _EventText:
    pcr: int
    digest: Annotated[str, Cap(128)]
    description: Annotated[str, Cap(200)] = ""


@dataclass(frozen=True, slots=True)
class _PolicyText:
    model: Annotated[str, Cap(63)]
    ek_roots: Annotated[tuple[_RootText, ...], Cap(256)]
    pcrs: Annotated[dict[str, Annotated[dict[str, tuple[Annotated[str, Cap(128)], ...]], Cap(24)]], Cap(3)]
    software_tpm: bool = False
    expired_ek: Literal["refuse", "accept"] = "refuse"
    banks: Annotated[tuple[Annotated[str, Cap(16)], ...], Cap(3)] = ("sha256",)
    boot_log: BootLogRule = "required"
    release_pcrs: Annotated[tuple[int, ...], Cap(24)] = ()
    min_tpm_firmware: int = 0
    enrollments_per_day: int = 20
    events: Annotated[tuple[_EventText, ...], Cap(1000)] = field(default=())


@lru_cache(maxsize=64)
def parse_policy(text: str) -> Policy:
    """A policy out of TOML. Not proven: that it is wise. Raises: PolicyMalformed, with the line in `actual`."""
    if len(text) > POLICY_MOST:
        raise PolicyMalformed(expected=f"at most {POLICY_MOST} characters", actual=f"{len(text)}")
    try:
        parsed = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number without end
        where = str(error).replace("at end of document", f"at line {len(text.splitlines())}, the last")
        raise PolicyMalformed(expected="TOML", actual=where) from error
    try:
        return _policy(load(_PolicyText, parsed))
    except MalformedMessage as error:
        line = line_of(text, error.where)
        raise PolicyMalformed(expected="a policy", actual=f"line {line}: {error.where} {error.why}") from error


def _policy(written: _PolicyText) -> Policy:
    """The rules beyond shape. Raises: MalformedMessage, whose `where` becomes a line."""
    _demand(is_device_id(written.model), "model", "is not 1 to 63 characters of a-z 0-9 . _ -")
    _demand(bool(written.ek_roots), "ek_roots", "is empty: no TPM could pass")
    _demand(bool(written.banks), "banks", "is empty: no PCR could be quoted")
    for number, bank in enumerate(written.banks):
        _demand(bank in HASH_IDS, f"banks[{number}]", "is not sha256, sha384 or sha512 (SHA-1 never counts)")
        _demand(bank in written.pcrs, f"banks[{number}]", f"has no table [pcrs.{bank}]")
    _demand(written.min_tpm_firmware >= 0, "min_tpm_firmware", "is negative")
    _demand(written.enrollments_per_day >= 1, "enrollments_per_day", "is less than 1")
    release = frozenset(written.release_pcrs)
    forbidden = ", ".join(map(str, sorted(release & NEVER_RELEASE_PCRS)))
    _demand(not forbidden, "release_pcrs", f"names {forbidden}: a release never changes PCRs 0 to 3 and 7")
    pcrs = {bank: _bank(bank, values, release) for bank, values in written.pcrs.items()}
    return Policy(
        model=written.model,
        software_tpm=written.software_tpm,
        expired_ek=written.expired_ek,
        banks=written.banks,
        boot_log=written.boot_log,
        release_pcrs=release,
        min_tpm_firmware=written.min_tpm_firmware,
        enrollments_per_day=written.enrollments_per_day,
        ek_roots=tuple(root for number, text in enumerate(written.ek_roots) for root in _roots(number, text)),
        pcrs=MappingProxyType(pcrs),
        events=tuple(_event(number, text) for number, text in enumerate(written.events)),
        crls=tuple(crl for number, text in enumerate(written.ek_roots) for crl in _crls(number, text)),
    )


def _bank(bank: str, written: dict[str, tuple[str, ...]], release: frozenset[int]) -> Mapping[int, frozenset[bytes]]:
    where = f"pcrs.{bank}"
    _demand(bank in HASH_IDS, where, "is not sha256, sha384 or sha512 (SHA-1 never counts)")
    _demand(bool(written), where, "names no PCR: an empty quote proves nothing")
    values: dict[int, frozenset[bytes]] = {}
    for name, digests in written.items():
        _demand(
            name.isascii() and name.isdigit() and str(int(name)) == name and int(name) <= MAX_PCR,
            f"{where}.{name}",
            f"is not a PCR from 0 to {MAX_PCR}",
        )
        pcr = int(name)
        _demand(bool(digests) or pcr in release, f"{where}.{name}", "accepts no value, and is no release PCR")
        values[pcr] = frozenset(
            _digest(f"{where}.{name}", digest, (DIGEST_BYTES[HASH_IDS[bank]],)) for digest in digests
        )
    missing = ", ".join(map(str, sorted(release - values.keys())))
    _demand(not missing, "release_pcrs", f"names {missing}, which [pcrs.{bank}] does not select")
    return MappingProxyType(dict(sorted(values.items())))


def _roots(number: int, written: _RootText) -> tuple[EkRoot, ...]:
    where = f"ek_roots[{number}]"
    manufacturers = frozenset(map(normal_manufacturer, written.manufacturers))
    _demand(bool(manufacturers), f"{where}.manufacturers", "is empty: no TPM could pass")
    for index, manufacturer in enumerate(written.manufacturers):
        known = re.fullmatch(r"id:[0-9A-F]{8}", normal_manufacturer(manufacturer))
        _demand(known is not None, f"{where}.manufacturers[{index}]", "is not like id:494E5443")
    bodies = _PEM.findall(written.certificate)
    _demand(bool(bodies), f"{where}.certificate", "holds no PEM certificate")
    return tuple(EkRoot(_anchor(f"{where}.certificate", body), manufacturers) for body in bodies)


def _anchor(where: str, body: str) -> Certificate:
    try:
        certificate = parse_certificate(base64.b64decode("".join(body.split()), validate=True))
    except (binascii.Error, CertificateMalformed, AlgorithmRefused, WeakKey) as error:
        raise MalformedMessage(where, f"is not usable: {error}") from error
    signs = certificate.key_usage is None or "key_cert_sign" in certificate.key_usage
    _demand(certificate.is_ca and signs, where, "is not of a certificate authority")
    return certificate


def _crls(number: int, written: _RootText) -> tuple[Crl, ...]:
    where = f"ek_roots[{number}].crls"
    bodies = _PEM_CRL.findall(written.crls)
    _demand(bool(bodies) or not written.crls.strip(), where, "holds no PEM CRL")
    try:
        return tuple(parse_crl(base64.b64decode("".join(body.split()), validate=True)) for body in bodies)
    except (binascii.Error, CrlMalformed) as error:
        raise MalformedMessage(where, f"is not usable: {error}") from error


def normal_manufacturer(text: str) -> str:
    """`id:` and upper-case hex, as the TCG writes it (EK Credential Profile, 3.2.9)."""
    prefix, colon, digits = text.partition(":")
    return prefix.lower() + colon + digits.upper()


def _event(number: int, written: _EventText) -> ExpectedEvent:
    where = f"events[{number}]"
    _demand(0 <= written.pcr <= MAX_PCR, f"{where}.pcr", f"is not a PCR from 0 to {MAX_PCR}")
    digest = _digest(f"{where}.digest", written.digest, tuple(DIGEST_BYTES.values()))
    return ExpectedEvent(written.pcr, digest, written.description)


def _digest(where: str, text: str, sizes: tuple[int, ...]) -> bytes:
    _demand(re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text) is not None, where, "is not hexadecimal")
    digest = bytes.fromhex(text)
    _demand(len(digest) in sizes, where, f"has {len(digest)} bytes, not {' or '.join(map(str, sizes))}")
    return digest


def _demand(holds: bool, where: str, why: str) -> None:  # noqa: FBT001  the fact itself, not a flag
    if not holds:
        raise MalformedMessage(where, why)


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"\s*(\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\s*=")


def line_of(text: str, where: str) -> int:
    """The line that sets the field `where` (`ek_roots[0].certificate`), or its table's, or 1.

    The longest path that a line sets and that `where` starts with wins: a missing field is named by its table.
    """
    wanted = _path(where)
    best, line_number, table = 0, 1, []
    counted: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _path(header[2])
            if header[1] == "[[":
                counted[header[2]] = counted.get(header[2], -1) + 1
                table.append(str(counted[header[2]]))
            path = table
        elif key := _KEY.match(line):
            path = table + _path(key[1])
        else:
            continue
        if len(path) > best and wanted[: len(path)] == path:
            best, line_number = len(path), number
    return line_number


def _path(where: str) -> list[str]:
    return [part.strip("\"' ") for part in re.split(r"[.\[\]]+", where) if part.strip("\"' ")]
