"""Two slots in a folder: `a/image.bin`, `b/image.bin`, `boot.json` (active, trying, tries_left) and `booted`.

The boot loader reads `boot.json`, counts a try before it starts the slot being tried, and writes `booted`. Each change
here replaces one whole file; the slot that runs, and the one to fall back to, are never written.
"""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device_agent.slots.backend import SlotStatus
from device_agent.state import atomic_write, private_folder, sync_folder
from ota import refusals
from ota.files import read_at_most
from wire.codec import MalformedMessage, decode

STATE_MOST = 1024
_PIECE = 1024 * 1024
_SPARE = 64 * 1024
"""Bytes that stay free beside an image, for the state files that the next steps write."""

Slot = Literal["a", "b"]
_OTHER: dict[str, str] = {"a": "b", "b": "a"}


@dataclass(frozen=True, slots=True)
class _Boot:
    active: Slot
    tries_left: int
    trying: Slot | None = None


class DirectorySlots:
    """The slots of a device whose boot loader reads image files: virtual devices, and boards that boot from files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def status(self) -> SlotStatus:
        """Raises: SlotStateMalformed."""
        boot = self._boot()
        data = read_at_most(self._folder / "booted", STATE_MOST)
        booted = (data or b"").decode("ascii", "replace").strip()
        if booted not in _OTHER:
            raise refusals.SlotStateMalformed(str(self._folder / "booted"), expected="a or b", actual=booted)
        return SlotStatus(boot.active, boot.trying, boot.tries_left, booted)

    def write(self, image: Path) -> str:
        """Copy the image into the slot that neither runs nor is the way back. Raises: SlotBusy, NoSpace."""
        status = self.status()
        if status.booted != status.active:
            raise refusals.SlotBusy(expected=f"slot {status.active} runs", actual=f"slot {status.booted} runs")
        if status.trying is not None:  # a trial that has ended: the boot loader must not start what is half written
            self._set(status.active, None, 0)
        slot = _OTHER[status.active]
        target = self._folder / slot / "image.bin"
        private_folder(target.parent)
        needed, free = image.stat().st_size + _SPARE, shutil.disk_usage(target.parent).free
        if free < needed:
            raise refusals.NoSpace(f"slot {slot}", expected=f"{needed} bytes", actual=f"{free} bytes")
        _copy(image, target)
        return slot

    def digest(self, slot: str, length: int) -> bytes:
        """SHA-256 of the slot's image, read from the medium, not from memory (where the kernel can be told).

        The image is the whole file: of a longer one a byte more is hashed, which gives another digest.
        """
        hasher = hashlib.sha256()
        left = length + 1
        try:
            with (self._folder / slot / "image.bin").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while piece := file.read(min(_PIECE, left)):
                    hasher.update(piece)
                    left -= len(piece)
        except OSError as error:
            raise refusals.SlotStateMalformed(f"slot {slot}", actual=error) from error
        return hasher.digest()

    def activate(self, slot: str, tries: int) -> None:
        """Have the boot loader try this slot next. Raises: SlotBusy, SlotStateMalformed."""
        status = self.status()
        if slot == status.active or status.booted != status.active:
            raise refusals.SlotBusy(expected="the other slot, while the good one runs", actual=slot)
        self._set(status.active, slot, tries)

    def commit(self) -> None:
        """Make the slot on trial the good one; nothing where it is already. Raises: SlotBusy, SlotStateMalformed."""
        status = self.status()
        if status.trying is None and status.booted == status.active:
            return
        if not status.on_trial:
            raise refusals.SlotBusy(expected=f"slot {status.trying} runs", actual=f"slot {status.booted} runs")
        self._set(status.booted, None, 0)

    def roll_back(self) -> None:
        """End a trial: the good slot boots next. Raises: SlotStateMalformed."""
        boot = self._boot()
        if boot.trying is not None:
            self._set(boot.active, None, 0)

    def _boot(self) -> _Boot:
        path = self._folder / "boot.json"
        data = read_at_most(path, STATE_MOST)
        if data is None:
            raise refusals.SlotStateMalformed(f"{path} does not exist")
        try:
            return decode(_Boot, data, limit=STATE_MOST)
        except MalformedMessage as error:
            raise refusals.SlotStateMalformed(str(path), actual=error) from error

    def _set(self, active: str, trying: str | None, tries_left: int) -> None:
        content = {"active": active, "trying": trying, "tries_left": tries_left}
        atomic_write(self._folder / "boot.json", json.dumps(content, sort_keys=True).encode())


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all: written beside, flushed, renamed."""
    beside = target.with_name(target.name + ".partial")
    try:
        with source.open("rb") as reader, beside.open("wb") as writer:
            os.fchmod(writer.fileno(), 0o600)
            while piece := reader.read(_PIECE):
                writer.write(piece)
            writer.flush()
            os.fsync(writer.fileno())
        beside.rename(target)
    except OSError as error:
        beside.unlink(missing_ok=True)  # nothing half-written stays
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise refusals.NoSpace(str(target), actual=error.strerror or "less") from error
        raise
    sync_folder(target.parent)
