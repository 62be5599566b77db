"""The least release counter that this device still installs, tied to a counter in its TPM so that it never falls.

docs/protocol.md, section 4: the file says `{floor, epoch}`, the epoch is the TPM's NV counter. To raise the floor the
file is written for epoch + 1, then the counter is incremented: an older copy of the file no longer fits. Where file
and counter do not fit, the floor is lost: updates are refused until the service tells the floor that it recorded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from device_agent.state import StateDamaged, private_folder, read_value, write_value
from device_agent.tpm.errors import CounterMissing
from ota import refusals
from wire.codec import Cap

STATE_MOST = 4096


class MonotonicCounter(Protocol):
    """A counter that outlives everything and only rises, by one."""

    def define(self) -> int:
        """Make it where there is none; its value."""
        ...

    def read(self) -> int:
        """Raises: CounterMissing."""
        ...

    def increment(self) -> None:
        """Raises: CounterMissing."""
        ...


@dataclass(frozen=True, slots=True)
class _Floor:
    floor: int
    epoch: int


@dataclass(frozen=True, slots=True)
class InstalledRelease:
    """The release that this device last committed to."""

    version: Annotated[str, Cap(64)]
    release_counter: int
    sha256: bytes


class ReleaseFloor:
    """The floor file and the counter that it fits."""

    def __init__(self, directory: Path, counter: MonotonicCounter) -> None:
        self._directory = directory
        self._path = directory / "release-floor.json"
        self._counter = counter

    def read(self) -> int:
        """The least release counter. A device that has neither file nor counter is new: its floor is 0.

        Power lost between making the counter and writing the file counts as lost: nothing tells it from a removed file.

        Raises: FloorLost.
        """
        try:
            kept = read_value(_Floor, self._path, STATE_MOST)
        except StateDamaged as error:
            raise refusals.FloorLost(actual=error) from error
        epoch = self._epoch()
        if kept is None and epoch is None:
            self._write(0, self._counter.define())
            return 0
        if kept is None or epoch is None or kept.epoch not in (epoch, epoch + 1):
            actual = "no file" if kept is None else f"epoch {kept.epoch}"
            raise refusals.FloorLost(expected="no counter" if epoch is None else f"epoch {epoch}", actual=actual)
        return kept.floor

    def raise_to(self, floor: int) -> None:
        """A release of this counter was committed. Raises: FloorLost."""
        if floor > self.read():
            self._advance(floor)

    def restore(self, recorded: int) -> bool:
        """The service tells what it recorded: where the own floor is lost, or lower, take it. Was there a change?

        The message that carries `recorded` is the service's own, signed: it can only raise an intact floor.
        """
        try:
            if self.read() >= recorded:
                return False
        except refusals.FloorLost:
            self._counter.define()
        self._advance(recorded)
        return True

    def _advance(self, floor: int) -> None:
        epoch = self._counter.read()
        self._write(floor, epoch + 1)
        self._counter.increment()

    def _epoch(self) -> int | None:
        try:
            return self._counter.read()
        except CounterMissing:
            return None

    def _write(self, floor: int, epoch: int) -> None:
        private_folder(self._directory)
        write_value(self._path, _Floor(floor, epoch))


def installed_release(directory: Path) -> InstalledRelease | None:
    """What was committed last, for reports; None on a device that never updated. Raises: StateDamaged."""
    return read_value(InstalledRelease, directory / "installed.json", STATE_MOST)


def record_installed(directory: Path, release: InstalledRelease) -> None:
    """Remember what was committed."""
    private_folder(directory)
    write_value(directory / "installed.json", release)
