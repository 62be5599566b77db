"""A ceremony's transcript against what the installation holds today: its log, its CA, its trust bundle."""

import hashlib
from contextlib import closing

from sqlalchemy import Connection

from ota.bundle import published_bundle
from provisioning.app.audit import log_keys, verify_log
from provisioning.app.ceremony_transcript import Present, Transcript, verify_transcript
from provisioning.config import Config, DataDirectory, load_config
from provisioning.db import authorities, leaves
from provisioning.db.schema import verify_schema
from provisioning.db.store import Store, open_sqlite
from provisioning.refusals import TranscriptRefused
from wire.codec import MalformedMessage, parse_json

RECORD_MOST = 4096
LEAF_KIND = "ceremony"


def compare(directory: DataDirectory, data: bytes) -> tuple[Transcript, int | None]:
    """The transcript in these bytes, verified, and the number of its leaf (None: the log has not numbered it yet).

    The whole log is verified with it. Raises: TranscriptRefused, ConfigurationRefused, OSError.
    """
    config = load_config(directory)
    path = directory.database(config)
    path.stat()
    verify_schema(path)
    with closing(Store(open_sqlite(path, read_only=True))) as store:
        present, numbers = store.read_now(lambda tx: _present(tx, directory, config))
    transcript = verify_transcript(data, present)
    return transcript, numbers[hashlib.sha256(data).hexdigest()]


def _present(tx: Connection, directory: DataDirectory, config: Config) -> tuple[Present, dict[str, int | None]]:
    report = verify_log(tx, log_keys(directory, config))
    if not report.holds:
        broken = ", ".join(check.name for check in report.checks if not check.holds)
        raise TranscriptRefused(expected="a log that holds", actual=f"it does not: {broken}; muster audit verify")
    hashes: dict[str, tuple[str, int | None]] = {}
    for row in leaves.of_kind(tx, LEAF_KIND):
        try:
            record = parse_json(row.record or b"", limit=RECORD_MOST)
            hashes[str(record["transcript"])] = (str(record["text"]), row.number)
        except (MalformedMessage, KeyError, TypeError) as error:
            raise TranscriptRefused(expected="a record of a ceremony", actual=f"leaf {row.number}: {error}") from error
    bundle = published_bundle(directory.trust)
    rows = authorities.every(tx)
    known = {"command": list(bundle.command_keys), "log": list(bundle.log_keys)}
    for row in rows:  # what has been rolled over is in no bundle any more
        if row.kind in known and row.public_key:
            known[row.kind].append(row.public_key)
    present = Present(
        certificates={row.name: row.certificate for row in rows if row.certificate},
        keys={kind: frozenset(hashlib.sha256(key).hexdigest() for key in keys) for kind, keys in known.items()},
        logged=frozenset((sha256, text) for sha256, (text, _) in hashes.items()),
    )
    return present, {sha256: number for sha256, (_, number) in hashes.items()}
