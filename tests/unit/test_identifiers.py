"""Ids that people type: all of their randomness, and never an option of a command line."""

from provisioning.journal import identifier


def test_an_id_begins_with_a_letter_whatever_was_drawn():
    for size in (9, 16):
        ids = [identifier(bytes([first]) + bytes(size - 1)) for first in range(256)]
        assert len(set(ids)) == 256
        assert all("A" <= one[0] <= "P" for one in ids)


def test_an_id_says_every_bit_and_is_as_long_as_before():
    assert len({identifier(bytes(15) + bytes([last])) for last in range(256)}) == 256
    assert {len(identifier(bytes(16))), len(identifier(b"\xff" * 16))} == {22}
