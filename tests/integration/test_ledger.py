"""The threads behind database and HSM: groups, and one bad piece of work among good ones."""

import asyncio
import threading

import pytest
from sqlalchemy import insert, select

from provisioning.db.columns import table_of
from provisioning.db.lane import Lane, LaneSlow
from provisioning.db.ledger import Ledger
from provisioning.db.store import open_sqlite, watched
from provisioning.db.tables import Lease
from provisioning.refusals import NotFound, StorageUnavailable

LEASES = table_of(Lease)


class Counted:
    """An engine that counts its transactions."""

    def __init__(self, engine):
        self.engine, self.begun = engine, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def begin(self):
        self.begun += 1
        return self.engine.begin()


@pytest.fixture
def engine(tmp_path):
    made = open_sqlite(tmp_path / "a.db", read_only=False)
    LEASES.create(made)
    return Counted(made)


def put(name):
    return lambda tx: tx.execute(insert(LEASES).values(name=name, holder="h", expires_at=1)).rowcount


def refused(_):
    raise NotFound(expected="a", actual="b")


async def held(ledger):
    """A write that keeps the ledger busy until it is let go, so that what follows makes one group."""
    loop, begun, gate = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def hold(_):
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

    task = asyncio.create_task(ledger.write(hold))
    await begun.wait()
    return task, gate


async def grouped(ledger, *writes):
    first, gate = await held(ledger)
    tasks = [asyncio.create_task(ledger.write(write)) for write in writes]
    await asyncio.sleep(0)
    gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def names(ledger):
    return await ledger.write(lambda tx: [row.name for row in tx.execute(select(LEASES).order_by(LEASES.c.name))])


async def test_one_bad_write_fails_alone_and_the_others_stay_together(engine):
    ledger = Ledger(engine)
    good = [put(f"{number:02}") for number in range(20)]
    answers = await grouped(ledger, *good[:10], refused, *good[10:])
    begun = engine.begun
    assert [type(each) for each in answers] == [int] * 10 + [NotFound] + [int] * 10
    assert await names(ledger) == [f"{number:02}" for number in range(20)]
    assert begun == 1 + 1 + 3  # what held it, the group that failed, and: before it, itself, behind it
    ledger.close()


async def test_a_write_that_repeats_another_of_its_group_is_the_one_that_fails(engine):
    ledger = Ledger(engine)
    answers = await grouped(ledger, put("a"), put("a"), put("b"))
    assert [isinstance(each, Exception) for each in answers] == [False, True, False]
    assert await names(ledger) == ["a", "b"]
    ledger.close()


async def test_a_database_that_somebody_else_holds_answers_a_whole_group_at_once(engine):
    ledger = Ledger(engine)
    begin = engine.engine.begin
    first, gate = await held(ledger)
    tasks = [asyncio.create_task(ledger.write(put(f"{number}"))) for number in range(5)]
    await asyncio.sleep(0)
    before = engine.begun

    def locked():
        engine.begun += 1
        raise StorageUnavailable

    engine.begin = locked
    gate.set()
    await first
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in answers] == [StorageUnavailable] * 5
    assert engine.begun == before + 1
    engine.begin = begin
    assert await names(ledger) == []
    ledger.close()


def _broken(_):
    raise ZeroDivisionError


async def test_a_lane_whose_work_breaks_it_answers_and_goes_on():
    lane = Lane("broken", _broken, deadline_seconds=20)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(20):
                await lane.do(1)
    lane.close()


async def test_what_is_asked_for_in_turns_that_follow_each_other_goes_together(monkeypatch):
    monkeypatch.setattr("provisioning.db.lane.GATHER_SECONDS", 20)
    groups = []
    lane = Lane("gathers", lambda jobs: groups.append([job.work for job in jobs]), deadline_seconds=20)
    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(lane.do(number)))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert groups == [list(range(6))]
    lane.close()


async def test_a_loop_that_brings_more_all_the_time_keeps_nobody_waiting(monkeypatch):
    monkeypatch.setattr("provisioning.db.lane.GATHER_SECONDS", 0)
    groups = []
    lane = Lane("gathers", lambda jobs: groups.append([job.work for job in jobs]), deadline_seconds=20)
    tasks = []
    while not groups:
        tasks.append(asyncio.create_task(lane.do(len(tasks))))
        await asyncio.sleep(0)
    assert len(groups[0]) < len(tasks)
    await asyncio.gather(*tasks)
    lane.close()


async def test_work_that_raises_what_no_future_takes_leaves_nobody_waiting(engine):
    ledger = Ledger(engine)
    async with asyncio.timeout(20):
        answers = await grouped(ledger, lambda _: next(iter(())), put("a"))
    assert [type(each) for each in answers] == [RuntimeError, int]
    ledger.close()


async def test_who_waits_too_long_is_told_and_the_others_are_served():
    gate = threading.Event()
    lane = Lane("slow", lambda jobs: gate.wait(20) if jobs[0].work == "slow" else None, deadline_seconds=0.05)
    waits = asyncio.create_task(lane.do("slow"))
    await asyncio.sleep(0)
    behind = asyncio.create_task(lane.do("behind"))
    for task in (waits, behind):
        with pytest.raises(LaneSlow):
            await task
    gate.set()
    for _ in range(3):
        assert await lane.do("on time") is None
    lane.close()


async def test_a_write_that_the_database_is_too_slow_for_is_refused(engine, monkeypatch):
    monkeypatch.setattr("provisioning.db.ledger.WRITE_DEADLINE_SECONDS", 0.05)
    ledger = Ledger(engine)
    first, gate = await held(ledger)
    with pytest.raises(StorageUnavailable):
        await ledger.write(put("a"))
    gate.set()
    with pytest.raises(StorageUnavailable):
        await first
    assert await names(ledger) == ["a"]  # nothing that was asked for is lost
    ledger.close()


async def test_what_was_written_to_a_deleted_or_replaced_file_is_not_acknowledged(engine, tmp_path):
    path = tmp_path / "a.db"
    ledger = Ledger(engine, watched(path))
    await ledger.write(put("a"))
    path.rename(tmp_path / "aside")
    with pytest.raises(StorageUnavailable):
        await ledger.write(put("b"))
    path.write_bytes(b"")
    with pytest.raises(StorageUnavailable):
        await ledger.write(put("c"))
    (tmp_path / "aside").replace(path)
    await ledger.write(put("d"))
    ledger.close()
