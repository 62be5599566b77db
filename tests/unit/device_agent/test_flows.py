"""Enrollment and rotation, step by step, with a service and a TPM that a test plays."""

import contextlib
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from device_agent import enroll, rotate
from device_agent.certificates import CertificateRefused
from device_agent.device import Device
from device_agent.enroll import Stopped, enroll_once, enroll_until_done
from device_agent.http import NotFound, ServiceRefused, ServiceUnreachable
from device_agent.identity import IdentityDetails, IdentityStore
from device_agent.rotate import NewPairUnusable, NotAwaited, Rotation
from device_agent.selftest import TlsKeyUnusable
from device_agent.tpm import DeviceKey, Endorsement, NoEndorsementKey
from tests.unit.device_agent.builders import DEVICE, NOW, SERVICE, Authority, der, new_key, spki
from tests.unit.device_agent.test_commands import CHALLENGE, EVIDENCE, ROTATE, ROTATED
from wire.messages import Issued, MqttAddress
from wire.problems import Problem, ProblemDocument

CA = Authority()
ADDRESS = MqttAddress("127.0.0.1", 8883)
EKS = (Endorsement("EK-RSA2048", b"rsa"), Endorsement("EK-HIGH-ECC384", b"ecc"))


def refusal(problem, status=403):
    return ServiceRefused(status, ProblemDocument(problem.uri, "T", status, "MUSTER-X", "r-1"), 0.0)


class Stage:
    """A device whose TPM hands out software keys, and a service that follows a script."""

    def __init__(self, folder):
        self.keys, self.posted, self.script, self.waits = [], [], [], []
        self.pinned = (der(CA.root),)
        trust = SimpleNamespace(bundle=SimpleNamespace(ca_roots=self.pinned, issuing_keys=()))
        self.trust = trust
        self.ek = None
        self.device = SimpleNamespace(
            config=SimpleNamespace(state_dir=folder, serial="dev-a", ek=None, iak_certificate=None),
            anchor=SimpleNamespace(service_name=SERVICE),
            host=SimpleNamespace(jitter=max, pause=self.pause),
            identity=IdentityStore(folder / "identity"),
            tpm=SimpleNamespace(open=lambda: contextlib.nullcontext(self)),
            attester=SimpleNamespace(
                key=self.attestation_key,
                read_boot_log=lambda _: None,
                read_ima_log=lambda _: None,
                attest_key=self.attest_key,
            ),
            now=lambda: NOW,
            client=lambda *_: self,
        )

    # the TPM

    def endorsements(self):
        return EKS

    def pcr_banks(self):
        return ("sha256",)

    def create_device_key(self):
        self.keys.append(new_key())
        return DeviceKey(b"pem-%d" % len(self.keys), b"public", spki(self.keys[-1]))

    def certificate_request(self, pem):
        return b"csr of " + pem

    def attestation_key(self, *_):
        return contextlib.nullcontext(SimpleNamespace(public=b"ak"))

    def attest_key(self, _tpm, _challenge, _flow, _ek, _key, csr):
        return replace(EVIDENCE, csr=csr)

    # the service

    def post(self, path, body, _kind):
        self.posted.append((path, body))
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def get(self, *_):
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer

    def close(self):
        pass

    def pause(self, seconds):
        self.waits.append(seconds)
        return len(self.waits) > 20

    def issued(self, **made):
        leaf = CA.ldevid(self.keys[-1], **made)
        return Issued(made.get("device", DEVICE), der(leaf), CA.chain, ADDRESS, NOW + timedelta(days=20))

    @property
    def bodies(self):
        return [body for path, body in self.posted if path.endswith("/evidence")]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    made = Stage(tmp_path)
    monkeypatch.setattr(enroll, "trust_at_hand", lambda _: made.trust)
    return made


# --- enrollment ---


def test_an_enrollment_stores_the_pair_and_leaves_nothing_pending(stage, tmp_path):
    stage.script = [CHALLENGE, stage.issued]
    pair = enroll_once(stage.device)
    assert (pair.key_pem, pair.details.ek_kind, pair.details.reply_to) == (b"pem-1", "EK-RSA2048", None)
    assert stage.device.identity.current() == pair
    assert list(tmp_path.glob("pending*")) == []


def test_the_next_ek_is_offered_where_the_first_is_not_registered(stage):
    stage.script = [refusal(Problem.NOT_REGISTERED), CHALLENGE, stage.issued]
    assert enroll_once(stage.device).details.ek_kind == "EK-HIGH-ECC384"


def test_the_configuration_may_force_one_kind_of_ek(stage):
    stage.device.config.ek = "ecc"
    stage.script = [CHALLENGE, stage.issued]
    assert enroll_once(stage.device).details.ek_kind == "EK-HIGH-ECC384"
    stage.device.config.ek = "dsa"
    with pytest.raises(NoEndorsementKey, match="dsa"):
        enroll_once(stage.device)


def test_a_tpm_that_nobody_knows_is_told_about_its_first_ek(stage):
    first = refusal(Problem.NOT_REGISTERED)
    stage.script = [first, refusal(Problem.NOT_REGISTERED)]
    with pytest.raises(ServiceRefused) as caught:
        enroll_once(stage.device)
    assert caught.value is first


def test_another_refusal_does_not_try_the_next_ek(stage):
    stage.script = [refusal(Problem.NO_POLICY)]
    with pytest.raises(ServiceRefused):
        enroll_once(stage.device)
    assert len(stage.posted) == 1


@pytest.mark.parametrize(
    "interruption",
    [ServiceUnreachable("cut"), refusal(Problem.UNAVAILABLE, 503), refusal(Problem.TOO_MANY_REQUESTS, 429)],
    ids=["cut", "503", "429"],
)
def test_after_a_lost_answer_the_very_same_evidence_goes_again(stage, interruption):
    stage.script = [CHALLENGE, interruption, stage.issued]
    with pytest.raises(type(interruption)):
        enroll_once(stage.device)
    pair = enroll_once(stage.device)
    assert stage.bodies[0] == stage.bodies[1]
    assert len(stage.keys) == 1
    assert pair.spki == spki(stage.keys[0])


@pytest.mark.parametrize(
    "problem", [Problem.CHALLENGE_GONE, Problem.ATTESTATION_REFUSED, Problem.REVOKED, Problem.TPM_CLEARED]
)
def test_after_a_refusal_everything_is_made_anew(stage, problem):
    stage.script = [CHALLENGE, refusal(problem), CHALLENGE, stage.issued]
    with pytest.raises(ServiceRefused):
        enroll_once(stage.device)
    enroll_once(stage.device)
    assert stage.bodies[0] != stage.bodies[1]
    assert len(stage.keys) == 2


def test_a_certificate_that_is_not_right_is_not_installed_and_not_asked_for_again(stage, tmp_path):
    stage.script = [CHALLENGE, lambda: stage.issued(service="evil.example")]
    with pytest.raises(CertificateRefused, match="not this device at this service"):
        enroll_once(stage.device)
    assert stage.device.identity.current() is None
    assert list(tmp_path.glob("pending*")) == []


def test_what_is_left_of_an_enrollment_that_ended_is_not_sent_again(stage, monkeypatch):
    """Power was lost between the swap and the removal; years later the device enrolls again."""
    stage.script = [CHALLENGE, stage.issued]
    with monkeypatch.context() as lost:
        lost.setattr(enroll.state, "remove", lambda _: None)
        enroll_once(stage.device)
    stage.script = [CHALLENGE, stage.issued]
    enroll_once(stage.device)
    assert stage.bodies[0] != stage.bodies[1]


def test_damaged_evidence_that_waits_for_its_answer_is_made_anew(stage, tmp_path):
    (tmp_path / "pending-enrollment.json").write_bytes(b"\0" * 64)
    stage.script = [CHALLENGE, stage.issued]
    assert enroll_once(stage.device).details.device_id == DEVICE


def test_retries_wait_longer_each_time_and_a_stop_is_a_stop(stage):
    stage.script = [ServiceUnreachable("away")] * 3 + [refusal(Problem.REVOKED)]
    with pytest.raises(ServiceRefused, match="MUSTER-X"):
        enroll_until_done(stage.device)
    assert stage.waits == [1, 2, 4]


def test_what_a_person_must_mend_is_asked_again_only_after_minutes(stage):
    stage.script = [refusal(Problem.NO_POLICY), CHALLENGE, stage.issued]
    enroll_until_done(stage.device)
    assert stage.waits == [enroll.WAIT_SECONDS + 1]


def test_a_command_that_ends_does_not_wait_for_people_nor_for_ever(stage):
    stage.script = [refusal(Problem.NO_POLICY)]
    with pytest.raises(ServiceRefused):
        enroll_until_done(stage.device, attempts=5)
    stage.script = [ServiceUnreachable("away")] * 9
    with pytest.raises(ServiceUnreachable):
        enroll_until_done(stage.device, attempts=5)
    assert len(stage.script) == 4


def test_waiting_ends_when_the_agent_is_stopped(stage):
    stage.script = [ServiceUnreachable("away")]
    stage.device.host.pause = lambda _: True
    with pytest.raises(Stopped):
        enroll_until_done(stage.device)


# --- rotation ---


@pytest.fixture
def rotation(stage, monkeypatch):
    stage.script = [CHALLENGE, stage.issued]
    enroll_once(stage.device)
    monkeypatch.setattr(rotate, "prove_pair", lambda *_: "TLSv1.3")
    return Rotation(stage.device)


def rotated(stage, key=None, **made):
    leaf = CA.ldevid(key or stage.keys[-1], **made)
    return replace(ROTATED, certificate=der(leaf), chain=CA.chain, renew_after=NOW + timedelta(days=20))


def test_a_rotation_from_command_to_swap(stage, rotation):
    old = stage.device.identity.current()
    evidence = rotation.answer(ROTATE, old, stage.trust)
    assert evidence.csr == b"csr of pem-2"
    rotation.accept(rotated(stage), old, stage.trust)
    assert stage.device.identity.current() == old
    stage.script = [NotFound("any answer will do")]
    new = rotation.install(stage.trust)
    assert stage.device.identity.current() == new
    assert (new.spki, new.details.reply_to, new.details.mqtt) == (spki(stage.keys[1]), "c-1", ADDRESS)
    assert rotation.pending() is None
    assert rotation.is_installed("c-1", new)
    assert rotation.install(stage.trust) is None


def test_the_same_command_gets_the_same_evidence_and_a_new_challenge_a_new_key(stage, rotation):
    old = stage.device.identity.current()
    first = rotation.answer(ROTATE, old, stage.trust)
    assert rotation.answer(ROTATE, old, stage.trust) == first
    again = replace(ROTATE, challenge=replace(CHALLENGE, enrollment_id="e-2"))
    assert rotation.answer(again, old, stage.trust).csr != first.csr
    assert len(stage.keys) == 3


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"key": new_key()}, "not over the key"),
        ({"device": "d-other"}, "common name"),
        ({"service": "evil.example"}, "at this service"),
        ({"end": NOW - timedelta(minutes=1)}, "ended at"),
    ],
)
def test_a_new_certificate_that_differs_is_refused_and_the_old_pair_stays(stage, rotation, made, reason):
    old = stage.device.identity.current()
    rotation.answer(ROTATE, old, stage.trust)
    with pytest.raises(CertificateRefused, match=reason):
        rotation.accept(rotated(stage, **made), old, stage.trust)
    assert stage.device.identity.next() is None
    assert stage.device.identity.current() == old


def test_a_certificate_that_answers_nothing_is_not_awaited(stage, rotation):
    old = stage.device.identity.current()
    with pytest.raises(NotAwaited):
        rotation.accept(rotated(stage), old, stage.trust)
    rotation.answer(ROTATE, old, stage.trust)
    with pytest.raises(NotAwaited):
        rotation.accept(replace(rotated(stage), in_reply_to="c-9"), old, stage.trust)


def stored(stage, rotation):
    old = stage.device.identity.current()
    rotation.answer(ROTATE, old, stage.trust)
    rotation.accept(rotated(stage), old, stage.trust)
    return old


def test_a_pair_that_the_service_does_not_let_in_is_given_up(stage, rotation):
    old = stored(stage, rotation)
    stage.script = [refusal(Problem.FORBIDDEN)]
    with pytest.raises(NewPairUnusable, match="does not let the new pair in"):
        rotation.install(stage.trust)
    assert (stage.device.identity.next(), rotation.pending()) == (None, None)
    assert stage.device.identity.current() == old


def test_a_key_that_tls_cannot_use_is_given_up(stage, rotation, monkeypatch):
    old = stored(stage, rotation)

    def unusable(*_):
        raise TlsKeyUnusable("no provider")

    monkeypatch.setattr(rotate, "prove_pair", unusable)
    with pytest.raises(NewPairUnusable, match="no provider"):
        rotation.install(stage.trust)
    assert stage.device.identity.current() == old


def test_a_service_that_is_away_leaves_both_pairs_until_it_is_back(stage, rotation):
    old = stored(stage, rotation)
    stage.script = [ServiceUnreachable("away")]
    with pytest.raises(ServiceUnreachable):
        rotation.install(stage.trust)
    assert stage.device.identity.current() == old
    assert stage.device.identity.next() is not None
    stage.script = [None]
    assert rotation.install(stage.trust).spki == spki(stage.keys[1])


def test_the_stage_has_what_a_device_has(stage):
    """The fakes above must not grow apart from the real thing."""
    assert set(vars(stage.device)) - {"attester", "client", "now"} <= set(Device.__dataclass_fields__)
    assert {"attester", "client", "now"} <= set(dir(Device))
    assert IdentityDetails.__dataclass_fields__["ek_kind"]


def test_a_damaged_rotation_is_begun_anew(stage, rotation, tmp_path):
    (tmp_path / "pending-rotation.json").write_bytes(b"\0" * 64)
    assert rotation.pending() is None
    assert not (tmp_path / "pending-rotation.json").exists()
