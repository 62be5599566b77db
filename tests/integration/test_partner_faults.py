"""What goes wrong between a worker and its partners: defects, wrong PINs, starts that hang, ends in the middle."""

import asyncio
import json
import os
import pickle
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from hsm.errors import WrongPin
from provisioning.app import children as child_processes
from provisioning.app import partner as partners
from provisioning.app import signatures, verifying
from provisioning.app.children import give_up_child
from provisioning.app.partner import PartnerFailed, PartnerLost
from provisioning.app.signing import SignedOnTheLoop
from provisioning.app.verifying import EVIDENCE, POSSESSION, SIGNATURE, PartnerVerifier
from provisioning.config import ConfigurationRefused
from provisioning.refusals import VerifierUnavailable
from provisioning.verifier import Here
from tests.integration.test_partners import KEY, SPKI, directory, eventually, kill, shown, signer
from tests.support.processes import children, gone
from tests.support.service import csr

__all__ = ["directory", "shown"]


@contextmanager
def verifier():
    made = PartnerVerifier(None)
    try:
        made.ready()
        yield made
    finally:
        made.close()


def pid_of(partner):
    return partner._partner._process.pid


def descriptors(pid):
    """What that process has open, but for its three streams."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found += [str(entry.readlink())] if int(entry.name) > 2 else []
    return found


@pytest.fixture
def starts(monkeypatch):
    """The partners that were started, by their processes' numbers."""
    started = []

    def start(*given, **how):
        started.append(child_processes.start_child(*given, **how))
        return started[-1]

    monkeypatch.setattr(partners, "start_child", start)
    return started


async def test_a_defect_ends_neither_the_verifier_nor_what_others_asked(shown, capfd):
    structlog.contextvars.bind_contextvars(worker=7)
    try:
        with verifier() as alone:
            pid, good = pid_of(alone), await Here().evidence(shown)
            assert await alone.evidence(shown) == good
            others = [asyncio.ensure_future(alone.possession(csr(KEY))) for _ in range(10)]
            with pytest.raises(VerifierUnavailable, match="not available") as refused:
                await alone._asked(SIGNATURE, b"\1")
            assert "a defect: error" in refused.value.actual
            assert await asyncio.gather(*others) == [SPKI] * 10
            for at in (EVIDENCE, 255):
                with pytest.raises(PartnerFailed):
                    await alone._partner.ask(at, pickle.dumps(()))
            assert await alone.evidence(shown) == good
            assert pid_of(alone) == pid
    finally:
        structlog.contextvars.unbind_contextvars("worker")
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(one["event"], one["partner"], one["worker"]) for one in said] == [("verifier.failed", "verifier", 7)] * 3
    assert "struct.error" in said[0]["exception"]


async def test_a_policy_is_told_once_however_many_ask_at_once_and_again_to_a_successor(shown, monkeypatch):
    with verifier() as alone:
        sent, ask = [], alone._partner.ask

        async def asked(kind, content):
            sent.append(pickle.loads(content)[2])  # noqa: S301  our own
            return await ask(kind, content)

        monkeypatch.setattr(alone._partner, "ask", asked)
        good = await Here().evidence(shown)
        assert await asyncio.gather(*(alone.evidence(shown) for _ in range(20))) == [good] * 20
        assert [policy is not None for policy in sent] == [True] + [False] * 19
        kill(alone)
        assert await eventually(lambda: alone.evidence(shown)) == good
        assert sent[-1] is not None


async def test_more_policies_than_are_kept_are_told_anew(shown, monkeypatch):
    monkeypatch.setattr(verifying, "POLICIES_MOST", 2)
    with verifier() as alone:
        many = [replace(shown, policy_id=number) for number in (1, 2, 3, 1, 3, 2, 1, 1, 4)]
        good = await Here().evidence(shown)
        assert await asyncio.gather(*map(alone.evidence, many)) == [good] * len(many)
        assert len(alone._told) <= 2


async def test_a_policy_that_was_not_sent_is_sent_with_the_next_evidence(shown, monkeypatch):
    with verifier() as alone:
        with monkeypatch.context() as full:
            full.setattr(partners, "WAITING_MOST", 0)
            with pytest.raises(VerifierUnavailable):
                await alone.evidence(shown)
        assert await alone.evidence(shown) == await Here().evidence(shown)


async def test_what_is_too_long_for_a_partner_is_refused_and_ends_nothing(monkeypatch):
    with verifier() as alone:
        pid = pid_of(alone)
        monkeypatch.setattr(partners, "CONTENT_MOST", 10_000)
        with pytest.raises(VerifierUnavailable, match="not available") as refused:
            await alone.signature(SPKI, bytes(10_000), b"")
        assert "are too many for the verifier" in refused.value.actual
        assert await alone.possession(csr(KEY)) == SPKI
        assert pid_of(alone) == pid


async def test_one_that_is_closed_while_its_successor_is_due_gets_none(starts):
    with verifier() as alone:
        kill(alone)
        with pytest.raises(VerifierUnavailable):
            await alone.possession(csr(KEY))
        assert alone._partner._next is not None
    await asyncio.sleep(2 * partners.PAUSE_SECONDS)
    assert len(starts) == 1
    assert not children(os.getpid(), "provisioning.app.verifying")


async def test_a_successor_that_does_not_begin_to_serve_is_replaced(starts, monkeypatch):
    with verifier() as alone:
        start = partners.start_child

        def start_stopped(*given, **how):
            monkeypatch.setattr(partners, "start_child", start)
            made = start(*given, **how)
            made.send_signal(signal.SIGSTOP)
            return made

        monkeypatch.setattr(partners, "start_child", start_stopped)
        monkeypatch.setattr(partners, "START_SECONDS", 2.0)
        lost, late = alone._partner._lost, []
        monkeypatch.setattr(alone._partner, "_lost", lambda why, **how: (late.append(why), lost(why, **how)))
        kill(alone)
        assert await eventually(lambda: alone.possession(csr(KEY))) == SPKI
        assert len(starts) >= 3
        assert gone(starts[1].pid)
        assert "it does not serve after 2 s" in late


def test_a_child_that_a_driver_holds_is_not_waited_for(monkeypatch):
    class Held:
        pid, waited = 1, 0

        def poll(self):
            return None

        def wait(self, seconds):
            self.waited += 1
            raise subprocess.TimeoutExpired("held", seconds)

    killed, held = [], Held()
    monkeypatch.setattr(child_processes.os, "killpg", lambda *given: killed.append(given))
    give_up_child(held)
    assert (killed, held.waited) == ([(1, signal.SIGKILL)], 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_partners_work_on_when_all_are_asked_to_end(directory, number):
    """systemd's KillMode=control-group: the worker has requests in flight, and the signer what it counted."""
    with signer(directory) as keys, verifier() as alone:
        await keys.sign("command", b"one")
        for partner in (keys, alone):
            kill(partner, number)
        await keys.sign("command", b"two")
        assert await alone.possession(csr(KEY)) == SPKI
        assert [one.count for one in await keys.taken()] == [2]


async def test_a_wrong_pin_is_tried_once_by_the_successors_too(directory, starts):
    (pin,) = directory.secrets.glob("muster*.pin")
    right = pin.read_text()
    with signer(directory) as keys:
        try:
            pin.write_text("wrong-pin")
            kill(keys)
            async with asyncio.timeout(60):
                while keys._partner.given_up is None:
                    with pytest.raises(PartnerLost):
                        await keys._partner.ask(0, b"")
                    await asyncio.sleep(0.05)
            with pytest.raises(ConfigurationRefused, match="refused the PIN") as refused:
                await keys.taken()
            assert isinstance(refused.value.__cause__, WrongPin)
            await asyncio.sleep(2 * partners.PAUSE_SECONDS)
            assert keys._partner._next.cancelled()
            assert len(starts) == 2
        finally:
            pin.write_text(right)


async def test_counted_signatures_whose_answer_nobody_waited_for_are_told_again(directory):
    with signer(directory) as keys:
        await keys.sign("command", b"one")
        asked = asyncio.ensure_future(keys.taken())
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await keys.sign("command", b"two")
        (both,) = await keys.taken()
        assert (both.count, len(set(both.digests))) == (2, 2)
        assert await keys.taken() == []


async def test_a_partner_has_no_descriptor_but_its_own(directory):
    """Neither a listener nor the line to another partner."""
    with signer(directory) as keys, verifier() as first, verifier() as second:
        await first.possession(csr(KEY))
        for partner in (first, second):
            assert [link.partition(":")[0] for link in descriptors(pid_of(partner))] == ["socket"]
        shared = set(descriptors(pid_of(keys))) & set(descriptors(os.getpid()))
        assert not [link for link in shared if link.startswith(("socket", "pipe"))]


async def test_requests_while_it_is_replaced_are_refused_at_once_and_numbers_go_round():
    with verifier() as alone:
        alone._partner._number = 0xFFFFFFFE
        assert await asyncio.gather(*(alone.possession(csr(KEY)) for _ in range(4))) == [SPKI] * 4
        assert alone._partner._number == 3
        kill(alone)
        with pytest.raises(VerifierUnavailable):
            await alone.possession(csr(KEY))
        with pytest.raises(VerifierUnavailable) as refused:
            await alone.possession(csr(KEY))
        assert "does not answer" in refused.value.actual
        assert await eventually(lambda: alone._partner.ask(POSSESSION, csr(KEY))) == SPKI


async def test_a_library_that_signs_on_the_loop_is_told_so_and_keeps_nobody_waiting(directory):
    with signer(directory) as keys:
        key = keys.key("command")
        with pytest.raises(SignedOnTheLoop, match="command"):
            key.sign(b"x", ec.ECDSA(SHA256()))
        key.public_key().verify(await asyncio.to_thread(key.sign, b"x", ec.ECDSA(SHA256())), b"x", ec.ECDSA(SHA256()))


async def test_what_was_being_stored_when_all_is_to_end_is_stored_at_the_end(directory):
    with signer(directory) as keys:
        await keys.sign("command", b"one")
        begun = asyncio.Event()

        class Ledger:
            async def write(self, work):
                begun.set()
                await asyncio.sleep(3600)

        flushing = asyncio.ensure_future(signatures.flush(keys, Ledger(), 1))
        async with asyncio.timeout(60):
            await begun.wait()
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        assert [one.count for one in await keys.taken()] == [1]
