"""The attestation key, and what it signed: checks 1, 5, 10 and 11 (docs/protocol.md, section 1)."""

from dataclasses import dataclass
from functools import lru_cache

from provisioning.attestation.algorithms import (
    DECRYPT,
    DIGEST,
    ENCRYPTED_DUPLICATION,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    ST_CLEAR,
    attribute_names,
)
from provisioning.attestation.keys import PublicKey, public_key_of, spki_of, verify_signature
from provisioning.attestation.structures import Attest, Scheme, parse_public, parse_signature
from provisioning.refusals import (
    AkAttributesRefused,
    AkNotInEndorsementHierarchy,
    AlgorithmRefused,
    AnswersAnotherChallenge,
)
from wire.binding import key_id
from wire.messages import Attestation

_SET = RESTRICTED | SIGN | FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
_CLEAR = DECRYPT | ENCRYPTED_DUPLICATION | ST_CLEAR
_ENDORSEMENT = (0x4000000B).to_bytes(4, "big")
"""TPM_RH_ENDORSEMENT (TPM 2.0 Library, Part 2, 7.4)."""


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """An AK whose public area says what it must. That a TPM holds it is proven by the activation (check 7).

    `qualified_name` is what `qualifiedSigner` of everything it signs must be, if it is a primary key of the
    endorsement hierarchy.
    """

    public: bytes
    name: bytes
    qualified_name: bytes
    key: PublicKey
    key_id: str
    scheme: Scheme


@lru_cache(maxsize=16_384)  # of a few KiB each: a fleet that attests every day
def verify_attestation_key(ak_public: bytes) -> AttestationKey:
    """Could this TPMT_PUBLIC be the AK of an honest agent (checks 1 and 5)?

    Attributes are the key's own words. They count because the Name is over them, the credential is over the Name
    (check 6), and a TPM opens it only for an object that it holds under this Name.

    Raises: StructureMalformed, AlgorithmRefused, WeakKey, AkAttributesRefused.
    """
    area = parse_public(ak_public)
    if area.attributes & (_SET | _CLEAR) != _SET:
        raise AkAttributesRefused(
            expected=f"{attribute_names(_SET)}; not {attribute_names(_CLEAR)}", actual=attribute_names(area.attributes)
        )
    if area.scheme is None or area.symmetric_bits is not None:
        raise AlgorithmRefused(expected="an AK with a signing scheme and no cipher", actual="another template")
    key = public_key_of(area)
    name = area.name
    # Part 1, 16: the qualified name of a primary key is nameAlg ‖ H(handle of the hierarchy ‖ Name).
    qualified = name[:2] + DIGEST[area.name_alg](_ENDORSEMENT + name).digest()
    return AttestationKey(ak_public, name, qualified, key, key_id(spki_of(area)), area.scheme)


def verify_signed(attestation: Attestation, parsed: Attest, ak: AttestationKey, bound: bytes) -> None:
    """Did this AK sign these very bytes, as an endorsement primary, for this challenge (checks 10, 5, 11)?

    `parsed` is `attestation.attest` after check 9; `bound` the 32 bytes of `wire.binding`.

    Raises: StructureMalformed, AlgorithmRefused, SignatureWrong, AkNotInEndorsementHierarchy, AnswersAnotherChallenge.
    """
    verify_signature(ak.key, ak.scheme, parse_signature(attestation.signature), attestation.attest)
    if parsed.qualified_signer != ak.qualified_name:
        raise AkNotInEndorsementHierarchy(expected=ak.qualified_name, actual=parsed.qualified_signer)
    if parsed.extra_data != bound:
        raise AnswersAnotherChallenge(expected=bound, actual=parsed.extra_data)
