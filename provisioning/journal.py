"""What goes into the log: one leaf for each thing that a person may have to prove later."""

from datetime import datetime
from typing import Any

from provisioning.service import Service
from provisioning.transparency import leaf_bytes, leaf_hash, leaf_of
from wire.codec import encode


def leaf(service: Service, kind: str, now: datetime, **record: object) -> dict[str, Any]:
    """A leaf's row, for the transaction of what it records. The salt keeps the public hash from being guessed."""
    salt = service.entropy(32)
    content = encode(record)
    hashed = leaf_hash(leaf_bytes(leaf_of(kind, now, salt, content)))
    return {"kind": kind, "at": int(now.timestamp()), "salt": salt, "record": content, "hash": hashed}
