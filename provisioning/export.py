"""Evidence in the forms that other programs read, so that nobody has to believe ours. Pure.

The files are those of tpm2-tools (`tpm2_checkquote -u -m -s -f -q`).
"""

import struct
from base64 import encodebytes
from collections.abc import Mapping

SELECTIONS_MOST = 16  # TPM2_NUM_PCR_BANKS of tss2_tpm2_types.h
DIGESTS_MOST = 8  # a TPML_DIGEST holds at most eight
DIGEST_BYTES_MOST = 64
SELECT_BYTES = 3


def tpm2_tools_pcrs(bank: int, values: Mapping[int, bytes]) -> bytes:
    """PCR values as `tpm2_checkquote -f` reads them (the file that `tpm2_quote -o` writes).

    `bank` is a TPM_ALG_ID. The file is C structures with little-endian numbers: TPML_PCR_SELECTION, then a count of
    TPML_DIGEST, each of eight slots.
    """
    chosen = sorted(values)
    bitmap = bytearray(SELECT_BYTES + 1)
    for pcr in chosen:
        bitmap[pcr // 8] |= 1 << pcr % 8
    selection = struct.pack("<HB4sx", bank, SELECT_BYTES, bytes(bitmap))
    parts = [struct.pack("<I", 1), selection, bytes(len(selection) * (SELECTIONS_MOST - 1))]
    groups = [chosen[start : start + DIGESTS_MOST] for start in range(0, len(chosen), DIGESTS_MOST)]
    parts.append(struct.pack("<I", len(groups)))
    for group in groups:
        slots = [struct.pack(f"<H{DIGEST_BYTES_MOST}s", len(values[pcr]), values[pcr]) for pcr in group]
        slots += [bytes(2 + DIGEST_BYTES_MOST)] * (DIGESTS_MOST - len(group))
        parts += [struct.pack("<I", len(group)), *slots]
    return b"".join(parts)


def pem(label: str, der: bytes) -> bytes:
    """RFC 7468 text around DER."""
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label.encode(), _lines(der), label.encode())


def _lines(der: bytes) -> bytes:
    text = encodebytes(der).replace(b"\n", b"")
    return b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
