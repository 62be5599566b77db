"""When the agent does what: hello until welcomed, renewal in its time, dialling again, the way back after expiry."""

import contextlib
import errno
import queue
import threading
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from device_agent import agent as module
from device_agent.agent import Agent, Ended
from device_agent.enroll import Stopped
from device_agent.host import Host
from device_agent.http import ServiceUnreachable
from device_agent.identity import IdentityDetails, IdentityStore
from device_agent.mqtt import Arrived, Connected, Lost
from device_agent.rotate import NewPairUnusable
from device_agent.state import StateDamaged
from device_agent.tpm import DeviceKeyUnusable, TpmUnreachable
from device_agent.trust import Trust
from ota.refusals import SlotStateMalformed
from ota.source import SourceUnavailable
from tests.unit.device_agent.builders import DEVICE, NOW, Authority, der, new_key, spki
from wire.binding import key_id
from wire.messages import Hello, Installed, MqttAddress, RefreshTrust, Renew, TrustBundle, Welcome

CA = Authority()
LATEST = 1.0
"""Jitter that always draws its upper bound."""


class Bench:
    """An agent whose clock a test turns and whose line is a list."""

    def __init__(self, folder, monkeypatch, *, life=timedelta(days=30), renew=timedelta(days=20)):
        self.seconds = 0.0
        self.trimmed = []
        self.sent = []
        self.dialled = []
        self.looked_for_trust = []
        self.kept = None
        self.refusal = None
        host = Host(
            system_clock=self.now,
            monotonic=lambda: self.seconds,
            entropy=bytes,
            jitter=lambda low, high: low + (high - low) * LATEST,
            pause=lambda _: True,
            trim=lambda: self.trimmed.append(1),
        )
        bundle = TrustBundle(1, "fleet.example", (der(CA.root),), (spki(new_key()),), ())
        self.trust = Trust(bundle, 1, NOW + timedelta(days=7))
        self.device = SimpleNamespace(
            config=SimpleNamespace(state_dir=folder, slots=None),
            host=host,
            now=self.now,
            identity=IdentityStore(folder / "identity"),
            trust=SimpleNamespace(current=lambda: self.kept, refresh=self.refresh),
            client=self.client,
        )
        self.stop = threading.Event()
        self.agent = Agent(self.device, self.stop)
        self.pair = self.enrolled(life, renew)
        monkeypatch.setattr(module.Presence, "dial", self.dial)
        monkeypatch.setattr(module.Presence, "send", lambda _, kind, **fields: self.sent.append((kind, fields)))
        self.agent._come_up(self.trust, self.pair)

    def now(self):
        return NOW + timedelta(seconds=self.seconds)

    def enrolled(self, life, renew, reply_to=None):
        leaf = CA.ldevid(new_key(), start=self.now() - timedelta(hours=1), end=self.now() + life)
        address = MqttAddress("127.0.0.1", 8883)
        details = IdentityDetails(DEVICE, der(leaf), CA.chain, address, self.now() + renew, "EK-RSA2048", reply_to)
        self.device.identity.store_next(b"key", details)
        return self.device.identity.swap()

    def refresh(self):
        self.looked_for_trust.append(self.seconds)
        raise SourceUnavailable("out of reach")

    def client(self, _trust, _pair):
        raise ServiceUnreachable("nobody answers")

    def dial(self):
        self.dialled.append(self.presence.pair.serial)
        if self.refusal:
            raise self.refusal

    @property
    def presence(self):
        return self.agent._presence

    def connect(self):
        self.agent._on(Connected(None))

    def pass_time(self, seconds):
        """Second by second, as the loop ticks."""
        for _ in range(int(seconds)):
            self.seconds += 1
            self.agent._run_due()

    def kinds(self):
        return [kind for kind, _ in self.sent]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_hello_is_said_on_connecting_and_again_until_welcomed(bench):
    bench.pass_time(1)
    bench.connect()
    hello = bench.sent[0][1]
    assert bench.kinds() == [Hello]
    assert (hello["certificate_serial"], hello["trust_version"], hello["last_sequence"]) == (bench.pair.serial, 1, 0)
    assert hello["session_number"] >= int(NOW.timestamp())
    bench.pass_time(12)
    assert bench.kinds() == [Hello] * 3
    bench.agent._commands.obey(
        Welcome(message_id="w", device=DEVICE, session="s", sequence=1, not_after=NOW, in_reply_to="h", release_floor=0)
    )
    bench.pass_time(600)
    assert bench.kinds() == [Hello] * 3
    assert bench.trimmed == [1]


def test_a_welcome_that_asks_for_it_is_answered_with_hello_at_once(bench):
    """The service wants to know whether this very session is alive: its sequence goes back to it."""
    bench.pass_time(1)
    bench.connect()
    bench.presence.session.last_sequence = 77
    head = {"message_id": "w", "device": DEVICE, "session": "s", "sequence": 77, "not_after": NOW}
    bench.agent._commands.obey(Welcome(**head, in_reply_to="h", release_floor=0, greet_again=True))
    assert [(kind, fields["last_sequence"]) for kind, fields in bench.sent] == [(Hello, 0), (Hello, 77)]


def test_a_lost_line_is_dialled_again_ever_more_slowly(bench):
    bench.refusal = ConnectionRefusedError(111, "Connection refused")
    bench.pass_time(1)
    early = len(bench.dialled)
    bench.pass_time(3600)
    assert early == 1
    assert 12 < len(bench.dialled) < 25  # doubling from half a second to five minutes
    bench.refusal = None
    bench.pass_time(300)
    bench.connect()
    before = len(bench.dialled)
    bench.agent._on(Lost(None, "gone"))
    assert not bench.presence.online
    bench.pass_time(1)
    assert len(bench.dialled) == before + 1


def test_trust_is_looked_at_before_its_time_where_connecting_fails_again_and_again(bench):
    """What is trusted may have changed while nobody could say so: the trust repository needs no TLS."""
    bench.refusal = OSError("certificate verify failed")
    bench.pass_time(14)  # four failures
    assert bench.looked_for_trust == []
    bench.pass_time(20)
    assert len(bench.looked_for_trust) == 1


def test_a_line_that_comes_back_calls_for_no_look_at_trust(bench):
    for _ in range(20):
        bench.agent._on(Lost(None, "gone"))
        bench.connect()
    bench.pass_time(60)
    assert bench.looked_for_trust == []


def test_a_certificate_by_a_ca_that_was_retired_is_given_up(bench, monkeypatch):
    """Nobody accepts it any more: the way back is a new attestation, and with it the trust that it was made under."""
    named = replace(bench.trust, bundle=replace(bench.trust.bundle, version=2, issuing_keys=(spki(CA.issuing_key),)))
    bench.presence.adopt_trust(named)
    assert not bench.agent._is_without_identity()
    other = Authority(name="next")
    bundle = replace(named.bundle, version=3, issuing_keys=(spki(other.issuing_key),))
    bench.presence.adopt_trust(replace(named, bundle=bundle))
    assert bench.agent._is_without_identity()

    def enroll(_device, _current, *, attempts):
        leaf = other.ldevid(new_key(), start=bench.now() - timedelta(hours=1), end=bench.now() + timedelta(days=1))
        details = replace(bench.pair.details, certificate=der(leaf), chain=other.chain)
        bench.device.identity.store_next(b"key", details)
        return bench.device.identity.swap()

    monkeypatch.setattr(module, "come_back", enroll)
    bench.kept = replace(named, bundle=replace(bundle, version=4))
    assert bench.agent._enroll_again()
    assert bench.presence.trust.bundle.version == 4
    assert not bench.agent._is_without_identity()


def test_a_bundle_that_names_no_ca_orphans_nobody(bench):
    assert bench.presence.trust.bundle.issuing_keys == ()
    assert not bench.presence.is_orphaned


def test_an_old_command_key_counts_no_more_after_a_bundle_without_it(bench):
    old, new = new_key(), new_key()
    bundle = replace(bench.trust.bundle, command_keys=(spki(old), spki(new)))
    bench.presence.adopt_trust(replace(bench.trust, bundle=bundle))
    signatures = {key: (key_id(spki(key)), key.sign(b"m", ec.ECDSA(SHA256())), b"m") for key in (old, new)}
    assert bench.presence.verify(*signatures[old])
    assert bench.presence.verify(*signatures[new])
    bench.presence.adopt_trust(replace(bench.trust, bundle=replace(bundle, command_keys=(spki(new),))))
    assert not bench.presence.verify(*signatures[old])
    assert bench.presence.verify(*signatures[new])


def test_events_of_a_line_that_was_given_up_change_nothing(bench):
    bench.pass_time(1)
    bench.connect()
    stale = object()
    bench.agent._on(Lost(stale, "gone"))
    assert bench.presence.online
    bench.agent._on(Connected(stale))
    assert bench.kinds() == [Hello]


def test_a_message_that_is_dropped_costs_nothing(bench):
    bench.agent._on(Arrived(b"garbage"))
    assert bench.sent == []


def test_renewal_is_asked_for_after_two_thirds_and_repeated(bench):
    bench.agent._due = {"renew": bench.agent._due["renew"]}
    due = bench.agent._due["renew"]
    assert timedelta(days=20) <= timedelta(seconds=due) <= timedelta(days=20, hours=12)
    bench.seconds = due - 1
    bench.agent._run_due()
    assert bench.sent == []
    bench.pass_time(2)
    assert bench.sent == [(Renew, {"certificate_serial": bench.pair.serial})]
    bench.pass_time(3601)
    assert bench.kinds() == [Renew] * 2


def test_after_a_rotation_the_new_key_reconnects_and_reports(bench):
    bench.pass_time(1)
    bench.connect()
    new = bench.enrolled(timedelta(days=30), timedelta(days=20), reply_to="c-1")
    bench.agent._rotation = bench.agent._commands._rotation = SimpleNamespace(install=lambda _: new)
    bench.agent._later("install", 0)
    bench.pass_time(2)
    assert bench.dialled == [bench.pair.serial, new.serial]
    bench.connect()
    assert bench.sent[-1] == (Installed, {"in_reply_to": "c-1", "certificate_serial": new.serial})
    bench.connect()
    assert bench.kinds().count(Installed) == 1


def test_a_pair_that_cannot_be_proven_now_is_tried_again_and_an_unusable_one_is_not(bench):
    outcomes = [ServiceUnreachable("away"), ServiceUnreachable("away"), NewPairUnusable("refused"), AssertionError]

    def install(_):
        raise outcomes.pop(0)

    bench.agent._rotation = SimpleNamespace(install=install)
    bench.agent._later("install", 0)
    bench.pass_time(3600)
    assert len(outcomes) == 1
    assert bench.presence.pair == bench.pair


def test_a_stored_pair_is_proven_at_the_next_start(bench):
    leaf = CA.ldevid(new_key())
    details = IdentityDetails(DEVICE, der(leaf), CA.chain, MqttAddress("h", 1), NOW + timedelta(days=1), "EK-RSA2048")
    bench.device.identity.store_next(b"next", details)
    again = Agent(bench.device, bench.stop)
    again._come_up(bench.trust, bench.pair)
    assert "install" in again._due


def test_an_ended_certificate_is_replaced_by_a_new_enrollment(bench, monkeypatch):
    bench.pass_time(1)
    bench.seconds += timedelta(days=31).total_seconds()
    bench.agent._due.clear()
    new = []

    def enroll(_device, current, *, attempts):
        assert current == bench.pair
        new.append(bench.enrolled(timedelta(days=30), timedelta(days=20)))
        return new[0]

    monkeypatch.setattr(module, "come_back", enroll)
    bench.presence.events = SimpleNamespace(get=lambda timeout: (_ for _ in ()).throw(queue.Empty))
    rounds = iter([False, False, True])
    bench.agent._stop = SimpleNamespace(is_set=lambda: next(rounds))
    assert bench.agent._loop() is Ended.STOPPED
    assert bench.presence.pair == new[0]
    assert len(new) == 1


def test_stopping_while_waiting_for_the_service_is_no_failure(bench, monkeypatch):
    def stopped(_, attempts):
        raise Stopped

    bench.device.identity = SimpleNamespace(current=lambda: None)
    monkeypatch.setattr(module, "enroll_until_done", stopped)
    assert Agent(bench.device, bench.stop).run() is Ended.STOPPED


def test_an_enrolled_device_goes_on_with_the_trust_it_has_whatever_the_network_shows(bench, monkeypatch):
    from ota.refusals import ThresholdNotMet

    def refused(_):
        raise ThresholdNotMet("root")

    monkeypatch.setattr(module, "trust_at_hand", refused)
    bench.device.trust = SimpleNamespace(current=lambda: bench.trust)
    assert bench.agent._kept_or_new() is bench.trust
    bench.device.trust = SimpleNamespace(current=lambda: None)
    with pytest.raises(ThresholdNotMet):
        bench.agent._kept_or_new()


def raising(failure):
    def raises(*_):
        raise failure

    return raises


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("job", ["trust", "update", "install", "trial"])
def test_a_full_disk_does_not_end_an_agent_that_runs(bench, monkeypatch, job):
    monkeypatch.setattr(module, "refresh_trust", raising(FULL))
    monkeypatch.setattr(bench.agent._rotation, "install", raising(FULL))
    for step in ("check", "not_attested"):
        monkeypatch.setattr(bench.agent._updates, step, raising(FULL))
    bench.agent._due = {job: 0.0}
    bench.pass_time(1)
    assert bench.sent == []


def test_a_command_that_a_full_disk_hinders_is_said_to_have_failed(bench, monkeypatch):
    monkeypatch.setattr("device_agent.commands.refresh_trust", raising(FULL))
    command = RefreshTrust(message_id="t", device=DEVICE, session="s", sequence=1, not_after=NOW)
    bench.agent._commands.obey(command)
    assert [fields["reason"] for _, fields in bench.sent] == [str(FULL)]


def test_a_full_disk_at_the_start_is_told_as_such(bench, monkeypatch):
    monkeypatch.setattr(module, "next_session_number", raising(FULL))
    again = Agent(bench.device, bench.stop)
    monkeypatch.setattr(again, "_ready", lambda: (bench.trust, bench.pair))
    with pytest.raises(OSError, match="No space left"):
        again.run()


def test_an_address_that_cannot_be_one_is_a_line_that_is_lost(bench):
    bench.refusal = ValueError("Invalid host.")
    bench.pass_time(1)
    assert "dial" in bench.agent._due


@pytest.mark.parametrize(
    "trouble",
    [SourceUnavailable("away"), ServiceUnreachable("away"), FULL, True],
    ids=["source", "service", "disk", "failed"],
)
def test_an_update_that_failed_on_the_way_is_tried_again_ever_more_slowly(bench, monkeypatch, trouble):
    looks = []

    def check():
        looks.append(bench.seconds)
        return raising(trouble)() if isinstance(trouble, Exception) else trouble

    monkeypatch.setattr(bench.agent._updates, "check", check)
    bench.agent._due = {"update": 0.0}
    bench.pass_time(3600)
    assert looks == [1, 61, 181, 421, 901, 1861]


@pytest.mark.parametrize("end", [False, StateDamaged("names no slots"), SlotStateMalformed("boot.json")])
def test_an_update_that_ended_is_not_looked_for_again(bench, monkeypatch, end):
    monkeypatch.setattr(bench.agent._updates, "check", raising(end) if isinstance(end, Exception) else lambda: end)
    bench.agent._due = {"update": 0.0}
    bench.pass_time(1)
    assert bench.agent._due == {}


def test_an_update_that_a_power_cut_interrupted_is_looked_for_after_the_start(bench, tmp_path):
    assert "update" not in bench.agent._due
    (tmp_path / "update").mkdir()
    (tmp_path / "update" / "offer.json").write_text("{}")
    again = Agent(bench.device, bench.stop)
    again._come_up(bench.trust, bench.pair)
    assert "update" in again._due


@pytest.mark.parametrize(
    ("failure", "enrolls"), [(DeviceKeyUnusable("cleared"), True), (TpmUnreachable("busy"), False), (None, False)]
)
def test_a_key_that_the_tpm_holds_no_more_is_replaced_by_an_enrollment(bench, monkeypatch, failure, enrolls):
    loaded = contextlib.nullcontext if failure is None else raising(failure)
    bench.device.tpm = SimpleNamespace(open=lambda: contextlib.nullcontext(SimpleNamespace(loaded=loaded)))
    monkeypatch.setattr(module, "trust_at_hand", lambda _: bench.trust)
    monkeypatch.setattr(module, "come_back", lambda _device, _current, *, attempts: "new pair")
    assert Agent(bench.device, bench.stop)._ready()[1] == ("new pair" if enrolls else bench.pair)


@pytest.mark.parametrize(("booted", "attempts"), [("b", module.TRIAL_ATTEMPTS), ("a", None)])
def test_a_release_on_trial_that_gets_no_identity_ends_so_that_the_old_one_boots(
    bench, monkeypatch, tmp_path, booted, attempts
):
    (tmp_path / "boot.json").write_text('{"active":"a","trying":"b","tries_left":2}')
    (tmp_path / "booted").write_text(booted)
    bench.device.config.slots = tmp_path
    given = []
    monkeypatch.setattr(module, "enroll_until_done", lambda _, attempts: given.append(attempts) or bench.pair)
    monkeypatch.setattr(module, "trust_at_hand", lambda _: bench.trust)
    bench.device.identity = SimpleNamespace(current=lambda: None)
    Agent(bench.device, bench.stop)._ready()
    assert given == [attempts]


def test_a_release_on_trial_that_gets_no_trust_ends_too(bench, monkeypatch, tmp_path):
    (tmp_path / "boot.json").write_text('{"active":"a","trying":"b","tries_left":2}')
    (tmp_path / "booted").write_text("b")
    bench.device.config.slots = tmp_path
    looks = []
    bench.device.host = replace(bench.device.host, pause=looks.append)
    monkeypatch.setattr(module, "trust_at_hand", raising(SourceUnavailable("away")))
    bench.device.tpm = SimpleNamespace(open=raising(TpmUnreachable("busy")))
    assert Agent(bench.device, bench.stop).run() is Ended.REFUSED
    assert len(looks) == module.TRIAL_ATTEMPTS - 1
