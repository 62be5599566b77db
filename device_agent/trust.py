"""What this device trusts: the anchor it came with, the trust bundle that the anchor leads to, and the time.

docs/protocol.md, section 0. There is no trust on first use: without an anchor nothing is trusted, and a service whose
trust repository the anchor's root did not sign is refused, whatever it serves. python-tuf is imported when it is used.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.state import StateDamaged, private_folder, read_value, write_value
from ota import refusals
from ota.files import read_at_most
from ota.refusals import UpdateRefused
from ota.source import Fetch
from ota.source import NotFoundAtSource as NotFoundAtSource  # noqa: PLC0414  re-exported: what `fetch` raises for a 404
from wire.codec import MalformedMessage, decode
from wire.messages import BUNDLE_MOST, BUNDLE_NAME, Anchor, TrustBundle

if TYPE_CHECKING:
    from ota.verify import VerifiedRepository, VerifiedTarget

ANCHOR_MOST = 128 * 1024
TIME_MOST = 1024
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trust:
    """A verified bundle, the version of the metadata that signed it, and when the first of its signatures expires."""

    bundle: TrustBundle
    metadata_version: int
    expires: datetime


def load_anchor(path: Path) -> Anchor:
    """The anchor that the image or the factory put there. Raises: AnchorUnusable."""
    data = read_at_most(path, ANCHOR_MOST)
    if data is None:
        raise refusals.AnchorUnusable(f"{path} does not exist")
    try:
        anchor = decode(Anchor, data, limit=ANCHOR_MOST)
    except MalformedMessage as error:
        raise refusals.AnchorUnusable(str(path), actual=error) from error
    if not anchor.service_name:
        raise refusals.AnchorUnusable(str(path), expected="a service name")
    return anchor


class TrustStore:
    """The trust repository as this device knows it: refreshed from a source, kept on disk, verified again when read."""

    def __init__(self, directory: Path, anchor: Anchor, fetch: Fetch, now: Callable[[], datetime]) -> None:
        """`fetch` takes paths such as `metadata/2.root.json` and the most bytes that are worth reading."""
        self._directory = directory
        self._anchor = anchor
        self._fetch = fetch
        self._now = now

    def current(self) -> Trust | None:
        """What is kept, verified again from the anchor at this time; None where that needs a `refresh` first.

        That is: nothing is kept, or it has expired, or the files were damaged. The last two are logged.
        """
        from ota.client import RepositoryClient  # late: python-tuf takes a quarter of a second

        client = RepositoryClient(self._directory, self._anchor.trust_root)
        try:
            stored = client.stored(self._now())
            if stored is None:
                return None
            repository, data = stored
            return self._trust(repository, _bundle_target(repository), data or b"")
        except UpdateRefused as refusal:
            _logger.warning("stored-trust-unusable reason=%s", refusal)
            return None

    def refresh(self) -> Trust:
        """Fetch, verify and keep what the trust repository says now.

        Not proven: that nothing newer exists (a source can hide it until what it shows expires).

        Raises: UpdateRefused by name (ThresholdNotMet where the service is not the anchor's), SourceUnavailable.
        """
        from ota.client import RepositoryClient  # late: python-tuf takes a quarter of a second
        from ota.verify import target_path

        client = RepositoryClient(self._directory, self._anchor.trust_root)
        repository = client.fetch_verified(self._fetch, self._now())
        target = _bundle_target(repository)
        try:
            data = self._fetch(target_path(target), target.length)
        except NotFoundAtSource as error:
            raise refusals.MetadataMissing(target.name) from error
        trust = self._trust(repository, target, data)
        client.keep(repository, data)
        return trust

    def _trust(self, repository: "VerifiedRepository", target: "VerifiedTarget", data: bytes) -> Trust:
        from ota.verify import verify_target_bytes

        try:
            # Unknown fields are for newer agents: the same bundle serves every agent of the fleet.
            verified = verify_target_bytes(target, data)
            bundle = decode(TrustBundle, verified, limit=BUNDLE_MOST, ignore_unknown=True)
        except MalformedMessage as error:
            raise refusals.BundleMalformed(actual=error) from error
        if bundle.service_name != self._anchor.service_name:
            raise refusals.ServiceNotTheAnchors(expected=self._anchor.service_name, actual=bundle.service_name)
        return Trust(bundle, repository.floor.targets, repository.expires)


def _bundle_target(repository: "VerifiedRepository") -> "VerifiedTarget":
    target = repository.targets.get(BUNDLE_NAME)
    if target is None:
        raise refusals.UnknownTarget(BUNDLE_NAME)
    if target.length > BUNDLE_MOST:
        raise refusals.LengthWrong(BUNDLE_NAME, expected=f"at most {BUNDLE_MOST}", actual=target.length)
    return target


@dataclass(frozen=True, slots=True)
class _TimeFloor:
    floor: datetime


class TrustedTime:
    """The later of the system's clock and a floor that only rises: an unset clock weakens nothing.

    The floor is the image's build time, then the last signed time that was seen; it outlives a restart.
    """

    def __init__(self, state_dir: Path, build_time: datetime, system_clock: Callable[[], datetime]) -> None:
        self._path = state_dir / "time.json"
        self._clock = system_clock
        self._floor = max(build_time, self._stored() or build_time)

    def now(self) -> datetime:
        """Not before this moment. It may be later: a clock that is set ahead makes signatures expire early."""
        return max(self._clock(), self._floor)

    def raise_to(self, moment: datetime) -> None:
        """A signed time was seen. Earlier ones than the floor change nothing."""
        if moment > self._floor:
            private_folder(self._path.parent)
            write_value(self._path, _TimeFloor(moment))
            self._floor = moment

    def _stored(self) -> datetime | None:
        try:
            kept = read_value(_TimeFloor, self._path, TIME_MOST)
        except StateDamaged as error:  # back to the build time; the next signed time raises it again
            _logger.warning("time-floor-damaged reason=%s", error)
            return None
        return None if kept is None else kept.floor
