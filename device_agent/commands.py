"""What the agent does when it is told. Every command may come twice: its effect is the same, and so is its answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from device_agent import log
from device_agent.certificates import CertificateRefused
from device_agent.device import refresh_trust
from device_agent.enroll import AttemptFailure, reaction_to
from device_agent.evidence import log_digest
from device_agent.memory import remember_attested
from device_agent.presence import Presence
from device_agent.rotate import NewPairUnusable, NotAwaited, Rotation, upload_log
from wire.messages import (
    Attest,
    AttestationEvidence,
    Attested,
    CheckForUpdate,
    Failed,
    Installed,
    Message,
    PlatformEvidence,
    RefreshTrust,
    Refused,
    Rotate,
    Rotated,
    RotationEvidence,
    Welcome,
)
from wire.problems import Reaction

REASON_MOST = 500


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a command asks of the agent's loop."""

    again: Callable[[], None]
    """Send the answer that waits for its reply again, after a while."""
    settled: Callable[[], None]
    """The reply came."""
    install: Callable[[], None]
    """A next pair is stored: prove it, swap, reconnect."""
    greet: Callable[[], None]
    """Say hello again: what it reports has changed."""
    check_for_update: Callable[[], None]
    attested: Callable[[], None]
    """The service took the evidence: a release on trial may be committed."""
    not_attested: Callable[[str], None]
    """The service refused the evidence: a release on trial is given up."""
    welcomed: Callable[[int], None]
    """The service answered hello, with the release floor that it recorded."""


@dataclass(frozen=True, slots=True)
class _Platform:
    """The evidence that answers an attest command. `ima_log` is held until it is uploaded: it is longer by now."""

    message_id: str
    enrollment_id: str
    evidence: PlatformEvidence
    ima_log: bytes | None


class Commands:
    """Carries out commands for one presence."""

    def __init__(self, presence: Presence, rotation: Rotation, wishes: Wishes) -> None:
        self._presence = presence
        self._rotation = rotation
        self._wishes = wishes
        self._platform: _Platform | None = None
        self._unanswered: Rotate | Attest | None = None

    def obey(self, command: Message) -> None:
        """Carries out one authentic command; where it cannot be, says so to the service."""
        log.event("command", kind=type(command).__name__, id=command.message_id, sequence=command.sequence)
        try:
            self._dispatch(command)
        except NotAwaited as odd:
            log.warning("answer-not-awaited", id=command.message_id, reason=odd)
        except AttemptFailure as failure:
            log.warning("command-failed", id=command.message_id, reason=failure)
            if reaction_to(failure) is not Reaction.RETRY:
                self.fail(command.message_id, failure)

    def fail(self, message_id: str, reason: object) -> None:
        """Tells the service that a command cannot be carried out."""
        self._presence.send(Failed, in_reply_to=message_id, reason=str(reason)[:REASON_MOST])

    def repeat(self) -> None:
        """Sends the evidence again whose reply has not come; a command whose time is over is let go."""
        command = self._unanswered
        if command is None:
            return
        if self._presence.device.now() > command.not_after:
            self._settle()
            return
        self.obey(command)

    def _dispatch(self, command: Message) -> None:
        match command:
            case Welcome():
                self._wishes.welcomed(command.release_floor)
                if command.greet_again:
                    self._wishes.greet()
            case Rotate():
                self._rotate(command)
            case Rotated():
                self._rotated(command)
            case Attest():
                self._attest(command)
            case Attested():
                self._attested(command)
            case Refused():
                self._refused(command)
            case RefreshTrust():
                if self._presence.adopt_trust(refresh_trust(self._presence.device)):
                    self._wishes.greet()
            case CheckForUpdate():
                self._wishes.check_for_update()

    def _rotate(self, command: Rotate) -> None:
        """Step 2 of a rotation, or whatever step it had come to when the service asks again."""
        presence = self._presence
        if self._rotation.is_installed(command.message_id, presence.pair):
            self.report_installed()
            return
        following = presence.device.identity.next()
        if following is not None and following.details.reply_to == command.message_id:
            self._wishes.install()
            return
        evidence = self._rotation.answer(command, presence.pair, presence.trust)
        self._await_reply(command)
        presence.send(RotationEvidence, in_reply_to=command.message_id, evidence=evidence)

    def _rotated(self, answer: Rotated) -> None:
        """Step 4: the certificate came, perhaps again."""
        presence = self._presence
        if self._rotation.is_installed(answer.in_reply_to, presence.pair):
            self.report_installed()
            return
        try:
            self._rotation.accept(answer, presence.pair, presence.trust)
        except NotAwaited as odd:  # a later rotate command took its place: the service need not send it again
            self.fail(answer.message_id, odd)
            raise
        except CertificateRefused as refused:
            self._rotation.forget()
            self._settle()
            self.fail(answer.message_id, refused)
            log.error("certificate-refused", reason=refused)
            return
        self._settle()
        self._wishes.install()

    def report_installed(self) -> None:
        """Step 5, by the new key; said again whenever the service asks again."""
        pair = self._presence.pair
        if pair.details.reply_to is not None:
            self._presence.send(Installed, in_reply_to=pair.details.reply_to, certificate_serial=pair.serial)

    def _attest(self, command: Attest) -> None:
        presence, challenge = self._presence, command.challenge
        attester = presence.device.attester
        boot_log = attester.read_boot_log(challenge)
        made = self._platform
        if made is None or (made.message_id, made.enrollment_id) != (command.message_id, challenge.enrollment_id):
            with presence.device.tpm.open() as tpm:
                evidence = attester.attest_platform(tpm, challenge, presence.pair.details.ek_kind)
            ima_log = attester.read_ima_log(challenge)
            evidence = replace(evidence, boot_log_sha256=log_digest(boot_log), ima_log_sha256=log_digest(ima_log))
            made = self._platform = _Platform(command.message_id, challenge.enrollment_id, evidence, ima_log)
        if boot_log is not None:
            upload_log(presence.device, presence.trust, presence.pair, boot_log)
        if made.ima_log is not None:
            upload_log(presence.device, presence.trust, presence.pair, made.ima_log)
            made = self._platform = replace(made, ima_log=None)
        self._await_reply(command)
        presence.send(AttestationEvidence, in_reply_to=command.message_id, evidence=made.evidence)

    def _attested(self, answer: Attested) -> None:
        if self._platform is None or self._platform.message_id != answer.in_reply_to:
            raise NotAwaited("no evidence of this session is answered by it")
        self._settle()
        remember_attested(self._presence.device.config.state_dir, answer.expires_at)
        log.event("attested", until=answer.expires_at.isoformat())
        self._wishes.attested()

    def _refused(self, answer: Refused) -> None:
        log.error("evidence-refused", problem=answer.problem, code=answer.code, id=answer.in_reply_to)
        pending = self._rotation.pending()
        if pending is not None and pending.message_id == answer.in_reply_to:
            self._rotation.forget()
        if self._platform is not None and self._platform.message_id == answer.in_reply_to:
            self._wishes.not_attested(f"the service refused the evidence: {answer.code}")
        if self._unanswered is not None and self._unanswered.message_id == answer.in_reply_to:
            self._settle()

    def _await_reply(self, command: Rotate | Attest) -> None:
        self._unanswered = command
        self._wishes.again()

    def _settle(self) -> None:
        self._unanswered = None
        self._wishes.settled()


INSTALL_FAILURES = (NewPairUnusable, *AttemptFailure)
"""What proving a new pair may end with."""
