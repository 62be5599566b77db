"""Boot logs and IMA logs, each stored once, by its hash. One that was uploaded stays only where a record names it."""

from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from provisioning.db.columns import table_of
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert
from provisioning.db.tables import BootLog, Upload

log, upload = table_of(BootLog), table_of(Upload)

_KNOWN = PreparedSelect(select(log.c.sha256).where(log.c.sha256 == bindparam("sha256")))
_CONTENT = PreparedSelect(select(log.c.content).where(log.c.sha256 == bindparam("sha256")))
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
    found: Any = _CONTENT.first(tx, {"sha256": sha256})
    return None if found is None else bytes(found.content)


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
    _INSERT(tx, {"sha256": sha256, "device_id": device_id, "at": now, "content": content})
