"""Events of devices that speak SPDM, and tagged events (Windows, systemd, the Linux EFI stub), in words.

DEVICE_SECURITY_EVENT_DATA and TCG_PCClientTaggedEvent: PFP 1.05 and 1.06, section 10. The tags' numbers are those
of Microsoft's wbcl.h, systemd's boot loader and Linux's libstub.
"""

from provisioning.attestation.eventtext_paths import device_path
from provisioning.attestation.eventtext_reading import Cursor, MalformedData, ascii_of, hex_of, string_or_hex
from provisioning.attestation.eventtext_signatures import Details
from provisioning.attestation.eventtext_variables import Told

_SPDM_1, _SPDM_2 = b"SPDM Device Sec\0", b"SPDM Device Sec2"
_DEVICES = {0: "no device type", 1: "PCI", 2: "USB"}
_AUTHENTICATED = {
    0: "authenticated",
    1: "no authority",
    2: "no binding",
    3: "failed: no signature",
    4: "failed: invalid",
    0xFF: "no SPDM",
}
_SUBHEADERS = {0: "measurement block", 1: "certificate chain", 2: "OEM measurement"}
_MEASUREMENTS = 0
_AGGREGATION = 0x40000000
_DEPTH_MOST = 4
_TAGS_MOST = 256

_TAGS = {
    0xF5BC582A: "systemd loader.conf",
    0x6C46F751: "systemd device tree add-on",
    0x49DFFE0F: "systemd initrd add-on",
    0xDAC08E1A: "systemd microcode add-on",
    0x13AED6DB: "systemd UKI profile",
    0x8F3B22EC: "Linux initrd",
    0x8F3B22ED: "Linux load options",
    0x40010001: "TrustBoundary",
    0x40010002: "ELAMAggregation",
    0x40010003: "LoadedModuleAggregation",
    0xC0010004: "TrustpointAggregation",
    0x40010005: "KSRAggregation",
    0x40010006: "KSRSignedMeasurementAggregation",
    0x00020001: "Information",
    0x00020002: "BootCounter",
    0x00020003: "TransferControl",
    0x00020004: "ApplicationReturn",
    0x00020005: "BitlockerUnlock",
    0x00020006: "EventCounter",
    0x00020007: "CounterID",
    0x00020008: "MORBitNotCancelable",
    0x00020009: "ApplicationSVN",
    0x0002000A: "SVNChainStatus",
    0x0002000B: "MORBitAPIStatus",
    0x00040001: "BootDebugging",
    0x00040002: "BootRevocationList",
    0x00050001: "OSKernelDebug",
    0x00050002: "CodeIntegrity",
    0x00050003: "TestSigning",
    0x00050004: "DataExecutionPrevention",
    0x00050005: "SafeMode",
    0x00050006: "WinPE",
    0x00050007: "PhysicalAddressExtension",
    0x00050008: "OSDevice",
    0x00050009: "SystemRoot",
    0x0005000A: "HypervisorLaunchType",
    0x0005000B: "HypervisorPath",
    0x0005000C: "HypervisorIOMMUPolicy",
    0x0005000D: "HypervisorDebug",
    0x0005000E: "DriverLoadPolicy",
    0x0005000F: "SIPolicy",
    0x00060001: "NoAuthority",
    0x00060002: "AuthorityPubKey",
    0x00070001: "FilePath",
    0x00070002: "ImageSize",
    0x00070003: "HashAlgorithmID",
    0x00070004: "AuthenticodeHash",
    0x00070005: "AuthorityIssuer",
    0x00070006: "AuthoritySerial",
    0x00070007: "ImageBase",
    0x00070008: "AuthorityPublisher",
    0x00070009: "AuthoritySHA1Thumbprint",
    0x0007000A: "ImageValidated",
    0x0007000B: "ModuleSVN",
}
_FLAGS = frozenset({*range(0x00040001, 0x00040002), *range(0x00050001, 0x00050008), 0x0005000D, 0x0007000A})
_FLAG_BYTES = 1


def spdm(data: bytes) -> Told:
    """DEVICE_SECURITY_EVENT_DATA of either version. Raises: MalformedData."""
    cursor = Cursor(data)
    signature = cursor.take(16, "signature")
    if signature == _SPDM_1:
        return _spdm_1(cursor)
    if signature == _SPDM_2:
        return _spdm_2(cursor)
    raise MalformedData(f"signature {hex_of(signature)}")


def _spdm_1(cursor: Cursor) -> Told:
    version, _, algorithm, device = cursor.unpack("HHII", "header")
    fields: Details = {"version": version, "hash_algorithm": f"{algorithm:#x}", "device": _device(device)}
    index, _, size = cursor.unpack("BBH", "measurement block")
    measurement = hex_of(cursor.take(size, "measurement"))
    fields |= {"index": index, "measurement": measurement, "context": hex_of(cursor.rest())}
    return f"{_device(device)} device, measurement {index}: {measurement}", fields


def _spdm_2(cursor: Cursor) -> Told:
    version, state, _, _, device, kind, size, uid = cursor.unpack("HBBIIIIQ", "header")
    path = device_path(cursor.take(cursor.u64("device path length"), "device path"))
    sub = cursor.take(size, "sub-header")
    fields: Details = {"version": version, "authentication": _AUTHENTICATED.get(state, f"{state:#x}")}
    fields |= {"device": _device(device), "kind": _SUBHEADERS.get(kind, f"{kind:#x}"), "uid": f"{uid:#x}"}
    fields |= {"path": path, "sub_header": hex_of(sub), "context": hex_of(cursor.rest())}
    if kind == _MEASUREMENTS:
        fields |= _measurements(Cursor(sub))
    words = f"{_device(device)} device {path}, {fields['kind']}, {fields['authentication']}"
    return words, fields


def _measurements(cursor: Cursor) -> Details:
    """SPDM's measurement blocks: an index and a measurement each."""
    version, count, _, algorithm = cursor.unpack("HBBI", "measurements")
    blocks: list[Details] = []
    for _ in range(count):
        index, _, size = cursor.unpack("BBH", "measurement block")
        blocks.append({"index": index, "measurement": hex_of(cursor.take(size, "measurement"))})
    return {"spdm_version": f"{version:#x}", "hash_algorithm": f"{algorithm:#x}", "measurements": blocks}


def _device(number: int) -> str:
    return _DEVICES.get(number, f"type {number}")


def tagged(data: bytes) -> Told:
    """TCG_PCClientTaggedEvents that stand one behind the other; aggregations hold more. Raises: MalformedData."""
    tags = _tags(Cursor(data), depth=0)
    return ", ".join(_words(tag) for tag in tags) or "no tags", {"tags": tags}


def _tags(cursor: Cursor, depth: int) -> list[Details]:
    found: list[Details] = []
    while cursor.left:
        if len(found) == _TAGS_MOST:
            raise MalformedData(f"more than {_TAGS_MOST} tags")
        number = cursor.u32("tag")
        value = cursor.take(cursor.u32("tag's size"), _TAGS.get(number, f"tag {number:#010x}"))
        tag: Details = {"tag": f"{number:#010x}", "name": _TAGS.get(number, f"tag {number:#010x}")}
        if number & _AGGREGATION and number in _TAGS and depth < _DEPTH_MOST:
            tag["tags"] = _tags(Cursor(value), depth + 1)
        elif number in _FLAGS and len(value) == _FLAG_BYTES:
            tag["value"] = value != b"\0"
        else:
            tag["value"] = string_or_hex(value)
        found.append(tag)
    return found


def _words(tag: Details) -> str:
    inner = tag.get("tags")
    if isinstance(inner, list):
        return f"{tag['name']} ({', '.join(_words(one) for one in inner)})"
    return f"{tag['name']} {tag['value']}"


def hcrtm(data: bytes) -> Told:
    """EV_EFI_HCRTM_EVENT: the string that the specification demands. Raises: MalformedData."""
    found = ascii_of(data)
    if found != "HCRTM":
        raise MalformedData(f"{string_or_hex(data)} in the place of HCRTM")
    return found, {"string": found}
