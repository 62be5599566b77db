"""Revokes one certificate and publishes the CRL in this process, and kills it (SIGKILL) at the N-th crash point.

Crash points are before and after each commit, each signature, and the replacement of the file.

    python crl_killed_at.py DATA_DIRECTORY SERIAL CRASH_POINT
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from provisioning import crls, revoking
from provisioning.app.compose import compose
from provisioning.config import DataDirectory, load_config
from provisioning.duties import Revoked
from provisioning.refusals import StateConflict
from tests.faults.service_killed_at import CrashPoints, mount
from tests.support.crls import listed


async def revoke(service, points: CrashPoints, serial: str) -> None:
    """As a worker would: the order, then rounds of the duty until the file says it."""
    duty = Revoked(service, SimpleNamespace())
    while True:  # no CRL is of the second of the one before it
        await duty.sign()
        head = await service.store.read(lambda tx: crls.revocations.crl_head(tx, "issuing"))
        if service.clock().timestamp() >= head.this_update + 1:
            break
        await asyncio.sleep(0.05)
    points.passed = 0
    with suppress(StateConflict):  # that much may have been done before the crash
        await revoking.revoke_certificate(service, serial, "key-compromise", by="test")
    await duty.sign()
    assert serial in listed(service.directory)


def main() -> None:
    directory, serial, deadly = sys.argv[1:]
    data = DataDirectory(Path(directory))
    points = CrashPoints(0)
    replace_file = crls.replace_file

    def replaced(path, content):
        points.point()
        replace_file(path, content)
        points.point()

    crls.replace_file = replaced
    with compose(data, load_config(data)) as service:
        mount(points, service)
        points.deadly = int(deadly)
        points.passed = -1000  # nothing counts before the order
        asyncio.run(revoke(service, points, serial))
        print(points.passed)


if __name__ == "__main__":
    main()
