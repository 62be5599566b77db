"""Evidence as the service stores it, quoted by a software key: what was booted and run is a test's choice."""

import hashlib
import struct
from typing import Any

from lab.ima import entry_of
from lab.light import LightBoot, LightDevice, make_ak
from provisioning.attestation.eventlog import parse_event_log, replay
from provisioning.attestation.ima import IMA_PCR, parse_ima_log, replay_ima
from provisioning.attestation.rejudging import StoredEvidence
from tests.support.boot_logs import Entry, log_of
from wire.codec import encode
from wire.messages import PcrSelection, PlatformEvidence

AK = make_ak()
FIRMWARE = 0x20260101_00000000
"""What such a TPM says of itself."""
BANK = "sha256"


def pcrs_after(happened: list[Entry], files: dict[str, bytes] | None = None) -> dict[int, bytes]:
    """All PCRs after these events, and after these files were measured."""
    values = dict(replay(parse_event_log(log_of(happened)), BANK))
    if files is not None:
        values |= replay_ima(parse_ima_log(ima_log_of(values, files)), BANK)
    return values


def ima_log_of(values: dict[int, bytes], files: dict[str, bytes]) -> bytes:
    """The kernel's list: the boot aggregate, then the files."""
    aggregate = hashlib.sha256(b"".join(values[pcr] for pcr in range(10))).digest()
    return b"".join(entry_of(path, digest)[0] for path, digest in {"boot_aggregate": aggregate, **files}.items())


def stored(happened: list[Entry], pcrs: tuple[int, ...], files: dict[str, bytes] | None = None) -> StoredEvidence:
    """A quote over these PCRs, and the logs that lead to it."""
    values, log = pcrs_after(happened, files), log_of(happened)
    ima = None if files is None else ima_log_of(values, files)
    none: Any = None  # no EK: nothing is activated
    device = LightDevice("serial", none, b"", LightBoot(values, log), ak=AK)
    selection = PcrSelection(BANK, pcrs)
    evidence = PlatformEvidence(
        quote=device._quote(selection, b"qualification"),
        pcrs=device._pcrs(selection),
        activation_proof=bytes(32),
        boot_log_sha256=hashlib.sha256(log).digest(),
        ima_log_sha256=None if ima is None else hashlib.sha256(ima).digest(),
    )
    return StoredEvidence(encode(evidence), AK.public, log, ima)


def signed_entry(path: str, digest: bytes, signature: bytes) -> bytes:
    """A measurement with template `ima-sig`, as the list has it."""
    parts = (b"sha256:\0" + digest, path.encode() + b"\0", signature)
    data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    hashed = hashlib.sha1(data, usedforsecurity=False).digest()
    return struct.pack("<I", IMA_PCR) + hashed + struct.pack("<I", 7) + b"ima-sig" + struct.pack("<I", len(data)) + data
