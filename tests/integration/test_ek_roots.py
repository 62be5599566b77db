"""The store as the service keeps it: what an import writes, what it says, what a removal leaves."""

import json

import pytest
from sqlalchemy import select

from provisioning import ek_roots, policies
from provisioning.db import ek_roots as rows
from provisioning.db.columns import table_of
from provisioning.db.tables import Leaf
from provisioning.ek_authorities import EkAuthorities
from provisioning.ek_roots import Candidate, EkRootImport
from provisioning.refusals import NotFound, PolicyMalformed, RequestMalformed, StateConflict
from tests.support.ek_certificates import root
from tests.support.service import make_installation, running_service

TOP = root("Acme Top")
MIDDLE = TOP.intermediate("Acme Middle", path_length=1)
LOW = MIDDLE.intermediate("Acme Low")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("store") / "data")


@pytest.fixture
async def service(directory):
    with running_service(directory) as running:
        yield running
        for one in await ek_roots.list_roots(running):
            await ek_roots.remove_root(running, str(one["fingerprint"]), by="test")


def wanted(*authorities, dry_run=False, manufacturer="Acme", folder="acme"):
    made = tuple(Candidate(one.der, f"{folder}/{one.title}.cer", manufacturer) for one in authorities)
    return EkRootImport(made, dry_run)


async def imported(service, *authorities, **given):
    return (await ek_roots.import_roots(service, wanted(*authorities, **given), by="owner"))["used"]


async def kept(service):
    return {one["subject"].removeprefix("Common Name: "): one["role"] for one in await ek_roots.list_roots(service)}


def leaves(service):
    leaf = table_of(Leaf)
    found = service.store.read_now(lambda tx: list(tx.execute(select(leaf).where(leaf.c.kind == "ek-roots"))))
    return [json.loads(one.record) for one in found]


def policy(line='store = "Acme"'):
    return f"""model = "gateway"
[[ek_roots]]
{line}
manufacturers = ["id:494E5443"]
[pcrs.sha256]
"0" = ["{"00" * 32}"]
"""


async def test_an_import_is_written_once_with_where_it_came_from_and_by_whom(service):
    before = len(leaves(service))
    (one,) = await imported(service, TOP)
    assert (one["new"], one["source"], one["manufacturer"], one["also"]) == (True, "acme/Acme Top.cer", "Acme", [])
    shown = await ek_roots.show_root(service, one["fingerprint"].upper())
    assert (shown["by"], shown["source"], shown["der"]) == ("owner", "acme/Acme Top.cer", TOP.der)
    assert leaves(service)[before:] == [{"by": "owner", "imported": {one["fingerprint"]: "self-signed"}}]
    (again,) = await imported(service, TOP, manufacturer="Another", folder="elsewhere")
    assert (again["new"], again["manufacturer"]) == (False, "Acme")
    assert len(leaves(service)) == before + 1


async def test_what_comes_twice_is_used_once_and_every_place_is_named(service):
    both = EkRootImport(tuple(Candidate(TOP.der, source, "Acme") for source in ("a", "b", "b")))
    (one,) = (await ek_roots.import_roots(service, both, by="owner"))["used"]
    assert (one["source"], one["also"]) == ("a", ["b"])


async def test_all_that_cannot_be_used_is_named_and_the_rest_is_taken(service):
    bad = (Candidate(b"\x30\x00", "broken"), Candidate(TOP.ek(), "leaf"), Candidate(TOP.der[:-1] + b"x", "damaged"))
    answer = await ek_roots.import_roots(service, EkRootImport((*bad, Candidate(TOP.der, "good"))), by="owner")
    assert set(answer) == {"used", "refused"}
    assert [one["source"] for one in answer["used"]] == ["good"]
    assert [set(one) for one in answer["refused"]] == [{"source", "reason"}] * 3
    reasons = {one["source"]: one["reason"] for one in answer["refused"]}
    assert "cannot be parsed" in reasons["broken"]
    assert "an end entity" in reasons["leaf"]
    assert "does not verify" in reasons["damaged"]
    with pytest.raises(RequestMalformed):
        await ek_roots.import_roots(service, EkRootImport(()), by="owner")


async def test_a_dry_run_says_the_same_and_changes_nothing(service):
    told = await imported(service, MIDDLE, LOW, dry_run=True)
    assert await kept(service) == {}
    assert [one["role"] for one in told] == ["topmost", "intermediate"]
    assert await imported(service, MIDDLE, LOW) == told


async def test_a_root_that_comes_later_takes_the_place_and_its_removal_gives_it_to_nobody(service):
    await imported(service, LOW)
    assert await kept(service) == {"Acme Low": "topmost"}
    await imported(service, MIDDLE)
    assert await kept(service) == {"Acme Low": "intermediate", "Acme Middle": "topmost"}
    (top,) = await imported(service, TOP)
    assert await kept(service) == {"Acme Low": "intermediate", "Acme Middle": "intermediate", "Acme Top": "self-signed"}
    await ek_roots.remove_root(service, top["fingerprint"], by="owner")
    await imported(service, root("Acme Other"))
    assert await kept(service) == {
        "Acme Low": "intermediate",
        "Acme Middle": "intermediate",
        "Acme Other": "self-signed",
    }
    assert len(service.ek_roots.store.roots_of("Acme")) == 1


async def test_what_was_removed_is_gone_until_it_is_imported_again(service):
    (one,) = await imported(service, TOP)
    removed = await ek_roots.remove_root(service, one["fingerprint"], by="owner")
    assert removed == {"removed": one["fingerprint"], "manufacturer": "Acme", "policies": []}
    for again in (ek_roots.show_root(service, one["fingerprint"]), ek_roots.remove_root(service, "00", by="owner")):
        with pytest.raises(NotFound):
            await again
    with pytest.raises(NotFound, match="no such"):
        await ek_roots.list_roots(service, "Acme")
    (back,) = await imported(service, TOP, folder="second")
    assert back["new"]
    assert (await ek_roots.show_root(service, one["fingerprint"]))["source"] == "second/Acme Top.cer"


async def test_a_policy_names_only_what_the_store_has_and_is_named_by_what_it_trusts(service):
    with pytest.raises(PolicyMalformed) as refused:
        await policies.set_policy(service, policy(), by="owner")
    assert refused.value.actual == "line 3: ek_roots[0].store names store:Acme, of which the store has no root"
    used = await imported(service, TOP, MIDDLE)
    await policies.set_policy(service, policy(), by="owner")
    shown = [(await ek_roots.show_root(service, one["fingerprint"]))["policies"] for one in used]
    assert shown == [["gateway"], []]
    fingerprint = used[1]["fingerprint"]
    await policies.set_policy(service, policy(f'fingerprint = "{fingerprint}"'), by="owner")
    assert (await ek_roots.remove_root(service, fingerprint, by="owner"))["policies"] == ["gateway"]
    with pytest.raises(PolicyMalformed):
        await policies.set_policy(service, policy(f'fingerprint = "{fingerprint}"'), by="owner")


async def test_two_imports_at_once_both_count(service, monkeypatch):
    """The second finds another store than the one it judged against, and judges again."""
    true_roles, came_between = ek_roots.roles, []

    def slow(added, known):
        if not came_between:
            came_between.append(True)
            number = service.store.read_now(rows.version) + 1
            judged = ek_roots.judge(MIDDLE.der, service.clock())
            one = ek_roots.stored(judged, "Acme", ek_roots.Role.TOPMOST)
            service.ledger.write_now(
                lambda tx: rows.put(
                    tx,
                    [
                        {
                            **{name: getattr(one, name) for name in ("fingerprint", "der", "subject", "subject_key")},
                            "manufacturer": "Acme",
                            "role": "topmost",
                            "source": "x",
                            "imported_at": 0,
                            "imported_by": "another",
                        }
                    ],
                    number,
                )
            )
        return true_roles(added, known)

    monkeypatch.setattr(ek_roots, "roles", slow)
    await imported(service, TOP)
    assert await kept(service) == {"Acme Middle": "intermediate", "Acme Top": "self-signed"}


async def test_an_import_gives_up_in_the_end(service, monkeypatch):
    async def never(*_, **__):
        return False

    monkeypatch.setattr(ek_roots, "_write", never)
    with pytest.raises(StateConflict):
        await imported(service, TOP)


async def test_another_worker_sees_the_change(service):
    other = EkAuthorities()
    await other.refresh(service.store)
    assert not await other.refresh(service.store)
    await imported(service, TOP)
    assert await other.refresh(service.store)
    assert [one.der for one in other.store.roots_of("Acme")] == [TOP.der]
