"""UEFI device paths as text, as boot managers and shells show them (UEFI 2.10, 10.3 and 10.6)."""

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import NamedTuple

from provisioning.attestation.eventtext_reading import Cursor, MalformedData, ascii_of, hex_of, ucs2_of

NODES_MOST = 256
"""Real paths have about ten nodes; one event can hold tens of thousands of hostile ones."""
_HEADER_BYTES = 4
_END, _END_ENTIRE = 0x7F, 0xFF
_FILE_PATH = (4, 4)
_PNP_VENDOR = 0x41D0
_PCI_ROOT, _PCIE_ROOT = 0x0A03, 0x0A08
_MBR, _GPT = 1, 2


class Node(NamedTuple):
    """One node: type, subtype, and its data behind the header."""

    kind: int
    subtype: int
    data: bytes


def device_path(data: bytes) -> str:
    r"""The path as text, like `PciRoot(0x0)/Pci(0x1d,0x0)/…/\EFI\BOOT\BOOTX64.EFI`. Raises: MalformedData."""
    paths: list[list[str]] = [[]]
    nodes = list(islice(_nodes(data), NODES_MOST + 1))
    for node in nodes[:NODES_MOST]:
        if node.kind == _END:
            paths.append([])
        else:
            paths[-1].append(_text(node))
    more = "/…" if len(nodes) > NODES_MOST else ""
    return ",".join("/".join(path) for path in paths if path) + more


def file_of(data: bytes) -> str:
    """The file that the path ends in, empty where it names none. Raises: MalformedData."""
    nodes = islice(_nodes(data), NODES_MOST)
    return "".join(ucs2_of(node.data) for node in nodes if (node.kind, node.subtype) == _FILE_PATH)


def _nodes(data: bytes) -> Iterator[Node]:
    """The nodes of a path, up to its end."""
    cursor = Cursor(data)
    while cursor.left:
        kind, subtype, size = cursor.unpack("BBH", "device path node")
        if size < _HEADER_BYTES:
            raise MalformedData(f"device path node of {size} bytes")
        inner = cursor.take(size - _HEADER_BYTES, "device path node")
        if (kind, subtype) == (_END, _END_ENTIRE):
            return
        yield Node(kind, subtype, inner)


def _text(node: Node) -> str:
    reader = _READERS.get((node.kind, node.subtype))
    if reader is not None:
        try:
            return reader(Cursor(node.data))
        except MalformedData:
            pass  # shown as the bytes that it is
    return f"Path({node.kind},{node.subtype},{hex_of(node.data)})"


def _pci(node: Cursor) -> str:
    function, device = node.unpack("BB")
    return f"Pci({device:#x},{function:#x})"


def _memory(node: Cursor) -> str:
    kind, start, end = node.unpack("IQQ")
    return f"MemoryMapped({kind:#x},{start:#x},{end:#x})"


def _vendor(name: str) -> Callable[[Cursor], str]:
    def read(node: Cursor) -> str:
        guid = node.guid()
        return f"{name}({guid}{',' + hex_of(node.rest()) if node.left else ''})"

    return read


def _acpi(node: Cursor) -> str:
    hid, uid = node.unpack("II")
    return _acpi_text(hid, f"{uid:#x}")


def _acpi_expanded(node: Cursor) -> str:
    hid, uid, cid = node.unpack("III")
    strings = [part.decode("ascii", errors="replace") for part in node.rest().split(b"\0")[:3]]
    hid_text = strings[0] or _eisa(hid)
    uid_text = (strings[1] if len(strings) > 1 else "") or f"{uid:#x}"
    return f"AcpiEx({hid_text},{_eisa(cid)},{uid_text})"


def _acpi_text(hid: int, uid: str) -> str:
    if hid & 0xFFFF == _PNP_VENDOR:
        names = {_PCI_ROOT: "PciRoot", _PCIE_ROOT: "PcieRoot"}
        if hid >> 16 in names:
            return f"{names[hid >> 16]}({uid})"
    return f"Acpi({_eisa(hid)},{uid})"


def _eisa(number: int) -> str:
    """A compressed EISA id: three letters of five bits, four hex digits (UEFI 2.10, 10.3.3)."""
    vendor = number & 0xFFFF
    letters = "".join(chr(0x40 + (vendor >> shift & 0x1F)) for shift in (10, 5, 0))
    return f"{letters}{number >> 16:04X}" if number else "0"


def _acpi_adr(node: Cursor) -> str:
    values = [f"{node.u32():#x}" for _ in range(min(node.left // 4, 8))]
    return f"AcpiAdr({','.join(values)})"


def _numbers(name: str, layout: str) -> Callable[[Cursor], str]:
    def read(node: Cursor) -> str:
        return f"{name}({','.join(f'{value:#x}' for value in node.unpack(layout))})"

    return read


def _fibre(node: Cursor) -> str:
    _, wwn, lun = node.unpack("IQQ")
    return f"Fibre({wwn:#x},{lun:#x})"


def _mac(node: Cursor) -> str:
    address, kind = node.take(32), node.u8()
    size = 6 if kind in (0, 1) else 32
    return f"MAC({address[:size].hex()},{kind:#x})"


def _ipv4(node: Cursor) -> str:
    local, remote = IPv4Address(node.take(4)), IPv4Address(node.take(4))
    _, port, protocol, static = node.unpack("HHHB")
    return f"IPv4({remote}:{port},{_protocol(protocol)},{'Static' if static else 'DHCP'},{local})"


def _ipv6(node: Cursor) -> str:
    local, remote = IPv6Address(node.take(16)), IPv6Address(node.take(16))
    _, port, protocol, origin = node.unpack("HHHB")
    kinds = {0: "Static", 1: "StatelessAutoConfigure", 2: "StatefulAutoConfigure"}
    return f"IPv6([{remote}]:{port},{_protocol(protocol)},{kinds.get(origin, hex(origin))},{local})"


def _protocol(number: int) -> str:
    return {6: "TCP", 17: "UDP"}.get(number, f"{number:#x}")


def _uart(node: Cursor) -> str:
    _, baud, bits, parity, stop = node.unpack("IQBBB")
    parities = {0: "D", 1: "N", 2: "E", 3: "O", 4: "M", 5: "S"}
    stops = {0: "D", 1: "1", 2: "1.5", 3: "2"}
    return f"Uart({baud},{bits},{parities.get(parity, parity)},{stops.get(stop, stop)})"


def _usb_wwid(node: Cursor) -> str:
    interface, vendor, product = node.unpack("HHH")
    return f'UsbWwid({vendor:#x},{product:#x},{interface:#x},"{ucs2_of(node.rest())}")'


def _sata(node: Cursor) -> str:
    port, multiplier, lun = node.unpack("HHH")
    return f"Sata({port:#x},{multiplier:#x},{lun:#x})"


def _iscsi(node: Cursor) -> str:
    _, _, lun, group = node.unpack("HHQH")
    return f"iSCSI({ascii_of(node.rest())},{group:#x},{lun:#x})"


def _nvme(node: Cursor) -> str:
    namespace = node.u32()
    eui = node.take(8)
    return f"NVMe({namespace:#x},{'-'.join(f'{byte:02X}' for byte in reversed(eui))})"


def _uri(node: Cursor) -> str:
    return f"Uri({ascii_of(node.rest())})"


def _wifi(node: Cursor) -> str:
    return f"Wi-Fi({ascii_of(node.take(32))})"


def _bluetooth(node: Cursor) -> str:
    return f"Bluetooth({node.take(6).hex()})"


def _dns(node: Cursor) -> str:
    size = 16 if node.u8() else 4
    addresses = [node.take(size) for _ in range(min(node.left // size, 8))]
    return f"Dns({','.join(str(IPv4Address(one) if len(one) == 4 else IPv6Address(one)) for one in addresses)})"  # noqa: PLR2004  an IPv4 address


def _hard_drive(node: Cursor) -> str:
    number, start, size = node.unpack("IQQ")
    signature = node.take(16)
    form, kind = node.unpack("BB")
    if kind == _GPT:
        shown = f"GPT,{Cursor(signature).guid()}"
    elif form == _MBR:
        shown = f"MBR,{int.from_bytes(signature[:4], 'little'):#010x}"
    else:
        shown = f"{form:#x},{signature.hex()}"
    return f"HD({number},{shown},{start:#x},{size:#x})"


def _named_guid(name: str) -> Callable[[Cursor], str]:
    def read(node: Cursor) -> str:
        return f"{name}({node.guid()})"

    return read


def _file(node: Cursor) -> str:
    return ucs2_of(node.rest())


def _offset(node: Cursor) -> str:
    _, start, end = node.unpack("IQQ")
    return f"Offset({start:#x},{end:#x})"


def _ram_disk(node: Cursor) -> str:
    start, end = node.unpack("QQ")
    guid, instance = node.guid(), node.u16()
    return f"RamDisk({start:#x},{end:#x},{instance},{guid})"


def _bbs(node: Cursor) -> str:
    kind, status = node.unpack("HH")
    kinds = {1: "Floppy", 2: "HD", 3: "CDROM", 4: "PCMCIA", 5: "USB", 6: "Network"}
    return f"BBS({kinds.get(kind, hex(kind))},{ascii_of(node.rest())},{status:#x})"


_READERS: dict[tuple[int, int], Callable[[Cursor], str]] = {
    (1, 1): _pci,
    (1, 2): _numbers("PcCard", "B"),
    (1, 3): _memory,
    (1, 4): _vendor("VenHw"),
    (1, 5): _numbers("Ctrl", "I"),
    (1, 6): _numbers("BMC", "BQ"),
    (2, 1): _acpi,
    (2, 2): _acpi_expanded,
    (2, 3): _acpi_adr,
    (2, 4): _numbers("NvdimmAcpiAdr", "I"),
    (3, 1): _numbers("Ata", "BBH"),
    (3, 2): _numbers("Scsi", "HH"),
    (3, 3): _fibre,
    (3, 5): _numbers("USB", "BB"),
    (3, 10): _vendor("VenMsg"),
    (3, 11): _mac,
    (3, 12): _ipv4,
    (3, 13): _ipv6,
    (3, 14): _uart,
    (3, 15): _numbers("UsbClass", "HHBBB"),
    (3, 16): _usb_wwid,
    (3, 17): _numbers("Unit", "B"),
    (3, 18): _sata,
    (3, 19): _iscsi,
    (3, 20): _numbers("Vlan", "H"),
    (3, 23): _nvme,
    (3, 24): _uri,
    (3, 25): _numbers("UFS", "BB"),
    (3, 26): _numbers("SD", "B"),
    (3, 27): _bluetooth,
    (3, 28): _wifi,
    (3, 29): _numbers("eMMC", "B"),
    (3, 31): _dns,
    (3, 32): _named_guid("NvdimmNs"),
    (4, 1): _hard_drive,
    (4, 2): _numbers("CDROM", "IQQ"),
    (4, 3): _vendor("VenMedia"),
    (4, 4): _file,
    (4, 5): _named_guid("Media"),
    (4, 6): _named_guid("FvFile"),
    (4, 7): _named_guid("Fv"),
    (4, 8): _offset,
    (4, 9): _ram_disk,
    (5, 1): _bbs,
}
