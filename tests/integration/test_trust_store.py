"""The device's trust: anchor, bundle, trusted time; what is kept, damaged, hidden, rolled back."""

import itertools
import json
import logging
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from device_agent.trust import NotFoundAtSource, TrustedTime, TrustStore, load_anchor
from ota import bundle, refusals, repository
from ota.signing import Roles, online_role
from ota.source import SourceUnavailable
from tests.unit.ota.power import PowerCut, cut_at
from tests.unit.ota.simulator import DAY, NOW, Keys, folder_source, new_key
from wire.codec import encode
from wire.messages import BUNDLE_MOST, BUNDLE_NAME, Anchor, TrustBundle

SERVICE = "muster.test"
STATE = ("roots.json", "set.json", "floor.json")


def make_bundle(version=1, service=SERVICE):
    return TrustBundle(version, service, (b"root %d" % version,), (b"command",), (b"log",))


@pytest.fixture(name="keys", scope="module")
def _keys():
    return Keys()


class World:
    """A trust repository, its anchor, and one device's store."""

    def __init__(self, folder, keys):
        self.keys = keys
        self.source = folder / "trust"
        self.state = folder / "state"
        self.now = NOW
        self.anchor = bundle.create_trust(self.source, keys.roles, make_bundle(), keys.signers, NOW)
        self.fetch = folder_source(self.source)

    @property
    def store(self):
        return TrustStore(self.state, self.anchor, self.fetch, lambda: self.now)

    def publish(self, version, **more):
        bundle.publish_bundle(self.source, make_bundle(version, **more), self.keys.signers, self.now)


@pytest.fixture(name="world")
def _world(tmp_path, keys):
    return World(tmp_path, keys)


def test_the_bundle_comes_from_the_anchor_and_is_there_offline(world):
    assert world.store.current() is None
    assert world.store.refresh().bundle == make_bundle()
    world.fetch = None
    trust = world.store.current()
    assert (trust.bundle, trust.metadata_version, trust.expires) == (make_bundle(), 2, NOW + DAY)


def test_a_new_bundle_replaces_the_old_one(world):
    world.store.refresh()
    world.publish(2)
    assert world.store.refresh().bundle.version == 2
    assert world.store.current().bundle.version == 2


def test_a_service_with_another_anchor_is_refused(world, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = World(tmp_path / "other", Keys())
    world.fetch = stranger.fetch
    with pytest.raises(refusals.ThresholdNotMet):
        world.store.refresh()
    assert world.store.current() is None


def test_a_root_of_a_stranger_after_the_anchors_is_refused(world, tmp_path):
    stranger = Keys()
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other", stranger)
    repository.rotate_root(other.source, stranger.roles, stranger.signers, NOW)
    world.fetch = other.fetch
    with pytest.raises(refusals.ThresholdNotMet, match="root"):
        world.store.refresh()


def test_a_bundle_that_names_another_service_is_refused(world):
    world.publish(2, service="evil.test")
    with pytest.raises(refusals.ServiceNotTheAnchors):
        world.store.refresh()
    assert world.store.current() is None


def test_one_stolen_key_changes_nothing(world):
    with pytest.raises(refusals.TooFewSigners):
        bundle.publish_bundle(world.source, make_bundle(2), [world.keys.offline[0], world.keys.online], NOW)


def test_a_changed_bundle_is_refused(world):
    (path,) = (world.source / "targets").iterdir()
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"version":1', b'"version":2'))
    with pytest.raises(refusals.TargetTampered):
        world.store.refresh()
    path.write_bytes(data + b" ")
    with pytest.raises(refusals.LengthWrong):
        world.store.refresh()
    path.unlink()
    with pytest.raises(refusals.MetadataMissing):
        world.store.refresh()
    assert world.store.current() is None


@pytest.mark.parametrize("content", [b"[]", b'{"version":1}', b"not JSON", b'{"version":1,"version":2}'])
def test_a_signed_bundle_that_cannot_be_read_is_refused(world, content):
    repository.replace_target(world.source, BUNDLE_NAME, content)
    repository.publish(world.source, world.keys.signers, NOW)
    with pytest.raises(refusals.BundleMalformed):
        world.store.refresh()


def test_a_bundle_over_the_cap_is_not_fetched(world):
    repository.replace_target(world.source, BUNDLE_NAME, b" " * (BUNDLE_MOST + 1))
    repository.publish(world.source, world.keys.signers, NOW)
    with pytest.raises(refusals.LengthWrong, match="at most"):
        world.store.refresh()


def test_a_repository_without_a_bundle_is_refused(world):
    repository.withdraw_target(world.source, BUNDLE_NAME)
    repository.publish(world.source, world.keys.signers, NOW)
    with pytest.raises(refusals.UnknownTarget):
        world.store.refresh()


def test_a_newer_services_bundle_may_have_fields_that_this_agent_does_not_know(world):
    content = json.loads(encode(make_bundle(2))) | {"new_field": 1}
    repository.replace_target(world.source, BUNDLE_NAME, json.dumps(content).encode())
    repository.publish(world.source, world.keys.signers, NOW)
    assert world.store.refresh().bundle.version == 2


# --- time -------------------------------------------------------------------------------------------------------------


def test_expired_trust_is_not_current_and_a_frozen_source_is_refused(world):
    world.store.refresh()
    world.now = NOW + DAY
    assert world.store.current() is None
    with pytest.raises(refusals.MetadataExpired):
        world.store.refresh()
    repository.refresh_online(world.source, world.keys.online, world.now)
    assert world.store.refresh().expires == NOW + 2 * DAY


def test_a_source_that_is_out_of_reach_leaves_what_is_kept(world):
    world.store.refresh()

    def unreachable(_path, _most):
        raise SourceUnavailable

    world.fetch = unreachable
    with pytest.raises(SourceUnavailable):
        world.store.refresh()
    assert world.store.current().bundle == make_bundle()


# --- rollback ---------------------------------------------------------------------------------------------------------


@pytest.fixture(name="rolled_back")
def _rolled_back(world, tmp_path):
    """The device saw version 3; the source is put back to version 1."""
    shutil.copytree(world.source, tmp_path / "old")
    world.publish(3)
    world.store.refresh()
    world.fetch = folder_source(tmp_path / "old")
    return world


def test_an_older_set_is_refused(rolled_back):
    with pytest.raises(refusals.MetadataRolledBack):
        rolled_back.store.refresh()
    assert rolled_back.store.current().bundle.version == 3


@pytest.mark.parametrize("damage", ["lost", "empty", "cut", "garbage"])
@pytest.mark.parametrize(
    "files", [*itertools.combinations(STATE, 1), ("roots.json", "set.json"), ("roots.json", "floor.json")]
)
def test_losing_files_does_not_lose_the_protection_against_rollback(rolled_back, files, damage):
    for name in files:
        _damage(rolled_back.state / name, damage)
    with pytest.raises(refusals.MetadataRolledBack):
        rolled_back.store.refresh()


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
def test_losing_both_records_of_versions_is_said(rolled_back, damage, caplog):
    for name in ("set.json", "floor.json"):
        _damage(rolled_back.state / name, damage)
    with caplog.at_level(logging.WARNING):
        assert rolled_back.store.refresh().bundle.version == 1
    assert "rollback-protection-lost" in caplog.text


@pytest.mark.parametrize("damage", ["lost", "empty", "cut", "garbage"])
@pytest.mark.parametrize("files", [STATE[:1], STATE[1:2], STATE[2:], STATE])
def test_damaged_files_mend_with_the_next_refresh(world, files, damage):
    repository.rotate_root(world.source, world.keys.roles, world.keys.signers, NOW)
    world.store.refresh()
    for name in files:
        _damage(world.state / name, damage)
    world.store.current()
    assert world.store.refresh().bundle == make_bundle()
    assert world.store.current().bundle == make_bundle()


@pytest.mark.parametrize("name", STATE)
def test_no_truncation_of_a_state_file_is_believed_or_fatal(world, name):
    repository.rotate_root(world.source, world.keys.roles, world.keys.signers, NOW)
    good = world.store.refresh()
    whole = (world.state / name).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (world.state / name).write_bytes(whole[:length])
        assert world.store.current() in (None, good)
    assert world.store.refresh() == good


def test_a_root_that_took_a_stolen_key_away_is_kept_though_the_rest_of_the_refresh_failed(world, tmp_path):
    world.store.refresh()
    shutil.copytree(world.source, tmp_path / "old")
    stolen, new = world.keys, Keys(offline=world.keys.offline)
    repository.rotate_root(world.source, new.roles, [*stolen.signers, new.online], NOW)
    world.fetch = _without(world.source, "metadata/timestamp.json")
    with pytest.raises(refusals.MetadataMissing):
        world.store.refresh()
    repository.refresh_online(tmp_path / "old", stolen.online, NOW)
    world.fetch = folder_source(tmp_path / "old")
    with pytest.raises(refusals.ThresholdNotMet):
        world.store.refresh()


@pytest.mark.parametrize("lost", [False, True])
def test_a_bad_root_behind_a_kept_one_does_not_make_the_device_forget_it(world, tmp_path, lost):
    world.store.refresh()
    shutil.copytree(world.source, tmp_path / "old")
    stolen, new = world.keys, Keys(offline=world.keys.offline)
    repository.rotate_root(world.source, new.roles, [*stolen.signers, new.online], NOW)
    world.fetch = _without(world.source, "metadata/timestamp.json")
    with pytest.raises(refusals.MetadataMissing):
        world.store.refresh()
    if lost:
        (world.state / "roots.json").unlink()
    (tmp_path / "old" / "metadata" / "3.root.json").write_bytes(b"{}")
    world.fetch = folder_source(tmp_path / "old")
    for _ in range(2):
        with pytest.raises(refusals.MetadataRolledBack if lost else refusals.MetadataMalformed, match="root"):
            world.store.refresh()
    (tmp_path / "old" / "metadata" / "3.root.json").unlink()
    with pytest.raises(refusals.MetadataRolledBack if lost else refusals.ThresholdNotMet):
        world.store.refresh()


def test_a_hidden_root_is_missed_where_the_kept_roots_are_lost(world, tmp_path):
    shutil.copytree(world.source, tmp_path / "old")
    repository.rotate_root(world.source, world.keys.roles, world.keys.signers, NOW)
    world.store.refresh()
    (world.state / "roots.json").unlink()
    world.fetch = folder_source(tmp_path / "old")
    with pytest.raises(refusals.MetadataRolledBack, match="root"):
        world.store.refresh()


def test_recovery_from_a_fast_forward_by_a_stolen_online_key(world):
    """The thief publishes versions near the top; a root with another online key makes them bind no more."""
    for _ in range(5):
        repository.refresh_online(world.source, world.keys.online, NOW)
    world.store.refresh()
    stolen = world.keys
    fresh = new_key()
    roles = Roles(
        stolen.roles.root,
        stolen.roles.targets,
        online_role(fresh.public_key(), DAY),
        online_role(fresh.public_key(), DAY),
    )
    repository.rotate_root(world.source, roles, [*stolen.offline, fresh], NOW)
    assert world.store.refresh().bundle == make_bundle()


def test_power_lost_at_any_write_of_a_refresh_keeps_trust_and_protection(tmp_path, keys):
    for step in itertools.count():
        folder = tmp_path / str(step)
        folder.mkdir()
        world = World(folder, keys)
        world.store.refresh()
        shutil.copytree(world.source, folder / "old")
        repository.rotate_root(world.source, keys.roles, keys.signers, NOW)
        world.publish(2)
        try:
            with cut_at(step):
                world.store.refresh()
        except PowerCut:
            kept = world.store.current()
            assert kept is None or kept.bundle.version in (1, 2)
            assert world.store.refresh().bundle.version == 2
            world.fetch = folder_source(folder / "old")
            with pytest.raises(refusals.MetadataRolledBack):
                world.store.refresh()
        else:
            break
    assert step > 8


def test_kept_roots_of_another_anchor_are_dropped(world, tmp_path, caplog):
    repository.rotate_root(world.source, world.keys.roles, world.keys.signers, NOW)
    world.store.refresh()
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other", Keys())
    repository.rotate_root(other.source, other.keys.roles, other.keys.signers, NOW)
    other.store.refresh()
    shutil.copy(other.state / "roots.json", world.state / "roots.json")
    assert world.store.refresh().bundle == make_bundle()
    assert "metadata-damaged" in caplog.text


def test_state_is_private(world):
    world.store.refresh()
    assert {path.stat().st_mode & 0o777 for path in world.state.iterdir()} == {0o600}
    assert world.state.stat().st_mode & 0o777 == 0o700


# --- the anchor -------------------------------------------------------------------------------------------------------


def test_an_anchor_is_loaded_as_it_was_written(world, tmp_path):
    (tmp_path / "anchor.json").write_bytes(encode(world.anchor))
    assert load_anchor(tmp_path / "anchor.json") == world.anchor


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{}",
        b"[]",
        b"x" * 200_000,
        encode(Anchor("", b"root")),
        b'{"service_name":"s","trust_root":"e30","x":1}',
    ],
)
def test_without_an_anchor_there_is_no_trust(tmp_path, content):
    path = tmp_path / "anchor.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(refusals.AnchorUnusable):
        load_anchor(path)


def test_an_anchor_whose_root_is_damaged_trusts_nothing(world):
    damaged = Anchor(SERVICE, world.anchor.trust_root[:-10])
    store = TrustStore(world.state, damaged, world.fetch, lambda: NOW)
    with pytest.raises(refusals.MetadataMalformed):
        store.refresh()


# --- trusted time -----------------------------------------------------------------------------------------------------

BUILD = datetime(2026, 11, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_a_clock_at_1970_does_not_go_below_the_build_time(tmp_path):
    assert TrustedTime(tmp_path, BUILD, lambda: EPOCH).now() == BUILD


def test_a_set_clock_is_taken(tmp_path):
    assert TrustedTime(tmp_path, BUILD, lambda: NOW).now() == NOW


def test_the_floor_only_rises_and_outlives_a_restart(tmp_path):
    time = TrustedTime(tmp_path / "state", BUILD, lambda: EPOCH)
    time.raise_to(NOW)
    time.raise_to(NOW - DAY)
    assert time.now() == NOW
    assert TrustedTime(tmp_path / "state", BUILD, lambda: EPOCH).now() == NOW


def test_a_newer_image_raises_the_floor(tmp_path):
    TrustedTime(tmp_path, BUILD, lambda: EPOCH).raise_to(BUILD + DAY)
    assert TrustedTime(tmp_path, BUILD + 9 * DAY, lambda: EPOCH).now() == BUILD + 9 * DAY


@pytest.mark.parametrize("content", [b"", b"{", b'{"floor":"2026"}', b"x" * 5000])
def test_a_damaged_time_floor_falls_back_to_the_build_time(tmp_path, content, caplog):
    (tmp_path / "time.json").write_bytes(content)
    assert TrustedTime(tmp_path, BUILD, lambda: EPOCH).now() == BUILD
    assert "time-floor-damaged" in caplog.text


def test_power_lost_while_the_floor_is_written_leaves_old_or_new(tmp_path):
    for step in itertools.count():
        state = tmp_path / str(step)
        TrustedTime(state, BUILD, lambda: EPOCH).raise_to(BUILD + DAY)
        try:
            with cut_at(step):
                TrustedTime(state, BUILD, lambda: EPOCH).raise_to(NOW)
        except PowerCut:
            assert TrustedTime(state, BUILD, lambda: EPOCH).now() in (BUILD + DAY, NOW)
        else:
            break
    assert step > 2


def test_trust_is_imported_without_python_tuf():
    code = "import device_agent.trust, sys; print(any(name.split('.')[0] == 'tuf' for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _damage(path, how):
    if how == "lost":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"\x00garbage")


def _without(folder, hidden):
    fetch = folder_source(folder)

    def partial(path, most):
        if path == hidden:
            raise NotFoundAtSource(path)
        return fetch(path, most)

    return partial


def test_a_device_can_follow_at_every_moment_of_a_change_of_the_root(world, monkeypatch):
    world.store.refresh()
    new, versions = Keys(), []
    write = repository._write

    def written(directory, name, data):
        write(directory, name, data)
        versions.append(TrustStore(world.state / f"{len(versions)}", world.anchor, world.fetch, lambda: NOW).refresh())
        assert world.store.refresh().bundle == make_bundle()

    monkeypatch.setattr(repository, "_write", written)
    known = world.keys.roles
    roles = Roles(new.roles.root, new.roles.targets, known.snapshot, known.timestamp)
    repository.rotate_root(world.source, roles, [*world.keys.signers, *new.offline], NOW)
    assert len(versions) == 4
