"""Stored logs in a real database, whatever comes and goes: nothing that is used is lost, nothing else stays."""

import hashlib
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select
from sqlmodel import SQLModel

from provisioning.config import Retention
from provisioning.db import enrollments, logs, retention
from provisioning.db.store import open_sqlite
from provisioning.keeping import Pass
from provisioning.logs import Logs, keep_logs

TABLES = (logs.log, logs.body, logs.content_row, logs.use, logs.upload, logs.attestation, retention.removed)
BOOTS = [bytes([65 + number]) * 30 for number in range(3)]
"""Boot logs that devices have in common."""
LISTS = [b"%d" % boot + bytes(range(97, 97 + length)) for boot in range(4) for length in (3, 9, 20)]
"""IMA logs: of each boot three, and the shorter ones begin the longer ones."""
DEVICES = ("a", "b", "c")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = open_sqlite(tmp_path_factory.mktemp("logs") / "logs.db", read_only=False)
    SQLModel.metadata.create_all(made)
    yield made
    made.dispose()


@dataclass
class Fleet:
    """Devices as the service keeps them, with a clock that goes on by one second with each act."""

    tx: object
    rules: Retention
    at: int = 0
    passes: dict[str, list[Pass]] = field(default_factory=dict)

    def attests(self, device, boot, ima):
        self.at += 1
        named = keep_logs(self.tx, self.rules, device, Logs(boot, ima), self.at)
        row = {"id": f"{self.at}", "flow": "attest", "device_id": device, "at": self.at, "policy_id": 1}
        row |= {"ak_public": b"", "evidence": b"e", "findings": "[]"}
        enrollments.add_attestation(self.tx, {**row, "boot_log_sha256": named[0], "ima_log_sha256": named[1]})
        logs_of = tuple(one for one in named if one is not None)
        self.passes.setdefault(device, []).append(Pass(row["id"], self.at, False, logs_of))

    def uploads(self, device, content):
        self.at += 1
        name = hashlib.sha256(content).hexdigest()
        logs.put_upload(self.tx, sha256=name, device_id=device, content=content, now=self.at)

    def forgets(self, device, number):
        """Any of its passes but the newest, as age and protection may leave holes."""
        mine = self.passes.get(device, [])
        if len(mine) > 1:
            gone = mine.pop(number % (len(mine) - 1))
            naming = logs.naming(self.tx, device, sorted(set(gone.logs)))
            retention.forget_attestation(self.tx, device, gone, naming, self.at)

    def ages(self):
        while logs.forget_uploads(self.tx, self.at + 1, 2, 10, self.at):
            pass

    def verify(self):
        tx = self.tx
        rows = {row.sha256: row for row in tx.execute(select(logs.log))}
        bodies = {row.id: row for row in tx.execute(select(logs.body))}
        uses = list(tx.execute(select(logs.use)))
        waiting = {row.sha256 for row in tx.execute(select(logs.upload))}
        named = {device: {one for p in mine for one in p.logs} for device, mine in self.passes.items()}
        assert set(rows) == set().union(waiting, *named.values())
        assert set(bodies) == {row.body for row in rows.values()}
        for sha256, row in rows.items():
            content, gone = logs.content_of(tx, sha256), bodies[row.body].removed_at is not None
            assert (content is None) == gone
            assert gone or hashlib.sha256(content).hexdigest() == sha256
        live = {row.content for row in bodies.values() if row.removed_at is None}
        assert {row.sha256 for row in tx.execute(select(logs.content_row))} == live
        used = {(use.device_id, use.body) for use in uses}
        assert {(device, rows[one].body) for device, names in named.items() for one in names} <= used
        kept = {use.body for use in uses if use.removed_at is None} | {rows[one].body for one in waiting}
        assert all((row.removed_at is None) == (row.id in kept) for row in bodies.values())
        for mine in self.passes.values():
            assert all(logs.content_of(tx, one) is not None for one in mine[-1].logs)

    def bytes_of(self, device):
        return sum(row.size for row in logs.used_by(self.tx, device))


ACTS = st.one_of(
    st.tuples(
        st.just("attests"),
        st.sampled_from(DEVICES),
        st.none() | st.sampled_from(BOOTS),
        st.none() | st.sampled_from(LISTS),
    ),
    st.tuples(st.just("forgets"), st.sampled_from(DEVICES), st.integers(0, 9)),
    st.tuples(st.just("uploads"), st.sampled_from(DEVICES), st.sampled_from([*BOOTS, *LISTS])),
    st.tuples(st.just("ages")),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(acts=st.lists(ACTS, max_size=40), most=st.integers(1, 4), bytes_most=st.integers(1, 120))
def test_what_is_named_is_there_or_said_to_be_gone_and_nothing_else_stays(engine, acts, most, bytes_most):
    rules = Retention(logs_per_device=most, log_bytes_per_device=bytes_most)
    with engine.begin() as tx:
        for table in TABLES:
            tx.execute(delete(table))
        fleet = Fleet(tx, rules)
        for name, *given_to in acts:
            getattr(fleet, name)(*given_to)
            fleet.verify()
            for device in fleet.passes:  # beyond the bound is at most what its newest two passes name
                within = fleet.bytes_of(device) <= bytes_most and len(logs.used_by(tx, device)) <= most
                assert within or len(logs.used_by(tx, device)) <= 4


def test_a_list_that_grows_is_stored_once_however_often_it_is_sent(engine):
    with engine.begin() as tx:
        for table in TABLES:
            tx.execute(delete(table))
        fleet = Fleet(tx, Retention())
        for length in range(1, 200):
            fleet.attests("a", BOOTS[0], bytes(range(1, 201))[:length])
        fleet.verify()
        assert tx.execute(select(func.sum(func.length(logs.content_row.c.content)))).scalar_one() == 199 + 30
        while len(fleet.passes["a"]) > 1:
            fleet.forgets("a", 0)
        fleet.verify()
        assert tx.execute(select(func.count()).select_from(logs.log)).scalar_one() == 2


def test_what_one_device_loses_another_keeps_and_no_device_pays_for_another(engine):
    with engine.begin() as tx:
        for table in TABLES:
            tx.execute(delete(table))
        fleet = Fleet(tx, Retention(logs_per_device=3))
        fleet.attests("a", BOOTS[0], LISTS[0])
        fleet.attests("b", BOOTS[0], LISTS[0])
        fleet.attests("a", BOOTS[0], LISTS[2])  # goes on: but b would pay for it
        assert fleet.bytes_of("b") == len(BOOTS[0]) + len(LISTS[0])
        for ima in (LISTS[3], LISTS[6], LISTS[9]):
            fleet.attests("a", BOOTS[1], ima)
        fleet.verify()
        names = [hashlib.sha256(one).hexdigest() for one in (BOOTS[0], LISTS[0], LISTS[2])]
        assert [logs.content_of(tx, one) for one in names] == [BOOTS[0], LISTS[0], None]
        assert [logs.is_removed(tx, one) for one in names] == [False, False, True]
        fleet.attests("a", BOOTS[1], LISTS[2])  # it came again
        assert logs.content_of(tx, names[2]) == LISTS[2]
        fleet.verify()
