"""A policy from the proposal to the promotion, as two people type it, on evidence of devices that enrolled."""

import asyncio
import json
import re
import shutil

import pytest

from lab.light_fleet import load_fleet, make_fleet
from provisioning import enrollment, operators, policies
from provisioning.attestation.policy import parse_policy
from provisioning.cli.registration import read_registrations
from provisioning.factory import StationIdentity, add_station, register
from tests.support.cli import Person, initialized, serving
from tests.support.service import csr, running_service
from wire.factory import RegistrationRequest


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("policy-cli")


@pytest.fixture(scope="module")
def fleet(root):
    return make_fleet(root / "fleet", 2)


async def live(service, fleet):
    tokens = {}
    for name, role in (("ada", "admin"), ("eve", "viewer")):
        tokens[name] = (await operators.add_operator(service, name, role, by="owner"))["token"]
    await policies.set_policy(service, fleet.policy.read_text(), by="owner")
    station = await add_station(service, "line-1", 10, csr(), by="owner")
    devices = tuple(row.device for file in fleet.registrations for row in read_registrations(file))
    await register(service, StationIdentity("line-1", station.serial), RegistrationRequest(devices))
    for device in load_fleet(fleet.directory):
        challenge = await enrollment.begin_enrollment(service, device.request(), source="test")
        answer, when = device.answer(challenge), service.clock()
        await enrollment.complete_enrollment(service, challenge.enrollment_id, answer, arrived=when, source="test")
    return tokens


@pytest.fixture(scope="module")
def places(root, fleet):
    """The data directories of three people, of whom the first runs the service."""
    directory = initialized(root / "D")
    with running_service(directory) as service:
        tokens = asyncio.run(live(service, fleet))
    with serving(directory, root / "serve.log"):
        yield {"owner": directory.root} | {name: place_of(directory, root, name, tokens[name]) for name in tokens}


@pytest.fixture
def owner(places, capsys):
    return Person(places["owner"], capsys)


@pytest.fixture
def ada(places, capsys):
    return Person(places["ada"], capsys)


@pytest.fixture
def eve(places, capsys):
    return Person(places["eve"], capsys)


@pytest.fixture
def text(fleet):
    return fleet.policy.read_text()


def place_of(served, root, name, token):
    """What another operator has on a machine of their own."""
    for part in ("muster.toml", "ca", "run/endpoints.json"):
        source, there = served.root / part, root / name / part
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, there) if source.is_dir() else shutil.copy(source, there)
    secret = root / name / "secrets" / "operator.token"
    secret.parent.mkdir(mode=0o700)
    secret.touch(mode=0o600)
    secret.write_text(token)
    return root / name


def test_a_policy_is_learned_from_named_devices_and_tried_before_it_counts(owner, eve, text, tmp_path):
    eve.types("policy", "learn", "light", "--device", "light-00000", status=1)
    assert "(MUSTER-ACC-002)" in eve.err
    learned = tmp_path / "learned.toml"
    learned.write_text(owner.types("policy", "learn", "light", "--device", "light-00000", "--device", "light-00001"))
    assert "seen on 2 of 2 devices" in learned.read_text()
    assert parse_policy(learned.read_text()).pcrs == parse_policy(text).pcrs
    owner.types("policy", "learn", "light", status=1)
    assert owner.err == (
        "muster: No devices to learn from are named, or too many (MUSTER-POL-003): expected 1 to 200 devices; actual"
        " none: version 1 of light has no learn_from; Name them: muster policy learn MODEL --device NAME;"
        ' or in the policy: learn_from = ["NAME"].\n'
    )

    owner.types("policy", "test", learned)
    assert "model light: 2 judged, 2 pass, 0 fail, 0 unjudged" in owner.err
    stricter = tmp_path / "stricter.toml"
    stricter.write_text(re.sub(r'^"8" = .*$', f'"8" = ["{"5" * 64}"]', text, flags=re.MULTILINE))
    told = owner.types("policy", "test", stricter, status=1)
    assert "2 judged, 0 pass, 2 fail" in owner.err
    assert re.search(r"^light-00000 .* fail +PCR 8 +5{64} +[0-9a-f]{64}$", told, re.MULTILINE)
    result = json.loads(owner.types("policy", "test", stricter, "-o", "json", status=1))
    assert (result["judged"], result["fail"], result["devices"][0]["refusals"][0]["name"]) == (2, 2, "PcrsNotAccepted")


@pytest.mark.parametrize("command", ["test", "propose", "set"])
def test_a_mistake_is_told_with_its_file_and_line(owner, text, tmp_path, command):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace('boot_log = "required"', 'boot_log = "maybe"'))
    owner.types("policy", command, wrong, status=1)
    assert owner.err.startswith(f"muster: {wrong}: The policy cannot be used (MUSTER-POL-001)")
    assert "line 4: boot_log" in owner.err


def test_a_draft_is_promoted_by_another_person(owner, ada, eve, text, tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text(text + "# a remark\n")
    draft = owner.asks("policy", "propose", file)
    assert (draft["model"], draft["state"]) == ("light", "draft")
    assert ("light", "draft") in {(one["model"], one["state"]) for one in ada.asks("policy", "list")["policies"]}
    lines = ada.types("policy", "diff", "light").splitlines()
    assert (lines[1], lines[-1]) == (f"+++ version {draft['version']}", "+# a remark")
    assert ada.types("policy", "diff", "light", "--to", file).splitlines()[2:] == lines[2:]
    assert ada.types("policy", "diff", "light", "--to", 1) == ""
    ada.types("policy", "test", "light", "--version", draft["version"])
    owner.types("policy", "promote", "light", draft["version"], status=1)
    assert "(MUSTER-POL-002)" in owner.err
    eve.types("policy", "promote", "light", draft["version"], status=1)
    assert "(MUSTER-ACC-002)" in eve.err
    promoted = ada.asks("policy", "promote", "light", draft["version"])
    assert (promoted["state"], promoted["by"], promoted["promoted_by"]) == ("active", "owner", "ada")
    assert ada.asks("policy", "show", "light")["version"] == draft["version"]
    assert ada.asks("policy", "show", "light", "--version", 1)["state"] == "superseded"
    assert ada.types("policy", "show", "light", "--version", 1) == text  # so that it can be put back as it was
    assert "version 1, superseded" in ada.err


def test_a_group_has_a_policy_of_its_own(owner, eve, text, tmp_path):
    pilot = tmp_path / "pilot.toml"
    pilot.write_text('group = "pilot"\n' + text)
    version = owner.asks("policy", "set", pilot)["version"]
    moved = owner.asks("devices", "group", "light-00000", "pilot")
    assert (moved["group"], moved["policy_version"]) == ("pilot", version)
    assert owner.asks("devices", "show", "light-00000")["group"] == "pilot"
    owner.types("policy", "test", "light", "--group", "pilot")
    assert f"group pilot, version {version}: 1 judged, 1 pass" in owner.err
    assert owner.types("policy", "show", "light", "--group", "pilot") == pilot.read_text()
    assert "group pilot" in owner.err
    eve.types("devices", "group", "light-00000", status=1)
    owner.types("devices", "group", "light-00000")
    owner.types("policy", "test", pilot, "--group", "pilot", status=1)
    assert "leave --group and --version out" in owner.err
