"""Do the events of a boot log obey the policy's rules? Check 13, behind the replay: `rules` says what is believed.

Secure Boot and its authorities: PFP 1.05, 3.3.4.8 (PCR 7); what shim adds: its README.tpm. Boot loaders: PFP 1.05,
3.3.4.5 (PCR 4).
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from provisioning.attestation.eventlog import Event, EventLog
from provisioning.attestation.eventtext import EV_NO_ACTION
from provisioning.attestation.eventtext_reading import MalformedData, printable
from provisioning.attestation.eventtext_signatures import signature_lists
from provisioning.attestation.eventtext_variables import Variable, parts
from provisioning.attestation.rules import (
    BootLoadersListed,
    CommandLineMatches,
    EventRule,
    SecureBootOn,
    SignersListed,
)
from provisioning.attestation.rules_lines import judge_lines
from provisioning.refusals import Finding

FINDINGS_MOST = 16
"""Named of one rule: a hostile log could break it thousands of times."""

_EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_EFI_DATABASES = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
_SEPARATORS = frozenset({bytes(4), b"\xff" * 4})
"""What firmware measures where its own part of a PCR ends. Another value says that an error happened (PFP, 3.3.2.2)."""
_CONFIGURATION = frozenset({"SecureBoot", "PK", "KEK", "db", "dbx", "dbt", "dbr", "AuditMode", "DeployedMode"})
_NO_SIGNERS = frozenset({"SbatLevel", "MokSBState", "MokSBStateRT", "MokListTrusted"})
"""Variables of shim in PCR 7 that vouch for nothing."""
_SHIM_OFF = frozenset({"MokSBState", "MokSBStateRT"})
_DEBUGGER = b"UEFI Debug Mode"
_ACTIONS = frozenset({_DEBUGGER, b"DMA Protection Disabled"})
"""Strings in PCR 7 that vouch for nothing (PFP 1.05, 10.4.4)."""
_BOOT_ACTIONS = frozenset(
    {b"Calling EFI Application from Boot Option", b"Returning from EFI Application from Boot Option"}
)
_SUBJECT_COUNTS = frozenset(
    {("db", _EFI_DATABASES), ("Shim", _SHIM), ("vendor_db", _SHIM), ("vendor_db", _EFI_DATABASES)}
)
_OWNER_BYTES = 16
_DER_SEQUENCE = b"\x30\x82"
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


@dataclass(frozen=True, slots=True)
class _Read:
    """An extending event and what its digest is over; None: the log does not have it, and nothing says what it was."""

    event: Event
    preimage: bytes | None

    @property
    def variable(self) -> Variable | None:
        """The preimage as a UEFI variable, where it is one."""
        try:
            return None if self.preimage is None else parts(self.preimage)
        except MalformedData:
            return None


def judge_rules(rules: tuple[EventRule, ...], log: EventLog, bank: str) -> tuple[Finding, ...]:
    """What breaks the rules; nothing where all hold.

    `log` has replayed to a quote over `bank` and all PCRs of the rules. Not proven: that the firmware measured what
    it did (pin PCR 0), and anything that was done without being measured.
    """
    findings: list[Finding] = []
    for rule in rules:
        found = list(islice(_broken(rule, log, bank), FINDINGS_MOST + 1))
        if len(found) > FINDINGS_MOST:
            found[FINDINGS_MOST:] = [Finding(f"rule {rule.name}", "no more", "more than are named here")]
        findings.extend(found)
    return tuple(findings)


def _broken(rule: EventRule, log: EventLog, bank: str) -> Iterator[Finding]:
    for pcr in rule.pcrs:
        read = [
            _Read(event, event.measured(bank))
            for event in log.events
            if event.pcr == pcr and event.event_type != EV_NO_ACTION
        ]
        match rule:
            case SecureBootOn():
                yield from _secure_boot(read)
            case SignersListed():
                yield from _signers(rule, read)
            case BootLoadersListed():
                yield from _boot_loaders(rule, read, bank)
            case CommandLineMatches():
                yield from judge_lines(rule, [(one.event, one.preimage) for one in read])


# --- PCR 7 ----------------------------------------------------------------------------------------------------------


def _secure_boot(read: list[_Read]) -> Iterator[Finding]:
    """One variable SecureBoot, of 1, before the firmware's separator; nothing behind it that undoes it.

    Who runs the device may extend PCR 7 with what he likes, but only behind the separator, and can take nothing away.
    """
    name = SecureBootOn.name
    at = _separator(read)
    if at is None:
        yield Finding(f"rule {name}, PCR 7", "a separator that ends the firmware's part", "none")
    switches = []
    for number, one in enumerate(read):
        if one.preimage is None:
            yield _unread(name, one.event)
            continue
        if one.preimage == _DEBUGGER:
            yield Finding(_place(name, one.event), "no firmware debugger", _DEBUGGER.decode())
        variable = one.variable
        if variable is not None and variable.name in _SHIM_OFF and any(variable.value):
            cure = "Switch shim's verification on again: mokutil --enable-validation."
            yield Finding(_place(name, one.event), "shim verifies", f"{variable.name} is on", cure)
        if variable is not None and (variable.name, variable.guid) == ("SecureBoot", _EFI_GLOBAL):
            switches.append((number, one.event, variable.value))
    if len(switches) != 1:
        yield Finding(f"rule {name}, PCR 7", "the variable SecureBoot once", f"{len(switches)} times")
    for number, event, value in switches:
        if value != b"\x01":
            cure = "Switch Secure Boot on in the firmware's settings."
            yield Finding(_place(name, event), "SecureBoot is on", f"it is {value.hex() or 'empty'}", cure)
        if at is not None and number > at:
            yield Finding(_place(name, event), "SecureBoot before the separator", "behind it: not the firmware's word")


def _signers(rule: SignersListed, read: list[_Read]) -> Iterator[Finding]:
    """Each event is configuration, or says nothing of signers, or is an authority of the list."""
    at = _separator(read)
    accepted = 0
    for number, one in enumerate(read):
        if one.preimage is None:
            yield _unread(rule.name, one.event)
        elif one.preimage in _SEPARATORS or one.preimage in _ACTIONS:
            continue
        elif (variable := one.variable) is None:
            yield Finding(_place(rule.name, one.event), "a variable, or a known string", _shown(one.preimage))
        elif _names_no_signer(variable, firmware=at is not None and number < at):
            continue
        elif (why := _why_not_listed(rule, variable)) is None:
            accepted += 1
        else:
            cure = "Add its SHA-256 to sha256 of [rules.signers], if this signer is meant."
            yield Finding(_place(rule.name, one.event), "a signer of the list", why, cure)
    if not accepted:
        yield Finding(f"rule {rule.name}, PCR 7", "a signer of the list for what was booted", "none")


def _names_no_signer(variable: Variable, *, firmware: bool) -> bool:
    """Is it a variable's state, and no entry of one that vouched for an image? By its form: types are no proof.

    `firmware`: it stands before the separator.
    """
    if variable.guid == _SHIM and variable.name in _NO_SIGNERS:
        return True
    if not firmware or variable.name not in _CONFIGURATION:
        return False
    if len(variable.value) <= 1:
        return True
    try:
        signature_lists(variable.value)
    except MalformedData:
        return False
    return True


def _why_not_listed(rule: SignersListed, variable: Variable) -> str | None:
    """Why what vouched here is not in the list; None where it is."""
    value, name = variable.value, printable(variable.name)[:64]
    certificate = next((v for v in (value, value[_OWNER_BYTES:]) if v.startswith(_DER_SEQUENCE)), None)
    if certificate is None:
        digest = value[_OWNER_BYTES:]
        if len(digest) != hashlib.sha256().digest_size:
            return f"{name}: no certificate and no SHA-256, {len(value)} bytes"
        return None if digest in rule.sha256 else f"{name}: an image by its hash {digest.hex()}"
    fingerprint = hashlib.sha256(certificate).digest()
    if fingerprint in rule.sha256:
        return None
    subject = _subject(certificate)
    if subject in rule.subjects and (variable.name, variable.guid) in _SUBJECT_COUNTS:
        return None
    return f"{name}: sha256 {fingerprint.hex()}, {printable(subject or 'no certificate that can be read')[:256]}"


def _subject(certificate: bytes) -> str | None:
    """The subject as RFC 4514 writes it; None where the certificate cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a stranger's serial number; nothing that is issued here
            return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    except _UNREADABLE:
        return None


def _separator(read: list[_Read]) -> int | None:
    """Which event ends the firmware's part of the PCR."""
    return next((number for number, one in enumerate(read) if one.preimage in _SEPARATORS), None)


# --- PCR 4 ----------------------------------------------------------------------------------------------------------


def _boot_loaders(rule: BootLoadersListed, read: list[_Read], bank: str) -> Iterator[Finding]:
    """Each event is of the boot itself, by what its digest is over, or an image of the list, by the digest.

    An image's digest is over the image, which no log holds: the path beside it is the log's word, and no rule is about
    it.
    """
    images = [one for one in read if one.preimage not in _SEPARATORS and one.preimage not in _BOOT_ACTIONS]
    for one in images[: rule.first or None]:
        digest = one.event.digests[bank]
        if digest not in rule.digests:
            called = f"this image (the log calls it {one.event.text})"
            cure = f'Add "{digest.hex()}" to digests of [rules.boot_loaders], if {called} is meant.'
            yield Finding(_place(rule.name, one.event), "an image of the list", digest.hex(), cure)
    if not images:
        yield Finding(f"rule {rule.name}, PCR 4", "an image of the list", "none was started")


# --- words ----------------------------------------------------------------------------------------------------------


def _place(name: str, event: Event) -> str:
    return f"rule {name}, PCR {event.pcr}, event {event.number}"


def _unread(name: str, event: Event) -> Finding:
    """Not harmless: whoever wants to hide what was measured sends its digest with other data."""
    return Finding(_place(name, event), "data that its digest is over", f"other data: {event.text}")


def _shown(preimage: bytes) -> str:
    text = preimage.decode("ascii", errors="backslashreplace")
    return printable(text)[:160]
