"""Evidence: what the TPM says about the platform and the new key, bound to one challenge."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent import log
from device_agent.tpm import IAK, DeviceKey
from wire.binding import Flow, Part, activation_proof, ak_unique, binding
from wire.messages import BOOT_LOG_MOST, IMA_LOG_MOST, Challenge, Evidence, PlatformEvidence

if TYPE_CHECKING:
    from device_agent.tpm.keys import AttestationKey, Tpm

BANKS = ("sha256", "sha384", "sha512")
PCRS_MOST = 24
NONCE_LEAST = 16


class ChallengeRefused(Exception):
    """The challenge is not one that this device answers; the message is one line."""


class LogMissing(Exception):
    """The service wants a log, and the device has none to give; the message says how to mend it."""


class BootLogMissing(LogMissing):
    """The boot log."""


class ImaLogMissing(LogMissing):
    """The IMA log."""


@dataclass(frozen=True, slots=True)
class Attester:
    """What this device answers challenges with: `audience` is the anchor's service name."""

    audience: str
    ownership_epoch: int
    boot_log: Path | None
    ima_log: Path | None = None
    iak_handle: int | None = None

    @contextmanager
    def key(self, tpm: "Tpm", ek_kind: str) -> Iterator["AttestationKey"]:
        """The AK: the agent's own, or the one that the maker certified and left at a handle. Raises: TpmRefused."""
        if ek_kind == IAK and self.iak_handle is not None:
            with tpm.persistent_key(self.iak_handle) as ak:
                yield ak
            return
        with tpm.attestation_key(self.unique) as ak:
            yield ak

    @property
    def unique(self) -> bytes:
        """The `unique` field of the AK's template."""
        return ak_unique(self.audience, self.ownership_epoch)

    def read_boot_log(self, challenge: Challenge) -> bytes | None:
        """The platform's event log where the challenge asks for it. Raises: BootLogMissing."""
        if challenge.boot_log == "none":
            return None
        if self.boot_log is not None:
            return _read(self.boot_log, BOOT_LOG_MOST, BootLogMissing)
        if challenge.boot_log == "required":
            raise BootLogMissing(
                "the service requires the boot log: set boot_log in agent.toml "
                "(Linux: /sys/kernel/security/tpm0/binary_bios_measurements, readable by the agent)"
            )
        return None

    def read_ima_log(self, challenge: Challenge) -> bytes | None:
        """What the kernel measured since the boot, where the challenge asks for it. Read it after the quote.

        The kernel goes on measuring: then the log is longer than what was quoted, which the service expects. Raises:
        ImaLogMissing (it is required).
        """
        if challenge.ima_log == "none":
            return None
        try:
            if self.ima_log is None:
                raise ImaLogMissing("the service requires the IMA log: set ima_log in agent.toml")
            return _read(self.ima_log, IMA_LOG_MOST, ImaLogMissing)
        except ImaLogMissing as missing:
            if challenge.ima_log == "required":
                raise
            log.warning("no-ima-log", reason=missing)
            return None

    def attest_key(
        self, tpm: "Tpm", challenge: Challenge, flow: Flow, ek_kind: str, key: DeviceKey, csr: bytes
    ) -> Evidence:
        """Evidence for a new key, without the boot log. Raises: ChallengeRefused, TpmFailure."""
        self._check(challenge, ek_kind)
        with self.key(tpm, ek_kind) as ak:
            platform = self._platform(ak, challenge, flow, ek_kind, csr)
            with tpm.loaded(key.pem) as handle:
                certify = ak.certify(handle, self._bound(flow, "certify", challenge, csr, ak.name))
        return Evidence(
            csr=csr,
            device_public=key.public,
            certify=certify,
            quote=platform.quote,
            pcrs=platform.pcrs,
            activation_proof=platform.activation_proof,
        )

    def attest_platform(self, tpm: "Tpm", challenge: Challenge, ek_kind: str) -> PlatformEvidence:
        """Evidence of the platform alone, without the boot log. Raises: ChallengeRefused, TpmFailure."""
        self._check(challenge, ek_kind)
        with self.key(tpm, ek_kind) as ak:
            return self._platform(ak, challenge, "attest", ek_kind, b"")

    def _platform(
        self, ak: "AttestationKey", challenge: Challenge, flow: Flow, ek_kind: str, csr: bytes
    ) -> PlatformEvidence:
        proof = b""
        if ek_kind != IAK:
            secret = ak.activate(ek_kind, challenge.credential_blob, challenge.encrypted_secret)
            proof = activation_proof(secret, self._bound(flow, "activate", challenge, csr, ak.name))
        quote, pcrs = ak.quote(self._bound(flow, "quote", challenge, csr, ak.name), challenge.pcr_selection)
        return PlatformEvidence(quote=quote, pcrs={challenge.pcr_selection.bank: pcrs}, activation_proof=proof)

    def _bound(self, flow: Flow, part: Part, challenge: Challenge, csr: bytes, ak_name: bytes) -> bytes:
        """The device's own audience goes in, never the challenge's: evidence cannot be relayed."""
        return binding(
            flow,
            part,
            audience=self.audience,
            nonce=challenge.nonce,
            csr=csr,
            ak_name=ak_name,
            enrollment_id=challenge.enrollment_id,
        )

    def _check(self, challenge: Challenge, ek_kind: str) -> None:
        if challenge.audience != self.audience:
            raise ChallengeRefused(
                f"the challenge is by {challenge.audience!r}, this device belongs to {self.audience}"
            )
        if len(challenge.nonce) < NONCE_LEAST or not challenge.enrollment_id:
            raise ChallengeRefused("the challenge has no usable nonce or id")
        if bool(challenge.credential_blob) is (ek_kind == IAK):
            raise ChallengeRefused(f"the challenge is not for a key that is vouched for by {ek_kind}")
        selection = challenge.pcr_selection
        if selection.bank not in BANKS:
            raise ChallengeRefused(f"the challenge asks for the PCR bank {selection.bank!r}")
        if not selection.pcrs or len(set(selection.pcrs)) != len(selection.pcrs):
            raise ChallengeRefused("the challenge names no PCRs, or one twice")
        if not all(0 <= pcr < PCRS_MOST for pcr in selection.pcrs):
            raise ChallengeRefused("the challenge names a PCR that does not exist")


def with_logs(evidence: Evidence, boot_log: bytes | None, ima_log: bytes | None) -> Evidence:
    """The evidence with its logs inside, as HTTPS carries it."""
    return replace(evidence, boot_log=boot_log, ima_log=ima_log)


def _read(path: Path, most: int, missing: type[LogMissing]) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise missing(f"{path}: {error.strerror}") from error
    if len(content) > most:
        raise missing(f"{path}: is larger than {most} bytes")
    return content


def log_digest(content: bytes | None) -> bytes | None:
    """How a message names a log that was uploaded before."""
    return None if content is None else hashlib.sha256(content).digest()
