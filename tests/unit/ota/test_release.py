"""Releases: a device installs only what both sides signed, for its hardware, not below its floor."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root

from ota import refusals
from ota.director import create_director_root, director_metadata, next_version, rotate_director_root
from ota.refusals import UpdateRefused
from ota.release import assignment_of, image_of, reference_values, release_claims, verify_release
from ota.signing import LIFETIME, Roles, online_role
from ota.verify import VerifiedTarget, verify_repository, verify_roots
from tests.unit.ota.forge import Forge, sign, source, target
from tests.unit.ota.simulator import DAY, DEVICE, HARDWARE, NOW, Keys, new_key

CLAIMS = {
    "hardware_id": HARDWARE,
    "release_counter": 5,
    "version": "2.0",
    "reference_values": {"sha256": {"8": "ab" * 32, "14": "cd" * 32}},
}
IMAGE = VerifiedTarget("image.img", 10, bytes(32), CLAIMS)
DIRECTED = replace(IMAGE, custom={"hardware_id": HARDWARE, "release_counter": 5, "version": "2.0"})


def release(image=IMAGE, directed=DIRECTED, *, hardware=HARDWARE, floor=0):
    return verify_release(image, directed, hardware=hardware, floor=floor)


def claims(**changed):
    return {name: value for name, value in (CLAIMS | changed).items() if value is not None}


def test_a_release_that_both_sides_signed_is_accepted():
    accepted = release(directed=replace(DIRECTED, custom={**DIRECTED.custom, "assignment": "a7"}))
    assert (accepted.version, accepted.release_counter, accepted.assignment) == ("2.0", 5, "a7")
    assert accepted.reference_values == {8: b"\xab" * 32, 14: b"\xcd" * 32}


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other.img"},
        {"length": 11},
        {"sha256": b"\x01" * 32},
        {"custom": {**DIRECTED.custom, "hardware_id": "other"}},
        {"custom": {**DIRECTED.custom, "release_counter": 6}},
        {"custom": {**DIRECTED.custom, "version": "2.1"}},
    ],
    ids=["name", "length", "hash", "hardware", "counter", "version"],
)
def test_what_director_and_image_repository_say_must_agree(changed):
    with pytest.raises(refusals.ImageAndDirectorDisagree):
        release(directed=replace(DIRECTED, **changed))


def test_a_release_for_other_hardware_is_refused():
    with pytest.raises(refusals.HardwareMismatch):
        release(hardware="virtual-2")


def test_a_release_below_the_floor_is_refused_and_one_at_it_is_not():
    assert release(floor=5).release_counter == 5
    with pytest.raises(refusals.ReleaseRolledBack):
        release(floor=6)


@pytest.mark.parametrize(
    "custom",
    [
        None,
        {},
        claims(hardware_id=None),
        claims(release_counter=None),
        claims(version=None),
        claims(release_counter=0),
        claims(release_counter=-1),
        claims(release_counter="5"),
        claims(release_counter=True),
        claims(release_counter=2**63),
        claims(version=""),
        claims(version="2.0\nforged line"),
        claims(version="../2"),
        claims(version="9" * 65),
        claims(unknown="x"),
        claims(reference_values={"sha1": {"8": "ab" * 20}}),
        claims(reference_values={"sha256": {"24": "ab" * 32}}),
        claims(reference_values={"sha256": {"08": "ab" * 32}}),
        claims(reference_values={"sha256": {"-1": "ab" * 32}}),
        claims(reference_values={"sha256": {"²": "ab" * 32}}),
        claims(reference_values={"sha256": {"8": "AB" * 32}}),
        claims(reference_values={"sha256": {"8": "ab" * 31}}),
        claims(reference_values={"sha256": {}, "sha384": {}}),
        claims(reference_values=[]),
    ],
)
def test_custom_is_complete_well_formed_and_nothing_more(custom):
    with pytest.raises(refusals.TargetMalformed):
        release(replace(IMAGE, custom=custom))


@pytest.mark.parametrize("custom", [None, {}, CLAIMS, {**DIRECTED.custom, "release_counter": 0}])
def test_the_directors_custom_is_as_strict(custom):
    with pytest.raises(refusals.TargetMalformed):
        release(directed=replace(DIRECTED, custom=custom))


@given(
    custom=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.dictionaries(st.sampled_from([*CLAIMS, "sha256", "8", "x"]), inner),
    )
)
def test_no_custom_does_anything_but_pass_or_be_refused(custom):
    try:
        accepted = release_claims(replace(IMAGE, custom=custom))
    except UpdateRefused:
        return
    assert accepted.release_counter > 0
    assert set(reference_values(accepted)) <= set(range(24))


# --- the Director -----------------------------------------------------------------------------------------------------

KEYS, ONLINE = Keys(), new_key()
ROLES = Roles(
    root=KEYS.roles.root,
    targets=online_role(ONLINE.public_key(), DAY),
    snapshot=online_role(ONLINE.public_key(), DAY),
    timestamp=online_role(ONLINE.public_key(), timedelta(hours=1)),
)
ROOT = create_director_root(ROLES, KEYS.offline[:2], NOW)


def directed(assigned=IMAGE, *, device=DEVICE, version=1, floors=(), now=NOW, **more):
    files = director_metadata(ROOT, device, assigned, version, ONLINE, NOW, **more)
    fetch = source({f"metadata/{name}": data for name, data in files.items()})
    return verify_repository(verify_roots(ROOT, fetch), fetch, floors, now)


def test_a_device_finds_the_release_that_the_director_assigned_to_it():
    assigned = assignment_of(directed(assignment="a1"), DEVICE)
    assert release(directed=assigned).assignment == "a1"


def test_the_director_passes_no_reference_values_on():
    assert "reference_values" not in assignment_of(directed(), DEVICE).custom


def test_a_device_without_an_assignment_finds_none():
    assert assignment_of(directed(None), DEVICE) is None


@pytest.mark.parametrize("assigned", [IMAGE, None])
def test_metadata_for_another_device_is_refused_even_if_it_assigns_nothing(assigned):
    with pytest.raises(refusals.DirectorForAnotherDevice):
        assignment_of(directed(assigned, device="gateway-2"), DEVICE)


def test_the_image_repository_is_no_director():
    forge = Forge()
    fetch = source(forge.files())
    images = verify_repository(verify_roots(forge.root(), fetch), fetch, (), NOW)
    with pytest.raises(refusals.DirectorForAnotherDevice):
        assignment_of(images, DEVICE)


def test_two_assignments_at_once_are_refused():
    forge = Forge()
    files = {"one.img": target("one.img"), "two.img": target("two.img")}
    fetch = source(forge.files(targets=files, fields={"x-muster-device": DEVICE}))
    director = verify_repository(verify_roots(forge.root(), fetch), fetch, (), NOW)
    with pytest.raises(refusals.DirectorAmbiguous):
        assignment_of(director, DEVICE)


def test_an_assigned_target_that_the_image_repository_does_not_have_is_refused():
    with pytest.raises(refusals.UnknownTarget):
        image_of(directed(None), IMAGE)


def test_the_directors_word_is_short_lived():
    with pytest.raises(refusals.MetadataExpired, match="timestamp"):
        directed(now=NOW + timedelta(hours=1))


def test_an_earlier_generation_of_the_director_is_refused():
    floor = directed(version=9).floor
    with pytest.raises(refusals.MetadataRolledBack):
        directed(version=8, floors=[floor])


def test_the_director_root_needs_its_threshold():
    with pytest.raises(refusals.TooFewSigners):
        create_director_root(ROLES, KEYS.offline[:1], NOW)


def test_a_rotated_director_root_is_reached_and_needs_both_thresholds():
    new = Keys()
    roles = replace(ROLES, root=new.roles.root)
    with pytest.raises(refusals.TooFewSigners):
        rotate_director_root(ROOT, roles, [*new.offline, KEYS.offline[0]], NOW)
    root = rotate_director_root(ROOT, roles, [*new.offline[:2], *KEYS.offline[:2]], NOW)
    assert verify_roots(ROOT, source({"metadata/2.root.json": root})).version == 2


def test_a_director_key_that_the_root_does_not_name_is_refused_at_signing():
    with pytest.raises(refusals.TooFewSigners, match="targets"):
        director_metadata(ROOT, DEVICE, IMAGE, 1, new_key(), NOW)


def test_what_a_device_would_refuse_is_not_signed():
    assert directed(assignment="x" * 160)
    with pytest.raises(refusals.TargetMalformed, match="assignment"):
        directed(assignment="x" * 161)
    with pytest.raises(refusals.TargetMalformed):
        directed(replace(IMAGE, custom=claims(version="a b")))


def test_a_role_without_a_lifetime_signs_nothing():
    root = Metadata[Root].from_bytes(ROOT)
    del root.signed.roles["targets"].unrecognized_fields[LIFETIME]
    with pytest.raises(refusals.RepositoryDamaged, match="lifetime"):
        director_metadata(sign(root, KEYS.offline[:2]), DEVICE, None, 1, ONLINE, NOW)


def test_versions_rise_within_a_second_under_a_clock_set_back_and_after_a_restore():
    second = int(NOW.timestamp())
    assert next_version(0, NOW) == second
    assert next_version(second, NOW) == second + 1
    assert next_version(second, NOW - DAY) == second + 1


def test_a_name_that_is_no_device_id_is_not_signed():
    with pytest.raises(ValueError, match="device id"):
        director_metadata(ROOT, "a/b", None, 1, ONLINE, NOW)
