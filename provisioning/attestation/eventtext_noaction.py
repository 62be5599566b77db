"""EV_NO_ACTION events of a boot log in words: they extend nothing and say how to read the others (PFP 1.05, 10.4.5)."""

from collections.abc import Callable

from provisioning.attestation.eventtext_reading import Cursor, MalformedData, ascii_of, hex_of, string_or_hex
from provisioning.attestation.eventtext_signatures import Details
from provisioning.attestation.eventtext_variables import Told

ALGORITHM_NAMES = {
    0x0004: "sha1",
    0x000B: "sha256",
    0x000C: "sha384",
    0x000D: "sha512",
    0x0012: "sm3_256",
    0x0027: "sha3_256",
    0x0028: "sha3_384",
    0x0029: "sha3_512",
}
_ALGORITHMS_MOST = 16
_SIGNATURE_BYTES = 16
_LOCALITIES = {0: "", 3: " (TPM2_Startup by the CRTM)", 4: " (H-CRTM)"}
_LOCATORS = {0: "raw data", 1: "URI", 2: "device path", 3: "UEFI variable"}


def no_action(data: bytes) -> Told:
    """Spec ID, StartupLocality, SP800-155, H-CRTM components, NV indices; else a string. Raises: MalformedData."""
    reader = _READERS.get(data[:_SIGNATURE_BYTES])
    if reader is None:
        shown = string_or_hex(data)
        return shown, {"value": shown}
    return reader(Cursor(data[_SIGNATURE_BYTES:]))


def _spec_id_03(cursor: Cursor) -> Told:
    platform, minor, major, errata, word = cursor.unpack("IBBBB", "specification version")
    count = cursor.u32("number of algorithms")
    if count > _ALGORITHMS_MOST:
        raise MalformedData(f"{count} algorithms")
    algorithms = {}
    for _ in range(count):
        number, size = cursor.unpack("HH", "algorithm")
        algorithms[ALGORITHM_NAMES.get(number, f"{number:#06x}")] = size
    vendor = cursor.take(cursor.u8("vendor information size"), "vendor information")
    fields = _specification(platform, major, minor, errata, word)
    words = f"specification {major}.{minor:02} errata {errata}; digests {', '.join(algorithms)}"
    return words, {"signature": "Spec ID Event03"} | fields | {"algorithms": algorithms, "vendor": hex_of(vendor)}


def _spec_id_02(cursor: Cursor) -> Told:
    platform, minor, major, errata, word = cursor.unpack("IBBBB", "specification version")
    vendor = cursor.take(cursor.u8("vendor information size"), "vendor information")
    fields = _specification(platform, major, minor, errata, word)
    words = f"specification {major}.{minor:02} errata {errata}; SHA-1 digests"
    return words, {"signature": "Spec ID Event02"} | fields | {"vendor": hex_of(vendor)}


def _spec_id_00(cursor: Cursor) -> Told:
    platform, minor, major, errata = cursor.unpack("IBBB", "specification version")
    fields = {"platform_class": platform, "specification": f"{major}.{minor:02}", "errata": errata}
    return f"specification {major}.{minor:02} errata {errata} (BIOS)", {"signature": "Spec ID Event00"} | fields


def _specification(platform: int, major: int, minor: int, errata: int, word: int) -> Details:
    bits = {1: 32, 2: 64}.get(word, word)
    shown: Details = {"platform_class": platform, "specification": f"{major}.{minor:02}"}
    return shown | {"errata": errata, "word_bits": bits}


def _locality(cursor: Cursor) -> Told:
    number = cursor.u8("locality")
    if cursor.left:
        raise MalformedData(f"{cursor.left} bytes behind the locality")
    words = f"StartupLocality {number}{_LOCALITIES.get(number, ' (unknown)')}"
    return words, {"signature": "StartupLocality", "locality": number}


def _reference_manifest(cursor: Cursor) -> Told:
    vendor, guid = cursor.u32("vendor"), cursor.guid()
    fields: Details = {"signature": "SP800-155 Event", "vendor": vendor, "reference_manifest": guid}
    return f"SP800-155 Event: reference manifest {guid} of vendor {vendor}", fields


def _reference_manifest_2(cursor: Cursor) -> Told:
    return _platform_id("SP800-155 Event2", cursor)


def _reference_manifest_3(cursor: Cursor) -> Told:
    words, fields = _platform_id("SP800-155 Event3", cursor)
    for name in ("reference_manifest_locator", "platform_certificate_locator"):
        kind = cursor.u32("locator type")
        value = cursor.take(cursor.u32("locator length"), "locator")
        fields[name] = {"type": _LOCATORS.get(kind, kind), "value": string_or_hex(value)}
    return words, fields


def _platform_id(signature: str, cursor: Cursor) -> Told:
    vendor, guid = cursor.u32("vendor"), cursor.guid()
    fields: Details = {"signature": signature, "vendor": vendor, "reference_manifest": guid}
    for name in ("platform_manufacturer", "platform_model", "platform_version", "firmware_manufacturer"):
        fields[name] = ascii_of(cursor.take(cursor.u8(f"{name} size"), name))
    fields["firmware_vendor"] = cursor.u32("firmware vendor")
    fields["firmware_version"] = ascii_of(cursor.take(cursor.u8("firmware_version size"), "firmware_version"))
    told = ("platform_manufacturer", "platform_model", "platform_version", "firmware_version")
    return f"{signature}: {' '.join(str(fields[name]) for name in told)}", fields


def _hcrtm_component(cursor: Cursor) -> Told:
    description = ascii_of(cursor.take(cursor.u8("description size"), "description"))
    form = cursor.u8("measurement format")
    measurement = cursor.take(cursor.u16("measurement size"), "measurement")
    fields: Details = {"signature": "H-CRTM CompMeas", "description": description, "format": form}
    return f"H-CRTM component {description}: {hex_of(measurement)}", fields | {"measurement": hex_of(measurement)}


def _nv_index(name: str) -> Callable[[Cursor], Told]:
    def read(cursor: Cursor) -> Told:
        value = hex_of(cursor.rest())
        return f"{name}: {value}", {"signature": name, "value": value}

    return read


_READERS: dict[bytes, Callable[[Cursor], Told]] = {
    b"Spec ID Event03\0": _spec_id_03,
    b"Spec ID Event02\0": _spec_id_02,
    b"Spec ID Event00\0": _spec_id_00,
    b"StartupLocality\0": _locality,
    b"SP800-155 Event\0": _reference_manifest,
    b"SP800-155 Event2": _reference_manifest_2,
    b"SP800-155 Event3": _reference_manifest_3,
    b"H-CRTM CompMeas\0": _hcrtm_component,
    b"NvIndexInstance\0": _nv_index("NvIndexInstance"),
    b"NvIndexDynamic\0\0": _nv_index("NvIndexDynamic"),
}
