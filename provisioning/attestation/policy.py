"""The appraisal policy of one model: which TPMs, which boot, how much of it must be shown. No policy, no acceptance.

A policy is TOML text that an operator wrote; `parse_policy` names the line that is wrong.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Literal

from provisioning.attestation import policy_roots
from provisioning.attestation.algorithms import DIGEST_BYTES, HASH_IDS, MAX_PCR
from provisioning.attestation.crls import Crl
from provisioning.attestation.ima import IMA_PCR
from provisioning.attestation.ima_policy import ImaPolicy
from provisioning.attestation.ima_policy_text import ImaText, ima_of
from provisioning.attestation.policy_roots import EkRoot, RootText, StoreRoots, normal_manufacturer
from provisioning.attestation.policy_text import POLICY_MOST, demand, digest_of, line_of
from provisioning.attestation.rules import BootLoadersListed, CommandLineMatches, EventRule, pcrs_of
from provisioning.attestation.rules_text import RulesText, rules_of
from provisioning.refusals import PolicyMalformed
from wire.codec import Cap, MalformedMessage, load
from wire.messages import LogRule
from wire.topics import is_device_id

__all__ = [
    "POLICY_MOST",
    "EkRoot",
    "ExpectedEvent",
    "Policy",
    "StoreRoots",
    "line_of",
    "normal_manufacturer",
    "parse_policy",
]

EkTrust = Literal["certificate", "key"]
"""On what trust in an EK may rest: a manufacturer's certificate; or its registration, by the bare key too."""
Mode = Literal["learn", "monitor", "enforce"]
"""What a broken reference value, rule, list or firmware version does: see `appraisal`."""
OnClone = Literal["finding", "quarantine", "revoke"]
OnFailure = Literal["refuse", "quarantine"]
ATTEST_EVERY_SECONDS = 24 * 3600
ATTEST_LEAST_SECONDS, ATTEST_MOST_SECONDS = 60, 366 * 24 * 3600
SILENT_AFTER_PERIODS = 3
EXPLAIN_LEAST_DEVICES = 3
NEVER_RELEASE_PCRS = frozenset({0, 1, 2, 3, 7})
"""Firmware, its configuration and Secure Boot: a publisher's release never changes what these may be."""
BOOT_AGGREGATE_PCRS = frozenset(range(10))
_BOOT_LOADER_PCR = 4


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

    `group`: the devices of the model that it is for, None for all that have no policy of their group. `learn_from`:
    ids or serials of the devices that `mode` "learn" lets pass; every other device is judged as in "enforce".
    `rules` and `ima` judge events and files; a PCR without values is judged by them alone. `attest_every` in seconds,
    0 for never; `silent_after` in periods without a pass. `explain_least`: on how many devices a value must have been
    seen before an explanation offers it.
    """

    model: str
    software_tpm: bool
    expired_ek: Literal["refuse", "accept"]
    banks: tuple[str, ...]
    boot_log: LogRule
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
    mode: Mode = "enforce"
    group: str | None = None
    learn_from: tuple[str, ...] = ()
    rules: tuple[EventRule, ...] = ()
    ima: ImaPolicy | None = None
    ima_log: LogRule = "none"
    explain_least: int = EXPLAIN_LEAST_DEVICES
    attest_every: int = ATTEST_EVERY_SECONDS
    silent_after: int = SILENT_AFTER_PERIODS
    on_clone: OnClone = "quarantine"
    on_failure: OnFailure = "quarantine"

    @property
    def judged_by_rules(self) -> frozenset[int]:
        """The PCRs that need no values: event rules or IMA judge what was measured into them."""
        return _judged_by_rules(self.rules, self.ima, self.ima_log)


def _judged_by_rules(rules: tuple[EventRule, ...], ima: ImaPolicy | None, ima_log: LogRule) -> frozenset[int]:
    measured = frozenset({IMA_PCR}) if ima_log != "none" else frozenset[int]()
    aggregated = BOOT_AGGREGATE_PCRS if ima is not None and ima.boot_aggregate == "check" else frozenset[int]()
    return pcrs_of(rules) | measured | aggregated


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
    boot_log: LogRule = "required"
    release_pcrs: Annotated[tuple[int, ...], Cap(24)] = ()
    min_tpm_firmware: int = 0
    enrollments_per_day: int = 20
    events: Annotated[tuple[_EventText, ...], Cap(1000)] = field(default=())
    mode: Mode = "enforce"
    group: Annotated[str, Cap(63)] | None = None
    learn_from: Annotated[tuple[Annotated[str, Cap(64)], ...], Cap(256)] = ()
    rules: RulesText = field(default=RulesText())
    ima: ImaText | None = None
    ima_log: LogRule | None = None
    explain_least: int = EXPLAIN_LEAST_DEVICES
    attest_every: int = ATTEST_EVERY_SECONDS
    silent_after: int = SILENT_AFTER_PERIODS
    on_clone: OnClone = "quarantine"
    on_failure: OnFailure = "quarantine"


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
    demand(is_device_id(written.model), "model", "is not 1 to 63 characters of a-z 0-9 . _ -")
    someone = bool(written.ek_roots) or bool(written.identity_roots) or written.ek_trust == "key"
    demand(someone, "ek_roots", "is empty: no TPM could pass")
    demand(bool(written.banks), "banks", "is empty: no PCR could be quoted")
    for number, bank in enumerate(written.banks):
        demand(bank in HASH_IDS, f"banks[{number}]", "is not sha256, sha384 or sha512 (SHA-1 never counts)")
        demand(bank in written.pcrs, f"banks[{number}]", f"has no table [pcrs.{bank}]")
    demand(written.min_tpm_firmware >= 0, "min_tpm_firmware", "is negative")
    demand(written.enrollments_per_day >= 1, "enrollments_per_day", "is less than 1")
    release = frozenset(written.release_pcrs)
    forbidden = ", ".join(map(str, sorted(release & NEVER_RELEASE_PCRS)))
    demand(not forbidden, "release_pcrs", f"names {forbidden}: a release never changes PCRs 0 to 3 and 7")
    _demand_duties(written)
    rules = rules_of(written.rules)
    ima = None if written.ima is None else ima_of(written.ima)
    ima_log = written.ima_log or ("none" if ima is None else "required")
    valueless = release | _judged_by_rules(rules, ima, ima_log)
    pcrs = {bank: _bank(bank, values, release, _Open(valueless, written.mode)) for bank, values in written.pcrs.items()}
    _demand_judged(written, rules, ima, ima_log)
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
        mode=written.mode,
        group=written.group,
        learn_from=written.learn_from,
        rules=rules,
        ima=ima,
        ima_log=ima_log,
        explain_least=written.explain_least,
        attest_every=written.attest_every,
        silent_after=written.silent_after,
        on_clone=written.on_clone,
        on_failure=written.on_failure,
    )


def _demand_duties(written: _PolicyText) -> None:
    """Mode, group and periods. Raises: MalformedMessage."""
    demand(written.group is None or is_device_id(written.group), "group", "is not 1 to 63 characters of a-z 0-9 . _ -")
    demand(written.mode != "learn" or bool(written.learn_from), "learn_from", 'is empty: mode = "learn" needs devices')
    demand(written.explain_least >= 1, "explain_least", "is less than 1")
    period = written.attest_every == 0 or ATTEST_LEAST_SECONDS <= written.attest_every <= ATTEST_MOST_SECONDS
    demand(period, "attest_every", f"is not 0, nor {ATTEST_LEAST_SECONDS} to {ATTEST_MOST_SECONDS} seconds")
    demand(written.silent_after >= 1, "silent_after", "is less than 1")


def _demand_judged(written: _PolicyText, rules: tuple[EventRule, ...], ima: ImaPolicy | None, ima_log: LogRule) -> None:
    """What rules and IMA read is quoted, and its log is sent. Raises: MalformedMessage."""
    demand(not rules or written.boot_log == "required", "boot_log", 'is not "required": [rules] read it')
    demand(ima is None or ima_log == "required", "ima_log", 'is not "required": [ima] reads it')
    read: dict[int, str] = {}
    if ima is not None and ima.boot_aggregate == "check":
        read |= dict.fromkeys(BOOT_AGGREGATE_PCRS, 'boot_aggregate of [ima] (or set it to "accept")')
    if ima_log != "none":
        read[IMA_PCR] = "the IMA log"
    read |= {pcr: f"{rule.name} of [rules]" for rule in rules for pcr in rule.pcrs}
    for bank, selected in written.pcrs.items():
        for pcr, reader in sorted(read.items()):
            demand(str(pcr) in selected, f"pcrs.{bank}", f'does not select PCR {pcr}, for {reader}: add "{pcr}" = []')
        # Whoever starts a boot loader of his own can write command lines into the PCR afterwards.
        pinned = bool(selected.get(str(_BOOT_LOADER_PCR))) or any(isinstance(r, BootLoadersListed) for r in rules)
        lines = any(isinstance(rule, CommandLineMatches) for rule in rules)
        why = f"has no values of PCR {_BOOT_LOADER_PCR}, and there are no boot_loaders: any could write command lines"
        demand(pinned or not lines, f"pcrs.{bank}", why)


@dataclass(frozen=True, slots=True)
class _Open:
    """The PCRs that may stand without values, and the mode, in which all may while they are learned."""

    pcrs: frozenset[int]
    mode: Mode

    def __contains__(self, pcr: int) -> bool:
        return pcr in self.pcrs or self.mode == "learn"


def _bank(
    bank: str, written: dict[str, tuple[str, ...]], release: frozenset[int], valueless: _Open
) -> Mapping[int, frozenset[bytes]]:
    where = f"pcrs.{bank}"
    demand(bank in HASH_IDS, where, "is not sha256, sha384 or sha512 (SHA-1 never counts)")
    demand(bool(written), where, "names no PCR: an empty quote proves nothing")
    values: dict[int, frozenset[bytes]] = {}
    for name, digests in written.items():
        demand(
            name.isascii() and name.isdigit() and str(int(name)) == name and int(name) <= MAX_PCR,
            f"{where}.{name}",
            f"is not a PCR from 0 to {MAX_PCR}",
        )
        pcr = int(name)
        none = "accepts no value, and is no release PCR, and no rule judges it"
        demand(bool(digests) or pcr in valueless, f"{where}.{name}", none)
        values[pcr] = frozenset(
            digest_of(f"{where}.{name}", digest, (DIGEST_BYTES[HASH_IDS[bank]],)) for digest in digests
        )
    missing = ", ".join(map(str, sorted(release - values.keys())))
    demand(not missing, "release_pcrs", f"names {missing}, which [pcrs.{bank}] does not select")
    return MappingProxyType(dict(sorted(values.items())))


def _roots(name: str, written: tuple[RootText, ...]) -> tuple[EkRoot | StoreRoots, ...]:
    return tuple(root for number, text in enumerate(written) for root in policy_roots.roots(f"{name}[{number}]", text))


def _event(number: int, written: _EventText) -> ExpectedEvent:
    where = f"events[{number}]"
    demand(0 <= written.pcr <= MAX_PCR, f"{where}.pcr", f"is not a PCR from 0 to {MAX_PCR}")
    digest = digest_of(f"{where}.digest", written.digest, tuple(DIGEST_BYTES.values()))
    return ExpectedEvent(written.pcr, digest, written.description)
