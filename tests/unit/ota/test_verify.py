"""Metadata: every way in which a TUF repository can lie, and the name under which it is refused."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from ota import refusals
from ota.refusals import UpdateRefused
from ota.signing import file_entry, keyid_of, root_metadata
from ota.verify import ROOT_MOST, TIMESTAMP_MOST, Floor, verify_repository, verify_roots, verify_target_bytes
from tests.unit.ota.forge import DIGEST, Forge, sign, source, target
from tests.unit.ota.simulator import DAY, NOW, Keys, new_key

FORGE = Forge()
ROOT = FORGE.root()


def verify(files=None, *, root=ROOT, floors=(), now=NOW):
    fetch = source(FORGE.files() if files is None else files)
    return verify_repository(verify_roots(root, fetch), fetch, floors, now)


def test_a_good_set_is_accepted_with_its_versions_and_first_expiry():
    verified = verify(FORGE.files((3, 2, 5), expires={"timestamp": NOW + timedelta(hours=1)}))
    assert (verified.floor.root, verified.floor.timestamp, verified.floor.snapshot, verified.floor.targets) == (
        1,
        3,
        2,
        5,
    )
    assert verified.expires == NOW + timedelta(hours=1)
    assert verified.targets["image.img"].sha256.hex() == DIGEST


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_strangers_signature_does_not_count(role):
    with pytest.raises(refusals.ThresholdNotMet):
        verify(FORGE.files(signers={role: [new_key(), new_key()]}))


def test_one_stolen_key_of_three_does_not_sign_targets():
    with pytest.raises(refusals.ThresholdNotMet, match="targets"):
        verify(FORGE.files(signers={"targets": FORGE.keys.offline[:1]}))


def test_the_online_key_does_not_sign_targets():
    with pytest.raises(refusals.ThresholdNotMet, match="targets"):
        verify(FORGE.files(signers={"targets": [FORGE.keys.online, FORGE.keys.offline[0]]}))


def test_one_stolen_key_signing_twice_does_not_meet_the_threshold():
    files = FORGE.files(signers={"targets": FORGE.keys.offline[:1]})
    targets = json.loads(files["metadata/1.targets.json"])
    (signature,) = targets["signatures"]
    other = {**signature, "keyid": keyid_of(FORGE.keys.offline[1].public_key())}
    targets["signatures"] = [signature, other]
    with pytest.raises(refusals.ThresholdNotMet):
        verify(_with_targets(json.dumps(targets).encode()))


def test_the_same_signature_listed_twice_is_malformed():
    files = FORGE.files(signers={"targets": FORGE.keys.offline[:1]})
    targets = json.loads(files["metadata/1.targets.json"])
    targets["signatures"] *= 2
    with pytest.raises(refusals.MetadataMalformed):
        verify(_with_targets(json.dumps(targets).encode()))


def test_no_signatures_at_all_are_refused():
    with pytest.raises(refusals.ThresholdNotMet):
        verify(FORGE.files(signers={"timestamp": []}))


def test_changed_metadata_under_good_signatures_is_refused():
    files = FORGE.files()
    files["metadata/timestamp.json"] = files["metadata/timestamp.json"].replace(b'"version":1}', b'"version":2}')
    with pytest.raises(refusals.ThresholdNotMet, match="timestamp"):
        verify(files)


# --- roots ------------------------------------------------------------------------------------------------------------


def test_a_root_follows_that_old_and_new_thresholds_signed():
    new = Keys()
    root = FORGE.root(2, roles=new.roles, signers=[*FORGE.keys.offline[:2], *new.offline[:2]])
    verified = verify_roots(ROOT, source({"metadata/2.root.json": root}))
    assert (verified.version, verified.data, verified.chain) == (2, root, (root,))


@pytest.mark.parametrize(
    ("old", "new"), [(0, 3), (1, 3), (3, 0), (3, 1)], ids=["new only", "one old", "old only", "one new"]
)
def test_a_root_needs_the_threshold_of_the_one_before_and_its_own(old, new):
    keys = Keys()
    root = FORGE.root(2, roles=keys.roles, signers=[*FORGE.keys.offline[:old], *keys.offline[:new]])
    with pytest.raises(refusals.ThresholdNotMet, match="root"):
        verify_roots(ROOT, source({"metadata/2.root.json": root}))


@pytest.mark.parametrize("version", [1, 3])
def test_a_root_of_another_version_in_its_place_is_refused(version):
    with pytest.raises(refusals.RootOutOfOrder):
        verify_roots(ROOT, source({"metadata/2.root.json": FORGE.root(version)}))


def test_a_trusted_root_that_its_own_keys_did_not_sign_is_refused():
    with pytest.raises(refusals.ThresholdNotMet):
        verify_roots(FORGE.root(signers=FORGE.keys.offline[:1]), source({}))


def test_an_endless_chain_of_roots_ends():
    def fetch(path, _most):
        return FORGE.root(int(path.split("/")[1].split(".")[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ota.verify.ROOTS_MOST", 4)
        with pytest.raises(refusals.RootOutOfOrder, match="in a row"):
            verify_roots(ROOT, fetch)


def test_keys_of_the_root_before_sign_nothing_under_the_new_one():
    new = Keys()
    root = FORGE.root(2, roles=new.roles, signers=[*FORGE.keys.offline[:2], *new.offline[:2]])
    with pytest.raises(refusals.ThresholdNotMet, match="timestamp"):
        verify(FORGE.files() | {"metadata/2.root.json": root})


def test_a_root_with_a_key_type_that_is_not_allowed_is_refused():
    root = json.loads(ROOT)
    key = {"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "x"}}
    root["signed"]["keys"]["00"] = key
    root["signed"]["roles"]["root"]["keyids"].append("00")
    root["signatures"] = []
    data = sign(Metadata[Root].from_dict(root), FORGE.keys.offline[:2])
    with pytest.raises(refusals.KeyTypeRefused, match="rsassa"):
        verify_roots(data, source({}))


def test_a_root_without_consistent_snapshots_is_refused():
    root = root_metadata(FORGE.keys.roles, 1, NOW)
    root.signed.consistent_snapshot = False
    with pytest.raises(refusals.MetadataMalformed, match="consistent"):
        verify(root=sign(root, FORGE.keys.offline[:2]))


# --- freshness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused_at_the_time_that_is_given(role):
    files = FORGE.files(expires={role: NOW + timedelta(minutes=1)})
    verify(files)
    with pytest.raises(refusals.MetadataExpired, match=role):
        verify(files, now=NOW + timedelta(minutes=1))


def test_an_expired_root_is_refused_where_it_is_the_last():
    with pytest.raises(refusals.MetadataExpired, match="root"):
        verify(root=FORGE.root(expires=NOW - DAY))


def test_an_expired_root_still_leads_to_the_next():
    assert (
        verify({**FORGE.files(), "metadata/2.root.json": FORGE.root(2)}, root=FORGE.root(expires=NOW - DAY)).floor.root
        == 2
    )


def test_the_systems_clock_plays_no_part():
    past = datetime(1999, 1, 1, tzinfo=UTC)
    dates = dict.fromkeys(("timestamp", "snapshot", "targets"), past)
    assert verify(FORGE.files(expires=dates), root=FORGE.root(expires=past), now=past - DAY).expires == past


# --- rollback ---------------------------------------------------------------------------------------------------------


def _floor(**versions):
    seen = verify().floor
    return Floor(**({"online": seen.online, "offline": seen.offline} | versions))


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_an_older_version_than_was_seen_is_refused(role):
    assert verify(floors=[_floor(**{role: 1})])
    with pytest.raises(refusals.MetadataRolledBack, match=role):
        verify(floors=[_floor(**{role: 2})])


def test_the_highest_of_several_floors_binds():
    with pytest.raises(refusals.MetadataRolledBack, match="snapshot"):
        verify(floors=[_floor(snapshot=1), _floor(snapshot=2), _floor()])


def test_versions_seen_under_keys_that_were_replaced_bind_no_more():
    old = verify(FORGE.files((900, 900, 1))).floor
    new = Keys(offline=FORGE.keys.offline)
    root = FORGE.root(2, roles=new.roles)
    online = {"timestamp": [new.online], "snapshot": [new.online]}
    assert verify({**FORGE.files(signers=online), "metadata/2.root.json": root}, floors=[old]).floor.timestamp == 1


def test_versions_of_targets_bind_where_only_the_online_keys_were_replaced():
    old = verify(FORGE.files((900, 900, 7))).floor
    new = Keys(offline=FORGE.keys.offline)
    root = FORGE.root(2, roles=new.roles)
    online = {"timestamp": [new.online], "snapshot": [new.online]}
    with pytest.raises(refusals.MetadataRolledBack, match="targets"):
        verify({**FORGE.files(signers=online), "metadata/2.root.json": root}, floors=[old])


def test_versions_of_targets_bind_no_more_where_their_keys_were_replaced():
    old = verify(FORGE.files((1, 1, 7))).floor
    new = Keys(online=FORGE.keys.online)
    root = FORGE.root(2, roles=new.roles, signers=[*FORGE.keys.offline[:2], *new.offline[:2]])
    files = FORGE.files(signers={"targets": new.offline[:2]})
    assert verify({**files, "metadata/2.root.json": root}, floors=[old]).floor.targets == 1


def test_a_root_that_was_seen_is_not_hidden():
    with pytest.raises(refusals.MetadataRolledBack, match="root"):
        verify(floors=[Floor(root=2)])


# --- mix and match ----------------------------------------------------------------------------------------------------


def test_a_snapshot_of_another_generation_is_refused():
    files, other = FORGE.files(), FORGE.files((2, 1, 3))
    files["metadata/1.snapshot.json"] = other["metadata/1.snapshot.json"]
    with pytest.raises(refusals.MetadataMixed, match="snapshot"):
        verify(files)


def test_targets_of_another_generation_are_refused():
    files, other = FORGE.files(), FORGE.files(targets={})
    files["metadata/1.targets.json"] = other["metadata/1.targets.json"]
    with pytest.raises(refusals.MetadataMixed, match="targets"):
        verify(files)


def test_targets_of_another_version_than_the_snapshot_says_are_refused():
    data = sign(Metadata(Targets(version=2, expires=NOW + DAY)), FORGE.keys.offline[:2])
    with pytest.raises(refusals.MetadataMixed, match="targets"):
        verify(_with_targets(data, listed=1))


def test_a_snapshot_of_another_version_than_the_timestamp_says_is_refused():
    snapshot = FORGE.files((1, 2, 1))["metadata/2.snapshot.json"]
    files = FORGE.files() | {"metadata/1.snapshot.json": snapshot}
    timestamp = Metadata(Timestamp(version=1, expires=NOW + DAY, snapshot_meta=file_entry(1, snapshot)))
    files["metadata/timestamp.json"] = sign(timestamp, [FORGE.keys.online])
    with pytest.raises(refusals.MetadataMixed, match="snapshot"):
        verify(files)


def test_a_snapshot_without_targets_is_refused():
    snapshot = Metadata(Snapshot(version=1, expires=NOW + DAY, meta={}))
    data = sign(snapshot, [FORGE.keys.online])
    timestamp = Metadata(Timestamp(version=1, expires=NOW + DAY, snapshot_meta=file_entry(1, data)))
    files = {"metadata/1.snapshot.json": data, "metadata/timestamp.json": sign(timestamp, [FORGE.keys.online])}
    with pytest.raises(refusals.MetadataMixed, match=r"no targets\.json"):
        verify(files)


def test_metadata_of_another_role_is_refused():
    files = FORGE.files()
    files["metadata/timestamp.json"] = files["metadata/1.snapshot.json"]
    with pytest.raises(refusals.MetadataMalformed, match="timestamp"):
        verify(files)


@pytest.mark.parametrize("path", ["metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"])
def test_a_missing_file_is_named(path):
    files = FORGE.files()
    del files[path]
    with pytest.raises(refusals.MetadataMissing, match=path):
        verify(files)


# --- parsing ----------------------------------------------------------------------------------------------------------

GARBAGE = {
    "empty": b"",
    "not JSON": b"<html>captive portal</html>",
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"1",
    "no signed part": b'{"signatures":[]}',
    "a name twice": b'{"signatures":[],"signed":{},"signed":{}}',
    "deep": b"[" * 5000 + b"]" * 5000,
    "NaN": b'{"signed":{"version":NaN},"signatures":[]}',
    "huge integer": b'{"signed":{"version":' + b"9" * 5000 + b'},"signatures":[]}',
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_as_malformed(data):
    with pytest.raises(refusals.MetadataMalformed, match="timestamp"):
        verify(FORGE.files() | {"metadata/timestamp.json": data})
    with pytest.raises(refusals.MetadataMalformed, match="root"):
        verify_roots(data, source({}))
    with pytest.raises(refusals.MetadataMalformed, match="root"):
        verify_roots(ROOT, source({"metadata/2.root.json": data}))


def test_endless_metadata_is_refused_before_it_is_parsed():
    with pytest.raises(refusals.MetadataTooLarge):
        verify(FORGE.files() | {"metadata/timestamp.json": b" " * (TIMESTAMP_MOST + 5)})
    with pytest.raises(refusals.MetadataTooLarge):
        verify_roots(ROOT, source({"metadata/2.root.json": b" " * (ROOT_MOST + 5)}))


@pytest.mark.parametrize("version", [True, 1.0, "1"])
def test_a_version_that_is_no_whole_number_is_refused(version):
    timestamp = Metadata[Timestamp].from_bytes(FORGE.files()["metadata/timestamp.json"])
    timestamp.signed.version = version
    timestamp.signatures = {}
    files = FORGE.files()
    try:
        files["metadata/timestamp.json"] = sign(timestamp, [FORGE.keys.online])
    except Exception:  # noqa: BLE001  python-tuf will not even write this one
        raw = json.loads(files["metadata/timestamp.json"])
        raw["signed"]["version"] = version
        files["metadata/timestamp.json"] = json.dumps(raw).encode()
    with pytest.raises((refusals.MetadataMalformed, refusals.ThresholdNotMet)):
        verify(files)


# --- targets ----------------------------------------------------------------------------------------------------------

HOSTILE_NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    ".hidden",
    "a/b",
    "a\\b",
    "a\x00b",
    "a\nb",
    "a b",
    "-rf",
    "~root",
    "%2e%2e%2fetc",
    "é",
    "\u202egmi",
    "C:evil",
    "a" * 129,
    "",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_target_name_is_refused(name):
    with pytest.raises(refusals.TargetNameRefused):
        verify(FORGE.files(targets={name: target(name)}))


@settings(max_examples=200, deadline=None)
@given(name=st.text(min_size=1, max_size=40))
def test_a_target_name_is_a_plain_file_name_or_refused(name):
    files = FORGE.files(targets={name: target(name)})
    try:
        (accepted,) = verify(files).targets
    except (refusals.TargetNameRefused, refusals.MetadataMalformed):
        return
    assert accepted == name
    assert all(character.isascii() and (character.isalnum() or character in "._+-") for character in name)
    assert name[0].isalnum()


@pytest.mark.parametrize(
    "hashes",
    [{"sha512": "ab" * 64}, {"sha256": DIGEST, "md5": "ab" * 16}, {"sha256": DIGEST.upper()}, {"sha256": "ab"}],
    ids=["other", "more", "upper case", "short"],
)
def test_a_target_is_named_by_one_sha_256(hashes):
    with pytest.raises(refusals.TargetMalformed, match="SHA-256"):
        verify(FORGE.files(targets={"image.img": target(hashes=hashes)}))


def test_an_empty_target_is_refused():
    with pytest.raises(refusals.TargetMalformed, match="length"):
        verify(FORGE.files(targets={"image.img": target(length=0)}))


@pytest.mark.parametrize("custom", [[], "text", 1])
def test_custom_is_an_object_or_nothing(custom):
    with pytest.raises(refusals.TargetMalformed, match="custom"):
        verify(FORGE.files(targets={"image.img": target(custom=custom)}))


def test_a_device_that_is_no_text_is_refused():
    with pytest.raises(refusals.MetadataMalformed, match="x-muster-device"):
        verify(FORGE.files(fields={"x-muster-device": 1}))


def test_target_bytes_are_judged_by_length_then_hash():
    image = verify().targets["image.img"]
    with pytest.raises(refusals.LengthWrong):
        verify_target_bytes(image, b"x" * 11)
    with pytest.raises(refusals.TargetTampered):
        verify_target_bytes(image, b"x" * 10)


# --- nothing else passes ----------------------------------------------------------------------------------------------

GOOD = FORGE.files() | {"metadata/2.root.json": FORGE.root(2)}
EXPECTED = verify(GOOD)


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(sorted(GOOD)), place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_changes_nothing_or_is_refused(path, place, byte):
    data = bytearray(GOOD[path])
    data[place % len(data)] = byte
    try:
        verified = verify(GOOD | {path: bytes(data)})
    except UpdateRefused:
        return
    assert (verified.targets, verified.floor, verified.expires) == (EXPECTED.targets, EXPECTED.floor, EXPECTED.expires)


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(sorted(GOOD)), cut=st.integers(0, 10**6))
def test_a_truncated_file_is_refused(path, cut):
    with pytest.raises(UpdateRefused):
        verify(GOOD | {path: GOOD[path][: cut % len(GOOD[path])]})


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(sorted(GOOD)), data=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(path, data):
    with pytest.raises(UpdateRefused):
        verify(GOOD | {path: data})


def _with_targets(data: bytes, *, listed: int = 1) -> dict[str, bytes]:
    """A set whose online roles vouch for these bytes as targets: a stolen online key."""
    snapshot = Metadata(Snapshot(version=1, expires=NOW + DAY, meta={"targets.json": file_entry(listed, data)}))
    snapshot_bytes = sign(snapshot, [FORGE.keys.online])
    timestamp = Metadata(Timestamp(version=1, expires=NOW + DAY, snapshot_meta=file_entry(1, snapshot_bytes)))
    return {
        "metadata/timestamp.json": sign(timestamp, [FORGE.keys.online]),
        "metadata/1.snapshot.json": snapshot_bytes,
        f"metadata/{listed}.targets.json": data,
    }
