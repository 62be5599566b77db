"""kill -9 of a worker's partners, again and again, while devices enroll: everybody is served, and the records agree."""

import asyncio
import os
import signal

import pytest

from lab.light_fleet import load_fleet, make_fleet
from provisioning.app.compose import compose
from provisioning.app.signatures import flush
from provisioning.config import load_config
from provisioning.refusals import SigningUnavailable, VerifierUnavailable
from tests.faults.test_unavailable import ByAttestation, ByEst
from tests.integration.test_fsck import examined
from tests.support.listeners import serving
from tests.support.service import make_installation, registered

EACH = 40
KILLS = 5


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partners")
    fleet = make_fleet(folder / "fleet", EACH)
    directory = make_installation(folder / "D")
    with compose(directory, load_config(directory), partners=True) as made:
        yield made, fleet


async def served(asker):
    """Ask until there is a certificate; each refusal is one that says when to come again."""
    refused = 0
    while True:
        status, headers, body = await asker.ask()
        if status == 200:
            return refused, asker.certificate(body)
        assert (status, body["code"]) in ((503, SigningUnavailable.code), (503, VerifierUnavailable.code)), body
        assert int(headers["Retry-After"]) >= 1
        refused += 1
        await asyncio.sleep(0.05)


async def test_partners_that_are_killed_under_load_lose_nothing_and_leave_no_fault(service):
    made, fleet = service
    known = [(one.serial, one.ek_certificate) for one in load_fleet(fleet.directory)]
    await registered(made, fleet.policy.read_text(), *known)
    partners = (made.keys._partner, made.verifier._partner)

    async def kill():
        killed = 0
        while killed < KILLS * len(partners):
            for partner in partners:
                if partner._serves:
                    os.kill(partner._process.pid, signal.SIGKILL)
                    killed += 1
                await asyncio.sleep(0.3)

    async with serving(made) as client:
        askers = [ByEst(made, client, f"gw-{number}") for number in range(EACH)]
        askers += [ByAttestation(made, client, one) for one in load_fleet(fleet.directory)]
        for asker in askers:
            await asker.prepare()
        killing = asyncio.ensure_future(kill())
        done = []
        for at in range(0, len(askers), 8):
            done += await asyncio.gather(*(served(asker) for asker in askers[at : at + 8]))
            await asyncio.sleep(0.3)
        await killing
        assert sum(refused for refused, _ in done) > 0
        assert len({certificate.serial_number for _, certificate in done}) == len(askers)
        await flush(made.keys, made.ledger, 0)
    report = examined(made.directory)
    assert {check.name: check.faults for check in report.checks if not check.holds} == {}
    (counted,) = [check for check in report.checks if check.name.startswith("every signature by a CA key")]
    assert counted.looked_at > 0
