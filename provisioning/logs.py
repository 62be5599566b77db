"""Logs of devices: uploaded before the evidence that names them, found again by their hash."""

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection

from provisioning.attestation.evidence import OpenChallenge
from provisioning.db import logs
from provisioning.refusals import BootLogMissing, ImaLogMissing, RequestMalformed, TooManyRequests
from provisioning.service import Service
from wire.messages import Evidence, PlatformEvidence

UPLOADS_MOST = 8
"""Logs of one device that nothing names yet. An honest one has two: evidence follows at once."""
AT_ONCE = 64
"""Logs dropped in one commit: with 4 MiB each."""
UPLOADS_KEPT_SECONDS = 3600
"""How long such a log waits. No challenge is open for longer, and no command lives longer by default."""


@dataclass(frozen=True, slots=True)
class Logs:
    """What came with one piece of evidence, in it or before it. Nothing in them is believed yet."""

    boot: bytes | None = None
    ima: bytes | None = None


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
    wants_boot, wants_ima = challenge.boot_log != "none", challenge.ima_log != "none"
    if wants_boot and boot is None and evidence.boot_log_sha256 is not None:
        boot = await _uploaded(service, evidence.boot_log_sha256)
        if boot is None:
            raise BootLogMissing(expected="an uploaded log of this hash", actual=evidence.boot_log_sha256)
    if wants_ima and ima is None and evidence.ima_log_sha256 is not None:
        ima = await _uploaded(service, evidence.ima_log_sha256)
        if ima is None:
            raise ImaLogMissing(expected="an uploaded log of this hash", actual=evidence.ima_log_sha256)
    return Logs(boot if wants_boot else None, ima if wants_ima else None)


async def forget_uploads(service: Service) -> None:
    """Drop the logs whose evidence never came, a piece at a time."""
    before = int(service.clock().timestamp()) - UPLOADS_KEPT_SECONDS
    while await service.ledger.write(lambda tx: logs.forget_uploads(tx, before, AT_ONCE)) == AT_ONCE:
        pass


def keep_log(tx: Connection, device_id: str, content: bytes | None, at: int) -> str | None:
    """Store a log that a record is about to name; its hash, in hex."""
    if content is None:
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    logs.keep(tx, sha256=sha256, device_id=device_id, content=content, now=at)
    return sha256


def keep_ima_log(tx: Connection, device_id: str, content: bytes | None, at: int) -> str | None:
    """The same for an IMA log; the device's last one is kept as its beginning from now on, if it is that."""
    if content is None:
        return None
    before, sha256 = logs.newest_ima_log_of(tx, device_id), keep_log(tx, device_id, content, at)
    if before is not None and sha256 is not None:
        logs.fold(tx, before, sha256)
    return sha256


async def _uploaded(service: Service, digest: bytes) -> bytes | None:
    return await service.store.read(lambda tx: logs.content_of(tx, digest.hex()))
