"""Boot logs and IMA logs, each stored once, by its hash: uploaded, named by evidence, used by devices, removed.

A device uses the bodies (`log_tables`) whose logs its evidence names. Its bound may take a use away; the bytes go with
the last one, and the log stays by its name for as long as evidence names it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, delete, func, insert, literal, select, update

from provisioning.db.columns import table_of
from provisioning.db.log_tables import BootLog, LogBody, LogContent, LogUse, Upload
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert
from provisioning.db.tables import Attestation

log, body, content_row, use, upload = (table_of(row) for row in (BootLog, LogBody, LogContent, LogUse, Upload))
attestation = table_of(Attestation)

OTHERS_ASKED = 8
"""Devices that are asked whether they name an IMA log, one range of an index each. Where more of them use its body, it
stays for as long as the body does."""

_MINE = and_(use.c.device_id == bindparam("device"), use.c.body == log.c.body)
_STANDING = PreparedSelect(
    select(
        *(log.c.body, log.c.size, body.c.content, body.c.removed_at, upload.c.sha256.label("waiting")),
        *(use.c.body.label("used"), use.c.removed_at.label("given_up"), use.c.ima),
    )
    .select_from(
        log.join(body, body.c.id == log.c.body).outerjoin(use, _MINE).outerjoin(upload, upload.c.sha256 == log.c.sha256)
    )
    .where(log.c.sha256 == bindparam("sha256"))
)
_BYTES = PreparedSelect(
    select(log.c.size, body.c.removed_at, content_row.c.content)
    .select_from(log.join(body, body.c.id == log.c.body).outerjoin(content_row, content_row.c.sha256 == body.c.content))
    .where(log.c.sha256 == bindparam("sha256"))
)
_CONTENT = PreparedSelect(select(content_row.c.content).where(content_row.c.sha256 == bindparam("sha256")))
_NEWEST_IMA = PreparedSelect(
    select(body.c.id, body.c.content, body.c.size)
    .select_from(use.join(body, body.c.id == use.c.body))
    .where(use.c.device_id == bindparam("device"), use.c.ima, use.c.removed_at.is_(None), body.c.size > 0)
    .order_by(use.c.at.desc(), use.c.body.desc())
    .limit(1)
)
_OTHERS_USE = PreparedSelect(
    select(use.c.device_id)
    .where(use.c.body == bindparam("body"), use.c.device_id != bindparam("device"))
    .limit(OTHERS_ASKED + 1)
)
_USES = PreparedSelect(
    select(use.c.body, use.c.at, body.c.size)
    .select_from(use.join(body, body.c.id == use.c.body))
    .where(use.c.device_id == bindparam("device"), use.c.removed_at.is_(None))
)
_BODY = PreparedSelect(select(body.c.content, body.c.size, body.c.removed_at).where(body.c.id == bindparam("body")))
_STILL_USED = PreparedSelect(
    select(use.c.body).where(use.c.body == bindparam("body"), use.c.removed_at.is_(None)).limit(1)
)
_WAITING = PreparedSelect(
    select(log.c.sha256)
    .select_from(log.join(upload, upload.c.sha256 == log.c.sha256))
    .where(log.c.body == bindparam("body"))
    .limit(1)
)
_LONGEST = PreparedSelect(
    select(log.c.sha256, log.c.size).where(log.c.body == bindparam("body")).order_by(log.c.size.desc()).limit(2)
)
_NAMES_IMA = PreparedSelect(
    select(attestation.c.at)
    .where(attestation.c.device_id == bindparam("device"), attestation.c.ima_log_sha256 == bindparam("sha256"))
    .limit(1)
)
_NAMES_IMA_OF = PreparedSelect(
    select(attestation.c.at)
    .select_from(attestation.join(log, log.c.sha256 == attestation.c.ima_log_sha256))
    .where(attestation.c.device_id == bindparam("device"), log.c.body == bindparam("body"))
    .limit(1)
)
_INSERT_LOG, _INSERT_CONTENT, _INSERT_USE = (prepared_insert(table) for table in (log, content_row, use))


def _deletion(table: Table, key: str) -> Prepared:
    return Prepared(delete(table).where(table.c[key] == bindparam("one")))


_DELETE_UPLOAD, _DELETE_LOG = _deletion(upload, "sha256"), _deletion(log, "sha256")
_DELETE_CONTENT, _DELETE_BODY, _DELETE_USES = (
    _deletion(content_row, "sha256"),
    _deletion(body, "id"),
    _deletion(use, "body"),
)
_THIS_USE = and_(use.c.device_id == bindparam("device"), use.c.body == bindparam("one"))
_DELETE_USE = Prepared(delete(use).where(_THIS_USE))
_SET_USE = Prepared(update(use).where(_THIS_USE).values(at=bindparam("now"), removed_at=None))
_GIVE_UP = Prepared(update(use).where(_THIS_USE).values(removed_at=bindparam("now")))
_MOVE = Prepared(update(log).where(log.c.sha256 == bindparam("one")).values(body=bindparam("to")))
_SET_CONTENT = Prepared(
    update(body).where(body.c.id == bindparam("one")).values(content=bindparam("hash"), size=bindparam("length"))
)
_REFILL = Prepared(
    update(body)
    .where(body.c.id == bindparam("one"))
    .values(content=bindparam("hash"), size=bindparam("length"), removed_at=None)
)
_EMPTY = Prepared(update(body).where(body.c.id == bindparam("one")).values(removed_at=bindparam("now")))


@dataclass(frozen=True, slots=True)
class Stored:
    """A log by its hash: its bytes, or since when they are gone."""

    content: bytes | None
    removed_at: int | None = None


def keep(tx: Connection, *, sha256: str, device_id: str, content: bytes, ima: bool, now: int) -> tuple[int, bool]:
    """Store a log that evidence of a device names, once: it is no mere upload any more.

    The body that it is in, and: does the device use more than before? The first is all that most evidence asks for: a
    device boots alike each day.
    """
    row: Any = _STANDING.first(tx, {"sha256": sha256, "device": device_id})
    if row is not None and row.waiting is not None:
        _DELETE_UPLOAD(tx, {"one": sha256})
    if row is not None and row.used is not None and row.given_up is None and row.removed_at is None:
        return row.body, False
    is_new = row is None or row.removed_at is not None
    at = _store(tx, sha256, device_id, content, now, row) if is_new else row.body
    if ima and (is_new or row.waiting is not None):
        at = _joined(tx, device_id, sha256, at, content)
    named = {"device": device_id, "one": at, "now": now}
    if not _SET_USE(tx, named):
        _INSERT_USE(tx, {"device_id": device_id, "body": at, "ima": ima, "at": now})
    return at, True


def put_upload(tx: Connection, *, sha256: str, device_id: str, content: bytes, now: int) -> None:
    """Store a log that evidence is about to name. One that is known already stays what it is."""
    row: Any = _STANDING.first(tx, {"sha256": sha256, "device": device_id})
    if row is None or row.removed_at is not None:
        _store(tx, sha256, device_id, content, now, row)
        tx.execute(insert(upload).values(sha256=sha256, device_id=device_id, at=now))
    else:  # perhaps an upload that was about to go
        tx.execute(update(upload).where(upload.c.sha256 == sha256).values(at=now))


def is_known(tx: Connection, sha256: str) -> bool:
    """Is a log of that hash stored, with its bytes?"""
    row: Any = _STANDING.first(tx, {"sha256": sha256, "device": ""})
    return row is not None and row.removed_at is None


def stored(tx: Connection, sha256: str) -> Stored | None:
    """A log by its hash; None where nothing of that name is known."""
    row: Any = _BYTES.first(tx, {"sha256": sha256})
    if row is None or row.removed_at is not None:
        return None if row is None else Stored(None, row.removed_at)
    return Stored(None if row.content is None else bytes(row.content)[: row.size])


def is_removed(tx: Connection, sha256: str) -> bool:
    """Did the bytes of a log go because of a bound, though evidence names it?"""
    row: Any = _STANDING.first(tx, {"sha256": sha256, "device": ""})
    return row is not None and row.removed_at is not None


def content_of(tx: Connection, sha256: str) -> bytes | None:
    """A log's bytes by its hash, where they are still kept."""
    found = stored(tx, sha256)
    return None if found is None else found.content


def used_by(tx: Connection, device_id: str) -> list[Any]:
    """What a device uses: each body, when it named it newly, its size in bytes."""
    return _USES.all(tx, {"device": device_id})


def bodies_of(tx: Connection, names: Sequence[str]) -> set[int]:
    """The bodies in which these logs are."""
    found = (_STANDING.first(tx, {"sha256": sha256, "device": ""}) for sha256 in names)
    return {row.body for row in found if row is not None}


def give_up(tx: Connection, device_id: str, one: int, now: int) -> None:
    """A device's bound takes a body from it. The bytes go, unless another device uses them."""
    _GIVE_UP(tx, {"device": device_id, "one": one, "now": now})
    _empty_if_unused(tx, one, now)


def naming(tx: Connection, device_id: str, names: Sequence[str]) -> Counter[str]:
    """How much evidence of a device names each of these: one range of an index, whatever their number."""
    found = Counter[str]()
    for column in (attestation.c.boot_log_sha256, attestation.c.ima_log_sha256):
        mine = select(column, func.count()).where(attestation.c.device_id == device_id, column.in_(names))
        found.update({row[0]: row[1] for row in tx.execute(mine.group_by(column))})
    return found


def forget(tx: Connection, device_id: str, sha256: str, now: int) -> int:
    """No evidence of a device names a log any more: if nobody else's does, it goes. How many bytes did?"""
    row: Any = _STANDING.first(tx, {"sha256": sha256, "device": device_id})
    if row is None:
        return 0
    freed = 0
    if row.waiting is None and not _others_name(tx, device_id, sha256, row):
        _DELETE_LOG(tx, {"one": sha256})
        if _drop_if_empty(tx, row.body):
            return int(row.size)
        if row.content == sha256 and row.removed_at is None:
            freed = _shorten(tx, row.body, sha256)
    if row.used is not None and not _names_another(tx, device_id, row):
        _DELETE_USE(tx, {"device": device_id, "one": row.body})
    return freed + _empty_if_unused(tx, row.body, now)


def uploads_of(tx: Connection, device_id: str) -> int:
    """How many logs of a device wait to be named."""
    return int(tx.execute(select(func.count()).where(upload.c.device_id == device_id)).scalar_one())


def forget_uploads(tx: Connection, before: int, most: int, most_bytes: int, now: int) -> int:
    """Drop at most so many uploads that came before then, and no more once so many bytes went. How many?"""
    late = select(upload.c.sha256, upload.c.device_id).where(upload.c.at < before).order_by(upload.c.at).limit(most)
    dropped = freed = 0
    for row in tx.execute(late).all():
        _DELETE_UPLOAD(tx, {"one": row.sha256})
        if naming(tx, row.device_id, [row.sha256]):  # its bytes had gone by a bound, and came again
            freed += _empty_if_unused(tx, bodies_of(tx, [row.sha256]).pop(), now)
        else:
            freed += forget(tx, row.device_id, row.sha256, now)
        dropped += 1
        if freed >= most_bytes:
            break
    return dropped


def _store(tx: Connection, sha256: str, device_id: str, content: bytes, now: int, known: Any) -> int:  # noqa: ANN401  a record, or None
    """A log in a body of its own. One whose body lost its bytes leaves that one, with a use for each that names it."""
    _INSERT_CONTENT(tx, {"sha256": sha256, "content": content})
    if known is not None and len(_LONGEST.all(tx, {"body": known.body})) == 1:  # it is alone there
        _REFILL(tx, {"one": known.body, "hash": sha256, "length": len(content)})
        return int(known.body)
    made = insert(body).values(content=sha256, size=len(content))
    key: Any = tx.execute(made).inserted_primary_key
    one = int(key[0])
    if known is None:
        _INSERT_LOG(tx, {"sha256": sha256, "device_id": device_id, "at": now, "size": len(content), "body": one})
    else:
        _MOVE(tx, {"one": sha256, "to": one})
        columns = (use.c.device_id, literal(one), use.c.ima, use.c.at, literal(now))
        users = select(*columns).where(use.c.body == known.body)
        tx.execute(insert(use).from_select(["device_id", "body", "ima", "at", "removed_at"], users))
    return one


def _joined(tx: Connection, device_id: str, sha256: str, own: int, content: bytes) -> int:
    """Put an IMA log, in a body of its own, into that of the device's last one, if one of them begins the other.

    Not where another device uses that body: it would pay for what this one sends.
    """
    last: Any = _NEWEST_IMA.first(tx, {"device": device_id})
    if (
        last is None
        or last.id == own
        or any(_OTHERS_USE.first(tx, {"body": one, "device": device_id}) for one in (last.id, own))
    ):
        return own
    before: Any = _CONTENT.first(tx, {"sha256": last.content})
    if before is None:
        return own
    old = bytes(before.content)
    if content.startswith(old):
        _SET_CONTENT(tx, {"one": last.id, "hash": sha256, "length": len(content)})
        _DELETE_CONTENT(tx, {"one": last.content})
    elif old.startswith(content):
        _DELETE_CONTENT(tx, {"one": sha256})
    else:
        return own
    _MOVE(tx, {"one": sha256, "to": last.id})
    _DELETE_BODY(tx, {"one": own})
    _DELETE_USES(tx, {"one": own})
    return int(last.id)


def _others_name(tx: Connection, device_id: str, sha256: str, row: Any) -> bool:  # noqa: ANN401  a record
    """Does evidence of another device name this log? A boot log is alone in its body: who uses that, names it."""
    others = _OTHERS_USE.all(tx, {"body": row.body, "device": device_id})
    if not row.ima or len(others) > OTHERS_ASKED:
        return bool(others)
    return any(_NAMES_IMA.first(tx, {"device": one.device_id, "sha256": sha256}) for one in others)


def _names_another(tx: Connection, device_id: str, row: Any) -> bool:  # noqa: ANN401  a record
    """Does evidence of a device name a log of this body that is still in it?"""
    if not row.ima:
        return False
    alone = _OTHERS_USE.first(tx, {"body": row.body, "device": device_id}) is None
    return alone or _NAMES_IMA_OF.first(tx, {"device": device_id, "body": row.body}) is not None


def _drop_if_empty(tx: Connection, one: int) -> bool:
    """Drop a body that no log is in any more. Was it one?"""
    if _LONGEST.first(tx, {"body": one}) is not None:
        return False
    found: Any = _BODY.first(tx, {"body": one})
    if found is not None and found.removed_at is None:
        _DELETE_CONTENT(tx, {"one": found.content})
    _DELETE_USES(tx, {"one": one})
    _DELETE_BODY(tx, {"one": one})
    return True


def _shorten(tx: Connection, one: int, before: str) -> int:
    """The longest log of a body is gone: its bytes are those of the next."""
    longest: Any = _LONGEST.first(tx, {"body": one})
    old: Any = _CONTENT.first(tx, {"sha256": before})
    if old is None:
        return 0
    whole = bytes(old.content)
    _INSERT_CONTENT(tx, {"sha256": longest.sha256, "content": whole[: longest.size]})
    _DELETE_CONTENT(tx, {"one": before})
    _SET_CONTENT(tx, {"one": one, "hash": longest.sha256, "length": longest.size})
    return len(whole)


def _empty_if_unused(tx: Connection, one: int, now: int) -> int:
    """Remove the bytes of a body that no device uses and whose logs nobody uploads. How many were they?"""
    known = {"body": one}
    found: Any = _BODY.first(tx, known)
    if found is None or found.removed_at is not None:
        return 0
    if _STILL_USED.first(tx, known) is not None or _WAITING.first(tx, known) is not None:
        return 0
    _DELETE_CONTENT(tx, {"one": found.content})
    _EMPTY(tx, {"one": one, "now": now})
    return int(found.size)
