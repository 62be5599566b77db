"""Downloads from a hostile or broken source: what lands is exactly what was signed, or nothing."""

import errno
import hashlib
import os

import pytest

from ota import refusals
from ota.download import Expected, Pace, download
from ota.source import NotFoundAtSource, SourceUnavailable
from tests.unit.ota.power import PowerCut, cut_at

IMAGE = bytes(range(256)) * 40
EXPECTED = Expected("image.img", len(IMAGE), hashlib.sha256(IMAGE).digest())


class Clock:
    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def fetch(folder, open_stream, clock=None, **pace):
    clock = clock or Clock()
    download(open_stream, folder / "image", EXPECTED, pace=Pace(**pace), monotonic=clock, pause=clock.pause)
    return (folder / "image").read_bytes()


def pieces(data, size=1000):
    return (data[at : at + size] for at in range(0, len(data), size))


def serve(offset):
    return offset, pieces(IMAGE[offset:])


def nothing_is_left(folder):
    return not list(folder.iterdir())


def test_the_signed_bytes_land(tmp_path):
    assert fetch(tmp_path, serve) == IMAGE
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_what_is_there_and_right_is_not_fetched_again(tmp_path):
    (tmp_path / "image").write_bytes(IMAGE)
    assert fetch(tmp_path, None) == IMAGE


@pytest.mark.parametrize("content", [b"", IMAGE[:-1], IMAGE + b"x", b"x" * len(IMAGE)])
def test_what_is_there_and_wrong_is_fetched(tmp_path, content):
    (tmp_path / "image").write_bytes(content)
    assert fetch(tmp_path, serve) == IMAGE


def test_a_broken_download_goes_on_where_it_stopped(tmp_path):
    asked = []

    def breaking(offset):
        asked.append(offset)

        def some():
            yield IMAGE[offset : offset + 3000]
            raise SourceUnavailable

        return offset, some()

    assert fetch(tmp_path, breaking) == IMAGE
    assert asked == [0, 3000, 6000, 9000]


def test_it_goes_on_in_a_later_call_too(tmp_path):
    def once(offset):
        if offset:
            raise SourceUnavailable
        return 0, iter([IMAGE[:5000]])

    with pytest.raises(refusals.DownloadBroken):
        fetch(tmp_path, once)
    asked = []

    def rest(offset):
        asked.append(offset)
        return serve(offset)

    assert fetch(tmp_path, rest) == IMAGE
    assert asked == [5000]


def test_a_server_without_ranges_starts_again(tmp_path):
    (tmp_path / "image.part").write_bytes(IMAGE[:5000])
    assert fetch(tmp_path, lambda _offset: (0, pieces(IMAGE))) == IMAGE


@pytest.mark.parametrize("start", [1, 4999, 5001, 10**9, -1])
def test_a_range_that_was_not_asked_for_is_refused(tmp_path, start):
    (tmp_path / "image.part").write_bytes(IMAGE[:5000])
    with pytest.raises(refusals.LengthWrong):
        fetch(tmp_path, lambda _offset: (start, pieces(IMAGE)))
    assert nothing_is_left(tmp_path)


def test_a_part_that_was_spoiled_here_is_fetched_once_more_from_the_start(tmp_path):
    (tmp_path / "image.part").write_bytes(b"x" * 5000)
    assert fetch(tmp_path, serve) == IMAGE


def test_a_part_longer_than_the_image_is_dropped(tmp_path):
    (tmp_path / "image.part").write_bytes(IMAGE + b"x")
    assert fetch(tmp_path, serve) == IMAGE


@pytest.mark.parametrize("place", [0, 5000, len(IMAGE) - 1])
def test_a_tampered_image_is_refused_and_removed(tmp_path, place):
    tampered = bytearray(IMAGE)
    tampered[place] ^= 1
    with pytest.raises(refusals.TargetTampered):
        fetch(tmp_path, lambda offset: (offset, pieces(bytes(tampered)[offset:])))
    assert nothing_is_left(tmp_path)


def test_a_tampered_image_is_refused_after_a_resume_too(tmp_path):
    (tmp_path / "image.part").write_bytes(IMAGE[:5000])
    with pytest.raises(refusals.TargetTampered):
        fetch(tmp_path, lambda offset: (offset, pieces(b"x" * (len(IMAGE) - offset))))
    assert nothing_is_left(tmp_path)


def test_endless_data_ends_at_the_signed_length(tmp_path):
    taken = 0

    def endless(_offset):
        def forever():
            nonlocal taken
            while True:
                taken += 1000
                yield b"x" * 1000

        return 0, forever()

    with pytest.raises(refusals.LengthWrong):
        fetch(tmp_path, endless)
    assert taken <= len(IMAGE) + 1000
    assert nothing_is_left(tmp_path)


def test_a_byte_more_than_signed_is_refused(tmp_path):
    with pytest.raises(refusals.LengthWrong):
        fetch(tmp_path, lambda _offset: (0, pieces(IMAGE + b"x")))


def test_a_source_that_always_ends_early_is_given_up(tmp_path):
    clock = Clock()
    with pytest.raises(refusals.DownloadBroken):
        fetch(tmp_path, lambda offset: (offset, iter([])), clock, attempts=4)
    assert len(clock.pauses) == 3
    assert clock.pauses == sorted(clock.pauses)


def test_a_source_that_gives_a_byte_a_connection_is_given_up(tmp_path):
    with pytest.raises(refusals.DownloadBroken):
        fetch(tmp_path, lambda offset: (offset, iter([IMAGE[offset : offset + 1]])), attempts=5, pause_seconds=0)


def test_a_slow_source_is_refused_by_name(tmp_path):
    clock = Clock()

    def slow(offset):
        def drip():
            for at in range(offset, len(IMAGE)):
                clock.now += 1
                yield IMAGE[at : at + 1]

        return offset, drip()

    with pytest.raises(refusals.TooSlow):
        fetch(tmp_path, slow, clock, least_bytes_per_second=100, window_seconds=30)
    assert clock.now <= 31


def test_reconnecting_does_not_restart_the_rate_floor(tmp_path):
    clock = Clock()

    def slow(offset):
        clock.now += 9
        return offset, iter([IMAGE[offset : offset + 10]])

    with pytest.raises(refusals.TooSlow):
        fetch(tmp_path, slow, clock, attempts=1000, least_bytes_per_second=100, pause_seconds=0)
    assert clock.now < 60


def test_the_pauses_between_connections_are_not_the_sources_slowness(tmp_path):
    clock = Clock()
    assert fetch(tmp_path, lambda at: (at, iter([IMAGE[at : at + 5000]])), clock, pause_seconds=1000) == IMAGE


def test_a_source_at_the_rate_is_not_refused(tmp_path):
    clock = Clock()

    def steady(offset):
        def flow():
            for piece in pieces(IMAGE[offset:], 100):
                clock.now += 1
                yield piece

        return offset, flow()

    assert fetch(tmp_path, steady, clock, least_bytes_per_second=99) == IMAGE


def test_an_image_that_is_not_there_is_said_at_once(tmp_path):
    def missing(_offset):
        raise NotFoundAtSource

    with pytest.raises(NotFoundAtSource):
        fetch(tmp_path, missing)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(refusals.NoSpace):
        fetch(tmp_path, serve)


def test_another_failure_of_the_disk_is_not_hidden(tmp_path, monkeypatch):
    def broken(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        fetch(tmp_path, serve)


def test_power_lost_at_any_write_leaves_the_image_or_none(tmp_path):
    for step in range(100):
        folder = tmp_path / str(step)
        folder.mkdir()
        try:
            with cut_at(step):
                fetch(folder, serve)
        except PowerCut:
            assert not (folder / "image").exists() or (folder / "image").read_bytes() == IMAGE
            assert fetch(folder, serve) == IMAGE
        else:
            break
    assert step > 2
