"""What is known of a device's sessions beside the current one: reads and writes."""

import json

from sqlalchemy import Connection, insert, select, update

from provisioning.db.columns import table_of
from provisioning.db.finding_tables import SessionTrace
from provisioning.monitoring import Trace

trace = table_of(SessionTrace)


def trace_of(tx: Connection, device_id: str) -> Trace:
    """The trace of a device; an empty one where nothing was written yet."""
    row = tx.execute(select(trace).where(trace.c.device_id == device_id)).first()
    if row is None:
        return Trace()
    return Trace(tuple(json.loads(row.displaced)), row.probe_session, row.probe_sequence, row.probed_at)


def put_trace(tx: Connection, device_id: str, new: Trace) -> None:
    """Insert or replace a device's trace."""
    values = {
        "displaced": json.dumps(new.displaced),
        "probe_session": new.probe_session,
        "probe_sequence": new.probe_sequence,
        "probed_at": new.probed_at,
    }
    if tx.execute(update(trace).where(trace.c.device_id == device_id).values(**values)).rowcount == 0:
        tx.execute(insert(trace).values(device_id=device_id, **values))
