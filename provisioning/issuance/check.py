"""The last look before a CA key signs: other code than the builder's reads the bytes again (by `cryptography`)."""

import ipaddress
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

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
from provisioning.issuance.tbs import Profile, ToBeSigned, assemble
from provisioning.refusals import Finding, ToBeSignedRefused

_UNSIGNED = bytes.fromhex("3006020101020101")
"""An ECDSA signature in form only (r = s = 1): a parser takes it, a verifier never."""
_NO_USAGE = dict.fromkeys(
    ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
    False,
)
_SIGN = x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_NO_USAGE)
_CERTIFY = x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **_NO_USAGE)
_LEAF = x509.BasicConstraints(ca=False, path_length=None)
_CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])

_Extensions = dict[x509.ObjectIdentifier, tuple[bool, x509.ExtensionType]]


def check_tbs(tbs: ToBeSigned, wanted: Wanted, issuer: Issuer | None) -> None:
    """Do these bytes say what `wanted` and its profile say, and nothing else?

    Does not judge whether the device may have it: that was decided before. Raises: ToBeSignedRefused, with every
    mismatch as a finding.
    """
    try:
        found = x509.load_der_x509_certificate(assemble(tbs.der, _UNSIGNED))
        present = {extension.oid: (extension.critical, extension.value) for extension in found.extensions}
        public_key = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        algorithm = found.signature_algorithm_oid.dotted_string
        issuer_name, subject = found.issuer.public_bytes(), found.subject
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ToBeSignedRefused(expected="a certificate that parses", actual=error) from error
    profile, attributes, extensions = _expected(wanted)
    _add_key_ids(extensions, wanted, issuer)
    facts = [
        ("version", x509.Version.v3, found.version),
        ("algorithm", "1.2.840.10045.4.3.2", algorithm),
        ("profile", profile, tbs.profile),
        ("serial", tbs.serial, found.serial_number),
        ("not before", tbs.not_before, found.not_valid_before_utc),
        ("not after", tbs.not_after, found.not_valid_after_utc),
        ("issuer", subject.public_bytes() if issuer is None else issuer.name, issuer_name),
        ("subject", attributes, tuple((name.oid, name.value) for name in subject)),
        ("public key", wanted.public_key, public_key),
        ("extensions", set(extensions), set(present)),
        *((str(oid), value, present.get(oid)) for oid, value in extensions.items()),
        ("serial is positive, with 64 bits or more", True, 2**64 <= tbs.serial < 2**159),
        ("ends after it begins", True, tbs.not_after - tbs.not_before > timedelta(0)),
        ("ends with its issuer", True, issuer is None or tbs.not_after <= issuer.not_after),
    ]
    if wrong := tuple(Finding(what, str(right), str(actual)) for what, right, actual in facts if right != actual):
        raise ToBeSignedRefused(
            expected=f"the profile {profile}", actual=", ".join(finding.what for finding in wrong), findings=wrong
        )


def _expected(wanted: Wanted) -> tuple[Profile, tuple[tuple[x509.ObjectIdentifier, str], ...], _Extensions]:
    """The profile, its subject, and the extensions that it fixes, as `cryptography` names them."""
    match wanted:
        case Ldevid():
            uri = x509.UniformResourceIdentifier(device_uri(wanted.service_name, wanted.device_id))
            subject = ((NameOID.COMMON_NAME, wanted.device_id), (NameOID.SERIAL_NUMBER, wanted.serial_number))
            names = x509.SubjectAlternativeName([uri])
            return Profile.LDEVID, subject, {**_end_entity(_CLIENT), names.oid: (False, names)}
        case Station():
            return Profile.STATION, ((NameOID.COMMON_NAME, station_name(wanted.name)),), _end_entity(_CLIENT)
        case ServiceTls():
            names = x509.SubjectAlternativeName([_host(host) for host in service_hosts(wanted)])
            extensions = {**_end_entity(_SERVER), names.oid: (False, names)}
            return Profile.SERVICE_TLS, ((NameOID.COMMON_NAME, wanted.service_name),), extensions
        case RootCa():
            return Profile.ROOT_CA, ((NameOID.COMMON_NAME, wanted.common_name),), _authority(None)
        case IssuingCa():
            return Profile.ISSUING_CA, ((NameOID.COMMON_NAME, wanted.common_name),), _authority(0)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _end_entity(purpose: x509.ExtendedKeyUsage) -> _Extensions:
    return {_LEAF.oid: (True, _LEAF), _SIGN.oid: (True, _SIGN), purpose.oid: (False, purpose)}


def _authority(path_length: int | None) -> _Extensions:
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return {constraints.oid: (True, constraints), _CERTIFY.oid: (True, _CERTIFY)}


def _add_key_ids(extensions: _Extensions, wanted: Wanted, issuer: Issuer | None) -> None:
    own = x509.SubjectKeyIdentifier(key_id_of(wanted.public_key))
    extensions[own.oid] = (False, own)
    if issuer is None:
        return
    signer = x509.AuthorityKeyIdentifier(issuer.key_id, None, None)
    extensions[signer.oid] = (False, signer)
    if issuer.crl_url is not None:
        where = x509.DistributionPoint([x509.UniformResourceIdentifier(issuer.crl_url)], None, None, None)
        points = x509.CRLDistributionPoints([where])
        extensions[points.oid] = (False, points)
