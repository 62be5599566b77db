"""The virtual firmware image: its format, and the PCR values and event log that booting it yields.

Pure. The publisher predicts with it, the virtual device boots with it; both use `_events`, the one list of what a boot
measures. Structures follow the TCG PC Client Platform Firmware Profile (PFP) 1.05: crypto-agile log, SHA-256
only.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

MAGIC = b"MUSTERF1"
IMAGE_MAX_BYTES = 64 * 1024 * 1024
STAGE_MAX_BYTES = 32 * 1024 * 1024
STAGES_MAX = 16
COUNTER_MAX = 2**63 - 1
PCR_BYTES = 32
STATIC_PCRS = range(16)  # PFP: PCRs 0-15 start at zero and only a TPM reset resets them

EV_POST_CODE = 0x00000001
EV_NO_ACTION = 0x00000003
EV_SEPARATOR = 0x00000004
EV_S_CRTM_VERSION = 0x00000008
EV_IPL = 0x0000000D
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003

FIRMWARE_PCRS = frozenset({0, 2})  # measured before control passes to the boot loader
BOOT_PCRS = frozenset({4, 8, 9, 12, 14})  # measured after it; where a PC's boot loader measures
BOOT_LOADER_PCR = 4
RELEASE_PCR = 8  # where the boot loader measures what the image calls itself

_SEPARATED_PCRS = range(8)  # PFP: a separator in each of PCRs 0-7
_SEPARATOR = bytes(4)
_ALG_SHA256 = 0x000B
_HARDWARE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}")
_STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


class MalformedImage(ValueError):
    """These bytes (or values) are no firmware image; the message says which field is wrong."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of code of a boot, and the PCR that it is measured into before it runs."""

    name: str
    pcr: int
    content: bytes


@dataclass(frozen=True, slots=True)
class FirmwareImage:
    """A parsed image. Says nothing about who made it: images carry no signature, releases do."""

    hardware: str
    version: str
    release_counter: int
    stages: tuple[Stage, ...]


class MeasuredEvent(NamedTuple):
    """One extend: `digest` (32 bytes, SHA-256) goes into `pcr`; `description` says what was measured."""

    pcr: int
    event_type: int
    digest: bytes
    description: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a boot shows: the extends in their order, and the SHA-256 values of PCRs 0-15 after them."""

    events: tuple[MeasuredEvent, ...]
    pcrs: dict[int, bytes]


def build_image(image: FirmwareImage) -> bytes:
    """The bytes of an image; `parse_image` gives back an equal one. Raises: MalformedImage."""
    _verify_limits(image)
    parts = [MAGIC, _short(image.hardware), _short(image.version)]
    parts.append(struct.pack(">QB", image.release_counter, len(image.stages)))
    for stage in image.stages:
        parts += [_short(stage.name), struct.pack(">BI", stage.pcr, len(stage.content)), stage.content]
    return b"".join(parts)


def parse_image(data: bytes) -> FirmwareImage:
    """Bytes to a typed image, every length checked, nothing left over. Not authenticated. Raises: MalformedImage."""
    if len(data) > IMAGE_MAX_BYTES:
        raise MalformedImage(f"image has {len(data)} bytes, at most {IMAGE_MAX_BYTES} are allowed")
    reader = _Reader(data)
    if reader.take(len(MAGIC), "magic") != MAGIC:
        raise MalformedImage("magic is not that of a firmware image")
    hardware = reader.text("hardware")
    version = reader.text("version")
    release_counter = reader.number(8, "release counter")
    count = reader.number(1, "number of stages")
    if count > STAGES_MAX:
        raise MalformedImage(f"image has {count} stages, at most {STAGES_MAX} are allowed")
    stages = tuple(_stage(reader) for _ in range(count))
    reader.end()
    image = FirmwareImage(hardware, version, release_counter, stages)
    _verify_limits(image)
    return image


def measure(image: FirmwareImage) -> Measurement:
    """The extends and the PCR values that booting this image from a TPM reset yields.

    Does not prove that anything booted it: that is the quote's work. Raises: MalformedImage.
    """
    _verify_limits(image)
    events = tuple(_events(image))
    pcrs = {pcr: bytes(PCR_BYTES) for pcr in STATIC_PCRS}
    for event in events:
        pcrs[event.pcr] = hashlib.sha256(pcrs[event.pcr] + event.digest).digest()
    return Measurement(events, pcrs)


def event_log(image: FirmwareImage) -> bytes:
    """The log of that boot as a TCG crypto-agile event log. Raises: MalformedImage."""
    return _spec_id_event() + b"".join(_pcr_event2(event) for event in measure(image).events)


def _events(image: FirmwareImage) -> Iterator[MeasuredEvent]:
    """What a boot measures, in its order (PFP): firmware, separators, then what is loaded."""
    yield _self_describing(0, EV_S_CRTM_VERSION, image.hardware)
    for stage in image.stages:
        if stage.pcr in FIRMWARE_PCRS:
            yield MeasuredEvent(stage.pcr, EV_POST_CODE, hashlib.sha256(stage.content).digest(), stage.name)
    for pcr in _SEPARATED_PCRS:
        yield _self_describing(pcr, EV_SEPARATOR, "separator")
    release = f"release {image.hardware} {image.version} {image.release_counter}"
    # As GRUB measures strings: the digest leaves out the NUL that ends the logged one.
    yield MeasuredEvent(RELEASE_PCR, EV_IPL, hashlib.sha256(release.encode("ascii")).digest(), release)
    for stage in image.stages:
        if stage.pcr in BOOT_PCRS:
            event_type = EV_EFI_BOOT_SERVICES_APPLICATION if stage.pcr == BOOT_LOADER_PCR else EV_IPL
            yield MeasuredEvent(stage.pcr, event_type, hashlib.sha256(stage.content).digest(), stage.name)


def _self_describing(pcr: int, event_type: int, description: str) -> MeasuredEvent:
    """An event whose digest is that of its own data."""
    digest = hashlib.sha256(_event_data(event_type, description)).digest()
    return MeasuredEvent(pcr, event_type, digest, description)


def _event_data(event_type: int, description: str) -> bytes:
    if event_type == EV_SEPARATOR:
        return _SEPARATOR
    if event_type == EV_S_CRTM_VERSION:  # PFP: a NUL-terminated UCS-2 string
        return description.encode("utf-16-le") + bytes(2)
    if event_type == EV_EFI_BOOT_SERVICES_APPLICATION:
        return _image_load_event(description)
    if event_type == EV_IPL:  # as GRUB writes it: a NUL-terminated string
        return description.encode("ascii") + bytes(1)
    return description.encode("ascii")


def _image_load_event(file_name: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT: no address of this virtual boot is real, so they are zero; the path names the file."""
    path = f"\\EFI\\BOOT\\{file_name}".encode("utf-16-le") + bytes(2)
    device_path = struct.pack("<BBH", 4, 4, 4 + len(path)) + path + struct.pack("<BBH", 0x7F, 0xFF, 4)
    return struct.pack("<QQQQ", 0, 0, 0, len(device_path)) + device_path


def _spec_id_event() -> bytes:
    """The first event, in the old SHA-1 form: names the log's digest algorithms."""
    platform_class, minor, major, errata, uintn_size = 0, 0, 2, 105, 2
    spec_id = b"Spec ID Event03\0" + struct.pack("<IBBBB", platform_class, minor, major, errata, uintn_size)
    spec_id += struct.pack("<IHHB", 1, _ALG_SHA256, PCR_BYTES, 0)
    return struct.pack("<II20sI", 0, EV_NO_ACTION, bytes(20), len(spec_id)) + spec_id


def _pcr_event2(event: MeasuredEvent) -> bytes:
    """TCG_PCR_EVENT2 with one digest."""
    data = _event_data(event.event_type, event.description)
    header = struct.pack("<IIIH", event.pcr, event.event_type, 1, _ALG_SHA256)
    return header + event.digest + struct.pack("<I", len(data)) + data


def _verify_limits(image: FirmwareImage) -> None:
    if _HARDWARE.fullmatch(image.hardware) is None:
        raise MalformedImage("hardware is not a lower-case name of at most 63 characters")
    if _VERSION.fullmatch(image.version) is None:
        raise MalformedImage("version is not of at most 32 letters, digits and . + _ -")
    if not 0 <= image.release_counter <= COUNTER_MAX:
        raise MalformedImage("release counter is out of range")
    if not 1 <= len(image.stages) <= STAGES_MAX:
        raise MalformedImage(f"image has {len(image.stages)} stages, between 1 and {STAGES_MAX} are allowed")
    for stage in image.stages:
        if _STAGE_NAME.fullmatch(stage.name) is None:
            raise MalformedImage("stage name is not a lower-case name of at most 32 characters")
        if stage.pcr not in FIRMWARE_PCRS | BOOT_PCRS:
            raise MalformedImage(f"stage {stage.name} is measured into PCR {stage.pcr}, which is not for stages")
        if len(stage.content) > STAGE_MAX_BYTES:
            raise MalformedImage(f"stage {stage.name} has more than {STAGE_MAX_BYTES} bytes")
    if len({stage.name for stage in image.stages}) != len(image.stages):
        raise MalformedImage("two stages have the same name")
    if sum(len(stage.content) for stage in image.stages) > IMAGE_MAX_BYTES - 4096:
        raise MalformedImage(f"image would have more than {IMAGE_MAX_BYTES} bytes")


def _short(text: str) -> bytes:
    encoded = text.encode("ascii")
    return struct.pack(">B", len(encoded)) + encoded


def _stage(reader: "_Reader") -> Stage:
    name = reader.text("stage name")
    pcr = reader.number(1, "PCR")
    size = reader.number(4, "stage size")
    if size > STAGE_MAX_BYTES:
        raise MalformedImage(f"stage {name!r} claims {size} bytes, at most {STAGE_MAX_BYTES} are allowed")
    return Stage(name, pcr, reader.take(size, f"content of stage {name!r}"))


class _Reader:
    """A cursor that refuses to read past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int, field: str) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise MalformedImage(f"image ends inside {field}")
        self._at += size
        return piece

    def number(self, size: int, field: str) -> int:
        return int.from_bytes(self.take(size, field), "big")

    def text(self, field: str) -> str:
        encoded = self.take(self.number(1, field), field)
        if not encoded.isascii():
            raise MalformedImage(f"{field} is not ASCII")
        return encoded.decode("ascii")

    def end(self) -> None:
        if self._at != len(self._data):
            raise MalformedImage(f"{len(self._data) - self._at} bytes follow the last stage")
