"""10,000 devices attest again: what that costs the service, in processor time of one core.

Each device is asked by the duty, challenged by a signed command, answers by its own evidence in a message that its key
signed, is judged and recorded, and gets a signed answer: all of it by the service's own code, in this process, with
SoftHSM2 and durable rows; only the broker between them is left out. The devices' own work (`lab.light`) is not counted.
`limit` is what the primitives alone take for as many: an RSA-OAEP for the credential, two ECDSA verifications (quote,
message), two signatures in the token (command, answer), four rows.
"""

import asyncio
import hashlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.primitives import each, row_each
from benchmarks.stack import FOLDER
from hsm.softhsm import create_token, settings
from hsm.token import Token
from lab.light import LightDevice
from lab.light_fleet import load_fleet, make_fleet
from provisioning import enrollment, factory, messaging, outbox, policies, reattesting, rotation
from provisioning.app.compose import clock, compose
from provisioning.app.installation import Installation, initialize
from provisioning.app.worker import settle_memory
from provisioning.cli.registration import read_registrations
from provisioning.config import DataDirectory, load_config
from provisioning.db import commands
from provisioning.factory import StationIdentity
from provisioning.service import Service
from wire.binding import key_id
from wire.codec import decode, encode
from wire.envelope import MAX_ENVELOPE, open_envelope, seal, unverified_payload_type
from wire.factory import RegistrationRequest
from wire.messages import PAYLOAD_TYPE, Attest, AttestationEvidence, Attested, Hello, Message

FLEETS, EACH = 4, 2500
"""10,000 devices: each fleet has a model, a policy and an EK root of its own."""
LANES = messaging.LANES
"""Devices that are worked on at once, as the bridge does."""
ROWS = 4
LATER = timedelta(hours=30)
"""So long after they enrolled: all of them are due."""
SHA256 = ec.ECDSA(hashes.SHA256())
PIN = "benchmark"


@dataclass(slots=True)
class Member:
    """One device in service, and where its session stands."""

    device: LightDevice
    id: str
    sequence: int = 0

    def seal(self, kind: type[Message], **fields: Any) -> bytes:  # noqa: ANN401  the fields of `kind`
        """A message of this device, signed by its key."""
        self.sequence += 1
        head = {"message_id": secrets.token_urlsafe(16), "device": self.id, "session": "bench"}
        message = kind(**head, sequence=self.sequence, not_after=clock() + 2 * LATER, **fields)
        key = self.device.device_key
        if key is None:
            raise RuntimeError(f"{self.id} never enrolled")
        spki = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return seal(PAYLOAD_TYPE[kind], encode(message), key_id(spki), lambda data: key.private.sign(data, SHA256))

    def answer(self, command: Attest) -> bytes:
        """Its evidence, in a message. The boot log is at the service: it is the one that it enrolled with."""
        self.device.clock_ms += 1000
        evidence = self.device.attest(command.challenge, log_by_hash=True)
        return self.seal(AttestationEvidence, in_reply_to=command.message_id, evidence=evidence)


class Spent:
    """Processor time of this process, of all its threads, between its `with`s."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._since


def figures() -> Iterator[dict[str, str | float]]:
    """Seconds of one core for 10,000 devices, beside those of the primitives; and devices a second."""
    FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=FOLDER)).resolve()
    try:
        limit = _primitives_seconds(folder) * FLEETS * EACH
        directory = DataDirectory(folder / "d")
        initialize(directory, Installation("bench", "127.0.0.1", "127.0.0.1", (0, 0, 0, 0)))
        spent = asyncio.run(_measured(directory, folder))
    finally:
        shutil.rmtree(folder)
    told = {"limit": round(limit, 2), "ratio": round(spent / limit, 2)}
    yield {"name": "reattest_10k", "value": round(spent * 10_000 / (FLEETS * EACH), 2), "unit": "s of one core", **told}


async def _measured(directory: DataDirectory, folder: Path) -> float:
    with compose(directory, load_config(directory)) as service:
        members: dict[str, Member] = {}
        for number in range(FLEETS):
            members |= await _fleet(service, folder / f"fleet-{number}", f"light-{number}")
        settle_memory()  # as a worker does
        spent = Spent()
        await _again(replace(service, clock=lambda: clock() + LATER), members, spent)
    return spent.seconds


async def _fleet(service: Service, folder: Path, name: str) -> dict[str, Member]:
    """Devices of a model, enrolled, each with a session."""
    fleet = make_fleet(folder, EACH, model=name, prefix=name)
    await policies.set_policy(service, fleet.policy.read_text(), by="bench")
    key = ec.generate_private_key(ec.SECP256R1())
    station = await factory.add_station(service, name, EACH, _request(key), by="bench")
    rows = [row.device for file in fleet.registrations for row in read_registrations(file)]
    ids: list[str] = []
    for first in range(0, len(rows), 1000):
        part = RegistrationRequest(tuple(rows[first : first + 1000]))
        ids += (await factory.register(service, StationIdentity(name, station.serial), part)).device_ids
    members = [Member(device, one) for device, one in zip(load_fleet(folder), ids, strict=True)]
    await _in_lanes(members, lambda member: _enroll(service, member))
    return {member.id: member for member in members}


async def _enroll(service: Service, member: Member) -> None:
    challenge = await enrollment.begin_enrollment(service, member.device.request(), source="bench")
    evidence = member.device.answer(challenge)
    arrived = service.clock()
    await enrollment.complete_enrollment(service, challenge.enrollment_id, evidence, arrived=arrived, source="bench")
    told = {"last_sequence": 0, "session_number": 1, "trust_version": 1, "certificate_serial": "0"}
    await rotation.receive(service, member.id, member.seal(Hello, **told, release_counter=0))


async def _again(service: Service, members: dict[str, Member], spent: Spent) -> None:
    """All of them, from the duty that finds them due to the answer that each gets. Raises: RuntimeError."""
    sent: list[tuple[str, bytes]] = []

    def publish(topic: str, envelope: bytes) -> bool:
        sent.append((topic, envelope))
        return True

    while await service.store.read(lambda tx: bool(commands.due(tx, int(service.clock().timestamp()), 1))):
        await outbox.send_due(service, lambda *_: True)
    with spent:
        asked = await reattesting.ask_due(service)
    attested = 0
    while attested < len(members):
        sent.clear()
        with spent:
            await outbox.send_due(service, publish)
        if not sent:
            raise RuntimeError(f"{attested} of {len(members)} attested, {asked} were asked")
        answers = []
        for topic, envelope in sent:
            kind = unverified_payload_type(envelope)
            attested += kind == PAYLOAD_TYPE[Attested]
            if kind == PAYLOAD_TYPE[Attest]:
                command = decode(Attest, open_envelope(envelope, kind, lambda *_: True), limit=MAX_ENVELOPE)
                answers.append((topic.split("/")[2], members[topic.split("/")[2]].answer(command)))
        with spent:
            await _in_lanes(answers, lambda one: rotation.receive(service, *one))


async def _in_lanes(items: Sequence[Any], work: Callable[[Any], Any]) -> None:
    """Each of them, so many at once."""
    waiting = iter(items)

    async def lane() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(lane() for _ in range(LANES)))


def _request(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509  # noqa: PLC0415  for this alone

    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.DER)


def _primitives_seconds(folder: Path) -> float:
    """Of one device."""
    ek = rsa.generate_private_key(65537, 2048).public_key()
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
    key, message = ec.generate_private_key(ec.SECP256R1()), bytes(300)
    signature, public = key.sign(message, SHA256), key.public_key()
    create_token(folder / "limit", "bench", PIN, PIN)
    with Token(settings(folder / "limit"), "bench", lambda: PIN) as token:
        held = token.generate_ec_key("bench")
        signing = each(lambda: held.sign(message, SHA256), clock=time.process_time)
    verifying = each(lambda: public.verify(signature, message, SHA256), clock=time.process_time)
    sealing = each(lambda: ek.encrypt(bytes(32), oaep), clock=time.process_time)
    hashing = each(lambda: hashlib.sha256(message).digest(), clock=time.process_time)
    return sealing + 2 * verifying + 2 * signing + ROWS * row_each(folder, time.process_time) + hashing
