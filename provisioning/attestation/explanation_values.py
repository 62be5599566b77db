"""What a device shows, as short hashes, so that devices that show the same can be counted by an index."""

import hashlib
import re
from collections.abc import Sequence

from provisioning.attestation.quote import VerifiedPcrs
from provisioning.refusals import Finding

FINDINGS_MOST = 64
"""Findings of one evidence whose values are counted, at most; thousands of files may be wrong at once."""
_KEY_BYTES = 16
_EVENT_NUMBER = re.compile(r"\b(event|entry) \d+")


def value_key(what: str, actual: str) -> bytes:
    """The hash of a value: of `what` (a PCR, a rule, a file), without the number of an event, and of what it was.

    Logs of one model differ in length, so that the same event has another number.
    """
    named = _EVENT_NUMBER.sub(r"\1", what)
    return hashlib.sha256(f"{len(named)} {named} {actual}".encode(errors="backslashreplace")).digest()[:_KEY_BYTES]


def pcr_key(pcr: int, value: bytes) -> bytes:
    """The hash of a PCR's value, the same as of a finding about it. The length of the value tells the bank."""
    return value_key(f"PCR {pcr}", value.hex())


def firmware_key(version: int) -> bytes:
    """The hash of a TPM's firmware version."""
    return value_key("firmware", f"{version:#x}")


def shown_digest(pcrs: VerifiedPcrs, findings: Sequence[Finding]) -> bytes:
    """A hash over all that is counted of one evidence: the same where `shown_values` are the same."""
    found = hashlib.sha256(f"{pcrs.bank} {pcrs.tpm.firmware_version:x} {len(pcrs.values)}".encode())
    for pcr, value in pcrs.values.items():
        found.update(bytes([pcr]) + value)
    for finding in _counted(findings):
        found.update(value_key(finding.what, finding.actual))
    return found.digest()[:_KEY_BYTES]


def shown_values(pcrs: VerifiedPcrs, findings: Sequence[Finding]) -> tuple[bytes, ...]:
    """The hashes of what one evidence showed: its PCRs, its TPM's firmware, and what was, or would be, refused."""
    values = [pcr_key(pcr, value) for pcr, value in pcrs.values.items()]
    found = [value_key(finding.what, finding.actual) for finding in _counted(findings)]
    return tuple(dict.fromkeys([*values, firmware_key(pcrs.tpm.firmware_version), *found]))


def _counted(findings: Sequence[Finding]) -> Sequence[Finding]:
    return findings[:FINDINGS_MOST]
