"""The agent's side of an update: what `device_agent.update` is given, and what becomes of its reports.

The update path is imported when it is used: most starts of an agent have no update to do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from device_agent import log
from device_agent.http import HttpFailure, NotFound, ServiceClient
from device_agent.presence import Presence
from device_agent.release_floor import ReleaseFloor, installed_release
from device_agent.slots.directory import DirectorySlots
from device_agent.state import StateDamaged
from device_agent.tpm import TpmFailure
from device_agent.trust import NotFoundAtSource
from ota.refusals import UpdateRefused
from ota.source import SourceUnavailable
from wire.messages import UpdateReport

if TYPE_CHECKING:
    from device_agent.update import Progress, UpdateContext

T = TypeVar("T")

TRIAL_SECONDS = 900.0
"""How long a release on trial may go without the service's word that its evidence is good."""
UPDATE_FAILURES = (UpdateRefused, SourceUnavailable, StateDamaged, TpmFailure, HttpFailure, OSError)
"""OSError: a full disk, and TLS (ssl.SSLError is one)."""


class Updates:
    """The updates of one device. `reboot_wanted` tells the agent to end."""

    def __init__(self, presence: Presence) -> None:
        self.reboot_wanted = False
        self._presence = presence
        self._device = presence.device
        self._directory = self._device.config.state_dir / "update"
        self._latest: Progress | None = None

    @cached_property
    def _floor(self) -> ReleaseFloor:
        from device_agent.tpm.counter import NvCounter

        return ReleaseFloor(self._directory, NvCounter(self._device.tpm))

    @property
    def is_on_trial(self) -> bool:
        """Is there a trial's file? Where the trial stands, `after_boot` says."""
        return (self._directory / "trial.json").exists()

    def release(self) -> tuple[str | None, int]:
        """The version and the counter of the release that was committed last."""
        try:
            installed = installed_release(self._directory)
        except StateDamaged as damage:
            log.warning("installed-release-unknown", reason=damage)
            installed = None
        return (None, 0) if installed is None else (installed.version, installed.release_counter)

    @property
    def is_begun(self) -> bool:
        """Is there a release that was assigned, and neither installed nor given up?"""
        return (self._directory / "offer.json").exists()

    def check(self) -> bool:
        """Look at the repositories now, and install what is new. True where it failed on the way: look again."""
        from device_agent.update import check

        failed = False
        with self._context() as context:
            for progress in check(context):
                self._report(progress)
                failed = progress.state == "failed"
        return failed

    def after_boot(self) -> None:
        """Where an update stands after this start; the report goes up with the next hello."""
        if self.is_on_trial:
            from device_agent.update import after_boot

            with self._context() as context:
                self._report(after_boot(context))

    def attested(self) -> None:
        """The service took the evidence of this boot: a release on trial is committed."""
        if self.is_on_trial:
            from device_agent.update import attested

            with self._context() as context:
                self._report(attested(context))

    def not_attested(self, reason: str) -> None:
        """The evidence was refused, or no answer came: a release on trial is given up."""
        if self.is_on_trial:
            from device_agent.update import not_attested

            with self._context() as context:
                self._report(not_attested(context, reason))

    def restore_floor(self, recorded: int) -> None:
        """The service says which floor it recorded. Raises: TpmFailure, UpdateRefused."""
        if self._floor.restore(recorded):
            log.event("release-floor-restored", floor=recorded)
            self.after_boot()

    def report_again(self) -> None:
        """Says the latest report of this start once more: the one before may have been lost with its line."""
        if self._latest is not None:
            self._say(self._latest)

    def _report(self, progress: "Progress | None") -> None:
        if progress is None:
            return
        log.event("update", state=progress.state, version=progress.version, detail=progress.detail)
        self._latest = progress
        self._say(progress)
        self.reboot_wanted = self.reboot_wanted or progress.reboot

    def _say(self, progress: "Progress") -> None:
        self._presence.send(
            UpdateReport,
            state=progress.state,
            version=progress.version,
            release_counter=progress.release_counter,
            detail=progress.detail,
        )

    @contextmanager
    def _context(self) -> "Iterator[UpdateContext]":
        from device_agent.update import UpdateContext

        device, presence = self._device, self._presence
        slots = device.config.slots
        if slots is None:
            raise StateDamaged(f"{device.config.data_dir}/agent.toml: names no slots: set slots to update this device")
        client = device.client(presence.trust, presence.pair)
        try:
            yield UpdateContext(
                state_dir=self._directory,
                device=presence.pair.details.device_id,
                hardware=device.config.hardware,
                slots=DirectorySlots(slots),
                trust=device.trust,
                fetch=lambda path, most: _from_source(path, lambda: client.get(f"/ota/{path}", most)),
                open_stream=lambda path, offset: _open_stream(client, path, offset),
                floor=self._floor,
                now=device.now,
                monotonic=device.host.monotonic,
            )
        finally:
            client.close()


def _from_source(path: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except NotFound as failure:
        raise NotFoundAtSource(path) from failure
    except HttpFailure as failure:
        raise SourceUnavailable(str(failure)) from failure


def _open_stream(client: ServiceClient, path: str, offset: int) -> tuple[int, Iterator[bytes]]:
    start, pieces = _from_source(path, lambda: client.stream(f"/ota/{path}", offset))

    def translated() -> Iterator[bytes]:
        try:
            yield from pieces
        except HttpFailure as failure:
            raise SourceUnavailable(str(failure)) from failure

    return start, translated()
