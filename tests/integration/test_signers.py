"""The threads behind a token: who waits for whom, what is skipped, and what hangs."""

import asyncio
import contextlib
import threading

import pytest

from hsm.errors import KeyNotFound, TokenUnavailable
from provisioning.app import signers as module
from provisioning.app.signers import Signers
from tests.support.tokens import until


@contextlib.contextmanager
def running(count, deadline_seconds=0.05):
    made = Signers("test", count, deadline_seconds)
    release = threading.Event()
    try:
        yield made, release
    finally:
        release.set()
        made.close(10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hsm test")]


def fail():
    raise KeyNotFound("no such key")


def stop():
    raise StopIteration


async def test_what_the_work_returns_or_raises_is_the_callers():
    with running(2) as (signers, _):
        assert await asyncio.gather(*(signers.do(lambda number=number: number) for number in range(500))) == [
            *range(500)
        ]
        assert signers.do_within(lambda: 7, 10) == 7
        for asked in (signers.do(fail), asyncio.to_thread(signers.do_within, fail, 10)):
            with pytest.raises(KeyNotFound):
                await asked
        with pytest.raises(RuntimeError, match="StopIteration"):
            await signers.do(stop)


async def test_who_comes_after_a_call_that_hangs_is_served_by_another_thread():
    with running(2) as (signers, release):
        hangs = threading.Event()
        signers.begin(lambda: (hangs.set(), release.wait()))
        until(hangs.is_set)  # one thread is at work, and not yet late: the second is asked for when it is
        async with asyncio.timeout(20):
            assert await asyncio.gather(*(signers.do(lambda: 1) for _ in range(100))) == [1] * 100
        assert not signers.hangs


async def test_while_every_thread_hangs_callers_are_refused_at_once_and_served_again_afterwards():
    with running(2) as (signers, release):
        for _ in range(2):
            signers.begin(release.wait)
        until(lambda: signers.hangs)
        with pytest.raises(TokenUnavailable, match="not answered"):
            await signers.do(lambda: 1)
        with pytest.raises(TokenUnavailable, match="not answered"):
            signers.do_within(lambda: 1, 600)
        release.set()
        until(lambda: not signers.hangs)
        assert await signers.do(lambda: 1) == 1


async def test_what_nobody_waits_for_any_more_is_not_done():
    done = []
    with running(1, deadline_seconds=600) as (signers, release):
        signers.begin(release.wait)
        for number in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await signers.do(lambda number=number: done.append(number))
        with pytest.raises(TokenUnavailable, match="no answer within"):
            signers.do_within(lambda: done.append("sync"), 0.01)
        release.set()
        await signers.do(lambda: done.append("wanted"))
    assert done == ["wanted"]


async def test_more_than_may_wait_is_refused(monkeypatch):
    monkeypatch.setattr(module, "WAITING_MOST", 3)
    with running(1, deadline_seconds=600) as (signers, release):
        signers.begin(release.wait)
        until(lambda: signers._begun[0] is not None)
        for _ in range(3):
            signers.begin(lambda: None)
        with pytest.raises(TokenUnavailable, match="too many"):
            await signers.do(lambda: 1)


def test_a_loop_that_has_ended_harms_nobody():
    with running(1) as (signers, release):

        async def ask():
            task = asyncio.ensure_future(signers.do(release.wait))
            await asyncio.sleep(0.01)
            task.cancel()

        asyncio.run(ask())
        release.set()
        assert signers.do_within(lambda: 1, 10) == 1


async def test_a_slow_token_answers_each_caller_when_its_signature_is_there():
    """Answers are collected for a moment, never for the whole queue."""
    slow = threading.Event()
    with running(1, deadline_seconds=600) as (signers, _):
        asked = [asyncio.ensure_future(signers.do(lambda: slow.wait(0.01))) for _ in range(50)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert sum(task.done() for task in asked) < 25
        await asyncio.gather(*asked)
