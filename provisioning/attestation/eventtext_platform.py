"""Firmware blobs, tables, partitions, images, strings and separators of a boot log in words.

PFP 1.05, 10.2 (structures) and 10.4 (events).
"""

from provisioning.attestation.eventtext_paths import device_path, file_of
from provisioning.attestation.eventtext_reading import (
    Cursor,
    MalformedData,
    ascii_of,
    guid_name,
    hex_of,
    string_of,
    string_or_hex,
    ucs2_of,
)
from provisioning.attestation.eventtext_signatures import Details
from provisioning.attestation.eventtext_variables import Told

_TABLES_MOST = 256
_PARTITIONS_MOST = 256
_GPT_SIGNATURE = b"EFI PART"
_GPT_ENTRY_BYTES = 128
_GUID_BYTES = 16
_BLOB_BYTES = 16
_MICROCODE_HEADER = "8I"
_MICROCODE_BYTES = 48
_SEPARATORS = {b"\0\0\0\0": "end of the pre-boot phase", b"\xff\xff\xff\xff": "end of the pre-boot phase (all ones)"}
_GRUB_KINDS = {
    "grub_cmd": "GRUB command",
    "grub_kernel_cmdline": "kernel command line",
    "kernel_cmdline": "kernel command line",
    "module_cmdline": "module command line",
}
"""What GRUB writes before a string that it measures; the digest is over the string alone."""


def separator(data: bytes) -> Told:
    """EV_SEPARATOR: four bytes of 0 or of 1s; anything else is an error that the firmware met."""
    if data in _SEPARATORS:
        return "", {"value": data.hex(), "meaning": _SEPARATORS[data]}
    return f"error {string_or_hex(data)}", {"value": hex_of(data), "meaning": "an error of the firmware"}


def text(data: bytes) -> Told:
    """A string, else bytes."""
    found = string_of(data)
    return (found, {"string": found}) if found is not None else (hex_of(data), {"value": hex_of(data)})


def opaque(data: bytes) -> Told:
    """Bytes that only their maker understands."""
    return hex_of(data), {"value": hex_of(data)}


def version(data: bytes) -> Told:
    """EV_S_CRTM_VERSION: a UCS-2 string, or a GUID."""
    if len(data) == _GUID_BYTES and not data.endswith(b"\0\0"):
        guid = Cursor(data).guid()
        return guid, {"guid": guid}
    found = string_of(data)
    if found is None and data.endswith(b"\0\0"):
        found = ucs2_of(data)
    return (found, {"version": found}) if found is not None else (hex_of(data), {"value": hex_of(data)})


def blob(data: bytes) -> Told:
    """UEFI_PLATFORM_FIRMWARE_BLOB, or a string in its place (EV_POST_CODE, EV_S_CRTM_CONTENTS)."""
    if len(data) == _BLOB_BYTES and string_of(data) is None:
        return _blob(Cursor(data))
    return blob2(data)


def blob2(data: bytes) -> Told:
    """UEFI_PLATFORM_FIRMWARE_BLOB2: a description before the blob; or a string. Raises: MalformedData."""
    found = string_of(data)
    if found is not None and len(data) != data[0] + 1 + _BLOB_BYTES:
        return found, {"string": found}
    cursor = Cursor(data)
    description = ascii_of(cursor.take(cursor.u8("description size"), "description"))
    words, fields = _blob(cursor)
    return f"{description}: {words}" if description else words, {"description": description} | fields


def _blob(cursor: Cursor) -> Told:
    base, size = cursor.unpack("QQ", "blob")
    if cursor.left:
        raise MalformedData(f"{cursor.left} bytes behind the blob")
    return f"{size} bytes at {base:#x}", {"base": f"{base:#x}", "length": size}


def tables(data: bytes) -> Told:
    """UEFI_HANDOFF_TABLE_POINTERS. Raises: MalformedData."""
    return _tables(Cursor(data))


def tables2(data: bytes) -> Told:
    """UEFI_HANDOFF_TABLE_POINTERS2. Raises: MalformedData."""
    cursor = Cursor(data)
    description = ascii_of(cursor.take(cursor.u8("description size"), "description"))
    words, fields = _tables(cursor)
    return f"{description}: {words}" if description else words, {"description": description} | fields


def _tables(cursor: Cursor) -> Told:
    count = cursor.u64("number of tables")
    if count > _TABLES_MOST:
        raise MalformedData(f"{count} tables")
    found: list[Details] = []
    for _ in range(count):
        guid = cursor.guid("table GUID")
        found.append({"guid": guid, "name": guid_name(guid), "address": f"{cursor.u64('table address'):#x}"})
    return ", ".join(str(one["name"]) for one in found) or "no tables", {"tables": found}


def image_load(data: bytes) -> Told:
    """UEFI_IMAGE_LOAD_EVENT: what was loaded from where; the digest is over the image. Raises: MalformedData."""
    cursor = Cursor(data)
    location, length, link, size = cursor.unpack("QQQQ", "image load event")
    path = cursor.take(size, "device path")
    shown: Details = {"path": device_path(path), "file": file_of(path)}
    shown |= {"location": f"{location:#x}", "length": length, "link_time_address": f"{link:#x}"}
    return str(shown["path"]) or f"an image of {length} bytes, no path", shown


def gpt(data: bytes) -> Told:
    """UEFI_GPT_DATA: the disk, and its partitions that are in use. Raises: MalformedData."""
    cursor = Cursor(data)
    header = Cursor(cursor.take(92, "partition table header"))
    if header.take(8) != _GPT_SIGNATURE:
        raise MalformedData("no GPT signature")
    header.take(48)
    disk = header.guid()
    _, _, entry_bytes = header.unpack("QII")
    count = cursor.u64("number of partitions")
    if count > _PARTITIONS_MOST or entry_bytes < _GPT_ENTRY_BYTES:
        raise MalformedData(f"{count} partitions of {entry_bytes} bytes")
    partitions = [_partition(Cursor(cursor.take(entry_bytes, "partition"))) for _ in range(count)]
    words = ", ".join(f"{one['name'] or 'unnamed'} ({one['kind']})" for one in partitions)
    return f"disk {disk}: {words or 'no partitions'}", {"disk": disk, "partitions": partitions}


def _partition(cursor: Cursor) -> Details:
    kind, unique = cursor.guid(), cursor.guid()
    first, last, attributes = cursor.unpack("QQQ")
    shown: Details = {"name": ucs2_of(cursor.take(72)), "kind": guid_name(kind), "type": kind, "guid": unique}
    return shown | {"first_block": first, "last_block": last, "attributes": f"{attributes:#x}"}


def ipl(data: bytes) -> Told:
    """EV_IPL: GRUB's commands and files, systemd's UTF-16 command lines, shim's variables, by their strings."""
    found = string_of(data)
    if found is None:
        return hex_of(data), {"value": hex_of(data)}
    shown: Details = {"string": found}
    prefix, value = grub_parts(found)
    if prefix in _GRUB_KINDS:
        shown |= {"kind": _GRUB_KINDS[prefix], "value": value}
    return found, shown


def grub_parts(found: str) -> tuple[str, str]:
    """GRUB's prefix, and the string behind it: a colon and a space stand between, or (Red Hat before 2.06) a space."""
    prefix, _, value = found.partition(" ")
    return prefix.removesuffix(":"), value


def microcode(data: bytes) -> Told:
    """EV_CPU_MICROCODE: Intel's update header, a string, a blob, or bytes."""
    found = string_of(data)
    if found is None and len(data) >= _MICROCODE_BYTES:
        version_, revision, date, signature, *_ = Cursor(data).unpack(_MICROCODE_HEADER)
        if version_ == 1:
            day = f"{date & 0xFFFF:04x}-{date >> 24:02x}-{date >> 16 & 0xFF:02x}"
            fields: Details = {"revision": f"{revision:#x}", "date": day, "processor": f"{signature:#x}"}
            return f"revision {revision:#x} of {day} for processor {signature:#x}", fields
    if found is None and len(data) == _BLOB_BYTES:
        return _blob(Cursor(data))
    return text(data)
