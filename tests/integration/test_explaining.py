"""Explanations on a real service: what is kept, who shows the same, what is withheld, and what the device learns."""

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from lab.light import LightBoot, LightDevice
from lab.light_fleet import MANUFACTURER, load_fleet, make_fleet
from provisioning import enrollment, explaining, inventory, policies
from provisioning.attestation.explanation_edit import Add, edited
from provisioning.db import evidence
from provisioning.db.columns import table_of
from provisioning.db.policies import policy as policies_table
from provisioning.db.tables import Leaf
from provisioning.factory import StationIdentity, add_station, register
from provisioning.observing import KEPT
from provisioning.refusals import (
    ActivationProofWrong,
    AnswersAnotherChallenge,
    BootLogDoesNotReplay,
    EkManufacturerRefused,
    ImaNotAccepted,
    NotFound,
    PcrsNotAccepted,
    SecondPersonRequired,
)
from provisioning.revoking import revoke_device
from tests.support.boot_logs import booted, image, log_of
from tests.support.cli import Person
from tests.support.listeners import service_with_operators, serving
from tests.support.service import Clock, csr, make_installation
from tests.support.shown import ima_log_of, pcrs_after
from wire.codec import decode, encode
from wire.factory import Registration, RegistrationRequest
from wire.messages import Challenge

SELECTED = (0, 4, 7)
DEVICES = 36
OTHER_IMAGE = booted(images=(b"shim", b"grub 2"))
ONE_MORE = [*booted(), image(b"kexec")]


def value_of(happened) -> str:
    return pcrs_after(happened)[4].hex()


class Ticking(Clock):
    """A clock by which no two things happen in one second."""

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


@dataclass
class Model:
    """Devices of a model that only one test has; all booted as its policy says, and none has enrolled."""

    name: str
    text: str
    devices: list[LightDevice]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with service_with_operators(make_installation(tmp_path_factory.mktemp("explain") / "D")) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("explain") / "fleet", DEVICES)


@pytest.fixture(scope="module")
def unused(fleet):
    return load_fleet(fleet.directory)


@pytest.fixture
def model_of(service, fleet, unused):
    async def make(name, count, **changes) -> Model:
        values = pcrs_after(booted())
        fields = {"model": f'"{name}"', "software_tpm": "true", "enrollments_per_day": "1000", **changes}
        lines = [f"{key} = {value}" for key, value in fields.items()]
        lines += ["[[ek_roots]]", f'certificate = """{fleet.ek_root.read_text()}"""']
        lines += [f'manufacturers = ["{MANUFACTURER}"]']
        if "pcrs" not in changes:
            lines += ["[pcrs.sha256]", *(f'"{pcr}" = ["{values[pcr].hex()}"]' for pcr in SELECTED)]
        text = "\n".join(lines) + "\n"
        await policies.set_policy(service, text, by="admin")
        devices = [unused.pop() for _ in range(count)]
        station = await add_station(service, f"line-{name}", count, csr(), by="admin")
        wanted = tuple(Registration(one.serial, name, one.ek_certificate) for one in devices)
        await register(service, StationIdentity(f"line-{name}", station.serial), RegistrationRequest(wanted))
        return Model(name, text, devices)

    return make


def shows(device, happened):
    """The device after another boot."""
    device.boot = LightBoot(pcrs_after(happened), log_of(happened))
    return device


async def enroll(service, device):
    challenge = await enrollment.begin_enrollment(service, device.request(), source="192.0.2.1")
    answer, named = device.answer(challenge), challenge.enrollment_id
    return await enrollment.complete_enrollment(service, named, answer, arrived=service.clock(), source="192.0.2.1")


async def refusal_of(service, device, happened) -> str:
    with pytest.raises(PcrsNotAccepted) as caught:
        await enroll(service, shows(device, happened))
    return caught.value.instance


async def leaves_of(service, kind):
    leaf = table_of(Leaf)
    rows = await service.store.read(lambda tx: list(tx.execute(select(leaf.c.record).where(leaf.c.kind == kind))))
    return [json.loads(row.record) for row in rows]


async def test_an_image_is_explained_and_offered_once_three_devices_show_it(service, model_of):
    model = await model_of("signed", 3)
    for device in model.devices:
        await enroll(service, shows(device, booted()))
    seen = [
        await explaining.explain(service, await refusal_of(service, device, OTHER_IMAGE)) for device in model.devices
    ]
    first, last = seen[0], seen[-1]
    assert (first["name"], first["check"], first["evidence"]) == ("PcrsNotAccepted", 13, "kept")
    assert first["policy"] == {
        "model": "signed",
        "group": None,
        "version": 1,
        "mode": "enforce",
        "judged_by": 1,
        "accepts_it_now": False,
    }
    assert [(one["pcr"], one["now"]) for one in first["changed"]["pcrs"]] == [(4, value_of(OTHER_IMAGE))]
    assert [(one["pcr"], one["change"]) for one in first["changed"]["events"]] == [(4, "changed")]
    (finding,) = (one for one in first["findings"] if one["what"] == "PCR 4")
    assert (finding["others"], finding["signed"], finding["edit"]) == (0, True, None)
    assert finding["withheld"] == "seen on 1 of at least 3 devices"
    assert first["edit"] is None
    assert value_of(OTHER_IMAGE) not in json.dumps([one.get("cure") for one in first["findings"]])
    (finding,) = (one for one in last["findings"] if one["what"] == "PCR 4")
    assert (finding["others"], finding["withheld"]) == (2, None)
    assert last["edit"]["toml"] == f'"4" = ["{value_of(booted())}", "{value_of(OTHER_IMAGE)}"]'
    assert "another person" in last["second_person"]
    # One person alone does not put it into force; two do, and then it is what the device needs.
    new = edited(model.text, [Add(("pcrs", "sha256", "4"), value_of(OTHER_IMAGE))])
    with pytest.raises(SecondPersonRequired):
        await policies.set_policy(service, new, by="one")
    draft = await policies.propose_policy(service, new, by="one")
    await policies.promote_policy(service, "signed", draft["version"], by="two")
    again = await explaining.explain(service, model.devices[0].serial)
    assert (again["policy"]["accepts_it_now"], again["policy"]["version"]) == (True, 2)
    assert (again["edit"], again["withheld"]) == (None, "the policy in force accepts it")
    assert (await enroll(service, model.devices[0])).certificate


async def test_the_unsigned_is_shown_to_who_asks_for_it_and_that_is_on_record(service, model_of):
    model = await model_of("unsigned", 4, explain_least="1")
    instances = [await refusal_of(service, device, ONE_MORE) for device in model.devices]
    found = await explaining.explain(service, instances[-1])
    (finding,) = found["findings"]
    assert (finding["others"], finding["signed"], finding["edit"]) == (3, False, None)
    assert finding["withheld"].startswith("unsigned: ")
    assert found["changed"] is None
    assert found["withheld"].startswith("PCR 4: unsigned: ")
    assert found["edit"] is None
    async with serving(service) as client:
        path = f"/api/v1/explain/{instances[-1]}?show_unsafe=true"
        assert (await client.code("operator", "GET", path, role="viewer"))[0] == 403
        assert (await client.code("operator", "GET", f"{path}&show_unsafe=true", role="operator"))[0] == 400
        assert (await client.code("operator", "GET", f"{path[:-4]}yes", role="operator"))[0] == 400
        before = await leaves_of(service, "explain-unsafe")
        status, _, body = await client.call("operator", "GET", path, role="operator")
        plain, _, _ = await client.call("operator", "GET", path.partition("?")[0], role="viewer")
    shown = json.loads(body)
    assert (status, plain) == (200, 200)
    assert value_of(ONE_MORE) in shown["edit"]["toml"]
    assert shown["findings"][0]["withheld"].startswith("unsigned: ")
    device = shown["device"]
    assert (await leaves_of(service, "explain-unsafe"))[len(before) :] == [
        {"explained": instances[-1], "device": device, "by": "operator"}
    ]


async def test_the_device_learns_the_class_and_nothing_of_what_was_expected(service, model_of):
    model = await model_of("silent", 1)
    device = shows(model.devices[0], OTHER_IMAGE)
    async with serving(service) as client:
        headers = {"Content-Type": "application/json"}
        status, _, body = await client.call(
            *("device", "POST", "/v1/enrollments"), data=encode(device.request()), headers=headers
        )
        assert status == 201
        challenge = decode(Challenge, body, limit=64 * 1024)
        path = f"/v1/enrollments/{challenge.enrollment_id}/evidence"
        status, _, document = await client.call(
            "device", "POST", path, data=encode(device.answer(challenge)), headers=headers
        )
    assert status == 403
    assert document.keys() == {"type", "title", "status", "code", "instance"}
    assert document["title"] == PcrsNotAccepted.title
    said = json.dumps(document)
    for value in (value_of(booted()), value_of(OTHER_IMAGE), "PCR", "policy in force", "expected"):
        assert value not in said
    explained = await explaining.explain(service, document["instance"])
    assert (explained["name"], explained["source"]) == ("PcrsNotAccepted", "127.0.0.1")


async def test_what_a_mode_let_pass_is_explained_by_device_and_by_attestation(service, model_of):
    model = await model_of("watched", 2, mode='"monitor"')
    device, service = model.devices[0], replace(service, clock=Ticking(service.clock()))
    await enroll(service, shows(device, booted()))
    with pytest.raises(NotFound):
        await explaining.explain(service, device.serial, monitor=True)
    (accepted,) = (await inventory.show_device(service, device.serial))["attestations"]
    with pytest.raises(NotFound):
        await explaining.explain(service, accepted["id"])
    await enroll(service, shows(device, OTHER_IMAGE))
    with pytest.raises(NotFound):
        await explaining.explain(service, device.serial)
    found = await explaining.explain(service, device.serial, monitor=True)
    assert (found["refusal"], found["policy"]["mode"], found["evidence"]) == (None, "monitor", "kept")
    assert found["policy"]["accepts_it_now"] is False
    (finding,) = (one for one in found["findings"] if one["what"] == "PCR 4")
    assert (finding["refused"], finding["signed"], finding["others"]) == (True, True, 0)
    assert [one["pcr"] for one in found["changed"]["pcrs"]] == [4]
    await enroll(service, shows(model.devices[1], OTHER_IMAGE))
    by_id = await explaining.explain(service, found["attestation"])
    recorded = [one for one in await leaves_of(service, "monitored") if one["attestation"] == found["attestation"]]
    assert [one["what"] for one in recorded[0]["findings"]] == [one["what"] for one in found["findings"]]
    assert by_id["attestation"] == found["attestation"]
    assert [one["others"] for one in by_id["findings"] if one["what"] == "PCR 4"] == [1]


async def test_what_is_shown_of_a_device_names_what_its_mode_let_pass_and_no_edit(service, model_of):
    """What an explanation may withhold does not stand beside it."""
    device = (await model_of("shown", 1, mode='"monitor"')).devices[0]
    await enroll(service, shows(device, booted()))
    assert (await inventory.show_device(service, device.serial))["verdict"] == "passed"
    ticking = replace(service, clock=Ticking(service.clock()))
    await enroll(ticking, shows(device, OTHER_IMAGE))
    shown = await inventory.show_device(service, device.serial)
    newest = shown["attestations"][0]["findings"]
    assert [one["refused"] for one in newest] == [True] * len(newest)
    assert newest[0]["what"] == "PCR 4"
    assert all("cure" not in one for one in newest)
    assert shown["verdict"] == f"passed by the policy's mode: {len(newest)} findings would be refused"


async def test_of_one_device_the_newest_refused_evidence_is_kept(service, model_of):
    model = await model_of("often", 1)
    device, service = model.devices[0], replace(service, clock=Ticking(service.clock()))
    instances = [await refusal_of(service, device, [*booted(), image(b"%d" % number)]) for number in range(KEPT + 2)]
    kept = await service.store.read(lambda tx: [evidence.refused_evidence(tx, one) is not None for one in instances])
    assert kept == [False, False] + [True] * KEPT
    old = await explaining.explain(service, instances[0])
    assert old["evidence"].startswith("not kept")
    assert (old["edit"], old["changed"], old["policy"]["accepts_it_now"]) == (None, None, None)
    assert [one["what"] for one in old["findings"]] == ["PCR 4"]
    assert "cure" not in old["findings"][0]
    assert (await explaining.explain(service, device.serial))["refusal"] == instances[-1]


async def test_evidence_of_a_stranger_is_not_kept_and_counts_for_nobody(service, model_of):
    """Who cannot open the credential says nothing of the device, whatever he sends."""

    model = await model_of("victim", 2)
    device = shows(model.devices[0], OTHER_IMAGE)
    challenge = await enrollment.begin_enrollment(service, device.request(), source="192.0.2.1")
    forged = replace(device.answer(challenge), activation_proof=bytes(32))
    with pytest.raises(ActivationProofWrong) as caught:
        await enrollment.complete_enrollment(
            service, challenge.enrollment_id, forged, arrived=service.clock(), source="192.0.2.1"
        )
    found = await explaining.explain(service, caught.value.instance)
    assert found["evidence"].startswith("not kept")
    explained = await explaining.explain(service, await refusal_of(service, model.devices[1], OTHER_IMAGE))
    assert [one["others"] for one in explained["findings"]] == [0]


async def test_a_device_that_left_service_or_shows_something_else_is_not_counted(service, model_of):

    model = await model_of("counted", 4)
    for device in model.devices[1:]:
        await refusal_of(service, device, ONE_MORE)
    instance = await refusal_of(service, model.devices[0], ONE_MORE)
    others = [(await explaining.explain(service, instance))["findings"][0]["others"]]
    await enroll(service, shows(model.devices[1], booted()))
    others.append((await explaining.explain(service, instance))["findings"][0]["others"])
    await revoke_device(service, model.devices[2].serial, "key-compromise", by="admin")
    others.append((await explaining.explain(service, instance))["findings"][0]["others"])
    assert others == [3, 2, 1]


async def test_counting_is_a_range_of_an_index_whatever_the_fleet(service):
    def plan(tx):
        whole = {"render_postcompile": True}
        asked = evidence.counting("m", b"v", "d", 3).compile(dialect=tx.dialect, compile_kwargs=whole)
        values = tuple(asked.params[name] for name in asked.positiontup)
        return [row[3] for row in tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}", values)]

    steps = [step for step in await service.store.read(plan) if step.startswith(("SEARCH", "SCAN"))]
    assert "SEARCH shown USING PRIMARY KEY (model=? AND value=?)" in steps
    assert [step for step in steps if step.startswith("SCAN") and "anon" not in step] == []
    assert await service.store.read(lambda tx: evidence.others_showing(tx, "m", b"v", "d", 3)) == 0


async def test_a_tpm_that_no_root_vouches_for_is_explained_by_the_policy(service, model_of, fleet):
    model = await model_of("unrooted", 1)
    wrong = model.text.replace(MANUFACTURER, "id:494E5443")
    await policies.set_policy(service, wrong, by="admin")
    with pytest.raises(EkManufacturerRefused) as caught:
        await enroll(service, shows(model.devices[0], booted()))
    found = await explaining.explain(service, caught.value.instance, show_unsafe=True, by="admin")
    assert found["check"] == 2
    assert found["edit"]["toml"] == f'manufacturers = ["id:494E5443", "{MANUFACTURER}"]'
    (finding,) = found["findings"]
    assert finding["withheld"].startswith("unsigned: ")
    assert (finding["others"], finding["edit"]["toml"]) == (None, found["edit"]["toml"])
    assert (await explaining.explain(service, caught.value.instance))["edit"] is None


async def test_an_operator_types_it_by_device_and_by_id_and_reads_both_forms(service, model_of, capsys):
    model = await model_of("typed", 1)
    device = model.devices[0]
    await enroll(service, shows(device, booted()))
    instance = await refusal_of(service, device, ONE_MORE)
    async with serving(service) as client:
        host = f"127.0.0.1:{client.ports.operator}"
        places = {"operator": f"https://{host}", "device": "", "public": "", "mqtt": ""}
        service.directory.endpoints.parent.mkdir(exist_ok=True)
        service.directory.endpoints.write_text(json.dumps(places))
        person = Person(service.directory.root, capsys)
        by_id = await asyncio.to_thread(person.types, "explain", instance)
        by_device = await asyncio.to_thread(person.types, "explain", device.serial)
        unsafe = await asyncio.to_thread(person.types, "explain", device.serial, "--show-unsafe")
        found = await asyncio.to_thread(person.asks, "explain", instance)
        await asyncio.to_thread(person.types, "explain", device.serial, "--monitor", status=1)
    assert by_id == by_device
    for part in (
        "PCR 4",
        "event 16 added",
        "changed since it passed",
        "--show-unsafe",
        "seen on   0 other devices",
        "signed    no",
        "withheld",
    ):
        assert part in by_id
    assert value_of(booted()) in by_id
    assert "+" not in [line.strip()[:1] for line in by_id.splitlines()]
    assert f'+"4" = ["{value_of(booted())}", "{value_of(ONE_MORE)}"]' in unsafe
    assert "another person" in unsafe
    assert (found["refusal"], found["check_name"]) == (instance, "what was booted")


FILES = {"/usr/bin/agent": bytes([1]) * 32}


async def run_with(service, device, files):
    """An enrollment of a device whose kernel measured these files, by its IMA log."""
    values = pcrs_after(booted(), files)
    device.boot = LightBoot(values, log_of(booted()))
    challenge = await enrollment.begin_enrollment(service, device.request(), source="192.0.2.1")
    answer = replace(device.answer(challenge), ima_log=ima_log_of(pcrs_after(booted()), files))
    named = challenge.enrollment_id
    return await enrollment.complete_enrollment(service, named, answer, arrived=service.clock(), source="192.0.2.1")


async def test_a_file_that_nobody_listed_is_explained_with_the_line_that_would(service, model_of):
    listed = "\\n".join(f"{digest.hex()}  {path}" for path, digest in FILES.items())
    ima = f'{{ files = "{listed}", boot_aggregate = "accept" }}'
    model = await model_of("files", 1, ima=ima, pcrs='{ sha256 = { "0" = ["' + "00" * 32 + '"], "10" = [] } }')
    device = model.devices[0]
    await run_with(service, device, FILES)
    with pytest.raises(ImaNotAccepted) as caught:
        await run_with(service, device, {**FILES, "/usr/bin/new": bytes(32)})
    found = await explaining.explain(service, caught.value.instance, show_unsafe=True, by="admin")
    assert (found["name"], found["evidence"]) == ("ImaNotAccepted", "kept")
    assert found["changed"]["files"] == [{"path": "/usr/bin/new", "before": None, "now": f"sha256:{'00' * 32}"}]
    (finding,) = found["findings"]
    assert (finding["what"], finding["others"], finding["signed"]) == ("IMA, entry 2", 0, False)
    assert f"sha256:{'00' * 32}  /usr/bin/new" in found["edit"]["diff"]
    assert (await explaining.explain(service, caught.value.instance))["edit"] is None


async def test_of_a_log_that_does_not_replay_nothing_is_believed(service, model_of):
    model = await model_of("mislogged", 1)
    device = model.devices[0]
    device.boot = LightBoot(pcrs_after(ONE_MORE), log_of(booted()))
    with pytest.raises(BootLogDoesNotReplay) as caught:
        await enroll(service, device)
    found = await explaining.explain(service, caught.value.instance, show_unsafe=True, by="admin")
    assert found["evidence"] == f"kept, and of its logs nothing is believed: {BootLogDoesNotReplay.title}"
    assert [one["signed"] for one in found["findings"] if "signed" in one] == [False]
    assert (found["edit"], found["policy"]["accepts_it_now"]) == (None, False)


async def test_evidence_that_was_written_to_explains_nothing(service, model_of):
    model = await model_of("spoiled", 1)
    instance = await refusal_of(service, model.devices[0], ONE_MORE)
    row = evidence.refused
    spoil = update(row).where(row.c.refusal_id == instance).values(ak_public=model.devices[0].ak.public[:-1] + b"\0")
    await service.ledger.write(lambda tx: tx.execute(spoil))
    found = await explaining.explain(service, instance)
    assert found["evidence"].startswith("cannot be verified any more: ")
    assert (found["edit"], found["changed"]) == (None, None)


async def test_a_refusal_of_a_model_that_has_no_policy_any_more_is_told_as_it_was(service, model_of):
    model = await model_of("orphan", 1)
    device = model.devices[0]
    await enroll(service, shows(device, booted()))
    instance = await refusal_of(service, device, ONE_MORE)
    moved = update(policies_table).where(policies_table.c.model == "orphan").values(state="superseded")
    await service.ledger.write(lambda tx: tx.execute(moved))
    found = await explaining.explain(service, instance)
    assert (found["policy"], found["edit"], found["evidence"]) == (None, None, "kept")
    assert [one["pcr"] for one in found["changed"]["pcrs"]] == [4]


async def test_a_replayed_quote_of_the_device_itself_is_not_kept(service, model_of):
    """It is another challenge's: nothing says that the device shows this now."""
    model = await model_of("replayed", 1)
    device = shows(model.devices[0], ONE_MORE)
    old = device.answer(await enrollment.begin_enrollment(service, device.request(), source="192.0.2.1"))
    challenge = await enrollment.begin_enrollment(service, device.request(), source="192.0.2.1")
    mixed = replace(device.answer(challenge), quote=old.quote)
    with pytest.raises(AnswersAnotherChallenge) as caught:
        await enrollment.complete_enrollment(
            service, challenge.enrollment_id, mixed, arrived=service.clock(), source="192.0.2.1"
        )
    assert (await explaining.explain(service, caught.value.instance))["evidence"].startswith("not kept")
