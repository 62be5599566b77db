"""Whole tables, row by row, for those who check an installation: `fsck`, `audit verify`. Nothing here writes."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Select, select

from provisioning.db.devices import Record, device
from provisioning.db.enrollments import attestation, certificate
from provisioning.db.leaves import checkpoint, leaf
from provisioning.db.logs import log
from provisioning.db.retention import removed_attestation
from provisioning.db.revocations import ADOPTED, crl, revocation
from provisioning.refusals import StorageUnavailable

AT_ONCE = 1000


def certificates(tx: Connection) -> Iterator[Record]:
    """Every certificate, reserved ones too, in the order of serials."""
    return _rows(tx, select(certificate).order_by(certificate.c.serial))


def devices(tx: Connection) -> Iterator[Record]:
    """Every device, in the order of ids."""
    return _rows(tx, select(device).order_by(device.c.id))


def attestations(tx: Connection) -> Iterator[Record]:
    """Every evidence that passed, in the order of time."""
    return _rows(tx, select(attestation).order_by(attestation.c.at, attestation.c.id))


def removed_attestations(tx: Connection) -> Iterator[Record]:
    """What is left of evidence that earned certificates and was removed."""
    return _rows(tx, select(removed_attestation).order_by(removed_attestation.c.at, removed_attestation.c.id))


def boot_logs(tx: Connection) -> Iterator[Record]:
    """Every boot log and IMA log that is known by its name."""
    return _rows(tx, select(log).order_by(log.c.sha256))


def crls(tx: Connection) -> Iterator[Record]:
    """The CRLs that are kept, in the order of their numbers."""
    return _rows(tx, select(crl).order_by(crl.c.number))


def adopted(tx: Connection) -> Iterator[Record]:
    """Entries of published CRLs whose certificates this database does not have."""
    return _rows(tx, select(revocation).where(revocation.c.kind == ADOPTED))


def numbered_leaves(tx: Connection) -> Iterator[Record]:
    """The leaves that have a place in the tree, in its order."""
    return _rows(tx, select(leaf).where(leaf.c.number.is_not(None)).order_by(leaf.c.number))


def waiting_leaves(tx: Connection) -> Iterator[Record]:
    """The leaves that wait for a place, in the order in which they came."""
    return _rows(tx, select(leaf).where(leaf.c.number.is_(None)).order_by(leaf.c.id))


def checkpoints(tx: Connection) -> Iterator[Record]:
    """Every signed tree head, smallest first."""
    return _rows(tx, select(checkpoint).order_by(checkpoint.c.size))


def _rows(tx: Connection, statement: Select[Any]) -> Iterator[Record]:
    """The rows, each value of its column's type: SQLite itself stores whatever somebody put there."""
    kinds = [(column.name, column.type.python_type) for column in statement.selected_columns]
    for row in tx.execution_options(yield_per=AT_ONCE).execute(statement):
        for (name, kind), value in zip(kinds, row, strict=True):
            if value is not None and not isinstance(value, kind):
                raise StorageUnavailable(
                    expected=f"{name} as {kind.__name__}", actual=f"{type(value).__name__} in {row[0]}"
                )
        yield row
