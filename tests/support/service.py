"""An installation with real parts (SoftHSM2, SQLite), composed in this process or ready to be served."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning import factory, policies
from provisioning.app.compose import compose
from provisioning.app.installation import Installation, initialize
from provisioning.config import DataDirectory, load_config
from provisioning.factory import StationIdentity
from provisioning.service import Service
from wire.factory import Registration, RegistrationRequest

NAME = "muster.test"


def free_ports(count: int = 4) -> tuple[int, ...]:
    """Ports that nobody holds, below the range of outgoing connections."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.add(port)
    return tuple(found)


def make_installation(root: Path, settings: str = "") -> DataDirectory:
    """What `muster init` makes."""
    directory = DataDirectory(root)
    ports = free_ports()
    initialize(
        directory, Installation(NAME, "127.0.0.1", "127.0.0.1", (ports[0], ports[1], ports[2], ports[3]), settings)
    )
    return directory


@contextmanager
def running_service(directory: DataDirectory, clock=None) -> Iterator[Service]:
    """A composed service; `clock` replaces the system's."""
    with compose(directory, load_config(directory)) as service:
        yield service if clock is None else replace(service, clock=clock)


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def csr(key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A software key's request."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )


async def registered(service: Service, policy: str, *devices: tuple[str, bytes]) -> tuple[str, ...]:
    """A station registers these (serial, EK certificate) under a policy; their ids."""
    policy_of = await policies.set_policy(service, policy, by="test")
    station = await factory.add_station(service, "line-1", 1000, csr(), by="test")
    registrations = tuple(Registration(serial, str(policy_of["model"]), ek) for serial, ek in devices)
    done = await factory.register(
        service, StationIdentity("line-1", station.serial), RegistrationRequest(registrations)
    )
    return done.device_ids
