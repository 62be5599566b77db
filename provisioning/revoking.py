"""Revocation: a certificate or a device ends, the CRL says so, the broker hears of it."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from provisioning.db import commands, devices, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.issuance.revocation import REASONS, Revoked, build_crl, check_crl
from provisioning.issuance.tbs import assemble
from provisioning.issuing import verify_signature
from provisioning.journal import leaf
from provisioning.refusals import NotFound, RequestMalformed, StateConflict
from provisioning.service import Service

ISSUER = "issuing"
FINAL = tuple(sorted(set(REASONS) - {"certificate-hold"}))
"""The reasons an operator may give. A hold can be released, which is another flow."""


async def revoke_device(service: Service, name: str, reason: str, *, by: str) -> Record:
    """End a device: all its certificates are revoked, no challenge is opened for it again. Final.

    Raises: NotFound, RequestMalformed, StateConflict.
    """
    if reason not in FINAL:
        raise RequestMalformed(expected=", ".join(FINAL), actual=reason)
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "revocation", now, device=name, reason=reason, by=by)

    def write(tx: Connection) -> Record:
        device = devices.by_name(tx, name)
        if device is None:
            raise NotFound(expected="a device's id or serial", actual=name)
        if device.state == "revoked":
            raise StateConflict(expected="a device in service", actual="revoked")
        devices.change(tx, device.id, state="revoked", health="quarantined")
        for certificate in enrollments.certificates_of(tx, device.id):
            enrollments.revoke(tx, certificate.serial, at=at, reason=reason)
        leaves.add(tx, entry)
        return device

    return await service.ledger.write(write)


async def end_grace(service: Service) -> None:
    """Revoke the superseded certificates whose grace period is over."""
    now = service.clock()
    at = int(now.timestamp())
    due = await service.store.read(lambda tx: enrollments.due_for_revocation(tx, at))
    if not due:
        return
    entries = [leaf(service, "revocation", now, serial=row.serial, reason="superseded") for row in due]

    def write(tx: Connection) -> None:
        for row, entry in zip(due, entries, strict=True):
            if enrollments.revoke(tx, row.serial, at=at, reason="superseded"):
                leaves.add(tx, entry)

    await service.ledger.write(write)


async def sign_due_crl(service: Service) -> tuple[bytes, tuple[str, ...]] | None:
    """A new CRL, if one is due: (DER, the devices whose live session holds a certificate that it lists first).

    The number rises in the same transaction that notes which certificates it lists. Raises: SigningUnavailable.
    """
    now = service.clock().astimezone(UTC).replace(microsecond=0)
    at = int(now.timestamp())
    last, unlisted = await service.store.read(
        lambda tx: (enrollments.newest_crl(tx, ISSUER), enrollments.unlisted(tx, ISSUER))
    )
    fresh_until = 0 if last is None else last.this_update + service.config.lifetimes.crl_refresh_seconds
    if not unlisted and at < fresh_until:
        return None
    # What expired since the last CRL stands in this one still (RFC 5280 section 3.3).
    since = at if last is None else min(at, last.this_update)
    rows = await service.store.read(lambda tx: enrollments.revoked(tx, ISSUER, since))
    number = 1 if last is None else last.number + 1
    authority = service.authorities.named(ISSUER)
    issuer = authority.issuer
    next_update = now + timedelta(seconds=service.config.lifetimes.crl_seconds)
    entries = [_entry(row) for row in rows]
    tbs = build_crl(entries, issuer, number=number, this_update=now, next_update=next_update)
    check_crl(tbs, entries, issuer)
    signature = await service.keys.sign(authority.key, tbs.der)
    verify_signature(authority.public_key, tbs.der, signature)
    crl = assemble(tbs.der, signature)
    listed = {row.serial for row in rows}

    def write(tx: Connection) -> tuple[str, ...]:
        times = {"this_update": at, "next_update": int(next_update.timestamp())}
        enrollments.add_crl(tx, {"authority": ISSUER, "number": number, "der": crl, **times})
        enrollments.list_in_crl(tx, [row.serial for row in unlisted], number)
        return tuple(row.device_id for row in unlisted if row.device_id and _is_live(tx, row, listed))

    return crl, await service.ledger.write(write)


def _entry(row: Record) -> Revoked:
    return Revoked(int(row.serial, 16), datetime.fromtimestamp(row.revoked_at, UTC), REASONS[row.reason])


def _is_live(tx: Connection, row: Record, listed: set[str]) -> bool:
    """May a session of this device still hold a revoked certificate? Without a hello nobody knows: yes."""
    session = commands.session_of(tx, row.device_id)
    return session is None or session.certificate_serial in listed
