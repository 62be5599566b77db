"""The publisher's side on a real folder: thresholds, staging, whole sets, rotation, interrupted writes."""

import contextlib
import json
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from ota import bundle, refusals, repository
from ota.publishing import add_image, init_image_repository
from ota.signing import Role, Roles, keyid_of
from ota.verify import verify_repository, verify_roots
from tests.integration.hsm_box import Box
from tests.unit.ota.power import PowerCut, cut_at
from tests.unit.ota.simulator import DAY, NOW, Keys, folder_source, new_key
from wire.messages import TrustBundle


@pytest.fixture(name="keys", scope="module")
def _keys():
    return Keys()


@pytest.fixture(name="folder")
def _folder(tmp_path, keys):
    repository.create(tmp_path / "repository", keys.roles, keys.signers, NOW)
    return tmp_path / "repository"


def read(folder, now=NOW, root=None):
    fetch = folder_source(folder)
    trusted = root or (folder / "metadata" / "1.root.json").read_bytes()
    return verify_repository(verify_roots(trusted, fetch), fetch, (), now)


def test_a_new_repository_verifies_and_is_empty(folder):
    assert read(folder).targets == {}


def test_an_existing_repository_is_never_overwritten(folder, keys):
    before = (folder / "metadata" / "1.root.json").read_bytes()
    with pytest.raises(refusals.RepositoryExists):
        repository.create(folder, keys.roles, keys.signers, NOW + DAY)
    assert (folder / "metadata" / "1.root.json").read_bytes() == before


def test_an_empty_folder_may_be_there_already(tmp_path, keys):
    (tmp_path / "new").mkdir()
    repository.create(tmp_path / "new", keys.roles, keys.signers, NOW)
    assert read(tmp_path / "new").targets == {}


@pytest.mark.parametrize("missing", ["root and targets", "online"])
def test_creating_with_too_few_signers_leaves_nothing(tmp_path, keys, missing):
    signers = keys.signers[:1] + keys.signers[2:] if missing == "root and targets" else keys.signers[:2]
    with pytest.raises(refusals.TooFewSigners):
        repository.create(tmp_path / "new", keys.roles, signers, NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_above_the_number_of_keys_is_refused(tmp_path, keys):
    key = keys.offline[0].public_key()
    roles = Roles(Role((key, key), 2, DAY), keys.roles.targets, keys.roles.snapshot, keys.roles.timestamp)
    with pytest.raises(refusals.TooFewSigners, match="root"):
        repository.create(tmp_path / "new", roles, keys.signers, NOW)


def test_what_is_staged_is_not_published_until_the_threshold_signs(folder, keys):
    repository.add_target(folder, "a.img", b"image", {"x": 1})
    assert read(folder).targets == {}
    with pytest.raises(refusals.TooFewSigners, match="targets"):
        repository.publish(folder, [keys.offline[0], keys.online], NOW)
    with pytest.raises(refusals.TooFewSigners, match="targets"):
        repository.publish(folder, [keys.offline[0], keys.offline[0], keys.online], NOW)
    assert read(folder).targets == {}
    assert repository.publish(folder, keys.signers, NOW) == 2
    assert read(folder).targets["a.img"].custom == {"x": 1}


class _Broken(ec.EllipticCurvePrivateKey):
    """A token's key: its public half is true, what it signs is not, or it fails."""

    def __init__(self, key, fault):
        self._key, self._fault = key, fault

    def sign(self, data, signature_algorithm):
        if isinstance(self._fault, Exception):
            raise self._fault
        return new_key().sign(data, signature_algorithm)

    def public_key(self):
        return self._key.public_key()

    curve = property(lambda self: self._key.curve)
    key_size = property(lambda self: self._key.key_size)
    exchange = private_numbers = private_bytes = __copy__ = __deepcopy__ = None


def test_a_token_that_fails_says_so_in_its_own_words(folder, keys):
    broken = _Broken(keys.offline[1], PermissionError("PIN incorrect"))
    with pytest.raises(PermissionError, match="PIN incorrect"):
        repository.publish(folder, [keys.offline[0], broken, keys.online], NOW)
    assert read(folder).floor.targets == 1


def test_a_signature_that_no_device_would_take_is_not_published(folder, keys):
    broken = _Broken(keys.offline[1], None)
    with pytest.raises(refusals.TooFewSigners, match="good signatures"):
        repository.publish(folder, [keys.offline[0], broken, keys.online], NOW)
    assert read(folder).floor.targets == 1


def test_only_the_signatures_of_today_stand_in_the_metadata(folder, keys):
    repository.publish(folder, keys.signers, NOW)
    repository.publish(folder, [keys.offline[2], keys.offline[1], keys.online], NOW)
    signed = json.loads((folder / "metadata" / "3.targets.json").read_bytes())["signatures"]
    assert {entry["keyid"] for entry in signed} == {keyid_of(key.public_key()) for key in keys.offline[1:]}


def test_keys_in_tokens_sign_a_repository(tmp_path):
    box = Box(tmp_path / "softhsm")
    labels = ["trust-1", "trust-2", "trust-3", "muster"]
    for label in labels:
        box.create(label)
    with contextlib.ExitStack() as stack:
        tokens = [stack.enter_context(box.token(label)) for label in labels]
        *offline, online = [token.generate_ec_key("trust") for token in tokens]
        keys = Keys(offline=offline, online=online)
        repository.create(tmp_path / "trust", keys.roles, keys.signers, NOW)
        repository.add_target(tmp_path / "trust", "a.img", b"image")
        repository.publish(tmp_path / "trust", keys.signers, NOW)
    assert set(read(tmp_path / "trust").targets) == {"a.img"}


def test_publishing_without_the_online_key_writes_nothing(folder, keys):
    repository.add_target(folder, "a.img", b"image")
    before = sorted(path.name for path in (folder / "metadata").iterdir())
    with pytest.raises(refusals.TooFewSigners, match="snapshot"):
        repository.publish(folder, keys.offline, NOW)
    assert sorted(path.name for path in (folder / "metadata").iterdir()) == before


def test_publishing_nothing_new_signs_again_with_new_dates(folder, keys):
    repository.add_target(folder, "a.img", b"image")
    repository.publish(folder, keys.signers, NOW)
    repository.publish(folder, keys.signers, NOW + 5 * DAY)
    again = read(folder, NOW + 5 * DAY)
    assert set(again.targets) == {"a.img"}
    assert again.floor.targets == 3


def test_a_withdrawn_target_is_gone_after_publishing(folder, keys):
    repository.add_target(folder, "a.img", b"image")
    repository.publish(folder, keys.signers, NOW)
    repository.withdraw_target(folder, "a.img")
    assert set(read(folder).targets) == {"a.img"}
    repository.publish(folder, keys.signers, NOW)
    assert read(folder).targets == {}
    with pytest.raises(refusals.UnknownTarget):
        repository.withdraw_target(folder, "a.img")


def test_a_published_name_is_not_used_for_other_content(folder, keys):
    repository.add_target(folder, "a.img", b"image")
    repository.publish(folder, keys.signers, NOW)
    with pytest.raises(refusals.TargetNameTaken):
        repository.add_target(folder, "a.img", b"another")


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".a", "a\n"])
def test_a_hostile_name_is_not_staged(folder, name):
    with pytest.raises(refusals.TargetNameRefused):
        repository.add_target(folder, name, b"image")


def test_the_online_key_alone_keeps_the_set_fresh_and_changes_nothing(folder, keys):
    repository.add_target(folder, "a.img", b"image")
    repository.publish(folder, keys.signers, NOW)
    with pytest.raises(refusals.MetadataExpired):
        read(folder, NOW + 2 * DAY)
    repository.refresh_online(folder, keys.online, NOW + 2 * DAY)
    assert set(read(folder, NOW + 2 * DAY).targets) == {"a.img"}
    assert repository.online_expiry(folder) == NOW + 3 * DAY
    with pytest.raises(refusals.TooFewSigners):
        repository.refresh_online(folder, new_key(), NOW)


def test_old_snapshots_do_not_pile_up(folder, keys):
    for _ in range(repository.SNAPSHOTS_KEPT * 2):
        repository.refresh_online(folder, keys.online, NOW)
    assert len(list((folder / "metadata").glob("*.snapshot.json"))) == repository.SNAPSHOTS_KEPT
    assert read(folder)


def test_a_rotated_root_is_reached_from_the_first_and_needs_both_thresholds(folder, keys):
    first = (folder / "metadata" / "1.root.json").read_bytes()
    new = Keys()
    for signers in ([*new.signers, keys.offline[0]], [*keys.signers, new.offline[0], new.online]):
        with pytest.raises(refusals.TooFewSigners):
            repository.rotate_root(folder, new.roles, signers, NOW)
    repository.rotate_root(folder, new.roles, [*keys.signers, *new.signers], NOW)
    assert read(folder, root=first).floor.root == 2
    with pytest.raises(refusals.TooFewSigners):
        repository.publish(folder, keys.signers, NOW)
    repository.publish(folder, new.signers, NOW)
    assert repository.root_of(folder) == (folder / "metadata" / "2.root.json").read_bytes()


def test_a_rotation_that_lacks_a_signer_writes_nothing(folder, keys):
    new = Keys()
    with pytest.raises(refusals.TooFewSigners, match="snapshot"):
        repository.rotate_root(folder, new.roles, [*keys.offline, *new.offline], NOW)
    assert not (folder / "metadata" / "2.root.json").exists()


def test_key_ids_are_the_hash_of_the_public_key(folder, keys):
    root = json.loads(repository.root_of(folder))["signed"]
    assert set(root["keys"]) == {keyid_of(key.public_key()) for key in [*keys.offline, keys.online]}


def test_files_are_listed_so_that_a_mirror_is_never_half_a_set(folder, keys, tmp_path):
    repository.add_target(folder, "a.img", b"image")
    repository.publish(folder, keys.signers, NOW)
    mirror = tmp_path / "mirror"
    for name in repository.files_in_order(folder):
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).write_bytes((folder / name).read_bytes())
    assert set(read(mirror).targets) == {"a.img"}
    assert repository.files_in_order(folder)[-1] == "metadata/timestamp.json"


@pytest.mark.parametrize(
    "name", ["metadata/timestamp.json", "metadata/1.root.json", "metadata/2.targets.json", "staged.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_repository_is_named_and_not_published_over(folder, keys, name, content):
    repository.publish(folder, keys.signers, NOW)
    repository.add_target(folder, "a.img", b"image")
    (folder / name).write_bytes(content)
    with pytest.raises(refusals.RepositoryDamaged):
        repository.publish(folder, keys.signers, NOW)


def test_a_repository_that_lost_its_root_is_named(folder, keys):
    (folder / "metadata" / "1.root.json").unlink()
    with pytest.raises(refusals.RepositoryDamaged, match="no root"):
        repository.publish(folder, keys.signers, NOW)


def test_a_target_that_is_missing_from_the_trust_repository_is_named(folder):
    with pytest.raises(refusals.RepositoryDamaged, match="bundle"):
        bundle.published_bundle(folder)


def test_a_folder_that_is_no_repository_is_named(tmp_path, keys):
    with pytest.raises(refusals.RepositoryDamaged, match="no repository"):
        repository.publish(tmp_path, keys.signers, NOW)


def test_a_reader_during_publishing_always_finds_a_whole_set(folder, keys):
    stop = threading.Event()

    def publish():
        for number in range(25):
            repository.add_target(folder, f"{number}.img", b"image %d" % number)
            repository.publish(folder, keys.signers, NOW)
            repository.refresh_online(folder, keys.online, NOW)
        stop.set()

    writer = threading.Thread(target=publish)
    writer.start()
    seen = [read(folder).floor.timestamp]
    while not stop.is_set():
        seen.append(read(folder).floor.timestamp)
    writer.join()
    assert seen == sorted(seen)
    assert len(read(folder).targets) == 25


def test_two_writers_at_once_lose_nothing(folder, keys):
    def add(start):
        for number in range(start, start + 10):
            repository.add_target(folder, f"{number}.img", b"image")
            repository.publish(folder, keys.signers, NOW)

    writers = [threading.Thread(target=add, args=(start,)) for start in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read(folder).targets) == 20


def test_power_lost_at_any_write_leaves_a_whole_set_and_publishing_can_be_repeated(tmp_path, keys):
    for step in range(100):
        folder = tmp_path / str(step)
        repository.create(folder, keys.roles, keys.signers, NOW)
        try:
            with cut_at(step):
                repository.add_target(folder, "a.img", b"image")
                repository.publish(folder, keys.signers, NOW)
        except PowerCut:
            assert set(read(folder).targets) <= {"a.img"}
            repository.add_target(folder, "a.img", b"image")
            repository.publish(folder, keys.signers, NOW)
            assert set(read(folder).targets) == {"a.img"}
        else:
            break
    assert step > 10


# --- trust bundle and publisher ---------------------------------------------------------------------------------------


def test_the_trust_repository_publishes_one_bundle_and_gives_the_anchor(tmp_path, keys):
    first = TrustBundle(1, "muster.test", (), (), ())
    anchor = bundle.create_trust(tmp_path / "trust", keys.roles, first, keys.signers, NOW)
    assert (anchor.service_name, bundle.published_bundle(tmp_path / "trust")) == ("muster.test", first)
    second = TrustBundle(2, "muster.test", (b"ca",), (), ())
    with pytest.raises(refusals.TooFewSigners):
        bundle.publish_bundle(tmp_path / "trust", second, [keys.offline[0], keys.online], NOW)
    bundle.publish_bundle(tmp_path / "trust", second, keys.signers, NOW)
    assert bundle.published_bundle(tmp_path / "trust") == second
    assert set(read(tmp_path / "trust").targets) == {"bundle.json"}


def test_a_bundle_that_no_device_could_read_is_not_signed(tmp_path, keys):
    bundle.create_trust(tmp_path / "trust", keys.roles, TrustBundle(1, "s", (), (), ()), keys.signers, NOW)
    with pytest.raises(refusals.BundleMalformed):
        bundle.publish_bundle(tmp_path / "trust", TrustBundle(2, "s" * 300, (), (), ()), keys.signers, NOW)


def init_images(folder, keys, **changed):
    values = {
        "root_keys": [key.public_key() for key in keys.offline],
        "root_threshold": 2,
        "targets_key": keys.offline[0].public_key(),
        "online_key": keys.online.public_key(),
        "signers": [*keys.offline[:2], keys.online],
        "now": NOW,
    }
    return init_image_repository(folder, **(values | changed))


def test_a_publisher_adds_images_and_publishes_them(tmp_path, keys):
    root = init_images(tmp_path / "images", keys)
    name = add_image(tmp_path / "images", b"image", "2.0", "virtual-1", 2, {8: b"\xab" * 32})
    repository.publish(tmp_path / "images", [keys.offline[0], keys.online], NOW)
    custom = read(tmp_path / "images", root=root).targets[name].custom
    assert custom["reference_values"] == {"sha256": {"8": "ab" * 32}}


def test_an_image_repository_needs_its_root_threshold(tmp_path, keys):
    with pytest.raises(refusals.TooFewSigners, match="root"):
        init_images(tmp_path / "images", keys, signers=[keys.offline[0], keys.online])


@pytest.mark.parametrize(
    ("version", "hardware", "counter", "values"),
    [
        ("", "v", 1, {}),
        ("1\n", "v", 1, {}),
        ("1", "v" * 65, 1, {}),
        ("1", "v", 0, {}),
        ("1", "v", 1, {24: bytes(32)}),
        ("1", "v", 1, {8: b""}),
    ],
)
def test_an_image_that_no_device_would_take_is_not_staged(tmp_path, keys, version, hardware, counter, values):
    init_images(tmp_path / "images", keys)
    with pytest.raises(refusals.TargetMalformed):
        add_image(tmp_path / "images", b"image", version, hardware, counter, values)
    with pytest.raises(refusals.TargetMalformed):
        add_image(tmp_path / "images", b"", "1", "v", 1, {})


# --- another implementation of the client -----------------------------------------------------------------------------


class _Folder(FetcherInterface):
    def __init__(self, folder):
        self._folder = folder

    def _fetch(self, url):
        path = self._folder / url.removeprefix("folder:/")
        if not path.exists():
            raise DownloadHTTPError("missing", 404)
        return iter([path.read_bytes()])


def test_python_tufs_own_client_follows_the_repository(tmp_path, keys):
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    folder = tmp_path / "repository"
    root = repository.create(folder, keys.roles, keys.signers, now)
    new = Keys()
    repository.rotate_root(folder, new.roles, [*keys.signers, *new.signers], now)
    repository.add_target(folder, "a.img", b"image")
    repository.publish(folder, new.signers, now)
    for name in ("state", "downloads"):
        (tmp_path / name).mkdir()
    updater = Updater(
        str(tmp_path / "state"),
        "folder:/metadata/",
        str(tmp_path / "downloads"),
        "folder:/targets/",
        fetcher=_Folder(folder),
        bootstrap=root,
    )
    updater.refresh()
    path = updater.download_target(updater.get_targetinfo("a.img"))
    with open(path, "rb") as file:  # noqa: PTH123  python-tuf gives a text
        assert file.read() == b"image"
