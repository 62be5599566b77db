"""The virtual boot loader: a try is counted before it starts, and what is not committed falls back."""

import json
import os

import pytest

from lab.firmware import make_image
from lab.slots import BootFailure, BootState, choose_boot, create_slots, read_state, write_state
from ota.firmware import build_image

OLD = make_image(version="1")
NEW = make_image(version="2", release_counter=2)


@pytest.fixture
def slots(tmp_path):
    folder = tmp_path / "slots"
    create_slots(folder, build_image(OLD))
    (folder / "b" / "image.bin").write_bytes(build_image(NEW))
    return folder


def test_a_new_device_boots_slot_a(slots):
    boot = choose_boot(slots)
    assert (boot.slot, boot.image, boot.is_trial) == ("a", OLD, False)
    assert (slots / "booted").read_text(encoding="ascii") == "a"


def test_a_slot_being_tried_boots_while_tries_are_left_and_then_the_old_one_does(slots):
    write_state(slots, BootState(active="a", trying="b", tries_left=3))
    booted = [choose_boot(slots).slot for _ in range(5)]
    assert booted == ["b", "b", "b", "a", "a"]
    assert read_state(slots) == BootState(active="a", trying="b", tries_left=0)
    assert (slots / "booted").read_text(encoding="ascii") == "a"


def test_a_try_is_counted_before_it_starts(slots):
    write_state(slots, BootState(active="a", trying="b", tries_left=2))
    boot = choose_boot(slots)
    assert (boot.image, boot.is_trial) == (NEW, True)
    assert json.loads((slots / "boot.json").read_bytes()) == {"active": "a", "trying": "b", "tries_left": 1}


def test_a_committed_slot_stays(slots):
    write_state(slots, BootState(active="b", trying=None, tries_left=0))
    boot = choose_boot(slots)
    assert (boot.slot, boot.is_trial) == ("b", False)


def test_an_image_that_cannot_be_parsed_uses_up_its_tries_and_the_old_slot_boots(slots):
    (slots / "b" / "image.bin").write_bytes(b"half written")
    write_state(slots, BootState(active="a", trying="b", tries_left=3))
    assert choose_boot(slots).slot == "a"
    assert read_state(slots).tries_left == 0


def test_a_device_without_a_bootable_slot_says_which_file_is_wrong(slots):
    (slots / "a" / "image.bin").write_bytes(b"garbage")
    with pytest.raises(BootFailure, match=r"a/image\.bin"):
        choose_boot(slots)
    (slots / "a" / "image.bin").unlink()
    with pytest.raises(BootFailure, match="No such file"):
        choose_boot(slots)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[]", "must have active"),
        (b'{"active": "a"}', "must have active"),
        (b'{"active": "a", "trying": null, "tries_left": 0, "more": 1}', "must have active"),
        (b'{"active": "c", "trying": null, "tries_left": 0}', "a slot is a or b"),
        (b'{"active": "a", "trying": "..", "tries_left": 1}', "a slot is a or b"),
        (b'{"active": ["a"], "trying": null, "tries_left": 1}', "a slot is a or b"),
        (b'{"active": "a", "trying": "b", "tries_left": 4}', "tries_left"),
        (b'{"active": "a", "trying": "b", "tries_left": -1}', "tries_left"),
        (b'{"active": "a", "trying": "b", "tries_left": true}', "tries_left"),
        (b'{"active": "a", "trying": "b", "tries_left": 1.5}', "tries_left"),
        (b'{"active": "a", "trying": null, "tries_left": 0}' + b" " * 2000 + b"x", "active"),
    ],
)
def test_a_damaged_boot_state_is_refused_with_its_reason(slots, content, reason):
    (slots / "boot.json").write_bytes(content)
    if content.endswith(b"x"):  # beyond the size limit nothing is read
        assert read_state(slots).active == reason[0]
        return
    with pytest.raises(BootFailure, match=reason):
        choose_boot(slots)


def test_the_boot_state_is_replaced_as_a_whole(slots, monkeypatch):
    before = (slots / "boot.json").read_bytes()

    def power_fails(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", power_fails)
    with pytest.raises(KeyboardInterrupt):
        write_state(slots, BootState(active="b", trying=None, tries_left=0))
    assert (slots / "boot.json").read_bytes() == before
