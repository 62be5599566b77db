"""EST (RFC 7030), top to bottom: a device shows a credential, sends a CSR, and gets an LDevID, if its record allows.

The record fixes the least that a device has to prove, whatever the route: no route here is a way around attestation.

| the record says | simpleenroll | simplereenroll, with the LDevID in force |
| --- | --- | --- |
| `attested` | refused | the same attested key, fresh attestation, lifetime by health |
| `idevid` | the IDevID | the same names |
| `token` | a one-time token (or an IDevID) | the same names |
"""

import hashlib
import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, NoReturn

from sqlalchemy import Connection

from provisioning import attesting, health
from provisioning.attesting import Refused
from provisioning.authorities import State
from provisioning.db import devices, enrollments
from provisioning.db import est as records
from provisioning.db.devices import Record
from provisioning.issuance.est import csr_attributes as attributes
from provisioning.issuance.est import verify_same_names
from provisioning.issuance.keys import KeyKind
from provisioning.issuance.tbs import assemble
from provisioning.issuing import IssuedCertificate, certificate_of, issue, ldevid_order
from provisioning.refusals import (
    AttestationRequired,
    CredentialRefused,
    DeviceRevoked,
    EnrollmentQuotaSpent,
    NotAuthenticated,
    NotFound,
    ProfileUnknown,
    Refusal,
    StateConflict,
    TooManyRequests,
)
from provisioning.service import Service
from wire.binding import key_id
from wire.codec import b64url

Kind = Literal["token", "idevid", "ldevid", "gateway", "quarantine"]
"""What a caller showed. The certificates' kinds are those of their profiles."""
ENROLLS: dict[str, frozenset[Kind]] = {"idevid": frozenset({"idevid"}), "token": frozenset({"token", "idevid"})}
"""What opens simpleenroll, by the record's assurance. What is not here opens nothing."""
RENEWS: frozenset[Kind] = frozenset({"ldevid", "gateway", "quarantine"})
OF_DEVICES = RENEWS | {"idevid"}
"""Certificates that speak for a device. Stations, operators and the service have others."""
DAYS_BY_HEALTH = {"healthy": 30, "unknown": 1}
"""At most so many days for an attested device that was not attested anew. Others attest first."""
REQUEST_PREFIX = "est."
"""What stands before the id of a request by EST: no id of a challenge has a dot."""
DAY = timedelta(days=1)
WAITING_MOST = 4
"""Keys of one device that wait for approval at once."""
WAITING = timedelta(days=7)
RETRY_AFTER_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Password:
    """HTTP Basic: the device's id or serial, and a one-time token."""

    name: str
    token: str


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate that TLS verified, with the possession of its key. `serial` is lower hex."""

    serial: str
    der: bytes


@dataclass(frozen=True, slots=True)
class Caller:
    """A device that showed a credential in force. What it may do with it is judged by route."""

    device: Record
    kind: Kind
    proof: str
    """The token's SHA-256 in hex, or the serial of the certificate."""
    spent: bool = False
    """The token was used already: it only gets what it got before."""
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Pending:
    """An operator has to approve this key first."""

    key_id: str
    retry_after_seconds: int = RETRY_AFTER_SECONDS


async def authenticate(service: Service, credential: Password | ClientCertificate | None, *, source: str) -> Caller:
    """Who calls. Raises: NotAuthenticated, DeviceRevoked."""
    if credential is None:
        raise NotAuthenticated(expected="a client certificate, or a one-time token by HTTP Basic", actual="neither")
    if isinstance(credential, ClientCertificate):
        return await _by_certificate(service, credential)
    return await _by_token(service, credential, source)


async def _by_token(service: Service, password: Password, source: str) -> Caller:
    """The look-up is by the token's SHA-256: what a timing could reveal is a hash of 256 random bits."""
    digest = hashlib.sha256(password.token.encode("utf-8", "surrogateescape")).hexdigest()
    now = int(service.clock().timestamp())
    found = await service.store.read(lambda tx: records.by_token(tx, digest))
    if found is None or not hmac.compare_digest(found.token_sha256, digest):
        await _refuse_stranger(service, password.name, "a token that is not known", source)
    if password.name not in (found.id, found.serial):
        await _refuse_stranger(service, password.name, f"a token of {found.id}", source)
    if found.revoked_at is not None:
        await _refuse_stranger(service, password.name, "a revoked token", source)
    if found.expires_at <= now:
        await _refuse_stranger(service, password.name, "an expired token", source)
    if found.state in attesting.FINAL:
        raise DeviceRevoked(expected="a device in service", actual=found.state)
    health.verify_not_narrowed(found)
    if found.token_profile not in (None, found.profile):
        raise ProfileUnknown(expected=found.profile, actual=f"a token for {found.token_profile}")
    return Caller(found, "token", digest, spent=found.used_at is not None)


async def _by_certificate(service: Service, shown: ClientCertificate) -> Caller:
    """One of ours, byte for byte, that still counts. A manufacturer's own IDevIDs would be looked up here."""
    now = int(service.clock().timestamp())

    found = await service.store.read(lambda tx: records.by_certificate(tx, shown.serial))
    if found is None or found.signature is None or assemble(found.tbs, found.signature) != shown.der:
        raise NotAuthenticated(expected="a certificate of a device", actual="another one")
    if found.state not in attesting.FINAL:
        health.verify_not_narrowed(found)  # its certificates are on hold: this says what to do
    in_grace = found.certificate_state == "superseded" and (found.revoke_at or 0) > now
    if not (found.certificate_state == "issued" or in_grace) or found.not_after <= now:
        raise NotAuthenticated(expected="a certificate in force", actual=f"{found.certificate_state}, or expired")
    if found.state in attesting.FINAL:
        raise DeviceRevoked(expected="a device in service", actual=found.state)
    if found.certificate_profile not in OF_DEVICES:
        raise NotAuthenticated(expected="a device's certificate", actual=found.certificate_profile)
    return Caller(found, found.certificate_profile, shown.serial, certificate=shown.der)


async def _refuse_stranger(service: Service, name: str, actual: str, source: str) -> NoReturn:
    """A refusal that is recorded whether the name is a device's or not: the answer does not tell which are."""
    refusal = NotAuthenticated(expected="a one-time token of this device that can still be used", actual=actual)
    device = await service.store.read(lambda tx: devices.by_name(tx, name))
    where = Refused("est", source) if device is None else Refused("est", source, device.id, device.serial)
    await attesting.record_refusal(service, refusal, where)
    raise refusal


async def enroll(
    service: Service, caller: Caller, csr: bytes, *, label: str | None, source: str
) -> IssuedCertificate | Pending:
    """Route simpleenroll (section 4.2.1). The same CSR and credential get the same certificate. Raises: Refusal."""
    try:
        _verify_label(caller, label)
        _may_enroll(caller)
        return await _issue(service, caller, csr, "enroll")
    except Refusal as refusal:
        await _record(service, refusal, caller, source)
        raise


async def renew(
    service: Service, caller: Caller, csr: bytes, *, label: str | None, source: str
) -> IssuedCertificate | Pending:
    """Route simplereenroll (section 4.2.2): the same names, for a while longer. Raises: Refusal."""
    try:
        _verify_label(caller, label)
        _not_spent(caller)
        if caller.kind not in RENEWS:
            raise CredentialRefused(
                expected="the LDevID that is renewed, by TLS", actual=f"the credential {caller.kind}"
            )
        verify_same_names(csr, caller.certificate)
        return await _issue(service, caller, csr, "renew")
    except Refusal as refusal:
        await _record(service, refusal, caller, source)
        raise


def ca_certificates(service: Service) -> list[bytes]:
    """Every CA certificate (DER) that a chain of ours may need, those of a rollover too; none of a retired one."""
    in_use = (one for one in service.authorities.all if one.state is not State.RETIRED)
    return list(dict.fromkeys(certificate for one in in_use for certificate in one.chain))


def csr_attributes(service: Service, caller: Caller, *, label: str | None) -> bytes:
    """What this device's request should hold, DER (section 4.5.2). Raises: NotAuthenticated, ProfileUnknown."""
    _not_spent(caller)
    _verify_label(caller, label)
    profile = service.profiles.of_device(caller.device.profile)
    preferred = next(kind for kind in KeyKind if kind in profile.keys)
    return attributes(preferred, profile.rsa_bits_least)


def verify_known_label(service: Service, label: str | None) -> None:
    """Is there a profile of that name, or no label at all? Raises: NotFound."""
    if label is not None and label not in service.profiles.all:
        raise NotFound(expected="the name of a certificate profile", actual=label)


def _verify_label(caller: Caller, label: str | None) -> None:
    """A label in the path names a profile; the record alone decides which one. Raises: ProfileUnknown."""
    if label not in (None, caller.device.profile):
        raise ProfileUnknown(expected=caller.device.profile, actual=label)


def _not_spent(caller: Caller) -> None:
    """A used token only gets what it got before. Raises: NotAuthenticated."""
    if caller.spent:
        raise NotAuthenticated(expected="a token that can still be used", actual="one that was used")


def _may_enroll(caller: Caller) -> None:
    """Raises: AttestationRequired, CredentialRefused."""
    assurance = caller.device.assurance
    if assurance == "attested":
        raise AttestationRequired(expected="enrollment by attestation", actual=f"simpleenroll with {caller.kind}")
    if caller.kind not in ENROLLS.get(assurance, frozenset()):
        raise CredentialRefused(expected=f"what a record of assurance {assurance} asks for", actual=caller.kind)


async def _issue(
    service: Service, caller: Caller, csr: bytes, what: Literal["enroll", "renew"]
) -> IssuedCertificate | Pending:
    """From an allowed request to a durable certificate: verify the CSR, approval, the one road to a signature."""
    device, now = caller.device, service.clock()
    spki = await service.verifier.possession(csr)
    over = key_id(spki)
    request_id = _request_id(what, caller.proof, csr)
    before = None if caller.kind == "token" and not caller.spent else await _before(service, caller, request_id, now)
    if before is not None and before.signature is not None:
        return certificate_of(before)
    order = ldevid_order(service, device, spki, request_id)
    waits = what == "enroll" and (device.needs_approval or service.profiles.of_device(device.profile).approval)
    if what == "renew":
        order = replace(order, renews=True, days=await _days(service, caller, over, now))
    elif waits and before is None and not await _is_approved(service, device, over, now):
        return Pending(over)
    at = int(now.timestamp())

    def claim(tx: Connection, again: bool) -> None:  # noqa: FBT001  the shape of a claim
        """In the transaction that reserves: a token and an approval count once, a certificate while it is in force."""
        if again:
            return
        if caller.kind != "token" and not records.counts(tx, caller.proof, at):
            raise NotAuthenticated(expected="a certificate in force", actual="one that ended a moment ago")
        if before is not None:  # it was claimed for this very request, whose authority is gone
            return
        if caller.kind == "token" and not records.use_token(tx, caller.proof, at):
            raise NotAuthenticated(expected="a token that can still be used", actual="one that was used a moment ago")
        if waits and not records.take_approval(tx, device.id, over, at):
            raise StateConflict(expected="an approval", actual="one that was used a moment ago")

    def recorded(tx: Connection, certificate: IssuedCertificate) -> None:
        if device.state == "registered" and records.enter(tx, device, first=True):
            return  # it had no certificate in service that could be superseded
        if not records.enter(tx, device):
            raise DeviceRevoked(expected="a device in service, with the record it was judged by", actual="another one")
        enrollments.supersede(tx, device.id, but=certificate.serial, revoke_at=attesting.grace(service, now))

    return await issue(service, order, recorded, claim)


def _request_id(what: str, proof: str, csr: bytes) -> str:
    """What makes a request repeatable: the route, the credential and the CSR, all of them secret or signed."""
    digest = hashlib.sha256(f"muster/v1/est/{what}\0{proof}\0".encode() + hashlib.sha256(csr).digest()).digest()
    return REQUEST_PREFIX + b64url(digest[:16])


async def _before(service: Service, caller: Caller, request_id: str, now: datetime) -> Record | None:
    """The certificate that this very request reserved or got before, where its answer was lost.

    Raises: NotAuthenticated (a used token with another CSR), StateConflict, EnrollmentQuotaSpent.
    """
    most = service.config.limits.est_certificates_per_day
    since = int((now - DAY).timestamp())

    def read(tx: Connection) -> tuple[Record | None, int]:
        row = enrollments.certificate_of_enrollment(tx, request_id)
        return row, 0 if row is not None or caller.spent else records.reserved_since(tx, caller.device.id, since)

    row, made = await service.store.read(read)
    if row is None:
        if caller.spent:
            raise NotAuthenticated(
                expected="a token that can still be used", actual="one that was used, for another CSR"
            )
        if made >= most:
            raise EnrollmentQuotaSpent(expected=f"at most {most} a day", actual=made)
        return None
    if row.state not in ("reserved", "issued", "superseded") or row.not_after <= int(now.timestamp()):
        raise StateConflict(expected="a certificate in force", actual=f"state {row.state}, or expired")
    return row


async def _days(service: Service, caller: Caller, over: str, now: datetime) -> int | None:
    """For how long at most a renewal is good; None: as its profile says.

    An attested device that does not attest anew gets the same key again, for as long as its health says.

    Raises: AttestationRequired.
    """
    device = caller.device
    if device.assurance != "attested":
        return None
    if caller.kind == "quarantine":
        raise AttestationRequired(expected="a device that passed its attestation", actual="a quarantine certificate")
    if over != device.key_id.hex():
        raise AttestationRequired(expected=f"the attested key {device.key_id.hex()}", actual=over)
    if not await service.store.read(lambda tx: records.is_attested_key(tx, device.id, over)):
        raise AttestationRequired(expected="a key that evidence certified", actual="one that came another way")
    oldest = int(now.timestamp()) - service.config.lifetimes.attestation_seconds
    if device.last_attested_at is None or device.last_attested_at < oldest:
        raise AttestationRequired(expected=f"an attestation after {oldest}", actual=device.last_attested_at)
    days = DAYS_BY_HEALTH.get(device.health)
    if days is None:
        raise AttestationRequired(expected=" or ".join(DAYS_BY_HEALTH), actual=f"health {device.health}")
    return days


async def _is_approved(service: Service, device: Record, over: str, now: datetime) -> bool:
    """Did an operator approve this key, a moment ago? Else note that it was asked for. Raises: TooManyRequests."""
    at = int(now.timestamp())
    row = await service.store.read(lambda tx: records.request_of(tx, device.id, over))
    if row is not None and row.approved_until is not None:
        return bool(at <= row.approved_until)

    def write(tx: Connection) -> None:
        if records.request_of(tx, device.id, over) is not None:
            return
        forget = int((now - WAITING).timestamp())
        waiting = [known for known in records.requests_of(tx, device.id) if known.asked_at >= forget]
        if len(waiting) >= WAITING_MOST:
            raise TooManyRequests(expected=f"at most {WAITING_MOST} keys that wait for approval", actual="one more")
        records.ask(tx, device.id, over, at=at, forget_before=forget)

    if row is None:
        await service.ledger.write(write)
    return False


async def _record(service: Service, refusal: Refusal, caller: Caller, source: str) -> None:
    if refusal.problem not in attesting.TRANSIENT:
        where = Refused("est", source, caller.device.id, caller.device.serial)
        await attesting.record_refusal(service, refusal, where)
