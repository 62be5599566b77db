"""What each kind of certificate says. `build` writes the to-be-signed bytes; `check` (another module) reads them again.

Everything comes from the service's records and configuration, but the public key: of a CSR nothing else is taken.
The writer is our own because an LDevID is written in the hot path (a tenth of the builder's time) and because no key
may enter here. Tests hold its output equal to cryptography's builder, byte for byte.
"""

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509

from provisioning.issuance import der
from provisioning.issuance.algorithms import ECDSA_SHA256, SignatureAlgorithm, algorithm_of, algorithm_of_spki
from provisioning.issuance.keys import SubjectKey, subject_key
from provisioning.issuance.tbs import Profile, ToBeSigned
from provisioning.refusals import ToBeSignedRefused

COMMON_NAME_MOST = 64
"""Characters: ub-common-name, RFC 5280 appendix A.1."""
SERIAL_NUMBER = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]{1,64}")
"""X520SerialNumber is a PrintableString of 1 to 64 characters (RFC 5280 appendix A.1): no underscore."""
DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

_COMMON_NAME = "2.5.4.3"
_SERIAL_NUMBER = "2.5.4.5"
_DIGITAL_SIGNATURE, _KEY_CERT_SIGN, _CRL_SIGN = 0, 5, 6
_OCSP, _CA_ISSUERS = "1.3.6.1.5.5.7.48.1", "1.3.6.1.5.5.7.48.2"
_VERSION_3 = der.tlv(0xA0, der.integer(2))


@dataclass(frozen=True, slots=True)
class Ldevid:
    """The identity of an enrolled device (IEEE 802.1AR): id minted by the server, serial as registered.

    `public_key` is a SubjectPublicKeyInfo in DER, here and below.
    """

    device_id: str
    serial_number: str
    service_name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Station:
    """A factory station. Its common name holds a colon, which no device id can."""

    name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class ServiceTls:
    """The service's own listeners and broker. `hosts` are DNS names or addresses beside those that always stand."""

    service_name: str
    hosts: tuple[str, ...]
    public_key: bytes


@dataclass(frozen=True, slots=True)
class RootCa:
    """The CA that signs itself and issuing CAs. Relying parties have it from the trust bundle."""

    common_name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class IssuingCa:
    """Signs end entities and CRLs, and no further CA (path length 0).

    `permitted_*`, where any is given, are its name constraints (RFC 5280 section 4.2.1.10): DNS names, hosts in URIs,
    networks. A kind of name of which none is given stays free.
    """

    common_name: str
    public_key: bytes
    permitted_dns: tuple[str, ...] = ()
    permitted_uri: tuple[str, ...] = ()
    permitted_ip: tuple[str, ...] = ()


Wanted = Ldevid | Station | ServiceTls | RootCa | IssuingCa


@dataclass(frozen=True, slots=True)
class Issuer:
    """What a certificate says about who signed it. `name` is the DER of its subject; `not_after` is its own.

    `crl_url`, where given, is where its CRL is served: it becomes the CRL distribution point. `ca_url` (its own
    certificate, DER) and `ocsp_url` become the authority information access. `algorithm` is how its key signs.
    """

    name: bytes
    key_id: bytes
    not_after: datetime
    crl_url: str | None = None
    ca_url: str | None = None
    ocsp_url: str | None = None
    algorithm: SignatureAlgorithm = ECDSA_SHA256


def issuer_of(
    certificate: bytes, crl_url: str | None = None, *, ca_url: str | None = None, ocsp_url: str | None = None
) -> Issuer:
    """The issuer that this CA certificate (DER) is. Does not prove that the certificate is trusted, or a CA's.

    Raises: ToBeSignedRefused, where its key is of a kind that signs nothing here.
    """
    ca = x509.load_der_x509_certificate(certificate)
    key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    name, algorithm = ca.subject.public_bytes(), algorithm_of(ca.public_key())
    return Issuer(name, key_id, ca.not_valid_after_utc, crl_url, ca_url, ocsp_url, algorithm)


def key_id_of(public_key: bytes) -> bytes:
    """Subject key identifier: the leftmost 160 bits of SHA-256 over the key (RFC 7093 section 2, method 1).

    The key is the content of the BIT STRING, without tag, length and number of unused bits. Raises: ToBeSignedRefused.
    """
    return hashlib.sha256(_subject_key(public_key).content).digest()[:20]


def device_uri(service_name: str, device_id: str) -> str:
    """The device's SPIFFE id: the service name is the trust domain."""
    return f"spiffe://{service_name}/device/{device_id}"


def station_name(name: str) -> str:
    """The common name of a factory station's certificate."""
    return f"station:{name}"


def service_hosts(wanted: ServiceTls) -> tuple[str, ...]:
    """Every name and address of the service's certificate, in order, each once."""
    return tuple(dict.fromkeys((wanted.service_name, "localhost", "127.0.0.1", *wanted.hosts)))


def build(
    wanted: Wanted, issuer: Issuer | None, *, serial: int, not_before: datetime, not_after: datetime
) -> ToBeSigned:
    """The to-be-signed bytes of that certificate. `issuer` is None for a root, which signs itself.

    Fractions of seconds are cut off (X.509 has none). Raises: ToBeSignedRefused, where a value does not fit the
    profile: that is checked where it is registered or configured, and is a defect here.
    """
    if (issuer is None) is not isinstance(wanted, RootCa):
        raise ToBeSignedRefused(expected="an issuer, or a root that is its own", actual=type(wanted).__name__)
    not_before = not_before.astimezone(UTC).replace(microsecond=0)
    not_after = not_after.astimezone(UTC).replace(microsecond=0)
    if not not_before < not_after:
        raise ToBeSignedRefused(expected=f"an end after {not_before}", actual=not_after)
    if issuer is not None and not_after > issuer.not_after:
        raise ToBeSignedRefused(expected=f"an end not after the issuer's, {issuer.not_after}", actual=not_after)
    profile, subject, extensions = _content(wanted)
    tbs = der.sequence(
        _VERSION_3,
        der.integer(serial),
        (algorithm_of_spki(wanted.public_key) if issuer is None else issuer.algorithm).identifier,
        subject if issuer is None else issuer.name,
        der.sequence(der.time(not_before), der.time(not_after)),
        subject,
        wanted.public_key,
        der.tlv(0xA3, der.sequence(extensions, _key_identifiers(wanted.public_key), _about(issuer))),
    )
    return ToBeSigned(tbs, serial, profile, not_before, not_after)


def _content(wanted: Wanted) -> tuple[Profile, bytes, bytes]:
    """Profile, subject and the extensions that the profile fixes."""
    match wanted:
        case Ldevid():
            if not SERIAL_NUMBER.fullmatch(wanted.serial_number):
                raise ToBeSignedRefused(expected="a serial in PrintableString", actual=wanted.serial_number)
            subject = der.distinguished_name(
                (_COMMON_NAME, der.UTF8_STRING, _common_name(wanted.device_id)),
                (_SERIAL_NUMBER, der.PRINTABLE_STRING, wanted.serial_number),
            )
            uri = device_uri(wanted.service_name, wanted.device_id)
            return Profile.LDEVID, subject, _END_ENTITY_CLIENT + _alternative_names(der.tlv(0x86, _ascii(uri)))
        case Station():
            return Profile.STATION, _named(station_name(wanted.name)), _END_ENTITY_CLIENT
        case ServiceTls():
            names = b"".join(map(_host, service_hosts(wanted)))
            return Profile.SERVICE_TLS, _named(wanted.service_name), _END_ENTITY_SERVER + _alternative_names(names)
        case RootCa():
            return Profile.ROOT_CA, _named(wanted.common_name), _ca(der.TRUE)
    return Profile.ISSUING_CA, _named(wanted.common_name), _ca(der.TRUE + der.integer(0)) + _permitted(wanted)


def _named(common_name: str) -> bytes:
    return der.distinguished_name((_COMMON_NAME, der.UTF8_STRING, _common_name(common_name)))


def _common_name(text: str) -> str:
    if not 1 <= len(text) <= COMMON_NAME_MOST:
        raise ToBeSignedRefused(expected=f"a common name of 1 to {COMMON_NAME_MOST} characters", actual=text)
    return text


def _ascii(text: str) -> bytes:
    if not (text.isascii() and text.isprintable()):
        raise ToBeSignedRefused(expected="an ASCII name", actual=text)
    return text.encode()


def _host(host: str) -> bytes:
    """A GeneralName: iPAddress where the text is an address, else dNSName."""
    try:
        return der.tlv(0x87, ipaddress.ip_address(host).packed)
    except ValueError:
        if not DNS_NAME.fullmatch(host):
            raise ToBeSignedRefused(expected="a DNS name in lower case, or an address", actual=host) from None
        return der.tlv(0x82, host.encode())


def _ca(basic_constraints: bytes) -> bytes:
    return der.extension("2.5.29.19", der.sequence(basic_constraints), critical=True) + der.extension(
        "2.5.29.15", der.named_bits({_KEY_CERT_SIGN, _CRL_SIGN}), critical=True
    )


def _permitted(wanted: IssuingCa) -> bytes:
    networks = (ipaddress.ip_network(text) for text in wanted.permitted_ip)
    names = [
        *(der.tlv(0x82, _ascii(name)) for name in wanted.permitted_dns),
        *(der.tlv(0x86, _ascii(name)) for name in wanted.permitted_uri),
        *(der.tlv(0x87, each.network_address.packed + each.netmask.packed) for each in networks),
    ]
    subtrees = der.tlv(0xA0, b"".join(map(der.sequence, names)))  # minimum is 0 and not written, maximum is absent
    return der.extension("2.5.29.30", der.sequence(subtrees), critical=True) if names else b""


def _end_entity(purpose: str) -> bytes:
    return (
        der.extension("2.5.29.19", der.sequence(), critical=True)
        + der.extension("2.5.29.15", der.named_bits({_DIGITAL_SIGNATURE}), critical=True)
        + der.extension("2.5.29.37", der.sequence(der.oid(purpose)))
    )


_END_ENTITY_SERVER = _end_entity("1.3.6.1.5.5.7.3.1")
_END_ENTITY_CLIENT = _end_entity("1.3.6.1.5.5.7.3.2")


def _alternative_names(names: bytes) -> bytes:
    return der.extension("2.5.29.17", der.sequence(names))


_SUBJECT_KEY_ID = der.oid("2.5.29.14")


def _key_identifiers(public_key: bytes) -> bytes:
    return der.sequence(_SUBJECT_KEY_ID, der.tlv(der.OCTET_STRING, der.tlv(der.OCTET_STRING, key_id_of(public_key))))


@lru_cache(maxsize=64)
def _about(issuer: Issuer | None) -> bytes:
    """The extensions that depend on the issuer alone. A root's may be left out (RFC 5280 section 4.2.1.1)."""
    if issuer is None:
        return b""
    authority = der.extension("2.5.29.35", der.sequence(der.tlv(0x80, issuer.key_id)))
    if issuer.crl_url is not None:
        full_name = der.tlv(0xA0, der.tlv(0xA0, der.tlv(0x86, _ascii(issuer.crl_url))))
        authority += der.extension("2.5.29.31", der.sequence(der.sequence(full_name)))
    access = [
        der.sequence(der.oid(method), der.tlv(0x86, _ascii(url)))
        for method, url in ((_OCSP, issuer.ocsp_url), (_CA_ISSUERS, issuer.ca_url))
        if url is not None
    ]
    return authority + (der.extension("1.3.6.1.5.5.7.1.1", der.sequence(*access)) if access else b"")


def _subject_key(public_key: bytes) -> SubjectKey:
    key = subject_key(public_key)
    if key is None:
        raise ToBeSignedRefused(expected="a key on P-256, P-384, P-521, Ed25519, or RSA", actual=public_key)
    return key
