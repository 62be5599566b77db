"""A token that is lost, hangs, or says no: what recovers without restart, and what must never be tried again."""

import contextlib
import threading
import time

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hsm import sessions
from hsm.errors import KeyNotFound, PinUnreadable, TokenNotFound, TokenUnavailable, WrongPin
from tests.integration.hsm_box import (
    CKR_DEVICE_REMOVED,
    CKR_GENERAL_ERROR,
    FIND_INIT,
    LOGIN,
    SIGN,
    SIGN_INIT,
    Box,
    close_all_sessions,
    finalize,
    intercepted,
    log_out,
    module_of,
)
from tests.support.tokens import until

SHA256 = ec.ECDSA(hashes.SHA256())
# python-pkcs11 ends a search that never began, and cannot raise what comes of it.
NOISE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FAULTS = {"sessions closed": close_all_sessions, "logged out": log_out, "module finalised": finalize}


@pytest.fixture
def box(tmp_path):
    made = Box(tmp_path / "softhsm")
    made.create("ca")
    return made


@pytest.fixture(params=[True, False], ids=["session copies", "token objects"])
def token(box, request):
    with box.token(session_copies=request.param) as opened:
        opened.generate_ec_key("issuing")
        yield opened


def assert_signs(key):
    key.public_key().verify(key.sign(b"data", SHA256), b"data", SHA256)


def until_it_signs(key, seconds=20.0):
    """Sign as soon as the token serves again; TokenUnavailable is the only error on the way."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return assert_signs(key)
        except TokenUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def in_threads(count, work):
    """Run `work` in threads; what they returned or raised."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 (handed to the test)
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def logins(token):
    """How many C_Login reached the module while the test ran."""
    seen = []

    def count(go_on):
        seen.append(1)
        return go_on()

    with intercepted(token, LOGIN, count):
        yield seen


# --- lost and found again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_lost_login_is_renewed_within_the_call(token, fault, logins):
    key = token.ec_key("issuing")
    fault(token)
    assert_signs(key)
    assert len(logins) == 1
    assert token.signatures == 1


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_after_a_fault_keys_are_listed_made_and_found(token, fault):
    fault(token)
    assert [key.label for key in token.keys()] == ["issuing"]  # noqa: SIM118 (no dict)
    fault(token)
    assert_signs(token.generate_ec_key("second"))
    fault(token)
    assert_signs(token.ec_key("issuing"))


@pytest.mark.parametrize("code", [CKR_GENERAL_ERROR, CKR_DEVICE_REMOVED])
@pytest.mark.parametrize("position", [SIGN_INIT, SIGN], ids=["C_SignInit", "C_Sign"])
def test_one_failing_call_is_repeated_once(token, code, position):
    key, calls = token.ec_key("issuing"), []

    def fail_once(go_on):
        calls.append(1)
        return code if len(calls) == 1 else go_on()

    with intercepted(token, position, fail_once):
        assert_signs(key)
    assert token.signatures == 1


@NOISE
def test_a_key_that_always_fails_does_not_reload_the_module_for_each_call(token, monkeypatch):
    monkeypatch.setattr(sessions, "SHORTEST_PAUSE_SECONDS", 600.0)
    monkeypatch.setattr(sessions, "LONGEST_PAUSE_SECONDS", 600.0)
    key, before = token.ec_key("issuing"), module_of(token).generation
    with intercepted(token, SIGN, lambda _: CKR_GENERAL_ERROR):
        for _ in range(30):
            with pytest.raises(TokenUnavailable, match="lost again"):
                key.sign(b"data", SHA256)
    assert module_of(token).generation == before + 1
    token._sessions._pause_until = 0.0
    assert_signs(key)


@NOISE
def test_a_failed_search_blocks_no_other_thread(token):
    assert_signs(token.ec_key("issuing"))
    with intercepted(token, FIND_INIT, lambda _: CKR_GENERAL_ERROR):
        for _ in range(10):
            with pytest.raises(TokenUnavailable):
                token.keys()
    until_it_signs(token.ec_key("issuing"))
    listed = in_threads(16, token.keys)
    assert [[key.label for key in keys] for keys in listed] == [["issuing"]] * 16


def test_a_token_that_was_away_signs_again_with_the_same_key(box, token):
    key = token.ec_key("issuing")
    away = (box.directory / "tokens").rename(box.directory / "away")
    close_all_sessions(token)
    with pytest.raises(TokenUnavailable):
        key.sign(b"data", SHA256)
    with pytest.raises(TokenUnavailable):
        token.keys()
    away.rename(box.directory / "tokens")
    until_it_signs(key)
    assert token.ec_key("issuing").public_key() == key.public_key()
    assert token.signatures == 1


def test_files_that_vanish_under_an_open_session_are_noticed_without_session_copies(box):
    with box.token(session_copies=False) as token:
        key = token.generate_ec_key("issuing")
        away = (box.directory / "tokens").rename(box.directory / "away")
        with pytest.raises(TokenUnavailable):
            key.sign(b"data", SHA256)
        away.rename(box.directory / "tokens")
        until_it_signs(key)


def test_while_a_token_is_away_it_is_not_asked_at_each_call(box, token, monkeypatch):
    monkeypatch.setattr(sessions, "SHORTEST_PAUSE_SECONDS", 600.0)
    monkeypatch.setattr(sessions, "LONGEST_PAUSE_SECONDS", 600.0)
    key = token.ec_key("issuing")
    (box.directory / "tokens").rename(box.directory / "away")
    close_all_sessions(token)
    with pytest.raises(TokenUnavailable):
        key.sign(b"data", SHA256)
    generation = module_of(token).generation
    for _ in range(30):
        with pytest.raises(TokenUnavailable):
            key.sign(b"data", SHA256)
    assert module_of(token).generation == generation


def test_the_pause_doubles_up_to_its_limit(token):
    pauses = []
    for _ in range(8):
        token._sessions._pause("gone")
        pauses.append(token._sessions._pause_seconds)
    assert pauses == [0.25, 0.5, 1, 2, 2, 2, 2, 2]


def test_another_token_under_the_same_label_does_not_sign(box, token, tmp_path):
    key = token.ec_key("issuing")
    other = Box(tmp_path / "other")
    (box.directory / "tokens").rename(box.directory / "away")
    (box.directory / "tokens").mkdir()
    token.close()
    other.create("ca")
    with other.token() as stranger:
        stranger.generate_ec_key("issuing")
    for path in other.directory.glob("tokens/*"):
        path.rename(box.directory / "tokens" / path.name)
    with pytest.raises(TokenNotFound):
        token.open()
    with pytest.raises(TokenUnavailable):
        key.sign(b"data", SHA256)


def test_two_tokens_of_one_module_recover_from_each_others_recovery(box, token):
    box.create("root")
    with box.token("root") as root:
        issuing, root_key = token.ec_key("issuing"), root.generate_ec_key("root")
        for lost in (token, root, token):
            close_all_sessions(lost)
            assert_signs(issuing)
            assert_signs(root_key)
        assert (token.signatures, root.signatures) == (3, 3)


def test_the_loss_of_one_token_leaves_the_other_serving(box, token):
    box.create("root")
    ours = box.directory / "ours"
    with box.token("root") as root:
        root_key, issuing = root.generate_ec_key("root"), token.ec_key("issuing")
        (lost,) = [
            path for path in box.directory.glob("tokens/*") if path.name.replace("-", "").endswith(token_serial(token))
        ]
        lost.rename(ours)
        close_all_sessions(token)
        for _ in range(5):
            with pytest.raises(TokenUnavailable):
                issuing.sign(b"data", SHA256)
            assert_signs(root_key)
        ours.rename(lost)
        until_it_signs(issuing)
        assert_signs(root_key)


def token_serial(token):
    return token._sessions._name.serial.strip()


# --- many threads ---------------------------------------------------------------------------------------------------


def test_one_recovery_serves_all_threads(token, logins):
    key, generation = token.ec_key("issuing"), module_of(token).generation
    close_all_sessions(token)
    assert in_threads(8, lambda: assert_signs(key)) == [None] * 8
    assert module_of(token).generation == generation + 1
    assert len(logins) == 1


def test_threads_that_sign_survive_one_loss_after_the_other(token):
    key, module, done = token.ec_key("issuing"), module_of(token), threading.Event()
    signed = dict.fromkeys(range(8), 0)
    numbers = iter(signed)

    def lose_it_again_and_again():
        try:
            for _ in range(25):
                before = dict(signed)
                with module.alone(10.0):  # SoftHSM itself crashes when sessions are closed under a running C_Sign
                    if token._sessions._generation == module.generation:
                        close_all_sessions(token)
                # A call that two losses meet is refused, and may be: the next comes when each thread has signed again.
                until(lambda known=before: all(signed[one] > known[one] + 1 for one in signed))
        finally:
            done.set()

    def sign_until_done():
        number = next(numbers)
        while not done.is_set():
            assert_signs(key)
            signed[number] += 1
        return signed[number]

    fault = threading.Thread(target=lose_it_again_and_again)
    fault.start()
    made = in_threads(8, sign_until_done)
    fault.join()
    assert all(isinstance(count, int) and count > 0 for count in made), made
    assert token.signatures == sum(made)
    assert module.busy == 0
    assert len(token._sessions._seats) == 8


def test_eight_threads_make_a_hundred_thousand_signatures(token, request):
    as_a_service_does = request.node.callspec.params["token"]
    sign_in_threads(token, 100_000 if as_a_service_does else 20_000)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_eight_threads_make_a_million_signatures(token):
    sign_in_threads(token, 1_000_000)


def sign_in_threads(token, total):
    key = token.ec_key("issuing")
    public_key = key.public_key()

    def sign_many():
        made = set()
        for number in range(total // 8):
            message = number.to_bytes(4, "big")
            signature = key.sign(message, SHA256)
            made.add(signature)
            if number % 20 == 0:
                public_key.verify(signature, message, SHA256)
        return made

    made = in_threads(8, sign_many)
    assert all(isinstance(signatures, set) for signatures in made), made
    assert len(set().union(*made)) == total
    assert token.signatures == total


# --- waiting --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_signature_that_hangs(token, key):
    """Inside, one thread is in C_Sign and does not come back; at the end it does, and its signature is good."""
    entered, let_go = threading.Event(), threading.Event()

    def hang(go_on):
        entered.set()
        let_go.wait(60)
        return go_on()

    with intercepted(token, SIGN, hang):
        results = []
        thread = threading.Thread(target=lambda: results.append(assert_signs(key)))
        thread.start()
        try:
            assert entered.wait(10)
            yield
        finally:
            let_go.set()
            thread.join()
    assert results == [None]


def test_a_call_that_finds_no_session_gives_up_at_its_deadline(box):
    with box.token(sessions=1, wait_seconds=0.2) as token:
        key = token.generate_ec_key("issuing")
        with a_signature_that_hangs(token, key), pytest.raises(TokenUnavailable, match="no session became free"):
            key.sign(b"data", SHA256)
        assert_signs(key)


def test_neither_recovery_nor_closing_happens_under_a_call_that_hangs(box):
    with box.token(wait_seconds=0.2) as token:
        key = token.generate_ec_key("issuing")
        generation = module_of(token).generation
        with a_signature_that_hangs(token, key):
            log_out(token)
            with pytest.raises(TokenUnavailable, match="has not come back"):
                token.keys()
            with pytest.raises(TokenUnavailable, match="has not come back"):
                token.close()
            assert module_of(token).generation == generation
        assert_signs(key)
        assert module_of(token).generation == generation + 1


# --- what is not tried again ----------------------------------------------------------------------------------------


def test_a_pin_that_became_wrong_is_tried_once(box, token, logins):
    key = token.ec_key("issuing")
    box.write_pin("ca", "c4n4ry-wrong")
    close_all_sessions(token)
    refusals = in_threads(8, lambda: key.sign(b"data", SHA256))
    assert {type(refusal) for refusal in refusals} == {WrongPin}
    for _ in range(10):
        for use in (token.keys, token.open, lambda: key.sign(b"data", SHA256), lambda: token.ec_key("issuing")):
            with pytest.raises(WrongPin, match="not tried again"):
                use()
    token.close()
    with pytest.raises(WrongPin):
        token.open()
    assert len(logins) == 1


def test_a_pin_file_that_vanished_is_named_and_may_come_back(box, token, logins):
    key = token.ec_key("issuing")
    box.directory.joinpath("ca.pin").unlink()
    close_all_sessions(token)
    with pytest.raises(PinUnreadable, match=r"ca\.pin"):
        key.sign(b"data", SHA256)
    assert not logins
    box.write_pin("ca", "user-pin")
    until_it_signs(key)


def test_absence_is_believed_of_a_fresh_login_only(token, monkeypatch):
    module = module_of(token)
    monkeypatch.setattr(sessions, "FRESH_LOGIN_SECONDS", 600.0)
    token._sessions._login_is_fresh_until = 0.0
    generation = module.generation
    for _ in range(10):
        with pytest.raises(KeyNotFound, match="'nobody'"):
            token.ec_key("nobody")
    assert module.generation == generation + 1
