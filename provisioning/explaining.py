"""Refusals explained to operators: which check, what was expected and what came, what would make it pass."""

import json
from datetime import UTC, datetime

from sqlalchemy import Connection

from provisioning.db import devices, enrollments
from provisioning.db.devices import Record
from provisioning.refusals import NotFound, refusal_class
from provisioning.service import Service
from wire.codec import rfc3339

Json = dict[str, object]


async def explain(service: Service, name: str) -> Json:
    """One refusal: by its id, or the last one of a device. The check, expected and actual, what would make it pass.

    Raises: NotFound.
    """

    def read(tx: Connection) -> tuple[Record, Record | None]:
        device = devices.by_name(tx, name)
        row = enrollments.refusal_by_id(tx, name)
        if row is None and device is not None:
            row = enrollments.newest_refusal_of(tx, device.id)
        if row is None:
            raise NotFound(expected="a refusal id, or a device that was refused", actual=name)
        return row, device if row.device_id is None else devices.by_id(tx, row.device_id)

    row, device = await service.store.read(read)
    kind = refusal_class(row.code)
    return {
        "refusal": row.id,
        "at": _time(row.at),
        "code": row.code,
        "name": kind.__name__,
        "check": kind.check,
        "title": kind.title,
        "flow": row.flow,
        "device": None if device is None else device.id,
        "serial": row.serial if device is None else device.serial,
        "source": row.source,
        "proven_own": row.own,
        "expected": row.expected,
        "actual": row.actual,
        "findings": json.loads(row.findings),
        "cure": kind.cure,
    }


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))
