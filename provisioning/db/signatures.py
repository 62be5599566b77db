"""Signatures counted: by key, and for CA keys which messages. What it proves stands in `app/signatures.py`."""

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, insert, select, update

from provisioning.db.ca_tables import Authority, SignatureBatch, SignatureCount, SignatureIntent
from provisioning.db.columns import table_of
from provisioning.db.devices import Record

counted, batch, intent = table_of(SignatureCount), table_of(SignatureBatch), table_of(SignatureIntent)
authority = table_of(Authority)
CA_KINDS = ("root", "issuing")
DIGEST_OCTETS = 32


def announce(tx: Connection, digest: bytes, kind: str, at: int) -> None:
    """A CA key is about to sign this, which is no certificate: its SHA-256 is kept."""
    if tx.execute(select(intent.c.at).where(intent.c.digest == digest)).first() is None:
        tx.execute(insert(intent).values(digest=digest, kind=kind, at=at))


def ca_keys(tx: Connection) -> list[Record]:
    """Name and public key (SubjectPublicKeyInfo, DER) of every certificate authority."""
    return list(tx.execute(select(authority.c.name, authority.c.public_key).where(authority.c.kind.in_(CA_KINDS))))


def add(tx: Connection, key_id: str, key: str, count: int, at: int) -> None:
    """Count these too."""
    more = {"count": counted.c.count + count, "key": key, "at": at}
    if not tx.execute(update(counted).where(counted.c.key_id == key_id).values(more)).rowcount:
        tx.execute(insert(counted).values(key_id=key_id, key=key, count=count, since=at, at=at))


def add_batch(tx: Connection, key_id: str, digests: Sequence[bytes], at: int) -> None:
    """A CA key signed these."""
    tx.execute(insert(batch).values(key_id=key_id, at=at, digests=b"".join(digests)))


def counts(tx: Connection) -> list[Record]:
    """Every key that was counted."""
    return list(tx.execute(select(counted).order_by(counted.c.key_id)))


def batches(tx: Connection, key_id: str) -> Iterator[bytes]:
    """The digests that one CA key signed, one by one; what is left over of a damaged row is one of its own."""
    for row in tx.execute(select(batch.c.digests).where(batch.c.key_id == key_id).order_by(batch.c.id)):
        for start in range(0, len(row.digests), DIGEST_OCTETS):
            yield bytes(row.digests[start : start + DIGEST_OCTETS])


def intents(tx: Connection) -> Iterator[bytes]:
    """What was announced."""
    return (bytes(row.digest) for row in tx.execute(select(intent.c.digest)))
