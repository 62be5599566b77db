"""Policies from the proposal to the promotion, and stored evidence held against them, on real parts."""

import asyncio
import json
import re
import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from lab.firmware import make_image
from lab.light import LightBoot
from lab.light_fleet import load_fleet, make_fleet
from ota.firmware import event_log, measure
from provisioning import enrollment, operators, policies, rejudging
from provisioning.app.compose import clock as system_clock
from provisioning.attestation.policy import parse_policy
from provisioning.cli.registration import read_registrations
from provisioning.db import policies as rows
from provisioning.db.attestations import attestation
from provisioning.db.leaves import leaf as leaf_table
from provisioning.factory import StationIdentity, add_station, register
from provisioning.policies import Named
from provisioning.refusals import (
    NobodyToLearnFrom,
    NotFound,
    PcrsNotAccepted,
    PolicyMalformed,
    RequestMalformed,
    SecondPersonRequired,
    StateConflict,
)
from tests.support.service import csr, make_installation, running_service
from wire.factory import RegistrationRequest

FLEET = 4


def boot(version):
    image = make_image(version=version)
    return LightBoot(measure(image).pcrs, event_log(image))


def accepting(text, version):
    """The policy with the values of one more release."""
    for pcr, value in boot(version).pcrs.items():
        text = re.sub(rf'^"{pcr}" = \[(.*)\]$', rf'"{pcr}" = [\1, "{value.hex()}"]', text, flags=re.MULTILINE)
    return text


async def enroll(service, device):
    challenge = await enrollment.begin_enrollment(service, device.request(), source="test")
    evidence = device.answer(challenge)
    when = service.clock()
    return await enrollment.complete_enrollment(service, challenge.enrollment_id, evidence, arrived=when, source="test")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("policies") / "fleet", FLEET)


@pytest.fixture(scope="module")
def text(fleet):
    return fleet.policy.read_text()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("policies") / "D")


class Ticking:
    """A clock that goes on by a second whenever it is asked: of two evidences one is always the newer."""

    def __init__(self):
        self.now = system_clock()

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


CLOCK = Ticking()


@pytest.fixture(scope="module")
def lived(directory, fleet, text):
    """Three devices that passed, of which the third booted another release; a fourth that only was registered."""

    async def live(service):
        await policies.set_policy(service, accepting(text, "2"), by="ada")
        station = await add_station(service, "line-1", 10, csr(), by="ada")
        found = tuple(row.device for file in fleet.registrations for row in read_registrations(file))
        await register(service, StationIdentity("line-1", station.serial), RegistrationRequest(found))
        known = load_fleet(fleet.directory)
        known[2].boot = boot("2")
        for device in known[:3]:
            await enroll(service, device)
        return known

    with running_service(directory, CLOCK) as service:
        return asyncio.run(live(service))


@pytest.fixture
def service(directory, lived):
    with running_service(directory, CLOCK) as running:
        yield running


def said(service, kind):
    """The records of a kind of leaf, oldest first."""
    wanted = select(leaf_table.c.record).where(leaf_table.c.kind == kind).order_by(leaf_table.c.id)
    return [json.loads(row.record) for row in service.store.read_now(lambda tx: tx.execute(wanted).all())]


async def held_against(service, what, *, every=False):
    """All pages of a test."""
    text, wanted = (what, None) if isinstance(what, str) else (None, what)
    behind, judged, found = "", 0, []
    while behind is not None:
        page = await policies.test_policy(service, text, wanted, behind, every=every, by="ada")
        judged, found, behind = judged + page["judged"], found + page["devices"], page["behind"]
        json.dumps(page)
    return judged, found


# --- drafts and the second person ---------------------------------------------------------------------------------


READ_SECONDS = 20


@pytest.mark.parametrize("what", ["set", "propose", "promote", "diff", "show", "list", "test", "learn"])
async def test_the_loop_answers_while_a_policy_is_read_and_compared(service, text, monkeypatch, what):
    """Each reading waits until the loop has answered it: on the loop itself it would wait in vain."""
    loop, readings = asyncio.get_running_loop(), []

    def waiting(read):
        def reading(*given, **more):
            answered = threading.Event()
            loop.call_soon_threadsafe(answered.set)
            readings.append(answered.wait(READ_SECONDS))
            return read(*given, **more)

        return reading

    other = f"{text}\n# {what}\n"
    draft = await policies.propose_policy(service, f"{other}\n# a draft\n", by="ada")
    monkeypatch.setattr(policies, "parse_policy", waiting(policies.parse_policy))
    monkeypatch.setattr(policies.ek_roots, "verify_named", waiting(policies.ek_roots.verify_named))
    monkeypatch.setattr(policies.difflib, "unified_diff", waiting(policies.difflib.unified_diff))
    wanted, named = Named("light"), ("light-00000",)
    ask, times = {
        "set": (lambda: policies.set_policy(service, other, by="ada"), 3),
        "propose": (lambda: policies.propose_policy(service, other, by="ada"), 2),
        "promote": (lambda: policies.promote_policy(service, "light", draft["version"], by="bob"), 2),
        "diff": (lambda: policies.compare(service, wanted, None, other), 2),
        "show": (lambda: policies.show_policy(service, wanted), 1),
        "list": (lambda: policies.list_policies(service), 2),
        "test": (lambda: policies.test_policy(service, other, None, "", every=False, by="ada"), 2),
        "learn": (lambda: policies.learn_policy(service, wanted, named, by="ada"), 1),
    }[what]
    await ask()
    assert len(readings) >= times
    assert all(readings)


async def test_a_draft_counts_for_nothing_until_another_person_promotes_it(service, text):
    before = (await policies.show_policy(service, Named("light")))["version"]
    draft = await policies.propose_policy(service, text + "\n# a draft\n", by="ada")
    assert (draft["state"], draft["version"] > before) == ("draft", True)
    assert (await policies.show_policy(service, Named("light")))["version"] == before
    with pytest.raises(SecondPersonRequired):
        await policies.promote_policy(service, "light", draft["version"], by="ada")
    assert (await policies.show_policy(service, Named("light")))["version"] == before
    promoted = await policies.promote_policy(service, "light", draft["version"], by="bob")
    assert (promoted["state"], promoted["promoted_by"], promoted["before"]) == ("active", "bob", before)
    shown = await policies.show_policy(service, Named("light"))
    assert (shown["version"], shown["by"], shown["promoted_by"]) == (draft["version"], "ada", "bob")
    assert (await policies.show_policy(service, Named("light", version=before)))["state"] == "superseded"
    record = said(service, "policy-promotion")[-1]
    assert (record["version"], record["proposed_by"], record["by"]) == (draft["version"], "ada", "bob")
    assert said(service, "policy-draft")[-1]["text"] == record["text"] == shown["toml"]


async def test_only_a_draft_that_is_newer_than_what_is_in_force_is_promoted(service, text):
    early = await policies.propose_policy(service, text + "\n# early\n", by="ada")
    late = await policies.propose_policy(service, text + "\n# late\n", by="ada")
    await policies.promote_policy(service, "light", late["version"], by="bob")
    with pytest.raises(StateConflict):
        await policies.promote_policy(service, "light", early["version"], by="bob")
    with pytest.raises(StateConflict):
        await policies.promote_policy(service, "light", late["version"], by="bob")
    with pytest.raises(NotFound):
        await policies.promote_policy(service, "light", 1000, by="bob")
    with pytest.raises(NotFound):
        await policies.promote_policy(service, "nothing", 1, by="bob")


async def test_a_text_that_is_none_is_neither_set_nor_proposed_nor_tried(service, text):
    for call in (policies.set_policy, policies.propose_policy):
        with pytest.raises(PolicyMalformed) as caught:
            await call(service, text.replace('boot_log = "required"', 'boot_log = "maybe"'), by="ada")
        assert "line 4: boot_log" in caught.value.actual
    with pytest.raises(PolicyMalformed):
        await policies.test_policy(service, "model = 1", None, "", every=False, by="ada")


async def test_too_many_drafts_wait_and_are_refused(service, text, monkeypatch):
    monkeypatch.setattr(policies, "DRAFTS_MOST", 1)
    model = text.replace('model = "light"', 'model = "many"')
    await policies.propose_policy(service, model, by="ada")
    with pytest.raises(StateConflict):
        await policies.propose_policy(service, model, by="ada")


@pytest.mark.parametrize(("mode", "more"), [("monitor", ""), ("learn", 'learn_from = ["light-00000"]\n')])
async def test_another_mode_is_the_step_of_two_persons(service, mode, more):
    before = await policies.show_policy(service, Named("light"))
    softer = f'mode = "{mode}"\n{more}' + before["toml"]
    with pytest.raises(SecondPersonRequired):
        await policies.set_policy(service, softer, by="ada")
    draft = await policies.propose_policy(service, softer, by="ada")
    promoted = await policies.promote_policy(service, "light", draft["version"], by="bob")
    assert promoted["mode"] == mode
    if mode == "learn":
        with pytest.raises(SecondPersonRequired):
            await policies.set_policy(service, softer.replace('["light-00000"]', '["light-00000", "x"]'), by="ada")
    with pytest.raises(SecondPersonRequired):
        await policies.set_policy(service, before["toml"], by="ada")
    again = await policies.propose_policy(service, before["toml"], by="ada")
    assert (await policies.promote_policy(service, "light", again["version"], by="bob"))["mode"] == "enforce"


async def test_what_devices_were_refused_for_is_accepted_by_two_persons_only(service, lived):
    now = await policies.show_policy(service, Named("light"))
    device = lived[1]
    device.boot = boot("3")
    with pytest.raises(PcrsNotAccepted):
        await enroll(service, device)
    wider = accepting(now["toml"], "3")
    with pytest.raises(SecondPersonRequired) as caught:
        await policies.set_policy(service, wider, by="ada")
    assert [finding.what for finding in caught.value.findings] == ["device light-00001"]
    # Nor together with a PCR that the evidence does not show: then it is not refused either.
    with pytest.raises(SecondPersonRequired):
        await policies.set_policy(service, wider + f'"14" = ["{"0" * 64}"]\n', by="ada")
    # Nor for a group into which the device could be put afterwards.
    with pytest.raises(SecondPersonRequired):
        await policies.set_policy(service, 'group = "pilot"\n' + wider, by="ada")
    # What has nothing to do with it is one person's decision.
    await policies.set_policy(service, now["toml"] + "\n# a remark\n", by="ada")
    draft = await policies.propose_policy(service, wider, by="ada")
    await policies.promote_policy(service, "light", draft["version"], by="bob")
    await enroll(service, device)
    device.boot = boot("1")
    await enroll(service, device)
    # To narrow it takes one, and to take that back, too: that very text was in force before.
    await policies.set_policy(service, now["toml"], by="ada")
    device.boot = boot("3")
    with pytest.raises(PcrsNotAccepted):
        await enroll(service, device)
    with pytest.raises(SecondPersonRequired):
        await policies.set_policy(service, wider + "# not that very text\n", by="ada")
    await policies.set_policy(service, wider, by="ada")
    device.boot = boot("1")
    await enroll(service, device)
    assert (await policies.set_policy(service, now["toml"], by="ada"))["state"] == "active"


async def test_the_only_admin_decides_alone_and_the_log_says_so(service, lived):
    now = await policies.show_policy(service, Named("light"))
    device = lived[1]
    device.boot = boot("5")
    with pytest.raises(PcrsNotAccepted):
        await enroll(service, device)
    other = await operators.add_operator(service, "bob", "admin", by="owner")
    wider = accepting(now["toml"], "5")
    with pytest.raises(SecondPersonRequired):
        await policies.set_policy(service, wider, by="owner")
    await operators.remove_operator(service, other["name"], by="owner")
    await policies.set_policy(service, wider, by="owner")
    assert "one that accepts it" in said(service, "policy")[-1]["alone"]
    await enroll(service, device)
    draft = await policies.propose_policy(service, now["toml"] + "# as before\n", by="owner")
    with pytest.raises(SecondPersonRequired):
        await policies.promote_policy(service, "light", draft["version"], by="owner")
    device.boot = boot("1")
    await enroll(service, device)
    await policies.set_policy(service, now["toml"], by="owner")
    assert "alone" not in said(service, "policy")[-1]


async def test_what_a_mode_let_pass_is_accepted_by_two_persons_only(service, lived):
    now = (await policies.show_policy(service, Named("light")))["toml"]
    monitored = 'mode = "monitor"\n' + now
    draft = await policies.propose_policy(service, monitored, by="ada")
    await policies.promote_policy(service, "light", draft["version"], by="bob")
    device = lived[1]
    device.boot = boot("4")
    await enroll(service, device)
    with pytest.raises(SecondPersonRequired) as caught:
        await policies.set_policy(service, accepting(monitored, "4"), by="ada")
    assert [finding.what for finding in caught.value.findings] == ["device light-00001"]
    assert "attestation" in caught.value.findings[0].actual
    assert (await policies.set_policy(service, monitored + "# a remark\n", by="ada"))["state"] == "active"
    # Who looks for longer than a request may take is told so, and needs a second person.
    rejudging_seconds, rejudging.COMPARED_SECONDS = rejudging.COMPARED_SECONDS, 0.0
    try:
        with pytest.raises(SecondPersonRequired):
            await policies.set_policy(service, monitored + "# another\n", by="ada")
    finally:
        rejudging.COMPARED_SECONDS = rejudging_seconds
    device.boot = boot("1")
    await enroll(service, device)
    again = await policies.propose_policy(service, now, by="ada")
    await policies.promote_policy(service, "light", again["version"], by="bob")


async def test_another_policy_since_is_not_overwritten_unseen(service, text, monkeypatch):
    other = text.replace('"light"', '"raced"')
    await policies.set_policy(service, other, by="ada")
    look = rejudging.accepts_what_was_refused

    async def meanwhile(*given):
        monkeypatch.setattr(rejudging, "accepts_what_was_refused", look)
        await policies.set_policy(service, other + "# bob was here\n", by="bob")
        return await look(*given)

    monkeypatch.setattr(rejudging, "accepts_what_was_refused", meanwhile)
    with pytest.raises(StateConflict):
        await policies.set_policy(service, other + "# ada\n", by="ada")
    assert (await policies.show_policy(service, Named("raced")))["by"] == "bob"


# --- stored evidence ----------------------------------------------------------------------------------------------


def refusing(text, pcr=8):
    """The policy with another value for a PCR: nobody shows it."""
    return re.sub(rf'^"{pcr}" = \[.*\]$', f'"{pcr}" = ["{"5" * 64}"]', text, flags=re.MULTILINE)


async def test_a_policy_is_tried_on_the_newest_evidence_of_each_device(service, text):
    judged, failed = await held_against(service, accepting(text, "2"))
    assert (judged, failed) == (3, [])
    only_one = text  # values of release 1 alone: the third device booted release 2
    judged, failed = await held_against(service, only_one)
    assert judged == 3
    (row,) = failed
    assert (row["serial"], row["verdict"], row["flow"]) == ("light-00002", "fail", "enroll")
    (refusal,) = row["refusals"]
    assert (refusal["name"], refusal["code"]) == ("PcrsNotAccepted", PcrsNotAccepted.code)
    shown = {finding["what"]: finding["actual"] for finding in refusal["findings"]}
    expected = {f"PCR {pcr}": boot("2").pcrs[pcr].hex() for pcr in (8, 9)}
    assert expected.items() <= shown.items()
    assert said(service, "policy-test")[-1]["model"] == "light"


async def test_each_run_over_stored_evidence_is_one_leaf_whatever_its_pages(service, text, monkeypatch):
    monkeypatch.setattr(rejudging, "PAGE_MOST", 1)
    monkeypatch.setattr(rejudging, "BATCH", 1)
    before = len(said(service, "policy-test"))
    judged, failed = await held_against(service, refusing(text))
    assert (judged, sorted(row["serial"] for row in failed)) == (3, ["light-00000", "light-00001", "light-00002"])
    assert len(said(service, "policy-test")) == before + 1
    monkeypatch.setattr(rejudging, "PAGE_SECONDS", 0.0)
    assert (await held_against(service, refusing(text)))[0] == 3
    everything, _ = await held_against(service, refusing(text), every=True)
    assert everything == len(service.store.read_now(lambda tx: tx.execute(select(attestation.c.id)).all()))
    assert everything > 3


async def test_what_the_policy_asks_for_and_no_evidence_shows_is_unjudged(service, text):
    judged, rows_ = await held_against(service, text + f'"14" = ["{"0" * 64}"]\n')
    verdicts = {row["serial"]: (row["verdict"], row["lacks"]) for row in rows_}
    assert verdicts["light-00000"] == ("unjudged", ["PCR 14 in the quote"])
    assert verdicts["light-00002"][0] == "fail"
    assert judged == 3


async def test_the_eks_are_judged_again_too(service, text, tmp_path):
    other = make_fleet(tmp_path / "other", 1).policy.read_text()
    _, rows_ = await held_against(service, other)
    assert [row["refusals"][0]["name"] for row in rows_] == ["EkChainRefused"] * 3
    _, rows_ = await held_against(service, text.replace("software_tpm = true", "software_tpm = false"))
    assert [row["refusals"][0]["name"] for row in rows_] == ["SoftwareTpmRefused"] * 3


async def test_a_policy_that_only_monitors_is_tried_as_if_it_were_enforced(service, text):
    assert len((await held_against(service, 'mode = "monitor"\n' + refusing(text)))[1]) == 3


async def test_evidence_that_was_written_to_fails_by_its_own_signature(service, text):
    row = service.store.read_now(lambda tx: tx.execute(select(attestation).order_by(attestation.c.at)).first())
    message = json.loads(row.evidence)
    message["pcrs"]["sha256"]["8"] = "A" * 43
    worse = row.evidence.replace(b'"quote":{"attest":"', b'"quote":{"attest":"_', 1)
    for tampered in (json.dumps(message).encode(), worse, b"{}"):
        change = update(attestation).where(attestation.c.id == row.id).values(evidence=tampered)
        await service.ledger.write(lambda tx, change=change: tx.execute(change))
        _, found = await held_against(service, text)
        assert {one["refusals"][0]["name"] for one in found if one["device"] == row.device_id} <= {
            "PcrValuesNotQuoted",
            "NotGeneratedByTpm",
            "RequestMalformed",
        }
        assert row.device_id in {one["device"] for one in found}
    restored = update(attestation).where(attestation.c.id == row.id).values(evidence=row.evidence)
    await service.ledger.write(lambda tx: tx.execute(restored))


async def test_a_run_names_its_version_and_takes_the_newest_draft_before_what_is_in_force(service, text):
    draft = await policies.propose_policy(service, refusing(text), by="ada")
    page = await policies.test_policy(service, None, Named("light"), "", every=False, by="ada")
    assert (page["version"], page["state"], len(page["devices"])) == (draft["version"], "draft", 3)
    now = await policies.show_policy(service, Named("light"))
    page = await policies.test_policy(service, None, Named("light", version=now["version"]), "", every=False, by="ada")
    assert (page["version"], page["state"]) == (now["version"], "active")
    with pytest.raises(NotFound):
        await policies.test_policy(service, None, Named("nothing"), "", every=False, by="ada")
    for text_, wanted, behind in ((None, None, ""), (text, Named("light"), ""), (text, None, "a:b:c")):
        with pytest.raises(RequestMalformed):
            await policies.test_policy(service, text_, wanted, behind, every=False, by="ada")


# --- groups -------------------------------------------------------------------------------------------------------


async def test_a_groups_policy_counts_before_its_models(service, text):
    with pytest.raises(RequestMalformed):
        await policies.set_group(service, "light-00000", "Not A Group", by="ada")
    with pytest.raises(NotFound):
        await policies.set_group(service, "nobody", "pilot", by="ada")
    set_ = await policies.set_policy(service, 'group = "pilot"\n' + text, by="ada")
    model = service.store.read_now(lambda tx: rows.newest_policy(tx, "light", None))
    assert service.store.read_now(lambda tx: rows.newest_policy(tx, "light", "other")).id == model.id
    assert service.store.read_now(lambda tx: rows.newest_policy(tx, "light", "pilot")).version == set_["version"]
    moved = await policies.set_group(service, "light-00000", "pilot", by="ada")
    assert (moved["before"], moved["policy_version"]) == (None, set_["version"])
    # Each of the two policies is tried on its own devices.
    assert (await held_against(service, 'group = "pilot"\n' + text))[0] == 1
    assert (await held_against(service, text))[0] == 2
    listed = await policies.list_policies(service)
    assert {(one["group"], one["state"]) for one in listed} >= {(None, "active"), ("pilot", "active")}
    assert (await policies.set_group(service, "light-00000", None, by="ada"))["policy_version"] == model.version
    assert said(service, "device-group")[-1] == {"device": "light-00000", "group": None, "by": "ada"}
    assert (await held_against(service, text))[0] == 3


# --- learning and comparing ---------------------------------------------------------------------------------------


async def test_what_devices_showed_becomes_a_policy_that_accepts_them_and_says_how_many(service, text):
    empty = re.sub(r'^("\d+") = \[.*\]$', r"\1 = []", text, flags=re.MULTILINE)
    empty = 'mode = "learn"\nlearn_from = ["light-00000", "light-00002", "light-00003"]\n' + empty
    draft = await policies.propose_policy(service, empty, by="ada")
    answer = await policies.learn_policy(service, Named("light", version=draft["version"]), (), by="ada")
    assert (answer["learned_from"], answer["without_evidence"]) == (["light-00000", "light-00002"], ["light-00003"])
    learned = answer["toml"]
    policy = parse_policy(learned)
    assert (policy.mode, policy.learn_from) == ("monitor", ())
    assert policy.pcrs["sha256"][8] == {boot(version).pcrs[8] for version in ("1", "2")}
    assert re.search(rf'^  "{boot("2").pcrs[8].hex()}",  # seen on 1 of 2 devices$', learned, re.MULTILINE)
    assert re.search(rf'^  "{boot("1").pcrs[0].hex()}",  # seen on 2 of 2 devices$', learned, re.MULTILINE)
    assert policy.ek_roots == parse_policy(text).ek_roots
    assert (await held_against(service, learned)) == (3, [])
    kept = await policies.propose_policy(service, learned, by="ada")
    assert kept["state"] == "draft"
    assert said(service, "policy-learning")[-1]["learned_from"] == ["light-00000", "light-00002"]


@pytest.mark.parametrize(
    ("devices_", "refusal"),
    [((), NobodyToLearnFrom), (("nobody",), NotFound), (("light-00003",), PolicyMalformed)],
)
async def test_nothing_is_learned_from_nobody(service, text, devices_, refusal):
    await policies.set_policy(service, text.replace('"light"', '"empty"'), by="ada")
    model = "empty" if devices_ == () else "light"
    with pytest.raises(refusal):
        await policies.learn_policy(service, Named(model), devices_, by="ada")


async def test_lines_that_a_text_changes_are_told(service, text):
    now = await policies.show_policy(service, Named("light"))
    told = await policies.compare(service, Named("light"), None, refusing(now["toml"]))
    assert told["changed"]
    assert f'+"8" = ["{"5" * 64}"]' in told["lines"]
    assert any(line.startswith('-"8" = [') for line in told["lines"])
    assert not (await policies.compare(service, Named("light"), now["version"], None))["changed"]
    with pytest.raises(NotFound):
        await policies.compare(service, Named("empty"), None, None)
    draft = await policies.propose_policy(service, now["toml"] + "# more\n", by="ada")
    told = await policies.compare(service, Named("light"), None, None)
    assert (told["to"], [line for line in told["lines"] if line.startswith("+")][-1]) == (draft["version"], "+# more")
    with pytest.raises(NotFound):
        await policies.compare(service, Named("light"), 1000, None)
    with pytest.raises(PolicyMalformed):
        await policies.compare(service, Named("light"), None, "x = 1")
