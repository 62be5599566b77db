"""An explanation's parts as JSON."""

from collections.abc import Sequence
from datetime import UTC, datetime

from provisioning.attestation.explanation import Changed, Edit
from provisioning.attestation.explanation_diff import EventChange, Measurement
from provisioning.db.devices import Record
from wire.codec import rfc3339

Json = dict[str, object]
LISTED_MOST = 100
"""Events and files that are listed, at most; how many more there are is said."""


def changed_text(before: Record | None, changed: Changed) -> Json:
    """What changed since evidence passed."""
    firmware = changed.firmware
    return {
        "since": None if before is None else {"attestation": before.id, "at": time_text(before.at)},
        "pcrs": [{"pcr": one.pcr, "before": _hex(one.before), "now": _hex(one.now)} for one in changed.pcrs],
        "events": events_text(changed.events),
        "more_events": max(0, len(changed.events) - LISTED_MOST),
        "files": [{"path": one.path, "before": one.before, "now": one.now} for one in changed.files[:LISTED_MOST]],
        "more_files": max(0, len(changed.files) - LISTED_MOST),
        "firmware": None if firmware is None else {"before": f"{firmware[0]:#x}", "now": f"{firmware[1]:#x}"},
    }


def events_text(events: Sequence[EventChange]) -> list[Json]:
    """Events that differ; the first of them."""
    return [
        {"pcr": one.pcr, "change": one.kind, "before": _measurement(one.before), "now": _measurement(one.now)}
        for one in events[:LISTED_MOST]
    ]


def edit_text(edit: Edit) -> Json:
    """An edit: its new lines, and the difference."""
    return {"toml": "\n".join(edit.lines), "diff": edit.diff}


def time_text(at: int | None) -> str | None:
    """Unix seconds as RFC 3339 writes them."""
    return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))


def _measurement(one: Measurement | None) -> Json | None:
    return None if one is None else {"event": one.number, "digest": one.digest.hex(), "text": one.text}


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
