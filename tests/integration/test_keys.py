"""The service's keys while tokens hang, go away and come back, and while one token stands in for another."""

import asyncio
import contextlib
import hashlib
import threading
import time

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.errors import KeyNotFound, KeyPairMismatch, TokenUnavailable, WrongPin
from hsm.key import verify_message
from hsm.kinds import KeyKind
from hsm.module import Module
from provisioning.app.keys import SERVICE_KEYS, HsmKeys
from provisioning.config import ConfigurationRefused, DataDirectory, parse_config
from provisioning.refusals import SigningUnavailable
from tests.support.tokens import PIN, TOKENS, Nss, P11Kit, SoftHsm, copy_of, until
from wire.binding import key_id

SHA256 = ec.ECDSA(hashes.SHA256())
WITHIN_SECONDS = 1.0
DEADLINE = 400
"""Half of the default: what is left of a second is for a busy machine."""


class Installation:
    """A data directory with nothing but tokens: what `HsmKeys` needs."""

    def __init__(self, root):
        self.directory = DataDirectory(root)
        self.directory.secrets.mkdir(parents=True, mode=0o700)
        self.modules = ""

    def keys(self, settings):
        return HsmKeys(self.directory, self.config(settings))

    def config(self, settings):
        return parse_config(f'service_name = "a.test"\n{settings}\n{self.modules}', "muster.toml")

    def holds(self, name, place):
        """This token can be named `?module-name=NAME`; its PIN lies where the default is."""
        self.modules += place.toml(name)
        pin = self.directory.pin(place.label)
        pin.write_text(PIN)
        pin.chmod(0o600)


@pytest.fixture
def installation(tmp_path):
    return Installation(tmp_path / "data")


@pytest.fixture(params=TOKENS.values(), ids=TOKENS)
def place(request, tmp_path, installation):
    made = request.param(tmp_path / "place")
    installation.holds("first", made)
    with made.token(sessions=1) as token:
        for name in SERVICE_KEYS:
            token.generate_key(name)
    yield made
    made.close()


@pytest.fixture
def remote(tmp_path, installation):
    """A token in the network, with the service's keys."""
    made = P11Kit(tmp_path / "remote")
    installation.holds("first", made)
    with made.token(sessions=1) as token:
        for name in SERVICE_KEYS:
            token.generate_key(name)
    yield made
    made.close()


def only(place):
    return f'[hsm]\nmodule = "first"\ntoken = "{place.label}"\ndeadline_milliseconds = {DEADLINE}\n'


@contextlib.contextmanager
def opened(installation, settings):
    keys = installation.keys(settings)
    try:
        yield keys
    finally:
        keys.close()


async def assert_signs(keys, name="issuing", message=b"message"):
    signature = await keys.sign(name, message)
    verify_message(keys.public(name), message, signature)


async def until_it_signs(keys, seconds):
    """SigningUnavailable is the only error on the way."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await assert_signs(keys)
        except SigningUnavailable:
            assert time.monotonic() < deadline, f"it does not sign again within {seconds} s"
            await asyncio.sleep(0.05)


async def refused_within(seconds, awaitable):
    """It is refused by name, and in time: this is the figure of the contract, not a measurement."""
    begun = time.monotonic()
    with pytest.raises(SigningUnavailable):
        await awaitable
    assert time.monotonic() - begun < seconds


# --- names ----------------------------------------------------------------------------------------------------------


async def test_a_key_signs_by_label_and_by_every_uri_that_names_it(installation, place):
    with opened(installation, only(place)) as keys:
        token = f"token={place.label.replace(' ', '%20')}"
        for name in ("issuing", "pkcs11:object=issuing", f"pkcs11:{token};object=issuing?module-name=first"):
            assert await keys.adopt(name) == keys.public("issuing")
            await assert_signs(keys, name)
        spki = keys.public("issuing").public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        signed = keys.take_signatures()
        assert {entry.key_id for entry in signed} == {key_id(spki)}
        assert [(entry.count, entry.digests) for entry in signed] == [(1, (hashlib.sha256(b"message").digest(),))] * 3
        assert keys.take_signatures() == []


async def test_a_key_that_appears_while_it_runs_is_adopted(installation, place):
    with opened(installation, only(place)) as keys:
        await refused_within(60, keys.sign("issuing-2", b"message"))
        (token,) = keys._tokens.values()
        made = await asyncio.to_thread(token.opened().generate_key, "issuing-2", KeyKind.P384)
        assert await keys.adopt("issuing-2") == made.public_key()
        await assert_signs(keys, "issuing-2")
        await assert_signs(keys, "pkcs11:id=" + "".join(f"%{octet:02x}" for octet in made.reference.id))


async def test_a_library_signs_with_the_key_itself(installation, place):
    with opened(installation, only(place)) as keys:
        key = keys.key("director-online")
        signature = await asyncio.to_thread(key.sign, b"metadata", SHA256)
        key.public_key().verify(signature, b"metadata", SHA256)
        assert [(entry.name, entry.count, entry.digests) for entry in keys.take_signatures()] == [
            ("director-online", 1, ())
        ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('[hsm]\ntoken = "pkcs11:object=a;token=ca"', "names a key"),
        ('[hsm]\nkeys.issuing = ["pkcs11:token=ca"]', "names no key"),
        ('[hsm]\nkeys.issuing = ["pkcs11:object=a;object=b"]', "stands twice"),
        ("[hsm]\nkeys.issuing = []", "names no place"),
        ('[hsm]\nkeys.issuing = ["pkcs11:object=a?module-name=first"]', "names no token"),
        ('[hsm]\nkeys.issuing = ["pkcs11:token=ca;object=a?module-name=nobody"]', "has no 'nobody'"),
        ('[hsm]\ntoken = "pkcs11:token=ca?pin-source=../pin"', "pin-source"),
        ('[hsm]\npins.muster = "1234"', "file:/path, env:NAME, credential:NAME or prompt"),
    ],
)
def test_a_configuration_that_names_nothing_usable_is_refused(installation, settings, says):
    with pytest.raises(ConfigurationRefused, match=says):
        installation.keys(settings)


async def test_a_uri_from_elsewhere_loads_no_module_that_the_configuration_does_not_describe(installation, place):
    with opened(installation, only(place)) as keys:
        for path in ("/tmp/evil.so", "/usr/lib/libother.so"):
            with pytest.raises(SigningUnavailable) as refusal:
                await keys.sign(f"pkcs11:token=ca;object=issuing?module-path={path}", b"message")
            assert "describes no such module" in refusal.value.actual


# --- a token that goes away and comes back --------------------------------------------------------------------------


async def test_a_token_that_was_away_signs_again_without_restart(installation, remote):
    with opened(installation, only(remote)) as keys:
        await assert_signs(keys)
        remote.kill()
        for _ in range(3):
            await refused_within(WITHIN_SECONDS, keys.sign("issuing", b"message"))
        remote.start()
        await until_it_signs(keys, 5)
        await assert_signs(keys, "log")


async def test_a_session_that_is_lost_costs_no_caller_an_error(installation, remote):
    with opened(installation, only(remote)) as keys:
        await assert_signs(keys)
        remote.kill()
        remote.start()
        await assert_signs(keys)


def test_the_default_deadline_is_a_second_at_most(installation):
    assert installation.config("").hsm.deadline_milliseconds <= 1000


# --- a module that hangs --------------------------------------------------------------------------------------------


async def test_while_the_module_hangs_callers_are_refused_in_time_and_all_else_goes_on(installation, remote):
    with opened(installation, only(remote)) as keys:
        await assert_signs(keys)
        keys.take_signatures()
        threads = threading.active_count()
        with remote.hanging():
            ticks = []
            ticking = asyncio.create_task(tick(ticks))
            # The first hangs, the others queue behind it; all hear within the deadline.
            await asyncio.gather(*(refused_within(WITHIN_SECONDS, keys.sign("issuing", b"early")) for _ in range(50)))
            await refused_within(WITHIN_SECONDS, keys.sign("log", b"late"))
            for _ in range(20):  # who comes later is not kept waiting at all
                with pytest.raises(SigningUnavailable) as refusal:
                    await keys.sign("log", b"late")
                assert "has not answered" in refusal.value.actual
            with pytest.raises(TokenUnavailable):
                await asyncio.to_thread(keys.key("director-online").sign, b"metadata", SHA256)
            ticking.cancel()
            assert len(ticks) > 20  # the loop was never held
        assert threading.active_count() <= threads + 2  # asyncio's own pool
        await until_it_signs(keys, 5)
        # Of what was asked while it hung only the call inside the module was carried out.
        counts = {entry.name: entry.count for entry in keys.take_signatures()}
        assert counts.get("log", 0) == 0
        assert counts["issuing"] <= 2


async def tick(ticks):
    while True:
        ticks.append(await asyncio.sleep(0.01))


async def test_a_module_that_hangs_in_threads_keeps_none_of_the_others_waiting(installation, tmp_path, monkeypatch):
    """One of four threads never comes back: the other three do all the work."""
    place = SoftHsm(tmp_path / "place")
    installation.holds("first", place)
    with place.token(sessions=1) as token:
        for name in SERVICE_KEYS:
            token.generate_key(name)
    with opened(installation, only(place)) as keys:
        let_go = threading.Event()
        (token,) = keys._tokens.values()
        token.signers.begin(let_go.wait)
        try:
            await asyncio.gather(*(assert_signs(keys) for _ in range(200)))
        finally:
            let_go.set()


async def test_a_service_that_starts_while_the_module_hangs_says_so(installation, remote, monkeypatch):
    monkeypatch.setattr("provisioning.app.keys.START_SECONDS", 0.3)
    with remote.hanging(), pytest.raises(TokenUnavailable, match=r"no answer within 0\.3 s"):
        await asyncio.to_thread(installation.keys, only(remote))
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("hsm ")])
    assert not Module._loaded  # the opening that was given up ended, and left nothing behind
    monkeypatch.undo()
    with opened(installation, only(remote)) as keys:
        await assert_signs(keys)


# --- two tokens -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(installation, remote, tmp_path):
    """The network's token, and SoftHSM2 with the same keys; the settings name both for each key."""
    (tmp_path / "second").mkdir()
    second = copy_of(remote, tmp_path / "second")
    installation.holds("second", second)
    uris = [f"pkcs11:token=ca;object={{}}?module-name={name}" for name in ("first", "second")]
    lines = [f"keys.{name} = {[uri.format(name) for uri in uris]}" for name in SERVICE_KEYS]
    return f"[hsm]\ndeadline_milliseconds = {DEADLINE}\n" + "\n".join(lines) + "\n"


def who_serves(keys):
    """Which of the two tokens a signature comes from: the counts of both."""
    first, second = keys._tokens.values()
    return first._token.signatures, second._token.signatures


async def test_the_second_token_signs_when_the_first_is_killed_and_the_first_once_it_is_back(
    installation, remote, pair
):
    with opened(installation, pair) as keys:
        await assert_signs(keys)
        assert who_serves(keys) == (1, 0)
        remote.kill()
        for number in range(1, 6):
            await assert_signs(keys)  # no caller sees an error
            assert who_serves(keys) == (1, number)
        remote.start()
        await until_the_first_signs(keys, 5)
        before = who_serves(keys)
        for _ in range(5):
            await assert_signs(keys)
        first, second = who_serves(keys)
        assert (first - before[0], second - before[1]) == (5, 0)


async def until_the_first_signs(keys, seconds):
    deadline = time.monotonic() + seconds
    while next(iter(keys._tokens.values())).is_failing:
        assert time.monotonic() < deadline, f"the first token is not used again within {seconds} s"
        await assert_signs(keys)
        await asyncio.sleep(0.05)


async def test_the_second_token_signs_while_the_first_hangs(installation, remote, pair):
    with opened(installation, pair) as keys:
        await assert_signs(keys)
        with remote.hanging():
            for _ in range(5):
                begun = time.monotonic()
                await assert_signs(keys)
                assert time.monotonic() - begun < WITHIN_SECONDS
            key = keys.key("director-online")
            key.public_key().verify(await asyncio.to_thread(key.sign, b"metadata", SHA256), b"metadata", SHA256)
        await until_the_first_signs(keys, 5)


async def test_the_service_starts_with_the_second_token_alone(installation, remote, pair):
    remote.kill()
    with opened(installation, pair) as keys:
        await assert_signs(keys)
        assert keys.public("issuing")
        remote.start()
        await until_the_first_signs(keys, 5)


async def test_a_second_token_with_another_key_does_not_sign(installation, remote, tmp_path):
    other = Nss(tmp_path / "second")
    installation.holds("second", other)
    with other.token(sessions=1) as token:
        token.generate_key("issuing")
    uris = ["pkcs11:token=ca;object=issuing?module-name=first"]
    uris.append("pkcs11:token=NSS%20Certificate%20DB;object=issuing?module-name=second")
    with opened(installation, only(remote) + f"keys.issuing = {uris}\n") as keys:
        await assert_signs(keys)
        remote.kill()
        with pytest.raises(SigningUnavailable) as refusal:
            await keys.sign("issuing", b"message")
        assert isinstance(refusal.value.__cause__, KeyPairMismatch)


# --- the PIN --------------------------------------------------------------------------------------------------------


async def test_a_pin_that_became_wrong_is_tried_once_however_many_ask(installation, remote, monkeypatch):
    reads = []
    with opened(installation, only(remote)) as keys:
        await assert_signs(keys)
        (token,) = keys._tokens.values()

        def read():
            reads.append(1)
            return "another-pin"

        monkeypatch.setattr(token._token._sessions, "_read_pin", read)
        remote.kill()
        remote.start()
        for _ in range(5):
            with pytest.raises(SigningUnavailable) as refusal:
                await keys.sign("issuing", b"message")
            assert isinstance(refusal.value.__cause__, WrongPin)
            await asyncio.sleep(0.1)
    assert len(reads) == 1


def test_a_wrong_pin_at_the_start_is_said(installation, place):
    installation.directory.pin(place.label).write_text("another-pin")
    with pytest.raises(WrongPin):
        installation.keys(only(place))


def test_a_missing_key_at_the_start_is_named(installation, place):
    with pytest.raises(KeyNotFound, match="nobody"):
        installation.keys(only(place) + 'keys.issuing = ["pkcs11:object=nobody"]\n')


SOURCES = {
    "a file": lambda path: f"file:{path}",
    "a path": str,
    "a credential": lambda path: f"credential:{path.name}",
    "the environment": lambda _: "env:MUSTER_TEST_PIN",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
async def test_the_pin_comes_from_where_the_configuration_says(installation, place, source, tmp_path, monkeypatch):
    installation.directory.pin(place.label).unlink()
    path = tmp_path / "pin"
    path.write_text(PIN + "\n")
    path.chmod(0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("MUSTER_TEST_PIN", PIN)
    with opened(installation, only(place) + f'pins."{place.label}" = "{source(path)}"\n') as keys:
        await assert_signs(keys)
    token = f"pkcs11:token={place.label.replace(' ', '%20')}?module-name=first&pin-source={source(path)}"
    with opened(installation, f'[hsm]\ntoken = "{token}"\n') as keys:
        await assert_signs(keys)
