"""Each structure of a boot log with a value of its own in every field, its highest bit set: what `-o json` says of it.

And cut at every octet: the words then name the field that is not there, and how many octets it has.
"""

import hashlib
import re
import struct
from uuid import UUID

import pytest

from provisioning.attestation.eventtext import decode
from provisioning.attestation.eventtext_reading import (
    GUID_NAMES,
    SHOWN_BYTES,
    Cursor,
    MalformedData,
    guid_name,
    hex_of,
    printable,
    string_of,
    ucs2_of,
)
from provisioning.attestation.eventtext_signatures import (
    CERTIFICATES_MOST,
    ENTRIES_MOST,
    name_of,
    signature_data,
    signature_lists,
    told,
)

NO_ACTION, TAG, CONFIG, BOOT, AUTHORITY = 0x03, 0x06, 0x80000001, 0x80000002, 0x800000E0
DISK, PART = UUID("11111111-2222-3333-4444-555555555555"), UUID("66666666-7777-8888-9999-aaaaaaaaaaaa")
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SMBIOS = UUID("eb9d2d31-2d88-11d3-9a16-0090273fc14d")
MICROSOFT = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
SHA256_LIST = UUID("c1c41626-504c-4092-aca9-41f936934328")
X509_LIST = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")


def ucs2(text):
    return text.encode("utf-16-le")


def sized(text):
    return bytes([len(text)]) + text.encode()


def node(kind, subtype, data=b""):
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


def variable(name, value):
    return GLOBAL.bytes_le + struct.pack("<QQ", len(name), len(value)) + ucs2(name) + value


def of_variable(name, held, /, **details):
    return {
        "name": name,
        "guid": str(GLOBAL),
        "vendor": "EFI global variable",
        "size": len(held),
        **details,
    }


def of_name(name, value):
    return [("variable GUID", 16), ("variable lengths", 16), ("variable name", 2 * len(name))] + (
        [("variable data", len(value))] if value else []
    )


def tag(number, data):
    return struct.pack("<II", number, len(data)) + data


FILE_PATH = node(4, 4, ucs2("\\a.efi\0")) + node(0x7F, 0xFF)
OPTION = struct.pack("<IH", 0x80000001, len(FILE_PATH)) + ucs2("Linux\0") + FILE_PATH + b"\xde\xad"
PLATFORM = struct.pack("<I", 0x80000001) + DISK.bytes_le + sized("Maker") + sized("Box") + sized("2.1") + sized("Firm")
PLATFORM += struct.pack("<I", 0x80000002) + sized("1.9.7")
PLATFORM_DETAILS = {
    "vendor": 0x80000001,
    "reference_manifest": str(DISK),
    "platform_manufacturer": "Maker",
    "platform_model": "Box",
    "platform_version": "2.1",
    "firmware_manufacturer": "Firm",
    "firmware_vendor": 0x80000002,
    "firmware_version": "1.9.7",
}
PLATFORM_FIELDS = [
    ("vendor", 4),
    ("GUID", 16),
    ("platform_manufacturer size", 1),
    ("platform_manufacturer", 5),
    ("platform_model size", 1),
    ("platform_model", 3),
    ("platform_version size", 1),
    ("platform_version", 3),
    ("firmware_manufacturer size", 1),
    ("firmware_manufacturer", 4),
    ("firmware vendor", 4),
    ("firmware_version size", 1),
    ("firmware_version", 5),
]
GPT = b"EFI PART" + bytes(range(48)) + DISK.bytes_le + struct.pack("<QIII", 2, 128, 130, 0xFFFFFFFF)
GPT_ENTRY = struct.pack("<QQQ", 2**63 + 1, 2**63 + 2, 2**63 + 4)
BLOCKS = struct.pack("<BBH", 0x81, 0x82, 2) + b"\xaa\xbb" + struct.pack("<BBH", 0x83, 0x84, 0)
SUB = struct.pack("<HBBI", 0x8012, 2, 0xFE, 0x80000002) + BLOCKS
SPDM_2 = struct.pack("<HBBIIIIQ", 0x8002, 0x81, 0x82, 0xFFFFFFFF, 0x80000001, 0, len(SUB), 2**63 + 9)

EVENTS = {
    "the specification, crypto-agile": (
        NO_ACTION,
        b"Spec ID Event03\0"
        + struct.pack("<IBBBBI", 0x80000001, 0x90, 0x82, 0xFE, 0x84, 3)
        + struct.pack("<6H", 4, 20, 0x0B, 32, 0x8001, 0x8002)
        + b"\2ab",
        "specification 130.144 errata 254; digests sha1, sha256, 0x8001",
        {
            "signature": "Spec ID Event03",
            "platform_class": 0x80000001,
            "specification": "130.144",
            "errata": 254,
            "word_bits": 0x84,
            "algorithms": {"sha1": 20, "sha256": 32, "0x8001": 0x8002},
            "vendor": "6162",
        },
        [
            ("specification version", 8),
            ("number of algorithms", 4),
            *[("algorithm", 4)] * 3,
            ("vendor information size", 1),
            ("vendor information", 2),
        ],
    ),
    "the specification, SHA-1": (
        NO_ACTION,
        b"Spec ID Event02\0" + struct.pack("<IBBBB", 0x80000001, 0x90, 0x82, 0xFE, 1) + b"\3abc",
        "specification 130.144 errata 254; SHA-1 digests",
        {
            "signature": "Spec ID Event02",
            "platform_class": 0x80000001,
            "specification": "130.144",
            "errata": 254,
            "word_bits": 32,
            "vendor": "616263",
        },
        [("specification version", 8), ("vendor information size", 1), ("vendor information", 3)],
    ),
    "the specification, BIOS": (
        NO_ACTION,
        b"Spec ID Event00\0" + struct.pack("<IBBB", 0x80000001, 0x90, 0x82, 0xFE),
        "specification 130.144 errata 254 (BIOS)",
        {
            "signature": "Spec ID Event00",
            "platform_class": 0x80000001,
            "specification": "130.144",
            "errata": 254,
        },
        [("specification version", 7)],
    ),
    "a locality that is none": (
        NO_ACTION,
        b"StartupLocality\0\1",
        "StartupLocality 1 (unknown)",
        {"signature": "StartupLocality", "locality": 1},
        [("locality", 1)],
    ),
    "the locality of the start": (
        NO_ACTION,
        b"StartupLocality\0\0",
        "StartupLocality 0",
        {"signature": "StartupLocality", "locality": 0},
        [("locality", 1)],
    ),
    "a reference manifest": (
        NO_ACTION,
        b"SP800-155 Event\0" + struct.pack("<I", 0x80000009) + DISK.bytes_le,
        f"SP800-155 Event: reference manifest {DISK} of vendor 2147483657",
        {"signature": "SP800-155 Event", "vendor": 0x80000009, "reference_manifest": str(DISK)},
        [("vendor", 4), ("GUID", 16)],
    ),
    "a reference manifest, 2": (
        NO_ACTION,
        b"SP800-155 Event2" + PLATFORM,
        "SP800-155 Event2: Maker Box 2.1 1.9.7",
        {"signature": "SP800-155 Event2", **PLATFORM_DETAILS},
        PLATFORM_FIELDS,
    ),
    "a reference manifest, 3": (
        NO_ACTION,
        b"SP800-155 Event3" + PLATFORM + struct.pack("<II", 1, 4) + b"a://" + struct.pack("<II", 9, 1) + b"\xfe",
        "SP800-155 Event3: Maker Box 2.1 1.9.7",
        {
            "signature": "SP800-155 Event3",
            **PLATFORM_DETAILS,
            "reference_manifest_locator": {"type": "URI", "value": "a://"},
            "platform_certificate_locator": {"type": 9, "value": "fe"},
        },
        [
            *PLATFORM_FIELDS,
            *[("locator type", 4), ("locator length", 4), ("locator", 4)],
            *[("locator type", 4), ("locator length", 4), ("locator", 1)],
        ],
    ),
    "a component of the H-CRTM": (
        NO_ACTION,
        b"H-CRTM CompMeas\0" + sized("ACM") + b"\x81" + struct.pack("<H", 2) + b"\xab\xcd",
        "H-CRTM component ACM: abcd",
        {"signature": "H-CRTM CompMeas", "description": "ACM", "format": 0x81, "measurement": "abcd"},
        [
            ("description size", 1),
            ("description", 3),
            ("measurement format", 1),
            ("measurement size", 2),
            ("measurement", 2),
        ],
    ),
    "an NV index that changes": (
        NO_ACTION,
        b"NvIndexDynamic\0\0\1\2",
        "NvIndexDynamic: 0102",
        {"signature": "NvIndexDynamic", "value": "0102"},
        [],
    ),
    "an NV index": (
        NO_ACTION,
        b"NvIndexInstance\0\1\2",
        "NvIndexInstance: 0102",
        {"signature": "NvIndexInstance", "value": "0102"},
        [],
    ),
    "an event of no action of another kind": (NO_ACTION, b"whatever", "whatever", {"value": "whatever"}, []),
    "a separator": (4, bytes(4), "", {"value": "00000000", "meaning": "end of the pre-boot phase"}, None),
    "a separator of ones": (
        4,
        b"\xff" * 4,
        "",
        {"value": "ffffffff", "meaning": "end of the pre-boot phase (all ones)"},
        None,
    ),
    "a separator that is an error": (
        4,
        b"\1\0\0\0",
        "error 01000000",
        {"value": "01000000", "meaning": "an error of the firmware"},
        None,
    ),
    "an action": (5, b"Start", "Start", {"string": "Start"}, []),
    "an action in bytes": (5, b"\xfe", "fe", {"value": "fe"}, []),
    "no tags": (TAG, b"", "no tags", {"tags": []}, []),
    "tags": (
        TAG,
        tag(0x40010001, tag(0x00050003, b"\0") + tag(0x00050003, b"\1\1") + tag(0x80000123, b"\xfe"))
        + tag(0x8F3B22EC, b"initrd\0"),
        "TrustBoundary (TestSigning False, TestSigning 0101, tag 0x80000123 fe), Linux initrd initrd",
        {
            "tags": [
                {
                    "tag": "0x40010001",
                    "name": "TrustBoundary",
                    "tags": [
                        {"tag": "0x00050003", "name": "TestSigning", "value": False},
                        {"tag": "0x00050003", "name": "TestSigning", "value": "0101"},
                        {"tag": "0x80000123", "name": "tag 0x80000123", "value": "fe"},
                    ],
                },
                {"tag": "0x8f3b22ec", "name": "Linux initrd", "value": "initrd"},
            ]
        },
        [
            *[("tag", 4), ("tag's size", 4), ("TrustBoundary", 28)],
            *[("tag", 4), ("tag's size", 4), ("Linux initrd", 7)],
        ],
    ),
    "a tag that nobody knows": (
        TAG,
        tag(0x12, b"\xfe"),
        "tag 0x00000012 fe",
        {"tags": [{"tag": "0x00000012", "name": "tag 0x00000012", "value": "fe"}]},
        [("tag", 4), ("tag's size", 4), ("tag 0x00000012", 1)],
    ),
    "microcode": (
        9,
        struct.pack("<8I", 1, 0x800000B4, 0x12312023, 0x800A0671, 9, 9, 9, 9) + bytes(16),
        "revision 0x800000b4 of 2023-12-31 for processor 0x800a0671",
        {"revision": "0x800000b4", "date": "2023-12-31", "processor": "0x800a0671"},
        None,
    ),
    "microcode by name": (9, b"Intel", "Intel", {"string": "Intel"}, None),
    "a long name of microcode": (9, b"I" * 48, "I" * 48, {"string": "I" * 48}, None),
    "a version of the CRTM": (8, ucs2("1.0\0"), "1.0", {"version": "1.0"}, None),
    "a version of the CRTM in another script": (8, ucs2("версия\0"), "версия", {"version": "версия"}, None),
    "a version of the CRTM as a GUID": (8, DISK.bytes_le, str(DISK), {"guid": str(DISK)}, None),
    "a version of the CRTM as bytes": (8, b"\1\2\3", "010203", {"value": "010203"}, None),
    "a blob": (
        0x80000008,
        struct.pack("<QQ", 2**63 + 15, 2**63 + 1),
        f"{2**63 + 1} bytes at 0x800000000000000f",
        {"base": "0x800000000000000f", "length": 2**63 + 1},
        None,
    ),
    "a blob with a description": (
        0x8000000A,
        sized("Fv") + struct.pack("<QQ", 2**63, 1),
        "Fv: 1 bytes at 0x8000000000000000",
        {"description": "Fv", "base": "0x8000000000000000", "length": 1},
        [("description size", 1), ("description", 2), ("blob", 16)],
    ),
    "a blob with an empty description": (
        0x8000000A,
        b"\0" + struct.pack("<QQ", 2**63, 1),
        "1 bytes at 0x8000000000000000",
        {"description": "", "base": "0x8000000000000000", "length": 1},
        [("description size", 1), ("blob", 16)],
    ),
    "tables": (
        0x80000009,
        struct.pack("<Q", 2)
        + (SMBIOS.bytes_le + struct.pack("<Q", 2**63 + 1))
        + (DISK.bytes_le + struct.pack("<Q", 2)),
        f"SMBIOS table, {DISK}",
        {
            "tables": [
                {"guid": str(SMBIOS), "name": "SMBIOS table", "address": "0x8000000000000001"},
                {"guid": str(DISK), "name": str(DISK), "address": "0x2"},
            ]
        },
        [
            ("number of tables", 8),
            ("table GUID", 16),
            ("table address", 8),
            ("table GUID", 16),
            ("table address", 8),
        ],
    ),
    "tables with a description": (
        0x8000000B,
        sized("DMI") + struct.pack("<Q", 1) + SMBIOS.bytes_le + struct.pack("<Q", 1),
        "DMI: SMBIOS table",
        {"description": "DMI", "tables": [{"guid": str(SMBIOS), "name": "SMBIOS table", "address": "0x1"}]},
        [
            ("description size", 1),
            ("description", 3),
            ("number of tables", 8),
            ("table GUID", 16),
            ("table address", 8),
        ],
    ),
    "tables with an empty description": (
        0x8000000B,
        b"\0" + bytes(8),
        "no tables",
        {"description": "", "tables": []},
        [("description size", 1), ("number of tables", 8)],
    ),
    "an image": (
        0x80000003,
        struct.pack("<QQQQ", 2**63 + 1, 2**63 + 2, 2**63 + 4, len(FILE_PATH)) + FILE_PATH,
        "\\a.efi",
        {
            "path": "\\a.efi",
            "file": "\\a.efi",
            "location": "0x8000000000000001",
            "length": 2**63 + 2,
            "link_time_address": "0x8000000000000004",
        },
        [("image load event", 32), ("device path", len(FILE_PATH))],
    ),
    "partitions": (
        0x80000006,
        GPT
        + struct.pack("<Q", 2)
        + (ESP.bytes_le + PART.bytes_le + GPT_ENTRY + ucs2("EFI System").ljust(72, b"\0") + b"\1\2")
        + (DISK.bytes_le + DISK.bytes_le + GPT_ENTRY + bytes(72) + b"\1\2"),
        f"disk {DISK}: EFI System (EFI system partition), unnamed ({DISK})",
        {
            "disk": str(DISK),
            "partitions": [
                {
                    "name": name,
                    "kind": "EFI system partition" if kind == ESP else str(kind),
                    "type": str(kind),
                    "guid": str(guid),
                    "first_block": 2**63 + 1,
                    "last_block": 2**63 + 2,
                    "attributes": "0x8000000000000004",
                }
                for name, kind, guid in (("EFI System", ESP, PART), ("", DISK, DISK))
            ],
        },
        [("partition table header", 92), ("number of partitions", 8), ("partition", 130), ("partition", 130)],
    ),
    "no partitions": (
        0x80000006,
        GPT + bytes(8),
        f"disk {DISK}: no partitions",
        {"disk": str(DISK), "partitions": []},
        [("partition table header", 92), ("number of partitions", 8)],
    ),
    "a command of GRUB": (
        0x0D,
        b"grub_cmd: insmod gzio",
        "grub_cmd: insmod gzio",
        {"string": "grub_cmd: insmod gzio", "kind": "GRUB command", "value": "insmod gzio"},
        None,
    ),
    "a command line of GRUB": (
        0x0D,
        b"kernel_cmdline: /vmlinuz ro",
        "kernel_cmdline: /vmlinuz ro",
        {"string": "kernel_cmdline: /vmlinuz ro", "kind": "kernel command line", "value": "/vmlinuz ro"},
        None,
    ),
    "a loader's bytes": (0x0D, b"\xfe", "fe", {"value": "fe"}, None),
    "the H-CRTM": (0x80000010, b"HCRTM\0", "HCRTM", {"string": "HCRTM"}, None),
    "a device": (
        0x800000E1,
        b"SPDM Device Sec\0"
        + struct.pack("<HHII", 0x8001, 0x8002, 0x80000002, 0x80000001)
        + struct.pack("<BBH", 0x81, 0x82, 2)
        + b"\xaa\xbb\x86",
        "type 2147483649 device, measurement 129: aabb",
        {
            "version": 0x8001,
            "hash_algorithm": "0x80000002",
            "device": "type 2147483649",
            "index": 0x81,
            "measurement": "aabb",
            "context": "86",
        },
        [("signature", 16), ("header", 12), ("measurement block", 4), ("measurement", 2)],
    ),
    "a device of version 2": (
        0x800000E2,
        b"SPDM Device Sec2" + SPDM_2 + struct.pack("<Q", len(FILE_PATH)) + FILE_PATH + SUB + b"\x86\x80",
        "type 2147483649 device \\a.efi, measurement block, 0x81",
        {
            "version": 0x8002,
            "authentication": "0x81",
            "device": "type 2147483649",
            "kind": "measurement block",
            "uid": "0x8000000000000009",
            "path": "\\a.efi",
            "sub_header": SUB.hex(),
            "context": "8680",
            "spdm_version": "0x8012",
            "hash_algorithm": "0x80000002",
            "measurements": [{"index": 0x81, "measurement": "aabb"}, {"index": 0x83, "measurement": ""}],
        },
        [
            ("signature", 16),
            ("header", 28),
            ("device path length", 8),
            ("device path", len(FILE_PATH)),
            ("sub-header", len(SUB)),
        ],
    ),
    "a boot option": (
        BOOT,
        variable("Boot000A", OPTION),
        "Boot000A: Linux \\a.efi",
        of_variable(
            "Boot000A", OPTION, description="Linux", active=True, path="\\a.efi", file="\\a.efi", optional="dead"
        ),
        of_name("Boot000A", OPTION),
    ),
    "the boot order": (
        BOOT,
        variable("BootOrder", b"\1\x80\x1a\0"),
        "BootOrder: 8001, 001A",
        of_variable("BootOrder", b"....", order=["8001", "001A"]),
        of_name("BootOrder", b"...."),
    ),
    "Secure Boot": (
        CONFIG,
        variable("SecureBoot", b"\1"),
        "SecureBoot: on",
        of_variable("SecureBoot", b".", enabled=True),
        of_name("SecureBoot", b"."),
    ),
    "Secure Boot off": (
        CONFIG,
        variable("SecureBoot", b"\0"),
        "SecureBoot: off",
        of_variable("SecureBoot", b".", enabled=False),
        of_name("SecureBoot", b"."),
    ),
    "Secure Boot of two bytes": (
        CONFIG,
        variable("SecureBoot", b"\0\1"),
        "SecureBoot: 0001",
        of_variable("SecureBoot", b"..", value="0001"),
        of_name("SecureBoot", b".."),
    ),
    "a variable of nothing": (
        CONFIG,
        variable("PK", b""),
        "PK: empty",
        of_variable("PK", b""),
        of_name("PK", b""),
    ),
    "a variable with bytes behind": (
        CONFIG,
        variable("Setup", b"\xfe") + b"123",
        "Setup: fe",
        of_variable("Setup", b".", bytes_behind=3, value="fe"),
        None,
    ),
    "a variable of a vendor": (
        CONFIG,
        variable("Sbat", b"sbat"),
        "Sbat: sbat",
        of_variable("Sbat", b"sbat", string="sbat"),
        of_name("Sbat", b"sbat"),
    ),
    "a hash for an authority": (
        AUTHORITY,
        variable("db", MICROSOFT.bytes_le + b"\7" * 32),
        f"db: sha256 {'07' * 32}",
        of_variable("db", b"." * 48, signature={"type": "sha256", "value": "07" * 32, "owner": "Microsoft"}),
        of_name("db", b"." * 48),
    ),
    "an authority that is none": (
        AUTHORITY,
        variable("Other", b"\xfe" * 5),
        "Other: fefefefefe",
        of_variable("Other", b"." * 5, value="fe" * 5),
        of_name("Other", b"." * 5),
    ),
    "a type that nobody knows": (0x12345678, b"anything", b"anything".hex(), {"value": b"anything".hex()}, []),
}
CUT = re.compile(r"malformed: (.+) of (\d+) bytes, (\d+) are left")


@pytest.mark.parametrize(("kind", "data", "text", "details"), [e[:4] for e in EVENTS.values()], ids=EVENTS)
def test_each_field_is_told_under_its_name(kind, data, text, details):
    words = decode(kind, data, {"sha256": hashlib.sha256(data).digest()})
    assert (words.text, words.details) == (text, details)


@pytest.mark.parametrize(
    ("kind", "data", "fields"),
    [(e[0], e[1], e[4]) for e in EVENTS.values() if e[4] is not None],
    ids=[name for name, e in EVENTS.items() if e[4] is not None],
)
def test_a_cut_event_says_which_field_is_missing(kind, data, fields):
    """In their order; where a structure is cut inside of a field, all of its size is asked for."""
    found, before = [], len(data)
    for length in range(16 if kind == NO_ACTION else 0, len(data)):
        words = decode(kind, data[:length], {})
        if cut := CUT.match(words.text):
            name, needed, left = cut[1], int(cut[2]), int(cut[3])
            assert left < needed
            assert words.details == {
                "malformed": words.text.removeprefix("malformed: "),
                "value": hex_of(data[:length]),
            }
            if left <= before or found[-1] != (name, needed):
                found.append((name, needed))
            before = left
    assert found == fields


def missing(read, data):
    """The fields that are named while the data grows, in their order."""
    found = []
    for length in range(len(data)):
        try:
            shown = read(data[:length])
        except MalformedData as error:
            shown = str(error)
        if (cut := re.search(r"(?:malformed: )?([^:]+) of (\d+) bytes, (\d+) are left$", shown)) and (
            not found or found[-1] != (cut[1], int(cut[2]))
        ):
            found.append((cut[1], int(cut[2])))
    return found


def told_of(name, kind=CONFIG):
    return lambda value: decode(kind, variable(name, value), {}).text


def test_a_cut_boot_option_says_which_field_is_missing():
    fields = [("boot option", 4), ("boot option", 2), ("boot option's path", len(FILE_PATH))]
    assert missing(told_of("Boot0001", BOOT), OPTION) == fields
    words = decode(BOOT, variable("Boot0001", OPTION[:2]), {})
    assert words.details == of_variable("Boot0001", b"..", malformed="boot option of 4 bytes, 2 are left")


def signatures(kind, *values, header=b"", size=None):
    size = 16 + len(values[0]) if size is None else size
    body = b"".join(MICROSOFT.bytes_le + value for value in values)
    return kind.bytes_le + struct.pack("<III", 28 + len(header) + len(body), len(header), size) + header + body


def test_a_cut_signature_list_says_which_field_is_missing():
    data = signatures(SHA256_LIST, b"\1" * 32, b"\2" * 32, header=b"head")
    fields = [("signature type", 16), ("signature list", 12), ("signature header", 4), ("signatures", 96)]
    assert missing(lambda cut: str(signature_lists(cut)), data) == fields
    for size in (0, 15, 16, 31):
        with pytest.raises(MalformedData, match=f"^signature list of 76 bytes, entries of {size}$"):
            signature_lists(signatures(SHA256_LIST, b"\1" * 32, size=size))
    with pytest.raises(MalformedData, match=r"^signature list of 27 bytes, entries of 48$"):
        signature_lists(SHA256_LIST.bytes_le + struct.pack("<III", 27, 0, 48) + bytes(60))
    assert signature_lists(signatures(SHA256_LIST, b"\1")) == [{"type": "sha256", "value": "01", "owner": "Microsoft"}]


def test_a_list_is_told_in_one_line():
    junk = b"\x30\x82" + bytes(8)
    entries = signature_lists(signatures(X509_LIST, junk) + signatures(SHA256_LIST, b"\1" * 32, b"\2" * 32))
    fingerprint = hashlib.sha256(junk).hexdigest()
    unread = {"type": "x509", "sha256": fingerprint, "malformed": "no certificate that can be read, 10 bytes"}
    assert entries == [
        {**unread, "owner": "Microsoft"},
        {"type": "sha256", "value": "01" * 32, "owner": "Microsoft"},
        {"type": "sha256", "value": "02" * 32, "owner": "Microsoft"},
    ]
    first = f"certificate no certificate that can be read, 10 bytes (sha256 {fingerprint[:16]}…)"
    assert told(entries) == f"{first}; 2 sha256"
    assert [name_of(entry) for entry in entries] == [first, f"sha256 {'01' * 32}", f"sha256 {'02' * 32}"]
    assert told([]) == "empty"
    assert signature_data(junk) == unread
    assert signature_data(MICROSOFT.bytes_le + junk) == {**unread, "owner": "Microsoft"}
    assert signature_data(bytes(16) + b"\x30\x83") is None


def test_certificates_beyond_the_cap_have_their_fingerprint():
    junk = b"\x30\x82" + bytes(8)
    entries = signature_lists(signatures(X509_LIST, *[junk] * (CERTIFICATES_MOST + 1)))
    assert entries[-2]["malformed"] == "no certificate that can be read, 10 bytes"
    assert entries[-1] == {
        "type": "x509",
        "sha256": hashlib.sha256(junk).hexdigest(),
        "malformed": "one of many: not read",
        "owner": "Microsoft",
    }
    hashes = signatures(SHA256_LIST, *[b"\1" * 32] * ENTRIES_MOST)
    assert len(signature_lists(hashes)) == ENTRIES_MOST
    with pytest.raises(MalformedData, match=r"^more than 1024 entries$"):
        signature_lists(hashes + signatures(SHA256_LIST, b"\1" * 32))


def spec_3(count):
    return b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, count) + struct.pack("<HH", 4, 20) * 17 + b"\0"


@pytest.mark.parametrize(
    ("kind", "data", "more", "text"),
    [
        (NO_ACTION, spec_3(16), spec_3(17), "17 algorithms"),
        (0x80000009, struct.pack("<Q", 256) + bytes(24 * 257), struct.pack("<Q", 257) + bytes(24 * 257), "257 tables"),
        (
            0x80000006,
            GPT + struct.pack("<Q", 256) + bytes(130 * 257),
            GPT + struct.pack("<Q", 257) + bytes(130 * 257),
            "257 partitions of 130 bytes",
        ),
        (TAG, tag(1, b"") * 256, tag(1, b"") * 257, "more than 256 tags"),
        (CONFIG, variable("n" * 1024, b""), variable("n" * 1025, b""), "a name of 1025 characters"),
        (NO_ACTION, b"StartupLocality\0\3", b"StartupLocality\0\3\0\0", "2 bytes behind the locality"),
        (0x8000000A, b"\0" + bytes(16), b"\0" + bytes(19), "3 bytes behind the blob"),
        (0x80000010, b"HCRTM", b"hcrtm", "hcrtm in the place of HCRTM"),
        (BOOT, variable("BootOrder", b"\1\0"), b"", "variable GUID of 16 bytes, 0 are left"),
    ],
)
def test_the_last_good_one_and_the_first_bad_one(kind, data, more, text):
    assert "malformed" not in decode(kind, data, {}).text
    assert decode(kind, more, {}).text == f"malformed: {text}"


def test_a_partition_entry_has_at_least_its_size():
    def gpt(entry_bytes):
        header = b"EFI PART" + bytes(48) + DISK.bytes_le + struct.pack("<QIII", 2, 128, entry_bytes, 0)
        return header + struct.pack("<Q", 1) + bytes(128)

    assert decode(0x80000006, gpt(127), {}).text == "malformed: 1 partitions of 127 bytes"
    assert decode(0x80000006, gpt(128), {}).text == f"disk {DISK}: unnamed ({UUID(int=0)})"


def test_tags_are_read_to_a_depth():
    """Four aggregations in one another; the fifth is bytes."""
    data = tag(0x00050003, b"\1")
    for _ in range(6):
        data = tag(0x40010001, data)
    found, depth = decode(TAG, data, {}).details, 0
    while "tags" in found:
        (found,) = found["tags"]
        depth += 1
    assert depth == 5
    assert isinstance(found["value"], str)


@pytest.mark.parametrize("kind", range(5))
def test_a_device_has_its_bus_and_what_it_proved(kind):
    fields = struct.pack("<HBBIIIIQ", 2, kind, 0, 0, kind, 1 + kind, 0, 9)
    details = decode(0x800000E2, b"SPDM Device Sec2" + fields + bytes(8), {}).details
    assert details["device"] == ("no device type", "PCI", "USB", "type 3", "type 4")[kind]
    names = ("authenticated", "no authority", "no binding", "failed: no signature", "failed: invalid")
    assert details["authentication"] == names[kind]
    assert details["kind"] == ("certificate chain", "OEM measurement", "0x3", "0x4", "0x5")[kind]


def test_a_device_of_another_signature_is_malformed():
    assert decode(0x800000E1, b"x" * 20, {}).text == "malformed: signature " + "78" * 16


def test_a_cursor_names_what_is_missing():
    cursor = Cursor(b"")
    for read, name, size in (
        (cursor.u8, "field", 1),
        (cursor.u16, "field", 2),
        (cursor.u32, "field", 4),
        (cursor.u64, "field", 8),
        (cursor.guid, "GUID", 16),
        (lambda: cursor.unpack("HH"), "field", 4),
        (lambda: cursor.take(3), "data", 3),
    ):
        with pytest.raises(MalformedData, match=f"^{name} of {size} bytes, 0 are left$"):
            read()
    for read, size in ((cursor.u8, 1), (cursor.u16, 2), (cursor.u32, 4), (cursor.u64, 8), (cursor.guid, 16)):
        with pytest.raises(MalformedData, match=f"^the size of {size} bytes, 0 are left$"):
            read("the size")
    assert cursor.ucs2z() == ""


def test_a_cursor_reads_little_endian_and_forward():
    cursor = Cursor(bytes(range(1, 35)))
    assert (cursor.u8(), cursor.u16(), cursor.u32()) == (0x01, 0x0302, 0x07060504)
    assert cursor.u64() == 0x0F0E0D0C0B0A0908
    assert cursor.unpack("BH") == (0x10, 0x1211)
    assert cursor.left == 16
    assert cursor.guid() == str(UUID(bytes_le=bytes(range(0x13, 0x23))))
    assert (cursor.left, cursor.rest()) == (0, b"")


def test_a_string_ends_at_its_nul_and_what_follows_stays():
    cursor = Cursor(ucs2("ab\0cd") + b"\xfe")
    assert (cursor.ucs2z(), cursor.left) == ("ab", 5)
    assert (cursor.ucs2z(), cursor.left) == ("cd", 1)
    assert (cursor.ucs2z(), cursor.left) == ("", 1)
    assert Cursor(b"\x00\xd8a\0").ucs2z() == "\ufffda"
    assert ucs2_of(b"\x00\xd8a\0b") == "\ufffda"


def test_long_things_are_cut_and_say_so():
    assert hex_of(bytes(SHOWN_BYTES)) == "00" * 32
    assert hex_of(bytes(SHOWN_BYTES + 1)) == "00" * 32 + "… (33 bytes)"
    assert printable("a" * 4096) == "a" * 4096
    assert printable("a" * 4097) == "a" * 4096 + "…"
    assert printable("\x1b\n\u202e") == "\\x1b\\n\\u202e"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", None),
        (b"a", "a"),
        (b"a\0", "a"),
        (b"a\0b\0", "ab"),
        (ucs2("яaa"), None),
        (ucs2("aяa"), "aяa"),
        (ucs2("aaяя"), None),
        (b"\xc3", None),
        (b"a\tb\r\n", "a\tb\r\n"),
        (b"a\x0b", None),
    ],
)
def test_what_counts_as_a_string(data, text):
    assert string_of(data) == text


def test_guids_have_their_names():
    assert guid_name(str(ESP)) == "EFI system partition"
    assert guid_name(str(PART)) == str(PART)
    assert all(str(UUID(guid)) == guid for guid in GUID_NAMES)


def test_cut_measurements_of_a_device_say_which_field_is_missing():
    def of_sub(sub):
        fields = struct.pack("<HBBIIIIQ", 2, 0, 0, 0, 1, 0, len(sub), 9)
        return decode(0x800000E2, b"SPDM Device Sec2" + fields + bytes(8) + sub, {}).text

    measurements = struct.pack("<HBBI", 0x12, 1, 0, 2) + struct.pack("<BBH", 5, 1, 2) + b"\xaa\xbb"
    assert missing(of_sub, measurements) == [("measurements", 8), ("measurement block", 4), ("measurement", 2)]
