"""The certificates of TPM manufacturers as this process holds them: read again whenever the database has others.

The table is the source of truth. Each worker asks once a second whether it changed; whoever changed it reads it at
once. An EK is judged by what is held at that moment (`attestation.policy_roots.anchors`): nothing of it is cached in
a parsed policy.
"""

from sqlalchemy import Connection

from provisioning.attestation.ek_store import EMPTY, EkStore, Role, Stored
from provisioning.db import ek_roots
from provisioning.db.devices import Record
from provisioning.db.store import Store

REFRESH_SECONDS = 1.0


class EkAuthorities:
    """What was imported. Reading is free of locks: what is held is one value, replaced whole."""

    def __init__(self) -> None:
        self.store: EkStore = EMPTY
        self.version = 0

    def load(self, tx: Connection) -> bool:
        """Read the table, if it was changed. Was it?"""
        version = ek_roots.version(tx)
        if version == self.version:
            return False
        self.store = EkStore(map(stored_of, ek_roots.present(tx)))
        self.version = version
        return True

    async def refresh(self, store: Store) -> bool:
        """The same, from a running loop. Raises: StorageUnavailable."""
        return await store.read(self.load)


def stored_of(row: Record) -> Stored:
    """A row as the store has it."""
    return Stored(row.fingerprint, row.der, row.subject, row.subject_key, row.manufacturer, Role(row.role))
