"""The only road to a CA signature: build, check, RESERVE, sign, compare, RECORD.

Reserved means that the serial and the to-be-signed bytes are durable before the HSM sees them: whatever the HSM
signs is known, and can be revoked. Recorded means that the answer leaves after the commit. A reserved certificate
that a crash left unsigned is signed again when its request comes again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from provisioning.authorities import Authority, State
from provisioning.db import authorities, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.issuance.check import check_tbs
from provisioning.issuance.profile import (
    KIND_OF,
    NO_END,
    Device,
    Gateway,
    Idevid,
    Issuer,
    Ldevid,
    OcspResponder,
    Quarantine,
    Wanted,
    build,
    idevid_name,
)
from provisioning.issuance.profiles import CertificateProfile
from provisioning.issuance.tbs import Profile, ToBeSigned, assemble, serial_of, serial_text
from provisioning.issuance.weakkeys import admit_key
from provisioning.journal import leaf
from provisioning.profiles import profile_of
from provisioning.refusals import DeviceKeyReused, SigningUnavailable, ToBeSignedRefused
from provisioning.service import Service
from wire.binding import key_id


@dataclass(frozen=True, slots=True)
class Order:
    """A certificate to be issued. `enrollment_id` makes it repeatable: the same id, the same certificate."""

    wanted: Wanted
    subject: str
    days: int | None = None
    """At most so many, where that is less than what the profile says."""
    device_id: str | None = None
    enrollment_id: str | None = None
    renews: bool = False
    """May the key have certificates already, all of this very device (RFC 7030 section 4.2.2)?"""
    profile: CertificateProfile | None = None
    """None: the one in force that bears the name of its kind."""


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that is in the database, in DER."""

    serial: str
    der: bytes
    not_before: datetime
    not_after: datetime
    issuer: str
    """The name of the authority that signed it."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """A certificate whose serial and bytes are durable. A `signature` is there where it was issued before."""

    serial: str
    profile: str
    profile_id: int | None
    tbs: bytes
    not_before: int
    not_after: int
    signature: bytes | None
    issuer: str


Recorded = Callable[[Connection, IssuedCertificate], None]
"""What else is written in the commit that records a certificate."""
Claim = Callable[[Connection, bool], None]
"""What a request stands on and uses up, in the commit that reserves its certificate. It raises what forbids it.

The second argument: is it there already, because this request, or another one with its id, reserved it before?
"""


def _nothing(_: Connection, _again: bool) -> None:  # noqa: FBT001  the shape of a claim
    """A request that was judged already."""


async def issue(service: Service, order: Order, recorded: Recorded, claim: Claim = _nothing) -> IssuedCertificate:
    """The certificate, durable, and whatever `recorded` writes with it.

    Raises: DeviceKeyReused, ToBeSignedRefused, SigningUnavailable, StorageUnavailable; what `admit_key`, `claim` and
    `recorded` raise.
    """
    now = service.clock()
    profile = order.profile or service.profiles.of_kind(KIND_OF[type(order.wanted)])
    admit_key(profile, order.wanted.public_key, service.debian_weak)
    by, reserved = await _reserved(service, order, profile, claim, now)
    signature = reserved.signature or await service.keys.sign(by.key, reserved.tbs)
    await service.verifier.signature(by.spki, reserved.tbs, signature)  # over the very bytes that were reserved
    if reserved.profile_id != profile.row:  # reserved before a crash, under a version that has been replaced since
        profile = await service.store.read(lambda tx: profile_of(tx, reserved.profile, reserved.profile_id))
    entry = leaf(
        service,
        "certificate",
        now,
        serial=reserved.serial,
        profile=profile.name,
        profile_version=profile.version,
        tbs_sha256=hashlib.sha256(reserved.tbs).digest(),  # the bytes themselves are kept once, in the row
    )
    return await service.ledger.write(lambda tx: _record(tx, reserved, signature, entry, recorded))


def ldevid_order(service: Service, device: Record, public_key: bytes, enrollment_id: str) -> Order:
    """The certificate that a device gets: everything in it but the key is the record's.

    Raises: ProfileUnknown, and what `admit_key` raises.
    """
    profile = service.profiles.of_device(device.profile)
    admit_key(profile, public_key, service.debian_weak)
    names = (device.id, device.serial, service.config.service_name)
    wanted: Ldevid | Gateway | Quarantine
    if profile.kind is Profile.GATEWAY:
        hosts = () if profile.dns_domain is None else (f"{device.id}.{profile.dns_domain}",)
        wanted = Gateway(*names, hosts, public_key)
    elif profile.kind is Profile.QUARANTINE:
        wanted = Quarantine(*names, public_key)
    else:
        wanted = Ldevid(*names, public_key)
    return Order(wanted, device.id, device_id=device.id, enrollment_id=enrollment_id, profile=profile)


def quarantine_order(service: Service, device: Record, public_key: bytes, enrollment_id: str) -> Order:
    """What a device in quarantine gets for a key that its TPM certified. Raises: what `admit_key` raises."""
    profile = service.profiles.of_kind(Profile.QUARANTINE)
    admit_key(profile, public_key, service.debian_weak)
    wanted = Quarantine(device.id, device.serial, service.config.service_name, public_key)
    return Order(wanted, device.id, device_id=device.id, enrollment_id=enrollment_id, profile=profile)


def idevid_order(service: Service, device_id: str, serial: str, public_key: bytes, request_id: str) -> Order:
    """The certificate that a device without a TPM leaves the factory with. Raises: what `admit_key` raises."""
    profile = service.profiles.of_kind(Profile.IDEVID)
    admit_key(profile, public_key, service.debian_weak)
    wanted = Idevid(device_id, serial, service.config.service_name, public_key)
    return Order(wanted, idevid_name(device_id), device_id=device_id, enrollment_id=request_id, profile=profile)


def certificate_of(row: Record) -> IssuedCertificate:
    """The certificate of an issued row."""
    return _issued(row, row.signature)


def _issued(row: Record | Reserved, signature: bytes) -> IssuedCertificate:
    begin, end = datetime.fromtimestamp(row.not_before, UTC), datetime.fromtimestamp(row.not_after, UTC)
    return IssuedCertificate(row.serial, assemble(row.tbs, signature), begin, end, row.issuer)


def renew_after(certificate: IssuedCertificate) -> datetime:
    """When a device asks for the next certificate: at two thirds of this one's lifetime, to the second."""
    moment = certificate.not_before + (certificate.not_after - certificate.not_before) * 2 / 3
    return moment.astimezone(UTC).replace(microsecond=0)


async def _reserved(
    service: Service, order: Order, profile: CertificateProfile, claim: Claim, now: datetime
) -> tuple[Authority, Reserved]:
    """The authority that signs now, and what it will sign. Raises: SigningUnavailable, as `issue`."""
    for _ in range(2):
        by = _signer(service, order)
        tbs = _build(service, order, profile, by.issuer, now)
        row = _row(order, profile, by.name, tbs, now)
        reserved = await service.ledger.write(lambda tx, row=row: _reserve(tx, order, claim, row))  # type: ignore[misc]  # bound now
        if reserved is not None:
            return service.authorities.named(reserved.issuer), reserved
        await service.authorities.refresh(service.store)  # another process activated another one a moment ago
    raise SigningUnavailable(expected="an active issuing authority", actual="one that changes")


def _signer(service: Service, order: Order) -> Authority:
    """The active authority; of an OCSP responder the one that it answers for (RFC 6960 section 4.2.2.2).

    Raises: SigningUnavailable, NotFound.
    """
    if isinstance(order.wanted, OcspResponder):
        return service.authorities.named(order.wanted.authority)
    return service.authorities.active


def _build(service: Service, order: Order, profile: CertificateProfile, by: Issuer, now: datetime) -> ToBeSigned:
    not_before = now - timedelta(seconds=service.config.lifetimes.backdate_seconds)
    serial = serial_of(service.entropy(16))
    not_after = _end(order, profile, by, now)
    tbs = build(order.wanted, by, serial=serial, not_before=not_before, not_after=not_after)
    check_tbs(tbs, order.wanted, by, profile)
    return tbs


def _end(order: Order, profile: CertificateProfile, by: Issuer, now: datetime) -> datetime:
    """The earliest of what the profile, the order and the issuer say."""
    ends = [] if order.days is None else [now + timedelta(days=order.days)]
    if profile.lifetime is None and not ends:
        return NO_END
    if profile.lifetime is not None:
        ends.append(now + profile.lifetime)
    return min(*ends, by.not_after)


def _row(order: Order, profile: CertificateProfile, by: str, tbs: ToBeSigned, now: datetime) -> dict[str, Any]:
    return {
        "serial": serial_text(tbs.serial),
        "issuer": by,
        "profile": tbs.profile.value,
        "profile_id": profile.row,
        "subject": order.subject,
        "device_id": order.device_id,
        "enrollment_id": order.enrollment_id,
        "key_id": key_id(order.wanted.public_key),
        "tbs": tbs.der,
        "not_before": int(tbs.not_before.timestamp()),
        "not_after": int(tbs.not_after.timestamp()),
        "reserved_at": int(now.timestamp()),
        "state": "reserved",
        "signature": None,
    }


def _reserve(tx: Connection, order: Order, claim: Claim, row: dict[str, Any]) -> Reserved | None:
    """The row that will be signed: the one that this request reserved before, or a new one.

    None where the authority is not active (any more): no other one's key signs a certificate. But for its OCSP
    responder's, which it needs as long as it answers for what it issued.
    """
    by = row["issuer"]
    before = enrollments.certificates_of_request(tx, order.enrollment_id, row["key_id"], by)
    if before is None and isinstance(order.wanted, OcspResponder) and _is_retiring(tx, by):
        before = []
    if before is None:
        return None
    for known in before:
        if order.enrollment_id is not None and known.enrollment_id == order.enrollment_id:
            if known.signature is not None or known.issuer == by:
                claim(tx, True)  # noqa: FBT003  again
                return Reserved(**{name: getattr(known, name) for name in Reserved.__slots__})
            enrollments.give_up(tx, known.serial)  # a crash left it to an authority that signs no more
            continue
        if known.signature is None and known.enrollment_id is None and known.issuer != by:
            continue  # given up
        if order.renews and known.device_id == order.device_id:
            continue
        if _is_anothers(order, known):
            raise DeviceKeyReused(expected="a key without certificate", actual=f"certificate {known.serial}")
    claim(tx, False)  # noqa: FBT003  not there yet
    enrollments.add_certificate(tx, row)
    return Reserved(**{name: row[name] for name in Reserved.__slots__})


def _is_retiring(tx: Connection, name: str) -> bool:
    row = authorities.named(tx, name)
    return row is not None and row.state == State.RETIRING


def _is_anothers(order: Order, known: Record) -> bool:
    """May the key that this certificate is over not be certified again? A device's is fresh each time.

    The responder's key is the service's own: it has a certificate of each authority.
    """
    if isinstance(order.wanted, OcspResponder):
        return str(known.profile) != Profile.OCSP_RESPONDER
    return isinstance(order.wanted, Device) or known.subject != order.subject


def _record(
    tx: Connection, reserved: Reserved, signature: bytes, entry: dict[str, Any], recorded: Recorded
) -> IssuedCertificate:
    """Write signature, leaf and what belongs to them; the first of two equal requests wins, both get its answer."""
    if enrollments.sign_certificate(tx, reserved.serial, signature):
        issued = _issued(reserved, signature)
        leaves.add(tx, entry)
        recorded(tx, issued)
        return issued
    row = enrollments.certificate_by_serial(tx, reserved.serial)
    if row is None or row.signature is None:
        raise ToBeSignedRefused(expected=f"the reserved certificate {reserved.serial}", actual="no such row")
    return certificate_of(row)
