"""An installation with a short history: devices that enrolled by the real protocol, a revocation, a sequenced log."""

import asyncio
import shutil
from pathlib import Path

from lab.light_fleet import load_fleet, make_fleet
from provisioning import enrollment, policies
from provisioning.cli.registration import read_registrations
from provisioning.config import DataDirectory
from provisioning.duties import sequence
from provisioning.factory import StationIdentity, add_station, register
from provisioning.revoking import revoke_device
from tests.support.crls import publish_crl
from tests.support.service import csr, make_installation, running_service
from wire.factory import RegistrationRequest

ENROLLED = 3


def make_history(root: Path) -> DataDirectory:
    """Three registered and enrolled devices (software TPMs), the last one revoked and listed in the CRL."""
    directory = make_installation(root / "D")
    asyncio.run(_live(directory, root))
    return directory


async def _live(directory: DataDirectory, root: Path) -> None:
    fleet = make_fleet(root / "fleet", ENROLLED)
    with running_service(directory) as service:
        await policies.set_policy(service, fleet.policy.read_text(), by="test")
        station = await add_station(service, "line-1", 10, csr(), by="test")
        rows = tuple(row.device for file in fleet.registrations for row in read_registrations(file))
        await register(service, StationIdentity("line-1", station.serial), RegistrationRequest(rows))
        for device in load_fleet(root / "fleet"):
            challenge = await enrollment.begin_enrollment(service, device.request(), source="test")
            evidence = device.answer(challenge)
            await enrollment.complete_enrollment(
                service, challenge.enrollment_id, evidence, arrived=service.clock(), source="test"
            )
            await sequence(service)  # a tree head after each: several roots
        await revoke_device(service, rows[-1].serial, "key-compromise", by="test")
        await publish_crl(service)
        await sequence(service)


def copy_of(directory: DataDirectory, root: Path) -> DataDirectory:
    """A copy to tamper with. Tokens are found again: their configuration is written anew."""
    shutil.copytree(directory.root, root)
    return DataDirectory(root)
