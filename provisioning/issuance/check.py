"""The last look before a CA key signs: other code than the builder's reads the bytes again.

`cryptography` parses the fields, a strict reader of its own takes names and extensions apart. What the extensions must
say is written by `cryptography`, out of the record and the profile; the comparison is of DER, so that nothing passes
that means the same in other bytes.
"""

import hashlib
import ipaddress
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from provisioning.issuance.algorithms import algorithm_in, algorithm_of_spki
from provisioning.issuance.keys import KeyKind, subject_key
from provisioning.issuance.profile import (
    KIND_OF,
    NO_END,
    Device,
    Gateway,
    Issuer,
    IssuingCa,
    OcspResponder,
    ServiceTls,
    Wanted,
    common_name_of,
    service_hosts,
    spiffe_id,
)
from provisioning.issuance.profiles import CA_KINDS, CertificateProfile, builtin
from provisioning.issuance.reader import PRINTABLE_STRING, UTF8_STRING, attributes_of, pieces_of
from provisioning.issuance.tbs import UNPARSED, Profile, ToBeSigned, unsigned
from provisioning.refusals import Finding, ToBeSignedRefused

BACKDATED_MOST = timedelta(days=1)
"""How far before now a certificate may begin, for verifiers whose clock is behind."""
_NO_USAGE = dict.fromkeys(
    ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
    False,
)
_SIGN = x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_NO_USAGE)
_CERTIFY = x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **_NO_USAGE)

_Extensions = dict[str, tuple[bool, bytes]]
"""By object identifier in dots: critical, and the content in DER."""


def check_tbs(
    tbs: ToBeSigned, wanted: Wanted, issuer: Issuer | None, profile: CertificateProfile | None = None
) -> None:
    """Do these bytes say what `wanted` and its profile say, and nothing else? None: the built-in profile of its kind.

    Does not judge whether the device may have it: that was decided before. Raises: ToBeSignedRefused, with every
    mismatch as a finding.
    """
    kind = KIND_OF[type(wanted)]
    profile = profile or builtin(kind)
    try:  # cryptography reads a field when it is asked for: every look stands in here
        algorithm = algorithm_of_spki(wanted.public_key) if issuer is None else issuer.algorithm
        found = x509.load_der_x509_certificate(unsigned(tbs.der))
        raw = pieces_of(tbs.der)
        facts = (
            ("version", x509.Version.v3, found.version),
            ("algorithm", algorithm.name, algorithm_in(tbs.der).name),
            ("kind", (kind, kind), (tbs.profile, profile.kind)),
            ("serial", tbs.serial, found.serial_number),
            ("serial is positive and has 64 bits or more", True, 2**64 <= tbs.serial < 2**159),
            ("not before", tbs.not_before, found.not_valid_before_utc),
            ("not after", tbs.not_after, found.not_valid_after_utc),
            ("ends after it begins", True, tbs.not_before < tbs.not_after),
            ("ends with its issuer", True, _ends_with(issuer, tbs.not_after, kind)),
            ("lifetime", True, _lasts_as(profile, tbs.not_before, tbs.not_after)),
            ("says where its issuer's CRL is", True, _has_addresses(issuer, kind)),
            ("issuer", issuer.name if issuer is not None else raw.subject, raw.issuer),
            ("subject", _subject(wanted), attributes_of(raw.subject)),
            ("public key", wanted.public_key, raw.public_key),
            ("public key is one", True, found.public_key() is not None),
            ("public key is good enough", True, _takes(profile, wanted.public_key)),
            ("extensions", _expected(wanted, issuer), raw.extensions),
        )
    except UNPARSED as error:
        raise ToBeSignedRefused(expected="a certificate that parses", actual=error) from error
    if wrong := tuple(Finding(what, str(right), str(actual)) for what, right, actual in facts if right != actual):
        names = ", ".join(finding.what for finding in wrong)
        raise ToBeSignedRefused(expected=f"the profile {profile.name}", actual=f"differs in: {names}", findings=wrong)


def _ends_with(issuer: Issuer | None, not_after: datetime, kind: Profile) -> bool:
    """It ends with its issuer at the latest, unless it is an IDevID without an end (RFC 5280 section 4.1.2.5)."""
    return issuer is None or not_after <= issuer.not_after or (kind is Profile.IDEVID and not_after == NO_END)


def _has_addresses(issuer: Issuer | None, kind: Profile) -> bool:
    """Is there where to ask: the issuer's CRL and certificate; about an end entity its responder, unless it is that?"""
    if issuer is None:
        return True
    asks = kind not in CA_KINDS and kind is not Profile.OCSP_RESPONDER
    return None not in (issuer.crl_url, issuer.ca_url) and (issuer.ocsp_url is not None or not asks)


def _lasts_as(profile: CertificateProfile, not_before: datetime, not_after: datetime) -> bool:
    """An end of its own, where the profile has one; what has none may still be cut to something shorter."""
    if profile.lifetime is None:
        return not_after <= NO_END
    return not_after - not_before <= profile.lifetime + BACKDATED_MOST


def _takes(profile: CertificateProfile, spki: bytes) -> bool:
    """The kind and the size of the key. That it is not a weak one was asked when it was admitted (`weakkeys`)."""
    key = subject_key(spki)
    if key is None or key.kind not in profile.keys:
        return False
    return key.kind is not KeyKind.RSA or key.bits >= profile.rsa_bits_least


def _subject(wanted: Wanted) -> tuple[tuple[str, int, bytes], ...]:
    """Each attribute: its type, the tag of its string type, its octets (RFC 5280 appendix A.1)."""
    name = (NameOID.COMMON_NAME.dotted_string, UTF8_STRING, common_name_of(wanted).encode())
    if not isinstance(wanted, Device):
        return (name,)
    return name, (NameOID.SERIAL_NUMBER.dotted_string, PRINTABLE_STRING, wanted.serial_number.encode("ascii"))


def _expected(wanted: Wanted, issuer: Issuer | None) -> _Extensions:
    """Every extension that there must be; there may be no other."""
    identifier = _key_id(wanted.public_key)
    extensions = _of_kind(KIND_OF[type(wanted)]) | _of_issuer(issuer, isinstance(wanted, OcspResponder))
    extensions |= _fixed((False, x509.SubjectKeyIdentifier(identifier)))
    if names := _names(wanted):
        extensions |= _fixed((False, x509.SubjectAlternativeName(names)))
    if isinstance(wanted, IssuingCa):
        extensions |= _permitted(wanted)
    return extensions


def _key_id(spki: bytes) -> bytes:
    """RFC 7093 section 2, method 1: over the content of the BIT STRING."""
    key = subject_key(spki)
    if key is None:
        raise ValueError("the key is of no kind that is certified here")
    return hashlib.sha256(key.content).digest()[:20]


def _names(wanted: Wanted) -> list[x509.GeneralName]:
    hosts: tuple[str, ...] = ()
    if isinstance(wanted, ServiceTls):
        hosts = service_hosts(wanted)
    elif isinstance(wanted, Gateway):
        hosts = wanted.hosts
    names: list[x509.GeneralName] = [_host(host) for host in hosts]
    if (uri := spiffe_id(wanted)) is not None:
        names.append(x509.UniformResourceIdentifier(uri))
    return names


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _permitted(wanted: IssuingCa) -> _Extensions:
    below: list[x509.GeneralName] = [x509.DNSName(name) for name in wanted.permitted_dns]
    below += [x509.UniformResourceIdentifier(name) for name in wanted.permitted_uri]
    below += [x509.IPAddress(ipaddress.ip_network(text)) for text in wanted.permitted_ip]
    return _fixed((True, x509.NameConstraints(below, None))) if below else {}


def _fixed(*extensions: tuple[bool, x509.ExtensionType]) -> _Extensions:
    return {value.oid.dotted_string: (critical, value.public_bytes()) for critical, value in extensions}


_CLIENT, _SERVER, _RESPONDER = (
    ExtendedKeyUsageOID.CLIENT_AUTH,
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.OCSP_SIGNING,
)
_PURPOSES: dict[Profile, list[x509.ObjectIdentifier]] = {
    Profile.IDEVID: [],
    Profile.GATEWAY: [_CLIENT, _SERVER],
    Profile.SERVICE_TLS: [_SERVER],
    Profile.OCSP_RESPONDER: [_RESPONDER],
}
"""Of the end entities; the others are TLS clients."""


@lru_cache(maxsize=16)
def _of_kind(kind: Profile) -> _Extensions:
    if kind in CA_KINDS:
        length = None if kind is Profile.ROOT_CA else 0
        return _fixed((True, x509.BasicConstraints(ca=True, path_length=length)), (True, _CERTIFY))
    extensions = _fixed((True, x509.BasicConstraints(ca=False, path_length=None)), (True, _SIGN))
    if purposes := _PURPOSES.get(kind, [_CLIENT]):
        extensions |= _fixed((False, x509.ExtendedKeyUsage(purposes)))
    if kind is Profile.OCSP_RESPONDER:
        extensions |= _fixed((False, x509.OCSPNoCheck()))
    return extensions


@lru_cache(maxsize=64)
def _of_issuer(issuer: Issuer | None, is_responder: bool) -> _Extensions:  # noqa: FBT001  the fact itself, not a flag
    if issuer is None:
        return {}
    extensions = _fixed((False, x509.AuthorityKeyIdentifier(issuer.key_id, None, None)))
    if issuer.crl_url is not None:
        where = x509.DistributionPoint([x509.UniformResourceIdentifier(issuer.crl_url)], None, None, None)
        extensions |= _fixed((False, x509.CRLDistributionPoints([where])))
    access = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in (
            (AuthorityInformationAccessOID.OCSP, None if is_responder else issuer.ocsp_url),
            (AuthorityInformationAccessOID.CA_ISSUERS, issuer.ca_url),
        )
        if url is not None
    ]
    return extensions | (_fixed((False, x509.AuthorityInformationAccess(access))) if access else {})
