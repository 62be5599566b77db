"""An update, from "look now" to committed (docs/protocol.md, section 4). Imported when it is used.

`check` runs up to the reboot; `after_boot` says where the device stands after one; `attested` commits. Between them
lies one file, the trial: written before the slot is activated, removed after the floor was raised. What the trial's
file and the slots say together is the device's position, and `_AFTER_BOOT` is the table of what follows from each.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, TypeVar

from device_agent.release_floor import InstalledRelease, ReleaseFloor, record_installed
from device_agent.slots.backend import TRIES, SlotBackend, SlotStatus
from device_agent.state import StateDamaged, private_folder, read_value, remove, write_value
from device_agent.trust import TrustStore
from ota import refusals
from ota.client import RepositoryClient
from ota.download import Expected, Pace, download
from ota.refusals import UpdateRefused
from ota.release import AssignmentName, Release, assigned_claims, assignment_of, image_of, verify_release
from ota.source import Fetch, NotFoundAtSource, SourceUnavailable
from ota.verify import VerifiedTarget, target_path
from wire.codec import Cap
from wire.messages import TrustBundle, UpdateState

STATE_MOST = 8192
DETAIL_MOST = 500
REBOOTS_MOST = 3
"""How often a reboot is asked for that does not try the new slot."""
_logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the update to `version` stands: an update report. With `reboot` the agent exits, asking for a reboot."""

    state: UpdateState
    version: str
    release_counter: int
    detail: str | None = None
    reboot: bool = False


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """What an update is given. `state_dir` is a folder of its own (`A/state/update`).

    `fetch` and `open_stream` take paths below `/ota/` on the device listener (`image/metadata/timestamp.json`,
    `director/metadata/2.root.json`, `image/targets/…`) and speak with the device's certificate. They raise
    NotFoundAtSource for a 404 and SourceUnavailable for any other trouble, `open_stream`'s pieces too.
    """

    state_dir: Path
    device: str
    hardware: str
    slots: SlotBackend
    trust: TrustStore
    fetch: Fetch
    open_stream: Callable[[str, int], tuple[int, Iterator[bytes]]]
    floor: ReleaseFloor
    now: Callable[[], datetime]
    pace: Pace = field(default_factory=Pace)
    monotonic: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


# --- what outlives a reboot -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Offer:
    """A release that the Director assigned: being worked on, or (in another file) given up."""

    version: Annotated[str, Cap(64)]
    release_counter: int
    sha256: bytes
    assignment: AssignmentName | None = None


@dataclass(frozen=True, slots=True)
class _Trial:
    """The release that is to be booted, or was."""

    slot: Annotated[str, Cap(16)]
    reboots: int
    version: Annotated[str, Cap(64)]
    release_counter: int
    sha256: bytes
    assignment: AssignmentName | None = None

    @property
    def offer(self) -> _Offer:
        return _Offer(self.version, self.release_counter, self.sha256, self.assignment)


class Position(Enum):
    """Where trial file and slots say that the device is."""

    IDLE = auto()
    """No trial."""
    NOT_ACTIVATED = auto()
    """Power was lost before the slot was activated."""
    NOT_BOOTED = auto()
    """Activated; no boot has tried it yet."""
    ON_TRIAL = auto()
    """The new release runs, not committed."""
    FELL_BACK = auto()
    """The tries are used up: the old release runs."""
    COMMITTED = auto()
    """The slot is committed; the floor may not be raised yet."""


def position(trial: _Trial | None, slots: SlotStatus) -> Position:
    """The position, by what is on disk alone."""
    if trial is None:
        return Position.IDLE
    if slots.trying == trial.slot:
        if slots.booted == trial.slot:
            return Position.ON_TRIAL
        return Position.NOT_BOOTED if slots.tries_left == TRIES else Position.FELL_BACK
    return Position.COMMITTED if slots.active == slots.booted == trial.slot else Position.NOT_ACTIVATED


# --- before the reboot ------------------------------------------------------------------------------------------------


def check(context: UpdateContext) -> Iterator[Progress]:
    """Look now: what the Director assigns is verified, fetched, installed and activated. The last may ask for a reboot.

    Nothing comes where there is nothing new. Raises: SourceUnavailable, before a release is known; SlotStateMalformed.
    """
    if position(_trial(context), context.slots.status()) is not Position.IDLE:
        outcome = after_boot(context)
        if outcome is not None:
            yield outcome
        return
    try:
        bundle = context.trust.refresh().bundle
        assigned = _assigned(context, bundle)
        offer = None if assigned is None else _offer(assigned)
        is_new = assigned is not None and _is_new(context, assigned)
    except UpdateRefused as refusal:
        yield Progress("refused", "unknown", 0, str(refusal)[:DETAIL_MOST])
        return
    except OSError as error:  # a full or broken disk
        yield Progress("failed", "unknown", 0, str(error)[:DETAIL_MOST])
        return
    yield from _superseded(context, offer)
    if offer is None:
        remove(context.state_dir / "given-up.json")
    if assigned is None or offer is None or not is_new or offer == _read(_Offer, context.state_dir / "given-up.json"):
        return
    private_folder(context.state_dir)
    write_value(context.state_dir / "offer.json", offer)
    yield from _pursue(context, bundle, assigned, offer)


def _pursue(context: UpdateContext, bundle: TrustBundle, assigned: VerifiedTarget, offer: _Offer) -> Iterator[Progress]:
    """One assigned release, step by step. Metadata and bytes that are wrong are refused; trouble on the way fails."""

    def at(state: UpdateState, detail: str | None = None, *, reboot: bool = False) -> Progress:
        return Progress(state, offer.version, offer.release_counter, detail and detail[:DETAIL_MOST], reboot)

    failures = (
        *(refusals.TooSlow, refusals.DownloadBroken, refusals.NoSpace),
        *(refusals.SlotDamaged, refusals.SlotBusy, refusals.SlotStateMalformed),
    )
    try:
        yield at("notified")
        yield at("verifying")
        release, image = _release(context, bundle, assigned)
        yield at("downloading")
        path = _download(context, release, image)
        yield at("verified")
        yield at("installing")
        slot = _install(context, release, path)
        _activate(context, offer, slot)
    except (*failures, OSError) as failure:
        yield at("failed", str(failure))
    except UpdateRefused as refusal:
        yield at("refused", str(refusal))
    except (SourceUnavailable, NotFoundAtSource) as failure:
        yield at("failed", f"the source is out of reach: {failure}")
    else:
        yield at("rebooting", reboot=True)


def _assigned(context: UpdateContext, bundle: TrustBundle) -> VerifiedTarget | None:
    if bundle.director_root is None:
        raise refusals.RepositoryNotTrusted("Director")
    client = RepositoryClient(context.state_dir / "director", bundle.director_root)
    repository = client.fetch_verified(_below(context.fetch, "director"), context.now())
    assigned = assignment_of(repository, context.device)
    client.keep(repository)  # not before: another device's metadata must not raise what this one demands
    return assigned


def _offer(assigned: VerifiedTarget) -> _Offer:
    claims = assigned_claims(assigned)
    return _Offer(claims.version, claims.release_counter, assigned.sha256, claims.assignment)


def _is_new(context: UpdateContext, assigned: VerifiedTarget) -> bool:
    """Is it something else than what runs? The slot is asked, for a record would outlive a re-flashed device."""
    return context.slots.digest(context.slots.status().booted, assigned.length) != assigned.sha256


def _superseded(context: UpdateContext, offer: _Offer | None) -> Iterator[Progress]:
    """A release that was begun and is not assigned any more: said, and its bytes removed."""
    path = context.state_dir / "offer.json"
    begun = _read(_Offer, path)
    if begun is None or (offer is not None and begun.sha256 == offer.sha256):
        return
    _drop_downloads(context)
    remove(path)
    yield Progress("superseded", begun.version, begun.release_counter)


def _release(context: UpdateContext, bundle: TrustBundle, assigned: VerifiedTarget) -> tuple[Release, VerifiedTarget]:
    if bundle.image_root is None:
        raise refusals.RepositoryNotTrusted("image repository")
    client = RepositoryClient(context.state_dir / "image", bundle.image_root)
    images = client.fetch_verified(_below(context.fetch, "image"), context.now())
    client.keep(images)
    image = image_of(images, assigned)
    return verify_release(image, assigned, hardware=context.hardware, floor=context.floor.read()), image


def _download(context: UpdateContext, release: Release, image: VerifiedTarget) -> Path:
    folder = context.state_dir / "downloads"
    private_folder(folder)
    destination = folder / release.sha256.hex()
    part = destination.with_name(destination.name + ".part")
    have = sum(path.stat().st_size for path in (destination, part) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < release.length - have:
        raise refusals.NoSpace("downloads", expected=f"{release.length - have} bytes", actual=f"{free} bytes")
    url = f"image/{target_path(image)}"
    expected = Expected(release.name, release.length, release.sha256)
    download(
        lambda offset: context.open_stream(url, offset),
        destination,
        expected,
        pace=context.pace,
        monotonic=context.monotonic,
        pause=context.pause,
    )
    return destination


def _install(context: UpdateContext, release: Release, image: Path) -> str:
    """Write the slot, then believe only what is read back from it."""
    slot = context.slots.write(image)
    actual = context.slots.digest(slot, release.length)
    if actual != release.sha256:
        raise refusals.SlotDamaged(f"slot {slot}", expected=release.sha256, actual=actual)
    return slot


def _activate(context: UpdateContext, offer: _Offer, slot: str) -> None:
    trial = _Trial(slot, 1, offer.version, offer.release_counter, offer.sha256, offer.assignment)
    write_value(context.state_dir / "trial.json", trial)
    context.slots.activate(slot, TRIES)
    remove(context.state_dir / "offer.json")
    _drop_downloads(context)


# --- after the reboot -------------------------------------------------------------------------------------------------


def after_boot(context: UpdateContext) -> Progress | None:
    """Where the device stands now that the agent runs (again); None without an update under way. May be repeated.

    Raises: SlotStateMalformed.
    """
    trial = _trial(context)
    if trial is None:
        return None
    return _AFTER_BOOT[position(trial, context.slots.status())](context, trial)


def attested(context: UpdateContext) -> Progress | None:
    """The service found this boot's evidence good: commit the release on trial, then raise the floor.

    None where no release is on trial. Raises: SlotStateMalformed.
    """
    trial = _trial(context)
    if trial is None or position(trial, context.slots.status()) is not Position.ON_TRIAL:
        return None
    context.slots.commit()
    return _finish(context, trial)


def not_attested(context: UpdateContext, reason: str) -> Progress | None:
    """The evidence was refused, or no answer came in the time given: back to the old slot. None without a trial."""
    trial = _trial(context)
    if trial is None or position(trial, context.slots.status()) is not Position.ON_TRIAL:
        return None
    _give_up(context, trial)
    return _progress("rolled_back", trial, reason, reboot=True)


def _health_check(_context: UpdateContext, trial: _Trial) -> Progress:
    return _progress("health_check", trial)


def _reboot_again(context: UpdateContext, trial: _Trial) -> Progress:
    if trial.reboots >= REBOOTS_MOST:
        _give_up(context, trial)
        return _progress("failed", trial, "the boot loader did not try the new slot")
    write_value(context.state_dir / "trial.json", replace(trial, reboots=trial.reboots + 1))
    return _progress("rebooting", trial, reboot=True)


def _fell_back(context: UpdateContext, trial: _Trial) -> Progress:
    _give_up(context, trial)
    return _progress("rolled_back", trial, "the boot loader fell back: the new release did not come to be committed")


def _not_activated(context: UpdateContext, trial: _Trial) -> Progress:
    remove(context.state_dir / "trial.json")
    return _progress("failed", trial, "interrupted before the slot was activated; it will be tried again")


def _finish(context: UpdateContext, trial: _Trial) -> Progress:
    """Everything after the commit, which a power cut may have kept from happening; each step can be repeated."""
    try:
        context.floor.raise_to(trial.release_counter)
    except refusals.FloorLost as lost:  # not the end: the service restores the floor, and this is run again
        return _progress("health_check", trial, str(lost))
    record_installed(context.state_dir, InstalledRelease(trial.version, trial.release_counter, trial.sha256))
    remove(context.state_dir / "given-up.json")
    remove(context.state_dir / "trial.json")
    return _progress("committed", trial)


def _give_up(context: UpdateContext, trial: _Trial) -> None:
    """Back to the old slot, and not again under this assignment: a device must not try the same thing for ever."""
    write_value(context.state_dir / "given-up.json", trial.offer)
    context.slots.roll_back()
    remove(context.state_dir / "trial.json")


_AFTER_BOOT: dict[Position, Callable[[UpdateContext, _Trial], Progress]] = {
    Position.NOT_ACTIVATED: _not_activated,
    Position.NOT_BOOTED: _reboot_again,
    Position.ON_TRIAL: _health_check,
    Position.FELL_BACK: _fell_back,
    Position.COMMITTED: _finish,
}


def _progress(state: UpdateState, trial: _Trial, detail: str | None = None, *, reboot: bool = False) -> Progress:
    return Progress(state, trial.version, trial.release_counter, detail and detail[:DETAIL_MOST], reboot)


# --- files and sources ------------------------------------------------------------------------------------------------


def _trial(context: UpdateContext) -> _Trial | None:
    return _read(_Trial, context.state_dir / "trial.json")


def _read(cls: type[T], path: Path) -> T | None:
    """A file of this module. A damaged one counts as absent: each of them can be done without, and no update is stuck.

    Without the trial's file a release on trial is not committed, and the boot loader falls back.
    """
    try:
        return read_value(cls, path, STATE_MOST)
    except StateDamaged as error:
        _logger.warning("update-state-damaged reason=%s", error)
        return None


def _drop_downloads(context: UpdateContext) -> None:
    folder = context.state_dir / "downloads"
    if folder.exists():
        shutil.rmtree(folder)


def _below(fetch: Fetch, repository: str) -> Fetch:
    return lambda path, most: fetch(f"{repository}/{path}", most)
