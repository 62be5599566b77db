"""The last look before a CA key signs: other code than the builder's reads the bytes again (by `cryptography`)."""

import ipaddress
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from provisioning.issuance.algorithms import algorithm_in, algorithm_of_spki
from provisioning.issuance.profile import (
    Issuer,
    IssuingCa,
    Ldevid,
    RootCa,
    ServiceTls,
    Station,
    Wanted,
    device_uri,
    key_id_of,
    service_hosts,
    station_name,
)
from provisioning.issuance.tbs import UNPARSED, Profile, ToBeSigned, unsigned
from provisioning.refusals import Finding, ToBeSignedRefused

_NO_USAGE = dict.fromkeys(
    ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
    False,
)
_SIGN = x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_NO_USAGE)
_CERTIFY = x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **_NO_USAGE)
_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

_Content = bytes | tuple[tuple[type[x509.GeneralName], object], ...]
_Extensions = dict[x509.ObjectIdentifier, tuple[bool, _Content]]
"""By object identifier: critical, and the content (names, key id, else the DER that `cryptography` writes)."""
_Subject = tuple[tuple[x509.ObjectIdentifier, str | bytes], ...]


def check_tbs(tbs: ToBeSigned, wanted: Wanted, issuer: Issuer | None) -> None:
    """Do these bytes say what `wanted` and its profile say, and nothing else?

    Does not judge whether the device may have it: that was decided before. Raises: ToBeSignedRefused, with every
    mismatch as a finding.
    """
    profile, subject, extensions = _expected(wanted, issuer)
    try:  # cryptography reads a field when it is asked for: every look stands in here
        algorithm = algorithm_of_spki(wanted.public_key) if issuer is None else issuer.algorithm
        found = x509.load_der_x509_certificate(unsigned(tbs.der))
        signer = found.issuer.public_bytes()
        facts = (
            ("version", x509.Version.v3, found.version),
            ("algorithm", algorithm.name, algorithm_in(tbs.der).name),
            ("profile", profile, tbs.profile),
            ("serial", tbs.serial, found.serial_number),
            ("serial is positive and has 64 bits or more", True, 2**64 <= tbs.serial < 2**159),
            ("not before", tbs.not_before, found.not_valid_before_utc),
            ("not after", tbs.not_after, found.not_valid_after_utc),
            ("ends after it begins", True, tbs.not_before < tbs.not_after),
            ("ends with its issuer", True, issuer is None or tbs.not_after <= issuer.not_after),
            ("issuer", issuer.name if issuer is not None else found.subject.public_bytes(), signer),
            ("subject", subject, tuple((attribute.oid, attribute.value) for attribute in found.subject)),
            ("public key", wanted.public_key, found.public_key().public_bytes(*_SPKI)),
            ("public key, to the byte", True, wanted.public_key in tbs.der),  # 0x06 (hybrid) parses as 0x04 would
            ("extensions", extensions, {each.oid: (each.critical, _content(each.value)) for each in found.extensions}),
        )
    except UNPARSED as error:
        raise ToBeSignedRefused(expected="a certificate that parses", actual=error) from error
    if wrong := tuple(Finding(what, str(right), str(actual)) for what, right, actual in facts if right != actual):
        names = ", ".join(finding.what for finding in wrong)
        raise ToBeSignedRefused(expected=f"the profile {profile}", actual=f"differs in: {names}", findings=wrong)


def _content(value: x509.ExtensionType) -> _Content:
    if isinstance(value, x509.SubjectAlternativeName):
        return tuple((type(name), name.value) for name in value)
    if isinstance(value, x509.SubjectKeyIdentifier):
        return value.digest
    return value.public_bytes()


def _expected(wanted: Wanted, issuer: Issuer | None) -> tuple[Profile, _Subject, _Extensions]:
    """Profile, subject and every extension that there may be."""
    extensions: _Extensions = {x509.SubjectKeyIdentifier.oid: (False, key_id_of(wanted.public_key))}
    extensions |= _of_issuer(issuer)
    match wanted:
        case Ldevid():
            uri = device_uri(wanted.service_name, wanted.device_id)
            extensions |= _LEAF | _CLIENT | _names((x509.UniformResourceIdentifier, uri))
            device: _Subject = ((NameOID.COMMON_NAME, wanted.device_id), (NameOID.SERIAL_NUMBER, wanted.serial_number))
            return Profile.LDEVID, device, extensions
        case Station():
            extensions |= _LEAF | _CLIENT
            return Profile.STATION, ((NameOID.COMMON_NAME, station_name(wanted.name)),), extensions
        case ServiceTls():
            extensions |= _LEAF | _SERVER | _names(*map(_host, service_hosts(wanted)))
            return Profile.SERVICE_TLS, ((NameOID.COMMON_NAME, wanted.service_name),), extensions
        case RootCa():
            return Profile.ROOT_CA, ((NameOID.COMMON_NAME, wanted.common_name),), extensions | _ROOT
    extensions |= _ISSUING | _permitted(wanted)
    return Profile.ISSUING_CA, ((NameOID.COMMON_NAME, wanted.common_name),), extensions


def _permitted(wanted: IssuingCa) -> _Extensions:
    below: list[x509.GeneralName] = [x509.DNSName(name) for name in wanted.permitted_dns]
    below += [x509.UniformResourceIdentifier(name) for name in wanted.permitted_uri]
    below += [x509.IPAddress(ipaddress.ip_network(text)) for text in wanted.permitted_ip]
    return _fixed((True, x509.NameConstraints(below, None))) if below else {}


def _names(*names: tuple[type[x509.GeneralName], object]) -> _Extensions:
    return {x509.SubjectAlternativeName.oid: (False, names)}


def _host(host: str) -> tuple[type[x509.GeneralName], object]:
    try:
        return x509.IPAddress, ipaddress.ip_address(host)
    except ValueError:
        return x509.DNSName, host


def _fixed(*extensions: tuple[bool, x509.ExtensionType]) -> _Extensions:
    return {value.oid: (critical, value.public_bytes()) for critical, value in extensions}


_LEAF = _fixed((True, x509.BasicConstraints(ca=False, path_length=None)), (True, _SIGN))
_CLIENT = _fixed((False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])))
_SERVER = _fixed((False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])))
_ROOT = _fixed((True, x509.BasicConstraints(ca=True, path_length=None)), (True, _CERTIFY))
_ISSUING = _fixed((True, x509.BasicConstraints(ca=True, path_length=0)), (True, _CERTIFY))


@lru_cache(maxsize=64)
def _of_issuer(issuer: Issuer | None) -> _Extensions:
    if issuer is None:
        return {}
    extensions = _fixed((False, x509.AuthorityKeyIdentifier(issuer.key_id, None, None)))
    if issuer.crl_url is not None:
        where = x509.DistributionPoint([x509.UniformResourceIdentifier(issuer.crl_url)], None, None, None)
        extensions |= _fixed((False, x509.CRLDistributionPoints([where])))
    access = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in (
            (AuthorityInformationAccessOID.OCSP, issuer.ocsp_url),
            (AuthorityInformationAccessOID.CA_ISSUERS, issuer.ca_url),
        )
        if url is not None
    ]
    return extensions | (_fixed((False, x509.AuthorityInformationAccess(access))) if access else {})
