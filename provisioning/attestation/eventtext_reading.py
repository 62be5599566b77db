"""A cursor over an event's data, and what strings, GUIDs and opaque bytes look like to a person.

All integers are little-endian. Lengths come from the log: each is checked before
anything is read, and what does not fit is `MalformedData`, which only the text knows of, never the verdict.
"""

import struct
from uuid import UUID

SHOWN_BYTES = 32
_TEXT_CHARACTERS = 4096

GUID_NAMES = {
    "8be4df61-93ca-11d2-aa0d-00e098032b8c": "EFI global variable",
    "d719b2cb-3d3a-4596-a3bc-dad00e67656f": "EFI image security database",
    "605dab50-e046-4300-abb6-3dd810dd8b23": "shim lock",
    "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f": "systemd boot loader",
    "77fa9abd-0359-4d32-bd60-28f4e78f784b": "Microsoft",
    "6dc40ae4-2ee8-9c4c-a314-0fc7b2008710": "Canonical",
    "8868e871-e4f1-11d3-bc22-0080c73c8881": "ACPI 2.0 table",
    "eb9d2d30-2d88-11d3-9a16-0090273fc14d": "ACPI 1.0 table",
    "eb9d2d31-2d88-11d3-9a16-0090273fc14d": "SMBIOS table",
    "f2fd1544-9794-4a2c-992e-e5bbcf20e394": "SMBIOS 3 table",
    "eb9d2d2f-2d88-11d3-9a16-0090273fc14d": "multiprocessor table",
    "eb9d2d32-2d88-11d3-9a16-0090273fc14d": "SAL system table",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system partition",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot partition",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux file system",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (AArch64)",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
    "fe3a2a5d-4f32-41a7-b725-accc3285a309": "ChromeOS kernel",
    "3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec": "ChromeOS root file system",
    "2e0a753d-9e48-43b0-8337-b15192cb1b5e": "ChromeOS reserved",
    "cab6e88e-abf3-4102-a07a-d4bb9be3c1d3": "ChromeOS firmware",
}


class MalformedData(ValueError):
    """An event's data is not what its type says."""


class Cursor:
    """Reads forward, and refuses to read past the end. Raises: MalformedData."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int, what: str = "data") -> bytes:
        """The next `size` bytes."""
        if size > self.left:
            raise MalformedData(f"{what} of {size} bytes, {self.left} are left")
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    @property
    def left(self) -> int:
        """How many bytes are still unread."""
        return len(self._data) - self._at

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def unpack(self, layout: str, what: str = "field") -> tuple[int, ...]:
        """Packed little-endian integers, in struct's letters."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}"), what))

    def u8(self, what: str = "field") -> int:
        """One byte."""
        return self.take(1, what)[0]

    def u16(self, what: str = "field") -> int:
        """Two bytes."""
        return int.from_bytes(self.take(2, what), "little")

    def u32(self, what: str = "field") -> int:
        """Four bytes."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str = "field") -> int:
        """Eight bytes."""
        return int.from_bytes(self.take(8, what), "little")

    def guid(self, what: str = "GUID") -> str:
        """A GUID as text, its first three parts little-endian (UEFI 2.10, appendix A)."""
        return str(UUID(bytes_le=self.take(16, what)))

    def ucs2z(self) -> str:
        """A UCS-2 string up to its NUL, which is read too; without one, up to the end."""
        characters = []
        while self.left > 1:
            character = self.take(2)
            if character == b"\0\0":
                break
            characters.append(character)
        return b"".join(characters).decode("utf-16-le", errors="replace")


def ascii_of(data: bytes) -> str:
    """Bytes as text, without the NULs at the end."""
    return data.rstrip(b"\0").decode("utf-8", errors="replace")


def ucs2_of(data: bytes) -> str:
    """UCS-2 as text, without the NULs at the end."""
    return data[: len(data) & ~1].decode("utf-16-le", errors="replace").rstrip("\0")


def string_of(data: bytes) -> str | None:
    """A string that somebody can read, UCS-2 or ASCII; None for other bytes."""
    for text in (ucs2_of(data) if _is_ucs2(data) else None, ascii_of(data)):
        if text and all(c.isprintable() or c in "\t\r\n" for c in text) and "\ufffd" not in text:
            return text
    return None


def _is_ucs2(data: bytes) -> bool:
    """Is every other byte zero? Boot loaders measure file names and command lines, and these are mostly ASCII."""
    return len(data) > 1 and len(data) % 2 == 0 and data[1] == 0 and data[1::2].count(0) * 2 > len(data) // 2


def hex_of(data: bytes) -> str:
    """Opaque bytes: the first of them in hex, and how many there are."""
    more = f"… ({len(data)} bytes)" if len(data) > SHOWN_BYTES else ""
    return data[:SHOWN_BYTES].hex() + more


def string_or_hex(data: bytes) -> str:
    """A string where it is one, else hex."""
    text = string_of(data)
    return hex_of(data) if text is None else text


def guid_name(guid: str) -> str:
    """What the GUID stands for, or the GUID itself."""
    return GUID_NAMES.get(guid, guid)


def printable(text: str) -> str:
    """The text on one line of bounded length, its control characters escaped."""
    shown = text[:_TEXT_CHARACTERS]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + (
        "…" if len(text) > len(shown) else ""
    )
