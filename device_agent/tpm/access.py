"""How the TPM is reached, and what it gives: plain values. tpm2_pytss is imported with the first job (80 ms)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_agent.tpm.keys import Tpm


@dataclass(frozen=True, slots=True)
class TpmAccess:
    """How the TPM is reached, and the hierarchies' authorisations (usually empty)."""

    tcti: str
    owner_auth: bytes = field(default=b"", repr=False)
    endorsement_auth: bytes = field(default=b"", repr=False)

    @contextmanager
    def open(self) -> "Iterator[Tpm]":
        """The TPM, for one job. Raises: TpmUnreachable."""
        from device_agent.tpm.keys import Tpm, connect

        with connect(self) as esapi:
            yield Tpm(esapi)


IAK = "IAK"
"""The kind of what stands in an EK's place where the device's maker certified the attestation key."""


@dataclass(frozen=True, slots=True)
class Endorsement:
    """One EK: `kind` is the template's name, e.g. `EK-RSA2048`.

    With its certificate (DER), or, where the TPM holds none, with its public area (TPMT_PUBLIC). Of the kind `IAK` it
    is the maker's certificate for the attestation key, perhaps with one for the device's identity.
    """

    kind: str
    certificate: bytes | None
    intermediates: tuple[bytes, ...] = ()
    public: bytes | None = None
    idevid: bytes | None = None

    @property
    def algorithm(self) -> str:
        """`rsa` or `ecc`."""
        return "rsa" if "RSA" in self.kind else "ecc"


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A key that works in one TPM only. `pem` is a TSS2 key file, `public` a TPMT_PUBLIC, `spki` DER."""

    pem: bytes
    public: bytes
    spki: bytes
