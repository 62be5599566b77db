"""One CRL for each authority: signed when something changed or it grows old, published whole, never going back.

The newest one is in the database before it is a file, so that a crash between signature and file costs nothing. Its
number is above every number that was published, also where an old backup was restored: it is at least the time in
seconds, and above that of the file that was published last.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509
from sqlalchemy import Connection

from ota.files import replace_file
from provisioning.authorities import ISSUING, Authority, State, ca_public_key
from provisioning.config import DataDirectory, Lifetimes
from provisioning.db import leaves, revocations, signatures
from provisioning.db.devices import Record
from provisioning.issuance.algorithms import CaPublicKey, verify
from provisioning.issuance.profile import Issuer, issuer_of
from provisioning.issuance.revocation import REASONS, Revoked, build_crl, check_crl, parse_crl
from provisioning.issuance.tbs import assemble, serial_text
from provisioning.journal import leaf
from provisioning.refusals import StateConflict
from provisioning.service import Service

GRACE_SECONDS = 60
"""What nobody asked for (a superseded certificate's end) waits that long for company: a CRL is long, and the broker
reads all of it again."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Due:
    """A CRL that is to be signed: out of one consistent state of the database."""

    name: str
    issuer: Issuer
    public_key: CaPublicKey
    number: int
    covers: int = 0
    entries: tuple[Revoked, ...] = ()


def crl_file(directory: DataDirectory, name: str) -> Path:
    """Where an authority's newest CRL lies (DER)."""
    return directory.ca / f"{name}.crl"


def signed_online(service: Service) -> tuple[Authority, ...]:
    """The authorities whose CRLs the service signs: not a root's, whose key is elsewhere.

    Also before its first certificate: whoever checks one asks for the CRL.
    """
    issuing = (one for one in service.authorities.all if one.kind == ISSUING)
    return tuple(one for one in issuing if one.key and one.state is not State.RETIRED)


async def sign_due(service: Service, authority: Authority, *, patient: bool = False) -> bytes | None:
    """A new CRL (DER), if one is due. `patient`: what nobody asked for waits, at most for `GRACE_SECONDS`.

    Raises: SigningUnavailable, StorageUnavailable, ToBeSignedRefused.
    """
    lifetime = timedelta(seconds=service.config.lifetimes.crl_seconds)
    return await _sign(service, authority, lifetime, patient=patient)


async def sign_by_hand(service: Service, authority: Authority) -> bytes:
    """A new CRL (DER) whether one is due or not: of a root, while its token is there.

    Raises: SigningUnavailable, StorageUnavailable, ToBeSignedRefused, StateConflict.
    """
    root = authority.kind != ISSUING
    days = timedelta(days=service.config.lifetimes.root_crl_days)
    lifetime = days if root else timedelta(seconds=service.config.lifetimes.crl_seconds)
    der = await _sign(service, authority, lifetime, forced=True)
    if der is None:
        raise StateConflict(expected="nobody else who signs it at the same time", actual="another process did")
    await publish(service, authority)
    return der


async def _sign(
    service: Service, authority: Authority, lifetime: timedelta, *, patient: bool = False, forced: bool = False
) -> bytes | None:
    now = service.clock().astimezone(UTC).replace(microsecond=0)
    lifetimes = service.config.lifetimes
    patience = min(GRACE_SECONDS, service.config.commands.grace_seconds) if patient else 0
    floor = await asyncio.to_thread(published_number, crl_file(service.directory, authority.name))

    def read(tx: Connection) -> Due | None:
        return due(tx, authority, lifetimes, int(now.timestamp()), floor, patience=patience, forced=forced)

    wanted = await service.store.read(read)
    if wanted is None:
        return None
    until = min(now + lifetime, authority.issuer.not_after)
    tbs = await asyncio.to_thread(_build, wanted, now, until)
    digest = (await asyncio.to_thread(hashlib.sha256, tbs)).digest()
    await service.ledger.write(lambda tx: signatures.announce(tx, digest, "crl", int(now.timestamp())))
    signature = await service.keys.sign(authority.key, tbs)
    der = await asyncio.to_thread(_assemble, wanted, tbs, signature)
    row = _row(wanted, der, now, until)
    if not await service.ledger.write(lambda tx: revocations.add_crl(tx, row)):
        return None  # another process was faster; its CRL holds
    return der


def due(
    tx: Connection,
    authority: Authority,
    lifetimes: Lifetimes,
    at: int,
    floor: int,
    *,
    patience: int = 0,
    forced: bool = False,
) -> Due | None:
    """What the next CRL of that authority says; None where none is due at that time.

    `patience`: for so many seconds what nobody asked for waits. `floor`: the number of the CRL that was published last.
    """
    last = revocations.crl_head(tx, authority.name)
    covered = 0 if last is None else last.covers
    if last is not None and not forced:
        changed, ordered = revocations.waits(tx, authority.name, covered)
        pause = lifetimes.crl_refresh_seconds
        if changed:
            pause = 0 if ordered else patience
        # Of two CRLs of one second nobody could say which is newer: verifiers compare thisUpdate.
        if floor <= last.number and last.this_update <= at < last.this_update + max(pause, 1):
            return None
    # What expired since the last CRL stands in this one still (RFC 5280 section 3.3).
    rows = revocations.entries(tx, authority.name, at if last is None else min(at, last.this_update))
    return Due(
        authority.name,
        authority.issuer,
        authority.public_key,
        max(0 if last is None else last.number + 1, floor + 1, at),
        max(covered, revocations.newest(tx)),
        tuple(_entry(row) for row in rows),
    )


def nothing_revoked(name: str, certificate: bytes, now: datetime) -> Due:
    """The first CRL of a new authority, whose certificate (DER) is given."""
    key = ca_public_key(x509.load_der_x509_certificate(certificate))
    return Due(name, issuer_of(certificate), key, int(now.timestamp()))


def sign_offline(wanted: Due, sign: Callable[[bytes], bytes], now: datetime, lifetime: timedelta) -> dict[str, Any]:
    """The row of a CRL by a key that no service has: a root's, in its ceremony.

    `sign` makes a signature by the key's own algorithm. Raises: ToBeSignedRefused, and whatever `sign` raises.
    """
    now = now.astimezone(UTC).replace(microsecond=0)
    until = min(now + lifetime, wanted.issuer.not_after)
    tbs = _build(wanted, now, until)
    return _row(wanted, _assemble(wanted, tbs, sign(tbs)), now, until)


async def publish(service: Service, authority: Authority) -> int | None:
    """Replace the file where the database has a newer CRL; what the file then covers, None where there is none."""
    path = crl_file(service.directory, authority.name)
    head = await service.store.read(lambda tx: revocations.crl_head(tx, authority.name))
    if head is None:
        return None
    if head.number > await asyncio.to_thread(published_number, path):
        row = await service.store.read(lambda tx: revocations.newest_crl(tx, authority.name))
        if row is None:
            return None
        await asyncio.to_thread(replace_file, path, row.der)
        _log.info("crl.published", authority=authority.name, number=row.number)
        return int(row.covers)
    return int(head.covers)


async def adopt_published(service: Service) -> int:
    """Learn from the published CRLs what a database that was restored does not know; how many entries.

    A CRL that was published can be relied upon by somebody: what it lists stays revoked.
    """
    learned = 0
    for authority in service.authorities.all:
        head = await service.store.read(lambda tx, name=authority.name: revocations.crl_head(tx, name))  # type: ignore[misc]  # bound now
        path = crl_file(service.directory, authority.name)
        if await asyncio.to_thread(published_number, path) <= (0 if head is None else head.number):
            continue
        listed = await asyncio.to_thread(_listed, path, authority)
        learned += await _adopt(service, authority.name, listed)
    if learned:
        _log.warning("crl.adopted", entries=learned)
    return learned


def published_number(path: Path) -> int:
    """The number of the CRL in that file; 0 where there is none. Raises: OSError."""
    try:
        status = path.stat()
        return _number_of(path, status.st_ino, status.st_mtime_ns)
    except FileNotFoundError:
        return 0
    except ValueError as error:  # it is replaced whole: somebody put it there. The database's own one is published
        _log.error("crl.unreadable", file=path.name, why=str(error))
        return 0


@lru_cache(maxsize=64)
def _number_of(path: Path, _inode: int, _modified: int) -> int:
    return parse_crl(path.read_bytes()).number


async def _adopt(service: Service, issuer: str, listed: Sequence[Revoked]) -> int:
    now = service.clock()

    def write(tx: Connection) -> int:
        learned = 0
        for entry in listed:
            serial, at, reason = serial_text(entry.serial), int(entry.at.timestamp()), entry.reason.text
            if revocations.adopt(tx, issuer, serial, at=at, reason=reason):
                leaves.add(tx, leaf(service, "revocation", now, serial=serial, reason=reason, by="the published CRL"))
                learned += 1
        return learned

    return await service.ledger.write(write)


def _listed(path: Path, authority: Authority) -> list[Revoked]:
    """The entries of a CRL by that authority; none where it is another's. Raises: ValueError."""
    crl = parse_crl(path.read_bytes())
    if not crl.parsed.is_signature_valid(authority.certificate.public_key()):  # type: ignore[arg-type]  # a CA's key is none of X25519, X448
        _log.error("crl.foreign", authority=authority.name)
        return []
    return crl.entries()


def _build(wanted: Due, now: datetime, until: datetime) -> bytes:
    tbs = build_crl(wanted.entries, wanted.issuer, number=wanted.number, this_update=now, next_update=until)
    check_crl(tbs, wanted.entries, wanted.issuer)
    return tbs.der


def _assemble(wanted: Due, tbs: bytes, signature: bytes) -> bytes:
    verify(wanted.public_key, tbs, signature)
    return assemble(tbs, signature)


def _row(wanted: Due, der: bytes, now: datetime, until: datetime) -> dict[str, Any]:
    return {
        "authority": wanted.name,
        "number": wanted.number,
        "der": der,
        "this_update": int(now.timestamp()),
        "next_update": int(until.timestamp()),
        "covers": wanted.covers,
    }


def _entry(row: Record) -> Revoked:
    return Revoked(int(row.serial, 16), datetime.fromtimestamp(row.revoked_at, UTC), REASONS[row.reason])
