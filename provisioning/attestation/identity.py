"""A device maker's certificate for an attestation key: another way to know that the AK is in a TPM (for 2, 3 and 6).

TCG "TPM 2.0 Keys for Device Identity and Attestation", version 1.00 revision 12, sections 3 and 8. Whoever made the
device had the TPM prove, once, that an initial attestation key (IAK) is its own; the certificate says so, and carries
that word for as long as the key exists. So no credential is made for it: what the IAK signs is judged by its
signature, its qualified name and the challenge's binding, as for any other AK (checks 5, 9 to 14).
"""

from dataclasses import dataclass
from datetime import datetime

from asn1crypto import x509 as lenient

from provisioning.attestation import der as shape
from provisioning.attestation.attestation_key import AttestationKey, verify_attestation_key
from provisioning.attestation.certificates import Certificate, extension_of, parse_certificate
from provisioning.attestation.chains import Authorities, NoChain, verify_chain
from provisioning.attestation.crls import verify_not_revoked
from provisioning.attestation.ek_store import EMPTY, EkStore
from provisioning.attestation.endorsement import CLOCK_SKEW
from provisioning.attestation.evidence import ActivatedChallenge, OpenChallenge, context_of, verify_activation
from provisioning.attestation.keys import spki, verify_allowed
from provisioning.attestation.names import LENIENT_REFUSALS, name_text
from provisioning.attestation.policy import Policy
from provisioning.attestation.policy_roots import anchors
from provisioning.attestation.quote import verify_quote
from provisioning.refusals import (
    ActivationProofWrong,
    CertificateMalformed,
    Finding,
    IdentityCertificateUnfit,
    IdentityChainRefused,
    IdentityKeyDiffers,
    IdevidOfAnotherTpm,
)
from wire.binding import key_id
from wire.messages import Attestation, Evidence, Pcrs, PlatformEvidence

VERIFIED_TPM_RESIDENCY = "2.23.133.11.1.1"
"""tcg-cap-verifiedTPMResidency: the CA saw that the key is in a TPM with a manufacturer's EK certificate."""
VERIFIED_TPM_RESTRICTED = "2.23.133.11.1.3"
"""tcg-cap-verifiedTPMRestricted: and that it is fixedTPM and restricted. A relying party MUST look for it."""
AIK_CERTIFICATE = "2.23.133.8.3"
"""tcg-kp-AIKCertificate; where the certificate has an extended key usage at all, this is in it."""
TPM_2_0 = bytes.fromhex("6781050102")
"""2.23.133.1.2, the hwType of a TPM 2.0 in hardwareModuleName."""

_ALTERNATIVE_NAMES = bytes.fromhex("551d11")
_POLICIES = bytes.fromhex("551d20")
_HARDWARE_MODULE_NAME = bytes.fromhex("2b06010505070804")
"""1.3.6.1.5.5.7.8.4."""
_OTHER_NAME = 0xA0


@dataclass(frozen=True, slots=True)
class _Profile:
    """What a kind of certificate must say: policies (OID, name), and an extended key usage where it has any at all."""

    policies: tuple[tuple[str, str], ...]
    usage: str | None


_RESIDENT = (VERIFIED_TPM_RESIDENCY, "tcg-cap-verifiedTPMResidency")
_IAK = _Profile((_RESIDENT, (VERIFIED_TPM_RESTRICTED, "tcg-cap-verifiedTPMRestricted")), AIK_CERTIFICATE)
_IDEVID = _Profile((_RESIDENT,), None)


@dataclass(frozen=True, slots=True)
class IdentifiedKey:
    """An AK that a device maker's certificate vouches for. Nothing yet proves that the caller holds it: its quote does.

    `hardware_serial` names the TPM (hwSerialNum, as hex), `subject` the device as its maker calls it, `root_id` the
    root that vouches (its key id).
    """

    ak: AttestationKey
    certificate_id: str
    subject: str
    hardware_serial: str
    root_id: str
    findings: tuple[Finding, ...]


def verify_identity(
    ak_public: bytes,
    certificate: bytes,
    intermediates: tuple[bytes, ...],
    policy: Policy,
    now: datetime,
    store: EkStore = EMPTY,
) -> IdentifiedKey:
    """The AK, if a certificate for this very key chains to a root that the policy names for identities.

    Not proven: that the caller has the key (check 10 does, over a fresh nonce), that the TPM is still in the device
    that the certificate names, and which EK the TPM has.

    Raises: StructureMalformed, AlgorithmRefused, WeakKey, AkAttributesRefused, CertificateMalformed,
    IdentityCertificateUnfit, IdentityKeyDiffers, IdentityChainRefused, EkChainRefused, EkCertificateRevoked.
    """
    # (1, 5) a restricted signing key of the endorsement hierarchy, by its own words
    ak = verify_attestation_key(ak_public)
    # (6) which are true, by the words of a certificate that is for a restricted key in a TPM 2.0
    parsed = parse_certificate(certificate)
    verify_allowed(parsed.public_key)
    serial = _verify_profile(parsed, now, _IAK)
    # (6) and for this one
    if spki(parsed.public_key) != spki(ak.key):
        raise IdentityKeyDiffers(expected=key_id(spki(ak.key)), actual=key_id(spki(parsed.public_key)))
    # (2) whose issuer the policy believes in this matter
    root_id, findings = _verify_path(parsed, intermediates, policy, now, store)
    subject = name_text(parsed.subject)
    return IdentifiedKey(ak, key_id(spki(parsed.public_key)), subject, serial, root_id, findings)


def verify_idevid(
    certificate: bytes,
    intermediates: tuple[bytes, ...],
    iak: IdentifiedKey,
    policy: Policy,
    now: datetime,
    store: EkStore = EMPTY,
) -> tuple[Finding, ...]:
    """Is this IDevID certificate of the TPM that holds the IAK? By the word of one root on one hardware serial.

    Not proven: that anybody has the IDevID's key; the IAK speaks for the TPM. That the IDevID is registered is the
    caller's to know.

    Raises: CertificateMalformed, AlgorithmRefused, WeakKey, IdentityCertificateUnfit, IdentityChainRefused,
    EkChainRefused, EkCertificateRevoked, IdevidOfAnotherTpm.
    """
    parsed = parse_certificate(certificate)
    verify_allowed(parsed.public_key)
    serial = _verify_profile(parsed, now, _IDEVID)
    root_id, findings = _verify_path(parsed, intermediates, policy, now, store)
    if (serial, root_id) != (iak.hardware_serial, iak.root_id):
        expected = f"hardware serial {iak.hardware_serial}, root {iak.root_id}"
        actual = f"hardware serial {serial}, root {root_id}"
        raise IdevidOfAnotherTpm(expected=expected, actual=actual)
    return findings


def verify_answer(evidence: Evidence | PlatformEvidence, csr: bytes, challenge: OpenChallenge) -> ActivatedChallenge:
    """(7) Is this answer the challenged device's own? By the opened credential, or by the quote of a certified AK.

    Raises: ActivationProofWrong; what `verify_own_quote` raises.
    """
    if challenge.proof == "quote":
        return verify_own_quote(evidence.quote, evidence.pcrs, csr, challenge)
    return verify_activation(evidence.activation_proof, csr, challenge)


def verify_own_quote(quote: Attestation, reported: Pcrs, csr: bytes, challenge: OpenChallenge) -> ActivatedChallenge:
    """(7, in its place) Did the holder of the challenged IAK quote for this challenge and this CSR?

    A TPM quotes with a restricted key over the challenge's nonce: whatever else is wrong then is that device's own
    doing. For challenges whose AK came out of `verify_identity` only: for any other AK this proves nothing about a TPM.

    Raises: ActivationProofWrong (it asks for a credential); a Refusal of the checks 1, 5 or 9 to 12.
    """
    if challenge.proof != "quote":
        raise ActivationProofWrong
    ak = verify_attestation_key(challenge.ak_public)
    answered = ActivatedChallenge(challenge, ak, csr, context_of(challenge, ak, csr))
    verify_quote(quote, reported, challenge.pcr_selection, ak, answered.bound("quote"))
    return answered


def _verify_path(
    certificate: Certificate, intermediates: tuple[bytes, ...], policy: Policy, now: datetime, store: EkStore
) -> tuple[str, tuple[Finding, ...]]:
    """(2) The key id of the root that vouches, and what an operator should know of the path."""
    sent = tuple(map(parse_certificate, intermediates))
    known = Authorities(anchors(policy.identity_roots, store), sent, store)
    try:
        chain, root = verify_chain(certificate, known)
    except NoChain as none:
        wanted = f"a chain to one of {len(known.anchors)} identity roots of the policy"
        raise IdentityChainRefused(expected=wanted, actual=none) from none
    path = (certificate, *chain, root.certificate)
    findings = verify_not_revoked(path, policy.crls, now)
    findings += [
        Finding("device maker's CA", "valid today", f"{name_text(ca.subject)} expired on {ca.not_after:%Y-%m-%d}")
        for ca in path[1:]
        if ca.not_after < now
    ]
    return key_id(spki(root.certificate.public_key)), tuple(findings)


def _verify_profile(certificate: Certificate, now: datetime, profile: _Profile) -> str:
    """(6) Key usage, policies, hardware module name, dates (the specification's 8.1 and 8.2). Every mismatch."""
    findings = []
    if certificate.is_ca:
        findings.append(Finding("basic constraints", "no CA", "a CA"))
    if "digital_signature" not in (certificate.key_usage or ()):
        findings.append(
            Finding("key usage", "digitalSignature", ", ".join(sorted(certificate.key_usage or ())) or "none")
        )
    usages = certificate.extended_key_usage
    if profile.usage is not None and usages and profile.usage not in usages:
        findings.append(Finding("extended key usage", f"{profile.usage}, or none at all", ", ".join(sorted(usages))))
    policies = _policies(certificate)
    for oid, name in profile.policies:
        if oid not in policies:
            findings.append(Finding("certificate policies", f"{name} ({oid})", ", ".join(sorted(policies)) or "none"))
    modules = _hardware_modules(certificate)
    if len(modules) != 1 or modules[0][0] != TPM_2_0 or not modules[0][1]:
        actual = ", ".join(f"type {kind.hex()}, serial {serial.hex() or 'none'}" for kind, serial in modules) or "none"
        findings.append(Finding("hardwareModuleName", f"one of type {TPM_2_0.hex()} with a serial", actual))
    if certificate.unhandled:
        findings.append(Finding("critical extensions", "known ones", ", ".join(certificate.unhandled)))
    if not certificate.not_before - CLOCK_SKEW <= now <= certificate.not_after:
        actual = f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}"
        findings.append(Finding("validity", f"valid at {now:%Y-%m-%d}", actual))
    if findings:
        first = findings[0]
        expected = f"{first.what}: {first.expected}"
        raise IdentityCertificateUnfit(expected=expected, actual=first.actual, findings=tuple(findings))
    return modules[0][1].hex()


def _policies(certificate: Certificate) -> frozenset[str]:
    value = extension_of(certificate, _POLICIES)
    if value is None:
        return frozenset()
    try:
        stated = lenient.CertificatePolicies.load(value, strict=True)
        return frozenset(one["policy_identifier"].dotted for one in stated)
    except LENIENT_REFUSALS as error:
        raise CertificateMalformed(expected="certificate policies", actual=type(error).__name__) from error


def _hardware_modules(certificate: Certificate) -> list[tuple[bytes, bytes]]:
    """The hwType and hwSerialNum of every hardwareModuleName in the subject alternative name (RFC 4108, 5)."""
    value = extension_of(certificate, _ALTERNATIVE_NAMES)
    names = () if value is None else shape.children(value, shape.SEQUENCE)
    return [_module(name.content) for name in names if name.tag == _OTHER_NAME and _is_module(name.content)]


def _is_module(other_name: bytes) -> bool:
    return shape.first(other_name).content == _HARDWARE_MODULE_NAME


def _module(other_name: bytes) -> tuple[bytes, bytes]:
    """OtherName ::= SEQUENCE { type-id, value [0] EXPLICIT SEQUENCE { hwType, hwSerialNum } }."""
    parts = tuple(shape.elements(other_name))
    fields = shape.children(parts[-1].content, shape.SEQUENCE)
    if [field.tag for field in fields] != [shape.OID, shape.OCTET_STRING]:
        raise CertificateMalformed(expected="hwType and hwSerialNum", actual="other fields")
    return fields[0].content, fields[1].content
