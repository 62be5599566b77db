"""Is this quote authentic? Checks 9 to 12, 16 and 17. Authentic is not acceptable: see `appraisal`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from provisioning.attestation.algorithms import DIGEST, DIGEST_BYTES, HASH_IDS, HASH_NAMES
from provisioning.attestation.attestation_key import AttestationKey, verify_signed
from provisioning.attestation.structures import QuoteAttest, parse_quote
from provisioning.refusals import (
    Finding,
    PcrSelectionWrong,
    PcrValuesNotQuoted,
    TpmCleared,
    TpmFirmwareRefused,
    TpmWentBack,
)
from wire.messages import Attestation, Pcrs, PcrSelection

CLEARED_RESETS_MOST = 4
CLEARED_CLOCK_MOST_MS = 3_600_000
"""A TPM that started again from nothing (TPM2_Clear) attests within an hour of running and four resets."""


@dataclass(frozen=True, slots=True)
class TpmState:
    """The TPM's counters as a quote showed them. `clock` in milliseconds.

    `safe` False: the TPM lost power without a shutdown, and may show clock values a second time.
    """

    reset_count: int
    restart_count: int
    clock: int
    safe: bool
    firmware_version: int


@dataclass(frozen=True, slots=True)
class VerifiedPcrs:
    """PCR values of one bank that the TPM itself vouched for, and the TPM's state at that moment."""

    bank: str
    values: Mapping[int, bytes]
    tpm: TpmState


def verify_quote(
    quote: Attestation, reported: Pcrs, selection: PcrSelection, ak: AttestationKey, bound: bytes
) -> VerifiedPcrs:
    """The reported PCR values, once the AK's quote covers exactly them. Says nothing of whether they are good.

    Raises: StructureMalformed, AlgorithmRefused, NotGeneratedByTpm, WrongAttestationType, SignatureWrong,
    AkNotInEndorsementHierarchy, AnswersAnotherChallenge, PcrSelectionWrong, PcrValuesNotQuoted.
    """
    # (9) a quote, made by a TPM
    parsed = parse_quote(quote.attest)
    # (10) (5) (11) signed by the AK, an endorsement primary, for this challenge
    verify_signed(quote, parsed, ak, bound)
    # (12) over the PCRs that were asked for, and no fewer
    quoted = parsed.quoted
    if quoted.bank != HASH_IDS.get(selection.bank) or set(quoted.pcrs) != set(selection.pcrs):
        expected, actual = _shown(selection.bank, selection.pcrs), _shown(HASH_NAMES[quoted.bank], quoted.pcrs)
        raise PcrSelectionWrong(expected=expected, actual=actual)
    # (12) and the values are those that the TPM hashed (Part 3, 18.4: by the hash of the AK's scheme)
    values = _reported(reported, selection.bank, quoted.pcrs)
    digest = DIGEST[ak.scheme.hash](b"".join(values.values())).digest()
    if digest != quoted.digest:
        raise PcrValuesNotQuoted(expected=quoted.digest, actual=digest)
    return VerifiedPcrs(selection.bank, MappingProxyType(values), _state(parsed))


def verify_continuity(current: TpmState, previous: TpmState | None) -> None:
    """Is this the same TPM, later (check 16)?

    `previous` is what the same AK showed last, None at first. Not detected: a copied state that only ran forward.

    Raises: TpmWentBack, TpmCleared.
    """
    if previous is None:
        return
    findings = tuple(_steps_back(current, previous))
    if not findings:
        return
    fresh = current.reset_count <= CLEARED_RESETS_MOST and current.clock <= CLEARED_CLOCK_MOST_MS
    refusal = TpmCleared if fresh and current.safe and current.clock < previous.clock else TpmWentBack
    raise refusal(expected=findings[0].expected, actual=findings[0].actual, findings=findings)


def verify_firmware(current: TpmState, least: int) -> None:
    """Is the TPM's firmware new enough? True only of an endorsement primary's quote: other hierarchies obfuscate it.

    Check 17. Raises: TpmFirmwareRefused.
    """
    if current.firmware_version < least:
        raise TpmFirmwareRefused(expected=f"at least {least:#x}", actual=f"{current.firmware_version:#x}")


def _steps_back(current: TpmState, previous: TpmState) -> list[Finding]:
    """What may never happen: Part 1, 36.3 to 36.6 (clock, resetCount, restartCount, safe)."""
    findings = []
    counts, before = (current.reset_count, current.restart_count), (previous.reset_count, previous.restart_count)
    if counts < before:
        findings.append(
            Finding("resetCount, restartCount", f"at least {before[0]}, {before[1]}", f"{counts[0]}, {counts[1]}")
        )
    unsafe_reset = current.reset_count > previous.reset_count and not current.safe
    if current.clock < previous.clock and not unsafe_reset:
        findings.append(Finding("clock", f"at least {previous.clock} ms", f"{current.clock} ms"))
    return findings


def _reported(reported: Pcrs, bank: str, pcrs: tuple[int, ...]) -> dict[int, bytes]:
    """The values of exactly the quoted PCRs, in their order: anything else is not covered by the quote."""
    values = reported.get(bank, {})
    names = _names(pcrs)
    if len(reported) != 1 or values.keys() != names.keys():
        actual = "; ".join(f"{name} {', '.join(list(found)[:24])}" for name, found in reported.items()) or "none"
        raise PcrValuesNotQuoted(expected=_shown(bank, pcrs), actual=actual)
    size = DIGEST_BYTES[HASH_IDS[bank]]
    if wrong := [number for number, value in values.items() if len(value) != size]:
        raise PcrValuesNotQuoted(expected=f"{size} bytes each", actual=f"PCR {wrong[0]}: {len(values[wrong[0]])} bytes")
    return {pcr: values[name] for name, pcr in names.items()}


@lru_cache(maxsize=256)  # a fleet has as many selections as policies
def _names(pcrs: tuple[int, ...]) -> Mapping[str, int]:
    """The PCRs, in their order, by the names that they have in a message."""
    return {str(pcr): pcr for pcr in pcrs}


def _state(parsed: QuoteAttest) -> TpmState:
    clock = parsed.clock
    return TpmState(clock.reset_count, clock.restart_count, clock.clock, clock.safe, parsed.firmware_version)


def _shown(bank: str, pcrs: tuple[int, ...]) -> str:
    return f"{bank} {', '.join(map(str, pcrs)) or 'none'}"
