"""Is this a genuine TPM that the model's policy trusts? Checks 2 to 4 (docs/protocol.md, section 1).

TCG EK Credential Profile for TPM Family 2.0, version 2.5. No URL of a certificate is ever fetched (check 4): nothing
here can.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from provisioning.attestation.algorithms import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA256,
    SHA384,
    SIGN,
    attribute_names,
)
from provisioning.attestation.certificates import (
    TPM_MANUFACTURER,
    TPM_MODEL,
    TPM_VERSION,
    Certificate,
    is_of_tpm_1_2,
    parse_certificate,
)
from provisioning.attestation.chains import Authorities, NoChain, verify_chain
from provisioning.attestation.crls import verify_not_revoked
from provisioning.attestation.ek_store import EMPTY, EkStore
from provisioning.attestation.keys import PublicKey, public_key_of, spki, verify_allowed
from provisioning.attestation.names import name_text
from provisioning.attestation.policy import Policy, normal_manufacturer
from provisioning.attestation.policy_roots import anchors
from provisioning.attestation.signatures import SHA1_SIGNATURES
from provisioning.attestation.structures import parse_public
from provisioning.refusals import (
    AlgorithmRefused,
    EkCertificateExpired,
    EkCertificateUnfit,
    EkChainRefused,
    EkManufacturerRefused,
    EkPublicNotRegistered,
    EkTrustTooLow,
    Finding,
    RequestMalformed,
    SoftwareTpmRefused,
    Tpm12Refused,
)
from wire.binding import key_id
from wire.messages import EnrollmentRequest

EK_CERTIFICATE = "2.23.133.8.1"
"""tcg-kp-EKCertificate (EK Credential Profile, 3.2.16)."""
CLOCK_SKEW = timedelta(minutes=5)
"""A TPM that was made a moment ago may come from a clock that is a little ahead."""
FOREVER = datetime.max.replace(tzinfo=UTC)
_EK_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | DECRYPT

# Makers and models of TPMs that are programs: swtpm, libtpms, IBM's and Microsoft's simulators.
_SOFTWARE_MANUFACTURERS = frozenset({"id:00001014", "id:49424D00", "id:49424D20", "id:53570000", "id:58434720"})
_SOFTWARE_MODELS = ("swtpm", "libtpms", "simulator")


@dataclass(frozen=True, slots=True)
class TrustedEk:
    """An EK that the policy trusts. Nothing yet proves that the caller holds it: see `credential`.

    `name_alg` and `symmetric_bits` are those of the TCG's standard template for the key (check 3). `trust` says on
    what the trust rests: a manufacturer's certificate, or a registration of the bare key.
    """

    ek_id: str
    public_key: PublicKey
    name_alg: int
    symmetric_bits: int
    trust: Literal["certificate", "registered-key"]
    manufacturer: str
    model: str
    version: str
    findings: tuple[Finding, ...]
    settled_until: datetime = FOREVER
    """The next date on which the same judgement may be another one, by the calendar alone."""


@dataclass(frozen=True, slots=True)
class RegisteredEk:
    """What the factory said of an EK: its key id, on what the registration rests, its certificate if there was one."""

    ek_id: str
    trust: Literal["certificate", "key"]
    certificate: bytes | None = None


def ek_id_of(certificate: bytes) -> str:
    """The key id of the certificate's key; to look a record up, not to believe anything.

    Raises: CertificateMalformed, AlgorithmRefused, WeakKey.
    """
    return key_id(spki(verify_allowed(parse_certificate(certificate).public_key)))


def ek_id_of_public(public: bytes) -> str:
    """The same for a TPMT_PUBLIC. Raises: StructureMalformed, AlgorithmRefused, WeakKey."""
    return key_id(spki(public_key_of(parse_public(public))))


def verify_endorsement(
    request: EnrollmentRequest,
    policy: Policy,
    now: datetime,
    registered: RegisteredEk | None = None,
    store: EkStore = EMPTY,
) -> TrustedEk:
    """The EK, if its certificate chains to a root of the policy, or its very key was registered.

    A device whose TPM holds no certificate sends the bare key: the certificate that the factory delivered stands in.
    Where the key was registered without one, and the policy says that this is enough, a certificate that the device
    sends is only the wrapping of that key. `store` has the roots that the policy names in it, and the intermediates
    that a device does not send.

    Not proven: possession (check 7), and that the TPM is not cleared, cloned or next to another machine.

    Raises: RequestMalformed, CertificateMalformed, StructureMalformed, AlgorithmRefused, WeakKey, Tpm12Refused,
    EkCertificateUnfit, EkChainRefused, EkManufacturerRefused, EkCertificateRevoked, SoftwareTpmRefused,
    EkCertificateExpired, EkPublicNotRegistered, EkTrustTooLow.
    """
    if (request.ek_certificate is None) == (request.ek_public is None):
        raise RequestMalformed(expected="either ek_certificate or ek_public", actual="both, or neither")
    by_key = registered is not None and registered.trust == "key"
    if request.ek_certificate is not None:
        if by_key and policy.ek_trust == "key":
            return _registered_key(parse_certificate(request.ek_certificate).public_key, registered)
        return _verify_certified(request.ek_certificate, request.ek_intermediates, policy, now, store)
    bare = _verify_bare(request.ek_public or b"", registered)
    if not by_key and registered is not None and registered.certificate is not None:
        return _verify_certified(registered.certificate, request.ek_intermediates, policy, now, store)
    if policy.ek_trust != "key":
        raise EkTrustTooLow(expected="a manufacturer's certificate", actual="a key that was registered without one")
    return bare


def _verify_certified(
    der: bytes, intermediates: tuple[bytes, ...], policy: Policy, now: datetime, store: EkStore
) -> TrustedEk:
    # (2) an EK certificate, by its own words
    certificate = parse_certificate(der)
    verify_allowed(certificate.public_key)
    manufacturer, model, version = _verify_profile(certificate, now)
    # (2) and by the words of a root that this policy names, which may speak for that manufacturer
    known = Authorities(
        anchors=anchors(policy.ek_roots, store),
        sent=tuple(map(parse_certificate, intermediates)),
        store=store,
        sha1_in_store=policy.sha1_authorities == "accept",
    )
    try:
        chain, root = verify_chain(certificate, known)
    except NoChain as none:
        wanted = f"a chain to one of {len(known.anchors)} roots of the policy"
        raise EkChainRefused(expected=wanted, actual=none) from none
    if manufacturer not in root.manufacturers:
        allowed = ", ".join(sorted(root.manufacturers))
        raise EkManufacturerRefused(
            expected=f"{name_text(root.certificate.subject)} for {allowed}", actual=manufacturer
        )
    software = manufacturer in _SOFTWARE_MANUFACTURERS or any(word in model.lower() for word in _SOFTWARE_MODELS)
    if software and not policy.software_tpm:
        raise SoftwareTpmRefused(expected="a hardware TPM", actual=f"{manufacturer} {model}")
    path = (certificate, *chain, root.certificate)
    findings = verify_not_revoked(path, policy.crls, now)
    findings += [
        Finding("manufacturer CA", "valid today", f"{name_text(ca.subject)} expired on {ca.not_after:%Y-%m-%d}")
        for ca in path[1:]
        if ca.not_after < now
    ]
    findings += [
        Finding("manufacturer CA", "signed with SHA-256 or better", f"{name_text(ca.subject)}: SHA-1")
        for ca in chain
        if ca.signature_algorithm in SHA1_SIGNATURES
    ]
    if certificate.not_after < now:
        if policy.expired_ek == "refuse":
            raise EkCertificateExpired(expected=f"valid at {now:%Y-%m-%d}", actual=f"{certificate.not_after:%Y-%m-%d}")
        findings.append(Finding("EK certificate", "valid today", f"expired on {certificate.not_after:%Y-%m-%d}"))
    # (3) the public area is ours: the certificate's key in the standard template
    name_alg, symmetric_bits = _template(certificate.public_key)
    ek_id = key_id(spki(certificate.public_key))
    ends = [*(one.not_after for one in path), *(crl.next_update for crl in policy.crls if crl.next_update is not None)]
    return TrustedEk(
        *(ek_id, certificate.public_key, name_alg, symmetric_bits, "certificate"),
        *(manufacturer, model, version, tuple(findings)),
        min((end for end in ends if end >= now), default=FOREVER),
    )


def _verify_bare(public: bytes, registered: RegisteredEk | None) -> TrustedEk:
    """(3) A bare key counts only where exactly it was registered; what else the device says of it does not matter."""
    area = parse_public(public)
    trusted = _registered_key(public_key_of(area), registered)
    if area.attributes & (_EK_ATTRIBUTES | SIGN) != _EK_ATTRIBUTES:
        raise AlgorithmRefused(expected=attribute_names(_EK_ATTRIBUTES), actual=attribute_names(area.attributes))
    if (area.name_alg, area.symmetric_bits) != (trusted.name_alg, trusted.symmetric_bits):
        raise AlgorithmRefused(expected="the TCG's template for this key", actual="another name algorithm or cipher")
    return trusted


def _registered_key(key: PublicKey, registered: RegisteredEk | None) -> TrustedEk:
    """(3) The key, if it is the registered one: by itself, or as that of the certificate that the factory delivered."""
    ek_id = key_id(spki(key))
    expected = None if registered is None else registered.ek_id
    if registered is None or ek_id != expected or (registered.trust != "key" and registered.certificate is None):
        raise EkPublicNotRegistered(expected=expected or "a registered key", actual=ek_id)
    name_alg, symmetric_bits = _template(verify_allowed(key))
    return TrustedEk(ek_id, key, name_alg, symmetric_bits, "registered-key", "", "", "", ())


def _verify_profile(certificate: Certificate, now: datetime) -> tuple[str, str, str]:
    """(2) Key usage, extended key usage, no CA, and who made what (EK Credential Profile, 3.2). Every mismatch."""
    if is_of_tpm_1_2(certificate):
        raise Tpm12Refused(expected="a TPM 2.0", actual="a TPM 1.2, by its own certificate")
    usage = "key_encipherment" if isinstance(certificate.public_key, rsa.RSAPublicKey) else "key_agreement"
    findings = []
    if certificate.is_ca:
        findings.append(Finding("basic constraints", "no CA", "a CA"))
    if usage not in (certificate.key_usage or ()):
        findings.append(Finding("key usage", usage, ", ".join(sorted(certificate.key_usage or ())) or "none"))
    if EK_CERTIFICATE not in certificate.extended_key_usage:
        actual = ", ".join(sorted(certificate.extended_key_usage)) or "none"
        findings.append(Finding("extended key usage", EK_CERTIFICATE, actual))
    for oid, name in ((TPM_MANUFACTURER, "manufacturer"), (TPM_MODEL, "model"), (TPM_VERSION, "version")):
        if not certificate.tpm.get(oid):
            findings.append(Finding("subject alternative name", f"the TPM's {name}", "none"))
    if certificate.unhandled:
        findings.append(Finding("critical extensions", "known ones", ", ".join(certificate.unhandled)))
    if certificate.not_before > now + CLOCK_SKEW:
        findings.append(Finding("validity", f"begun by {now:%Y-%m-%d}", f"from {certificate.not_before:%Y-%m-%d}"))
    if findings:
        first = findings[0]
        raise EkCertificateUnfit(
            expected=f"{first.what}: {first.expected}", actual=first.actual, findings=tuple(findings)
        )
    manufacturer = normal_manufacturer(certificate.tpm[TPM_MANUFACTURER])
    return manufacturer, certificate.tpm[TPM_MODEL], certificate.tpm[TPM_VERSION]


def _template(key: PublicKey) -> tuple[int, int]:
    """Name algorithm and AES bits of the standard template for such a key (EK Credential Profile, B.3, B.4).

    L-1, H-1 (RSA-2048) and L-2, H-2 (P-256): SHA-256, AES-128. H-6 (RSA-3072) and H-3 (P-384): SHA-384, AES-256.
    """
    size = key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return (SHA384, 256) if size == 384 else (SHA256, 128)  # noqa: PLR2004  the curve's name
    if size == 2048:  # noqa: PLR2004  the template's name
        return SHA256, 128
    if size == 3072:  # noqa: PLR2004  the template's name
        return SHA384, 256
    raise AlgorithmRefused(expected="an EK of RSA-2048, RSA-3072, P-256 or P-384", actual=f"RSA-{size}")
