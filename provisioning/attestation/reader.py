"""A cursor over the bytes of a TPM structure: nothing is read past the end, and a refusal says which field it was."""

import struct
from collections.abc import Mapping
from typing import NoReturn

from provisioning.attestation.algorithms import HASH_NAMES
from provisioning.refusals import AlgorithmRefused, StructureMalformed

_U16 = struct.Struct(">H")


class Run:
    """Fields of fixed sizes that stand side by side: read at one stroke, and named one by one if they are cut."""

    __slots__ = ("layout", "sizes")

    def __init__(self, fields: Mapping[str, str]) -> None:
        """Each name, and its format as `struct` spells it."""
        self.layout = struct.Struct(">" + "".join(fields.values()))
        self.sizes = {field: struct.calcsize(">" + form) for field, form in fields.items()}


class Reader:
    """A cursor that refuses to read past the end, and says in which field of which structure.

    Half a verification's time outside of signatures is spent here: so few calls, and what to say only once it fails.
    """

    __slots__ = ("_at", "_data", "_structure")

    def __init__(self, data: bytes, structure: str) -> None:
        self._data = data
        self._structure = structure
        self._at = 0

    def run(self, run: Run) -> tuple[int, ...]:
        """The values of fields that stand side by side. Where one is cut, none of them is judged."""
        layout = run.layout
        try:
            values: tuple[int, ...] = layout.unpack_from(self._data, self._at)
        except struct.error:
            self._cut(run.sizes)
        self._at += layout.size
        return values

    def u16(self, field: str) -> int:
        """Two octets, big-endian."""
        try:
            value: int = _U16.unpack_from(self._data, self._at)[0]
        except struct.error:
            self._cut({field: 2})
        self._at += 2
        return value

    def take(self, size: int, field: str) -> bytes:
        """So many octets."""
        end = self._at + size
        if end > len(self._data):
            self._cut({field: size})
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def sized(self, field: str, most: int) -> bytes:
        """A TPM2B: two bytes of size, then so many bytes."""
        begin = self._at + 2
        size = int.from_bytes(self._data[begin - 2 : begin], "big")
        end = begin + size
        if size > most or end > len(self._data):
            self.u16(field)  # the size itself may be what is cut
            if size > most:
                self.malformed(field, f"at most {most} bytes", f"{size}")
            self._cut({field: size})
        self._at = end
        return self._data[begin:end]

    def demand_hash(self, field: str, algorithm: int) -> None:
        """Refuses what is no TPM_ALG_ID of a hash that counts."""
        if algorithm not in HASH_NAMES:
            self.refuse(field, "SHA-256, SHA-384 or SHA-512", algorithm)

    def end(self) -> None:
        """Refuses whatever is left."""
        if self._at != len(self._data):
            self.malformed("end", "no more bytes", f"{len(self._data) - self._at} bytes")

    def _cut(self, sizes: Mapping[str, int]) -> NoReturn:
        """Refuses the first of these fields that does not fit into the rest."""
        left = len(self._data) - self._at
        fields = iter(sizes.items())
        field, size = next(fields)
        while size <= left:
            left -= size
            field, size = next(fields)
        self.malformed(field, f"{size} bytes", f"{left}")

    def malformed(self, field: str, expected: str, actual: str) -> NoReturn:
        """Raises: StructureMalformed."""
        raise StructureMalformed(expected=f"{self._structure}.{field}: {expected}", actual=actual)

    def refuse(self, field: str, expected: str, actual: int | str) -> NoReturn:
        """Raises: AlgorithmRefused."""
        shown = actual if isinstance(actual, str) else f"{actual:#06x}"
        raise AlgorithmRefused(expected=f"{self._structure}.{field}: {expected}", actual=shown)
