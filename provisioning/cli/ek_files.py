"""What an operator hands over as manufacturers' certificates: files, directories, cabinets, each within bounds.

Nothing is judged here but whether there is a certificate at all; the service judges each of them.
"""

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from provisioning.attestation.bundles import FILE_MOST, certificates_in
from provisioning.attestation.certificates import MAX_BYTES
from provisioning.cli.cabinet import CABINET_MOST, MAGIC, unpacked
from provisioning.cli.failures import Failed
from provisioning.cli.output import clean

DEPTH_MOST = 8
ENTRIES_MOST = 20_000
TOTAL_MOST = 64 * 1024 * 1024
"""Bytes that are read in one import."""
CERTIFICATES_MOST = 10_000
SOURCE_MOST = 512


@dataclass(slots=True)
class Collection:
    """Certificates (source and DER) in the order in which they were found, and what was none, with the reason."""

    found: list[tuple[str, bytes]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    octets: int = 0
    entries: int = 0

    def refuse(self, source: str, reason: str) -> None:
        """Something that cannot be used."""
        self.refused.append({"source": _source(source), "reason": reason})


def collect(paths: Iterable[Path]) -> Collection:
    """All certificates of these files, directories and cabinets. Raises: Failed, OSError."""
    collection = Collection()
    for path in paths:
        if path.is_dir():
            _directory(collection, path, path.resolve().name)
        else:
            _file(collection, path, path.name)
    return collection


def _directory(collection: Collection, folder: Path, name: str, wanted: frozenset[str] | None = None) -> None:
    seen = set()
    for source, path in _walk(collection, folder, name, 0):
        inside = source.removeprefix(f"{name}/")
        if wanted is None or inside in wanted:
            seen.add(inside)
            _file(collection, path, source)
    for inside in sorted((wanted or frozenset()) - seen):
        collection.refuse(f"{name}/{inside}", "was not unpacked under its name")


def _walk(collection: Collection, folder: Path, name: str, depth: int) -> Iterator[tuple[str, Path]]:
    """The regular files below, in the order of their names; links are not followed."""
    for path in sorted(folder.iterdir()):
        source = f"{name}/{path.name}"
        collection.entries += 1
        if collection.entries > ENTRIES_MOST:
            raise Failed(f"{clean(folder)}: more than {ENTRIES_MOST} files; import a folder of certificates only")
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) and depth < DEPTH_MOST:
            yield from _walk(collection, path, source, depth + 1)
        elif stat.S_ISREG(mode):
            yield source, path
        else:
            reason = "is a symbolic link" if stat.S_ISLNK(mode) else "is no regular file"
            collection.refuse(source, f"lies more than {DEPTH_MOST} folders deep" if stat.S_ISDIR(mode) else reason)


def _file(collection: Collection, path: Path, source: str) -> None:
    most = min(max(FILE_MOST, CABINET_MOST), TOTAL_MOST - collection.octets)
    with path.open("rb") as opened:
        if not stat.S_ISREG(path.stat().st_mode):
            collection.refuse(source, "is no regular file")
            return
        data = opened.read(most + 1)
    collection.octets += len(data)
    if len(data) > most:
        raise Failed(f"{clean(path)}: more than {TOTAL_MOST // 2**20} MiB are to be read; split the import")
    if data.startswith(MAGIC):
        _cabinet(collection, data, source)
        return
    found = certificates_in(data)
    for one in found:
        where = source if len(found) == 1 else f"{source}[{one.place}]"
        if one.reason:
            collection.refuse(where, one.reason)
        elif len(one.der) > MAX_BYTES:
            collection.refuse(where, f"is larger than {MAX_BYTES // 1024} KiB")
        else:
            collection.found.append((_source(where), one.der))
    if len(collection.found) > CERTIFICATES_MOST:
        raise Failed(f"{clean(path)}: more than {CERTIFICATES_MOST} certificates; split the import")


def _cabinet(collection: Collection, data: bytes, source: str) -> None:
    if "/" in source and any(part.lower().endswith(".cab") for part in source.split("/")[:-1]):
        collection.refuse(source, "is a cabinet in a cabinet")
        return
    with unpacked(data, source) as (folder, names, climbing):
        for name in climbing:
            collection.refuse(f"{source}/{name}", "has a name that leads out of its cabinet")
        _directory(collection, folder, source, names if climbing else None)


def _source(text: str) -> str:
    """The place as it is shown and stored: no control character; its end says more than its beginning."""
    return clean(text.encode("utf-8", "replace").decode())[-SOURCE_MOST:]
