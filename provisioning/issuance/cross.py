"""A CA that exists, certified by another CA: the same name and key, another issuer. Pure.

So a root is cross-signed, and an issuing CA is chained to a new root, without changing a certificate below it: what it
signed verifies under either (RFC 4949, cross-certificate). Everything but issuer, serial and dates comes out of the
certificate that the CA has; `check_cross` reads the result again by other code than wrote it.
"""

from datetime import UTC, datetime

from cryptography import x509

from provisioning.issuance import der
from provisioning.issuance.profile import Issuer
from provisioning.issuance.reader import pieces_of
from provisioning.issuance.tbs import UNPARSED, Profile, ToBeSigned, unsigned
from provisioning.refusals import Finding, ToBeSignedRefused

_OF_ISSUER = ("2.5.29.35", "2.5.29.31", "1.3.6.1.5.5.7.1.1")
"""Authority key identifier, CRL distribution points, authority information access: of whoever signs, not of the CA."""


def build_cross(certificate: bytes, issuer: Issuer, *, serial: int, not_before: datetime) -> ToBeSigned:
    """The to-be-signed bytes of that CA (its certificate, DER) under `issuer`; they end with whichever ends first.

    Raises: ToBeSignedRefused.
    """
    try:
        ca = x509.load_der_x509_certificate(certificate)
        pieces = pieces_of(ca.tbs_certificate_bytes)
        not_after = min(ca.not_valid_after_utc, issuer.not_after)
    except UNPARSED as error:
        raise ToBeSignedRefused(expected="a CA certificate", actual=type(error).__name__) from error
    not_before = not_before.astimezone(UTC).replace(microsecond=0)
    if not not_before < not_after:
        raise ToBeSignedRefused(expected=f"an end after {not_before}", actual=not_after)
    own = [
        der.extension(oid, content, critical=critical)
        for oid, (critical, content) in pieces.extensions.items()
        if oid not in _OF_ISSUER
    ]
    tbs = der.sequence(
        der.tlv(0xA0, der.integer(2)),
        der.integer(serial),
        issuer.algorithm.identifier,
        issuer.name,
        der.sequence(der.time(not_before), der.time(not_after)),
        pieces.subject,
        pieces.public_key,
        der.tlv(0xA3, der.sequence(*own, *_about(issuer))),
    )
    return ToBeSigned(tbs, serial, _kind(ca), not_before, not_after)


def check_cross(tbs: ToBeSigned, certificate: bytes, issuer: Issuer) -> None:
    """Is this that CA under that issuer, and nothing else? Raises: ToBeSignedRefused, with every mismatch."""
    try:
        ca, found = x509.load_der_x509_certificate(certificate), x509.load_der_x509_certificate(unsigned(tbs.der))
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints).value
        facts: tuple[tuple[str, object, object], ...] = (
            ("a CA", True, constraints.ca),
            ("subject", ca.subject.public_bytes(), found.subject.public_bytes()),
            ("public key", ca.public_key(), found.public_key()),
            ("issuer", issuer.name, found.issuer.public_bytes()),
            ("issuer's key", issuer.key_id, _authority_key(found)),
            ("serial", tbs.serial, found.serial_number),
            ("serial has 64 bits or more", True, 2**64 <= tbs.serial < 2**159),
            ("not before", tbs.not_before, found.not_valid_before_utc),
            ("not after", min(ca.not_valid_after_utc, issuer.not_after), found.not_valid_after_utc),
            ("what it may do", _own(ca), _own(found)),
            ("no other extension", set(), _foreign(found) - set(_OF_ISSUER) - set(_own(ca))),
        )
    except (*UNPARSED, x509.ExtensionNotFound) as error:
        raise ToBeSignedRefused(expected="a certificate that parses", actual=type(error).__name__) from error
    if wrong := tuple(Finding(what, str(right), str(actual)) for what, right, actual in facts if right != actual):
        names = ", ".join(finding.what for finding in wrong)
        raise ToBeSignedRefused(expected="the CA as it is", actual=f"differs in: {names}", findings=wrong)


def _kind(ca: x509.Certificate) -> Profile:
    """A root stays one, in the records: it is who signs issuing CAs."""
    return Profile.ROOT_CA if ca.subject == ca.issuer else Profile.ISSUING_CA


def _about(issuer: Issuer) -> list[bytes]:
    extensions = [der.extension("2.5.29.35", der.sequence(der.tlv(0x80, issuer.key_id)))]
    if issuer.crl_url is not None:
        full_name = der.tlv(0xA0, der.tlv(0xA0, der.tlv(0x86, issuer.crl_url.encode())))
        extensions.append(der.extension("2.5.29.31", der.sequence(der.sequence(full_name))))
    if issuer.ca_url is not None:
        access = der.sequence(der.oid("1.3.6.1.5.5.7.48.2"), der.tlv(0x86, issuer.ca_url.encode()))
        extensions.append(der.extension("1.3.6.1.5.5.7.1.1", der.sequence(access)))
    return extensions


def _own(certificate: x509.Certificate) -> dict[str, tuple[bool, bytes]]:
    return {
        each.oid.dotted_string: (each.critical, each.value.public_bytes())
        for each in certificate.extensions
        if each.oid.dotted_string not in _OF_ISSUER
    }


def _foreign(certificate: x509.Certificate) -> set[str]:
    return {each.oid.dotted_string for each in certificate.extensions}


def _authority_key(certificate: x509.Certificate) -> bytes | None:
    return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
