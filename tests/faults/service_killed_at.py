"""Enrolls one light device in this process, and kills it (SIGKILL) at the N-th crash point.

Crash points are before and after each commit and each signature: between two of them nothing leaves the process.
The device's side (challenge, evidence, certificate) is kept in files, as an agent keeps it, so that a second run goes
on where the first one died.

    python service_killed_at.py DATA_DIRECTORY FLEET DEVICE_NUMBER CRASH_POINT RESULT_DIRECTORY
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from lab.light_fleet import load_fleet
from provisioning.app.compose import compose
from provisioning.config import DataDirectory, load_config
from provisioning.enrollment import begin_enrollment, complete_enrollment
from wire.codec import decode, encode
from wire.messages import Challenge, Evidence, Issued

LIMIT = 1024 * 1024


class CrashPoints:
    """Counts the points that were passed, and dies at one of them."""

    def __init__(self, deadly: int) -> None:
        self.deadly = deadly
        self.passed = 0

    def point(self) -> None:
        self.passed += 1
        if self.passed == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)


def mount(points: CrashPoints, service) -> None:
    """Put a crash point before and after each commit and each signature."""
    lane, sign = service.ledger._lane, service.keys.sign
    commit = lane._carry_out

    def committed(group):
        points.point()
        commit(group)
        points.point()

    async def signed(label, message):
        points.point()
        signature = await sign(label, message)
        points.point()
        return signature

    lane._carry_out = committed
    type(service.keys).sign = lambda _self, label, message: signed(label, message)


async def enroll(service, device, result: Path) -> None:
    """Both steps, each from its file if it was done before."""
    asked, answered, done = (result / name for name in ("challenge", "evidence", "issued"))
    if not asked.exists():
        asked.write_bytes(encode(await begin_enrollment(service, device.request(), source="test")))
    challenge = decode(Challenge, asked.read_bytes(), limit=LIMIT)
    if not answered.exists():
        answered.write_bytes(encode(device.answer(challenge)))
    evidence = decode(Evidence, answered.read_bytes(), limit=LIMIT)
    issued = await complete_enrollment(
        service, challenge.enrollment_id, evidence, arrived=service.clock(), source="test"
    )
    assert decode(Issued, encode(issued), limit=LIMIT) == issued
    done.write_bytes(encode(issued))


def main() -> None:
    directory, fleet, number, deadly, result = sys.argv[1:]
    data = DataDirectory(Path(directory))
    (device,) = load_fleet(Path(fleet), int(number), 1)
    points = CrashPoints(int(deadly))
    with compose(data, load_config(data)) as service:
        mount(points, service)
        asyncio.run(enroll(service, device, Path(result)))
        print(points.passed)  # what is committed as the process ends is no step of the enrollment


if __name__ == "__main__":
    main()
