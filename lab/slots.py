"""The virtual boot loader: which of two directory slots boots next, with a boot counter.

The contract with the agent's directory slots, all in one folder: `a/image.bin`, `b/image.bin`; `boot.json`
`{"active": "a"|"b", "trying": null|"a"|"b", "tries_left": 0..3}`, replaced as a whole; `booted`, the slot that the boot
loader started. The agent tries an update by setting `trying` and `tries_left`, and commits it by setting `active` to
it and `trying` to null. Power may fail at any moment.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lab import LabFailure
from ota.firmware import IMAGE_MAX_BYTES, FirmwareImage, MalformedImage, parse_image

SLOTS = ("a", "b")
TRIES_MAX = 3
_STATE_MAX_BYTES = 1024


class BootFailure(LabFailure):
    """The boot loader finds nothing to boot; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class BootState:
    """`boot.json`."""

    active: str
    trying: str | None
    tries_left: int


@dataclass(frozen=True, slots=True)
class Boot:
    """What the boot loader chose: the slot, its image, and whether this is a try that nobody has committed yet."""

    slot: str
    image: FirmwareImage
    is_trial: bool


def create_slots(folder: Path, image: bytes) -> None:
    """Two slots with the same image, `a` active, as a factory delivers them."""
    for slot in SLOTS:
        (folder / slot).mkdir(mode=0o700, parents=True)
        _replace(folder / slot / "image.bin", image)
    write_state(folder, BootState(active="a", trying=None, tries_left=0))


def choose_boot(folder: Path) -> Boot:
    """Boot the slot being tried while tries are left (each try is counted before it starts), else the active one.

    An image that cannot be parsed does not start: its tries are used up, as a hanging one's would be.

    Raises: BootFailure (boot.json or the active image is unusable).
    """
    state = read_state(folder)
    trial = state.trying
    while trial is not None and state.tries_left > 0:
        state = BootState(state.active, trial, state.tries_left - 1)
        write_state(folder, state)
        try:
            image = _image(folder, trial)
        except BootFailure:
            continue
        return _booted(folder, Boot(trial, image, is_trial=True))
    return _booted(folder, Boot(state.active, _image(folder, state.active), is_trial=False))


def read_state(folder: Path) -> BootState:
    """Raises: BootFailure."""
    path = folder / "boot.json"
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_STATE_MAX_BYTES))
    except (OSError, ValueError) as failure:
        raise BootFailure(f"{path}: {failure}") from failure
    if not isinstance(found, dict) or found.keys() != {"active", "trying", "tries_left"}:
        raise BootFailure(f"{path}: must have active, trying, tries_left and nothing else")
    active, trying, tries_left = found["active"], found["trying"], found["tries_left"]
    if active not in SLOTS or trying not in (None, *SLOTS):
        raise BootFailure(f"{path}: a slot is a or b")
    if type(tries_left) is not int or not 0 <= tries_left <= TRIES_MAX:
        raise BootFailure(f"{path}: tries_left is not between 0 and {TRIES_MAX}")
    return BootState(active, trying, tries_left)


def write_state(folder: Path, state: BootState) -> None:
    """Replace `boot.json` so that a power cut leaves the old one or the new one."""
    content = {"active": state.active, "trying": state.trying, "tries_left": state.tries_left}
    _replace(folder / "boot.json", json.dumps(content).encode())


def _booted(folder: Path, boot: Boot) -> Boot:
    _replace(folder / "booted", boot.slot.encode())
    return boot


def _image(folder: Path, slot: str) -> FirmwareImage:
    path = folder / slot / "image.bin"
    try:
        with path.open("rb") as file:
            return parse_image(file.read(IMAGE_MAX_BYTES + 1))
    except (OSError, MalformedImage) as failure:
        raise BootFailure(f"{path}: {failure}") from failure


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
