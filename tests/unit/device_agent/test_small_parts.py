"""Log lines, waits, clocks, reactions, and the settings of OpenSSL."""

import logging
import os
import subprocess
import sys
import warnings
from datetime import timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from device_agent import device, environment, log
from device_agent.__main__ import main
from device_agent.clock import SteadyClock, TimeRefused, fetch_signed_time
from device_agent.config import ConfigMistake
from device_agent.enroll import exit_status, reaction_to
from device_agent.environment import openssl_settings
from device_agent.host import Backoff
from device_agent.http import ApprovalPending, ServiceNotAuthentic, ServiceRefused, ServiceUnreachable
from device_agent.lock import AlreadyRunning, hold
from device_agent.memory import recall, remember_attested
from device_agent.tpm import TpmUnreachable
from device_agent.trust import Trust, TrustedTime
from ota.refusals import MetadataExpired
from ota.source import SourceUnavailable
from tests.unit.device_agent.builders import NOW, new_key, spki
from wire.binding import key_id
from wire.codec import encode
from wire.envelope import seal
from wire.messages import TIME_PAYLOAD_TYPE, SignedTime
from wire.problems import Problem, ProblemDocument, Reaction


def refused(problem, status=403, retry_after=0.0):
    return ServiceRefused(status, ProblemDocument(problem, "Title", status, "MUSTER-X-1", "r-1"), retry_after)


# --- log ---


def test_a_value_cannot_forge_a_line():
    line = log.line("refused", {"reason": 'x\n2026 INFO enrolled "y"\x1b[2J', "count": 3, "absent": None})
    assert line == 'refused reason="x\\n2026 INFO enrolled \\"y\\"\\u001b[2J" count=3'


def test_what_a_library_logs_stays_one_line(capsys):
    before = logging.getLogger().handlers
    try:
        log.configure()
        logging.getLogger("library").warning("two\nlines")
        log.event("plain", key="value")
    finally:
        logging.getLogger().handlers = before
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("WARNING two\\nlines")
    assert lines[1].endswith("INFO plain key=value")


def test_what_a_library_warns_of_stays_one_line_and_a_clock_at_1970_is_no_warning(capsys):
    before = logging.getLogger().handlers
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)  # another test's
            log.configure()
            warnings.warn("System time is way off (before 2025-01-01).", stacklevel=1)
            warnings.warn("two\nlines", stacklevel=1)
    finally:
        logging.captureWarnings(capture=False)
        logging.getLogger().handlers = before
    (line,) = capsys.readouterr().err.splitlines()
    assert "UserWarning: two\\nlines" in line


# --- waits ---


def test_waits_double_to_their_bound_and_are_drawn_below_it():
    low, high = Backoff(min, 1.0, 8.0), Backoff(max, 1.0, 8.0)
    assert [low.next() for _ in range(5)] == [0.5, 1, 2, 4, 4]
    assert [high.next() for _ in range(5)] == [1, 2, 4, 8, 8]
    high.reset()
    assert high.next(at_least=30) == 31


# --- time ---


def test_a_device_without_a_clock_counts_on_from_the_signed_time():
    seconds = [100.0]
    clock = SteadyClock(lambda: NOW - timedelta(days=20_000), lambda: seconds[0])
    assert clock() < NOW - timedelta(days=10_000)
    clock.learn(NOW)
    seconds[0] += 60
    assert clock() == NOW + timedelta(seconds=60)


def test_a_clock_that_is_set_wins_over_an_older_signed_time():
    clock = SteadyClock(lambda: NOW, lambda: 0.0)
    clock.learn(NOW - timedelta(days=1))
    assert clock() == NOW


def time_server(key, **changes):
    def get(path, most):
        nonce = path.partition("nonce=")[2]
        signed = SignedTime(**{"nonce": nonce, "now": NOW, **changes.get("fields", {})})
        sign = lambda data: key.sign(data, ec.ECDSA(SHA256()))  # noqa: E731
        return changes.get("raw") or seal(
            changes.get("kind", TIME_PAYLOAD_TYPE), encode(signed), key_id(spki(key)), sign
        )

    return SimpleNamespace(get=get)


KEY = new_key()


def test_the_signed_time_is_taken():
    assert fetch_signed_time(time_server(KEY), [spki(KEY)], bytes) == NOW


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (time_server(new_key()), "not signed by a command key"),
        (time_server(KEY, fields={"nonce": "an older one"}), "answers another question"),
        (time_server(KEY, kind="application/vnd.muster.refresh-trust.v1+json"), "not signed"),
        (time_server(KEY, raw=b"{}"), "not signed"),
    ],
    ids=["another key", "replayed", "another kind", "garbage"],
)
def test_another_time_is_refused(server, says):
    with pytest.raises(TimeRefused, match=says):
        fetch_signed_time(server, [spki(KEY)], bytes)


# --- reactions ---


@pytest.mark.parametrize("problem", list(Problem))
def test_every_problem_has_the_reaction_of_the_protocol(problem):
    from wire.problems import REACTION

    assert reaction_to(refused(problem.uri)) is REACTION[problem]


@pytest.mark.parametrize(
    ("failure", "reaction"),
    [
        (refused("urn:muster:problem:of-tomorrow", 403), Reaction.STOP),
        (refused("urn:muster:problem:of-tomorrow", 503), Reaction.RETRY),
        (ServiceRefused(429, None, 1.0), Reaction.RETRY),
        (ServiceRefused(418, None, 0.0), Reaction.STOP),
        (ServiceUnreachable("x"), Reaction.RETRY),
        (SourceUnavailable("x"), Reaction.RETRY),
        (ServiceNotAuthentic("x"), Reaction.WAIT),
        (ApprovalPending(5.0), Reaction.WAIT),
        (TpmUnreachable("x"), Reaction.WAIT),
        (ConfigMistake("x"), Reaction.STOP),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_other_failures_have_one_too(failure, reaction):
    assert reaction_to(failure) is reaction


def test_a_refusal_ends_with_1_and_names_its_record_and_silence_ends_with_3():
    status, text = exit_status(refused(Problem.ATTESTATION_REFUSED.uri))
    assert (status, text) == (1, "Title (MUSTER-X-1); the operator sees why: muster explain r-1")
    assert exit_status(ServiceUnreachable("nobody"))[0] == 3


# --- OpenSSL ---


def config(tmp_path, conf=None):
    return SimpleNamespace(openssl_conf=conf, state_dir=tmp_path / "state", tcti="swtpm:path=/x")


def test_the_configured_openssl_file_wins(tmp_path):
    settings = openssl_settings(config(tmp_path, tmp_path / "mine.cnf"), {"TSS2_LOG": "all+debug"})
    assert settings == {
        "OPENSSL_CONF": str(tmp_path / "mine.cnf"),
        "TPM2OPENSSL_TCTI": "swtpm:path=/x",
        "TSS2_LOG": "all+debug",
    }


def test_outside_a_checkout_a_file_for_the_distributions_module_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_CHECKOUT_CONF", tmp_path / "absent")
    path = openssl_settings(config(tmp_path), {})["OPENSSL_CONF"]
    text = (tmp_path / "state" / "openssl-tpm2.cnf").read_text()
    assert path == str(tmp_path / "state" / "openssl-tpm2.cnf")
    assert text.index("default = default_provider") < text.index("tpm2 = tpm2_provider")
    assert "default_properties" not in text


# --- lock and memory ---


def test_a_second_agent_is_refused_until_the_first_ends(tmp_path):
    with hold(tmp_path / "lock"), pytest.raises(AlreadyRunning, match="stop it first"), hold(tmp_path / "lock"):
        pass
    with hold(tmp_path / "lock"):
        pass


def test_damaged_memory_is_as_good_as_none(tmp_path):
    remember_attested(tmp_path, NOW)
    assert recall(tmp_path).attested_until == NOW
    (tmp_path / "memory.json").write_bytes(b"{")
    assert recall(tmp_path).attested_until is None


@pytest.mark.parametrize("command", ["run", "enroll", "status", "doctor"])
def test_every_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"muster-agent {command} --data-dir" in capsys.readouterr().out.partition("example")[2]


def test_a_reader_that_has_enough_ends_the_command_quietly(tmp_path):
    read, write = os.pipe()
    os.close(read)
    (tmp_path / "agent.toml").write_text(
        'service = "https://s"\npublic = "http://p"\nanchor = "a"\nhardware = "h"\n'
        'build_time = "2026-11-21T12:00:00Z"\ntcti = "swtpm:path=/nowhere"\n'
    )
    command = [sys.executable, "-m", "device_agent", "doctor", "--data-dir", tmp_path]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("ahead", "learned"), [(timedelta(days=6), True), (timedelta(days=8), False)])
def test_a_time_past_the_expiry_of_what_it_came_with_is_not_learned(tmp_path, monkeypatch, ahead, learned):
    """The floor never falls: a service whose clock jumped must not make its fleet refuse everything for good."""
    clock = SteadyClock(lambda: NOW, lambda: 0.0)
    time = TrustedTime(tmp_path, NOW, clock)
    trust = Trust(SimpleNamespace(command_keys=()), 1, NOW + timedelta(days=7))
    host = SimpleNamespace(system_clock=lambda: NOW, entropy=bytes)
    store = SimpleNamespace(refresh=lambda: trust)
    known = SimpleNamespace(trust=store, host=host, clock=clock, time=time, public=None, now=time.now)
    monkeypatch.setattr(device, "fetch_signed_time", lambda *_: NOW + ahead)
    if learned:
        assert device.refresh_trust(known) is trust
    else:
        with pytest.raises(MetadataExpired):
            device.refresh_trust(known)
    assert time.now() == TrustedTime(tmp_path, NOW, lambda: NOW).now() == NOW + (ahead if learned else timedelta(0))
