"""What `muster doctor` finds: one line each, with its cure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from wire.codec import rfc3339

OK, WARN, FAIL = "ok", "warn", "FAIL"
SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    check: str
    status: str
    says: str
    cure: str = ""


Findings = Iterator[Finding]


def expiry(what: str, end: datetime, now: datetime, soon: timedelta, cure: str) -> Finding:
    """Is what ends then good for longer than `soon`?"""
    left = end - now
    if left <= timedelta():
        return Finding(what, FAIL, f"expired on {rfc3339(end)}", cure)
    status = OK if left > soon else WARN
    return Finding(what, status, f"good until {rfc3339(end)} ({left.days} days)", "" if status == OK else cure)
