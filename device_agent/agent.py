"""The agent: one loop, one queue. It enrolls where it must, keeps its line to the service, and obeys its commands."""

import queue
import threading
from collections.abc import Callable
from enum import Enum

from device_agent import log
from device_agent.commands import INSTALL_FAILURES, Commands, Wishes
from device_agent.device import Device, refresh_trust, trust_at_hand
from device_agent.enroll import AttemptFailure, Stopped, enroll_until_done, reaction_to
from device_agent.host import Backoff
from device_agent.identity import Pair
from device_agent.mqtt import Arrived, Connected, Event, Lost
from device_agent.presence import Presence
from device_agent.rotate import NewPairUnusable, Rotation
from device_agent.session import Dropped, Session, next_session_number
from device_agent.slots.directory import DirectorySlots
from device_agent.state import StateDamaged
from device_agent.tpm import DeviceKeyUnusable, TpmFailure
from device_agent.trust import Trust
from device_agent.updates import TRIAL_SECONDS, UPDATE_FAILURES, Updates
from device_agent.wayback import come_back, must_attest
from ota.refusals import UpdateRefused
from wire.messages import Hello, Renew
from wire.problems import Reaction

TICK_SECONDS = 1.0
"""How late a signal may be noticed."""
TRUST_SECONDS = 6 * 3600.0
TRUST_AFTER_FAILURES = 5
"""Connections in a row that failed, after which the trust repository is looked at before its time."""
TRUST_SOON_SECONDS = 10.0
STANDING_AFTER_FAILURES = 2
"""Connections in a row without a welcome, after which the service is asked by HTTPS whether the certificate counts."""
RETURN_SECONDS = 3600.0
RENEW_AGAIN_SECONDS = 3600.0
ANSWER_FIRST_SECONDS = 20.0
TRIAL_ATTEMPTS = 10
UPDATE_FIRST_SECONDS, UPDATE_MOST_SECONDS = 60.0, 6 * 3600.0
DIAL_FIRST_SECONDS = 0.5
HELLO_FIRST_SECONDS = 3.0


class Ended(Enum):
    """Why the agent ended."""

    STOPPED = "stopped"
    REBOOT = "reboot"
    REFUSED = "refused"


class Agent:
    """Runs until it is stopped, an update wants a reboot, or the service says that there is no way on."""

    def __init__(self, device: Device, stop: threading.Event) -> None:
        self._device = device
        self._stop = stop
        self._due: dict[str, float] = {}
        jitter = device.host.jitter
        self._dial_backoff = Backoff(jitter, first=DIAL_FIRST_SECONDS)
        self._hello_backoff = Backoff(jitter, first=HELLO_FIRST_SECONDS)
        self._answer_backoff = Backoff(jitter, first=ANSWER_FIRST_SECONDS)
        self._install_backoff = Backoff(jitter)
        self._update_backoff = Backoff(jitter, first=UPDATE_FIRST_SECONDS, most=UPDATE_MOST_SECONDS)
        self._swapped = False
        self._failures = 0
        self._unwelcome = 0
        self._must_attest = False
        self._jobs: dict[str, Callable[[], None]] = {
            "dial": self._dial,
            "trim": self._device.host.trim,
            "hello": self._greet,
            "answer": self._answer_again,
            "install": self._install,
            "renew": self._renew,
            "trust": self._refresh_trust,
            "standing": self._ask_standing,
            "return": self._return,
            "update": self._look_for_update,
            "trial": self._end_trial,
        }

    def run(self) -> Ended:
        """The agent's whole life."""
        try:
            trust, pair = self._ready()
        except Stopped:
            return Ended.STOPPED
        except AttemptFailure as failure:
            log.error("agent-ends", reason=failure)
            return Ended.REFUSED
        self._come_up(trust, pair)
        try:
            return self._loop()
        finally:
            self._presence.hang_up()

    def _come_up(self, trust: Trust, pair: Pair) -> None:
        device = self._device
        number = next_session_number(device.config.state_dir, device.now())
        session = Session(pair.details.device_id, number, device.host.entropy)
        self._presence = Presence(device, trust, pair, session)
        self._rotation = Rotation(device)
        self._updates = Updates(self._presence)
        wishes = Wishes(
            again=lambda: self._later("answer", self._answer_backoff.next()),
            settled=self._answered,
            install=lambda: self._later("install", 0.0),
            greet=self._greet,
            check_for_update=lambda: self._later("update", 0.0),
            attested=self._attested,
            not_attested=lambda reason: self._try_update(lambda: self._updates.not_attested(reason)),
            welcomed=self._welcomed,
        )
        self._commands = Commands(self._presence, self._rotation, wishes)
        self._later("dial", 0.0)
        self._later("trust", device.host.jitter(TRUST_SECONDS / 2, TRUST_SECONDS))
        if device.identity.next() is not None:  # power was lost between storing and swapping
            self._later("install", 0.0)
        self._schedule_renewal()
        if self._updates.is_on_trial:
            self._later("trial", TRIAL_SECONDS)
            self._try_update(self._updates.after_boot)
        if self._updates.is_begun and not self._updates.is_on_trial:  # the word to look was said before power was lost
            self._later("update", self._update_backoff.next())

    def _ready(self) -> tuple[Trust, Pair]:
        """An identity that is valid now, and trust. Raises: Stopped, any of `AttemptFailure`."""
        pair = self._device.identity.current()
        ended = pair is not None and self._device.now() >= pair.certificate.not_valid_after_utc
        if pair is None:
            pair = enroll_until_done(self._device, attempts=self._attempts())
        elif ended or pair.is_quarantine or not self._holds_key_of(pair):
            pair = come_back(self._device, pair, attempts=self._attempts())
        backoff, made = Backoff(self._device.host.jitter), 0
        while True:
            made += 1
            try:
                return self._kept_or_new(), pair
            except AttemptFailure as failure:
                if reaction_to(failure) is Reaction.STOP or made == self._attempts():
                    raise
                wait = backoff.next()
                log.warning("no-trust", reason=failure, again_in_seconds=round(wait))
                if self._device.host.pause(wait):
                    raise Stopped from failure

    def _attempts(self) -> int | None:
        """How often the way to an identity is tried: without end, but by a release on trial.

        That one ends, and the boot loader counts the try: a release that cannot come up must not stay for ever.
        """
        slots = self._device.config.slots
        try:
            return TRIAL_ATTEMPTS if slots is not None and DirectorySlots(slots).status().on_trial else None
        except UpdateRefused as damage:
            log.warning("slots-unknown", reason=damage)
            return None

    def _holds_key_of(self, pair: Pair) -> bool:
        """Does this TPM hold the pair's key? A cleared one, or another board's, does not: the way back is enrollment.

        A TPM that does not answer now says nothing about the key.
        """
        try:
            with self._device.tpm.open() as tpm, tpm.loaded(pair.key_pem):
                return True
        except DeviceKeyUnusable as lost:
            log.error("device-key-lost", serial=pair.serial, reason=lost)
            return False
        except TpmFailure as failure:
            log.warning("device-key-not-tried", reason=failure)
            return True

    def _kept_or_new(self) -> Trust:
        """An enrolled device goes on with the bundle it has while that is valid, whatever the network shows it."""
        try:
            return trust_at_hand(self._device)
        except AttemptFailure as failure:
            kept = self._device.trust.current()
            if kept is None:
                raise
            log.error("trust-refused", reason=failure, kept_version=kept.bundle.version)
            return kept

    def _loop(self) -> Ended:
        while not self._stop.is_set():
            self._run_due()
            if self._updates.reboot_wanted:
                return Ended.REBOOT
            if self._is_without_identity() and not self._enroll_again():
                return Ended.STOPPED if self._stop.is_set() else Ended.REFUSED
            try:
                event = self._presence.events.get(timeout=self._patience())
            except queue.Empty:
                continue
            self._on(event)
        return Ended.STOPPED

    def _is_without_identity(self) -> bool:
        """Is the certificate one that nobody accepts now: past its end, by a CA that was retired, or in quarantine?"""
        ended = self._device.now() >= self._presence.pair.certificate.not_valid_after_utc
        return ended or self._presence.is_orphaned or self._must_attest

    def _on(self, event: Event) -> None:
        match event:
            case Connected(line) if self._presence.is_mine(line):
                log.event("connected", device=self._presence.pair.details.device_id, serial=self._presence.pair.serial)
                self._presence.online = True
                self._dial_backoff.reset()
                self._failures = 0
                self._hello_backoff.reset()
                self._greet()
            case Lost(line, reason) if self._presence.is_mine(line):
                self._lost(reason)
            case Arrived(payload):
                self._obey(payload)

    def _obey(self, payload: bytes) -> None:
        try:
            command = self._presence.session.open_down(payload, self._presence.verify, self._device.now())
        except Dropped as dropped:
            log.warning("message-dropped", why=type(dropped).__name__, reason=dropped)
            return
        self._commands.obey(command)

    def _dial(self) -> None:
        try:
            self._presence.dial()
        except (OSError, ValueError) as error:  # ValueError: an address that cannot be one
            self._lost(getattr(error, "strerror", None) or str(error))

    def _lost(self, reason: str) -> None:
        self._presence.hang_up()
        wait = self._dial_backoff.next()
        log.warning("not-connected", reason=reason, again_in_seconds=round(wait, 1))
        self._later("dial", wait)
        self._unwelcome += 1
        if self._unwelcome % STANDING_AFTER_FAILURES == 0:
            self._later("standing", 0.0)
        self._failures += 1
        if self._failures % TRUST_AFTER_FAILURES == 0:  # what is trusted may have changed while nobody could say so
            self._later("trust", self._device.host.jitter(0.0, TRUST_SOON_SECONDS))

    def _ask_standing(self) -> None:
        self._must_attest = must_attest(self._device, self._presence.trust, self._presence.pair)

    def _return(self) -> None:
        self._must_attest = self._presence.pair.is_quarantine

    def _attested(self) -> None:
        self._try_update(self._updates.attested)
        self._return()

    def _greet(self) -> None:
        """Hello, and what else the service must hear on every connection; again until a welcome comes.

        A broker may have lost it, and a service that does not know this session sends nothing that is obeyed here.
        """
        presence = self._presence
        if not presence.online:
            return
        self._later("hello", self._hello_backoff.next())
        version, counter = self._updates.release()
        presence.send(
            Hello,
            last_sequence=presence.session.last_sequence,
            session_number=presence.session.number,
            trust_version=presence.trust.bundle.version,
            certificate_serial=presence.pair.serial,
            release_counter=counter,
            release_version=version,
        )
        if self._swapped:
            self._swapped = False
            self._commands.report_installed()
        self._updates.report_again()

    def _answer_again(self) -> None:
        if self._presence.online:
            self._commands.repeat()
        else:
            self._later("answer", ANSWER_FIRST_SECONDS)

    def _answered(self) -> None:
        self._answer_backoff.reset()
        self._due.pop("answer", None)

    def _install(self) -> None:
        try:
            pair = self._rotation.install(self._presence.trust)
        except NewPairUnusable as failure:
            log.error("new-pair-unusable", reason=failure)
            return
        except INSTALL_FAILURES as failure:
            wait = self._install_backoff.next()
            log.warning("new-pair-not-proven", reason=failure, again_in_seconds=round(wait))
            self._later("install", wait)
            return
        self._install_backoff.reset()
        if pair is not None:
            self._take_up(pair)
            self._swapped = True

    def _take_up(self, pair: Pair) -> None:
        self._presence.hang_up()
        self._presence.pair = pair
        self._later("dial", 0.0)
        self._schedule_renewal()

    def _schedule_renewal(self) -> None:
        """At two thirds of the lifetime (the service names the moment), spread over a twentieth of what is left."""
        if self._presence.pair.is_quarantine:  # nothing to renew: what counts is to come back
            self._due.pop("renew", None)
            self._later("return", self._device.host.jitter(RETURN_SECONDS / 2, RETURN_SECONDS))
            return
        certificate = self._presence.pair.certificate
        renew_after = self._presence.pair.details.renew_after
        left = (certificate.not_valid_after_utc - renew_after).total_seconds()
        wait = (renew_after - self._device.now()).total_seconds()
        self._later("renew", max(0.0, wait) + self._device.host.jitter(0.0, max(0.0, left) / 20))

    def _renew(self) -> None:
        self._presence.send(Renew, certificate_serial=self._presence.pair.serial)
        left = (self._presence.pair.certificate.not_valid_after_utc - self._device.now()).total_seconds()
        self._later("renew", min(RENEW_AGAIN_SECONDS, max(TICK_SECONDS, left / 10)))

    def _try_update(self, step: Callable[[], None]) -> None:
        try:
            step()
        except UPDATE_FAILURES as failure:
            log.error("update-failed", reason=failure)

    def _look_for_update(self) -> None:
        """What failed on the way is tried again: the service says "look now" once."""
        try:
            again = self._updates.check()
        except UPDATE_FAILURES as failure:
            log.error("update-failed", reason=failure)
            again = not isinstance(failure, StateDamaged | UpdateRefused)
        if again:
            self._later("update", self._update_backoff.next())
        else:
            self._update_backoff.reset()

    def _welcomed(self, recorded: int) -> None:
        """The service knows this session, and tells the release floor that it recorded."""
        self._due.pop("hello", None)
        self._unwelcome = 0
        self._later("trim", TICK_SECONDS)
        if self._device.config.slots is not None:
            self._try_update(lambda: self._updates.restore_floor(recorded))

    def _end_trial(self) -> None:
        reason = f"the service did not confirm the new release within {TRIAL_SECONDS:.0f} seconds"
        self._try_update(lambda: self._updates.not_attested(reason))

    def _refresh_trust(self) -> None:
        self._later("trust", self._device.host.jitter(TRUST_SECONDS / 2, TRUST_SECONDS))
        try:
            if self._presence.adopt_trust(refresh_trust(self._device)):
                self._greet()
        except AttemptFailure as failure:
            log.warning("trust-not-refreshed", reason=failure)

    def _enroll_again(self) -> bool:
        """The certificate ended, or its CA did, or it is on hold: the way back is a new attestation."""
        log.warning("certificate-ended", serial=self._presence.pair.serial, on_hold=self._must_attest)
        self._presence.hang_up()
        self._must_attest, self._unwelcome = False, 0
        try:
            self._take_up(come_back(self._device, self._presence.pair, attempts=self._attempts()))
            self._presence.adopt_trust(self._device.trust.current() or self._presence.trust)
        except Stopped:
            return False
        except AttemptFailure as failure:
            log.error("agent-ends", reason=failure)
            return False
        return True

    def _run_due(self) -> None:
        now = self._device.host.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._jobs[name]()

    def _patience(self) -> float:
        nearest = min(self._due.values(), default=TICK_SECONDS) - self._device.host.monotonic()
        return min(TICK_SECONDS, max(0.0, nearest))

    def _later(self, job: str, seconds: float) -> None:
        self._due[job] = self._device.host.monotonic() + seconds
