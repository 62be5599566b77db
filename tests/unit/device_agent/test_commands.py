"""What the agent answers to each command, and to the same command again."""

from dataclasses import fields, replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from device_agent import commands
from device_agent.certificates import CertificateRefused
from device_agent.commands import Commands, Wishes
from device_agent.http import ServiceUnreachable
from device_agent.memory import recall
from device_agent.rotate import NotAwaited
from device_agent.tpm import TpmRefused
from tests.unit.device_agent.builders import DEVICE, NOW, SERVICE
from wire.messages import (
    Attest,
    Attestation,
    AttestationEvidence,
    Attested,
    Challenge,
    CheckForUpdate,
    Evidence,
    Failed,
    Installed,
    PcrSelection,
    PlatformEvidence,
    RefreshTrust,
    Refused,
    Rotate,
    Rotated,
    RotationEvidence,
    Welcome,
)

HEAD = {"message_id": "c-1", "device": DEVICE, "session": "s", "sequence": 1, "not_after": NOW + timedelta(hours=1)}
STATEMENT = Attestation(b"attest", b"signature")
EVIDENCE = Evidence(b"csr", b"public", STATEMENT, STATEMENT, {}, b"proof")
CHALLENGE = Challenge(
    "e-1", SERVICE, b"blob", b"secret", b"n" * 32, PcrSelection("sha256", (0,)), "none", NOW + timedelta(minutes=5)
)
ROTATE = Rotate(**HEAD, challenge=CHALLENGE)
ROTATED = Rotated(
    **{**HEAD, "message_id": "c-2"}, in_reply_to="c-1", certificate=b"", chain=(), renew_after=NOW + timedelta(days=1)
)
ATTEST = Attest(**HEAD, challenge=CHALLENGE)


class FakeRotation:
    """A rotation in the state that a test names; a failure that it sets is raised."""

    def __init__(self):
        self.installed, self.waiting, self.failure, self.accepted = None, None, None, []

    def is_installed(self, message_id, _):
        return message_id == self.installed

    def answer(self, *_):
        if self.failure:
            raise self.failure
        return EVIDENCE

    def accept(self, answer, *_):
        if self.failure:
            raise self.failure
        self.accepted.append(answer)

    def pending(self):
        return self.waiting

    def forget(self):
        self.waiting = None


class Desk:
    """Commands on a desk: what was sent and wished stands in lists."""

    def __init__(self, folder):
        self.sent, self.wished, self.made = [], [], []
        self.rotation = FakeRotation()
        self.following = None
        self.now = NOW
        attester = SimpleNamespace(
            read_boot_log=lambda _: None, read_ima_log=lambda _: None, attest_platform=self.attest_platform
        )
        device = SimpleNamespace(
            attester=attester,
            now=lambda: self.now,
            identity=SimpleNamespace(next=lambda: self.following),
            tpm=SimpleNamespace(open=self.tpm),
            config=SimpleNamespace(state_dir=folder),
        )
        details = SimpleNamespace(reply_to="c-1", ek_kind="EK-RSA2048", device_id=DEVICE)
        self.presence = SimpleNamespace(
            device=device,
            pair=SimpleNamespace(details=details, serial="abc"),
            trust=None,
            send=lambda kind, **values: self.sent.append((kind, values)),
            adopt_trust=lambda trust: trust == "newer",
        )
        wishes = {one.name: self.wish(one.name) for one in fields(Wishes)}
        self.commands = Commands(self.presence, self.rotation, Wishes(**wishes))

    def tpm(self):
        import contextlib

        return contextlib.nullcontext("tpm")

    def attest_platform(self, *_):
        self.made.append(1)
        return PlatformEvidence(STATEMENT, {}, bytes([len(self.made)]))

    def wish(self, name):
        return lambda *values: self.wished.append((name, *values))


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_a_rotate_command_is_answered_with_evidence_until_its_reply_comes(desk):
    desk.commands.obey(ROTATE)
    desk.commands.repeat()
    assert desk.sent == [(RotationEvidence, {"in_reply_to": "c-1", "evidence": EVIDENCE})] * 2
    assert desk.wished == [("again",)] * 2
    desk.commands.obey(ROTATED)
    assert desk.rotation.accepted == [ROTATED]
    assert desk.wished[2:] == [("settled",), ("install",)]
    desk.commands.repeat()
    assert len(desk.sent) == 2


def test_evidence_is_not_repeated_after_the_commands_time(desk):
    desk.commands.obey(ROTATE)
    desk.now = NOW + timedelta(hours=2)
    desk.commands.repeat()
    assert len(desk.sent) == 1
    assert desk.wished[-1] == ("settled",)


@pytest.mark.parametrize("command", [ROTATE, ROTATED], ids=["rotate", "rotated"])
def test_a_rotation_that_is_done_is_reported_again_and_not_done_again(desk, command):
    desk.rotation.installed = "c-1"
    desk.commands.obey(command)
    assert desk.sent == [(Installed, {"in_reply_to": "c-1", "certificate_serial": "abc"})]
    assert desk.rotation.accepted == []


def test_a_rotation_whose_pair_is_stored_goes_on_with_installing(desk):
    desk.following = SimpleNamespace(details=SimpleNamespace(reply_to="c-1"))
    desk.commands.obey(ROTATE)
    assert (desk.sent, desk.wished) == ([], [("install",)])


def test_a_certificate_that_is_refused_ends_the_rotation_and_is_said(desk):
    desk.rotation.failure = CertificateRefused("not over the key")
    desk.commands.obey(ROTATED)
    assert desk.sent == [(Failed, {"in_reply_to": "c-2", "reason": "not over the key"})]
    assert ("install",) not in desk.wished


def test_a_certificate_that_nothing_waits_for_is_said_so_that_it_is_not_sent_for_ever(desk):
    desk.rotation.failure = NotAwaited("answers nothing")
    desk.commands.obey(ROTATED)
    assert desk.sent == [(Failed, {"in_reply_to": "c-2", "reason": "answers nothing"})]


@pytest.mark.parametrize(
    ("failure", "is_said"),
    [(ServiceUnreachable("away"), False), (TpmRefused("quoting", "no"), True)],
    ids=["net", "tpm"],
)
def test_a_command_that_fails_is_said_unless_it_may_work_later(desk, failure, is_said):
    desk.rotation.failure = failure
    desk.commands.obey(ROTATE)
    assert [kind for kind, _ in desk.sent] == ([Failed] if is_said else [])


def test_a_reason_is_one_bounded_text(desk):
    desk.commands.fail("c-1", "x" * 5000)
    assert len(desk.sent[0][1]["reason"]) == commands.REASON_MOST


def test_the_same_attest_command_gets_the_same_evidence_and_a_new_challenge_new_evidence(desk):
    desk.commands.obey(ATTEST)
    desk.commands.obey(ATTEST)
    assert desk.sent[0] == desk.sent[1]
    assert desk.sent[0][0] is AttestationEvidence
    assert len(desk.made) == 1
    desk.commands.obey(replace(ATTEST, challenge=replace(CHALLENGE, enrollment_id="e-2")))
    assert len(desk.made) == 2


def test_an_attestation_result_is_remembered_and_may_commit_an_update(desk, tmp_path):
    desk.commands.obey(ATTEST)
    until = NOW + timedelta(days=1)
    desk.commands.obey(Attested(**HEAD, in_reply_to="c-1", expires_at=until))
    assert desk.wished[1:] == [("settled",), ("attested",)]
    assert recall(tmp_path).attested_until == until


def test_an_attestation_result_for_other_evidence_commits_nothing(desk, tmp_path):
    desk.commands.obey(Attested(**HEAD, in_reply_to="c-1", expires_at=NOW))
    desk.commands.obey(ATTEST)
    desk.commands.obey(Attested(**HEAD, in_reply_to="c-9", expires_at=NOW))
    assert desk.wished == [("again",)]
    assert recall(tmp_path).attested_until is None


def test_a_refusal_of_this_boots_evidence_gives_a_trial_up(desk):
    desk.commands.obey(ATTEST)
    desk.commands.obey(Refused(**HEAD, in_reply_to="c-1", problem="urn:x", code="MUSTER-ATT-013"))
    assert ("not_attested", "the service refused the evidence: MUSTER-ATT-013") in desk.wished
    assert desk.wished[-1] == ("settled",)


def test_a_refused_rotation_is_forgotten(desk):
    desk.rotation.waiting = SimpleNamespace(message_id="c-1")
    desk.commands.obey(Refused(**HEAD, in_reply_to="c-1", problem="urn:x", code="MUSTER-ATT-013"))
    assert desk.rotation.waiting is None


def test_a_refusal_of_something_else_ends_nothing(desk):
    desk.rotation.waiting = waiting = SimpleNamespace(message_id="c-1")
    desk.commands.obey(ROTATE)
    desk.commands.obey(Refused(**HEAD, in_reply_to="c-9", problem="urn:x", code="MUSTER-ATT-013"))
    assert desk.rotation.waiting is waiting
    desk.commands.repeat()
    assert len(desk.sent) == 2


def test_what_is_told_to_the_loop(desk, monkeypatch):
    monkeypatch.setattr(commands, "refresh_trust", lambda _: "newer")
    desk.commands.obey(RefreshTrust(**HEAD))
    monkeypatch.setattr(commands, "refresh_trust", lambda _: "the same")
    desk.commands.obey(RefreshTrust(**HEAD))
    desk.commands.obey(CheckForUpdate(**HEAD))
    desk.commands.obey(Welcome(**HEAD, in_reply_to="h", release_floor=7))
    assert desk.wished == [("greet",), ("check_for_update",), ("welcomed", 7)]
