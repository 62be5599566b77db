"""`muster audit verify`: is the log what it was? Every leaf from its record, every tree head from its leaves.

One edited, deleted or reordered row is found: a leaf's hash covers its record, a root covers the hashes and their
order, a signature by the log key covers the root. Not found here: a log whose newest leaves and tree heads are gone
together. Who kept a checkpoint finds that too (`kept`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection

from ota.bundle import published_bundle
from ota.refusals import UpdateRefused
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.db import authorities, inspection, retention
from provisioning.db.devices import Record
from provisioning.transparency import (
    CHECKPOINT_MOST,
    Checkpoint,
    CheckpointMalformed,
    CheckpointNotAuthentic,
    Tree,
    append,
    leaf_bytes,
    leaf_hash,
    leaf_of,
    root_of,
    verify_checkpoint,
)
from wire.codec import MalformedMessage, decode, parse_json
from wire.messages import BUNDLE_MOST, TrustBundle

RECORD_MOST = 256 * 1024
RESTORE = "restore the database from a backup, and find out who could write to it"


@dataclass(slots=True)
class Check:
    """One thing that must hold: how many were looked at, and each one for which it does not hold."""

    name: str
    looked_at: int = 0
    faults: list[str] = field(default_factory=list)
    cure: str = RESTORE

    @property
    def holds(self) -> bool:
        """Was no fault found?"""
        return not self.faults


@dataclass(slots=True)
class Report:
    """What was checked, and what a person should know that is no fault."""

    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Did every check hold?"""
        return all(check.holds for check in self.checks)


@dataclass(frozen=True, slots=True)
class LogKeys:
    """Whose signature makes a tree head: the log's name, and the keys that the trust bundle names for it."""

    origin: str
    keys: tuple[bytes, ...]
    former: tuple[bytes, ...] = ()
    """Keys of bundles before: a leaf of the log itself says so, under a tree head by a key that is trusted now."""

    def verify(self, note: bytes, *, newest: bool = False) -> Checkpoint:
        """The checkpoint of a signed note; the newest one is by a key that is trusted now.

        Raises: CheckpointMalformed, CheckpointNotAuthentic.
        """
        trusted: Mapping[str, tuple[bytes, ...]] = {self.origin: self.keys if newest else (*self.keys, *self.former)}
        return verify_checkpoint(note, self.origin, trusted)


def log_keys(directory: DataDirectory, config: Config) -> LogKeys:
    """The log's keys, out of the published trust bundle. Raises: ConfigurationRefused."""
    try:
        return LogKeys(f"{config.service_name}/log", published_bundle(directory.trust).log_keys)
    except UpdateRefused as refused:
        msg = f"{directory.trust}: {refused}; restore it from a backup"
        raise ConfigurationRefused(msg) from refused


def verify_log(tx: Connection, keys: LogKeys, kept: bytes | None = None) -> Report:
    """All leaves and tree heads of the database. `kept` is a checkpoint that somebody kept elsewhere."""
    leaves, order = Check("every leaf is the hash of its record"), Check("no leaf is missing")
    roots, signatures = (
        Check("every tree head is the root of its leaves"),
        Check("every tree head is signed by the log"),
    )
    report = Report([leaves, order, roots, signatures])
    keys = replace(keys, former=_former_keys(tx))
    older = _kept(keys, kept, report)
    heads = list(inspection.checkpoints(tx))
    wanted = {head.size: head for head in heads}
    tree, erased = Tree(), 0
    tree_at = {0: root_of(tree)}
    for row in inspection.numbered_leaves(tx):
        _verify_place(row, tree.size, order)
        erased += not _verify_leaf(row, leaves)
        tree = append(tree, [row.hash])
        if tree.size in wanted or (older is not None and older.size == tree.size):
            tree_at[tree.size] = root_of(tree)
        if tree.size in wanted and b"".join(tree.peaks) != wanted[tree.size].frontier:
            roots.faults.append(f"tree head {tree.size}: its frontier is not that of its leaves")
    waiting = _verify_waiting(inspection.waiting_leaves(tx), leaves)
    for head in heads:
        _verify_head(head, tree_at.get(head.size), keys, roots, signatures, newest=head is heads[-1])
    newest = heads[-1].size if heads else 0
    if tree.size > newest:
        roots.faults.append(f"leaves {newest} to {tree.size - 1} are numbered and no tree head covers them")
    if older is not None and tree_at.get(older.size) != older.root:
        report.checks[-1].faults.append(
            f"the kept checkpoint of size {older.size} is of another tree: history was rewritten"
        )
    report.notes += [*_notes(tree.size, waiting, erased), *_removed(tx)]
    return report


def _kept(keys: LogKeys, kept: bytes | None, report: Report) -> Checkpoint | None:
    if kept is None:
        return None
    check = Check("the log continues the kept checkpoint", 1)
    report.checks.append(check)
    try:
        return keys.verify(kept[: CHECKPOINT_MOST + 1])
    except (CheckpointMalformed, CheckpointNotAuthentic) as error:
        check.faults.append(f"the kept checkpoint: {error}")
        return None


def _verify_place(row: Record, wanted: int, order: Check) -> None:
    order.looked_at += 1
    # After a gap all later places differ; the first fault of a run says it.
    if row.number != wanted and not order.faults:
        order.faults.append(f"leaf {wanted} is missing: the next one is {row.number}")


def _verify_leaf(row: Record, check: Check) -> bool:
    """False where the record was erased: the hash then stands alone."""
    check.looked_at += 1
    where = f"leaf {row.number if row.number is not None else f'(unnumbered, row {row.id})'}"
    if row.salt is None and row.record is None:
        return False
    try:
        at = datetime.fromtimestamp(row.at, UTC)
        expected = leaf_hash(leaf_bytes(leaf_of(row.kind, at, row.salt, row.record)))
    except (TypeError, ValueError, OverflowError, OSError):
        check.faults.append(f"{where}: its salt, record or time is damaged")
        return True
    if expected != row.hash:
        check.faults.append(f"{where} ({row.kind}): is not the hash of its record: one of them was edited")
    return True


def _verify_waiting(rows: Iterator[Record], leaves: Check) -> int:
    waiting = 0
    for row in rows:
        waiting += 1
        _verify_leaf(row, leaves)
    return waiting


def _former_keys(tx: Connection) -> tuple[bytes, ...]:
    """The log's keys in every bundle whose publication stands in the log."""
    logged = set()
    for row in inspection.numbered_leaves(tx):
        if row.kind == "trust" and row.record is not None:
            with suppress(MalformedMessage, AttributeError):  # a damaged record is found as such, where leaves are
                logged.add(parse_json(row.record, limit=RECORD_MOST).get("sha256"))
    found: list[bytes] = []
    for row in authorities.bundles(tx):
        if hashlib.sha256(row.content).hexdigest() in logged:
            found += decode(TrustBundle, row.content, limit=BUNDLE_MOST).log_keys
    return tuple(dict.fromkeys(found))


def _verify_head(
    head: Record, root: bytes | None, keys: LogKeys, roots: Check, signatures: Check, *, newest: bool
) -> None:
    roots.looked_at += 1
    signatures.looked_at += 1
    if root is None:
        roots.faults.append(f"tree head {head.size}: there are fewer leaves than it covers")
    elif root != head.root:
        roots.faults.append(
            f"tree head {head.size}: is not the root of its leaves: one was edited, or two changed places"
        )
    try:
        signed = keys.verify(head.note.encode(), newest=newest)
    except (CheckpointMalformed, CheckpointNotAuthentic) as error:
        signatures.faults.append(f"tree head {head.size}: {error}")
        return
    if (signed.size, signed.root) != (head.size, head.root):
        signatures.faults.append(f"tree head {head.size}: its signature is over another tree")


def _notes(size: int, waiting: int, erased: int) -> list[str]:
    notes = [f"the tree has {size} leaves"]
    if waiting:
        notes.append(f"{waiting} leaves wait for a place: muster serve gives it within a second")
    if erased:
        notes.append(f"the records of {erased} leaves were erased: their hashes stand alone")
    return notes


def _removed(tx: Connection) -> list[str]:
    """What retention removed: no fault, and nothing that a leaf held."""
    found = retention.removed_in_all(tx)
    if not (found.attestations or found.refused or found.logs):
        return []
    what = f"{found.attestations} attestations, {found.refused} refused ones and {found.logs} logs"
    return [f"retention removed {what}: the leaves keep their hashes, the rest is gone"]


def read_kept(path: Path) -> bytes:
    """A checkpoint file, no more of it than a checkpoint can have. Raises: OSError."""
    with path.open("rb") as file:
        return file.read(CHECKPOINT_MOST + 1)
