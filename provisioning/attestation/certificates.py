"""X.509 certificates of TPM manufacturers, as the few fields that the verifier judges.

Two readers give one type. `cryptography` reads what is strict DER; what it refuses (Intel writes FALSE out, Nuvoton
orders a SET wrongly) asn1crypto reads. Either way a signature is verified over the certificate's original bytes.
Parsed is not verified: see `endorsement`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from asn1crypto import core as asn1
from asn1crypto import x509 as lenient
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from provisioning.attestation import der as shape
from provisioning.attestation.keys import PublicKey, verify_authority_key
from provisioning.attestation.names import LENIENT_REFUSALS
from provisioning.refusals import AlgorithmRefused, CertificateMalformed

MAX_BYTES = 8 * 1024

TPM_MANUFACTURER = "2.23.133.2.1"
TPM_MODEL = "2.23.133.2.2"
TPM_VERSION = "2.23.133.2.3"
_TPM_ATTRIBUTES = frozenset({TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION})

_KEY_USAGE, _BASIC_CONSTRAINTS, _EXTENDED_KEY_USAGE, _SUBJECT_ALT_NAME = (
    *("2.5.29.15", "2.5.29.19", "2.5.29.37", "2.5.29.17"),
)
# Understood, or of no effect where no policy is asked for and names are not constrained (RFC 5280, 4.2.1).
_HANDLED = frozenset(
    {
        *(_KEY_USAGE, _BASIC_CONSTRAINTS, _EXTENDED_KEY_USAGE, _SUBJECT_ALT_NAME),
        "2.5.29.9",  # subject directory attributes
        "2.5.29.14",  # subject key identifier
        "2.5.29.32",  # certificate policies
        "2.5.29.35",  # authority key identifier
    }
)

_USAGES = frozenset({"digital_signature", "key_encipherment", "key_agreement", "key_cert_sign", "crl_sign"})
_VERSION_TAG, _EXTENSIONS_TAG = 0xA0, 0xA3
_DIRECTORY_ATTRIBUTES = bytes.fromhex("551d09")
_TPM_SPECIFICATION = bytes.fromhex("6781050210")
"""2.23.133.2.16."""

# What cryptography raises on hostile or unusual certificates, and asn1crypto on hostile ones.
_STRICT_REFUSALS = (
    *(ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension),
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the verifier judges of one certificate. Nothing in it is authentic by itself.

    `subject` and `issuer` are the names' own DER. `key_usage` is None where the extension is absent. `tpm` holds the
    TCG attributes of the subject alternative name by OID. `unhandled` are critical extensions nobody here understands.
    """

    der: bytes
    tbs: bytes
    signature: bytes
    signature_algorithm: str
    signature_parameters: bytes
    serial: int
    subject: bytes
    issuer: bytes
    not_before: datetime
    not_after: datetime
    public_key: PublicKey
    is_ca: bool
    path_length: int | None
    key_usage: frozenset[str] | None
    extended_key_usage: frozenset[str]
    tpm: dict[str, str]
    unhandled: tuple[str, ...]


@lru_cache(maxsize=512)
def parse_certificate(der: bytes) -> Certificate:
    """One certificate out of untrusted DER: strictly where that is possible, else as it was written.

    Raises: CertificateMalformed, AlgorithmRefused, WeakKey.
    """
    if len(der) > MAX_BYTES:
        raise CertificateMalformed(expected=f"at most {MAX_BYTES} bytes", actual=f"{len(der)} bytes")
    try:
        return read_strictly(der)
    except _STRICT_REFUSALS:
        return read_leniently(der)


def read_strictly(der: bytes) -> Certificate:
    """The certificate as `cryptography` reads it.

    Raises: what it raises, CertificateMalformed, AlgorithmRefused, WeakKey.
    """
    parsed = x509.load_der_x509_certificate(der)
    _verify_whole(der, parsed.signature)
    extensions = parsed.extensions
    found: dict[str, x509.ExtensionType] = {e.oid.dotted_string: e.value for e in extensions}
    constraints = found.get(_BASIC_CONSTRAINTS)
    extended = found.get(_EXTENDED_KEY_USAGE)
    issuer, subject = _names(parsed.tbs_certificate_bytes)
    return Certificate(
        der=der,
        tbs=parsed.tbs_certificate_bytes,
        signature=parsed.signature,
        signature_algorithm=parsed.signature_algorithm_oid.dotted_string,
        signature_parameters=signature_parameters(der),
        serial=parsed.serial_number,
        subject=subject,
        issuer=issuer,
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
        public_key=verify_authority_key(parsed.public_key()),
        is_ca=isinstance(constraints, x509.BasicConstraints) and constraints.ca,
        path_length=constraints.path_length if isinstance(constraints, x509.BasicConstraints) else None,
        key_usage=_strict_key_usage(found.get(_KEY_USAGE)),
        extended_key_usage=_strict_extended(extended),
        tpm=_attributes(_strict_alternative_names(found.get(_SUBJECT_ALT_NAME))),
        unhandled=tuple(e.oid.dotted_string for e in extensions if e.critical and e.oid.dotted_string not in _HANDLED),
    )


def read_leniently(der: bytes) -> Certificate:
    """The certificate as asn1crypto reads it. Raises: CertificateMalformed, AlgorithmRefused, WeakKey."""
    try:
        return _read_leniently(der)
    except LENIENT_REFUSALS as error:
        raise CertificateMalformed(expected="one X.509 certificate in DER", actual=type(error).__name__) from error


def _verify_whole(ends_with_it: bytes, signature: bytes) -> bytes:
    """The signature, a BIT STRING of whole octets: one of fewer bits is overlooked by both readers.

    Raises: CertificateMalformed.
    """
    if not ends_with_it.endswith(b"\0" + signature):
        raise CertificateMalformed(expected="a signature of whole octets", actual="a rest of bits")
    return signature


def signature_parameters(signed: bytes) -> bytes:
    """The parameters of the signature algorithm of a certificate or a CRL (DER); empty where it has none.

    The bytes have been parsed before. Raises: CertificateMalformed.
    """
    _, algorithm, *_ = shape.elements(shape.first(signed).content)
    parts = tuple(shape.elements(algorithm.content))
    return parts[1].raw if len(parts) > 1 else b""


def extension_of(certificate: Certificate, oid: bytes) -> bytes | None:
    """The value of an extension, in its original bytes; `oid` is the content of its OBJECT IDENTIFIER.

    Raises: CertificateMalformed.
    """
    if oid not in certificate.tbs:  # nowhere, so in no extension: a fifth of the time that a certificate takes
        return None
    fields = shape.children(certificate.tbs, shape.SEQUENCE)
    for field in fields:
        if field.tag != _EXTENSIONS_TAG:
            continue
        for extension in shape.children(field.content, shape.SEQUENCE):
            parts = tuple(shape.elements(extension.content))
            if parts and parts[0].content == oid and parts[-1].tag == shape.OCTET_STRING:
                return parts[-1].content
    return None


def is_of_tpm_1_2(certificate: Certificate) -> bool:
    """Does the certificate itself say that it is of a TPM 1.2?

    By its TPM specification, in the subject directory attributes (TCG Credential Profiles for TPM Family 1.2; EK
    Credential Profile for 2.0, 3.1.3). A key that is marked for RSAES-OAEP says nothing: Infineon went on with that.
    Raises: CertificateMalformed.
    """
    value = extension_of(certificate, _DIRECTORY_ATTRIBUTES)
    return value is not None and "1.2" in _families(value)


def _families(value: bytes) -> Iterator[str]:
    """The `family` of each TPM specification: SEQUENCE OF Attribute { type, SET OF { family, level, revision } }."""
    for attribute in shape.children(value, shape.SEQUENCE):
        parts = tuple(shape.elements(attribute.content))
        if len(parts) < 2 or parts[0].content != _TPM_SPECIFICATION:  # noqa: PLR2004  type and values
            continue
        for specification in shape.elements(parts[1].content):
            family = next(iter(shape.elements(specification.content)), None)
            yield "" if family is None else family.content.decode("utf-8", "replace")


def _names(tbs: bytes) -> tuple[bytes, bytes]:
    """Issuer and subject as they stand in a TBSCertificate that has been parsed: re-encoded ones could differ."""
    fields = tuple(shape.elements(shape.first(tbs).content))
    if fields[0].tag == _VERSION_TAG:
        fields = fields[1:]
    return fields[2].raw, fields[4].raw  # serialNumber, signature, issuer, validity, subject


def _strict_key_usage(value: x509.ExtensionType | None) -> frozenset[str] | None:
    if not isinstance(value, x509.KeyUsage):
        return None
    return frozenset(name for name in _USAGES if getattr(value, name))


def _strict_extended(value: x509.ExtensionType | None) -> frozenset[str]:
    return frozenset(oid.dotted_string for oid in value) if isinstance(value, x509.ExtendedKeyUsage) else frozenset()


def _strict_alternative_names(value: x509.ExtensionType | None) -> Iterator[tuple[str, str]]:
    if isinstance(value, x509.SubjectAlternativeName):
        for name in value.get_values_for_type(x509.DirectoryName):
            for attribute in name:
                yield attribute.oid.dotted_string, str(attribute.value)


def _attributes(found: Iterator[tuple[str, str]]) -> dict[str, str]:
    """The TCG attributes; one that is named twice could mean two things, so it is refused."""
    attributes: dict[str, str] = {}
    for oid, value in found:
        if oid in attributes:
            raise CertificateMalformed(expected="each TPM attribute once", actual=f"{oid} twice")
        if oid in _TPM_ATTRIBUTES:
            attributes[oid] = value
    return attributes


def _read_leniently(der: bytes) -> Certificate:
    parsed = lenient.Certificate.load(der, strict=True)
    tbs = parsed["tbs_certificate"]
    found: dict[str, asn1.Asn1Value] = {}
    unhandled: list[str] = []
    for extension in tbs["extensions"]:
        oid = extension["extn_id"].dotted
        if oid in found:
            raise CertificateMalformed(expected="each extension once", actual=f"{oid} twice")
        found[oid] = extension["extn_value"].parsed
        if extension["critical"].native and oid not in _HANDLED:
            unhandled.append(oid)
    constraints = found[_BASIC_CONSTRAINTS].native if _BASIC_CONSTRAINTS in found else {}
    usage = found[_KEY_USAGE].native if _KEY_USAGE in found else None
    extended = found.get(_EXTENDED_KEY_USAGE, ())
    return Certificate(
        der=der,
        tbs=tbs.dump(),
        signature=_verify_whole(parsed["signature_value"].contents, parsed["signature_value"].native),
        signature_algorithm=parsed["signature_algorithm"]["algorithm"].dotted,
        signature_parameters=signature_parameters(der),
        serial=tbs["serial_number"].native,
        subject=tbs["subject"].dump(),
        issuer=tbs["issuer"].dump(),
        not_before=tbs["validity"]["not_before"].native,
        not_after=tbs["validity"]["not_after"].native,
        public_key=_lenient_key(tbs["subject_public_key_info"]),
        is_ca=bool(constraints.get("ca")),
        path_length=constraints.get("path_len_constraint"),
        key_usage=None if usage is None else usage & _USAGES,
        extended_key_usage=frozenset(purpose.dotted for purpose in extended),
        tpm=_attributes(_lenient_alternative_names(found.get(_SUBJECT_ALT_NAME, ()))),
        unhandled=tuple(unhandled),
    )


def _lenient_key(info: lenient.PublicKeyInfo) -> PublicKey:
    """Also Infineon's old way: an RSA key marked for OAEP (RFC 4055), which is an RSA key."""
    if info["algorithm"]["algorithm"].native == "rsaes_oaep":
        numbers = info["public_key"].parsed.native
        return verify_authority_key(rsa.RSAPublicNumbers(numbers["public_exponent"], numbers["modulus"]).public_key())
    try:
        return verify_authority_key(load_der_public_key(info.dump()))
    except UnsupportedAlgorithm as error:
        raise AlgorithmRefused(expected="RSA, P-256 or P-384", actual="another kind of key") from error


def _lenient_alternative_names(names: asn1.Asn1Value) -> Iterator[tuple[str, str]]:
    for name in names:
        if name.name != "directory_name":
            continue
        for relative in name.chosen.chosen:
            for attribute in relative:
                yield attribute["type"].dotted, str(attribute["value"].native)
