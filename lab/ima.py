"""What a kernel with IMA does on a virtual device: it measures files into PCR 10 and keeps the list.

Template `ima-ng` with SHA-256 (security/integrity/ima/ima_template.c, ima_fs.c); the list's own hashes are SHA-1, as in
`binary_runtime_measurements`, and every bank is extended by its own hash of the data (Linux 5.8 and later).
"""

import hashlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI

IMA_PCR = 10
BOOT_AGGREGATE = "boot_aggregate"
_TEMPLATE = b"ima-ng"
_AGGREGATED_PCRS = range(10)
"""PCRs 0 to 9: ima_calc_boot_aggregate of Linux 5.8 and later, where the bank is not SHA-1."""


def entry_of(path: str, digest: bytes) -> tuple[bytes, bytes]:
    """One measurement of a file with this SHA-256: its place in the list, and what the SHA-256 bank is extended by."""
    data = _sized(b"sha256:\0" + digest) + _sized(path.encode() + b"\0")
    hashed = hashlib.sha1(data, usedforsecurity=False).digest()
    listed = struct.pack("<I", IMA_PCR) + hashed + _sized(_TEMPLATE) + _sized(data)
    return listed, hashlib.sha256(data).digest()


def start_ima(tpm: "ESAPI", log: Path) -> None:
    """The kernel came up: a new list, whose first entry is over PCRs 0 to 9."""
    from tpm2_pytss.types import TPML_PCR_SELECTION  # noqa: PLC0415  an entry is made without a TPM

    values = bytearray()
    for first, last in ((0, 7), (8, 9)):  # TPM2_PCR_Read answers at most eight
        wanted = ",".join(str(pcr) for pcr in _AGGREGATED_PCRS if first <= pcr <= last)
        _, _, digests = tpm.pcr_read(TPML_PCR_SELECTION.parse(f"sha256:{wanted}"))
        values += b"".join(bytes(digest) for digest in digests)
    log.write_bytes(b"")
    log.chmod(0o600)
    measure_file(tpm, log, BOOT_AGGREGATE, hashlib.sha256(values).digest())


def measure_file(tpm: "ESAPI", log: Path, path: str, digest: bytes) -> None:
    """A file with this SHA-256 is run or read: PCR 10 is extended, and the list grows by one entry."""
    from tpm2_pytss.constants import ESYS_TR, TPM2_ALG  # noqa: PLC0415  as above
    from tpm2_pytss.types import TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA  # noqa: PLC0415  as above

    listed, extended = entry_of(path, digest)
    values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=extended))])
    with log.open("ab") as file:  # the list first: a quote never covers what is not in it
        file.write(listed)
    tpm.pcr_extend(ESYS_TR(IMA_PCR), values)


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
