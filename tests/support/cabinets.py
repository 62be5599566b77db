"""Cabinets as Microsoft's tool writes them ([MS-CAB]), without compression: also such as no honest tool would write."""

import struct

BLOCK = 32768


def cabinet(files, *, flags=0, sizes=None, length=None, extra=b""):
    """A cabinet with these `(name, content)`; `sizes` are what its directory says instead of the truth."""
    content = b"".join(data for _, data in files)
    blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
    data = b"".join(struct.pack("<IHH", 0, len(block), len(block)) + block for block in blocks)
    entries, at = b"", 0
    for number, (name, octets) in enumerate(files):
        size = len(octets) if sizes is None else sizes[number]
        entries += struct.pack("<IIHHHH", size, at, 0, 0x5976, 0, 0x20) + name + b"\0"
        at += len(octets)
    begin = 36 + 8
    whole = begin + len(entries) + len(data)
    head = struct.pack(
        "<4sIIIIIBBHHHHH",
        b"MSCF",
        0,
        whole if length is None else length,
        0,
        begin,
        0,
        3,
        1,
        1,
        len(files),
        flags,
        1,
        0,
    )
    folder = struct.pack("<IHH", begin + len(entries), len(blocks), 0)
    return head + folder + entries + data + extra
