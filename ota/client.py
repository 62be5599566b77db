"""A repository as a device keeps it: fetched, verified, stored, and remembered, so that it never goes back.

Three files, each whole or absent: `roots.json` (the chain after the trusted root, kept as soon as it is verified: a
root that took a stolen key away is not forgotten because the rest of a refresh failed), `set.json` (one complete set,
with the bytes of one small target where the caller keeps one) and `floor.json`. The versions are in two places,
`set.json` and `floor.json`: either alone keeps the protection against rollback. Losing both is logged.
"""

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from ota.files import read_at_most, replace_file
from ota.refusals import UpdateRefused
from ota.source import Fetch, NotFoundAtSource
from ota.verify import (
    ROOT_MOST,
    ROOTS_MOST,
    SNAPSHOT_MOST,
    TARGETS_MOST,
    TIMESTAMP_MOST,
    Floor,
    VerifiedRepository,
    VerifiedRoot,
    verify_repository,
    verify_roots,
)
from wire.codec import Cap, MalformedMessage, decode, encode

TARGET_MOST = 512 * 1024
"""Bytes of a target that is kept with its metadata."""
FILE_MOST = 4 * 1024 * 1024
_BEFORE_EXPIRY = datetime(1970, 1, 1, tzinfo=UTC)
_logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Roots:
    by_version: Annotated[dict[str, Annotated[bytes, Cap(ROOT_MOST)]], Cap(ROOTS_MOST)]


@dataclass(frozen=True, slots=True)
class _Set:
    timestamp: Annotated[bytes, Cap(TIMESTAMP_MOST)]
    snapshot: Annotated[bytes, Cap(SNAPSHOT_MOST)]
    targets: Annotated[bytes, Cap(TARGETS_MOST)]
    target: Annotated[bytes, Cap(TARGET_MOST)] | None = None


class RepositoryClient:
    """One repository's metadata on this device, verified from `trusted_root` each time that it is read."""

    def __init__(self, directory: Path, trusted_root: bytes) -> None:
        self._directory = directory
        self._trusted_root = trusted_root

    def fetch_verified(self, fetch: Fetch, now: datetime) -> VerifiedRepository:
        """The source's set, verified at `now` against everything that was kept. New roots are kept at once.

        Raises: as `verify_roots` and `verify_repository`; what `fetch` raises.
        """
        root = self._roots(fetch)
        self._keep_roots(root)
        return verify_repository(root, fetch, self._floors(root), now)

    def stored(self, now: datetime) -> tuple[VerifiedRepository, bytes | None] | None:
        """The kept set and the kept target, verified again at `now`; None where no set is kept.

        The target's bytes are not judged here. Raises: as `verify_roots` and `verify_repository`.
        """
        kept = self._load(_Set, "set.json")
        if kept is None:
            return None
        root = self._roots(partial(_from_dict, {}))
        verified = verify_repository(root, _from_set(kept), self._floors(root), now)
        return verified, kept.target

    def keep(self, verified: VerifiedRepository, target: bytes | None = None) -> None:
        """Make this set the one that is stored, and its versions the least that will be accepted."""
        kept = _Set(verified.timestamp, verified.snapshot, verified.targets_metadata, target)
        self._save("set.json", encode(kept))
        self._save("floor.json", encode(verified.floor))

    def _roots(self, fetch: Fetch) -> VerifiedRoot:
        kept = self._kept_roots()

        def kept_first(path: str, most: int) -> bytes:
            return kept[path] if path in kept else fetch(path, most)

        return verify_roots(self._trusted_root, kept_first)

    def _kept_roots(self) -> dict[str, bytes]:
        """Path to kept root. Judged by themselves: whatever a source serves behind them, good ones are not dropped."""
        stored = self._load(_Roots, "roots.json")
        if stored is None:
            return {}
        kept = {f"metadata/{number}.root.json": data for number, data in stored.by_version.items()}
        try:
            verify_roots(self._trusted_root, partial(_from_dict, kept))
        except UpdateRefused as refusal:
            _logger.warning("metadata-damaged file=%s reason=%s", self._directory / "roots.json", refusal)
            return {}
        return kept

    def _keep_roots(self, root: VerifiedRoot) -> None:
        """At once, and the version in `floor.json` too: hiding a root that was seen is refused without `roots.json`."""
        first = root.version - len(root.chain) + 1
        by_version = {str(first + place): data for place, data in enumerate(root.chain)}
        self._save("roots.json", encode(_Roots(by_version)))
        floor = self._load(Floor, "floor.json")
        if floor is not None and floor.root < root.version:
            self._save("floor.json", encode(replace(floor, root=root.version)))

    def _floors(self, root: VerifiedRoot) -> tuple[Floor, ...]:
        """What was seen, as `floor.json` and (independently) the stored set remember it."""
        floors = []
        written = self._load(Floor, "floor.json")
        if written is not None:
            floors.append(written)
        kept = self._load(_Set, "set.json")
        if kept is not None:
            try:
                floors.append(verify_repository(root, _from_set(kept), (), _BEFORE_EXPIRY).floor)
            except UpdateRefused as refusal:  # signed by keys that a newer root took away, or damaged: it binds no more
                _logger.info("metadata-unusable file=%s reason=%s", self._directory / "set.json", refusal)
        if not floors and any((self._directory / name).exists() for name in ("set.json", "floor.json")):
            _logger.warning("rollback-protection-lost directory=%s", self._directory)
        return tuple(floors)

    def _load(self, cls: type[T], name: str) -> T | None:
        data = read_at_most(self._directory / name, FILE_MOST)
        if data is None:
            return None
        try:
            return decode(cls, data, limit=FILE_MOST)
        except MalformedMessage as error:
            _logger.warning("metadata-damaged file=%s reason=%s", self._directory / name, error)
            return None

    def _save(self, name: str, data: bytes) -> None:
        path = self._directory / name
        if read_at_most(path, FILE_MOST) == data:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, data, mode=0o600)


def _from_dict(files: dict[str, bytes], path: str, _most: int) -> bytes:
    if path not in files:
        raise NotFoundAtSource(path)
    return files[path]


def _from_set(kept: _Set) -> Fetch:
    """The kept set as a source: whatever version is asked for, there is one of each."""

    def fetch(path: str, _most: int) -> bytes:
        for ending, data in (("timestamp.json", kept.timestamp), ("snapshot.json", kept.snapshot)):
            if path.endswith(ending):
                return data
        return kept.targets

    return fetch
