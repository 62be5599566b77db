"""Evidence that was judged before, read again to explain it: authentic as far as the evidence itself can show."""

from provisioning.attestation.algorithms import HASH_NAMES
from provisioning.attestation.attestation_key import verify_attestation_key
from provisioning.attestation.quote import VerifiedPcrs, verify_quote
from provisioning.attestation.structures import parse_quote
from wire.messages import Evidence, PcrSelection, PlatformEvidence


def quoted_pcrs(evidence: Evidence | PlatformEvidence, ak_public: bytes) -> VerifiedPcrs:
    """The PCR values that this AK quoted: signature, selection and digest are verified again.

    Not proven: that the quote is fresh, or answered any challenge of ours. Whoever kept the evidence knows that.

    Raises: a Refusal of the checks 1, 5, 9, 10 or 12.
    """
    quote = parse_quote(evidence.quote.attest)
    selection = PcrSelection(HASH_NAMES[quote.quoted.bank], quote.quoted.pcrs)
    return verify_quote(evidence.quote, evidence.pcrs, selection, verify_attestation_key(ak_public), quote.extra_data)
