"""Revocation lists of TPM manufacturers, as an operator imported them into a policy. None is ever fetched (check 4)."""

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from provisioning.attestation.certificates import Certificate, signature_parameters
from provisioning.attestation.signatures import why_not_signed
from provisioning.refusals import EkCertificateRevoked, EkChainRefused, Finding


class CrlMalformed(ValueError):
    """These bytes are no complete certificate revocation list."""


@dataclass(frozen=True, slots=True)
class Crl:
    """What one issuer had revoked on a day. Not authentic before `verify_not_revoked` saw its issuer's key."""

    tbs: bytes
    signature: bytes
    signature_algorithm: str
    signature_parameters: bytes
    issuer: bytes
    next_update: datetime | None
    serials: frozenset[int]


def parse_crl(der: bytes) -> Crl:
    """One complete CRL (RFC 5280, 5). Partial ones say so by critical extensions, and are refused.

    Raises: CrlMalformed.
    """
    try:
        parsed = x509.load_der_x509_crl(der)
        if critical := [e.oid.dotted_string for e in parsed.extensions if e.critical]:
            raise CrlMalformed(f"is partial: it has the critical extension {critical[0]}")
        return Crl(
            tbs=parsed.tbs_certlist_bytes,
            signature=parsed.signature,
            signature_algorithm=parsed.signature_algorithm_oid.dotted_string,
            signature_parameters=signature_parameters(der),
            issuer=parsed.issuer.public_bytes(),
            next_update=parsed.next_update_utc,
            serials=frozenset(revoked.serial_number for revoked in parsed),
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as error:
        if isinstance(error, CrlMalformed):
            raise
        raise CrlMalformed("is no X.509 CRL in DER") from error


def verify_not_revoked(path: tuple[Certificate, ...], crls: tuple[Crl, ...], now: datetime) -> list[Finding]:
    """Is no certificate of this path, from the EK to the root, in a CRL of its issuer? Old CRLs come back as findings.

    Where the policy imported no CRL of an issuer, nothing is known, and nothing is asked.

    Raises: EkCertificateRevoked, EkChainRefused (a CRL that its issuer did not sign).
    """
    findings = []
    for certificate, issuer in pairwise(path):
        for crl in crls:
            if crl.issuer != issuer.subject:
                continue
            if refused := why_not_signed(crl, issuer.public_key):
                raise EkChainRefused(expected="a CRL of the issuer of that name", actual=f"a CRL: {refused}")
            if certificate.serial in crl.serials:
                raise EkCertificateRevoked(expected="not revoked", actual=f"serial {certificate.serial:x}")
            if crl.next_update is not None and crl.next_update < now:
                findings.append(Finding("manufacturer CRL", "current", f"due on {crl.next_update:%Y-%m-%d}"))
    return findings
