"""The firmware format is strict, and its prediction follows the events one by one."""

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.firmware import (
    BOOT_PCRS,
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_IPL,
    EV_POST_CODE,
    EV_S_CRTM_VERSION,
    EV_SEPARATOR,
    FIRMWARE_PCRS,
    IMAGE_MAX_BYTES,
    STAGES_MAX,
    FirmwareImage,
    MalformedImage,
    Stage,
    build_image,
    event_log,
    measure,
    parse_image,
)

IMAGE = FirmwareImage(
    hardware="gateway",
    version="1.0",
    release_counter=7,
    stages=(
        Stage("firmware", 0, b"firmware code"),
        Stage("bootloader", 4, b"boot loader code"),
        Stage("kernel", 8, b"kernel code"),
        Stage("rootfs", 9, b"file system"),
    ),
)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True)
stages = st.builds(Stage, names, st.sampled_from(sorted(FIRMWARE_PCRS | BOOT_PCRS)), st.binary(max_size=40))
images = st.builds(
    FirmwareImage,
    names,
    st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}", fullmatch=True),
    st.integers(0, 2**63 - 1),
    st.lists(stages, min_size=1, max_size=STAGES_MAX, unique_by=lambda stage: stage.name).map(tuple),
)


@given(images)
def test_what_was_built_is_parsed_again(image):
    assert parse_image(build_image(image)) == image


@given(st.binary(max_size=300))
def test_other_bytes_are_refused_by_name(data):
    with pytest.raises(MalformedImage):
        parse_image(b"\0" + data)


@given(images, st.data())
def test_a_changed_image_is_refused_or_is_another_image(image, data):
    built = build_image(image)
    at = data.draw(st.integers(0, len(built) - 1))
    changed = built[:at] + bytes([built[at] ^ data.draw(st.integers(1, 255))]) + built[at + 1 :]
    try:
        parsed = parse_image(changed)
    except MalformedImage:
        return
    assert parsed != image
    assert build_image(parsed) == changed


@given(images, st.data())
def test_a_truncated_image_is_refused(image, data):
    built = build_image(image)
    with pytest.raises(MalformedImage):
        parse_image(built[: data.draw(st.integers(0, len(built) - 1))])


def _first_stage_offset() -> int:
    return len(build_image(IMAGE)) - sum(1 + len(s.name) + 1 + 4 + len(s.content) for s in IMAGE.stages)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends inside magic"),
        (b"MUSTERF2" + build_image(IMAGE)[8:], "magic"),
        (build_image(IMAGE) + b"\0", "1 bytes follow the last stage"),
        (bytes(IMAGE_MAX_BYTES + 1), "at most"),
        (build_image(IMAGE)[: _first_stage_offset() - 1] + b"\xff", "has 255 stages"),
        (build_image(IMAGE)[: _first_stage_offset() - 1] + b"\0", "has 0 stages"),
        (
            build_image(IMAGE)[: _first_stage_offset()] + b"\x08firmware\0" + struct.pack(">I", 0xFFFFFFFF),
            "claims 4294967295 bytes",
        ),
        (
            build_image(IMAGE)[: _first_stage_offset()] + b"\x08firmware\0" + struct.pack(">I", 1000),
            "ends inside content of stage 'firmware'",
        ),
        (b"MUSTERF1\x01\xe9", "hardware is not ASCII"),
    ],
)
def test_malformed_bytes_are_refused_with_their_reason(data, reason):
    with pytest.raises(MalformedImage, match=reason):
        parse_image(data)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (replace(IMAGE, hardware=""), "hardware"),
        (replace(IMAGE, hardware="../x"), "hardware"),
        (replace(IMAGE, hardware="h" * 64), "hardware"),
        (replace(IMAGE, hardware="gateway\n"), "hardware"),
        (replace(IMAGE, version="1 0"), "version"),
        (replace(IMAGE, version="v" * 33), "version"),
        (replace(IMAGE, release_counter=-1), "release counter"),
        (replace(IMAGE, release_counter=2**63), "release counter"),
        (replace(IMAGE, stages=()), "has 0 stages"),
        (replace(IMAGE, stages=tuple(Stage(f"s{n}", 8, b"") for n in range(17))), "has 17 stages"),
        (replace(IMAGE, stages=(Stage("Kernel", 8, b""),)), "stage name"),
        (replace(IMAGE, stages=(Stage("ima", 10, b""),)), "PCR 10"),
        (replace(IMAGE, stages=(Stage("secure-boot", 7, b""),)), "PCR 7"),
        (replace(IMAGE, stages=(Stage("debug", 16, b""),)), "PCR 16"),
        (replace(IMAGE, stages=(Stage("x", 8, b"1"), Stage("x", 9, b"2"))), "same name"),
    ],
)
def test_values_out_of_range_are_refused_by_builder_measurement_and_log(image, reason):
    for use in (build_image, measure, event_log):
        with pytest.raises(MalformedImage, match=reason):
            use(image)


def test_stages_that_are_too_large_are_refused(monkeypatch):
    monkeypatch.setattr("ota.firmware.STAGE_MAX_BYTES", 12)
    with pytest.raises(MalformedImage, match="stage firmware has more than 12 bytes"):
        build_image(IMAGE)
    monkeypatch.undo()
    monkeypatch.setattr("ota.firmware.IMAGE_MAX_BYTES", 4100)
    with pytest.raises(MalformedImage, match="image would have more than 4100 bytes"):
        build_image(IMAGE)


def test_a_boot_measures_version_firmware_separators_release_and_stages_in_that_order():
    kinds = [(event.pcr, event.event_type, event.description) for event in measure(IMAGE).events]
    assert kinds == [
        (0, EV_S_CRTM_VERSION, "gateway"),
        (0, EV_POST_CODE, "firmware"),
        *[(pcr, EV_SEPARATOR, "separator") for pcr in range(8)],
        (8, EV_IPL, "release gateway 1.0 7"),
        (4, EV_EFI_BOOT_SERVICES_APPLICATION, "bootloader"),
        (8, EV_IPL, "kernel"),
        (9, EV_IPL, "rootfs"),
    ]


def test_predicted_pcrs_are_computed_by_hand():
    def extend(*digests: bytes) -> bytes:
        value = bytes(32)
        for digest in digests:
            value = hashlib.sha256(value + digest).digest()
        return value

    def sha(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    separator = sha(bytes(4))
    expected = {pcr: bytes(32) for pcr in range(16)} | {pcr: extend(separator) for pcr in range(8)}
    expected[0] = extend(sha("gateway\0".encode("utf-16-le")), sha(b"firmware code"), separator)
    expected[4] = extend(separator, sha(b"boot loader code"))
    expected[8] = extend(sha(b"release gateway 1.0 7"), sha(b"kernel code"))
    expected[9] = extend(sha(b"file system"))
    assert measure(IMAGE).pcrs == expected


@pytest.mark.parametrize(("number", "pcr"), [(0, 0), (1, 4), (2, 8), (3, 9)])
def test_one_changed_byte_changes_exactly_the_pcr_of_its_stage(number, pcr):
    stage = IMAGE.stages[number]
    changed = replace(stage, content=b"X" + stage.content[1:])
    tampered = replace(IMAGE, stages=(*IMAGE.stages[:number], changed, *IMAGE.stages[number + 1 :]))
    before, after = measure(IMAGE).pcrs, measure(tampered).pcrs
    assert {index for index in before if before[index] != after[index]} == {pcr}


@pytest.mark.parametrize("change", [{"version": "1.1"}, {"release_counter": 8}])
def test_what_an_image_calls_itself_is_measured_into_pcr_8_alone(change):
    before, after = measure(IMAGE).pcrs, measure(replace(IMAGE, **change)).pcrs
    assert {index for index in before if before[index] != after[index]} == {8}


def test_the_log_starts_with_the_spec_id_event_and_holds_every_event():
    log = event_log(IMAGE)
    pcr, event_type, digest, size = struct.unpack_from("<II20sI", log)
    assert (pcr, event_type, digest) == (0, 3, bytes(20))
    assert log[32 : 32 + size].startswith(b"Spec ID Event03\0")
    at, found = 32 + size, []
    while at < len(log):
        pcr, event_type, count, algorithm = struct.unpack_from("<IIIH", log, at)
        assert (count, algorithm) == (1, 0x000B)
        (size,) = struct.unpack_from("<I", log, at + 46)
        found.append((pcr, event_type, log[at + 14 : at + 46]))
        at += 50 + size
    assert at == len(log)
    assert found == [(event.pcr, event.event_type, event.digest) for event in measure(IMAGE).events]
