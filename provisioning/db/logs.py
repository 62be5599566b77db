"""Boot logs and IMA logs, each stored once, by its hash. One that was uploaded stays only where a record names it.

An IMA log grows while a device runs: of those of one boot the longest is stored, and the others as its beginnings.
"""

from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from provisioning.db.columns import table_of
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert
from provisioning.db.tables import Attestation, BootLog, Upload

log, upload, attestation = table_of(BootLog), table_of(Upload), table_of(Attestation)

_KNOWN = PreparedSelect(select(log.c.sha256).where(log.c.sha256 == bindparam("sha256")))
_WHOLE = PreparedSelect(select(log).where(log.c.sha256 == bindparam("sha256")))
_INSERT = prepared_insert(log)
_NAMED = Prepared(delete(upload).where(upload.c.sha256 == bindparam("hash")))


def keep(tx: Connection, *, sha256: str, device_id: str, content: bytes, now: int) -> None:
    """Store a log that a record names, once: it is no mere upload any more."""
    if _KNOWN.first(tx, {"sha256": sha256}) is None:
        _insert(tx, sha256, device_id, content, now)
    else:
        _NAMED(tx, {"hash": sha256})


def put_upload(tx: Connection, *, sha256: str, device_id: str, content: bytes, now: int) -> None:
    """Store a log that evidence is about to name. One that is known already stays what it is."""
    if _KNOWN.first(tx, {"sha256": sha256}) is None:
        _insert(tx, sha256, device_id, content, now)
        tx.execute(insert(upload).values(sha256=sha256, device_id=device_id, at=now))
    else:  # perhaps an upload that was about to go
        tx.execute(update(upload).where(upload.c.sha256 == sha256).values(at=now))


def is_known(tx: Connection, sha256: str) -> bool:
    """Is a log of that hash stored?"""
    return _KNOWN.first(tx, {"sha256": sha256}) is not None


def content_of(tx: Connection, sha256: str) -> bytes | None:
    """A log by its hash."""
    found: Any = _WHOLE.first(tx, {"sha256": sha256})
    if found is None or found.beginning_of is None:
        return None if found is None else bytes(found.content)
    longer: Any = _WHOLE.first(tx, {"sha256": found.beginning_of})
    return None if longer is None else bytes(longer.content)[: found.size]


def fold(tx: Connection, older: str, newer: str) -> None:
    """Keep a log as the beginning of another, if it is that; and with it those that are its own beginnings.

    One of the other is never itself a beginning: whoever reads a log looks at two rows at most.
    """
    first: Any = _WHOLE.first(tx, {"sha256": older})
    last: Any = _WHOLE.first(tx, {"sha256": newer})
    if older == newer or first is None or last is None or first.beginning_of is not None or not first.size:
        return
    if last.beginning_of is None and bytes(last.content).startswith(bytes(first.content)):
        tx.execute(update(log).where(log.c.sha256 == older).values(content=b"", beginning_of=newer))
        tx.execute(update(log).where(log.c.beginning_of == older).values(beginning_of=newer))


def newest_ima_log_of(tx: Connection, device_id: str) -> str | None:
    """The hash of the IMA log that a device's evidence named last."""
    mine = (attestation.c.device_id == device_id, attestation.c.ima_log_sha256.is_not(None))
    newest = select(attestation.c.ima_log_sha256).where(*mine).order_by(attestation.c.at.desc()).limit(1)
    found: str | None = tx.execute(newest).scalar()
    return found


def uploads_of(tx: Connection, device_id: str) -> int:
    """How many logs of a device wait to be named."""
    return int(tx.execute(select(func.count()).where(upload.c.device_id == device_id)).scalar_one())


def forget_uploads(tx: Connection, before: int, most: int) -> int:
    """Drop at most so many logs that came before then and that nothing names."""
    late = select(upload.c.sha256).where(upload.c.at < before).order_by(upload.c.at).limit(most)
    gone = [row.sha256 for row in tx.execute(late)]
    if gone:
        tx.execute(delete(log).where(log.c.sha256.in_(gone)))
        tx.execute(delete(upload).where(upload.c.sha256.in_(gone)))
    return len(gone)


def _insert(tx: Connection, sha256: str, device_id: str, content: bytes, now: int) -> None:
    row = {"sha256": sha256, "device_id": device_id, "at": now, "content": content, "size": len(content)}
    _INSERT(tx, row)
