"""What an update asks of two slots, whatever they are made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

TRIES = 3
"""How often a new release is booted before the boot loader falls back, at most."""


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """Which slot is the good one, which is being tried (if any) and how often still, and which one runs now."""

    active: str
    trying: str | None
    tries_left: int
    booted: str

    @property
    def on_trial(self) -> bool:
        """Does a release run that is not committed?"""
        return self.trying is not None and self.booted == self.trying


class SlotBackend(Protocol):
    """Two slots and a boot loader that counts tries. Power may fail in each of these calls: a slot still boots."""

    def status(self) -> SlotStatus:
        """Raises: SlotStateMalformed."""
        ...

    def write(self, image: Path) -> str:
        """Write the slot that neither runs nor is the way back, durably; its name.

        Raises: SlotBusy, NoSpace, SlotStateMalformed.
        """
        ...

    def digest(self, slot: str, length: int) -> bytes:
        """SHA-256 of the image of `length` bytes in the slot, read from the medium. Raises: SlotStateMalformed."""
        ...

    def activate(self, slot: str, tries: int) -> None:
        """Have the boot loader try this slot next. Raises: SlotBusy, SlotStateMalformed."""
        ...

    def commit(self) -> None:
        """Make the slot on trial the good one; nothing where it is already. Raises: SlotBusy, SlotStateMalformed."""
        ...

    def roll_back(self) -> None:
        """End a trial: the good slot boots next. Raises: SlotStateMalformed."""
        ...
