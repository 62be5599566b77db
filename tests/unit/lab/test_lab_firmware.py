"""The lab's images: the same arguments give the same image, a release leaves the firmware alone."""

import pytest

from lab.firmware import NoSuchStage, flip_byte, make_image
from ota.firmware import build_image, measure, parse_image


def _changed(one, other) -> set[int]:
    before, after = measure(one).pcrs, measure(other).pcrs
    return {pcr for pcr in before if before[pcr] != after[pcr]}


def test_the_same_arguments_give_the_same_bytes():
    assert build_image(make_image(version="3", seed="x")) == build_image(make_image(version="3", seed="x"))


def test_a_new_release_changes_kernel_and_rootfs_and_no_firmware_pcr():
    assert _changed(make_image(version="1", release_counter=1), make_image(version="2", release_counter=2)) == {8, 9}


def test_another_seed_is_another_machine():
    assert _changed(make_image(seed="one"), make_image(seed="two")) == {0, 4, 8, 9}


@pytest.mark.parametrize(("stage", "pcr"), [("firmware", 0), ("bootloader", 4), ("kernel", 8), ("rootfs", 9)])
def test_a_flipped_byte_shows_in_the_pcr_of_its_stage(stage, pcr):
    image = make_image()
    flipped = flip_byte(image, stage)
    assert _changed(image, flipped) == {pcr}
    difference = [a != b for a, b in zip(build_image(image), build_image(flipped), strict=True)]
    assert difference.count(True) == 1
    assert parse_image(build_image(flipped)) == flipped


def test_flipping_a_stage_that_is_not_there_names_those_that_are():
    with pytest.raises(NoSuchStage, match="no stage 'initrd'; this image has firmware, bootloader, kernel, rootfs"):
        flip_byte(make_image(), "initrd")
