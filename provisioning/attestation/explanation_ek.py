"""A TPM that a policy does not trust, explained: the root, the level of trust or the switch that would accept it."""

from collections.abc import Iterator
from datetime import datetime

from provisioning.attestation.certificates import TPM_MANUFACTURER, Certificate, parse_certificate
from provisioning.attestation.ek_store import EkStore
from provisioning.attestation.endorsement import RegisteredEk, verify_endorsement
from provisioning.attestation.explanation_edit import Add, Change, EditImpossible, Put, edited
from provisioning.attestation.explanation_signed import Judged
from provisioning.attestation.policy import Policy, normal_manufacturer, parse_policy
from provisioning.refusals import (
    EkCertificateExpired,
    EkChainRefused,
    EkManufacturerRefused,
    EkTrustTooLow,
    PolicyMalformed,
    Refusal,
    SoftwareTpmRefused,
)
from wire.messages import EnrollmentRequest

WHY = Judged(signed=False, why="a request proves nothing before its TPM answered a challenge: anybody can send it")
TABLES_MOST = 64
SWITCHES: dict[type[Refusal], Change] = {
    EkTrustTooLow: Put(("ek_trust",), "key"),
    SoftwareTpmRefused: Put(("software_tpm",), value=True),
    EkCertificateExpired: Put(("expired_ek",), "accept"),
}
"""Refusals that one setting of the policy decides."""


def endorsement_changes(
    text: str, request: EnrollmentRequest, registered: RegisteredEk, now: datetime, store: EkStore
) -> tuple[tuple[Refusal, Change], ...]:
    """Each thing that the policy refuses of an EK, with the change that takes it away, until it would be accepted.

    Nothing of it is proven. Raises: EditImpossible, where no setting of the policy accepts this EK.
    """
    found: list[tuple[Refusal, Change]] = []
    refusal = _refusal(text, request, registered, now, store)
    while refusal is not None:
        found.append((refusal, _mends(text, found, refusal, request, registered, now, store)))
        refusal = _refusal(edited(text, [change for _, change in found]), request, registered, now, store)
    return tuple(found)


def _mends(
    text: str,
    found: list[tuple[Refusal, Change]],
    refusal: Refusal,
    request: EnrollmentRequest,
    registered: RegisteredEk,
    now: datetime,
    store: EkStore,
) -> Change:
    """The first change that takes this refusal away. Raises: EditImpossible."""
    before = [change for _, change in found]
    for change in _candidates(refusal, parse_policy(text), request, registered, store):
        if change in before:
            continue
        try:
            after = _refusal(edited(text, [*before, change]), request, registered, now, store)
        except (EditImpossible, PolicyMalformed):
            continue
        if after is None or type(after) is not type(refusal):
            return change
    raise EditImpossible(f"{refusal.title}: no setting of the policy changes that ({refusal.cure})")


def _refusal(
    text: str, request: EnrollmentRequest, registered: RegisteredEk, now: datetime, store: EkStore
) -> Refusal | None:
    """Raises: PolicyMalformed."""
    policy = parse_policy(text)
    try:
        verify_endorsement(request, policy, now, registered, store)
    except Refusal as refusal:
        return refusal
    return None


def _candidates(
    refusal: Refusal, policy: Policy, request: EnrollmentRequest, registered: RegisteredEk, store: EkStore
) -> Iterator[Change]:
    if type(refusal) in SWITCHES:
        yield SWITCHES[type(refusal)]
    der = request.ek_certificate or registered.certificate
    if der is None:
        return
    certificate = parse_certificate(der)
    manufacturer = normal_manufacturer(certificate.tpm.get(TPM_MANUFACTURER, ""))
    if isinstance(refusal, EkManufacturerRefused):
        for number in range(min(len(policy.ek_roots), TABLES_MOST)):
            yield Add(("ek_roots", number, "manufacturers"), manufacturer)
    if isinstance(refusal, EkChainRefused):
        if policy.sha1_authorities == "refuse":
            yield Put(("sha1_authorities",), "accept")
        sent = [parse_certificate(one) for one in request.ek_intermediates]
        for fingerprint in reversed(_above([certificate, *sent], store)):
            yield Add(("ek_roots",), {"fingerprint": fingerprint, "manufacturers": (manufacturer,)})


def _above(below: list[Certificate], store: EkStore) -> list[str]:
    """Fingerprints of the store's certificates above these, the lowest first. By their names: nothing is verified."""
    found: dict[str, None] = {}
    while below:
        above = [one for certificate in below for one in store.stored_as(certificate.issuer)]
        new = [one for one in above if one.fingerprint not in found]
        found |= dict.fromkeys(one.fingerprint for one in new)
        below = [store.certificate(one) for one in new]
    return list(found)
