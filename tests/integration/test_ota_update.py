"""One device through whole updates: the good way, every attack, lost power at every write, every damaged file."""

import dataclasses
import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from device_agent import update
from device_agent.release_floor import installed_release
from device_agent.slots.backend import TRIES
from device_agent.update import REBOOTS_MOST, Position, position
from ota import refusals, repository
from ota.director import director_metadata
from ota.source import SourceUnavailable
from tests.unit.ota.power import PowerCut, cut_at
from tests.unit.ota.simulator import DAY, DEVICE, HARDWARE, Counter, Device, Keys, Service, folder_source, new_key

FACTORY = b"factory image"
TWO, THREE = b"release two " * 500, b"release three " * 500
WHOLE = ["notified", "verifying", "downloading", "verified", "installing", "rebooting"]


@pytest.fixture(name="service")
def _service(tmp_path):
    return Service(tmp_path / "service")


@pytest.fixture(name="device")
def _device(service, tmp_path):
    return Device(tmp_path / "device", service)


def offer(service, image=TWO, version="2.0", counter=2, **more):
    target = service.release(image, version, counter, **more)
    service.assign(target)
    return target


def committed(device):
    """From the reboot to the commit, as the agent goes it."""
    device.boot()
    assert update.after_boot(device.context).state == "health_check"
    return update.attested(device.context)


def refused(device):
    last = device.check()[-1]
    assert last.state == "refused", last
    return last.detail


# --- the good way -----------------------------------------------------------------------------------------------------


def test_nothing_assigned_is_nothing_to_do(device):
    assert device.check() == []


def test_a_release_is_installed_tried_attested_and_committed(service, device):
    offer(service)
    reports = device.check()
    assert [report.state for report in reports] == WHOLE
    assert {(report.version, report.release_counter) for report in reports} == {("2.0", 2)}
    assert [report.reboot for report in reports] == [False] * 5 + [True]
    assert device.boot() == TWO
    assert update.after_boot(device.context).state == "health_check"
    assert update.attested(device.context).state == "committed"
    assert device.context.floor.read() == 2
    assert installed_release(device.context.state_dir).version == "2.0"
    assert device.boot() == TWO
    assert (device.check(), update.after_boot(device.context), update.attested(device.context)) == ([], None, None)


def test_the_floor_rises_with_the_commit_and_not_before(service, device):
    offer(service)
    device.check()
    device.boot()
    update.after_boot(device.context)
    assert device.context.floor.read() == 0


def test_a_second_update_goes_back_to_the_first_slot(service, device):
    offer(service)
    device.check()
    committed(device)
    offer(service, THREE, "3.0", 3)
    assert device.states() == WHOLE
    assert committed(device).state == "committed"
    assert device.boot() == THREE


def test_what_already_runs_is_not_installed(service, device):
    offer(service, FACTORY, "1.0", 1)
    assert device.check() == []


def test_downloads_are_removed_once_activated(service, device):
    offer(service)
    device.check()
    assert not (device.context.state_dir / "downloads").exists()


# --- attacks on the release -------------------------------------------------------------------------------------------


def test_a_release_below_the_floor_is_refused(service, device):
    one = service.release(b"release one", "1.0", 1)
    offer(service)
    device.check()
    committed(device)
    service.assign(one)
    assert refusals.ReleaseRolledBack.code in refused(device)


def test_a_release_for_other_hardware_is_refused(service, device):
    offer(service, hardware="virtual-2")
    assert refusals.HardwareMismatch.code in refused(device)


def test_a_release_that_only_the_director_signed_is_refused(service, device):
    target = offer(service)
    service.assign(dataclasses.replace(target, name="mine.img"))
    assert refusals.UnknownTarget.code in refused(device)


@pytest.mark.parametrize("change", [{"length": 5}, {"sha256": bytes(32)}])
def test_a_stolen_director_key_cannot_change_the_image(service, device, change):
    target = offer(service)
    service.assign(dataclasses.replace(target, **change))
    assert refusals.ImageAndDirectorDisagree.code in refused(device)


@pytest.mark.parametrize("claim", [{"hardware_id": HARDWARE + "x"}, {"release_counter": 99}, {"version": "99"}])
def test_a_stolen_director_key_cannot_change_what_the_image_is(service, device, claim):
    target = offer(service)
    service.assign(dataclasses.replace(target, custom=target.custom | claim))
    assert refusals.ImageAndDirectorDisagree.code in refused(device)


def test_a_release_that_only_the_image_repository_signed_is_not_looked_at(service, device):
    service.release(TWO, "2.0", 2)
    assert device.check() == []


def test_a_release_signed_by_one_stolen_key_of_the_image_repository_is_refused(service, device):
    repository.add_target(service.folder / "image", "evil.img", b"evil", {})
    with pytest.raises(refusals.TooFewSigners):
        repository.publish(
            service.folder / "image", [service.image_keys.offline[0], service.image_keys.online], service.now
        )
    # The thief signs with his own tools: the stolen key, and two of his own in place of the others.
    thief = Keys(offline=[service.image_keys.offline[0], new_key(), new_key()], online=service.image_keys.online)
    forged = service.folder / "forged"
    repository.create(forged, thief.roles, thief.signers, service.now)
    repository.add_target(forged, "evil.img", b"evil", {"hardware_id": HARDWARE, "release_counter": 9, "version": "9"})
    for _ in range(3):
        repository.publish(forged, thief.signers, service.now)
    for path in (forged / "metadata").iterdir():
        if "root" not in path.name:
            shutil.copy(path, service.folder / "image" / "metadata" / path.name)
    shutil.copytree(forged / "targets", service.folder / "image" / "targets", dirs_exist_ok=True)
    fetch = folder_source(forged)
    from ota.verify import verify_repository, verify_roots

    evil = verify_repository(verify_roots(repository.root_of(forged), fetch), fetch, (), service.now).targets[
        "evil.img"
    ]
    service.assign(evil)
    assert refusals.ThresholdNotMet.code in refused(device)


def test_a_tampered_image_is_refused_and_the_slot_untouched(service, device):
    offer(service)
    (path,) = (service.folder / "image" / "targets").iterdir()
    path.write_bytes(TWO[:-1] + b"!")
    assert refusals.TargetTampered.code in refused(device)
    assert (device.slots / "b" / "image.bin").read_bytes() == FACTORY
    assert device.boot() == FACTORY


def test_endless_image_data_is_refused(service, device):
    offer(service)

    def endless(_path, offset):
        return offset, itertools.repeat(b"x" * 1000)

    service.open_stream = endless
    assert refusals.LengthWrong.code in refused(device)


def test_a_slot_that_gives_back_something_else_is_not_activated(service, device, monkeypatch):
    offer(service)
    monkeypatch.setattr("device_agent.slots.directory._copy", lambda _source, target: target.write_bytes(b"bit rot"))
    last = device.check()[-1]
    assert last.state == "failed"
    assert refusals.SlotDamaged.code in last.detail
    assert device.boot() == FACTORY


def test_a_disk_that_fills_while_the_slot_is_written_leaves_the_slot_as_it_was(service, device, monkeypatch):
    offer(service)

    def full(_source, _target):
        raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: full(path, to) if path.parent.name == "b" else real(path, to))
    last = device.check()[-1]
    assert (last.state, refusals.NoSpace.code in last.detail) == ("failed", True)
    assert sorted(path.name for path in (device.slots / "b").iterdir()) == ["image.bin"]
    assert (device.slots / "b" / "image.bin").read_bytes() == FACTORY


@pytest.mark.parametrize("steps", [0, 5, 20, 40, 60])
def test_a_disk_that_is_full_anywhere_fails_by_name_and_bricks_nothing(service, device, monkeypatch, steps):
    offer(service)
    left = itertools.count(steps, -1)
    real = os.fsync

    def full(descriptor):
        if next(left) <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        last = device.check()[-1]
    if last.state != "rebooting":
        assert last.state == "failed"
        assert "space" in last.detail
        assert device.boot() == FACTORY
    run_to_commit(device)
    assert device.boot() == TWO


def test_no_room_for_the_download_is_said_before_it_starts(service, device, monkeypatch):
    offer(service)
    usage = shutil.disk_usage(device.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    last = device.check()[-1]
    assert (last.state, refusals.NoSpace.code in last.detail) == ("failed", True)
    assert not any("targets/" in path for path in service.requests if path.startswith("image/"))


# --- attacks on the metadata ------------------------------------------------------------------------------------------


def test_another_devices_assignment_is_refused_and_raises_no_floor(service, device):
    target = offer(service)
    service.assign(target, device="gateway-2")
    assert refusals.DirectorForAnotherDevice.code in refused(device)
    service.version -= 10**6
    service.assign(target)
    assert device.states() == WHOLE


def test_a_frozen_director_is_refused_when_its_word_expires(service, device):
    offer(service)
    service.now += DAY / 12
    repository.refresh_online(service.folder / "trust", service.trust_keys.online, service.now)
    assert refusals.MetadataExpired.code in refused(device)


def test_an_earlier_word_of_the_director_is_refused(service, device):
    target = offer(service)
    device.check()
    committed(device)
    shutil.copytree(service.folder / "director", service.folder / "old")
    service.assign(None)
    assert device.check() == []
    shutil.rmtree(service.folder / "director")
    shutil.copytree(service.folder / "old", service.folder / "director")
    assert target
    assert refusals.MetadataRolledBack.code in refused(device)


def test_an_earlier_image_repository_is_refused(service, device):
    target = offer(service)
    shutil.copytree(service.folder / "image", service.folder / "old")
    offer(service, THREE, "3.0", 3)
    device.check()
    committed(device)
    shutil.rmtree(service.folder / "image")
    shutil.copytree(service.folder / "old", service.folder / "image")
    service.assign(target)
    assert refusals.MetadataRolledBack.code in refused(device)


def test_a_director_key_that_is_not_the_bundles_is_refused(service, device):
    target = offer(service)
    other = Service(service.folder / "other")
    files = director_metadata(other.director_root, DEVICE, target, 10**10, other.director_key, service.now)
    for name, data in files.items():
        (service.folder / "director" / "metadata" / name).write_bytes(data)
    assert refusals.ThresholdNotMet.code in refused(device)


def test_the_image_repository_does_not_stand_in_for_the_director(service, device):
    offer(service)
    shutil.rmtree(service.folder / "director")
    shutil.copytree(service.folder / "image", service.folder / "director")
    assert refusals.ThresholdNotMet.code in refused(device)


def test_a_bundle_without_roots_trusts_no_release(service, device):
    from ota.bundle import publish_bundle
    from wire.messages import TrustBundle

    offer(service)
    keys = service.trust_keys
    for roots in ({}, {"director_root": service.director_root}):
        publish_bundle(
            service.folder / "trust", TrustBundle(2, "muster.test", (), (), (), **roots), keys.signers, service.now
        )
        assert refusals.RepositoryNotTrusted.code in refused(device)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a/../../b", "x\x00y"])
def test_a_hostile_target_name_touches_nothing(service, device, name, tmp_path):
    from tests.unit.ota.forge import Forge, target

    before = sorted(path for path in tmp_path.rglob("*") if path.is_file() and "device" not in path.parts)
    forge = Forge(Keys(offline=[service.director_key], online=service.director_key))
    files = forge.files((10**10,) * 3, {name: target(name)}, fields={"x-muster-device": DEVICE})
    for path, data in files.items():
        (service.folder / "director" / path).write_bytes(data)
        before.append(service.folder / "director" / path)
    assert refusals.TargetNameRefused.code in refused(device)
    after = [path for path in tmp_path.rglob("*") if path.is_file() and "device" not in path.parts]
    assert sorted(set(before)) == sorted(after)


# --- the network ------------------------------------------------------------------------------------------------------


def test_a_service_out_of_reach_is_no_refusal(service, device):
    def down(_path, _most):
        raise SourceUnavailable

    offer(service)
    service.fetch = down
    with pytest.raises(SourceUnavailable):
        device.check()


def test_a_broken_download_fails_and_goes_on_at_the_next_check(service, device):
    offer(service)
    good = service.open_stream

    def breaking(_path, offset):
        if offset:
            raise SourceUnavailable
        return 0, iter([TWO[:2500]])

    service.open_stream = breaking
    last = device.check()[-1]
    assert (last.state, refusals.DownloadBroken.code in last.detail) == ("failed", True)
    service.open_stream = good
    assert device.states() == WHOLE
    assert any(request.endswith("+2500") for request in service.requests)


def test_an_image_that_is_not_served_fails_by_name(service, device):
    offer(service)
    shutil.rmtree(service.folder / "image" / "targets")

    def missing(path, _offset):
        return 0, iter([service.fetch(path, 10)])

    service.open_stream = missing
    assert device.check()[-1].state == "failed"


def test_an_assignment_that_changes_supersedes_what_was_begun(service, device):
    offer(service)
    service.open_stream = lambda _path, _offset: (0, iter([]))
    device.check()
    del service.open_stream
    offer(service, THREE, "3.0", 3)
    first, *rest = device.check()
    assert (first.state, first.version) == ("superseded", "2.0")
    assert [report.state for report in rest] == WHOLE


def test_an_assignment_that_is_withdrawn_supersedes_what_was_begun(service, device):
    offer(service)
    service.open_stream = lambda _path, _offset: (0, iter([]))
    device.check()
    service.assign(None)
    assert device.states() == ["superseded"]
    assert device.check() == []


# --- trials that fail -------------------------------------------------------------------------------------------------


def test_a_release_that_never_attests_falls_back_and_is_not_tried_again(service, device):
    target = offer(service)
    device.check()
    for _ in range(TRIES):
        assert device.boot() == TWO
        assert update.after_boot(device.context).state == "health_check"
    assert device.boot() == FACTORY
    assert update.after_boot(device.context).state == "rolled_back"
    assert update.after_boot(device.context) is None
    assert device.context.floor.read() == 0
    assert device.check() == []
    service.assign(target, "again")
    assert device.states() == WHOLE


def test_a_withdrawn_assignment_forgets_what_was_given_up(service, device):
    target = offer(service)
    device.check()
    device.boot()
    update.not_attested(device.context, "no")
    device.boot()
    assert device.check() == []
    service.assign(None)
    device.check()
    service.assign(target)
    assert device.states() == WHOLE


def test_a_refused_attestation_goes_back_at_once(service, device):
    offer(service)
    device.check()
    device.boot()
    outcome = update.not_attested(device.context, "PCR 8 is not the release's")
    assert (outcome.state, outcome.reboot, outcome.detail) == ("rolled_back", True, "PCR 8 is not the release's")
    assert device.boot() == FACTORY
    assert update.attested(device.context) is None


def test_attested_without_a_trial_commits_nothing(service, device):
    offer(service)
    device.check()
    assert update.attested(device.context) is None  # activated, but the old release runs
    assert update.not_attested(device.context, "x") is None
    assert device.context.floor.read() == 0


def test_a_reboot_that_does_not_come_is_asked_for_again_but_not_for_ever(service, device):
    offer(service)
    device.check()
    for _ in range(REBOOTS_MOST - 1):
        outcome = update.after_boot(device.context)
        assert (outcome.state, outcome.reboot) == ("rebooting", True)
    assert update.after_boot(device.context).state == "failed"
    assert device.boot() == FACTORY


def test_a_check_during_a_trial_changes_nothing(service, device):
    offer(service)
    device.check()
    assert device.states() == ["rebooting"]
    device.boot()
    assert device.states() == ["health_check"]
    offer(service, THREE, "3.0", 3)
    assert device.states() == ["health_check"]
    assert (device.slots / "a" / "image.bin").read_bytes() == FACTORY


def test_each_position_follows_from_the_disk_alone(service, device):
    offer(service)
    device.check()
    context = device.context
    trial = update._trial(context)
    assert position(None, context.slots.status()) is Position.IDLE
    assert position(trial, context.slots.status()) is Position.NOT_BOOTED
    device.boot()
    assert position(trial, context.slots.status()) is Position.ON_TRIAL
    context.slots.commit()
    assert position(trial, context.slots.status()) is Position.COMMITTED
    device.set_boot("a", None, 0)
    device.boot()
    assert position(trial, context.slots.status()) is Position.NOT_ACTIVATED
    device.set_boot("a", "b", 0)
    assert position(trial, context.slots.status()) is Position.FELL_BACK


# --- the release floor ------------------------------------------------------------------------------------------------


def committed_device(service, device):
    offer(service)
    device.check()
    committed(device)
    return device.context.state_dir / "release-floor.json"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"epoch":8}', b"x" * 5000])
def test_a_lost_floor_refuses_updates_until_the_service_tells_it(service, device, content):
    path = committed_device(service, device)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    offer(service, THREE, "3.0", 3)
    assert refusals.FloorLost.code in refused(device)
    assert device.context.floor.restore(2)
    assert device.context.floor.read() == 2
    assert device.states() == WHOLE


def test_an_old_floor_file_put_back_does_not_fit(service, device):
    path = committed_device(service, device)
    old = path.read_bytes()
    offer(service, THREE, "3.0", 3)
    device.check()
    committed(device)
    path.write_bytes(old)
    with pytest.raises(refusals.FloorLost):
        device.context.floor.read()


def test_a_floor_file_written_by_hand_does_not_fit(service, device):
    path = committed_device(service, device)
    written = json.loads(path.read_bytes())
    for epoch in (written["epoch"] - 1, written["epoch"] + 2, 0, -1):
        path.write_bytes(json.dumps({"floor": 0, "epoch": epoch}).encode())
        with pytest.raises(refusals.FloorLost):
            device.context.floor.read()


def test_a_tpm_that_was_cleared_loses_the_floor(service, device):
    committed_device(service, device)
    device.counter.value = None
    with pytest.raises(refusals.FloorLost, match="no counter"):
        device.context.floor.read()
    assert device.context.floor.restore(2)
    assert device.context.floor.read() == 2


def test_the_services_word_raises_an_intact_floor_and_never_lowers_it(service, device):
    committed_device(service, device)
    assert not device.context.floor.restore(1)
    assert device.context.floor.read() == 2
    assert device.context.floor.restore(5)
    assert device.context.floor.read() == 5


def test_power_lost_between_file_and_counter_keeps_the_new_floor(service, device):
    class Dying(Counter):
        def increment(self):
            raise PowerCut

    device.counter = Dying()
    device.context.floor.read()
    with pytest.raises(PowerCut):
        device.context.floor.raise_to(4)
    value, device.counter = device.counter.value, Counter()
    device.counter.value = value
    assert device.context.floor.read() == 4
    device.context.floor.raise_to(5)
    assert device.context.floor.read() == 5


def test_a_floor_lost_during_the_commit_is_finished_after_the_service_told_it(service, device):
    offer(service)
    device.check()
    device.boot()
    (device.context.state_dir / "release-floor.json").unlink()
    outcome = update.attested(device.context)
    assert (outcome.state, refusals.FloorLost.code in outcome.detail) == ("health_check", True)
    device.context.floor.restore(0)
    assert update.after_boot(device.context).state == "committed"
    assert device.context.floor.read() == 2


# --- power and damage -------------------------------------------------------------------------------------------------


def run_to_commit(device):
    """What agent and boot loader do, over and over, until the update is committed."""
    for _ in range(6):
        device.context.floor.restore(0)  # each session's Welcome tells what the service recorded
        outcome = update.after_boot(device.context)
        if outcome is not None and outcome.state == "health_check":
            outcome = update.attested(device.context)
        if outcome is not None and outcome.state == "committed":
            return
        if any(report.reboot for report in device.check()) or (outcome is not None and outcome.reboot):
            device.boot()


@pytest.mark.parametrize("first", range(6))
def test_power_lost_at_any_write_of_a_whole_update_never_bricks_and_ends_committed(service, tmp_path, first):
    """Each durable step from the first byte to the commit is once the one that does not happen."""
    offer(service)
    steps = 0
    for step in itertools.count(first, 6):
        device = Device(tmp_path / f"device-{step}", service)
        try:
            with cut_at(step):
                device.check()
                _boot_under_power(device)
                update.after_boot(device.context)
                update.attested(device.context)
        except PowerCut:
            assert device.boot() in (FACTORY, TWO)
            run_to_commit(device)
        else:
            steps = step
        assert device.boot() == TWO, step
        assert device.context.floor.read() == 2, step
        assert device.check() == []
        shutil.rmtree(device.folder)
        if steps:
            break
    assert steps > 40


def _boot_under_power(device):
    state = json.loads((device.slots / "boot.json").read_text())
    if state["trying"]:
        device.boot()


STATE = ["trial.json", "offer.json", "given-up.json", "installed.json", "image/set.json", "director/floor.json"]


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 100, b"x" * 10_000])
def test_a_damaged_state_file_stops_no_update(service, device, name, content):
    offer(service)
    device.check()
    committed(device)
    offer(service, THREE, "3.0", 3)
    path = device.context.state_dir / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    run_to_commit(device)
    assert device.boot() == THREE
    assert device.context.floor.read() == 3


@pytest.mark.parametrize("cut", [*range(0, 100, 20), -1])
def test_a_truncated_trial_ends_in_the_old_release_and_a_new_try(service, device, cut):
    offer(service)
    device.check()
    path = device.context.state_dir / "trial.json"
    path.write_bytes(path.read_bytes()[:cut])
    for _ in range(TRIES):
        assert device.boot() == TWO
        assert update.after_boot(device.context) is None
        assert update.attested(device.context) is None  # nothing is committed without knowing what
    assert device.boot() == FACTORY
    assert device.states() == WHOLE
    assert committed(device).state == "committed"


def test_state_is_private(service, device):
    offer(service)
    device.check()
    modes = {path.stat().st_mode & 0o777 for path in device.context.state_dir.rglob("*") if path.is_file()}
    assert modes == {0o600}
