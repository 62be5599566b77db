"""Who calls: a device or factory station by its client certificate, an operator by a bearer token.

TLS has verified the certificate's chain, its dates and the possession of its key. Whether it still counts is asked of
the database for each request: a connection may outlive a revocation.
"""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from provisioning import health
from provisioning.access import Operator
from provisioning.authorities import State
from provisioning.db import devices, enrollments
from provisioning.factory import StationIdentity
from provisioning.http.exchange import Call
from provisioning.refusals import NotAuthenticated, PassRequired
from wire.topics import is_device_id

STATION_PREFIX = "station:"
_USABLE = frozenset({"issued", "superseded"})
_GONE = frozenset({"revoked", "decommissioned"})
_TOKEN_MOST = 512


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a verified client certificate says: `name` is its CN, `serial` lower hex."""

    name: str
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """A device that holds the key of a certificate in force."""

    device: str
    certificate_serial: str
    health: str


def parse_client_certificate(der: bytes) -> ClientCertificate:
    """The name in a certificate that TLS verified. Raises: NotAuthenticated where it has not exactly one CN."""
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise NotAuthenticated(expected="a certificate with one CN", actual=f"{len(names)} CNs")
    return ClientCertificate(
        str(names[0].value), format(certificate.serial_number, "x"), certificate.not_valid_after_utc
    )


async def device_of(call: Call, *, remedial: bool = False) -> DeviceIdentity:
    """The calling device. A `remedial` route is for a device in quarantine too, with a quarantine certificate.

    Raises: NotAuthenticated, PassRequired, StorageUnavailable.
    """
    client = _client_of(call)
    if not is_device_id(client.name):
        raise NotAuthenticated(expected="a device's certificate", actual=client.name)
    certificate, device = await call.service.store.read(
        lambda tx: (enrollments.certificate_by_serial(tx, client.serial), devices.by_id(tx, client.name))
    )
    if certificate is None or certificate.device_id != client.name:
        raise NotAuthenticated(expected="a certificate in force", actual=_state(certificate))
    _verify_authority(call, certificate)
    way_back = remedial and not health.is_normal(certificate) and certificate.state in _USABLE
    if device is not None and device.state not in _GONE and not way_back:
        health.verify_not_narrowed(device)  # before its certificate, which is on hold then: this tells it what to do
    if certificate.state not in _USABLE:
        raise NotAuthenticated(expected="a certificate in force", actual=_state(certificate))
    if certificate.profile == "idevid":  # it opens EST's simpleenroll and nothing else
        raise NotAuthenticated(expected="an LDevID", actual="an IDevID")
    if not health.is_normal(certificate) and not remedial:
        raise PassRequired(expected="a certificate of a device in service", actual="a quarantine certificate")
    if device is None or device.state in _GONE:
        raise NotAuthenticated(expected="a device in service", actual=_state(device))
    return DeviceIdentity(client.name, client.serial, str(device.health))


async def station_of(call: Call) -> StationIdentity:
    """The calling factory station, by a certificate in force; `factory.register` asks whether it is the newest.

    Raises: NotAuthenticated, StorageUnavailable.
    """
    client = _client_of(call)
    if not client.name.startswith(STATION_PREFIX):
        raise NotAuthenticated(expected="a factory station's certificate", actual=client.name)
    certificate = await call.service.store.read(lambda tx: enrollments.certificate_by_serial(tx, client.serial))
    if certificate is None or certificate.state not in _USABLE:
        raise NotAuthenticated(expected="a certificate in force", actual=_state(certificate))
    _verify_authority(call, certificate)
    return StationIdentity(client.name.removeprefix(STATION_PREFIX), client.serial)


def _verify_authority(call: Call, certificate: devices.Record) -> None:
    """A connection may be older than the end of the CA that opened it. Raises: NotAuthenticated."""
    authority = call.service.authorities.named(certificate.issuer)
    if authority.state is State.RETIRED:
        raise NotAuthenticated(expected="a certificate by a CA that is not retired", actual=authority.name)


async def operator_of(call: Call) -> Operator:
    """The calling operator. Raises: NotAuthenticated, StorageUnavailable.

    The look-up is by the token's SHA-256: what a timing could reveal is a hash of 256 random bits.
    """
    scheme, _, token = call.request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > _TOKEN_MOST:
        raise NotAuthenticated(expected="Authorization: Bearer", actual="none, or another scheme")
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    row = await call.service.store.read(lambda tx: devices.operator_by_token(tx, digest))
    if row is None or not hmac.compare_digest(row.token_sha256, digest):
        raise NotAuthenticated(expected="a known token", actual="another one")
    return Operator(row.name, row.role)


def _client_of(call: Call) -> ClientCertificate:
    connection = call.connection
    if connection.identity is None:
        connection.identity = _peer_certificate(call)
    client: ClientCertificate = connection.identity
    if client.not_after.astimezone(UTC) <= call.arrived:
        raise NotAuthenticated(expected="a certificate in force", actual="expired")
    return client


def peer_certificate(call: Call) -> bytes | None:
    """The client certificate (DER) that TLS verified, if there is one."""
    transport = call.request.transport
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    der: bytes | None = None if tls is None else tls.getpeercert(binary_form=True)
    return der


def _peer_certificate(call: Call) -> ClientCertificate:
    der = peer_certificate(call)
    if der is None:
        raise NotAuthenticated(expected="a client certificate", actual="none")
    return parse_client_certificate(der)


def _state(row: devices.Record | None) -> str:
    return "unknown" if row is None else f"state {row.state}"
