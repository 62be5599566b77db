"""Is this certificate the one that the service owes this device? Pure: keys, roots and time are arguments."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wire.topics import is_device_id

LEAF_AND_ISSUER = 2


class CertificateRefused(Exception):
    """The service's answer is not a certificate that this device may use; the message is one line."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a new certificate must show: `spki` is the pending key's, `roots` and `issuing_keys` are the bundle's, DER.

    `device_id` is the device's own, None at an enrollment, which learns it. Without `issuing_keys` any CA below a root
    counts. `quarantine`: it was a certificate of quarantine that was asked for.
    """

    service_name: str
    spki: bytes
    roots: Sequence[bytes]
    now: datetime
    device_id: str | None = None
    issuing_keys: Sequence[bytes] = ()
    quarantine: bool = False


def spki_of(certificate: x509.Certificate) -> bytes:
    """The certificate's public key, DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verify_issued(certificate: bytes, chain: Sequence[bytes], device_id: str, expected: Expectation) -> None:
    """Is this a certificate by a pinned root, over the pending key, with this device's names, valid now?

    Not proven: that it is not revoked. Raises: CertificateRefused.
    """
    try:
        leaf = x509.load_der_x509_certificate(certificate)
        issuers = [x509.load_der_x509_certificate(one) for one in chain]
    except ValueError as error:
        raise CertificateRefused("the certificate or its chain cannot be parsed") from error
    if spki_of(leaf) != expected.spki:
        raise CertificateRefused("the certificate is not over the key that was asked for")
    if not is_device_id(device_id):
        raise CertificateRefused("the device id is not one")
    if expected.device_id is not None and device_id != expected.device_id:
        raise CertificateRefused(f"the certificate is for {device_id}, this device is {expected.device_id}")
    _check_names(leaf, f"{expected.service_name}/{'quarantine' if expected.quarantine else 'device'}", device_id)
    _check_profile(leaf)
    _check_chain([leaf, *issuers], expected.roots)
    check_issuer([leaf, *issuers], expected.issuing_keys)
    for one in (leaf, *issuers):
        check_dates(one, expected.now)


def check_issuer(chain: Sequence[x509.Certificate], issuing_keys: Sequence[bytes]) -> None:
    """Is the CA above the certificate one that the bundle names? A root may have signed one that was retired since.

    Not proven: any signature of the chain. Raises: CertificateRefused.
    """
    if issuing_keys and (len(chain) < LEAF_AND_ISSUER or spki_of(chain[1]) not in issuing_keys):
        raise CertificateRefused("the certificate is by a CA that the trust bundle does not name (any more)")


def check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Is the certificate valid at this time? Raises: CertificateRefused."""
    if now < certificate.not_valid_before_utc:
        raise CertificateRefused(
            f"a certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}, "
            f"but it is {now:%Y-%m-%dT%H:%M:%SZ}"
        )
    if now > certificate.not_valid_after_utc:
        raise CertificateRefused(
            f"a certificate ended at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}, "
            f"and it is {now:%Y-%m-%dT%H:%M:%SZ}"
        )


def _check_names(leaf: x509.Certificate, under: str, device_id: str) -> None:
    common_names = [attribute.value for attribute in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common_names != [device_id]:
        raise CertificateRefused("the certificate's common name is not the device id")
    try:
        names = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise CertificateRefused("the certificate has no subject alternative name") from error
    hosts = [name for name in names if isinstance(name, x509.DNSName)]
    others = [name for name in names if not isinstance(name, x509.DNSName)]
    if others != [x509.UniformResourceIdentifier(f"spiffe://{under}/{device_id}")]:
        raise CertificateRefused("the certificate's alternative name is not this device at this service")
    if hosts and not _serves(leaf):
        raise CertificateRefused("the certificate has DNS names, and is not a gateway's")


def _check_profile(leaf: x509.Certificate) -> None:
    try:
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise CertificateRefused("the certificate lacks an extension of the device profile") from error
    if constraints.ca or usage.key_cert_sign or usage.crl_sign:
        raise CertificateRefused("the certificate is a CA's")
    if not usage.digital_signature:
        raise CertificateRefused("the certificate's key may not sign")
    if list(purposes) not in ([ExtendedKeyUsageOID.CLIENT_AUTH], _GATEWAY):
        raise CertificateRefused("the certificate is neither for TLS clients alone nor a gateway's")


_GATEWAY = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
"""A gateway serves TLS as well: its record says so, and the service asks nobody else."""


def _serves(leaf: x509.Certificate) -> bool:
    try:
        return list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == _GATEWAY
    except x509.ExtensionNotFound:
        return False


def _check_chain(chain: Sequence[x509.Certificate], roots: Sequence[bytes]) -> None:
    """Each is signed by the next, all but the first are CAs, and the last is a pinned root, byte for byte."""
    if chain[-1].public_bytes(Encoding.DER) not in roots:
        raise CertificateRefused("the chain does not end at a root of the trust bundle")
    for depth, (subject, issuer) in enumerate(itertools.pairwise(chain)):
        try:
            constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
            subject.verify_directly_issued_by(issuer)
        except (x509.ExtensionNotFound, InvalidSignature, TypeError, ValueError) as error:
            raise CertificateRefused("a certificate of the chain is not signed by the next") from error
        if not constraints.ca or not usage.key_cert_sign:
            raise CertificateRefused("a certificate of the chain is not a CA's")
        if constraints.path_length is not None and constraints.path_length < depth:
            raise CertificateRefused("the chain is longer than one of its CAs allows")
