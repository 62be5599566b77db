"""Attestation results for relying parties, top to bottom: look up, judge, sign. The claims are `attestation.results`'.

Who is told nothing: there is no result of a device that is out of service, was never attested, or whose attestation is
stale; a relying party that gets none treats the device as unknown. A device that failed or is quarantined while its
last pass is still fresh gets a result that says so.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from sqlalchemy import Connection

from provisioning.attestation.jwk import thumbprint
from provisioning.attestation.policy import Policy, parse_policy
from provisioning.attestation.results import (
    Appraised,
    Frame,
    assembled,
    claims_of,
    key_set,
    parse_audience,
    parse_nonce,
    signing_input,
)
from provisioning.authorities import RESULTS, OwnKey, State
from provisioning.db import devices, enrollments, policies
from provisioning.db.devices import Record
from provisioning.issuance.profile import device_uri
from provisioning.issuance.tbs import assemble
from provisioning.refusals import (
    AttestationStale,
    DeviceOutOfService,
    NeverAttested,
    NoCertificateInForce,
    NotFound,
    ResultsKeyMissing,
    StateConflict,
)
from provisioning.service import Service
from wire.codec import rfc3339

SPEAKS = frozenset({"ldevid", "gateway", "quarantine"})
"""Kinds of certificates whose key is the device's own in service. An IDevID opens EST and nothing else."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SignedResult:
    """A result as JWT, and when it expires."""

    token: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _Found:
    device: Record
    certificate: Record
    passed: Record
    policy: Record
    in_force: bool


async def attestation_result(service: Service, name: str, *, audience: str, nonce: str | None, by: str) -> SignedResult:
    """A result about a device, by id or serial, for that audience.

    Raises: RequestMalformed, NotFound, DeviceOutOfService, NeverAttested, AttestationStale, NoCertificateInForce,
    ResultsKeyMissing, SigningUnavailable.
    """
    audience, nonce = parse_audience(audience), None if nonce is None else parse_nonce(nonce)
    now = service.clock()
    own = _signing_key(service)
    found = await service.store.read(lambda tx: _look_up(tx, name, now))
    attested_at = _moment(found.device.last_attested_at)
    fresh_until = attested_at + timedelta(seconds=service.config.lifetimes.attestation_seconds)
    if now >= fresh_until:
        raise AttestationStale(
            expected=f"an attestation after {rfc3339(now - (fresh_until - attested_at))}", actual=rfc3339(attested_at)
        )
    longest = now + timedelta(seconds=service.config.lifetimes.result_seconds)
    expires_at = min(longest, fresh_until, _moment(found.certificate.not_after))
    frame = Frame(
        issuer=service.config.service_name,
        subject=device_uri(service.config.service_name, found.device.id),
        audience=audience,
        nonce=nonce,
        jkt=_thumbprint(found.certificate),
        issued_at=now,
        expires_at=expires_at,
        build=_build(),
    )
    signed = signing_input(claims_of(frame, _appraised(service, found, attested_at)), _public(own))
    token = assembled(signed, await service.keys.sign(own.key, signed))
    _log.info("result.signed", device=found.device.id, audience=audience, by=by, expires=rfc3339(expires_at))
    return SignedResult(token, expires_at.replace(microsecond=0))


def public_keys(service: Service) -> dict[str, object]:
    """The key set (RFC 7517): the key that signs, the next one beforehand, and those before as long as results live."""
    return key_set([_public(own) for own in _keys(service, State.PREPARED, State.ACTIVE, State.RETIRING)])


def _keys(service: Service, *states: State) -> tuple[OwnKey, ...]:
    return service.authorities.own_keys(RESULTS, *states)


def _signing_key(service: Service) -> OwnKey:
    for own in _keys(service, State.ACTIVE):
        return own
    raise ResultsKeyMissing(expected="a key of results that is active", actual="none")


def _public(own: OwnKey) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(own.spki)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StateConflict(expected=f"{own.name}: a key on P-256", actual=type(key).__name__)
    return key


def _look_up(tx: Connection, name: str, now: datetime) -> _Found:
    """What is on record, in one state of the database."""
    device = devices.by_name(tx, name)
    if device is None:
        raise NotFound(expected="a device's id or serial", actual=name)
    if device.state in ("revoked", "decommissioned"):
        actual = "on hold" if device.state == "revoked" and device.held_from is not None else device.state
        raise DeviceOutOfService(expected="a device in service", actual=actual)
    passed = next(iter(enrollments.attestations_of(tx, device.id, 1)), None)
    policy = None if passed is None else policies.by_id(tx, passed.policy_id)
    if passed is None or policy is None or device.last_attested_at is None:
        raise NeverAttested(expected="a device that was attested", actual=f"state {device.state}")
    newest = policies.newest_policy_id(tx, device.model, device.group)
    return _Found(device, _in_force(tx, device.id, now), passed, policy, newest == passed.policy_id)


def _in_force(tx: Connection, device_id: str, now: datetime) -> Record:
    """The newest certificate of the device that counts now."""
    at = now.timestamp()
    for row in reversed(enrollments.certificates_of(tx, device_id)):
        if row.state == "issued" and row.profile in SPEAKS and row.not_before <= at < row.not_after:
            return row
    raise NoCertificateInForce(expected="a certificate that is issued and not over", actual="none")


def _appraised(service: Service, found: _Found, attested_at: datetime) -> Appraised:
    policy = service.policies.get(found.policy.id) or parse_policy(found.policy.text)
    mode = _mode(policy)
    return Appraised(
        health=found.device.health,
        ek_trust=found.device.ek_trust,
        flow=found.passed.flow,
        attested_at=attested_at,
        policy=policy,
        policy_version=found.policy.version,
        policy_sha256=hashlib.sha256(found.policy.text.encode()).hexdigest(),
        in_force=found.in_force,
        compared=mode != "learn",
        # What a policy that enforces lets pass is meant to pass; elsewhere a finding is what it would have refused.
        deviates=mode != "enforce" and bool(json.loads(found.passed.findings)),
    )


def _mode(policy: Policy) -> str:
    return str(getattr(policy, "mode", "enforce"))


def _thumbprint(certificate: Record) -> str:
    der = assemble(certificate.tbs, certificate.signature)
    return thumbprint(x509.load_der_x509_certificate(der).public_key())


@cache
def _build() -> str:
    return f"muster {version('muster')}"


def _moment(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)
