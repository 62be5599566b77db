"""What goes down and comes up by MQTT, without a broker: sessions, sequences, rotation, on real parts."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss.cryptography import tpm_ecc_private_key

from lab.ekca import create_ek_ca
from lab.swtpm import fresh_tpm
from provisioning import crls, enrollment, inventory, outbox, policies, revoking, rotation
from provisioning.app.compose import clock as system_clock
from provisioning.attestation.evidence import OpenChallenge
from provisioning.db import commands, devices, enrollments, leaves, revocations
from provisioning.refusals import (
    ChallengeExpired,
    MessageNotAuthentic,
    MessageOutOfOrder,
    NotFound,
    Refusal,
    RequestMalformed,
    SigningUnavailable,
    StateConflict,
    StorageUnavailable,
)
from tests.support.attestation import Device, answer, bound, policy_text, proof
from tests.support.service import NAME, Clock, make_installation, registered, running_service
from wire.binding import key_id
from wire.codec import decode, encode
from wire.envelope import open_envelope, seal, unverified_payload_type
from wire.messages import (
    PAYLOAD_TYPE,
    Attest,
    AttestationEvidence,
    Attested,
    EnrollmentRequest,
    Failed,
    Hello,
    Installed,
    PlatformEvidence,
    RefreshTrust,
    Refused,
    Renew,
    Rotate,
    Rotated,
    RotationEvidence,
    TrustBundle,
    UpdateReport,
    Welcome,
)

PCRS = (0, 4, 7)
KIND = {kind: message for message, kind in PAYLOAD_TYPE.items()}
HOUR = timedelta(hours=1)


@dataclass
class Agent:
    """An honest agent's side of the wire, in the test's hands."""

    service: object
    device: Device
    id: str
    ak: object
    key: object
    session: str = "session-1"
    session_number: int = 1
    sequence: int = 0
    seen: list = field(default_factory=list)

    def head(self, **changes):
        self.sequence += 1
        fields = {
            "message_id": f"m-{self.session}-{self.sequence}",
            "device": self.id,
            "session": self.session,
            "sequence": self.sequence,
            "not_after": self.service.clock() + HOUR,
        }
        return {**fields, **changes}

    def sealed(self, message, key=None):
        private = tpm_ecc_private_key(self.device.esapi, (key or self.key).handle)
        public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        signature = lambda data: private.sign(data, ec.ECDSA(hashes.SHA256()))  # noqa: E731
        return seal(PAYLOAD_TYPE[type(message)], encode(message), key_id(public), signature)

    async def up(self, message, key=None):
        await rotation.receive(self.service, self.id, self.sealed(message, key))

    def hello(self, **changes):
        fields = {
            "last_sequence": 0,
            "trust_version": 1,
            "certificate_serial": "0",
            "release_counter": 0,
            "session_number": self.session_number,
        }
        return Hello(**self.head(), **{**fields, **changes})

    async def down(self):
        """All commands that are due, opened with the command key."""
        public = self.service.keys.public("command")

        def verify(_keyid, signature, message):
            try:
                public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            except InvalidSignature:
                return False
            return True

        messages, sent = [], []
        await outbox.send_due(self.service, lambda *one: sent.append(one) or True)
        for topic, envelope in sent:
            assert topic == f"muster/v1/{self.id}/down"
            kind = unverified_payload_type(envelope)
            messages.append(decode(KIND[kind], open_envelope(envelope, kind, verify), limit=65536))
        self.seen += messages
        return messages

    async def only(self, kind):
        (message,) = [message for message in await self.down() if isinstance(message, kind)]
        return message

    def opened(self, challenge, flow):
        secret = self.device.open(self.ak, challenge.credential_blob, challenge.encrypted_secret)
        known = (challenge.enrollment_id, challenge.audience, challenge.nonce, secret, self.ak.public)
        return OpenChallenge(flow, *known, challenge.pcr_selection, challenge.boot_log, "")

    def evidence(self, command, key):
        return answer(self.device, self.ak, key, self.opened(command.challenge, "rotate"))


@pytest.fixture(scope="module")
def ek_ca(tmp_path_factory):
    return create_ek_ca(tmp_path_factory.mktemp("ek-ca") / "ca")


@pytest.fixture(scope="module")
def tpm(ek_ca):
    with fresh_tpm(ek_ca) as running:
        yield running


@pytest.fixture(scope="module")
def policy(ek_ca, tpm):
    values = tpm.pcrs()
    return policy_text(ek_ca.root_pem.read_text(), {pcr: values[pcr] for pcr in PCRS})


@pytest.fixture
def clock():
    return Clock(system_clock())


@pytest.fixture
def service(tmp_path, clock):
    with running_service(make_installation(tmp_path / "data", "\n[commands]\ngrace_seconds = 60\n"), clock) as running:
        yield running


@pytest.fixture
async def agent(service, tpm, policy):
    """An enrolled device that has not said hello."""
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as device:
        (device_id,) = await registered(service, policy, ("A-1", device.certificate))
        ak, key = device.ak(), device.key()
        request = EnrollmentRequest(ak_public=ak.public, pcr_banks=("sha256",), ek_certificate=device.certificate)
        challenge = await enrollment.begin_enrollment(service, request, source="test")
        agent = Agent(service, device, device_id, ak, key)
        evidence = answer(device, ak, key, agent.opened(challenge, "enroll"))
        await enrollment.complete_enrollment(
            service, challenge.enrollment_id, evidence, arrived=service.clock(), source="test"
        )
        yield agent


async def states(agent):
    rows = await agent.service.store.read(lambda tx: enrollments.certificates_of(tx, agent.id))
    return [row.state for row in rows]


async def rotate(agent):
    """The whole rotation, a second later; returns the new key and the answer."""
    agent.service.clock.now += timedelta(seconds=1)
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    command = await agent.only(Rotate)
    new = agent.device.key()
    evidence = agent.evidence(command, new)
    await agent.up(RotationEvidence(**agent.head(), in_reply_to=command.message_id, evidence=evidence))
    return new, command, await agent.only(Rotated)


def serial(rotated):
    return format(x509.load_der_x509_certificate(rotated.certificate).serial_number, "x")


async def test_nothing_goes_to_a_device_that_has_not_said_hello(agent):
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    assert await agent.down() == []


async def test_hello_is_answered_with_what_the_service_has_on_record(agent):
    hello = agent.hello()
    await agent.up(hello)
    welcome = await agent.only(Welcome)
    assert (welcome.in_reply_to, welcome.release_floor) == (hello.message_id, 0)


async def test_a_rotation_ends_with_the_new_key_and_the_old_certificate_revoked_after_its_grace(agent, clock):
    await agent.up(agent.hello())
    new, command, rotated = await rotate(agent)
    assert rotated.in_reply_to == command.message_id
    assert await states(agent) == ["issued", "issued"]
    installed = Installed(**agent.head(), in_reply_to=command.message_id, certificate_serial=serial(rotated))
    await agent.up(installed, key=new)
    assert await states(agent) == ["superseded", "issued"]
    await revoking.end_grace(agent.service)
    assert await states(agent) == ["superseded", "issued"]
    clock.now += timedelta(seconds=61)
    await revoking.end_grace(agent.service)
    assert await states(agent) == ["revoked", "issued"]
    crl = await crls.sign_due(agent.service, agent.service.authorities.active)
    rows = await agent.service.store.read(lambda tx: enrollments.certificates_of(tx, agent.id))
    assert x509.load_der_x509_crl(crl).get_revoked_certificate_by_serial_number(int(rows[0].serial, 16)) is not None
    assert await to_throw_off(agent) == {agent.id}


async def to_throw_off(agent):
    return await agent.service.store.read(lambda tx: revoking.to_throw_off(tx, revocations.since(tx, 0)))


async def test_a_new_hello_keeps_the_session_of_the_new_certificate_alive(agent, clock):
    await agent.up(agent.hello())
    new, command, rotated = await rotate(agent)
    agent.key = new
    await agent.up(agent.hello())
    await agent.up(Installed(**agent.head(), in_reply_to=command.message_id, certificate_serial=serial(rotated)))
    clock.now += timedelta(seconds=61)
    await revoking.end_grace(agent.service)
    assert await to_throw_off(agent) == set()


async def test_the_same_evidence_again_gets_the_same_certificate(agent, clock):
    await agent.up(agent.hello())
    clock.now += timedelta(seconds=1)
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    command = await agent.only(Rotate)
    evidence = agent.evidence(command, agent.device.key())
    answers = []
    for _ in range(2):
        await agent.up(RotationEvidence(**agent.head(), in_reply_to=command.message_id, evidence=evidence))
        answers.append((await agent.only(Rotated)).certificate)
    assert answers[0] == answers[1]
    assert await states(agent) == ["issued", "issued"]


async def test_other_evidence_for_an_answered_rotation_is_refused(agent):
    await agent.up(agent.hello())
    _, command, _ = await rotate(agent)
    evidence = agent.evidence(command, agent.device.key())
    with pytest.raises(Refusal) as refused:
        await agent.up(RotationEvidence(**agent.head(), in_reply_to=command.message_id, evidence=evidence))
    assert refused.value.code == "MUSTER-ATT-032"


async def test_evidence_that_does_not_pass_is_refused_by_class_and_ends_the_command(agent, policy):
    await agent.up(agent.hello())
    stricter = policy.replace("[pcrs.sha256]", '[pcrs.sha256]\n"8" = ["' + "11" * 32 + '"]')
    await policies.set_policy(agent.service, stricter, by="test")
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    command = await agent.only(Rotate)
    evidence = agent.evidence(command, agent.device.key())
    await agent.up(RotationEvidence(**agent.head(), in_reply_to=command.message_id, evidence=evidence))
    refused = await agent.only(Refused)
    assert (refused.in_reply_to, refused.code) == (command.message_id, "MUSTER-ATT-049")
    assert await states(agent) == ["revoked"]
    shown = await inventory.show_device(agent.service, agent.id)
    assert (shown["state"], shown["health"]) == ("active", "quarantined")


async def test_a_command_is_said_again_until_it_is_answered(agent, clock):
    await agent.up(agent.hello())
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    first = await agent.only(Rotate)
    assert await agent.down() == []
    clock.now += timedelta(seconds=20)
    again = await agent.only(Rotate)
    assert again.message_id == first.message_id
    assert again.challenge == first.challenge
    assert again.sequence > first.sequence


async def test_a_challenge_that_expired_is_made_anew(agent, clock):
    await agent.up(agent.hello())
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    first = await agent.only(Rotate)
    clock.now += timedelta(seconds=400)
    again = await agent.only(Rotate)
    assert again.message_id == first.message_id
    assert again.challenge.nonce != first.challenge.nonce


async def test_an_unanswered_command_expires(agent, clock):
    await agent.up(agent.hello())
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    clock.now += timedelta(hours=2)
    await outbox.expire(agent.service)
    assert [m for m in await agent.down() if isinstance(m, Rotate)] == []


async def test_a_replayed_message_has_no_effect(agent):
    await agent.up(agent.hello())
    failed = agent.sealed(Failed(**agent.head(), in_reply_to="x", reason="no"))
    await rotation.receive(agent.service, agent.id, failed)
    with pytest.raises(MessageOutOfOrder):
        await rotation.receive(agent.service, agent.id, failed)


async def test_reordered_messages_lose_the_older_one(agent):
    await agent.up(agent.hello())
    first = agent.sealed(Failed(**agent.head(), in_reply_to="x", reason="no"))
    second = agent.sealed(Failed(**agent.head(), in_reply_to="x", reason="no"))
    await rotation.receive(agent.service, agent.id, second)
    with pytest.raises(MessageOutOfOrder):
        await rotation.receive(agent.service, agent.id, first)


async def test_a_replayed_hello_of_an_old_session_is_refused(agent):
    old = agent.sealed(agent.hello())
    await rotation.receive(agent.service, agent.id, old)
    agent.session, agent.session_number, agent.sequence = "session-2", 2, 0
    await agent.up(agent.hello())
    with pytest.raises(MessageOutOfOrder):
        await rotation.receive(agent.service, agent.id, old)
    row = await agent.service.store.read(lambda tx: commands.session_of(tx, agent.id))
    assert row.session == "session-2"


async def test_a_message_of_another_session_is_refused(agent):
    await agent.up(agent.hello())
    with pytest.raises(MessageOutOfOrder):
        await agent.up(Failed(**agent.head(session="another"), in_reply_to="x", reason="no"))


async def test_the_service_goes_on_above_the_sequence_that_the_device_reports(agent):
    await agent.up(agent.hello(last_sequence=41))
    assert (await agent.only(Welcome)).sequence > 41


async def test_a_message_by_another_key_is_refused(agent):
    with pytest.raises(MessageNotAuthentic):
        await agent.up(agent.hello(), key=agent.device.key())


async def test_a_message_for_another_device_is_refused(agent):
    with pytest.raises(MessageNotAuthentic):
        await rotation.receive(agent.service, "d-other", agent.sealed(agent.hello()))
    with pytest.raises(MessageNotAuthentic):
        await agent.up(replace(agent.hello(), device="d-other"))


async def test_an_altered_message_is_refused(agent):
    envelope = json.loads(agent.sealed(agent.hello()))
    other = json.loads(agent.sealed(agent.hello()))
    envelope["payload"] = other["payload"]
    with pytest.raises(MessageNotAuthentic):
        await rotation.receive(agent.service, agent.id, json.dumps(envelope).encode())


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'"x"', b"{}" * 50_000, b"\xff\xfe", b"null", b"[" * 5000])
async def test_bytes_that_are_no_envelope_are_refused_by_name(agent, payload):
    with pytest.raises(RequestMalformed):
        await rotation.receive(agent.service, agent.id, payload)


async def test_a_command_of_the_service_sent_back_to_it_is_refused(agent):
    await agent.up(agent.hello())
    sent = []
    await outbox.send_due(agent.service, lambda _, envelope: sent.append(envelope) or True)
    (envelope,) = sent
    with pytest.raises(RequestMalformed):
        await rotation.receive(agent.service, agent.id, envelope)


async def test_the_old_key_cannot_say_that_the_new_pair_is_installed(agent):
    await agent.up(agent.hello())
    _, command, rotated = await rotate(agent)
    with pytest.raises(MessageNotAuthentic):
        await agent.up(Installed(**agent.head(), in_reply_to=command.message_id, certificate_serial=serial(rotated)))
    assert await states(agent) == ["issued", "issued"]


async def test_the_old_key_cannot_say_that_its_own_old_pair_is_the_new_one(agent):
    await agent.up(agent.hello())
    _, command, _ = await rotate(agent)
    rows = await agent.service.store.read(lambda tx: enrollments.certificates_of(tx, agent.id))
    installed = Installed(**agent.head(), in_reply_to=command.message_id, certificate_serial=rows[0].serial)
    with pytest.raises(MessageNotAuthentic):
        await agent.up(installed)
    assert await states(agent) == ["issued", "issued"]


async def test_a_late_installed_still_ends_the_old_certificate(agent, clock):
    await agent.up(agent.hello())
    new, command, rotated = await rotate(agent)
    clock.now += timedelta(hours=3)
    await outbox.expire(agent.service)
    await agent.up(Installed(**agent.head(), in_reply_to=command.message_id, certificate_serial=serial(rotated)), new)
    assert await states(agent) == ["superseded", "issued"]


async def test_installed_said_twice_counts_once(agent, clock):
    await agent.up(agent.hello())
    new, command, rotated = await rotate(agent)
    for _ in range(2):
        installed = Installed(**agent.head(), in_reply_to=command.message_id, certificate_serial=serial(rotated))
        await agent.up(installed, new)
    entries = await agent.service.store.read(lambda tx: leaves.of_kind(tx, "rotation"))
    assert len(entries) == 1


async def test_a_revoked_key_is_not_heard(agent):
    await agent.up(agent.hello())
    await revoking.revoke_device(agent.service, agent.id, "key-compromise", by="test")
    with pytest.raises(MessageNotAuthentic):
        await agent.up(Failed(**agent.head(), in_reply_to="x", reason="no"))


async def test_a_device_asks_for_its_renewal(agent, clock):
    clock.now += timedelta(days=21)
    await agent.up(agent.hello())
    await agent.up(Renew(**agent.head(), certificate_serial="0"))
    assert await agent.only(Rotate)


async def test_a_renewal_in_the_first_half_of_a_lifetime_is_refused(agent, clock):
    clock.now += timedelta(days=14)
    await agent.up(agent.hello())
    with pytest.raises(StateConflict):
        await agent.up(Renew(**agent.head(), certificate_serial="0"))
    assert [message for message in await agent.down() if isinstance(message, Rotate)] == []


async def test_rotation_is_ordered_once_however_often_it_is_asked_for(agent):
    await agent.up(agent.hello())
    for _ in range(3):
        await outbox.order(agent.service, agent.id, "rotate", by="test")
    assert await agent.only(Rotate)


async def test_an_unknown_device_cannot_be_rotated(service):
    with pytest.raises(NotFound):
        await outbox.order(service, "nobody", "rotate", by="test")


async def attest(agent, **changes):
    await outbox.order(agent.service, agent.id, "attest", by="test")
    command = await agent.only(Attest)
    known = agent.opened(command.challenge, "attest")
    fields = {
        "quote": agent.device.quote(agent.ak, bound(known, "quote", b""), known.pcr_selection),
        "pcrs": agent.device.pcrs(known.pcr_selection),
        "activation_proof": proof(known, b""),
    }
    evidence = PlatformEvidence(**{**fields, **changes})
    message = AttestationEvidence(**agent.head(), in_reply_to=command.message_id, evidence=evidence)
    await agent.up(message)
    return command


async def test_a_device_attests_on_demand(agent, clock):
    await agent.up(agent.hello())
    clock.now += timedelta(minutes=5)
    command = await attest(agent)
    attested = await agent.only(Attested)
    assert attested.in_reply_to == command.message_id
    assert attested.expires_at > clock()


async def test_an_attestation_with_another_proof_is_refused(agent):
    await agent.up(agent.hello())
    await attest(agent, activation_proof=hashlib.sha256(b"guess").digest())
    assert (await agent.only(Refused)).code == "MUSTER-ATT-022"


# --- what a device, or bad luck, may not do to the outbox -----------------------------------------------------------


@pytest.mark.parametrize("reported", [2**63 - 1, 2**62 + 1, -1])
async def test_a_sequence_that_leaves_no_room_above_it_is_refused(agent, reported):
    with pytest.raises(RequestMalformed):
        await agent.up(agent.hello(last_sequence=reported))
    await agent.up(agent.hello(last_sequence=2**62))
    assert (await agent.only(Welcome)).sequence == 2**62 + 1


async def test_what_could_not_be_signed_is_not_taken_for_said(agent):
    await agent.up(agent.hello())

    class Broken:
        adopt = staticmethod(agent.service.keys.adopt)

        async def sign(self, *_):
            raise SigningUnavailable

    with pytest.raises(SigningUnavailable):
        await outbox.send_due(replace(agent.service, keys=Broken()), lambda *_: True)
    assert await agent.only(Welcome)


async def test_hello_acknowledges_the_bundle_and_who_is_behind_is_told_to_refresh(agent):
    """It was away when the others were told."""
    service = agent.service
    await agent.up(agent.hello(trust_version=1))
    assert (await service.store.read(lambda tx: devices.by_id(tx, agent.id))).trust_version == 1
    assert RefreshTrust not in [type(message) for message in await agent.down()]
    known = service.authorities.bundles
    try:
        service.authorities.bundles = {**known, 2: TrustBundle(2, NAME, (), (), ())}
        await agent.up(agent.hello(trust_version=1))
        assert RefreshTrust in [type(message) for message in await agent.down()]
        await agent.up(agent.hello(trust_version=2))
        assert RefreshTrust not in [type(message) for message in await agent.down()]
        assert (await service.store.read(lambda tx: devices.by_id(tx, agent.id))).trust_version == 2
    finally:
        service.authorities.bundles = known


async def test_what_the_broker_did_not_take_is_not_taken_for_said(agent):
    await agent.up(agent.hello())
    await outbox.send_due(agent.service, lambda *_: False)
    assert await agent.only(Welcome)


async def test_of_two_commands_the_one_that_was_published_before_a_failure_counts(agent):
    await agent.up(agent.hello())
    await outbox.order(agent.service, agent.id, "refresh-trust", by="test")
    sent = []

    class Once:
        adopt = staticmethod(agent.service.keys.adopt)

        signed = 0

        async def sign(self, *arguments):
            Once.signed += 1
            if Once.signed > 1:
                raise SigningUnavailable
            return await agent.service.keys.sign(*arguments)

    with pytest.raises(SigningUnavailable):
        await outbox.send_due(replace(agent.service, keys=Once()), lambda *one: sent.append(one) or True)
    assert len(sent) == 1
    assert len(await agent.down()) == 1


async def test_a_session_that_was_forgotten_a_moment_ago_stops_nobody_elses_commands(agent, monkeypatch):
    await agent.up(agent.hello())
    due = commands.due

    def then_forgotten(tx, *arguments):
        rows = due(tx, *arguments)
        monkeypatch.setattr(commands, "due", due)
        return rows

    monkeypatch.setattr(commands, "due", then_forgotten)
    read = agent.service.store.read

    class Store:
        async def read(self, work):
            found = await read(work)
            await agent.service.ledger.write(lambda tx: commands.forget_session(tx, agent.id))
            return found

    sent = []
    await outbox.send_due(replace(agent.service, store=Store()), lambda *one: sent.append(one) or True)
    assert sent == []
    agent.session, agent.session_number, agent.sequence = "session-2", 2, 0
    await agent.up(agent.hello())
    assert len(await agent.down()) == 2  # the welcome of then, and of now


async def test_a_database_out_of_order_does_not_fail_a_command(agent, monkeypatch):
    await agent.up(agent.hello())
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    with monkeypatch.context() as patch:

        def busy(*_):
            raise StorageUnavailable

        patch.setattr(outbox, "_with_policy", busy)
        with pytest.raises(StorageUnavailable):
            await agent.down()
    assert await agent.only(Rotate)


async def test_an_answer_to_a_challenge_that_was_replaced_is_late_and_no_fault(agent, clock):
    await agent.up(agent.hello())
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    first = await agent.only(Rotate)
    late = agent.evidence(first, agent.device.key())
    clock.now += timedelta(seconds=400)
    second = await agent.only(Rotate)
    with pytest.raises(ChallengeExpired):
        await agent.up(RotationEvidence(**agent.head(), in_reply_to=first.message_id, evidence=late))
    assert (await inventory.show_device(agent.service, agent.id))["health"] == "healthy"
    evidence = agent.evidence(second, agent.device.key())
    await agent.up(RotationEvidence(**agent.head(), in_reply_to=second.message_id, evidence=evidence))
    assert await agent.only(Rotated)


async def test_a_device_cannot_fail_another_ones_command(agent):
    await agent.up(agent.hello())
    other = outbox.Order("rotate", "d-other", "test")
    theirs = await agent.service.ledger.write(lambda tx: outbox.put(tx, agent.service, other))
    await agent.up(Failed(**agent.head(), in_reply_to=theirs, reason="no"))
    assert (await agent.service.store.read(lambda tx: commands.get(tx, theirs))).state == "pending"


async def test_a_renewal_that_is_asked_for_again_and_again_is_one_leaf(agent, clock):
    clock.now += timedelta(days=21)
    await agent.up(agent.hello())
    for _ in range(5):
        await agent.up(Renew(**agent.head(), certificate_serial="0"))
    assert len(await agent.service.store.read(lambda tx: leaves.of_kind(tx, "order"))) == 1
    await outbox.order(agent.service, agent.id, "rotate", by="an operator")
    assert len(await agent.service.store.read(lambda tx: leaves.of_kind(tx, "order"))) == 2


async def test_the_end_of_an_update_that_is_reported_again_is_one_leaf(agent):
    row = {"target": "t", "version": "2", "hardware": "h", "release_counter": 2, "length": 1, "sha256": "00"}
    row |= {"reference_values": "{}", "published_at": 0, "withdrawn": False}

    def assigned(tx):
        commands.put_release(tx, row)
        commands.put_assignment(tx, agent.id, target="t", now=0)

    await agent.service.ledger.write(assigned)
    await agent.up(agent.hello())
    for _ in range(3):
        await agent.up(UpdateReport(**agent.head(), state="failed", version="2", release_counter=2))
    assert len(await agent.service.store.read(lambda tx: leaves.of_kind(tx, "update"))) == 1


async def test_what_was_said_once_is_forgotten_after_a_day_and_a_rotation_is_not(agent, clock):
    await agent.up(agent.hello())
    await rotate(agent)
    clock.now += timedelta(days=2)
    await outbox.expire(agent.service)
    kinds = {row.kind for row in await agent.service.store.read(lambda tx: commands.commands_of(tx, agent.id, 100))}
    assert "welcome" not in kinds
    assert {"rotate", "rotated"} <= kinds


async def test_a_rotation_rests_on_the_ek_certificate_that_passed_not_on_the_factorys_copy(agent):
    await agent.service.ledger.write(lambda tx: devices.change(tx, agent.id, ek_certificate=b"another one"))
    request = EnrollmentRequest(
        ak_public=agent.ak.public, pcr_banks=("sha256",), ek_certificate=agent.device.certificate
    )
    await enrollment.begin_enrollment(agent.service, request, source="test")
    await agent.up(agent.hello())
    await outbox.order(agent.service, agent.id, "rotate", by="test")
    assert await agent.only(Rotate)


async def test_a_revoked_certificate_stands_in_one_crl_after_its_end(agent, clock):
    (row,) = await agent.service.store.read(lambda tx: enrollments.certificates_of(tx, agent.id))
    await revoking.revoke_device(agent.service, agent.id, "key-compromise", by="test")
    clock.now += timedelta(seconds=2)  # two CRLs are never of one second, and the first was made with the installation
    listed = []
    for _ in range(3):
        crl = await crls.sign_due(agent.service, agent.service.authorities.active)
        found = x509.load_der_x509_crl(crl).get_revoked_certificate_by_serial_number(int(row.serial, 16))
        listed.append(found is not None)
        clock.now += timedelta(days=31)
    assert listed == [True, True, False]
