"""Does this key live in that TPM? Checks 9 to 11, 14 and 19 (docs/protocol.md, section 1)."""

from dataclasses import dataclass

from provisioning.attestation.algorithms import (
    DECRYPT,
    ENCRYPTED_DUPLICATION,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    attribute_names,
)
from provisioning.attestation.attestation_key import AttestationKey, verify_signed
from provisioning.attestation.keys import spki_of
from provisioning.attestation.structures import parse_certify, parse_public
from provisioning.refusals import DeviceKeyAttributesRefused, DeviceKeyNotCertified, DeviceKeyReused
from wire.binding import key_id
from wire.messages import Attestation

_SET = SIGN | FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
_CLEAR = RESTRICTED | DECRYPT | ENCRYPTED_DUPLICATION


@dataclass(frozen=True, slots=True)
class ResidentKey:
    """A signing key that was made in the attesting TPM and cannot leave it. `spki` is DER, `key_id` its SHA-256.

    Not proven: that only the agent uses it, nor that it has an authorization value.
    """

    name: bytes
    spki: bytes
    key_id: str


def verify_residency(
    certify: Attestation, device_public: bytes, ak: AttestationKey, bound: bytes, ek_id: str
) -> ResidentKey:
    """The device key, once the AK certified it (TPM2_Certify over a loaded key) and its attributes hold it in the TPM.

    Raises: StructureMalformed, AlgorithmRefused, WeakKey, NotGeneratedByTpm, WrongAttestationType, SignatureWrong,
    AkNotInEndorsementHierarchy, AnswersAnotherChallenge, DeviceKeyNotCertified, DeviceKeyAttributesRefused,
    DeviceKeyReused.
    """
    # (9) a certification, made by a TPM
    parsed = parse_certify(certify.attest)
    # (10) (5) (11) signed by the AK, an endorsement primary, for this challenge
    verify_signed(certify, parsed, ak, bound)
    # (14) of this key: the Name is over its whole public area
    area = parse_public(device_public)
    name = area.name
    if parsed.certified.name != name:
        raise DeviceKeyNotCertified(expected=name, actual=parsed.certified.name)
    # (14) which cannot leave the TPM, and signs anything but what only a TPM may say
    if area.attributes & (_SET | _CLEAR) != _SET:
        raise DeviceKeyAttributesRefused(
            expected=f"{attribute_names(_SET)}; not {attribute_names(_CLEAR)}", actual=attribute_names(area.attributes)
        )
    # (19) and is neither the EK nor the AK
    spki = spki_of(area)
    identifier = key_id(spki)
    if identifier in (ek_id, ak.key_id):
        raise DeviceKeyReused(expected="a key of its own", actual="the EK" if identifier == ek_id else "the AK")
    return ResidentKey(name, spki, identifier)
