"""Who may call the operator listener: operators made, listed and removed. JSON-ready values; no token's hash leaves."""

import hashlib
import re
from datetime import UTC, datetime

from sqlalchemy import Connection

from provisioning.access import Role
from provisioning.db import devices, leaves
from provisioning.journal import leaf
from provisioning.refusals import NotFound, RequestMalformed, StateConflict
from provisioning.service import Service
from wire.codec import b64url, rfc3339

Json = dict[str, object]
TOKEN_BYTES = 32
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
"""No capitals: two people whose names differ in that alone would be one to whoever reads the log."""
RESERVED = frozenset({"device"})
"""What stands in an operator's place where a device asked (`outbox.BY_DEVICE`): a second such order has no leaf."""


async def add_operator(service: Service, name: str, role: str, *, by: str) -> Json:
    """An operator with a token, which is in the answer and nowhere else: the database has its SHA-256.

    Not proven: who holds it. Raises: RequestMalformed, StateConflict (a name has one token; remove it first).
    """
    if NAME.fullmatch(name) is None:
        raise RequestMalformed(expected="a name of 1 to 63 characters of a-z 0-9 . -", actual=name)
    if name in RESERVED:
        raise RequestMalformed(expected="a name that means nothing else in the log", actual=name)
    if role not in set(Role):
        raise RequestMalformed(expected=f"one of the roles {', '.join(Role)}", actual=role)
    now = service.clock()
    token = b64url(service.entropy(TOKEN_BYTES))
    digest = hashlib.sha256(token.encode()).hexdigest()
    entry = leaf(service, "operator", now, name=name, role=role, by=by)

    def write(tx: Connection) -> None:
        if devices.operator_by_name(tx, name) is not None:
            raise StateConflict(expected="a new name", actual=f"{name}, who is an operator")
        devices.add_operator(tx, name=name, role=role, token_sha256=digest, now=int(now.timestamp()))
        leaves.add(tx, entry)

    await service.ledger.write(write)
    return {"name": name, "role": role, "token": token}


async def list_operators(service: Service) -> list[Json]:
    """All operators, by name, without their tokens."""
    rows = await service.store.read(devices.operators)
    return [{"name": row.name, "role": row.role, "created": _time(row.created_at)} for row in rows]


async def remove_operator(service: Service, name: str, *, by: str) -> Json:
    """End an operator: the token opens nothing from the next request on. Who asks may be the one who goes.

    Raises: NotFound, StateConflict (without an admin nobody could make another one).
    """
    entry = leaf(service, "operator", service.clock(), name=name, removed=True, by=by)

    def write(tx: Connection) -> Json:
        row = devices.operator_by_name(tx, name)
        if row is None:
            raise NotFound(expected="an operator's name", actual=name)
        if row.role == Role.ADMIN and not any(
            other.role == Role.ADMIN and other.name != name for other in devices.operators(tx)
        ):
            raise StateConflict(expected="another admin, who stays", actual=f"{name}, the last one")
        devices.remove_operator(tx, name)
        leaves.add(tx, entry)
        return {"name": name, "role": row.role, "removed": True}

    return await service.ledger.write(write)


def _time(at: int) -> str:
    return rfc3339(datetime.fromtimestamp(at, UTC))
