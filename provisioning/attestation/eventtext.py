"""Events of a boot log in words, for an operator who must see what a device booted. Text of the log, not proof.

TCG PC Client Platform Firmware Profile (PFP) 1.05, 10.4.1 (event types). Where the digest is over the data and does
not match it, the text says so: then the words are the log's invention. Nothing here raises, whatever the bytes, and no
verdict rests on it: `decode` is called when somebody reads.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from provisioning.attestation import eventtext_devices as devices
from provisioning.attestation import eventtext_platform as platform
from provisioning.attestation import eventtext_types as types
from provisioning.attestation.eventtext_noaction import no_action
from provisioning.attestation.eventtext_reading import MalformedData, hex_of, printable
from provisioning.attestation.eventtext_signatures import Details
from provisioning.attestation.eventtext_types import EV_IPL, EV_NO_ACTION, EV_SEPARATOR, TYPE_NAMES, type_name
from provisioning.attestation.eventtext_variables import Told, authority, variable

__all__ = ["EV_IPL", "EV_NO_ACTION", "EV_SEPARATOR", "TYPE_NAMES", "Words", "decode", "describe", "measured"]

MAX_TEXT = 160
"""Characters of `describe`: a finding's line."""
DOUBT = " (its data is not what was measured)"

_VARIABLE_HEADER_BYTES = 32
_TAG_HEADER_BYTES = 8
_DATA_ALONE = frozenset({types.EV_EFI_VARIABLE_BOOT, EV_IPL})
"""Types whose digest may be over a variable's value without its name: EDK II's boot options, shim's lists."""
_DIGEST_OVER_DATA = frozenset(
    {
        *(EV_SEPARATOR, types.EV_ACTION, types.EV_S_CRTM_VERSION, types.EV_OMIT_BOOT_DEVICE_EVENTS),
        *(types.EV_EFI_VARIABLE_DRIVER_CONFIG, types.EV_EFI_VARIABLE_BOOT, types.EV_EFI_VARIABLE_BOOT2),
        *(types.EV_EFI_VARIABLE_AUTHORITY, types.EV_EFI_GPT_EVENT, types.EV_EFI_ACTION),
    }
)
"""Types whose digest the specification defines over the event's data as logged."""


@dataclass(frozen=True, slots=True)
class Words:
    """An event for people. `details` are the same as fields, for JSON.

    `measured` says whether a digest of the event is over the data (`measured`): then the words are the device's own,
    once the log replays. False is usual where the digest is over an image or a file: the words then only name it.
    `doubted`: the specification demands a digest over the data, and it is over something else.
    """

    type: str
    text: str
    details: Details
    measured: bool
    doubted: bool

    @property
    def line(self) -> str:
        """Type and text on one line."""
        return f"{self.type} {self.text}".strip() + (DOUBT if self.doubted else "")


def decode(event_type: int, data: bytes, digests: Mapping[str, bytes]) -> Words:
    """The event in words and as fields; what cannot be read is called malformed."""
    words, details = _told(event_type, data)
    over_data = any(measured(event_type, data, bank, digest) is not None for bank, digest in digests.items())
    known = any(bank in hashlib.algorithms_guaranteed for bank in digests)
    doubted = event_type in _DIGEST_OVER_DATA and known and not over_data
    return Words(type_name(event_type), printable(words), details, over_data, doubted)


def describe(event_type: int, data: bytes, digests: Mapping[str, bytes]) -> str:
    """One short line: the type's name, and what the data says in printable characters."""
    words = decode(event_type, data, digests)
    return f"{words.type} {words.text[:MAX_TEXT]}".strip() + (DOUBT if words.doubted else "")


def measured(event_type: int, data: bytes, bank: str, digest: bytes) -> bytes | None:
    """The part of the data that the digest is over: all that may be believed of it, once the log replays, or None.

    The event's type is not measured: a rule about data names the PCR too. A file's name beside the file's digest, and
    the name before a boot option's value, are the log's own words.
    """
    if bank not in hashlib.algorithms_guaranteed:
        return None
    for candidate in _candidates(event_type, data):
        if hashlib.new(bank, candidate).digest() == digest:
            return candidate
    return None


def _candidates(event_type: int, data: bytes) -> list[bytes]:
    """What firmware and boot loaders hash: the data; a variable's value; a string without its NUL or GRUB's prefix."""
    found = [data]
    if event_type in _DATA_ALONE:
        name_bytes = 2 * int.from_bytes(data[16:24], "little")
        found.append(data[_VARIABLE_HEADER_BYTES + name_bytes :])
    if event_type == types.EV_EFI_VARIABLE_AUTHORITY:
        found.append(data[:-1])  # shim before 15.3 logs six bytes too many, and measures all but the last
    if event_type == types.EV_EVENT_TAG:
        found.append(data[_TAG_HEADER_BYTES:])
    if data.endswith(b"\0"):
        found.append(data.rstrip(b"\0"))
    if event_type == EV_IPL:
        _, space, rest = data.partition(b" ")
        found += [rest, rest.removesuffix(b"\0")] if space else []
    return found


def _told(event_type: int, data: bytes) -> Told:
    try:
        return _READERS.get(event_type, platform.opaque)(data)
    except MalformedData as error:
        return f"malformed: {error}", {"malformed": str(error), "value": hex_of(data)}


_READERS: dict[int, Callable[[bytes], Told]] = {
    types.EV_POST_CODE: platform.blob,
    types.EV_NO_ACTION: no_action,
    types.EV_SEPARATOR: platform.separator,
    types.EV_ACTION: platform.text,
    types.EV_EVENT_TAG: devices.tagged,
    types.EV_S_CRTM_CONTENTS: platform.blob,
    types.EV_S_CRTM_VERSION: platform.version,
    types.EV_CPU_MICROCODE: platform.microcode,
    0x0000000A: platform.text,
    0x0000000B: platform.text,
    types.EV_COMPACT_HASH: platform.text,
    types.EV_IPL: platform.ipl,
    types.EV_NONHOST_CODE: platform.text,
    types.EV_NONHOST_CONFIG: platform.text,
    types.EV_NONHOST_INFO: platform.text,
    types.EV_OMIT_BOOT_DEVICE_EVENTS: platform.text,
    types.EV_POST_CODE2: platform.blob2,
    types.EV_EFI_VARIABLE_DRIVER_CONFIG: variable,
    types.EV_EFI_VARIABLE_BOOT: variable,
    types.EV_EFI_BOOT_SERVICES_APPLICATION: platform.image_load,
    types.EV_EFI_BOOT_SERVICES_DRIVER: platform.image_load,
    types.EV_EFI_RUNTIME_SERVICES_DRIVER: platform.image_load,
    types.EV_EFI_GPT_EVENT: platform.gpt,
    types.EV_EFI_ACTION: platform.text,
    types.EV_EFI_PLATFORM_FIRMWARE_BLOB: platform.blob,
    types.EV_EFI_HANDOFF_TABLES: platform.tables,
    types.EV_EFI_PLATFORM_FIRMWARE_BLOB2: platform.blob2,
    types.EV_EFI_HANDOFF_TABLES2: platform.tables2,
    types.EV_EFI_VARIABLE_BOOT2: variable,
    types.EV_EFI_GPT_EVENT2: platform.gpt,
    types.EV_EFI_HCRTM_EVENT: devices.hcrtm,
    types.EV_EFI_VARIABLE_AUTHORITY: authority,
    types.EV_EFI_SPDM_FIRMWARE_BLOB: devices.spdm,
    types.EV_EFI_SPDM_FIRMWARE_CONFIG: devices.spdm,
    types.EV_EFI_SPDM_DEVICE_POLICY: variable,
    types.EV_EFI_SPDM_DEVICE_AUTHORITY: authority,
}
