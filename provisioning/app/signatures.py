"""Signatures counted, and compared with the records (`muster fsck`): did a CA key sign what nobody knows of?

The keys layer counts each signature that a token gives it, by key, and remembers the SHA-256 of the message. Every
second, and when a process ends, the worker writes both: a count for each key, and for CA keys the digests. Counting
messages and not signatures alone is what makes the comparison exact: a certificate that is signed twice (a repeated
request, a second worker, a retry after a crash) is one message, and hides nothing that another signature made.

A message that a CA key signs is durable before it is signed: a certificate as its reserved row, a CRL or a request as
its announced digest. So at any moment, after any crash and with any number of workers, every digest counted has its
record, and one that has none is a fault.

Proven: whatever CA keys signed through this program, and was counted, is in the database.
Not proven: signatures of the last second before a crash; those by other programs with the token's PIN (ceremonies
among them, which write a transcript), and the signatures by which a key is proven when it is found; those after the
backup that was restored. Who controls a worker or the database can leave out the counts.
"""

import asyncio
import hashlib
from collections.abc import Sequence

import structlog
from sqlalchemy import Connection

from provisioning.app.audit import Check, Report
from provisioning.app.keys import HsmKeys, Signed
from provisioning.app.signing import PartnerKeys
from provisioning.db import inspection, signatures
from provisioning.db.ledger import Ledger
from provisioning.refusals import Refusal
from provisioning.service import Service
from wire.binding import key_id

FLUSH_SECONDS = 1.0
NAMED_MOST = 20
CURE = "find out who signed: change the token's PIN, plan the change of this CA: docs/operations.md"

_log = structlog.get_logger()


async def keep_counting(service: Service) -> None:
    """Write what was counted, every second."""
    keys = service.keys
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        if isinstance(keys, HsmKeys | PartnerKeys):
            await flush(keys, service.ledger, int(service.clock().timestamp()))


async def flush(keys: HsmKeys | PartnerKeys, ledger: Ledger, at: int) -> None:
    """Write what was counted; what cannot be written is kept for the next time.

    So is what was being written when the process was asked to end: better twice, which is one message, than never.
    """
    if taken := await keys.taken():
        try:
            await ledger.write(lambda tx: store(tx, taken, at))
        except Refusal as refusal:
            keys.give_back(taken)
            _log.warning("signatures.not_stored", code=refusal.code, actual=refusal.actual)
        except asyncio.CancelledError:
            keys.give_back(taken)
            raise


def flush_now(keys: HsmKeys | PartnerKeys, ledger: Ledger, at: int) -> None:
    """The same at the end of a process, where nobody comes after."""
    if taken := keys.take_signatures():
        try:
            ledger.write_now(lambda tx: store(tx, taken, at))
        except Refusal as refusal:
            counts = {signed.name: signed.count for signed in taken}
            _log.error("signatures.lost", code=refusal.code, actual=refusal.actual, counts=counts)


def store(tx: Connection, taken: Sequence[Signed], at: int) -> None:
    """A count for each key; of CA keys, what they signed."""
    of_cas = {key_id(row.public_key) for row in signatures.ca_keys(tx)}
    for signed in taken:
        signatures.add(tx, signed.key_id, signed.name, signed.count, at)
        if signed.key_id in of_cas and signed.digests:
            signatures.add_batch(tx, signed.key_id, signed.digests, at)


def check_signatures(tx: Connection, report: Report) -> None:
    """Is there a record of every message that a CA key signed? Adds one check to the report."""
    check = Check("every signature by a CA key has its record", cure=CURE)
    report.checks.append(check)
    names: dict[str, list[str]] = {}
    for row in signatures.ca_keys(tx):
        names.setdefault(key_id(row.public_key), []).append(row.name)
    counts = {row.key_id: row.count for row in signatures.counts(tx)}
    announced = set(signatures.intents(tx))
    of_certificates: dict[str, set[bytes]] = {}
    for row in inspection.certificates(tx):
        of_certificates.setdefault(row.issuer, set()).add(hashlib.sha256(row.tbs).digest())
    for key, cas in names.items():
        recorded = set().union(announced, *(of_certificates.get(name, ()) for name in cas))
        digests = list(signatures.batches(tx, key))
        check.looked_at += len(digests)
        called = f"key of {', '.join(cas)}"
        unknown = sorted(set(digests) - recorded)
        check.faults += [
            f"{called}: signed a message that is on no record, SHA-256 {x.hex()}" for x in unknown[:NAMED_MOST]
        ]
        if len(unknown) > NAMED_MOST:
            check.faults.append(f"{called}: and {len(unknown) - NAMED_MOST} more")
        if (count := counts.get(key, 0)) != len(digests):
            more = f"{count} signatures are counted and {len(digests)} messages kept"
            check.faults.append(f"{called}: {more}; they are written together")
