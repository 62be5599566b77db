"""Enrollment from the request to the durable certificate, on real parts: who wins, who is refused."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.ekca import create_ek_ca
from lab.swtpm import fresh_tpm
from provisioning import enrollment, explaining, inventory, journal, outbox, policies
from provisioning.app.compose import clock as system_clock
from provisioning.attestation.evidence import OpenChallenge
from provisioning.db import commands, devices, enrollments, leaves
from provisioning.refusals import (
    ActivationProofWrong,
    ApprovalRequired,
    ChallengeExpired,
    ChallengeTaken,
    ChallengeUnknown,
    DeviceKeyReused,
    DeviceRevoked,
    EkNotRegistered,
    EnrollmentQuotaSpent,
    NoPolicyForModel,
    PcrsNotAccepted,
    ProfileUnknown,
    Refusal,
    SerialHasAnotherTpm,
    SigningUnavailable,
    TpmCleared,
    TpmWentBack,
)
from provisioning.revoking import revoke_device
from tests.support.attestation import Device, answer, policy_text
from tests.support.service import Clock, make_installation, registered, running_service
from wire.messages import EnrollmentRequest

PCRS = (0, 4, 7)


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
    return policy_text(ek_ca.root_pem.read_text(), {pcr: values[pcr] for pcr in PCRS}, enrollments_per_day="1000")


@pytest.fixture
def device(tpm):
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("muster") / "data")


@pytest.fixture
def directory_of_few(tmp_path):
    return make_installation(tmp_path / "few", "\n[limits]\nunknown_refusals = 2\n")


@pytest.fixture
def clock():
    return Clock(system_clock())


@pytest.fixture
def service(tmp_path, clock):
    with running_service(make_installation(tmp_path / "data"), clock) as running:
        yield running


def request_of(device, ak, **changes):
    fields = {"ak_public": ak.public, "pcr_banks": ("sha256",), "ek_certificate": device.certificate}
    return EnrollmentRequest(**{**fields, **changes})


def opened(device, ak, challenge):
    """The challenge as the honest device sees it, with the secret that its TPM opened."""
    secret = device.open(ak, challenge.credential_blob, challenge.encrypted_secret)
    return OpenChallenge(
        "enroll",
        challenge.enrollment_id,
        challenge.audience,
        challenge.nonce,
        secret,
        ak.public,
        challenge.pcr_selection,
        challenge.boot_log,
        "",
    )


async def begin(service, device, ak, **changes):
    return await enrollment.begin_enrollment(service, request_of(device, ak, **changes), source="test")


async def complete(service, challenge, evidence, arrived=None):
    when = arrived or service.clock()
    return await enrollment.complete_enrollment(service, challenge.enrollment_id, evidence, arrived=when, source="test")


async def enroll(service, device, ak, key):
    challenge = await begin(service, device, ak)
    return await complete(service, challenge, answer(device, ak, key, opened(device, ak, challenge)))


async def test_a_registered_device_that_proves_itself_gets_its_ldevid(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    issued = await enroll(service, device, ak, key)
    certificate = x509.load_der_x509_certificate(issued.certificate)
    assert issued.device_id == device_id
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == device_id
    assert certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value == "A-1"
    certificate.verify_directly_issued_by(service.authorities.active.certificate)
    shown = await inventory.show_device(service, "A-1")
    assert (shown["state"], shown["health"]) == ("active", "healthy")
    stored = await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    assert [(row.state, row.tbs) for row in stored] == [("issued", certificate.tbs_certificate_bytes)]


async def test_a_tpm_that_nobody_registered_is_refused(service, device, policy):
    with pytest.raises(EkNotRegistered) as refused:
        await begin(service, device, device.ak())
    explained = await explaining.explain(service, refused.value.instance)
    assert explained["name"] == "EkNotRegistered"


async def test_a_registered_serial_with_another_tpm_is_refused(service, device, policy, ek_ca):
    with fresh_tpm(ek_ca, serial="other") as other:
        await registered(service, policy, ("A-1", other.ek_certificates()["rsa2048"]))
    with pytest.raises(SerialHasAnotherTpm):
        await begin(service, device, device.ak(), serial="A-1")


async def test_a_registered_tpm_under_another_serial_is_refused(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    with pytest.raises(SerialHasAnotherTpm):
        await begin(service, device, device.ak(), serial="A-2")


async def test_a_model_without_policy_is_refused(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    await service.ledger.write(lambda tx: devices.change(tx, devices.by_serial(tx, "A-1").id, model="unknown"))
    with pytest.raises(NoPolicyForModel):
        await begin(service, device, device.ak())


async def test_a_profile_that_the_record_does_not_allow_is_refused(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    with pytest.raises(ProfileUnknown):
        await begin(service, device, device.ak(), profile="issuing-ca")


async def test_the_profile_of_the_record_may_be_named_and_is_what_a_device_gets(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    await service.ledger.write(lambda tx: devices.change(tx, device_id, profile="gateway"))
    with pytest.raises(ProfileUnknown) as refused:
        await begin(service, device, device.ak(), profile="ldevid")
    assert (refused.value.expected, refused.value.actual) == ("gateway", "ldevid")
    ak = device.ak()
    challenge = await begin(service, device, ak, profile="gateway")
    issued = await complete(service, challenge, answer(device, ak, device.key(), opened(device, ak, challenge)))
    certificate = x509.load_der_x509_certificate(issued.certificate)
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]


async def test_the_same_evidence_again_gets_the_same_certificate(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    challenge = await begin(service, device, ak)
    evidence = answer(device, ak, key, opened(device, ak, challenge))
    first = await complete(service, challenge, evidence)
    assert await complete(service, challenge, evidence) == first


async def test_replayed_evidence_for_another_challenge_is_refused(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    first, second = await begin(service, device, ak), await begin(service, device, ak)
    evidence = answer(device, ak, key, opened(device, ak, first))
    await complete(service, first, evidence)
    with pytest.raises(ActivationProofWrong):
        await complete(service, second, evidence)


async def test_other_evidence_for_an_answered_challenge_is_refused(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    challenge = await begin(service, device, ak)
    await complete(service, challenge, answer(device, ak, device.key(), opened(device, ak, challenge)))
    with pytest.raises(ChallengeTaken):
        await complete(service, challenge, answer(device, ak, device.key(), opened(device, ak, challenge)))


async def test_of_two_different_answers_at_once_exactly_one_is_accepted(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    challenge = await begin(service, device, ak)
    known = opened(device, ak, challenge)
    answers = [answer(device, ak, device.key(), known) for _ in range(2)]
    results = await asyncio.gather(*(complete(service, challenge, e) for e in answers), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["ChallengeTaken", "Issued"]


async def test_the_same_answer_twice_at_once_gets_one_certificate(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    challenge = await begin(service, device, ak)
    evidence = answer(device, ak, key, opened(device, ak, challenge))
    results = await asyncio.gather(*(complete(service, challenge, evidence) for _ in range(8)))
    assert len({result.certificate for result in results}) == 1
    assert len(await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))) == 1


async def test_an_expired_challenge_is_refused(service, device, policy, clock):
    await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    challenge = await begin(service, device, ak)
    evidence = answer(device, ak, device.key(), opened(device, ak, challenge))
    with pytest.raises(ChallengeExpired):
        await complete(service, challenge, evidence, clock() + timedelta(seconds=301))


async def test_expiry_is_judged_by_the_arrival_of_the_headers(service, device, policy, clock):
    await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    challenge = await begin(service, device, ak)
    evidence = answer(device, ak, device.key(), opened(device, ak, challenge))
    arrived = clock() + timedelta(seconds=299)
    clock.now += timedelta(seconds=310)
    assert (await complete(service, challenge, evidence, arrived)).certificate


async def test_an_unknown_challenge_is_refused(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    challenge = await begin(service, device, ak)
    evidence = answer(device, ak, device.key(), opened(device, ak, challenge))
    with pytest.raises(ChallengeUnknown):
        await complete(service, replace(challenge, enrollment_id="x" * 22), evidence)


async def test_a_stranger_who_answers_for_a_victims_ek_leaves_the_victim_healthy(service, device, policy):
    """A stranger knows the victim's public EK certificate, gets a challenge for it, and cannot open it."""
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    await enroll(service, device, ak, key)
    challenge = await begin(service, device, ak)
    garbage = replace(answer(device, ak, device.key(), opened(device, ak, challenge)), activation_proof=b"\0" * 32)
    with pytest.raises(ActivationProofWrong):
        await complete(service, challenge, garbage)
    shown = await inventory.show_device(service, device_id)
    assert (shown["state"], shown["health"]) == ("active", "healthy")


async def test_own_evidence_that_fails_marks_the_device(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    challenge = await begin(service, device, ak)
    wrong = policy.replace("[pcrs.sha256]", '[pcrs.sha256]\n"8" = ["' + "11" * 32 + '"]')
    await policies.set_policy(service, wrong, by="test")
    challenge = await begin(service, device, ak)
    with pytest.raises(PcrsNotAccepted) as refused:
        await complete(service, challenge, answer(device, ak, key, opened(device, ak, challenge)))
    shown = await inventory.show_device(service, device_id)
    assert shown["health"] == "failing"
    explained = await explaining.explain(service, refused.value.instance)
    assert explained["proven_own"] is True
    assert any("8" in finding["what"] for finding in explained["findings"])


async def test_refused_evidence_again_is_refused_the_same_way(service, device, policy):
    await registered(
        service,
        policy.replace("[pcrs.sha256]", '[pcrs.sha256]\n"8" = ["' + "11" * 32 + '"]'),
        ("A-1", device.certificate),
    )
    ak, key = device.ak(), device.key()
    challenge = await begin(service, device, ak)
    evidence = answer(device, ak, key, opened(device, ak, challenge))
    instances = set()
    for _ in range(2):
        with pytest.raises(PcrsNotAccepted) as refused:
            await complete(service, challenge, evidence)
        instances.add(refused.value.instance)
    assert len(instances) == 1


async def test_twenty_enrollments_of_one_ek_at_once_make_one_identity(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    challenges = await asyncio.gather(*(begin(service, device, ak) for _ in range(20)))
    answers = []
    for challenge in challenges:
        with Device(device.esapi, device.certificate) as other:
            answers.append(answer(other, ak, other.key(), opened(device, ak, challenge)))
    issued = await asyncio.gather(*(complete(service, c, e) for c, e in zip(challenges, answers, strict=True)))
    assert {one.device_id for one in issued} == {device_id}
    rows = await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    assert sorted(row.state for row in rows) == ["issued"] + ["superseded"] * 19


async def test_another_ak_of_the_same_ek_needs_an_approval(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    await enroll(service, device, device.ak(), device.key())
    other = device.ak(alg="ecc384:ecdsa-sha384:null")
    challenge = await begin(service, device, other)
    evidence = answer(device, other, device.key(), opened(device, other, challenge))
    with pytest.raises(ApprovalRequired):
        await complete(service, challenge, evidence)
    await inventory.approve(service, "A-1", by="test")
    challenge = await begin(service, device, other)
    assert (
        await complete(service, challenge, answer(device, other, device.key(), opened(device, other, challenge)))
    ).device_id


async def test_a_key_that_has_a_certificate_gets_no_second_one(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    await enroll(service, device, ak, key)
    with pytest.raises(DeviceKeyReused):
        await enroll(service, device, ak, key)


async def test_a_device_that_enrolls_too_often_is_told_to_wait(service, device, policy):
    few = policy.replace("enrollments_per_day = 1000", "enrollments_per_day = 2")
    await registered(service, few, ("A-1", device.certificate))
    ak = device.ak()
    for _ in range(2):
        await enroll(service, device, ak, device.key())
    with pytest.raises(EnrollmentQuotaSpent):
        await begin(service, device, ak)


async def test_challenges_opened_in_advance_do_not_go_around_the_quota(service, device, policy):
    few = policy.replace("enrollments_per_day = 1000", "enrollments_per_day = 2")
    (device_id,) = await registered(service, few, ("A-1", device.certificate))
    ak = device.ak()
    challenges = [await begin(service, device, ak) for _ in range(3)]
    for challenge in challenges[:2]:
        await complete(service, challenge, answer(device, ak, device.key(), opened(device, ak, challenge)))
    with pytest.raises(EnrollmentQuotaSpent):
        await complete(service, challenges[2], answer(device, ak, device.key(), opened(device, ak, challenges[2])))
    assert (await inventory.show_device(service, device_id))["health"] == "healthy"


async def test_what_strangers_leave_behind_is_counted_once_and_forgotten(directory_of_few, device, policy, clock):
    with running_service(directory_of_few, clock) as service:
        await registered(service, policy, ("A-1", device.certificate))
        ak = device.ak()
        for _ in range(4):  # somebody who knows the EK certificate, and nothing else
            challenge = await begin(service, device, ak)
            wrong = replace(answer(device, ak, device.key(), opened(device, ak, challenge)), activation_proof=b"x")
            with pytest.raises(ActivationProofWrong):
                await complete(service, challenge, wrong)
        clock.now += timedelta(hours=2)
        await outbox.expire(service)
        assert await service.store.read(lambda tx: enrollments.refusals_of_strangers(tx, 0, 2**40)) == 4
        await journal.note_strangers(service)
        (row,) = await service.store.read(lambda tx: leaves.of_kind(tx, journal.STRANGERS))
        assert json.loads(row.record)["count"] == 4
        await outbox.expire(service)
        assert await service.store.read(lambda tx: enrollments.refusals_of_strangers(tx, 0, 2**40)) == 2
        assert await service.store.read(lambda tx: enrollments.get(tx, challenge.enrollment_id)) is None


async def test_more_than_a_piece_is_forgotten_in_one_round(directory_of_few, device, policy, clock, monkeypatch):
    monkeypatch.setattr(outbox, "FORGOTTEN_AT_ONCE", 1)
    with running_service(directory_of_few, clock) as service:
        for _ in range(5):
            with pytest.raises(EkNotRegistered):
                await begin(service, device, device.ak())
        clock.now += timedelta(seconds=60)
        await journal.note_strangers(service)
        await outbox.expire(service)
        assert await service.store.read(lambda tx: enrollments.refusals_of_strangers(tx, 0, 2**40)) == 2


async def test_a_revoked_device_gets_no_challenge(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    await enroll(service, device, device.ak(), device.key())
    await revoke_device(service, "A-1", "key-compromise", by="test")
    with pytest.raises(DeviceRevoked):
        await begin(service, device, device.ak())
    rows = await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    assert [(row.state, row.reason) for row in rows] == [("revoked", "key-compromise")]


async def test_a_tpm_reset_a_power_cut_and_a_clear_are_told_apart(service, ek_ca, policy):
    with fresh_tpm(ek_ca, serial="apart") as tpm:
        certificate = tpm.ek_certificates()["rsa2048"]
        await registered(service, policy, ("A-1", certificate))

        async def once():
            with tpm.esapi() as esapi, Device(esapi, certificate) as opened_device:
                return await enroll(service, opened_device, opened_device.ak(), opened_device.key())

        await once()
        tpm.reset()
        assert (await once()).device_id
        tpm.power_cut()
        tpm.start()
        device_id = (await once()).device_id
        await service.ledger.write(lambda tx: devices.change(tx, device_id, clock=3_600_000))
        tpm.clear()
        with pytest.raises(TpmCleared):
            await once()
        await inventory.approve(service, "A-1", by="test")
        assert (await once()).device_id


async def test_counters_that_go_back_are_refused(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    await enroll(service, device, ak, device.key())
    await service.ledger.write(lambda tx: devices.change(tx, device_id, restart_count=9))
    with pytest.raises(TpmWentBack):
        await enroll(service, device, ak, device.key())


async def test_without_the_hsm_nothing_is_lost_and_the_same_evidence_succeeds_later(
    service, device, policy, monkeypatch
):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak, key = device.ak(), device.key()
    challenge = await begin(service, device, ak)
    evidence = answer(device, ak, key, opened(device, ak, challenge))

    async def gone(_label, _message):
        raise SigningUnavailable(expected="a signature", actual="no token")

    with monkeypatch.context() as broken:
        broken.setattr(service.keys, "sign", gone)
        with pytest.raises(SigningUnavailable):
            await complete(service, challenge, evidence)
    (reserved,) = await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    assert (reserved.state, reserved.signature) == ("reserved", None)
    issued = await complete(service, challenge, evidence)
    assert x509.load_der_x509_certificate(issued.certificate).tbs_certificate_bytes == reserved.tbs


async def test_serial_and_bytes_are_durable_before_the_hsm_signs(service, device, policy, monkeypatch):
    await registered(service, policy, ("A-1", device.certificate))
    seen = []
    sign = service.keys.sign

    async def watch(label, message):
        rows = await service.store.read(lambda tx: enrollments.certificates_after(tx, "", 100))
        seen.append([row.state for row in rows if row.tbs == message])
        return await sign(label, message)

    monkeypatch.setattr(service.keys, "sign", watch)
    await enroll(service, device, device.ak(), device.key())
    assert seen == [["reserved"]]


async def test_an_hsm_that_signs_other_bytes_issues_nothing(service, device, policy, monkeypatch):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    sign = service.keys.sign

    async def other(label, message):
        return await sign(label, message + b"!")

    monkeypatch.setattr(service.keys, "sign", other)
    with pytest.raises(Refusal) as refused:
        await enroll(service, device, device.ak(), device.key())
    assert refused.value.code == "MUSTER-ISS-001"
    (row,) = await service.store.read(lambda tx: enrollments.certificates_of(tx, device_id))
    assert (row.state, row.signature) == ("reserved", None)


async def test_a_new_enrollment_forgets_the_session_of_the_old_identity(service, device, policy):
    (device_id,) = await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    await enroll(service, device, ak, device.key())
    values = {
        "session": "s",
        "session_number": 7,
        "up_sequence": 1,
        "down_sequence": 1,
        "trust_version": 1,
        "certificate_serial": "1",
        "at": 0,
    }
    await service.ledger.write(lambda tx: commands.put_session(tx, device_id, values))
    await enroll(service, device, ak, device.key())
    assert await service.store.read(lambda tx: commands.session_of(tx, device_id)) is None


async def test_the_policy_of_the_challenge_is_the_one_that_judges(service, device, policy):
    await registered(service, policy, ("A-1", device.certificate))
    ak = device.ak()
    challenge = await begin(service, device, ak)
    await policies.set_policy(
        service, policy.replace("[pcrs.sha256]", '[pcrs.sha256]\n"9" = ["' + "22" * 32 + '"]'), by="test"
    )
    evidence = answer(device, ak, device.key(), opened(device, ak, challenge))
    assert (await complete(service, challenge, evidence)).device_id
    listed = await policies.list_policies(service)
    assert [entry["version"] for entry in listed] == [2]
    assert json.dumps(listed)


async def test_refusals_of_strangers_make_one_leaf_together(service, device, policy, clock):
    for _ in range(3):
        with pytest.raises(EkNotRegistered):
            await begin(service, device, device.ak())
    before = await service.store.read(leaves.count)
    clock.now += timedelta(seconds=60)
    await journal.note_strangers(service)
    await journal.note_strangers(service)
    rows = await service.store.read(lambda tx: leaves.unnumbered(tx, 100))
    assert len(rows) == before + 1
    (row,) = await service.store.read(lambda tx: leaves.of_kind(tx, journal.STRANGERS))
    assert json.loads(row.record)["count"] == 3
