"""Repositories in a folder, with software keys, for the tests of update trust."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from device_agent import update
from device_agent.release_floor import ReleaseFloor
from device_agent.slots.directory import DirectorySlots
from device_agent.tpm.errors import CounterMissing
from device_agent.trust import TrustStore
from device_agent.update import Progress, UpdateContext
from ota import repository
from ota.bundle import create_trust
from ota.director import create_director_root, director_metadata, next_version
from ota.publishing import add_image
from ota.signing import Role, Roles, online_role
from ota.source import NotFoundAtSource
from ota.verify import VerifiedRepository, VerifiedTarget, verify_repository, verify_roots
from wire.messages import TrustBundle

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Keys:
    """Three offline keys, of which two are enough, and one online key."""

    offline: list[ec.EllipticCurvePrivateKey] = field(default_factory=lambda: [new_key() for _ in range(3)])
    online: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @property
    def roles(self) -> Roles:
        offline = tuple(key.public_key() for key in self.offline)
        return Roles(
            root=Role(offline, 2, 365 * DAY),
            targets=Role(offline, 2, 90 * DAY),
            snapshot=online_role(self.online.public_key(), 7 * DAY),
            timestamp=online_role(self.online.public_key(), DAY),
        )

    @property
    def signers(self) -> list[ec.EllipticCurvePrivateKey]:
        return [*self.offline[:2], self.online]


def folder_source(folder: Path, seen: list[str] | None = None) -> Callable[[str, int], bytes]:
    """A source that serves a folder as an HTTP server would."""

    def fetch(path: str, most: int) -> bytes:
        if seen is not None:
            seen.append(path)
        try:
            return (folder / path).read_bytes()[: most + 1]
        except FileNotFoundError:
            raise NotFoundAtSource(path) from None

    return fetch


HARDWARE = "virtual-1"
DEVICE = "gateway-1"
SERVICE = "muster.test"


class Counter:
    """A TPM's NV counter: it starts somewhere, rises by one, never falls."""

    def __init__(self) -> None:
        self.value: int | None = None

    def define(self) -> int:
        if self.value is None:
            self.value = 7
        return self.value

    def read(self) -> int:
        if self.value is None:
            raise CounterMissing
        return self.value

    def increment(self) -> None:
        self.value = self.read() + 1


class Service:
    """The publisher, the service and the wire between them and one device: folders, and a fetch that serves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.trust_keys, self.image_keys, self.director_key = Keys(), Keys(), new_key()
        self.director_roles = Roles(
            root=self.trust_keys.roles.root,
            targets=online_role(self.director_key.public_key(), DAY),
            snapshot=online_role(self.director_key.public_key(), DAY),
            timestamp=online_role(self.director_key.public_key(), timedelta(hours=1)),
        )
        self.director_root = create_director_root(self.director_roles, self.trust_keys.offline[:2], NOW)
        self.image_root = repository.create(folder / "image", self.image_keys.roles, self.image_keys.signers, NOW)
        bundle = TrustBundle(1, SERVICE, (), (), (), self.director_root, self.image_root)
        self.anchor = create_trust(folder / "trust", self.trust_keys.roles, bundle, self.trust_keys.signers, NOW)
        self.version = 0
        self.requests: list[str] = []
        self.assign(None)

    def release(self, image: bytes, version: str, counter: int, hardware: str = HARDWARE) -> VerifiedTarget:
        name = add_image(self.folder / "image", image, version, hardware, counter, {8: bytes(32)})
        repository.publish(self.folder / "image", self.image_keys.signers, self.now)
        return self.images().targets[name]

    def images(self) -> VerifiedRepository:
        fetch = folder_source(self.folder / "image")
        return verify_repository(verify_roots(self.image_root, fetch), fetch, (), self.now)

    def assign(self, target: VerifiedTarget | None, assignment: str | None = None, device: str = DEVICE) -> None:
        self.version = next_version(self.version, self.now)
        files = director_metadata(
            self.director_root, device, target, self.version, self.director_key, self.now, assignment=assignment
        )
        folder = self.folder / "director" / "metadata"
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    def fetch(self, path: str, most: int) -> bytes:
        return folder_source(self.folder, self.requests)(path, most)

    def open_stream(self, path: str, offset: int) -> tuple[int, Iterator[bytes]]:
        self.requests.append(f"{path}+{offset}")
        data = (self.folder / path).read_bytes()
        return offset, (data[at : at + 1000] for at in range(offset, len(data), 1000))


@dataclass
class Device:
    """One device's state and slots, with a boot loader in four lines."""

    folder: Path
    service: Service
    counter: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if not (self.slots / "boot.json").exists():
            for slot in "ab":
                (self.slots / slot).mkdir(parents=True)
                (self.slots / slot / "image.bin").write_bytes(b"factory image")
            self.set_boot("a", None, 0)
            (self.slots / "booted").write_text("a")

    @property
    def slots(self) -> Path:
        return self.folder / "slots"

    @property
    def context(self) -> UpdateContext:
        service = self.service
        state = self.folder / "state"

        def fetch_trust(path: str, most: int) -> bytes:
            return service.fetch(f"trust/{path}", most)

        return UpdateContext(
            state_dir=state / "update",
            device=DEVICE,
            hardware=HARDWARE,
            slots=DirectorySlots(self.slots),
            trust=TrustStore(state / "trust", service.anchor, fetch_trust, lambda: service.now),
            fetch=service.fetch,
            open_stream=service.open_stream,
            floor=ReleaseFloor(state / "update", self.counter),
            now=lambda: service.now,
            pause=lambda _seconds: None,
        )

    def set_boot(self, active: str, trying: str | None, tries_left: int) -> None:
        state = {"active": active, "trying": trying, "tries_left": tries_left}
        (self.slots / "boot.json").write_text(json.dumps(state))

    def boot(self) -> bytes:
        """What the boot loader does; the image that runs then."""
        state = json.loads((self.slots / "boot.json").read_text())
        slot = state["active"]
        if state["trying"] and state["tries_left"]:
            slot = state["trying"]
            self.set_boot(state["active"], slot, state["tries_left"] - 1)
        (self.slots / "booted").write_text(slot)
        return (self.slots / slot / "image.bin").read_bytes()

    def check(self) -> list[Progress]:
        return list(update.check(self.context))

    def states(self) -> list[str]:
        return [progress.state for progress in self.check()]
