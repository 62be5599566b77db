"""What a factory station and the service say to each other, as data. Shapes and caps; no rule of trust."""

from dataclasses import dataclass
from typing import Annotated

from wire.codec import Cap
from wire.messages import CSR_MOST, Certificate, Digest, Identifier, TpmStructure


@dataclass(frozen=True, slots=True)
class Registration:
    """A device that a station vouches for, by exactly one of the things that its TPM may be known by.

    An EK certificate (DER), the EK (TPMT_PUBLIC), the SHA-256 of its SubjectPublicKeyInfo, or the device maker's
    certificate (DER) for an attestation key or a device identity.
    """

    serial: Identifier
    model: Identifier
    ek_certificate: Certificate | None = None
    ek_public: TpmStructure | None = None
    ek_sha256: Digest | None = None
    iak_certificate: Certificate | None = None
    idevid_certificate: Certificate | None = None
    group: Identifier | None = None


@dataclass(frozen=True, slots=True)
class RegistrationRequest:
    """All of them or none. `row` of a refusal is the index in `devices`."""

    devices: Annotated[tuple[Registration, ...], Cap(1000)]


@dataclass(frozen=True, slots=True)
class Registered:
    """The ids that the server minted, in the order of the request, and what is left of the budget."""

    device_ids: Annotated[tuple[Identifier, ...], Cap(1000)]
    budget_left: int


@dataclass(frozen=True, slots=True)
class IdevidRequest:
    """A device without a TPM: a station vouches for it, and its key gets an IDevID. `csr` is PKCS#10, DER."""

    serial: Identifier
    model: Identifier
    csr: Annotated[bytes, Cap(CSR_MOST)]


@dataclass(frozen=True, slots=True)
class IdevidIssued:
    """The answer. `chain` runs from the issuing CA to the root, DER."""

    device_id: Identifier
    certificate: Certificate
    chain: Annotated[tuple[Certificate, ...], Cap(4)]
    budget_left: int
