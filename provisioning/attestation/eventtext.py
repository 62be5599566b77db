"""Events of a boot log in words, for an operator who must see what a device booted. Text of the log, not proof.

TCG PC Client Platform Firmware Profile (PFP) 1.05, 10.4.1 (event types); UEFI 2.10, 10.3 (device paths). Where the
digest is over the data and does not match it, the text says so: then the words are the log's invention.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping

EV_NO_ACTION = 0x00000003
EV_SEPARATOR = 0x00000004
EV_IPL = 0x0000000D

TYPE_NAMES = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    EV_NO_ACTION: "EV_NO_ACTION",
    EV_SEPARATOR: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    EV_IPL: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x0000000F: "EV_NONHOST_CODE",
    0x00000010: "EV_NONHOST_CONFIG",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
}
MAX_TEXT = 160

_DIGEST_OVER_DATA = frozenset({EV_SEPARATOR, 0x00000005, 0x00000008, 0x80000001, 0x80000006, 0x80000007})
"""Types whose digest is over the event's data as logged."""
_IMAGE_LOAD = struct.Struct("<QQQQ")
_PATH_NODE = struct.Struct("<BBH")
_VARIABLE = struct.Struct("<16sQQ")
_BLOB = struct.Struct("<QQ")
_FILE_PATH = (4, 4)
_PATH_END = 0x7F


def describe(event_type: int, data: bytes, digests: Mapping[str, bytes]) -> str:
    """One line: the type's name, and what the data says in printable characters."""
    name = TYPE_NAMES.get(event_type, f"{event_type:#010x}")
    try:
        reader = _READERS.get(event_type)
        text = reader(data) if reader is not None else ""
    except (struct.error, ValueError):
        text = ""
    shown = "".join(c if c.isprintable() else "?" for c in text)[:MAX_TEXT]
    doubt = " (its data is not what was measured)" if _invented(event_type, data, digests) else ""
    return f"{name} {shown}".strip() + doubt


def _invented(event_type: int, data: bytes, digests: Mapping[str, bytes]) -> bool:
    if event_type not in _DIGEST_OVER_DATA:
        return False
    known = {bank: digest for bank, digest in digests.items() if bank in hashlib.algorithms_guaranteed}
    return any(hashlib.new(bank, data).digest() != digest for bank, digest in known.items())


def _ascii(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", errors="replace")


def _ucs2(data: bytes) -> str:
    return data[: len(data) & ~1].decode("utf-16-le", errors="replace").rstrip("\0")


def _version(data: bytes) -> str:
    """EV_S_CRTM_VERSION: a UCS-2 string, or a GUID."""
    return _ucs2(data) if data.endswith(b"\0\0") else data.hex()


def _separator(data: bytes) -> str:
    return "" if data in (b"\0\0\0\0", b"\xff\xff\xff\xff") else f"error {data.hex()}"


def _variable(data: bytes) -> str:
    """UEFI_VARIABLE_DATA: GUID, lengths, the name in UCS-2."""
    _, characters, _ = _VARIABLE.unpack_from(data)
    return _ucs2(data[_VARIABLE.size : _VARIABLE.size + min(2 * characters, len(data))])


def _image_load(data: bytes) -> str:
    """UEFI_IMAGE_LOAD_EVENT: the file path node of the device path, if there is one."""
    *_, length = _IMAGE_LOAD.unpack_from(data)
    path = data[_IMAGE_LOAD.size : _IMAGE_LOAD.size + length]
    files = []
    while path:
        kind, subtype, size = _PATH_NODE.unpack_from(path)
        if kind == _PATH_END or size < _PATH_NODE.size:
            break
        if (kind, subtype) == _FILE_PATH:
            files.append(_ucs2(path[_PATH_NODE.size : size]))
        path = path[size:]
    return "".join(files)


def _blob(data: bytes) -> str:
    base, size = _BLOB.unpack_from(data)
    return f"{size} bytes at {base:#x}"


_READERS: dict[int, Callable[[bytes], str]] = {
    0x00000001: _ascii,
    EV_SEPARATOR: _separator,
    0x00000005: _ascii,
    0x00000008: _version,
    0x0000000C: _ascii,
    EV_IPL: _ascii,
    0x80000001: _variable,
    0x80000002: _variable,
    0x80000003: _image_load,
    0x80000004: _image_load,
    0x80000005: _image_load,
    0x80000007: _ascii,
    0x80000008: _blob,
    0x8000000C: _variable,
    0x800000E0: _variable,
}
