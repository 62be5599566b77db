"""Device paths as text: each kind of node as UEFI 2.10, 10.6.1 writes it; what does not fit is shown as bytes."""

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation.eventtext_paths import _READERS, NODES_MOST, device_path, file_of
from provisioning.attestation.eventtext_reading import MalformedData

GUID = UUID("11111111-2222-3333-4444-555555555555")
RAW = GUID.bytes_le


def node(kind, subtype, data=b""):
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


def ucs2(text):
    return text.encode("utf-16-le")


END, NEXT = node(0x7F, 0xFF), node(0x7F, 1)
FILE = node(4, 4, ucs2("\\a\0"))

NODES = {
    (1, 1): (b"\1\x1d", "Pci(0x1d,0x1)"),
    (1, 2): (b"\2", "PcCard(0x2)"),
    (1, 3): (struct.pack("<IQQ", 11, 0x1000, 0x1FFF), "MemoryMapped(0xb,0x1000,0x1fff)"),
    (1, 4): (RAW + b"\x80", f"VenHw({GUID},80)"),
    (1, 5): (struct.pack("<I", 1), "Ctrl(0x1)"),
    (1, 6): (struct.pack("<BQ", 1, 2), "BMC(0x1,0x2)"),
    (2, 1): (struct.pack("<II", 0x0A0841D0, 1), "PcieRoot(0x1)"),
    (2, 2): (struct.pack("<III", 0x0A0841D0, 0, 0x0A0341D0) + b"\0UID\0\0", "AcpiEx(PNP0A08,PNP0A03,UID)"),
    (2, 3): (struct.pack("<II", 0x80010100, 0x80010200), "AcpiAdr(0x80010100,0x80010200)"),
    (2, 4): (struct.pack("<I", 3), "NvdimmAcpiAdr(0x3)"),
    (3, 1): (struct.pack("<BBH", 0, 1, 2), "Ata(0x0,0x1,0x2)"),
    (3, 2): (struct.pack("<HH", 1, 0), "Scsi(0x1,0x0)"),
    (3, 3): (struct.pack("<IQQ", 0, 10, 11), "Fibre(0xa,0xb)"),
    (3, 5): (b"\1\0", "USB(0x1,0x0)"),
    (3, 10): (RAW, f"VenMsg({GUID})"),
    (3, 11): (bytes.fromhex("0a0b0c0d0e0f") + bytes(26) + b"\1", "MAC(0a0b0c0d0e0f,0x1)"),
    (3, 12): (
        bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("<HHHB", 0, 80, 6, 0),
        "IPv4(192.0.2.2:80,TCP,DHCP,192.0.2.1)",
    ),
    (3, 13): (
        bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("<HHHB", 0, 69, 17, 2),
        "IPv6([::2]:69,UDP,StatefulAutoConfigure,::1)",
    ),
    (3, 14): (struct.pack("<IQBBB", 0, 115200, 8, 1, 1), "Uart(115200,8,N,1)"),
    (3, 15): (struct.pack("<HHBBB", 0x1234, 0xFFFF, 8, 6, 80), "UsbClass(0x1234,0xffff,0x8,0x6,0x50)"),
    (3, 16): (struct.pack("<HHH", 1, 0x80EE, 2) + ucs2("SN"), 'UsbWwid(0x80ee,0x2,0x1,"SN")'),
    (3, 17): (b"\7", "Unit(0x7)"),
    (3, 18): (struct.pack("<HHH", 1, 0xFFFF, 0), "Sata(0x1,0xffff,0x0)"),
    (3, 19): (struct.pack("<HHQH", 0, 0, 1, 2) + b"iqn.example", "iSCSI(iqn.example,0x2,0x1)"),
    (3, 20): (struct.pack("<H", 5), "Vlan(0x5)"),
    (3, 23): (struct.pack("<I", 1) + bytes(range(1, 9)), "NVMe(0x1,08-07-06-05-04-03-02-01)"),
    (3, 24): (b"https://example/boot.efi", "Uri(https://example/boot.efi)"),
    (3, 25): (b"\0\1", "UFS(0x0,0x1)"),
    (3, 26): (b"\0", "SD(0x0)"),
    (3, 27): (bytes(range(6)), "Bluetooth(000102030405)"),
    (3, 28): (b"net".ljust(32, b"\0"), "Wi-Fi(net)"),
    (3, 29): (b"\1", "eMMC(0x1)"),
    (3, 31): (b"\0" + bytes([192, 0, 2, 1]), "Dns(192.0.2.1)"),
    (3, 32): (RAW, f"NvdimmNs({GUID})"),
    (4, 1): (struct.pack("<IQQ", 1, 2048, 4096) + RAW + b"\2\2", f"HD(1,GPT,{GUID},0x800,0x1000)"),
    (4, 2): (struct.pack("<IQQ", 0, 1, 2), "CDROM(0x0,0x1,0x2)"),
    (4, 3): (RAW, f"VenMedia({GUID})"),
    (4, 4): (ucs2("\\EFI\\a.efi\0"), "\\EFI\\a.efi"),
    (4, 5): (RAW, f"Media({GUID})"),
    (4, 6): (RAW, f"FvFile({GUID})"),
    (4, 7): (RAW, f"Fv({GUID})"),
    (4, 8): (struct.pack("<IQQ", 0, 1, 2), "Offset(0x1,0x2)"),
    (4, 9): (struct.pack("<QQ", 1, 2) + RAW + b"\3\0", f"RamDisk(0x1,0x2,3,{GUID})"),
    (5, 1): (struct.pack("<HH", 2, 0x80) + b"Disk\0", "BBS(HD,Disk,0x80)"),
}


@pytest.mark.parametrize("kind", NODES, ids=str)
def test_a_node_is_written_as_the_specification_has_it(kind):
    data, text = NODES[kind]
    assert device_path(node(*kind, data) + END) == text


def test_every_reader_has_its_example():
    assert set(NODES) == set(_READERS)


@pytest.mark.parametrize("kind", set(NODES) - {(2, 3), (3, 24), (4, 4)}, ids=str)
def test_a_node_that_is_cut_is_shown_as_bytes(kind):
    assert device_path(node(*kind)) == f"Path({kind[0]},{kind[1]},)"


@pytest.mark.parametrize(
    ("hid", "text"), [(0x0A0341D0, "PciRoot(0x2)"), (0x050141D0, "Acpi(PNP0501,0x2)"), (0, "Acpi(0,0x2)")]
)
def test_acpi_names_are_uncompressed(hid, text):
    assert device_path(node(2, 1, struct.pack("<II", hid, 2))) == text


def test_an_old_partition_has_its_signature():
    data = struct.pack("<IQQ", 1, 63, 100) + struct.pack("<I", 0xCAFE) + bytes(12)
    assert device_path(node(4, 1, data + b"\1\1")) == "HD(1,MBR,0x0000cafe,0x3f,0x64)"
    assert device_path(node(4, 1, data + b"\0\0")).startswith("HD(1,0x0,fe")


@pytest.mark.parametrize(
    ("kind", "text"), list(enumerate(("0x0", "Floppy", "HD", "CDROM", "PCMCIA", "USB", "Network", "0x7")))
)
def test_bios_devices_have_their_kind(kind, text):
    assert device_path(node(5, 1, struct.pack("<HH", kind, 0) + b"x\0")) == f"BBS({text},x,0x0)"


@pytest.mark.parametrize(
    ("origin", "text"), list(enumerate(("Static", "StatelessAutoConfigure", "StatefulAutoConfigure", "0x3")))
)
def test_addresses_have_their_origin(origin, text):
    assert f",{text},::)" in device_path(node(3, 13, bytes(32) + struct.pack("<HHHB", 0, 0, 6, origin)))
    static = device_path(node(3, 12, bytes(8) + struct.pack("<HHHB", 0, 0, 9, min(origin, 1))))
    assert static == f"IPv4(0.0.0.0:0,0x9,{'Static' if origin else 'DHCP'},0.0.0.0)"


@pytest.mark.parametrize(
    ("strings", "text"),
    [(b"", "AcpiEx(PNP0A08,0,0x7)"), (b"HID\0", "AcpiEx(HID,0,0x7)"), (b"\0U\0CID\0more\0", "AcpiEx(PNP0A08,0,U)")],
)
def test_expanded_acpi_names_may_be_strings(strings, text):
    assert device_path(node(2, 2, struct.pack("<III", 0x0A0841D0, 7, 0) + strings)) == text


def test_nodes_nobody_knows_are_bytes():
    assert device_path(node(9, 9, b"\1\2")) == "Path(9,9,0102)"


def test_several_paths_stand_side_by_side():
    assert device_path(FILE + NEXT + FILE + END + b"behind the end") == "\\a,\\a"


def test_files_in_a_row_are_one_file():
    assert file_of(node(1, 1, b"\0\0") + FILE + FILE + END) == "\\a\\a"


def test_a_path_of_thousands_is_bounded():
    text = device_path(FILE * (NODES_MOST + 1))
    assert text.count("\\a") == NODES_MOST
    assert text.endswith("/…")
    assert not device_path(FILE * NODES_MOST).endswith("/…")


@pytest.mark.parametrize("data", [b"\1\1\0\0", b"\1\1\3\0", b"\1\1\5\0", b"\1\1", node(1, 1, b"\0\0") + b"\4"])
def test_a_path_that_does_not_add_up_is_malformed(data):
    with pytest.raises(MalformedData):
        device_path(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_path_or_malformed(data):
    for read in (device_path, file_of):
        try:
            assert isinstance(read(data), str)
        except MalformedData:
            continue
