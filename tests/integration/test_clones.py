"""Clones and rollback, each mounted by light devices on a real service; and what must open no finding."""

import asyncio
import json
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from types import SimpleNamespace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lab.light import LightDevice, make_ak
from lab.light_fleet import load_fleet, make_fleet
from provisioning import enrollment, factory, findings, inventory, outbox, policies, revoking, rotation
from provisioning.app.doctor import _findings as examined
from provisioning.config import load_config
from provisioning.db import devices, enrollments, leaves
from provisioning.db import findings as stored
from provisioning.factory import StationIdentity
from provisioning.http import findings as http_findings
from provisioning.monitoring import Kind
from provisioning.refusals import (
    ActivationProofWrong,
    AttestationKeyTaken,
    DeviceRevoked,
    EkTaken,
    MessageNotAuthentic,
    MessageOutOfOrder,
    NotFound,
    QuarantineStands,
    SerialHasAnotherTpm,
    SerialTaken,
    SignatureWrong,
    StateConflict,
    TpmWentBack,
)
from tests.support.service import Clock, csr, make_installation, running_service
from wire.binding import key_id
from wire.codec import decode, encode
from wire.envelope import open_envelope, seal, unverified_payload_type
from wire.factory import Registration, RegistrationRequest
from wire.messages import PAYLOAD_TYPE, Attest, AttestationEvidence, Hello, Rotate, RotationEvidence, Welcome

KIND = {kind: message for message, kind in PAYLOAD_TYPE.items()}
ANSWERS = ("finding", "quarantine", "revoke")
DEVICES = 66
MINUTE = timedelta(seconds=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A service with one policy for each answer, a station, and light devices that nobody has registered yet."""
    root = tmp_path_factory.mktemp("clones")
    directory = make_installation(root / "D")
    files = make_fleet(root / "fleet", DEVICES)
    clock = Clock(datetime.now().astimezone() + timedelta(hours=1))
    with running_service(directory, clock) as service:

        async def prepare():
            text = files.policy.read_text().replace('boot_log = "required"', 'boot_log = "none"')
            for answer in ANSWERS:
                changed = text.replace('model = "light"', f'model = "light-{answer}"\non_clone = "{answer}"', 1)
                await policies.set_policy(service, changed, by="test")
            changed = text.replace(
                'model = "light"', 'model = "light-watched"\nmode = "monitor"\non_clone = "revoke"', 1
            )
            changed = re.sub(r'"4" = \["[0-9a-f]{64}"\]', f'"4" = ["{"00" * 32}"]', changed)
            await policies.set_policy(service, changed, by="test")
            return await factory.add_station(service, "line-1", 1000, csr(), by="test")

        station = asyncio.run(prepare())
        identity = StationIdentity("line-1", station.serial)
        fleet = iter(load_fleet(root / "fleet"))
        yield SimpleNamespace(service=service, station=identity, fleet=fleet, directory=directory, clock=clock)


@dataclass
class Agent:
    """One run of an agent: a device key, a session, and what it was told in it."""

    world: object
    device: LightDevice
    id: str
    key: ec.EllipticCurvePrivateKey
    session: str
    number: int
    sequence: int = 0
    last_sequence: int = 0
    mark: str = ""
    """What its random numbers are made of: a copy draws others."""

    def _head(self):
        self.sequence += 1
        return {
            "message_id": f"m-{self.session}-{self.sequence}{self.mark}",
            "device": self.id,
            "session": self.session,
            "sequence": self.sequence,
            "not_after": self.world.clock() + timedelta(hours=1),
        }

    def sealed(self, kind, **fields):
        public = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        sign = lambda data: self.key.sign(data, ec.ECDSA(hashes.SHA256()))  # noqa: E731
        return seal(PAYLOAD_TYPE[kind], encode(kind(**self._head(), **fields)), key_id(public), sign)

    def hello_sealed(self):
        return self.sealed(
            Hello,
            session_number=self.number,
            last_sequence=self.last_sequence,
            trust_version=1,
            certificate_serial="0",
            release_counter=0,
        )

    async def send(self, envelope):
        await rotation.receive(self.world.service, self.id, envelope)

    async def up(self, kind, **fields):
        await self.send(self.sealed(kind, **fields))

    async def hello(self):
        """Say hello; was it accepted?"""
        try:
            await self.send(self.hello_sealed())
        except MessageOutOfOrder:
            return False
        return True

    async def obey(self):
        """Take what is for this device now, as an agent on the line would; the commands that it obeyed."""
        sent, obeyed = [], []
        await outbox.send_due(self.world.service, lambda *one: sent.append(one) or True)
        for topic, envelope in sent:
            if topic != f"muster/v1/{self.id}/down":
                continue
            kind = unverified_payload_type(envelope)
            message = decode(KIND[kind], open_envelope(envelope, kind, self._is_service), limit=65536)
            if message.session == self.session and message.sequence > self.last_sequence:
                self.last_sequence = message.sequence
                obeyed.append(message)
        return obeyed

    async def connect(self):
        """What an agent does on each connection: hello, and hello once more where it is asked to."""
        self.world.clock.now += timedelta(seconds=1)
        accepted = await self.hello()
        for message in await self.obey():
            if isinstance(message, Welcome) and message.greet_again:
                accepted = await self.hello()
                await self.obey()
        return accepted

    def copy(self, session, number):
        """The same state folder and key, started elsewhere."""
        return replace(self, session=session, number=number, sequence=0, last_sequence=0)

    def _is_service(self, _keyid, signature, message):
        try:
            self.world.service.keys.public("command").verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


sessions = (f"session-{number}" for number in count())


async def register(world, device, serial=None, answer="finding"):
    row = Registration(serial or device.serial, f"light-{answer}", device.ek_certificate)
    done = await factory.register(world.service, world.station, RegistrationRequest((row,)))
    return done.device_ids[0]


async def begin(world, device, **changes):
    return await enrollment.begin_enrollment(world.service, replace(device.request(), **changes), source="test")


async def complete(world, device, challenge, **changes):
    evidence = replace(device.answer(challenge), **changes)
    return await enrollment.complete_enrollment(
        world.service, challenge.enrollment_id, evidence, arrived=world.clock(), source="test"
    )


async def enroll(world, device, **changes):
    return await complete(world, device, await begin(world, device, **changes))


async def enrolled(world, answer="finding"):
    """A device in service, and its agent's first run."""
    device = next(world.fleet)
    device_id = await register(world, device, answer=answer)
    await enroll(world, device)
    return Agent(world, device, device_id, device.device_key.private, next(sessions), 100)


async def found(world, device_id):
    return [
        row["kind"]
        for row in await findings.list_findings(world.service, device_id, closed=False, before=None, limit=50)
    ]


async def record(world, device_id):
    return await world.service.store.read(lambda tx: devices.by_id(tx, device_id))


async def leaves_of(world, kind):
    rows = await world.service.store.read(lambda tx: leaves.unnumbered(tx, 100_000))
    wanted = {row.id for row in rows}
    all_of_kind = await world.service.store.read(
        lambda tx: tx.execute(leaves.leaf.select().where(leaves.leaf.c.kind == kind)).all()
    )
    return [json.loads(row.record) for row in all_of_kind if row.id in wanted]


# --- one EK, twice ------------------------------------------------------------------------------------------------


async def test_a_tpm_that_is_registered_under_another_serial_is_found(world):
    device = next(world.fleet)
    first = await register(world, device)
    for _ in range(2):
        with pytest.raises(EkTaken):
            await register(world, device, "relabelled-1")
    (row,) = await findings.list_findings(world.service, first, closed=False, before=None, limit=9)
    assert (row["kind"], row["times"]) == ("ek-twice", 2)
    assert row["detail"] == {"how": "registered again", "as_serial": "relabelled-1", "station": "line-1"}


async def test_a_stations_word_ends_no_device_whatever_the_policy_says(world):
    agent = await enrolled(world, "revoke")
    with pytest.raises(EkTaken):
        await register(world, agent.device, "relabelled-2", "revoke")
    assert await found(world, agent.id) == ["ek-twice"]
    after = await record(world, agent.id)
    assert (after.state, after.health) == ("active", "healthy")


async def test_the_same_registration_sent_again_is_no_finding(world):
    device = next(world.fleet)
    first = await register(world, device)
    with pytest.raises(SerialTaken):
        await register(world, device)
    assert await found(world, first) == []


async def test_a_tpm_that_speaks_for_two_serials_is_found_once_it_has_proven_itself(world):
    liar, victim = await enrolled(world), await enrolled(world)
    with pytest.raises(SerialHasAnotherTpm):
        await enroll(world, liar.device, serial=victim.device.serial)
    assert await found(world, liar.id) == ["ek-twice"]
    assert await found(world, victim.id) == []
    assert (await record(world, victim.id)).health == "healthy"


async def test_who_only_knows_a_tpms_certificate_opens_no_finding_about_it(world):
    victim, other = await enrolled(world, "revoke"), await enrolled(world)
    stranger = replace(other.device, ek_certificate=victim.device.ek_certificate, serial=victim.device.serial)
    challenge = await begin(world, stranger, serial=other.device.serial)
    evidence = replace(other.device.answer(await begin(world, other.device)), activation_proof=bytes(32))
    with pytest.raises(ActivationProofWrong):
        await enrollment.complete_enrollment(
            world.service, challenge.enrollment_id, evidence, arrived=world.clock(), source="test"
        )
    for one in (victim, other):
        assert await found(world, one.id) == []
        assert (await record(world, one.id)).health == "healthy"


# --- one AK, twice ------------------------------------------------------------------------------------------------


async def test_one_attestation_key_for_two_tpms_is_refused_and_found_about_both(world):
    first = await enrolled(world)
    second = replace(next(world.fleet), ak=first.device.ak)
    second_id = await register(world, second)
    with pytest.raises(AttestationKeyTaken):
        await enroll(world, second)
    assert await found(world, first.id) == await found(world, second_id) == ["ak-twice"]
    assert (await record(world, second_id)).state == "registered"


async def test_who_only_knows_an_attestation_keys_public_half_opens_no_finding(world):
    """A software key, loaded by its public half, passes ActivateCredential: the quote is what proves an AK."""
    victim = await enrolled(world, "revoke")
    known = make_ak(victim.device.ak.private)
    attacker = replace(next(world.fleet), ak=known)
    attacker_id = await register(world, attacker)
    challenge = await begin(world, attacker)
    evidence = attacker.answer(challenge)
    forged = replace(evidence, quote=replace(evidence.quote, signature=make_ak_signature(evidence.quote)))
    with pytest.raises(SignatureWrong):
        await enrollment.complete_enrollment(
            world.service, challenge.enrollment_id, forged, arrived=world.clock(), source="test"
        )
    assert await found(world, victim.id) == await found(world, attacker_id) == []


def make_ak_signature(quote):
    """The quote's signature with one byte changed."""
    return quote.signature[:-1] + bytes([quote.signature[-1] ^ 1])


async def test_the_ak_of_a_device_that_is_gone_may_come_back_under_another_record(world):
    first = await enrolled(world)
    await world.service.ledger.write(lambda tx: devices.change(tx, first.id, state="decommissioned"))
    second = replace(next(world.fleet), ak=first.device.ak)
    second_id = await register(world, second)
    await enroll(world, second)
    assert await found(world, second_id) == []


# --- clock and counters -------------------------------------------------------------------------------------------


async def test_a_tpm_whose_clock_went_back_is_found(world):
    agent = await enrolled(world)
    agent.device.clock_ms -= 1_000_000
    with pytest.raises(TpmWentBack):
        await enroll(world, agent.device)
    assert await found(world, agent.id) == ["rollback"]


async def test_a_clock_that_went_back_is_found_by_an_attest_command_too(world):
    agent = await enrolled(world)
    await agent.connect()
    await outbox.order(world.service, agent.id, "attest", by="test")
    (command,) = [message for message in await agent.obey() if isinstance(message, Attest)]
    agent.device.clock_ms -= 1_000_000
    evidence = agent.device.attest(command.challenge)
    await agent.up(AttestationEvidence, in_reply_to=command.message_id, evidence=evidence)
    assert await found(world, agent.id) == ["rollback"]


async def test_evidence_that_is_not_proven_to_be_the_devices_own_opens_no_finding(world):
    victim = await enrolled(world, "revoke")
    victim.device.clock_ms -= 1_000_000
    challenge = await begin(world, victim.device)
    with pytest.raises(ActivationProofWrong):
        await complete(world, victim.device, challenge, activation_proof=bytes(32))
    assert await found(world, victim.id) == []
    assert (await record(world, victim.id)).state == "active"


# --- state and key with another TPM -------------------------------------------------------------------------------


class Elsewhere(LightDevice):
    """A TPM for which the credential was not made: it can only guess what is in it."""

    __slots__ = ()

    def open_credential(self, _challenge):
        return bytes(32)


@pytest.mark.parametrize("kind", [Attest, Rotate])
async def test_a_device_key_in_use_without_its_tpm_is_found(world, kind):
    agent = await enrolled(world)
    await agent.connect()
    await outbox.order(world.service, agent.id, kind.__name__.lower(), by="test")
    (command,) = [message for message in await agent.obey() if isinstance(message, kind)]
    other = next(world.fleet)
    other = Elsewhere(other.serial, other.ek, other.ek_certificate, other.boot, other.ak, other.clock_ms)
    if kind is Attest:
        answer, evidence = AttestationEvidence, other.attest(command.challenge)
    else:
        answer, evidence = RotationEvidence, other.answer(command.challenge, "rotate")
    await agent.up(answer, in_reply_to=command.message_id, evidence=evidence)
    assert await found(world, agent.id) == ["cloned-state"]


async def test_a_message_by_another_key_is_refused_and_no_finding(world):
    agent, other = await enrolled(world, "revoke"), await enrolled(world)
    await agent.connect()
    with pytest.raises(MessageNotAuthentic):
        await replace(agent, key=other.key).hello()
    assert await found(world, agent.id) == []


async def test_an_agent_that_found_another_devices_state_is_found_and_the_other_is_left_alone(world):
    original, copy = await enrolled(world, "revoke"), next(world.fleet)
    copy_id = await register(world, copy)
    await enroll(world, copy, state_of=original.id)
    (row,) = await findings.list_findings(world.service, copy_id, closed=False, before=None, limit=9)
    assert (row["kind"], row["detail"]["state_of"]) == ("cloned-state", original.id)
    assert await found(world, original.id) == []
    assert (await record(world, original.id)).state == "active"


@pytest.mark.parametrize("answer", ["quarantine", "revoke"])
async def test_a_tpm_with_another_devices_state_gets_what_the_policy_says_and_no_certificate(world, answer):
    original, copy = await enrolled(world), next(world.fleet)
    copy_id = await register(world, copy, answer=answer)
    with pytest.raises((QuarantineStands, DeviceRevoked)):
        await enroll(world, copy, state_of=original.id)
    rows = await world.service.store.read(lambda tx: enrollments.certificates_of(tx, copy_id))
    assert rows == []  # nothing was signed either


async def test_what_a_request_says_of_its_state_counts_only_once_it_is_proven(world):
    original, copy = await enrolled(world), next(world.fleet)
    copy_id = await register(world, copy, answer="revoke")
    challenge = await begin(world, copy, state_of=original.id)
    with pytest.raises(ActivationProofWrong):
        await complete(world, copy, challenge, activation_proof=bytes(32))
    assert await found(world, copy_id) == []


@pytest.mark.parametrize("own", [True, False])
async def test_an_agent_that_finds_its_own_state_or_one_of_nobody_is_no_finding(world, own):
    """Its certificate expired, or its TPM's owner changed; or the installation is another one."""
    agent = await enrolled(world)
    await enroll(world, agent.device, state_of=agent.id if own else "d-of-another-fleet")
    assert await found(world, agent.id) == []


# --- sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [99, 100, 101])
async def test_two_agents_with_one_state_folder_and_key_are_found_within_a_minute(world, number):
    """Copies that take the line from each other: whoever connects says hello. Whichever was started first."""
    one = await enrolled(world)
    two = one.copy(next(sessions), number)
    begun = world.clock()
    await one.connect()
    assert await found(world, one.id) == []
    await two.connect()
    await one.connect()
    await two.connect()
    assert await found(world, one.id) == ["two-sessions"]
    assert world.clock() - begun < MINUTE


async def test_a_device_that_loses_its_network_again_and_again_is_no_finding(world):
    agent = await enrolled(world, "revoke")
    for _ in range(12):
        assert await agent.connect()
    assert await found(world, agent.id) == []


async def test_a_device_that_restarts_again_and_again_is_no_finding(world):
    agent = await enrolled(world, "revoke")
    for number in range(12):
        assert await agent.connect()
        agent = agent.copy(next(sessions), 101 + number)
    assert await found(world, agent.id) == []


async def test_old_hellos_that_a_broker_repeats_after_a_restart_are_no_finding(world):
    agent = await enrolled(world, "revoke")
    old = [agent.hello_sealed() for _ in range(5)]
    for envelope in old[:2]:
        await agent.send(envelope)
    restarted = agent.copy(next(sessions), 101)
    await restarted.connect()
    for envelope in old * 2:  # some were delivered before, some come late
        world.clock.now += timedelta(seconds=1)
        with pytest.raises(MessageOutOfOrder):
            await restarted.send(envelope)
        await restarted.obey()
    assert await restarted.connect()
    assert await found(world, agent.id) == []


async def test_a_hello_that_comes_after_the_agent_lost_its_number_is_not_taken_for_a_restart(world):
    """It was signed by a run in between, whose number is above that of the one that speaks now, and below the first."""
    agent = await enrolled(world, "revoke")
    await agent.connect()
    late = agent.copy(next(sessions), 50).hello_sealed()
    agent = agent.copy(next(sessions), 3)
    assert await agent.connect()
    with pytest.raises(MessageOutOfOrder):
        await agent.send(late)
    assert await agent.connect()
    assert await found(world, agent.id) == []


async def test_an_agent_that_lost_its_session_number_is_heard_again_and_is_no_finding(world):
    agent = await enrolled(world, "revoke")
    await agent.connect()
    for number in (3, 4):
        agent = agent.copy(next(sessions), number)
        assert await agent.connect()
    assert await found(world, agent.id) == []


async def test_a_device_that_enrolls_anew_and_goes_on_with_its_session_is_no_finding(world):
    agent = await enrolled(world, "revoke")
    await agent.connect()
    await enroll(world, agent.device)
    agent.key = agent.device.device_key.private
    assert await agent.connect()
    assert await found(world, agent.id) == []


async def test_a_machine_that_was_copied_while_its_agent_ran_is_found(world):
    """Both go on from one session and one sequence."""
    one = await enrolled(world)
    await one.connect()
    two = replace(one, mark="copy")
    assert await one.hello()
    assert not await two.hello()
    assert await found(world, one.id) == ["two-sessions"]


async def test_a_question_is_only_for_the_session_that_it_is_asked_of(world):
    one = await enrolled(world)
    await one.connect()
    other = one.copy(next(sessions), 7)
    assert not await other.hello()
    assert [message for message in await one.obey() if isinstance(message, Welcome)] == []


# --- what the policy answers --------------------------------------------------------------------------------------


async def two_agents(world, answer):
    one = await enrolled(world, answer)
    two = one.copy(next(sessions), 200)
    for agent in (one, two, one, two):
        try:
            await agent.connect()
        except MessageNotAuthentic:  # the policy ended it meanwhile
            break
    return one.id


async def test_a_finding_alone_leaves_the_device_in_service(world):
    device_id = await two_agents(world, "finding")
    after = await record(world, device_id)
    assert (after.state, after.health) == ("active", "healthy")


async def test_quarantine_holds_the_certificates_and_a_pass_alone_does_not_release_them(world):
    device_id = await two_agents(world, "quarantine")
    after = await record(world, device_id)
    (row,) = await findings.list_findings(world.service, device_id, closed=False, before=None, limit=9)
    certificates = await world.service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    assert (after.state, after.health, row["response"]) == ("active", "quarantined", "quarantine")
    assert [(one.state, one.reason) for one in certificates] == [("revoked", "certificate-hold")]


async def test_out_of_a_quarantine_for_two_agents_leads_the_closed_finding_and_then_a_pass(world):
    """Both copies would pass: first a person says which of them is the device."""
    agent = await enrolled(world, "quarantine")
    agent.device.clock_ms -= 1_000_000
    with pytest.raises(TpmWentBack):
        await enroll(world, agent.device)
    agent.device.clock_ms += 2_000_000
    with pytest.raises(QuarantineStands):
        await enroll(world, agent.device)
    (row,) = await findings.list_findings(world.service, agent.id, closed=False, before=None, limit=9)
    await findings.close_finding(world.service, row["id"], by="ada")
    await enroll(world, agent.device)
    assert (await record(world, agent.id)).health == "healthy"


async def test_revocation_ends_the_device_for_good_by_the_policys_word(world):
    device_id = await two_agents(world, "revoke")
    after = await record(world, device_id)
    certificates = await world.service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    assert (after.state, after.held_from) == ("revoked", None)
    assert [(one.state, one.reason) for one in certificates] == [("revoked", "key-compromise")]
    (entry,) = [one for one in await leaves_of(world, "revocation") if one["device"] == device_id]
    assert (entry["by"], entry["reason"]) == ("policy", "key-compromise")


async def noticed_on_hold(world, answer, **said):
    """A device on an operator's hold about which something is found meanwhile; and then it is released."""
    agent = await enrolled(world, answer)
    await revoking.revoke_device(world.service, agent.id, "certificate-hold", by="ada")
    noticed = findings.Noticed(agent.id, Kind.CLONED_STATE, **said)
    assert await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    held = await record(world, agent.id)
    assert (held.state, held.held_from, held.health) == ("revoked", "active", "healthy")
    after = await revoking.release_device(world.service, agent.id, by="ada")
    (row,) = await findings.list_findings(world.service, agent.id, closed=False, before=None, limit=9)
    certificates = await world.service.store.read(lambda tx: enrollments.certificates_of(tx, agent.id))
    return agent, after, row["response"], [(one.state, one.reason, one.held_by) for one in certificates]


async def test_what_was_found_during_an_operators_hold_quarantines_at_the_release(world):
    agent, after, response, certificates = await noticed_on_hold(world, "quarantine")
    assert (after.state, after.health, response) == ("active", "quarantined", "quarantine")
    assert certificates == [("revoked", "certificate-hold", "health")]
    with pytest.raises(QuarantineStands):
        await enroll(world, agent.device)


async def test_what_was_found_during_an_operators_hold_ends_the_device_at_the_release(world):
    _, after, response, certificates = await noticed_on_hold(world, "revoke")
    assert (after.state, after.held_from, response) == ("revoked", None, "revoke")
    assert [one[:2] for one in certificates] == [("revoked", "key-compromise")]


@pytest.mark.parametrize(("answer", "said"), [("finding", {}), ("revoke", {"proven": False})])
async def test_what_a_policy_does_not_answer_a_release_does_not_either(world, answer, said):
    _, after, response, certificates = await noticed_on_hold(world, answer, **said)
    assert (after.state, after.health, response, certificates) == ("active", "healthy", None, [("issued", None, None)])


async def test_a_finding_that_was_closed_during_the_hold_has_no_consequence(world):
    agent = await enrolled(world, "revoke")
    await revoking.revoke_device(world.service, agent.id, "certificate-hold", by="ada")
    noticed = findings.Noticed(agent.id, Kind.ROLLBACK)
    await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    (row,) = await findings.list_findings(world.service, agent.id, closed=False, before=None, limit=9)
    await findings.close_finding(world.service, row["id"], by="ada")
    after = await revoking.release_device(world.service, agent.id, by="ada")
    assert (after.state, after.health) == ("active", "healthy")


async def test_what_is_no_sign_of_a_clone_is_never_answered(world):
    agent = await enrolled(world, "revoke")
    noticed = findings.Noticed(agent.id, Kind.SILENT)
    assert await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    assert (await record(world, agent.id)).state == "active"


async def test_what_a_monitoring_policy_let_pass_is_found_and_never_answered(world):
    agent = await enrolled(world, "watched")
    (row,) = await findings.list_findings(world.service, agent.id, closed=False, before=None, limit=9)
    assert (row["kind"], row["response"], row["detail"]["would_refuse"]) == ("monitor", None, 1)
    assert "4" in row["detail"]["first"]
    assert (await record(world, agent.id)).state == "active"


async def test_a_device_without_a_policy_in_force_is_found_and_left_alone(world):
    agent = await enrolled(world, "revoke")
    await world.service.ledger.write(lambda tx: devices.change(tx, agent.id, model="no-such-model"))
    noticed = findings.Noticed(agent.id, Kind.ROLLBACK)
    assert await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    assert (await record(world, agent.id)).state == "active"


# --- what operators see -------------------------------------------------------------------------------------------


async def test_a_finding_is_open_once_and_counts_what_comes_again(world):
    agent = await enrolled(world)
    noticed = findings.Noticed(agent.id, Kind.ROLLBACK, {"expected": "later"})
    again = [await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed)) for _ in range(3)]
    (row,) = await findings.list_findings(world.service, agent.device.serial, closed=True, before=None, limit=9)
    assert (again, row["times"]) == ([True, False, False], 3)
    entries = [one for one in await leaves_of(world, "finding") if one["device"] == agent.id]
    assert [(one["finding"], one["response"]) for one in entries] == [("rollback", None)]


async def test_a_closed_finding_stays_on_record_and_the_same_again_is_a_new_one(world):
    agent = await enrolled(world)
    noticed = findings.Noticed(agent.id, Kind.ROLLBACK)
    await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    (row,) = await findings.list_findings(world.service, agent.id, closed=False, before=None, limit=9)
    closed = await findings.close_finding(world.service, row["id"], by="ada")
    assert (closed["closed_by"], await found(world, agent.id)) == ("ada", [])
    with pytest.raises(StateConflict):
        await findings.close_finding(world.service, row["id"], by="ada")
    entries = [one for one in await leaves_of(world, "finding") if one["device"] == agent.id]
    assert entries[-1] == {"device": agent.id, "closed": "rollback", "key": "", "by": "ada"}
    assert await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    rows = await findings.list_findings(world.service, agent.id, closed=True, before=None, limit=9)
    assert [one["closed_by"] for one in rows] == [None, "ada"]


async def test_findings_are_listed_newest_first_in_pages(world):
    agent = await enrolled(world)
    for key in "abc":
        noticed = findings.Noticed(agent.id, Kind.CLONED_STATE, key=key)
        await world.service.ledger.write(lambda tx, one=noticed: findings.notice(tx, world.service, one))
    first = await findings.list_findings(world.service, agent.id, closed=False, before=None, limit=2)
    rest = await findings.list_findings(world.service, agent.id, closed=False, before=first[-1]["id"], limit=2)
    assert [row["id"] for row in first + rest] == sorted((row["id"] for row in first + rest), reverse=True)
    assert (len(first), len(rest)) == (2, 1)


async def test_findings_of_an_unknown_device_and_of_no_number_are_not_found(world):
    with pytest.raises(NotFound):
        await findings.list_findings(world.service, "nobody", closed=False, before=None, limit=9)
    with pytest.raises(NotFound):
        await findings.close_finding(world.service, 10**9, by="ada")


async def test_a_devices_record_shows_what_is_open_about_it(world):
    agent = await enrolled(world)
    noticed = findings.Noticed(agent.id, Kind.ROLLBACK, {"expected": "later"})
    await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    shown = await inventory.show_device(world.service, agent.id)
    assert [(row["kind"], row["detail"]) for row in shown["findings"]] == [("rollback", {"expected": "later"})]


async def test_what_is_open_is_measured_and_examined(world):
    agent = await enrolled(world)
    noticed = findings.Noticed(agent.id, Kind.SILENT)
    await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    await http_findings.measure(SimpleNamespace(call=SimpleNamespace(service=world.service)))
    counted = (await findings.count_open(world.service))["silent"]
    assert http_findings.OPEN.labels("silent")._value.get() == counted > 0
    (line,) = examined(world.directory, load_config(world.directory))
    assert line.status == "warn"
    assert f"{counted} silent" in line.says


async def test_what_a_device_said_is_kept_in_bounds(world):
    agent = await enrolled(world)
    detail = {f"field-{number}": "x" * 10_000 for number in range(100)}
    noticed = findings.Noticed(agent.id, Kind.ROLLBACK, detail)
    await world.service.ledger.write(lambda tx: findings.notice(tx, world.service, noticed))
    rows = await world.service.store.read(
        lambda tx: stored.page(tx, device_id=agent.id, closed=False, before=None, limit=1)
    )
    assert len(rows[0].detail) <= stored.DETAIL_MOST
