"""What a ceremony that is not at its end leaves: a journal while it works, a note while it waits for an outside CA."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from ota.files import read_at_most, replace_file
from provisioning.app.ceremony_answers import Answers
from provisioning.app.ceremony_transcript import KeyRecord
from provisioning.config import ConfigurationRefused
from wire.codec import MalformedMessage, decode, encode

JOURNAL, WAITING = "journal.json", "waiting.json"
STATE_MOST = 256 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Journal:
    """Keys that a ceremony is about to make in tokens that were there before it: `label of token/label of key`."""

    answers: Answers
    started_at: datetime
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The keys are made; an outside CA is to sign the issuing CA."""

    answers: Answers
    started_at: datetime
    commands: tuple[str, ...]
    keys: tuple[KeyRecord, ...]


def write_state(folder: Path, state: Journal | Waiting) -> None:
    """Put it into the folder `ceremony`, for this user alone."""
    name = JOURNAL if isinstance(state, Journal) else WAITING
    replace_file(folder / name, encode(state), mode=0o600)


def read_journal(folder: Path) -> Journal | None:
    """The journal of a ceremony that works, or was killed. Raises: ConfigurationRefused, where it is damaged."""
    return _read(Journal, folder / JOURNAL)


def read_waiting(folder: Path) -> Waiting | None:
    """The note of a ceremony that waits. Raises: ConfigurationRefused, where it is damaged."""
    return _read(Waiting, folder / WAITING)


def _read(kind: type[T], file: Path) -> T | None:
    data = read_at_most(file, STATE_MOST)
    if data is None:
        return None
    try:
        return decode(kind, data, limit=STATE_MOST)
    except MalformedMessage as error:
        msg = f"{file}: is damaged ({error}); it names keys that a ceremony made: restore it, or remove them by hand"
        raise ConfigurationRefused(msg) from error
