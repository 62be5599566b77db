"""The files for tpm2-tools have the layout of its C structures; tests/e2e has the tool itself read them."""

import ssl
import struct

from hypothesis import given
from hypothesis import strategies as st

from provisioning.export import pem, tpm2_tools_pcrs

SHA256 = 0x000B
LIST_BYTES = 4 + 8 * (2 + 64)
HEAD_BYTES = 4 + 16 * 8 + 4


def test_the_selection_names_bank_and_pcrs():
    written = tpm2_tools_pcrs(SHA256, {0: b"\x01" * 32, 9: b"\x02" * 32, 23: b"\x03" * 32})
    count, bank, size, bitmap = struct.unpack_from("<IHB4s", written)
    assert (count, bank, size) == (1, SHA256, 3)
    assert bitmap == bytes([0b00000001, 0b00000010, 0b10000000, 0])


def test_values_stand_in_the_order_of_their_pcrs():
    written = tpm2_tools_pcrs(SHA256, {9: b"\x09" * 32, 0: b"\x00" * 32})
    (lists,) = struct.unpack_from("<I", written, HEAD_BYTES - 4)
    (values,) = struct.unpack_from("<I", written, HEAD_BYTES)
    assert (lists, values) == (1, 2)
    assert written[HEAD_BYTES + 4 :][: 2 + 32] == b"\x20\x00" + b"\x00" * 32
    assert written[HEAD_BYTES + 4 + 66 :][: 2 + 32] == b"\x20\x00" + b"\x09" * 32


@given(st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32), min_size=1))
def test_each_list_holds_at_most_eight(values):
    written = tpm2_tools_pcrs(SHA256, values)
    lists = -(-len(values) // 8)
    assert len(written) == HEAD_BYTES + lists * LIST_BYTES
    counts = [struct.unpack_from("<I", written, HEAD_BYTES + n * LIST_BYTES)[0] for n in range(lists)]
    assert sum(counts) == len(values)
    assert max(counts) <= 8


@given(st.binary(min_size=1, max_size=500))
def test_pem_is_read_as_what_was_written(der):
    text = pem("CERTIFICATE", der).decode()
    assert ssl.PEM_cert_to_DER_cert(text) == der
    assert max(map(len, text.splitlines())) <= 64
