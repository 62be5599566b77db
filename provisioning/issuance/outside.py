"""A CA certificate that somebody else's CA signed for a key of ours: is it what we may issue under? Pure.

For the first issuing CA (the ceremony) and for later ones alike. Not proven: that the outside CA is honest, that its
root is the one that the owner meant (a person compares its fingerprint), and that nothing above was revoked.
"""

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from provisioning.issuance.algorithms import algorithm_of
from provisioning.issuance.profiles import builtin
from provisioning.issuance.tbs import UNPARSED, Profile
from provisioning.issuance.weakkeys import DebianWeak, admit_key
from provisioning.refusals import Finding, OutsideCertificateRefused, Refusal

CERTIFICATE_MOST = 16 * 1024
CHAIN_LONGEST = 8
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512, hashes.SHA3_256, hashes.SHA3_384, hashes.SHA3_512)
_KNOWN = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.NAME_CONSTRAINTS,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.CERTIFICATE_POLICIES,
}
"""Extensions that may be critical: what they say is judged here, or (policies) nobody here depends on it."""
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
_PURPOSES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.OCSP_SIGNING)

E = TypeVar("E", bound=x509.ExtensionType)

_Facts = Iterator[tuple[str, object, object]]
"""What is looked at, what it has to be, what it is."""


@dataclass(frozen=True, slots=True)
class OutsideAuthority:
    """A CA certificate for our key, verified up to its root. `chain` is DER, from itself to the root."""

    certificate: x509.Certificate
    chain: tuple[bytes, ...]

    @property
    def root(self) -> x509.Certificate:
        """The outside CA's root, which signs itself."""
        return x509.load_der_x509_certificate(self.chain[-1])


def parse_certificate(data: bytes) -> x509.Certificate:
    """One certificate out of a file's bytes, PEM or DER. Raises: OutsideCertificateRefused."""
    if len(data) > CERTIFICATE_MOST:
        raise OutsideCertificateRefused(expected=f"at most {CERTIFICATE_MOST} bytes", actual=f"{len(data)} bytes")
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            (found,) = x509.load_pem_x509_certificates(data)
        else:
            found = x509.load_der_x509_certificate(data)
        # cryptography reads a field when it is asked for: here it is asked for what is used below.
        _ = (found.subject, found.issuer, list(found.extensions), found.public_key(), found.signature_hash_algorithm)
    except UNPARSED as error:
        raise OutsideCertificateRefused(expected="one certificate, PEM or DER", actual=type(error).__name__) from error
    return found


def ca_request(key: CertificateIssuerPrivateKeyTypes, common_name: str) -> bytes:
    """A request (PKCS #10, PEM) for an issuing CA: our name and key, CA with path length 0, and the key usages.

    An outside CA may name it otherwise; what comes back is judged by `verify_outside`. Raises: what the key raises.
    """
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    digest: hashes.SHA256 | hashes.SHA384 | None = hashes.SHA256()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        digest = None
    elif isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        digest = hashes.SHA384()
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .sign(key, digest)
        .public_bytes(Encoding.PEM)
    )


def verify_outside(
    certificate: bytes,
    above: Sequence[bytes],
    *,
    public_key: bytes,
    now: datetime,
    names: Sequence[str],
    debian_weak: DebianWeak,
) -> OutsideAuthority:
    """May our key with this certificate be an issuing CA?

    `above` (files' bytes, PEM or DER) leads from whoever signed it to a root that signs itself, in that order.
    `public_key` is ours, SubjectPublicKeyInfo in DER. `names` are DNS names, addresses and URIs that certificates of
    this CA will hold: name constraints that forbid them would be found out by devices. `debian_weak` knows weak keys.

    Raises: OutsideCertificateRefused: with every mismatch as a finding; at once where a signature does not verify.
    """
    if not 1 <= len(above) <= CHAIN_LONGEST:
        raise OutsideCertificateRefused(expected=f"1 to {CHAIN_LONGEST} CA certificates above", actual=len(above))
    path = tuple(map(parse_certificate, (certificate, *above)))
    findings = [
        Finding(what, _words(wanted), _words(actual))
        for number, each in enumerate(path)
        for what, wanted, actual in (*_own(each, number, now, debian_weak), *_usable_by(each, number, names))
        if wanted != actual
    ]
    ours = path[0]
    for what, wanted, actual in _issuing(ours, public_key):
        if wanted != actual:
            findings.append(Finding(what, _words(wanted), _words(actual)))
    if findings:
        told = ", ".join(finding.what for finding in findings)
        raise OutsideCertificateRefused(expected="an issuing CA for our key", actual=told, findings=tuple(findings))
    for below, issuer in zip(path, (*path[1:], path[-1]), strict=True):
        _verify_signed(below, issuer)
    return OutsideAuthority(ours, tuple(each.public_bytes(Encoding.DER) for each in path))


def _issuing(ours: x509.Certificate, public_key: bytes) -> _Facts:
    """What is asked of our own certificate alone."""
    spki = ours.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    yield "its key is the one that was made here", True, spki == public_key
    constraints = _extension(ours, x509.BasicConstraints)
    yield "path length 0", 0, constraints.path_length if constraints and constraints.ca else "no CA"
    yield "subject is a name", True, bool(list(ours.subject))
    # Other uses of a CA key would be uses that this service never makes: none is agreed to.
    usage = _extension(ours, x509.KeyUsage)
    extra = usage is not None and (usage.content_commitment or usage.key_encipherment or usage.data_encipherment)
    yield "key usage without encipherment", False, extra or (usage is not None and usage.key_agreement)
    yield "subject key identifier is there", True, _extension(ours, x509.SubjectKeyIdentifier) is not None


def _own(each: x509.Certificate, number: int, now: datetime, debian_weak: DebianWeak) -> _Facts:
    """What is asked of every certificate of the path. `number` 0 is ours; so many CAs stand below it at most."""
    who = "ours" if number == 0 else f"CA {number}"
    constraints, usage = _extension(each, x509.BasicConstraints), _extension(each, x509.KeyUsage)
    yield f"{who}: is a CA", True, constraints is not None and constraints.ca
    yield f"{who}: basic constraints are critical", True, _is_critical(each, x509.BasicConstraints)
    deep_enough = constraints is None or constraints.path_length is None or constraints.path_length >= number
    yield f"{who}: its path length allows what is below", True, deep_enough
    yield f"{who}: key usage keyCertSign", True, usage is not None and usage.key_cert_sign
    yield f"{who}: key usage cRLSign", True, number > 0 or (usage is not None and usage.crl_sign)
    yield f"{who}: has begun", True, each.not_valid_before_utc <= now
    yield f"{who}: has not ended", True, now < each.not_valid_after_utc
    yield f"{who}: version", x509.Version.v3, each.version
    yield f"{who}: its key is strong", "strong", _strength(each, debian_weak)
    algorithm = each.signature_hash_algorithm  # None: Ed25519 and Ed448, which hash by themselves
    good = algorithm is None or isinstance(algorithm, _HASHES)
    yield f"{who}: signed over SHA-256 or stronger", True, good
    unknown = [one.oid.dotted_string for one in each.extensions if one.critical and one.oid not in _KNOWN]
    yield f"{who}: no critical extension that is not known here", [], unknown


def _usable_by(each: x509.Certificate, number: int, names: Sequence[str]) -> _Facts:
    """Constraints that the certificates below would break."""
    who = "ours" if number == 0 else f"CA {number}"
    purposes = _extension(each, x509.ExtendedKeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in purposes:
        missing = [purpose.dotted_string for purpose in _PURPOSES if purpose not in purposes]
        yield f"{who}: extended key usages that certificates here need", [], missing
    constraints = _extension(each, x509.NameConstraints)
    if constraints is not None:
        refused = [name for name in names if not permits(constraints, name)]
        yield f"{who}: name constraints permit what certificates here hold", [], refused


def permits(constraints: x509.NameConstraints, name: str) -> bool:
    """May a certificate below hold this DNS name, address or URI? RFC 5280 section 4.2.1.10."""
    kind, matches = _matcher(name)
    permitted = [each for each in constraints.permitted_subtrees or () if isinstance(each, kind)]
    excluded = [each for each in constraints.excluded_subtrees or () if isinstance(each, kind)]
    return (not permitted or any(map(matches, permitted))) and not any(map(matches, excluded))


def _matcher(name: str) -> tuple[type[x509.GeneralName], Callable[[x509.GeneralName], bool]]:
    if "://" in name:
        host = urlsplit(name).hostname or ""

        def covers_uri(each: x509.GeneralName) -> bool:
            # With a leading period: hosts below it, and not itself.
            return host.endswith(each.value) if each.value.startswith(".") else host == each.value

        return x509.UniformResourceIdentifier, covers_uri
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return x509.DNSName, lambda each: name == each.value or name.endswith("." + each.value.lstrip("."))
    return x509.IPAddress, lambda each: address in each.value


def _verify_signed(below: x509.Certificate, issuer: x509.Certificate) -> None:
    names = _extension(below, x509.AuthorityKeyIdentifier), _extension(issuer, x509.SubjectKeyIdentifier)
    if names[0] is not None and names[1] is not None and names[0].key_identifier not in (None, names[1].digest):
        raise OutsideCertificateRefused(
            expected=f"an issuer with key identifier {(names[0].key_identifier or b'').hex()}",
            actual=names[1].digest.hex(),
        )
    if below is not issuer and below.not_valid_after_utc > issuer.not_valid_after_utc:
        raise OutsideCertificateRefused(
            expected=f"an end not after its issuer's, {issuer.not_valid_after_utc}", actual=below.not_valid_after_utc
        )
    try:
        below.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OutsideCertificateRefused(
            expected=f"{below.subject.rfc4514_string()!r} signed by {issuer.subject.rfc4514_string()!r}",
            actual=f"not signed by it ({type(error).__name__})",
        ) from error


def _strength(each: x509.Certificate, debian_weak: DebianWeak) -> str:
    """The same rules as for CA keys of our own: what lies above an issuing CA is no weaker."""
    spki = each.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        algorithm_of(each.public_key())
        admit_key(builtin(Profile.ROOT_CA), spki, debian_weak)
    except Refusal as refused:
        return f"{refused.title}: {refused.actual}"
    return "strong"


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _is_critical(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> bool:
    return any(each.critical for each in certificate.extensions if isinstance(each.value, kind))


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
