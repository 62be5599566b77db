"""The appraisal policy of one model: which TPMs, which boot, how much of it must be shown. No policy, no acceptance.

A policy is TOML text that an operator wrote; `parse_policy` names the line that is wrong.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Literal

from provisioning.attestation import policy_roots
from provisioning.attestation.algorithms import DIGEST_BYTES, HASH_IDS, MAX_PCR
from provisioning.attestation.crls import Crl
from provisioning.attestation.policy_roots import EkRoot, RootText, StoreRoots, normal_manufacturer
from provisioning.refusals import PolicyMalformed
from wire.codec import Cap, MalformedMessage, load
from wire.messages import BootLogRule
from wire.topics import is_device_id

__all__ = ["EkRoot", "ExpectedEvent", "Policy", "StoreRoots", "line_of", "normal_manufacturer", "parse_policy"]

POLICY_MOST = 1024 * 1024
"""Characters of a policy, at most: some hundred roots and reference values."""
EkTrust = Literal["certificate", "key"]
"""On what trust in an EK may rest: a manufacturer's certificate; or its registration, by the bare key too."""
NEVER_RELEASE_PCRS = frozenset({0, 1, 2, 3, 7})
"""Firmware, its configuration and Secure Boot: a publisher's release never changes what these may be."""


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
    manufacturers' revocation lists that the operator imported. `ek_trust` is the least that an EK's trust must rest
    on: a manufacturer's certificate, or its registration by the bare key. `identity_roots` vouch for IAK certificates.
    """

    model: str
    software_tpm: bool
    expired_ek: Literal["refuse", "accept"]
    banks: tuple[str, ...]
    boot_log: BootLogRule
    release_pcrs: frozenset[int]
    min_tpm_firmware: int
    enrollments_per_day: int
    ek_roots: tuple[EkRoot | StoreRoots, ...]
    pcrs: Mapping[str, Mapping[int, frozenset[bytes]]]
    events: tuple[ExpectedEvent, ...]
    crls: tuple[Crl, ...] = ()
    ek_trust: EkTrust = "certificate"
    sha1_authorities: Literal["refuse", "accept"] = "refuse"
    identity_roots: tuple[EkRoot | StoreRoots, ...] = ()


@dataclass(frozen=True, slots=True)
class _EventText:
    pcr: int
    digest: Annotated[str, Cap(128)]
    description: Annotated[str, Cap(200)] = ""


@dataclass(frozen=True, slots=True)
class _PolicyText:
    model: Annotated[str, Cap(63)]
    pcrs: Annotated[dict[str, Annotated[dict[str, tuple[Annotated[str, Cap(128)], ...]], Cap(24)]], Cap(3)]
    ek_roots: Annotated[tuple[RootText, ...], Cap(256)] = ()
    identity_roots: Annotated[tuple[RootText, ...], Cap(256)] = ()
    ek_trust: EkTrust = "certificate"
    sha1_authorities: Literal["refuse", "accept"] = "refuse"
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
    someone = bool(written.ek_roots) or bool(written.identity_roots) or written.ek_trust == "key"
    _demand(someone, "ek_roots", "is empty: no TPM could pass")
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
        ek_roots=_roots("ek_roots", written.ek_roots),
        pcrs=MappingProxyType(pcrs),
        events=tuple(_event(number, text) for number, text in enumerate(written.events)),
        crls=tuple(
            crl
            for name, tables in (("ek_roots", written.ek_roots), ("identity_roots", written.identity_roots))
            for number, text in enumerate(tables)
            for crl in policy_roots.crls(f"{name}[{number}]", text)
        ),
        ek_trust=written.ek_trust,
        sha1_authorities=written.sha1_authorities,
        identity_roots=_roots("identity_roots", written.identity_roots),
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


def _roots(name: str, written: tuple[RootText, ...]) -> tuple[EkRoot | StoreRoots, ...]:
    return tuple(root for number, text in enumerate(written) for root in policy_roots.roots(f"{name}[{number}]", text))


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
