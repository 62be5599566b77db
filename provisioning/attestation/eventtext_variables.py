"""UEFI variables of a boot log in words: Secure Boot's state and databases, boot options, boot order.

UEFI_VARIABLE_DATA: PFP 1.05, 10.2.6. Boot options: UEFI 2.10, 3.1.3. What MokList and the others of shim mean: shim's
own documents.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from provisioning.attestation.eventtext_paths import device_path, file_of
from provisioning.attestation.eventtext_reading import Cursor, MalformedData, guid_name, hex_of, string_of, ucs2_of
from provisioning.attestation.eventtext_signatures import Details, name_of, signature_data, signature_lists, told

Told = tuple[str, Details]
"""What an event says: a line without the type's name, and the same as fields."""


class Variable(NamedTuple):
    """A UEFI variable. `behind`: bytes behind it in the event, without meaning (shim before 15.3: six)."""

    name: str
    guid: str
    value: bytes
    behind: int


_SWITCHES = frozenset(
    {
        *("SecureBoot", "SetupMode", "AuditMode", "DeployedMode", "CustomMode", "VendorKeys"),
        *("MokListTrusted", "MokSBState", "MokSBStateRT", "MokDBState", "MokIgnoreDB", "MokPolicy"),
    }
)
_DATABASES = frozenset(
    {
        *("PK", "KEK", "db", "dbx", "dbr", "dbt", "devdb"),
        *("PKDefault", "KEKDefault", "dbDefault", "dbxDefault", "dbrDefault", "dbtDefault"),
        *("MokList", "MokListX", "MokListRT", "MokListXRT", "MokNew", "MokDel"),
    }
)
_BOOT_OPTION = re.compile(r"(?:Boot|Driver|SysPrep|PlatformRecovery)[0-9A-Fa-f]{4}")
_ORDERS = frozenset({"BootOrder", "DriverOrder", "SysPrepOrder"})
_ACTIVE = 1
_NAME_CHARACTERS_MOST = 1024
_HEADER = "QQ"


def variable(data: bytes) -> Told:
    """EV_EFI_VARIABLE_*, and the policies and authorities of SPDM devices. Raises: MalformedData."""
    found = parts(data)
    try:
        words, fields = _value(found.name, found.value)
    except MalformedData as error:
        words, fields = f"malformed: {error}", {"malformed": str(error)}
    return f"{found.name}: {words}", _shown(found) | fields


def authority(data: bytes) -> Told:
    """EV_EFI_VARIABLE_AUTHORITY: what in which variable vouched for the next image. Raises: MalformedData."""
    found = parts(data)
    entry = signature_data(found.value) if found.name not in _SWITCHES else None
    if entry is None:
        return variable(data)
    return f"{found.name}: {name_of(entry)}", _shown(found) | {"signature": entry}


def parts(data: bytes) -> Variable:
    """The parts of a UEFI_VARIABLE_DATA. Raises: MalformedData."""
    cursor = Cursor(data)
    guid = cursor.guid("variable GUID")
    characters, size = cursor.unpack(_HEADER, "variable lengths")
    if characters > _NAME_CHARACTERS_MOST:
        raise MalformedData(f"a name of {characters} characters")
    name = ucs2_of(cursor.take(2 * characters, "variable name"))
    value = cursor.take(size, "variable data")
    return Variable(name, guid, value, cursor.left)


def _shown(found: Variable) -> Details:
    shown: Details = {"name": found.name, "guid": found.guid, "vendor": guid_name(found.guid), "size": len(found.value)}
    return shown | {"bytes_behind": found.behind} if found.behind else shown


def _value(name: str, value: bytes) -> Told:
    if not value:
        return "empty", {}
    for applies, reader in _READERS:
        if applies(name):
            return reader(value)
    text = string_of(value)
    return (text, {"string": text}) if text is not None else (hex_of(value), {"value": value.hex()})


def _switch(value: bytes) -> Told:
    if len(value) != 1:
        return hex_of(value), {"value": value.hex()}
    on = value[0] != 0
    return ("on" if on else "off"), {"enabled": on}


def _database(value: bytes) -> Told:
    try:
        entries = signature_lists(value)
    except MalformedData:
        entry = signature_data(value)  # some firmware measures one entry where the log's type says a list
        if entry is None:
            raise
        entries = [entry]
    return told(entries), {"signatures": entries}


def _order(value: bytes) -> Told:
    if len(value) % 2:
        raise MalformedData(f"{len(value)} bytes of numbers of two bytes")
    numbers = [f"{int.from_bytes(value[at : at + 2], 'little'):04X}" for at in range(0, len(value), 2)]
    return ", ".join(numbers), {"order": numbers}


def _boot_option(value: bytes) -> Told:
    cursor = Cursor(value)
    attributes = cursor.u32("boot option")
    length = cursor.u16("boot option")
    description = cursor.ucs2z()
    path = cursor.take(length, "boot option's path")
    optional = cursor.rest()
    shown: Details = {"description": description, "active": bool(attributes & _ACTIVE)}
    shown |= {"path": device_path(path), "file": file_of(path), "optional": hex_of(optional)}
    words = f"{description} {shown['path']}".strip() + ("" if attributes & _ACTIVE else " (not active)")
    return words, shown


_READERS: tuple[tuple[Callable[[str], object], Callable[[bytes], Told]], ...] = (
    (_SWITCHES.__contains__, _switch),
    (_DATABASES.__contains__, _database),
    (_ORDERS.__contains__, _order),
    (_BOOT_OPTION.fullmatch, _boot_option),
)
