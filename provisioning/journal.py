"""What goes into the log: one leaf for each thing that a person may have to prove later."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from provisioning.db import enrollments, leaves
from provisioning.service import Service
from provisioning.transparency import leaf_bytes, leaf_hash, leaf_of
from wire.codec import b64url, encode


def identifier(random: bytes) -> str:
    """All of these bits in base64url, beginning with a letter: no command line takes an id for an option."""
    return b64url(b"\0" + random)[1:]  # two zero bits lead the first character


def leaf(service: Service, kind: str, now: datetime, **record: object) -> dict[str, Any]:
    """A leaf's row, for the transaction of what it records. The salt keeps the public hash from being guessed."""
    salt = service.entropy(32)
    content = encode(record)
    hashed = leaf_hash(leaf_bytes(leaf_of(kind, now, salt, content)))
    return {"kind": kind, "at": int(now.timestamp()), "salt": salt, "record": content, "hash": hashed}


STRANGERS = "refusals-of-strangers"


async def note_strangers(service: Service) -> None:
    """One leaf for all refusals of unknown senders since the last such leaf: a stranger cannot fill the log."""
    now = service.clock()
    at = int(now.timestamp())

    def read(tx: Connection) -> tuple[int, int]:
        since = leaves.newest_at(tx, STRANGERS)
        return since, enrollments.refusals_of_strangers(tx, since, at)

    since, count = await service.store.read(read)
    if count:
        entry = leaf(service, STRANGERS, now, since=since, until=at, count=count)
        await service.ledger.write(lambda tx: leaves.add(tx, entry))
