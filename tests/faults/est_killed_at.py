"""Enrolls one device by EST in this process, and kills it (SIGKILL) at the N-th crash point (`service_killed_at`).

    python est_killed_at.py DATA_DIRECTORY NAME CRASH_POINT RESULT_DIRECTORY

RESULT_DIRECTORY holds the one-time token and the request; the certificate comes to them.
"""

import asyncio
import sys
from pathlib import Path

from provisioning import est
from provisioning.app.compose import compose
from provisioning.config import DataDirectory, load_config
from tests.faults.service_killed_at import CrashPoints, mount


async def enroll(service, name: str, result: Path) -> None:
    password = est.Password(name, (result / "token").read_text())
    caller = await est.authenticate(service, password, source="test")
    issued = await est.enroll(service, caller, (result / "csr").read_bytes(), label=None, source="test")
    (result / "issued").write_bytes(issued.der)


def main() -> None:
    directory, name, deadly, result = sys.argv[1:]
    data = DataDirectory(Path(directory))
    points = CrashPoints(int(deadly))
    with compose(data, load_config(data)) as service:
        mount(points, service)
        asyncio.run(enroll(service, name, Path(result)))
        print(points.passed)


if __name__ == "__main__":
    main()
