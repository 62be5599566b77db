"""Logs of devices: uploaded before the evidence that names them, found again by their hash."""

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection

from provisioning.attestation.evidence import OpenChallenge
from provisioning.config import Retention
from provisioning.db import logs, retention
from provisioning.keeping import Bound, Use, given_up, needed
from provisioning.refusals import BootLogMissing, ImaLogMissing, RequestMalformed, TooManyRequests
from provisioning.service import Service
from wire.messages import Evidence, PlatformEvidence

UPLOADS_MOST = 8
"""Logs of one device that nothing names yet. An honest one has two: evidence follows at once."""
AT_ONCE, BYTES_AT_ONCE = 32, 1024 * 1024
"""Uploads dropped in one commit, and the bytes after which it ends; one log of 4 MiB at most is above that."""
UPLOADS_KEPT_SECONDS = 3600
"""How long such a log waits. No challenge is open for longer, and no command lives longer by default."""


@dataclass(frozen=True, slots=True)
class Logs:
    """What came with one piece of evidence, in it or before it. Nothing in them is believed yet."""

    boot: bytes | None = None
    ima: bytes | None = None
    boot_sha256: str | None = None
    """In hex, where it was found by that."""
    ima_sha256: str | None = None


async def store_log(service: Service, device_id: str, sha256: str, content: bytes) -> None:
    """Keep a log that evidence by MQTT will name, for an hour unless evidence that counts does name it.

    Raises: RequestMalformed, TooManyRequests.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RequestMalformed(expected=sha256, actual="content of another hash")
    at = int(service.clock().timestamp())

    def write(tx: Connection) -> None:
        if not logs.is_known(tx, sha256) and logs.uploads_of(tx, device_id) >= UPLOADS_MOST:
            raise TooManyRequests(expected=f"at most {UPLOADS_MOST} logs that no evidence names", actual="one more")
        logs.put_upload(tx, sha256=sha256, device_id=device_id, content=content, now=at)

    await service.ledger.write(write)


async def logs_of(service: Service, evidence: Evidence | PlatformEvidence, challenge: OpenChallenge) -> Logs:
    """The logs of an evidence message: in it, or uploaded before and named by their hash.

    What the challenge does not ask for is neither looked up nor judged nor kept.

    Raises: BootLogMissing, ImaLogMissing (named, and not here).
    """
    boot, ima = evidence.boot_log, evidence.ima_log
    boot_hash = ima_hash = None
    wants_boot, wants_ima = challenge.boot_log != "none", challenge.ima_log != "none"
    if wants_boot and boot is None and evidence.boot_log_sha256 is not None:
        boot, boot_hash = await _uploaded(service, evidence.boot_log_sha256), evidence.boot_log_sha256.hex()
        if boot is None:
            raise BootLogMissing(expected="an uploaded log of this hash", actual=evidence.boot_log_sha256)
    if wants_ima and ima is None and evidence.ima_log_sha256 is not None:
        ima, ima_hash = await _uploaded(service, evidence.ima_log_sha256), evidence.ima_log_sha256.hex()
        if ima is None:
            raise ImaLogMissing(expected="an uploaded log of this hash", actual=evidence.ima_log_sha256)
    return Logs(boot if wants_boot else None, ima if wants_ima else None, boot_hash, ima_hash)


async def forget_uploads(service: Service) -> None:
    """Drop the logs whose evidence never came, a piece at a time."""
    at = int(service.clock().timestamp())
    before = at - UPLOADS_KEPT_SECONDS
    while await service.ledger.write(lambda tx: logs.forget_uploads(tx, before, AT_ONCE, BYTES_AT_ONCE, at)):
        pass


def keep_logs(tx: Connection, rules: Retention, device_id: str, given: Logs, at: int) -> tuple[str | None, str | None]:
    """Store the logs that a record is about to name; their hashes, in hex: of the boot log and the IMA log.

    An IMA log is kept as what follows the device's last one, if it is that. Where the device uses more than before, its
    bound is held now: of the logs that nothing needs (`keeping.needed`) the oldest go.
    """
    boot, boot_body, boot_is_new = _keep(tx, device_id, given.boot, given.boot_sha256, at, ima=False)
    ima, ima_body, ima_is_new = _keep(tx, device_id, given.ima, given.ima_sha256, at, ima=True)
    if boot_is_new or ima_is_new:
        _hold_bound(tx, rules, device_id, {one for one in (boot_body, ima_body) if one is not None}, at)
    return boot, ima


def _keep(
    tx: Connection, device_id: str, content: bytes | None, found_by: str | None, at: int, *, ima: bool
) -> tuple[str | None, int | None, bool]:
    if content is None:
        return None, None, False
    sha256 = found_by or hashlib.sha256(content).hexdigest()
    body, is_new = logs.keep(tx, sha256=sha256, device_id=device_id, content=content, ima=ima, now=at)
    return sha256, body, is_new


def _hold_bound(tx: Connection, rules: Retention, device_id: str, named: set[int], at: int) -> None:
    """`named`: the bodies that the newest evidence names, which is not on record yet."""
    bound = Bound(rules.logs_per_device, rules.log_bytes_per_device)
    uses = [Use(row.body, row.at, row.size) for row in logs.used_by(tx, device_id)]
    if bound.holds(uses):
        return
    occasions = retention.occasions(tx, device_id, at)
    known = retention.passes(tx, device_id, occasions)
    stays = needed(known, occasions)
    kept = logs.bodies_of(tx, [sha256 for one in known if one.id in stays for sha256 in one.logs])
    gone = given_up(uses, frozenset(kept | named), bound)
    for body in gone:
        logs.give_up(tx, device_id, body, at)
    if gone:
        retention.note(tx, device_id, at, bodies=len(gone))


async def _uploaded(service: Service, digest: bytes) -> bytes | None:
    return await service.store.read(lambda tx: logs.content_of(tx, digest.hex()))
