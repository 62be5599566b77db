"""State files are private, whole or absent, and a damaged one is said."""

import os
import stat
from dataclasses import dataclass

import pytest

from device_agent import state


@dataclass(frozen=True, slots=True)
class Thing:
    name: str


def test_files_are_0600_and_folders_0700_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        state.private_folder(tmp_path / "a" / "b")
        state.atomic_write(tmp_path / "a" / "b" / "file", b"content")
    finally:
        os.umask(before)
    for path, mode in ((tmp_path / "a", 0o700), (tmp_path / "a" / "b", 0o700), (tmp_path / "a" / "b" / "file", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    state.atomic_write(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        state.atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_interrupted_write_left_is_in_nobodys_way(tmp_path):
    path = tmp_path / "file"
    (tmp_path / "file.partial").write_bytes(b"half")
    state.atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_planted_beside_a_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "file.partial").symlink_to(victim)
    state.atomic_write(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"precious"


def test_values_come_back_and_damage_is_named(tmp_path):
    path = tmp_path / "thing.json"
    assert state.read_value(Thing, path, 100) is None
    state.write_value(path, Thing("x"))
    assert state.read_value(Thing, path, 100) == Thing("x")
    for damage, says in (
        (b"", "not UTF-8 JSON"),
        (b'{"name":1}', "name: is not a text"),
        (b"x" * 101, "larger than 100"),
    ):
        path.write_bytes(damage)
        with pytest.raises(state.StateDamaged, match=says) as caught:
            state.read_value(Thing, path, 100)
        assert str(path) in str(caught.value)


def test_removing_what_is_gone_is_fine(tmp_path):
    state.remove(tmp_path / "absent")


def test_fields_of_a_newer_agent_are_passed_over_after_a_roll_back(tmp_path):
    (tmp_path / "thing.json").write_bytes(b'{"colour":"red","name":"x"}')
    assert state.read_value(Thing, tmp_path / "thing.json", 100) == Thing("x")


def test_what_can_be_begun_anew_is_dropped_when_it_is_damaged(tmp_path):
    path = tmp_path / "thing.json"
    path.write_bytes(b"\0\0\0")
    assert state.read_or_drop(Thing, path, 100) is None
    assert not path.exists()
    state.write_value(path, Thing("x"))
    assert state.read_or_drop(Thing, path, 100) == Thing("x")
