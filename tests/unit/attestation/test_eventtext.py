"""Every type of event in words; hostile data is called malformed and never raises."""

import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation.eventtext import MAX_TEXT, TYPE_NAMES, decode, describe, measured
from provisioning.attestation.eventtext_signatures import CERTIFICATES_MOST, ENTRIES_MOST

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
MICROSOFT = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b").bytes_le
X509_LIST = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
SHA256_LIST = UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
DISK = UUID("11111111-2222-3333-4444-555555555555")
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
CONFIG, BOOT, AUTHORITY = 0x80000001, 0x80000002, 0x800000E0


def digest_of(data):
    return {"sha256": hashlib.sha256(data).digest()}


def ucs2(text):
    return text.encode("utf-16-le")


def make_certificate(name="Muster test db"):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 77)
    built = builder.not_valid_before(now).not_valid_after(now + timedelta(days=9)).sign(key, hashes.SHA256())
    return built.public_bytes(Encoding.DER).ljust(0)


CERTIFICATE = make_certificate()


def variable(name, value, guid=GLOBAL, characters=None, size=None, behind=b""):
    lengths = struct.pack("<QQ", len(name) if characters is None else characters, len(value) if size is None else size)
    return guid + lengths + ucs2(name) + value + behind


def signature_list(kind, *values, owner=MICROSOFT, header=b""):
    size = 16 + len(values[0]) if values else 48
    body = b"".join(owner + value for value in values)
    return kind + struct.pack("<III", 28 + len(header) + len(body), len(header), size) + header + body


def node(kind, subtype, data=b""):
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


END = node(0x7F, 0xFF)


def path(*nodes):
    return b"".join(nodes) + END


def image(device_path, length=None):
    return struct.pack("<QQQQ", 0x1000, 4096, 0, len(device_path) if length is None else length) + device_path


def tag(number, data):
    return struct.pack("<II", number, len(data)) + data


def sized(text):
    return bytes([len(text)]) + text.encode()


def gpt(count=1, entry_bytes=128, signature=b"EFI PART"):
    header = signature + bytes(48) + DISK.bytes_le + struct.pack("<QIII", 2, 128, entry_bytes, 0)
    name = ucs2("EFI System").ljust(72, b"\0")
    entry = ESP.bytes_le + DISK.bytes_le + struct.pack("<QQQ", 2048, 4095, 0) + name
    return header + struct.pack("<Q", count) + entry * min(count, 2)


SPEC_03 = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 106, 2, 2)
SPEC_03 += struct.pack("<HHHH", 4, 20, 0x0B, 32) + b"\2ab"
PLATFORM = struct.pack("<I", 11129) + DISK.bytes_le + sized("Maker") + sized("Box") + sized("2") + sized("Firm")
PLATFORM += struct.pack("<I", 7) + sized("1.9")
SPDM_2 = b"SPDM Device Sec2" + struct.pack("<HBBIIIIQ", 2, 0, 0, 0, 1, 0, 14, 9) + struct.pack("<Q", len(END)) + END
SPDM_2 += struct.pack("<HBBI", 0x12, 1, 0, 2) + struct.pack("<BBH", 5, 1, 2) + b"\xaa\xbb" + b"\x86\x80"
MICROCODE = struct.pack("<8I", 1, 0xB4, 0x07152023, 0xA0671, 0, 0, 0, 0) + bytes(16)
FINGERPRINT = hashlib.sha256(CERTIFICATE).hexdigest()[:16]

WORDS = {
    "a power-on code": (0x01, b"POST CODE", "POST CODE"),
    "a power-on code's blob": (0x01, struct.pack("<QQ", 0xFF00, 16), "16 bytes at 0xff00"),
    "the specification, crypto-agile": (0x03, SPEC_03, "specification 2.00 errata 106; digests sha1, sha256"),
    "the specification, SHA-1": (
        0x03,
        b"Spec ID Event02\0" + struct.pack("<IBBBBB", 0, 2, 1, 2, 2, 0),
        "specification 1.02 errata 2; SHA-1 digests",
    ),
    "the specification, BIOS": (
        0x03,
        b"Spec ID Event00\0" + struct.pack("<IBBB", 0, 21, 1, 1),
        "specification 1.21 errata 1 (BIOS)",
    ),
    "the startup locality": (0x03, b"StartupLocality\0\3", "StartupLocality 3 (TPM2_Startup by the CRTM)"),
    "a reference manifest": (
        0x03,
        b"SP800-155 Event\0" + struct.pack("<I", 9) + DISK.bytes_le,
        f"SP800-155 Event: reference manifest {DISK} of vendor 9",
    ),
    "a reference manifest, 2": (0x03, b"SP800-155 Event2" + PLATFORM, "SP800-155 Event2: Maker Box 2 1.9"),
    "a reference manifest, 3": (
        0x03,
        b"SP800-155 Event3" + PLATFORM + struct.pack("<II", 1, 4) + b"a://" + struct.pack("<II", 0, 0),
        "SP800-155 Event3: Maker Box 2 1.9",
    ),
    "a component of the H-CRTM": (
        0x03,
        b"H-CRTM CompMeas\0" + sized("ACM") + b"\1" + struct.pack("<H", 2) + b"\xab\xcd",
        "H-CRTM component ACM: abcd",
    ),
    "an NV index": (0x03, b"NvIndexInstance\0\1\2", "NvIndexInstance: 0102"),
    "no action of another kind": (0x03, b"whatever", "whatever"),
    "a separator": (0x04, bytes(4), ""),
    "a separator of ones": (0x04, b"\xff" * 4, ""),
    "a separator that is an error": (0x04, b"\1\0\0\0", "error 01000000"),
    "an action": (0x05, b"Start Option ROM Scan", "Start Option ROM Scan"),
    "a tag of Linux": (0x06, tag(0x8F3B22EC, b"Linux initrd\0"), "Linux initrd Linux initrd"),
    "tags of Windows": (
        0x06,
        tag(0x40010001, tag(0x00050003, b"\1") + tag(0x00070001, ucs2("\\Windows\\a.exe\0")) + tag(0x123, b"\1")),
        "TrustBoundary (TestSigning True, FilePath \\\\Windows\\\\a.exe, tag 0x00000123 01)".replace("\\\\", "\\"),
    ),
    "the CRTM's contents": (0x07, b"Boot Guard Measured S-CRTM\0", "Boot Guard Measured S-CRTM"),
    "the CRTM's contents as a blob": (0x07, sized("CRTM") + struct.pack("<QQ", 4096, 2), "CRTM: 2 bytes at 0x1000"),
    "the CRTM's version": (0x08, ucs2("1.0\0"), "1.0"),
    "the CRTM's version as a GUID": (0x08, DISK.bytes_le, str(DISK)),
    "the CRTM's version of sixteen bytes": (0x08, ucs2("1.2.3.4\0"), "1.2.3.4"),
    "the CRTM's version in another script": (0x08, ucs2("версия\0"), "версия"),
    "the CRTM's version as bytes": (0x08, b"\1" * 15, "01" * 15),
    "microcode": (0x09, MICROCODE, "revision 0xb4 of 2023-07-15 for processor 0xa0671"),
    "microcode by name": (0x09, b"CPU Microcode", "CPU Microcode"),
    "microcode as a blob": (0x09, struct.pack("<QQ", 0xFF00, 16), "16 bytes at 0xff00"),
    "microcode of another maker": (0x09, bytes(47) + b"\1", "00" * 32 + "… (48 bytes)"),
    "platform flags": (0x0A, b"ACPI DATA", "ACPI DATA"),
    "a table of devices": (0x0B, b"disk 0", "disk 0"),
    "a table of devices in bytes": (0x0B, b"\1\2\3", "010203"),
    "a compact hash": (0x0C, b"Dell Configuration Information 1\0", "Dell Configuration Information 1"),
    "GRUB's command": (0x0D, b"grub_cmd: insmod gzio\0", "grub_cmd: insmod gzio"),
    "systemd's command line": (0x0D, ucs2("root=/dev/sda1 quiet\0"), "root=/dev/sda1 quiet"),
    "what the loader measured as bytes": (0x0D, b"\xff\xfe\xfd", "fffefd"),
    "partition data": (0x0E, b"\1" * 33, "01" * 32 + "… (33 bytes)"),
    "code beside the host": (0x0F, b"\1", "01"),
    "configuration beside the host": (0x10, b"ME", "ME"),
    "information beside the host": (0x11, b"GCE NonHostInfo\0\0", "GCE NonHostInfo"),
    "left out boot devices": (0x12, b"BOOT ATTEMPTS OMITTED", "BOOT ATTEMPTS OMITTED"),
    "a power-on code's name, 2": (0x13, b"ACPI DATA", "ACPI DATA"),
    "a boot option whose name does not end": (
        BOOT,
        variable("Boot0002", struct.pack("<IH", 1, 0) + ucs2("Endless")),
        "Boot0002: Endless",
    ),
    "a power-on code, 2": (0x13, sized("BIOS") + struct.pack("<QQ", 1, 2), "BIOS: 2 bytes at 0x1"),
    "Secure Boot on": (CONFIG, variable("SecureBoot", b"\1"), "SecureBoot: on"),
    "Secure Boot off": (CONFIG, variable("SecureBoot", b"\0"), "SecureBoot: off"),
    "Secure Boot of two bytes": (CONFIG, variable("SecureBoot", b"\0\1"), "SecureBoot: 0001"),
    "no platform key": (CONFIG, variable("PK", b""), "PK: empty"),
    "a database": (
        CONFIG,
        variable("db", signature_list(X509_LIST, CERTIFICATE) + signature_list(SHA256_LIST, bytes(32), b"\1" * 32)),
        f"db: certificate CN=Muster test db (sha256 {FINGERPRINT}…); 2 sha256",
    ),
    "a database that lies": (CONFIG, variable("dbx", b"\1" * 50), "dbx: malformed: signature list of 16843009 bytes"),
    "a database of one entry": (CONFIG, variable("MokList", MICROSOFT + bytes(32)), "MokList: 1 sha256"),
    "a vendor's setting": (CONFIG, variable("Setup", b"\xff\xfe"), "Setup: fffe"),
    "a vendor's string": (CONFIG, variable("SbatLevel", b"sbat,1,2021\n"), "SbatLevel: sbat,1,2021\\n"),
    "the boot order": (BOOT, variable("BootOrder", b"\1\0\x1a\0"), "BootOrder: 0001, 001A"),
    "half a boot order": (BOOT, variable("BootOrder", b"\1"), "BootOrder: malformed: 1 bytes of numbers"),
    "a boot option": (
        BOOT,
        variable(
            "Boot0001",
            struct.pack("<IH", 1, len(path(node(4, 4, ucs2("\\a.efi\0")))))
            + ucs2("Linux\0")
            + path(node(4, 4, ucs2("\\a.efi\0"))),
        ),
        "Boot0001: Linux \\a.efi",
    ),
    "a boot option, 2": (
        0x8000000C,
        variable("Boot000A", struct.pack("<IH", 0, 0) + ucs2("Off\0")),
        "Boot000A: Off (not active)",
    ),
    "a boot application": (
        0x80000003,
        image(path(node(2, 1, struct.pack("<II", 0x0A0341D0, 0)), node(4, 4, ucs2("\\EFI\\BOOT\\BOOTX64.EFI\0")))),
        "PciRoot(0x0)/\\EFI\\BOOT\\BOOTX64.EFI",
    ),
    "a boot application without path": (0x80000003, image(b""), "an image of 4096 bytes, no path"),
    "a driver": (0x80000004, image(path(node(4, 7, DISK.bytes_le))), f"Fv({DISK})"),
    "a runtime driver": (0x80000005, image(path(node(4, 6, DISK.bytes_le))), f"FvFile({DISK})"),
    "the partitions": (0x80000006, gpt(), f"disk {DISK}: EFI System (EFI system partition)"),
    "the partitions, 2": (0x8000000D, gpt(2), f"disk {DISK}: EFI System (EFI system partition), EFI System"),
    "an EFI action": (0x80000007, b"Exit Boot Services Invocation", "Exit Boot Services Invocation"),
    "firmware": (0x80000008, struct.pack("<QQ", 0xFF000000, 4096), "4096 bytes at 0xff000000"),
    "firmware, 2": (0x8000000A, sized("Fv") + struct.pack("<QQ", 0, 1), "Fv: 1 bytes at 0x0"),
    "tables": (
        0x80000009,
        struct.pack("<Q", 1) + UUID("eb9d2d31-2d88-11d3-9a16-0090273fc14d").bytes_le + struct.pack("<Q", 99),
        "SMBIOS table",
    ),
    "tables, 2": (0x8000000B, sized("x") + struct.pack("<Q", 0), "x: no tables"),
    "the H-CRTM": (0x80000010, b"HCRTM", "HCRTM"),
    "an authority": (
        AUTHORITY,
        variable("db", MICROSOFT + CERTIFICATE, SECURITY),
        f"db: certificate CN=Muster test db (sha256 {FINGERPRINT}…)",
    ),
    "shim's own authority": (
        AUTHORITY,
        variable("Shim", CERTIFICATE, behind=bytes(6)),
        f"Shim: certificate CN=Muster test db (sha256 {FINGERPRINT}…)",
    ),
    "a hash for an authority": (AUTHORITY, variable("db", MICROSOFT + bytes(32)), f"db: sha256 {'00' * 32}"),
    "a switch for an authority": (AUTHORITY, variable("MokListTrusted", b"\1"), "MokListTrusted: on"),
    "a device's firmware": (
        0x800000E1,
        b"SPDM Device Sec\0" + struct.pack("<HHII", 1, 0, 2, 1) + struct.pack("<BBH", 3, 1, 2) + b"\xaa\xbb",
        "PCI device, measurement 3: aabb",
    ),
    "a device's configuration": (0x800000E2, SPDM_2, "PCI device , measurement block, authenticated"),
    "a device's policy": (0x800000E3, variable("devdb", signature_list(SHA256_LIST, bytes(32))), "devdb: 1 sha256"),
    "a device's authority": (
        0x800000E4,
        variable("devdb", MICROSOFT + CERTIFICATE),
        f"devdb: certificate CN=Muster test db (sha256 {FINGERPRINT}…)",
    ),
    "a type that nobody knows": (0x12345678, b"anything", b"anything".hex()),
}


@pytest.mark.parametrize(("kind", "data", "text"), WORDS.values(), ids=WORDS)
def test_events_are_told_in_words(kind, data, text):
    words = decode(kind, data, digest_of(data))
    assert words.text.startswith(text)
    assert words.text == text or text.endswith(("bytes", "numbers", "EFI System")), words.text
    assert words.type == TYPE_NAMES.get(kind, f"{kind:#010x}")
    assert words.measured
    assert not words.doubted
    assert json.dumps(words.details)


def test_every_type_of_the_specification_is_among_them():
    missing = {name for kind, name in TYPE_NAMES.items() if kind not in {k for k, _, _ in WORDS.values()}}
    assert {name for name in missing if not name.startswith("EV_TXT_")} == {"EV_PREBOOT_CERT", "EV_UNUSED"}


def test_a_database_is_told_entry_by_entry():
    data = variable("db", signature_list(X509_LIST, CERTIFICATE) + signature_list(SHA256_LIST, b"\7" * 32))
    certificate, digest = decode(CONFIG, data, {}).details["signatures"]
    assert certificate == {
        "type": "x509",
        "sha256": hashlib.sha256(CERTIFICATE).hexdigest(),
        "subject": "CN=Muster test db",
        "issuer": "CN=Muster test db",
        "serial": "4d",
        "not_before": "2026-01-01T00:00:00+00:00",
        "not_after": "2026-01-10T00:00:00+00:00",
        "owner": "Microsoft",
    }
    assert digest == {"type": "sha256", "value": "07" * 32, "owner": "Microsoft"}


SIGNATURE_TYPES = {
    "a5c059a1-94e4-4aa7-87b5-ab155c2bf072": "x509",
    "c1c41626-504c-4092-aca9-41f936934328": "sha256",
    "826ca512-cf10-4ac9-b187-be01496631bd": "sha1",
    "0b6e5233-a65c-44c9-9407-d9ab83bfc8bd": "sha224",
    "ff3e5307-9fd0-48c9-85f1-8ad56c701e01": "sha384",
    "093e0fae-a6c4-4f50-9f1b-d41e2b89c19a": "sha512",
    "57347f87-7a9b-403a-b93c-dc4afb7a0ebc": "sm3",
    "3c5766e8-269c-4e34-aa14-ed776e85b3b6": "rsa2048",
    "3bd2a492-96c0-4079-b420-fcf98ef103ed": "x509-sha256",
    "00000000-0000-0000-0000-00000000000f": "00000000-0000-0000-0000-00000000000f",
}


@pytest.mark.parametrize(("guid", "name"), SIGNATURE_TYPES.items())
def test_a_signature_list_has_its_type(guid, name):
    data = variable("dbx", signature_list(UUID(guid).bytes_le, b"\1" * 40, header=b"head"))
    (entry,) = decode(CONFIG, data, {}).details["signatures"]
    assert entry["type"] == name
    shortened = name not in {"sha1", "sha224", "sha256", "sha384", "sha512", "sm3"}
    assert entry.get("value", "x509") == (
        "x509" if name == "x509" else "01" * 32 + "… (40 bytes)" if shortened else "01" * 40
    )


def test_lists_without_entries_are_empty():
    assert decode(CONFIG, variable("dbx", signature_list(SHA256_LIST)), {}).text == "dbx: empty"


@pytest.mark.parametrize(("size", "name"), [(20, "sha1"), (32, "sha256"), (48, "sha384"), (64, "sha512"), (33, None)])
def test_a_hash_that_vouched_is_known_by_its_size(size, name):
    details = decode(AUTHORITY, variable("db", MICROSOFT + bytes(size)), {}).details
    assert details.get("signature", {}).get("type") == name
    assert name is None or details["signature"] == {"type": name, "value": "00" * size, "owner": "Microsoft"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"abc", "abc"),
        (b"abc\0\0\0", "abc"),
        (ucs2("abc"), "abc"),
        (ucs2("a"), "a"),
        (ucs2("abя"), "abя"),
        (ucs2("aя"), "61004f04"),  # more than half of the high bytes must be zero
        (b"a\0b", "610062"),
        (b"a\0\1\0", "61000100"),
        (b"tab\tline\r\n", "tab\\tline\\r\\n"),
        (b"\x1b[31m", "1b5b33316d"),
        (b"\xff", "ff"),
        (b"\0\0", "0000"),
        (b"", ""),
        ("größe".encode(), "größe"),
    ],
)
def test_strings_are_told_from_bytes(data, text):
    assert decode(0x05, data, {}).text == text


def test_a_certificate_that_nobody_can_read_has_its_fingerprint():
    junk = b"\x30\x82\0\1\0"
    told = decode(AUTHORITY, variable("db", MICROSOFT + junk), {}).details["signature"]
    assert told["sha256"] == hashlib.sha256(junk).hexdigest()
    assert "malformed" in told


def test_a_database_of_thousands_is_bounded():
    many = signature_list(SHA256_LIST, *[bytes(32)] * (ENTRIES_MOST + 1))
    assert "malformed" in decode(CONFIG, variable("dbx", many), {}).text
    certificates = signature_list(X509_LIST, *[CERTIFICATE] * (CERTIFICATES_MOST + 1))
    told = decode(CONFIG, variable("db", certificates), {}).details["signatures"]
    assert ["subject" in entry for entry in told] == [True] * CERTIFICATES_MOST + [False]


def test_the_manifest_names_where_it_is():
    details = decode(*WORDS["a reference manifest, 3"][:2], {}).details
    assert details["reference_manifest_locator"] == {"type": "URI", "value": "a://"}


HOSTILE = {
    "a name longer than the event": (
        CONFIG,
        variable("db", b"", characters=2**60),
        "a name of 1152921504606846976 characters",
    ),
    "a name longer than the data": (
        CONFIG,
        variable("db", b"", characters=1000),
        "variable name of 2000 bytes, 4 are left",
    ),
    "a value longer than the event": (
        CONFIG,
        variable("db", b"", size=2**63),
        "variable data of 9223372036854775808 bytes, 0 are left",
    ),
    "half a header": (CONFIG, b"short", "variable GUID of 16 bytes, 5 are left"),
    "entries of no size": (
        CONFIG,
        variable("db", SHA256_LIST + struct.pack("<III", 28, 0, 0)),
        "signature list of 28 bytes, entries of 0",
    ),
    "a list shorter than its header": (
        CONFIG,
        variable("db", SHA256_LIST + struct.pack("<III", 4, 0, 48)),
        "signature list of 4 bytes, entries of 48",
    ),
    "a list that does not come out even": (
        CONFIG,
        variable("db", SHA256_LIST + struct.pack("<III", 60, 0, 48)),
        "signature list of 60 bytes, entries of 48",
    ),
    "a list's header beyond": (
        CONFIG,
        variable("db", SHA256_LIST + struct.pack("<III", 100, 2**31, 48)),
        "signature list of 100 bytes, entries of 48",
    ),
    "a path longer than the event": (
        0x80000003,
        image(b"", length=2**64 - 1),
        "device path of 18446744073709551615 bytes, 0 are left",
    ),
    "a node of no size": (0x80000003, image(struct.pack("<BBH", 1, 1, 0)), "device path node of 0 bytes"),
    "a node beyond the path": (
        0x80000003,
        image(struct.pack("<BBH", 4, 4, 400)),
        "device path node of 396 bytes, 0 are left",
    ),
    "half a node": (0x80000003, image(b"\4\4\4"), "device path node of 4 bytes, 3 are left"),
    "no GPT": (0x80000006, gpt(signature=b"EFI_PART"), "no GPT signature"),
    "partitions without end": (0x80000006, gpt(2**64 - 1), "18446744073709551615 partitions of 128 bytes"),
    "partitions of no size": (0x80000006, gpt(entry_bytes=0), "1 partitions of 0 bytes"),
    "partitions beyond": (0x80000006, gpt(200), "partition of 128 bytes, 0 are left"),
    "tables without end": (0x80000009, struct.pack("<Q", 2**64 - 1), "18446744073709551615 tables"),
    "tables beyond": (0x80000009, struct.pack("<Q", 4), "table GUID of 16 bytes, 0 are left"),
    "algorithms without end": (
        0x03,
        b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 2**31),
        "2147483648 algorithms",
    ),
    "a locality and more": (0x03, b"StartupLocality\0\0\0", "1 bytes behind the locality"),
    "no locality": (0x03, b"StartupLocality\0", "locality of 1 bytes, 0 are left"),
    "half a manifest": (
        0x03,
        b"SP800-155 Event3" + PLATFORM + struct.pack("<II", 1, 2**31),
        "locator of 2147483648 bytes, 0 are left",
    ),
    "a tag beyond": (0x06, struct.pack("<II", 1, 2**32 - 1), "tag 0x00000001 of 4294967295 bytes, 0 are left"),
    "half a tag": (0x06, b"\1", "tag of 4 bytes, 1 are left"),
    "tags without end": (0x06, tag(1, b"") * 257, "more than 256 tags"),
    "a blob and more": (0x80000008, bytes([3]) + b"abc" + bytes(17), "1 bytes behind the blob"),
    "a description beyond": (0x8000000A, b"\xff", "description of 255 bytes, 0 are left"),
    "no SPDM": (0x800000E1, bytes(40), "signature 00000000000000000000000000000000"),
    "half a header of SPDM": (0x800000E1, b"SPDM Device Sec2", "header of 28 bytes, 0 are left"),
    "a device's path beyond": (
        0x800000E2,
        SPDM_2[:44] + struct.pack("<Q", 2**40),
        "device path of 1099511627776 bytes, 0 are left",
    ),
    "no HCRTM": (0x80000010, b"hcrtm", "hcrtm in the place of HCRTM"),
    "a partition too many": (0x80000006, gpt(257), "257 partitions of 128 bytes"),
    "a table too many": (0x80000009, struct.pack("<Q", 257), "257 tables"),
    "an algorithm too many": (
        0x03,
        b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 17) + bytes(68) + b"\0",
        "17 algorithms",
    ),
    "a name of a character too many": (CONFIG, variable("d" * 1025, b""), "a name of 1025 characters"),
}


@pytest.mark.parametrize(("kind", "data", "why"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_data_is_called_malformed(kind, data, why):
    words = decode(kind, data, digest_of(data))
    assert words.text.endswith(f"malformed: {why}")
    assert words.details["malformed"] == why


def test_what_is_just_allowed_is_read():
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 16)
    spec += b"".join(struct.pack("<HH", 0x100 + number, 32) for number in range(16)) + b"\0"
    assert len(decode(0x03, spec, {}).details["algorithms"]) == 16
    tables = struct.pack("<Q", 256) + bytes(24 * 256)
    assert len(decode(0x80000009, tables, {}).details["tables"]) == 256
    assert len(decode(0x06, tag(1, b"") * 256, {}).details["tags"]) == 256
    assert decode(CONFIG, variable("d" * 1024, b""), {}).details["name"] == "d" * 1024
    full = signature_list(SHA256_LIST, *[bytes(32)] * ENTRIES_MOST)
    assert len(decode(CONFIG, variable("dbx", full), {}).details["signatures"]) == ENTRIES_MOST


def test_a_description_is_told_from_a_string():
    """Where all is printable, the lengths decide."""
    data = bytes([40]) + b"d" * 40 + b"AAAAAAAABBBBBBBB"
    assert decode(0x8000000A, data, {}).details == {
        "description": "d" * 40,
        "base": "0x4141414141414141",
        "length": 0x4242424242424242,
    }
    for string in (data + b"C", data[:-1]):
        assert decode(0x8000000A, string, {}).details == {"string": string.decode()}


@pytest.mark.parametrize(
    ("subtype", "name"), [(0, "raw data"), (1, "URI"), (2, "device path"), (3, "UEFI variable"), (9, 9)]
)
def test_locators_have_their_kind(subtype, name):
    data = b"SP800-155 Event3" + PLATFORM + struct.pack("<II", 0, 0) + struct.pack("<II", subtype, 1) + b"x"
    details = decode(0x03, data, {}).details
    assert details["platform_certificate_locator"] == {"type": name, "value": "x"}
    fields = (
        "platform_manufacturer",
        "platform_model",
        "platform_version",
        "firmware_manufacturer",
        "firmware_version",
    )
    assert [details[field] for field in fields] == ["Maker", "Box", "2", "Firm", "1.9"]
    assert (details["vendor"], details["firmware_vendor"]) == (11129, 7)


def test_the_specification_names_its_algorithms():
    numbers = (4, 0x0B, 0x0C, 0x0D, 0x12, 0x27, 0x28, 0x29, 0x99)
    data = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 1, 0, 2, 105, 2, len(numbers))
    data += b"".join(struct.pack("<HH", number, 32) for number in numbers) + b"\1v"
    assert decode(0x03, data, {}).details == {
        "signature": "Spec ID Event03",
        "platform_class": 1,
        "specification": "2.00",
        "errata": 105,
        "word_bits": 64,
        "algorithms": dict.fromkeys(
            ("sha1", "sha256", "sha384", "sha512", "sm3_256", "sha3_256", "sha3_384", "sha3_512", "0x0099"), 32
        ),
        "vendor": "76",
    }


@pytest.mark.parametrize(("attributes", "active"), [(0, False), (1, True), (2, False), (9, True)])
def test_a_boot_option_is_told_field_by_field(attributes, active):
    where = path(node(1, 1, b"\0\1"), node(4, 4, ucs2("\\a.efi\0")))
    value = struct.pack("<IH", attributes, len(where)) + ucs2("Linux\0") + where + b"\xfe"
    assert decode(BOOT, variable("Boot0001", value), {}).details == {
        "name": "Boot0001",
        "guid": str(UUID(bytes_le=GLOBAL)),
        "vendor": "EFI global variable",
        "size": len(value),
        "description": "Linux",
        "active": active,
        "path": "Pci(0x1,0x0)/\\a.efi",
        "file": "\\a.efi",
        "optional": "fe",
    }


@pytest.mark.parametrize("name", ["SecureBoot", "PK", "BootOrder", "Boot0000", "Setup"])
def test_a_variable_without_value_is_empty(name):
    assert decode(CONFIG, variable(name, b""), {}).text == f"{name}: empty"


def test_partitions_are_told_field_by_field():
    (partition,) = decode(0x80000006, gpt(), {}).details["partitions"]
    assert partition == {
        "name": "EFI System",
        "kind": "EFI system partition",
        "type": str(ESP),
        "guid": str(DISK),
        "first_block": 2048,
        "last_block": 4095,
        "attributes": "0x0",
    }


@pytest.mark.parametrize(
    ("state", "kind", "told"),
    [
        (1, 1, "PCI device , certificate chain, no authority"),
        (2, 2, "PCI device , OEM measurement, no binding"),
        (3, 9, "PCI device , 0x9, failed: no signature"),
        (4, 1, "PCI device , certificate chain, failed: invalid"),
        (0xFF, 1, "PCI device , certificate chain, no SPDM"),
        (7, 1, "PCI device , certificate chain, 0x7"),
    ],
)
def test_a_device_says_whether_it_was_authenticated(state, kind, told):
    head = b"SPDM Device Sec2" + struct.pack("<HBBIIIIQ", 2, state, 0, 0, 1, kind, 0, 9)
    assert decode(0x800000E1, head + struct.pack("<Q", 0), {}).text == told


def test_devices_are_told_field_by_field():
    details = decode(0x800000E2, SPDM_2, {}).details
    assert details == {
        "version": 2,
        "authentication": "authenticated",
        "device": "PCI",
        "kind": "measurement block",
        "uid": "0x9",
        "path": "",
        "sub_header": "120001000200000005010200aabb",
        "context": "8680",
        "spdm_version": "0x12",
        "hash_algorithm": "0x2",
        "measurements": [{"index": 5, "measurement": "aabb"}],
    }
    details = decode(*WORDS["a device's firmware"][:2], {}).details
    assert details == {
        "version": 1,
        "hash_algorithm": "0x2",
        "device": "PCI",
        "index": 3,
        "measurement": "aabb",
        "context": "",
    }


def test_aggregations_in_aggregations_end():
    data = b""
    for _ in range(1000):
        data = tag(0x40010001, data)
    found, depth = decode(0x06, data, {}).details["tags"], 0
    while isinstance(found[0].get("tags"), list):
        found, depth = found[0]["tags"], depth + 1
    assert depth == 4
    assert "value" in found[0]


TAGS = {
    0x00020001: (
        *("Information", "BootCounter", "TransferControl", "ApplicationReturn", "BitlockerUnlock", "EventCounter"),
        *("CounterID", "MORBitNotCancelable", "ApplicationSVN", "SVNChainStatus", "MORBitAPIStatus"),
    ),
    0x00040001: ("BootDebugging", "BootRevocationList"),
    0x00050001: (
        *("OSKernelDebug", "CodeIntegrity", "TestSigning", "DataExecutionPrevention", "SafeMode", "WinPE"),
        *("PhysicalAddressExtension", "OSDevice", "SystemRoot", "HypervisorLaunchType", "HypervisorPath"),
        *("HypervisorIOMMUPolicy", "HypervisorDebug", "DriverLoadPolicy", "SIPolicy"),
    ),
    0x00060001: ("NoAuthority", "AuthorityPubKey"),
    0x00070001: (
        *("FilePath", "ImageSize", "HashAlgorithmID", "AuthenticodeHash", "AuthorityIssuer", "AuthoritySerial"),
        *("ImageBase", "AuthorityPublisher", "AuthoritySHA1Thumbprint", "ImageValidated", "ModuleSVN"),
    ),
    0x40010001: ("TrustBoundary", "ELAMAggregation", "LoadedModuleAggregation"),
    0xC0010004: ("TrustpointAggregation",),
    0x40010005: ("KSRAggregation", "KSRSignedMeasurementAggregation"),
    0xF5BC582A: ("systemd loader.conf",),
    0x6C46F751: ("systemd device tree add-on",),
    0x49DFFE0F: ("systemd initrd add-on",),
    0xDAC08E1A: ("systemd microcode add-on",),
    0x13AED6DB: ("systemd UKI profile",),
    0x8F3B22EC: ("Linux initrd", "Linux load options"),
}
FLAGS = {
    *("BootDebugging", "OSKernelDebug", "CodeIntegrity", "TestSigning", "DataExecutionPrevention", "SafeMode"),
    *("WinPE", "PhysicalAddressExtension", "HypervisorDebug", "ImageValidated"),
}


@pytest.mark.parametrize("start", TAGS, ids=hex)
def test_tags_have_their_makers_names(start):
    for number, name in enumerate(TAGS[start], start):
        (told,) = decode(0x06, tag(number, b""), {}).details["tags"]
        assert (told["tag"], told["name"], "tags" in told) == (f"{number:#010x}", name, bool(number & 0x40000000))
        if not number & 0x40000000:
            values = [decode(0x06, tag(number, value), {}).details["tags"][0]["value"] for value in (b"\1", b"\0")]
            assert values == ([True, False] if name in FLAGS else ["01", "00"])


def test_words_that_were_not_measured_are_called_so():
    doubted = describe(0x80000007, b"Exit Boot Services Invocation", digest_of(b"something else"))
    assert doubted.endswith("(its data is not what was measured)")
    # Where the digest is over something else by design, nothing can be said.
    assert describe(0x80000003, image(b""), digest_of(b"the image")) == (
        "EV_EFI_BOOT_SERVICES_APPLICATION an image of 4096 bytes, no path"
    )
    # A bank whose hash is not here says nothing either.
    assert not decode(0x80000007, b"action", {"0x0099": b"\1"}).doubted


@pytest.mark.parametrize(
    ("kind", "data", "part"),
    [
        (0x0D, b"grub_cmd: insmod gzio\0", b"insmod gzio"),
        (0x0D, b"kernel_cmdline: /vmlinuz ro: x\0", b"/vmlinuz ro: x"),
        (0x0D, b"grub_cmd insmod gzio\0", b"insmod gzio"),  # Red Hat before 2.06
        (0x0D, ucs2("quiet\0"), ucs2("quiet\0")),
        (BOOT, variable("BootOrder", b"\1\0"), b"\1\0"),
        (CONFIG, variable("SecureBoot", b"\1"), variable("SecureBoot", b"\1")),
        (AUTHORITY, variable("Shim", b"\1", behind=bytes(6)), variable("Shim", b"\1", behind=bytes(5))),
        (0x06, tag(0xF5BC582A, b"loader"), b"loader"),
        (0x11, b"text\0\0", b"text"),
    ],
)
def test_only_what_the_digest_is_over_is_believed(kind, data, part):
    digest = hashlib.sha256(part).digest()
    assert measured(kind, data, "sha256", digest) == part
    assert decode(kind, data, {"sha256": digest}).measured
    assert measured(kind, data, "sha256", bytes(32)) is None


def test_a_setting_is_not_believed_by_its_value_alone():
    """A variable's name must be measured with it, or `db` could be told as `SecureBoot`."""
    assert measured(CONFIG, variable("SecureBoot", b"\1"), "sha256", hashlib.sha256(b"\1").digest()) is None


@pytest.mark.parametrize("start", [b"", b"tab\t", b"line\n"])
def test_long_words_stay_on_one_short_line(start):
    text = describe(0x0D, start + b"x" * 10_000, {})
    assert text.isprintable()
    assert len(text) == MAX_TEXT + len("EV_IPL ") == 167


def test_hostile_words_are_bytes():
    assert describe(0x0D, b"\x1b[31mred", {}) == "EV_IPL 1b5b33316d726564"


@given(st.sampled_from([*TYPE_NAMES, 0x77]), st.binary(max_size=300))
def test_any_data_has_words(kind, data):
    words = decode(kind, data, digest_of(data))
    assert words.line.isprintable()
    assert json.dumps(words.details)


@given(st.sampled_from(sorted(WORDS)), st.data())
def test_any_change_of_good_data_has_words(name, draw):
    kind, good, _ = WORDS[name]
    data = bytearray(good or b"\0")
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at] = draw.draw(st.integers(0, 255))
    cut = bytes(data[: draw.draw(st.integers(0, len(data)))])
    for changed in (bytes(data), cut):
        words = decode(kind, changed, digest_of(changed))
        assert words.line.isprintable()
        assert json.dumps(words.details)
