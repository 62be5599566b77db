"""The outbox, MQTT sessions, releases, assignments and leases: reads and writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, bindparam, case, delete, func, insert, select, update

from provisioning.db.ca_tables import Certificate
from provisioning.db.columns import table_of
from provisioning.db.devices import Record
from provisioning.db.prepared import Prepared, PreparedSelect, prepared_insert
from provisioning.db.tables import Assignment, Command, DirectorMetadata, Lease, MqttSession, Release

command, session = table_of(Command), table_of(MqttSession)
certificate = table_of(Certificate)
release, assignment, lease = table_of(Release), table_of(Assignment), table_of(Lease)
director = table_of(DirectorMetadata)

_FORGET_SESSION = Prepared(delete(session).where(session.c.device_id == bindparam("device")))
_ADD = prepared_insert(command)
_PENDING = PreparedSelect(
    select(command).where(
        command.c.device_id == bindparam("device"), command.c.kind == bindparam("kind"), command.c.state == "pending"
    )
)
_OPENED_BY = certificate.c.profile.label("opened_by")
_DUE = (
    select(command, session.c.session, session.c.down_sequence, session.c.trust_version, _OPENED_BY)
    .join(session, session.c.device_id == command.c.device_id)
    .outerjoin(certificate, certificate.c.serial == session.c.certificate_serial)
    .where(command.c.state == "pending", command.c.next_try_at <= bindparam("now"))
    .order_by(command.c.next_try_at)  # as the index has them: of ten thousand that are due at once only these are read
    .limit(bindparam("most"))
)
_DUE_PREPARED = PreparedSelect(_DUE)
_GET = PreparedSelect(select(command).where(command.c.message_id == bindparam("id")))
_MINE = session.c.device_id == bindparam("device")
_NEXT = PreparedSelect(
    update(session)
    .where(_MINE)
    .values(down_sequence=session.c.down_sequence + 1)
    .returning(session.c.session, session.c.down_sequence)
)
_SET_BODY = Prepared(update(command).where(command.c.message_id == bindparam("id")).values(body=bindparam("new_body")))
_SENT = Prepared(
    update(command)
    .where(command.c.message_id == bindparam("id"))
    .values(tries=command.c.tries + 1, next_try_at=bindparam("next"))
)
_ENDED: dict[str, Any] = {"state": bindparam("to"), "result": bindparam("why")}
_FINISH = Prepared(
    update(command).where(command.c.message_id == bindparam("id"), command.c.state == "pending").values(**_ENDED)
)
_FINISH_OF = Prepared(
    update(command)
    .where(
        command.c.message_id == bindparam("id"),
        command.c.state == "pending",
        command.c.device_id == bindparam("device"),
    )
    .values(**_ENDED)
)
_SAID = Prepared(
    update(command)
    .where(command.c.message_id == bindparam("id"))
    .values(
        tries=command.c.tries + 1,
        next_try_at=bindparam("next"),
        state=case((command.c.state == "pending", "done"), else_=command.c.state),
    )
)
_HURRY = Prepared(
    update(command)
    .where(command.c.device_id == bindparam("device"), command.c.state == "pending")
    .values(next_try_at=bindparam("now"))
)
_SESSION = PreparedSelect(select(session).where(_MINE))
_ACCEPT = Prepared(
    update(session)
    .where(_MINE, session.c.session == bindparam("of_session"), session.c.up_sequence < bindparam("new"))
    .values(up_sequence=bindparam("new"))
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message stands: in which session of its device, with which sequence."""

    session: str
    sequence: int


def add(tx: Connection, row: dict[str, Any]) -> None:
    """Insert a command."""
    _ADD(tx, row)


def get(tx: Connection, message_id: str) -> Record | None:
    """The command of that message id."""
    return cast("Record | None", _GET.first(tx, {"id": message_id}))


def due(tx: Connection, now: int, most: int) -> list[Record]:
    """Commands that are to be sent now, to devices that said hello; with the session and its last sequence.

    `opened_by`: the kind of the certificate that the session was opened with.
    """
    return _DUE_PREPARED.all(tx, {"now": now, "most": most})


def next_sequence(tx: Connection, device_id: str) -> Place | None:
    """The next place of what goes down to a device; None where it has no session (any more)."""
    row = _NEXT.first(tx, {"device": device_id})
    return None if row is None else Place(row.session, row.down_sequence)


def set_body(tx: Connection, message_id: str, body: bytes) -> None:
    """Replace what a pending command says (a challenge that expired)."""
    _SET_BODY(tx, {"id": message_id, "new_body": body})


def sent(tx: Connection, message_id: str, *, next_try_at: int) -> None:
    """Count a try; the command stays pending until it is done."""
    _SENT(tx, {"id": message_id, "next": next_try_at})


def said(tx: Connection, message_id: str, *, next_try_at: int) -> None:
    """Count a try that is the last: where the command is still pending, it is done."""
    _SAID(tx, {"id": message_id, "next": next_try_at})


def finish(
    tx: Connection, message_id: str, *, state: str, result: str | None = None, device_id: str | None = None
) -> bool:
    """End a pending command. False where it had ended already, or is not that device's."""
    row = {"id": message_id, "to": state, "why": result, "device": device_id}
    return (_FINISH if device_id is None else _FINISH_OF)(tx, row) == 1


def finish_answered(tx: Connection, message_id: str) -> bool:
    """The command whose answer was issued is done now. False where it was done before."""
    answered = (command.c.message_id == message_id, command.c.state == "answered")
    return tx.execute(update(command).where(*answered).values(state="done")).rowcount == 1


def expire(tx: Connection, now: int) -> int:
    """End all pending commands whose time is over."""
    late = update(command).where(command.c.state == "pending", command.c.expires_at <= now)
    return tx.execute(late.values(state="expired")).rowcount


def forget_said(tx: Connection, kinds: Sequence[str], before: int, most: int) -> int:
    """Drop at most so many ended commands of these kinds that were last sent before then."""
    ended = (command.c.state.in_(("done", "expired", "failed", "refused")), command.c.next_try_at < before)
    old = select(command.c.message_id).where(*ended, command.c.kind.in_(kinds)).limit(most)
    return tx.execute(delete(command).where(command.c.message_id.in_(old))).rowcount


def hurry(tx: Connection, device_id: str, now: int) -> None:
    """All pending commands of a device are due now: it said hello."""
    _HURRY(tx, {"device": device_id, "now": now})


def pending_of(tx: Connection, device_id: str, kind: str) -> Record | None:
    """A pending command of that kind to a device."""
    return cast("Record | None", _PENDING.first(tx, {"device": device_id, "kind": kind}))


def made_since(tx: Connection, device_id: str, kind: str, since: int) -> int:
    """How many commands of a kind were made for a device since then, pending or ended; those ended are kept a day."""
    mine = (command.c.device_id == device_id, command.c.kind == kind, command.c.created_at >= since)
    return int(tx.execute(select(func.count()).where(*mine)).scalar_one())


def commands_of(tx: Connection, device_id: str, limit: int) -> list[Record]:
    """The newest commands to a device."""
    mine = select(command).where(command.c.device_id == device_id)
    return list(tx.execute(mine.order_by(command.c.created_at.desc()).limit(limit)))


def session_of(tx: Connection, device_id: str) -> Record | None:
    """The session that a device's last hello named."""
    return cast("Record | None", _SESSION.first(tx, {"device": device_id}))


def put_session(tx: Connection, device_id: str, values: dict[str, Any]) -> None:
    """Insert or replace a device's session."""
    if session_of(tx, device_id) is None:
        tx.execute(insert(session).values(device_id=device_id, **values))
    else:
        tx.execute(update(session).where(session.c.device_id == device_id).values(**values))


def forget_session(tx: Connection, device_id: str) -> None:
    """A device that enrolled anew starts with a hello."""
    _FORGET_SESSION(tx, {"device": device_id})


def accept_sequence(tx: Connection, device_id: str, of_session: str, sequence: int) -> bool:
    """Take an up message's sequence. False where it is of another session or not higher than the last one."""
    return _ACCEPT(tx, {"device": device_id, "of_session": of_session, "new": sequence}) == 1


def put_release(tx: Connection, row: dict[str, Any]) -> None:
    """Insert a release, or replace what is known of its target."""
    if release_by_target(tx, row["target"]) is None:
        tx.execute(insert(release), row)
    else:
        tx.execute(update(release).where(release.c.target == row["target"]).values(**row))


def withdraw_release(tx: Connection, target: str) -> None:
    """The image repository signs this target no more."""
    tx.execute(update(release).where(release.c.target == target).values(withdrawn=True))


def release_by_target(tx: Connection, target: str) -> Record | None:
    """The release of that target path."""
    return tx.execute(select(release).where(release.c.target == target)).first()


def releases(tx: Connection) -> list[Record]:
    """All releases, newest counter first."""
    return list(tx.execute(select(release).order_by(release.c.hardware, release.c.release_counter.desc())))


def assignment_of(tx: Connection, device_id: str) -> Record | None:
    """What the Director tells a device to run."""
    return tx.execute(select(assignment).where(assignment.c.device_id == device_id)).first()


def put_assignment(tx: Connection, device_id: str, *, target: str, now: int) -> None:
    """Assign a release to a device, in place of what it was assigned before."""
    tx.execute(delete(assignment).where(assignment.c.device_id == device_id))
    row = {"device_id": device_id, "target": target, "state": "assigned", "assigned_at": now, "updated_at": now}
    tx.execute(insert(assignment), row)


def director_metadata_of(tx: Connection, device_id: str) -> Record | None:
    """The newest generation of the Director's metadata for a device."""
    return tx.execute(select(director).where(director.c.device_id == device_id)).first()


def put_director_metadata(tx: Connection, device_id: str, version: int, files: str) -> bool:
    """Store a generation. False where one as new is there already."""
    current = director_metadata_of(tx, device_id)
    if current is None:
        tx.execute(insert(director).values(device_id=device_id, version=version, files=files))
        return True
    newer = update(director).where(director.c.device_id == device_id, director.c.version < version)
    return tx.execute(newer.values(version=version, files=files)).rowcount == 1


def report_assignment(tx: Connection, device_id: str, *, state: str, detail: str | None, now: int) -> None:
    """What the device says about its update."""
    mine = update(assignment).where(assignment.c.device_id == device_id)
    tx.execute(mine.values(state=state, detail=detail, updated_at=now))


def take_lease(tx: Connection, name: str, holder: str, *, now: int, until: int) -> bool:
    """Take or keep a lease. False while another holder's has not expired."""
    row = tx.execute(select(lease).where(lease.c.name == name)).first()
    if row is None:
        tx.execute(insert(lease).values(name=name, holder=holder, expires_at=until))
        return True
    free = (lease.c.name == name, (lease.c.holder == holder) | (lease.c.expires_at <= now))
    return tx.execute(update(lease).where(*free).values(holder=holder, expires_at=until)).rowcount == 1


def pending_count(tx: Connection) -> int:
    """How many commands wait."""
    return int(tx.execute(select(func.count()).where(command.c.state == "pending")).scalar_one())
