"""Every night: all stored certificates again, against their profiles and by pkilint, in a child of low priority."""

import asyncio
import json
import os
import sys
from datetime import datetime, timedelta

import structlog
from prometheus_client import Gauge

from provisioning.refusals import StorageUnavailable
from provisioning.service import Service

HOUR = 2
"""From when on in the night, UTC."""
LONGEST_SECONDS = 6 * 3600
ANSWER_MOST = 1024 * 1024
CHILD = "provisioning.app.lint_child"

LINTED = Gauge("muster_lint_certificates", "Certificates that the last nightly lint looked at")
FAULTS = Gauge("muster_lint_faults", "What it found in them")
ENDED = Gauge("muster_lint_ended_timestamp_seconds", "When it ended")

_log = structlog.get_logger()


class Nightly:
    """When it ran last. A service that starts by day waits for the night: a restart lints nothing anew."""

    def __init__(self, now: datetime) -> None:
        self._next = next_night(now)

    async def run(self, service: Service) -> None:
        """Lint, if it is time. Raises: StorageUnavailable, where the child did not finish; then the next night."""
        now = service.clock()
        if now < self._next:
            return
        self._next = next_night(now)
        await lint(service)


def next_night(now: datetime) -> datetime:
    """The next time that it is the hour."""
    tonight = now.replace(hour=HOUR, minute=0, second=0, microsecond=0)
    return tonight if tonight > now else tonight + timedelta(days=1)


async def lint(service: Service) -> None:
    """One whole run: logged, and counted. Raises: StorageUnavailable, where the child did not finish."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", CHILD, str(service.directory.root), str(os.getpid())),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=ANSWER_MOST,
    )
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            said, _ = await child.communicate()
    except TimeoutError as error:
        raise StorageUnavailable(expected=f"a lint in {LONGEST_SECONDS} s", actual="none") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise StorageUnavailable(expected="a lint of all certificates", actual=f"its child ended: {child.returncode}")
    found = json.loads(said)
    LINTED.set(found["looked_at"])
    FAULTS.set(found["faults"])
    ENDED.set(service.clock().timestamp())
    for fault in found["first"]:
        _log.error("lint.fault", fault=fault)
    _log.info("lint.done", certificates=found["looked_at"], faults=found["faults"])
