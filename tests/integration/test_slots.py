"""The two directory slots: whatever happens, one whole slot boots, and the way back is never overwritten."""

import hashlib
import json
import shutil

import pytest

from device_agent.slots.backend import TRIES, SlotStatus
from device_agent.slots.directory import DirectorySlots
from lab import slots as loader
from ota import refusals
from ota.firmware import FirmwareImage, Stage, build_image
from tests.unit.ota.power import PowerCut, cut_at


def firmware(counter):
    return build_image(FirmwareImage("virtual-1", f"{counter}.0", counter, (Stage("kernel", 8, b"code %d" % counter),)))


OLD, NEW, NEWER = firmware(1), firmware(2), firmware(3)


@pytest.fixture(name="folder")
def _folder(tmp_path):
    loader.create_slots(tmp_path / "slots", OLD)
    loader.choose_boot(tmp_path / "slots")
    return tmp_path / "slots"


@pytest.fixture(name="image")
def _image(tmp_path):
    (tmp_path / "new").write_bytes(NEW)
    return tmp_path / "new"


def boot(folder):
    return loader.choose_boot(folder).image.release_counter


def install(folder, image):
    slots = DirectorySlots(folder)
    slot = slots.write(image)
    assert slots.digest(slot, len(NEW)) == hashlib.sha256(image.read_bytes()).digest()
    slots.activate(slot, TRIES)
    return slots


def test_a_release_is_written_beside_tried_and_committed(folder, image):
    slots = install(folder, image)
    assert slots.status() == SlotStatus("a", "b", TRIES, "a")
    assert boot(folder) == 2
    assert slots.status().on_trial
    slots.commit()
    assert slots.status() == SlotStatus("b", None, 0, "b")
    assert boot(folder) == 2


def test_a_release_that_is_never_committed_falls_back(folder, image):
    slots = install(folder, image)
    assert [boot(folder) for _ in range(TRIES + 1)] == [2] * TRIES + [1]
    assert slots.status() == SlotStatus("a", "b", 0, "a")


def test_a_release_on_trial_is_rolled_back_at_once(folder, image):
    slots = install(folder, image)
    boot(folder)
    slots.roll_back()
    assert boot(folder) == 1


def test_an_image_that_does_not_start_falls_back(folder, tmp_path):
    (tmp_path / "bad").write_bytes(b"not an image")
    slots = DirectorySlots(folder)
    slots.activate(slots.write(tmp_path / "bad"), TRIES)
    assert boot(folder) == 1


def test_the_way_back_is_not_overwritten_during_a_trial(folder, image):
    slots = install(folder, image)
    boot(folder)
    with pytest.raises(refusals.SlotBusy):
        slots.write(image)
    with pytest.raises(refusals.SlotBusy):
        slots.activate("a", TRIES)
    slots.roll_back()
    with pytest.raises(refusals.SlotBusy):
        slots.write(image)  # the slot that would be written still runs


def test_a_slot_being_written_again_is_not_tried_meanwhile(folder, image):
    slots = install(folder, image)
    for _ in range(TRIES + 1):
        boot(folder)
    slots.write(image)
    assert slots.status().trying is None


def test_the_active_slot_is_not_activated(folder):
    with pytest.raises(refusals.SlotBusy):
        DirectorySlots(folder).activate("a", TRIES)


def test_committing_twice_is_as_once_and_without_a_trial_nothing(folder, image):
    slots = install(folder, image)
    with pytest.raises(refusals.SlotBusy):
        slots.commit()  # activated, but the old slot still runs
    boot(folder)
    slots.commit()
    slots.commit()
    slots.roll_back()
    assert slots.status() == SlotStatus("b", None, 0, "b")


def test_a_slot_without_room_is_named_and_left_as_it_was(folder, image, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=len(NEW)))
    with pytest.raises(refusals.NoSpace):
        DirectorySlots(folder).write(image)
    assert (folder / "b" / "image.bin").read_bytes() == OLD


def test_what_was_written_is_read_back_byte_for_byte(folder, image):
    slots = DirectorySlots(folder)
    slot = slots.write(image)
    path = folder / slot / "image.bin"
    for damaged in (NEW[:-1], NEW + b"x", NEW.replace(b"code", b"c0de"), b""):
        path.write_bytes(damaged)
        assert slots.digest(slot, len(NEW)) != hashlib.sha256(NEW).digest()
    path.unlink()
    with pytest.raises(refusals.SlotStateMalformed):
        slots.digest(slot, len(NEW))


GOOD_STATE = {"active": "a", "trying": None, "tries_left": 0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        json.dumps(GOOD_STATE | {"active": "c"}),
        json.dumps(GOOD_STATE | {"active": "../a"}),
        json.dumps(GOOD_STATE | {"trying": "c"}),
        json.dumps(GOOD_STATE | {"tries_left": "3"}),
        json.dumps(GOOD_STATE | {"more": 1}),
        json.dumps(GOOD_STATE) + " " * 2000,
        None,
    ],
)
def test_a_boot_state_that_cannot_be_read_changes_nothing(folder, image, content):
    path = folder / "boot.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    slots = DirectorySlots(folder)
    for call in (slots.status, slots.commit, slots.roll_back, lambda: slots.write(image)):
        with pytest.raises(refusals.SlotStateMalformed):
            call()
    assert (folder / "b" / "image.bin").read_bytes() == OLD


@pytest.mark.parametrize("content", ["", "c", "a/..", "ab"])
def test_an_unknown_running_slot_changes_nothing(folder, image, content):
    (folder / "booted").write_text(content)
    with pytest.raises(refusals.SlotStateMalformed):
        DirectorySlots(folder).write(image)


def test_power_lost_at_any_write_leaves_a_slot_that_boots(tmp_path, image):
    for step in range(200):
        folder = tmp_path / str(step)
        loader.create_slots(folder, OLD)
        loader.choose_boot(folder)
        committed = False
        try:
            with cut_at(step):
                slots = install(folder, image)
                # The boot loader's own writes are its own to survive: here it runs under power.
                (folder / "booted").write_text("b")
                (folder / "boot.json").write_text(json.dumps({"active": "a", "trying": "b", "tries_left": 2}))
                slots.commit()
                committed = True
        except PowerCut:
            pass
        assert boot(folder) in ((2,) if committed else (1, 2))
        if committed:
            break
    assert committed
    assert step > 6
