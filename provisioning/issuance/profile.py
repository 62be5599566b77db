"""What each kind of certificate says. `build` writes the to-be-signed bytes; `check` (another module) reads them again.

Everything comes from the service's records and configuration, but the public key: of a CSR nothing else is taken.
The writer is our own because an LDevID is written in the hot path (a tenth of the builder's time) and because no key
may enter here. Tests hold its output equal to cryptography's builder, byte for byte.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from provisioning.issuance import der
from provisioning.issuance.algorithms import ECDSA_SHA256, SignatureAlgorithm, algorithm_of, algorithm_of_spki
from provisioning.issuance.extensions import (
    CLIENT_AUTH,
    OCSP_SIGNING,
    SERVER_AUTH,
    about_issuer,
    alternative_names,
    authority,
    end_entity,
    no_check,
    permitted_names,
    subject_key_id,
)
from provisioning.issuance.tbs import Profile, ToBeSigned
from provisioning.refusals import ToBeSignedRefused

COMMON_NAME_MOST = 64
"""Characters: ub-common-name, RFC 5280 appendix A.1."""
SERIAL_NUMBER = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]{1,64}")
"""X520SerialNumber is a PrintableString of 1 to 64 characters (RFC 5280 appendix A.1): no underscore."""
NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""99991231235959Z: no well-defined end (RFC 5280 section 4.1.2.5)."""

_COMMON_NAME = "2.5.4.3"
_SERIAL_NUMBER = "2.5.4.5"
_VERSION_3 = der.tlv(0xA0, der.integer(2))


@dataclass(frozen=True, slots=True)
class Ldevid:
    """The identity of an enrolled device (IEEE 802.1AR): id minted by the server, serial as registered.

    `public_key` is a SubjectPublicKeyInfo in DER, and `service_name` the SPIFFE trust domain, here and below.
    """

    device_id: str
    serial_number: str
    service_name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Idevid:
    """The identity that a device leaves the factory with (IEEE 802.1AR). It is good for enrolling and nothing else.

    Neither its common name nor its SPIFFE id is that of the device in service, and it names no purpose.
    """

    device_id: str
    serial_number: str
    service_name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What a device holds whose health is in doubt: the way back. Its SPIFFE id is not the device's in service."""

    device_id: str
    serial_number: str
    service_name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Gateway:
    """An LDevID that may serve TLS as well as use it. `hosts` are DNS names that its profile makes of its id."""

    device_id: str
    serial_number: str
    service_name: str
    hosts: tuple[str, ...]
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Station:
    """A factory station. Its common name holds a colon, which no device id can."""

    name: str
    service_name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Operator:
    """A person who operates the fleet. The same holds of its common name."""

    name: str
    service_name: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class ServiceTls:
    """The service's own listeners and broker. `hosts` are DNS names or addresses beside those that always stand."""

    service_name: str
    hosts: tuple[str, ...]
    public_key: bytes


@dataclass(frozen=True, slots=True)
class OcspResponder:
    """Signs OCSP answers for the authority of that name, which issues it (RFC 6960 section 4.2.2.2)."""

    authority: str
    service_name: str
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
    networks. A kind of name of which none is given stays free. `service_name`, where given, makes it the signing
    certificate of that SPIFFE trust domain.
    """

    common_name: str
    public_key: bytes
    permitted_dns: tuple[str, ...] = ()
    permitted_uri: tuple[str, ...] = ()
    permitted_ip: tuple[str, ...] = ()
    service_name: str = ""


Device = Ldevid | Idevid | Quarantine | Gateway
Wanted = Device | Station | Operator | ServiceTls | OcspResponder | RootCa | IssuingCa


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


def permitted_of(certificate: x509.Certificate) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The name constraints of that CA, as `IssuingCa` says them: DNS names, hosts in URIs, networks.

    Raises: ToBeSignedRefused, where it is constrained in a way that `IssuingCa` cannot say: nothing is left out.
    """
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return (), (), ()
    below = constraints.permitted_subtrees or []
    kinds = (x509.DNSName, x509.UniformResourceIdentifier, x509.IPAddress)
    if constraints.excluded_subtrees or not all(isinstance(name, kinds) for name in below):
        raise ToBeSignedRefused(
            expected="name constraints that permit DNS names, URIs and networks", actual=str(constraints)
        )
    dns, uri, ip = (tuple(str(name.value) for name in below if isinstance(name, kind)) for kind in kinds)
    return dns, uri, ip


def device_uri(service_name: str, device_id: str) -> str:
    """The device's SPIFFE id: the service name is the trust domain."""
    return f"spiffe://{service_name}/device/{device_id}"


def spiffe_id(wanted: Wanted) -> str | None:
    """The SPIFFE id in that certificate: one at most, and a CA's without a path (X509-SVID sections 2 and 3.2)."""
    match wanted:
        case Ldevid() | Gateway():
            return device_uri(wanted.service_name, wanted.device_id)
        case Idevid():
            path = f"/idevid/{wanted.device_id}"
        case Quarantine():
            path = f"/quarantine/{wanted.device_id}"
        case Station():
            path = f"/station/{wanted.name}"
        case Operator():
            path = f"/operator/{wanted.name}"
        case ServiceTls():
            path = "/service"
        case OcspResponder():
            path = f"/ocsp/{wanted.authority}"
        case _:
            path = ""
    if isinstance(wanted, RootCa) or not wanted.service_name:
        return None
    return f"spiffe://{wanted.service_name}{path}"


def station_name(name: str) -> str:
    """The common name of a factory station's certificate."""
    return f"station:{name}"


def operator_name(name: str) -> str:
    """The common name of an operator's certificate."""
    return f"operator:{name}"


def idevid_name(device_id: str) -> str:
    """The common name of an IDevID."""
    return f"idevid:{device_id}"


def responder_name(authority: str) -> str:
    """The common name of an OCSP responder."""
    return f"ocsp:{authority}"


def service_hosts(wanted: ServiceTls) -> tuple[str, ...]:
    """Every name and address of the service's certificate, in order, each once."""
    return tuple(dict.fromkeys((wanted.service_name, "localhost", "127.0.0.1", *wanted.hosts)))


def common_name_of(wanted: Wanted) -> str:
    """What the certificate's one common name says."""
    match wanted:
        case Ldevid() | Quarantine() | Gateway():
            return wanted.device_id
        case Idevid():
            return idevid_name(wanted.device_id)
        case Station():
            return station_name(wanted.name)
        case Operator():
            return operator_name(wanted.name)
        case ServiceTls():
            return wanted.service_name
        case OcspResponder():
            return responder_name(wanted.authority)
    return wanted.common_name


KIND_OF: dict[type[Wanted], Profile] = {
    RootCa: Profile.ROOT_CA,
    IssuingCa: Profile.ISSUING_CA,
    Idevid: Profile.IDEVID,
    Ldevid: Profile.LDEVID,
    Quarantine: Profile.QUARANTINE,
    Gateway: Profile.GATEWAY,
    Station: Profile.STATION,
    Operator: Profile.OPERATOR,
    ServiceTls: Profile.SERVICE_TLS,
    OcspResponder: Profile.OCSP_RESPONDER,
}


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
    if issuer is not None and not_after > issuer.not_after and not _is_endless(wanted, not_after):
        raise ToBeSignedRefused(expected=f"an end not after the issuer's, {issuer.not_after}", actual=not_after)
    subject = _subject(wanted)
    tbs = der.sequence(
        _VERSION_3,
        der.integer(serial),
        (algorithm_of_spki(wanted.public_key) if issuer is None else issuer.algorithm).identifier,
        subject if issuer is None else issuer.name,
        der.sequence(der.time(not_before), der.time(not_after)),
        subject,
        wanted.public_key,
        der.tlv(0xA3, der.sequence(_extensions(wanted), subject_key_id(wanted.public_key), _about(issuer, wanted))),
    )
    return ToBeSigned(tbs, serial, KIND_OF[type(wanted)], not_before, not_after)


def _is_endless(wanted: Wanted, not_after: datetime) -> bool:
    """An IDevID may have no end, and so outlives its issuer (IEEE 802.1AR, RFC 5280 section 4.1.2.5)."""
    return isinstance(wanted, Idevid) and not_after == NO_END


def _subject(wanted: Wanted) -> bytes:
    common_name = common_name_of(wanted)
    if not 1 <= len(common_name) <= COMMON_NAME_MOST:
        raise ToBeSignedRefused(expected=f"a common name of 1 to {COMMON_NAME_MOST} characters", actual=common_name)
    attribute = (_COMMON_NAME, der.UTF8_STRING, common_name)
    if not isinstance(wanted, Device):
        return der.distinguished_name(attribute)
    if not SERIAL_NUMBER.fullmatch(wanted.serial_number):
        raise ToBeSignedRefused(expected="a serial in PrintableString", actual=wanted.serial_number)
    return der.distinguished_name(attribute, (_SERIAL_NUMBER, der.PRINTABLE_STRING, wanted.serial_number))


def _extensions(wanted: Wanted) -> bytes:
    """The extensions that the profile and the record fix."""
    uri = spiffe_id(wanted)
    match wanted:
        case Ldevid() | Quarantine() | Station() | Operator():
            return _CLIENT + alternative_names(uri)
        case Idevid():
            return _NO_PURPOSE + alternative_names(uri)
        case Gateway():
            return _CLIENT_AND_SERVER + alternative_names(uri, wanted.hosts)
        case ServiceTls():
            return _SERVER + alternative_names(uri, service_hosts(wanted))
        case OcspResponder():
            return _RESPONDER + alternative_names(uri)
        case RootCa():
            return authority(None)
    permitted = permitted_names(wanted.permitted_dns, wanted.permitted_uri, wanted.permitted_ip)
    return authority(0) + alternative_names(uri) + permitted


_NO_PURPOSE = end_entity()
_CLIENT = end_entity(CLIENT_AUTH)
_SERVER = end_entity(SERVER_AUTH)
_CLIENT_AND_SERVER = end_entity(CLIENT_AUTH, SERVER_AUTH)
_RESPONDER = end_entity(OCSP_SIGNING) + no_check()


def _about(issuer: Issuer | None, wanted: Wanted) -> bytes:
    """The extensions that depend on the issuer. A root's may be left out (RFC 5280 section 4.2.1.1).

    Nobody is sent to a responder to ask about that responder.
    """
    if issuer is None:
        return b""
    ocsp_url = None if isinstance(wanted, OcspResponder) else issuer.ocsp_url
    return about_issuer(issuer.key_id, issuer.crl_url, ocsp_url, issuer.ca_url)
