"""Real SoftHSM2 tokens: making, opening and closing them, and the PIN."""

import datetime as dt
import os
import stat
import subprocess
import sys
import traceback
from types import SimpleNamespace

import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hsm.errors import (
    HsmError,
    ModuleUnusable,
    PinUnreadable,
    TokenAmbiguous,
    TokenExists,
    TokenNotFound,
    TokenRefused,
    TokenUnavailable,
    WrongPin,
)
from hsm.module import Module, ModuleSettings
from hsm.softhsm import create_token, find_module, settings, write_configuration
from hsm.token import Token
from tests.integration.hsm_box import CKR_GENERAL_ERROR, INIT_PIN, SO_PIN, Box, intercepted

SHA256 = ec.ECDSA(hashes.SHA256())
DAY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def box(tmp_path):
    made = Box(tmp_path / "softhsm")
    made.create("ca")
    return made


@pytest.fixture
def token(box):
    with box.token() as opened:
        yield opened


# --- making a token -------------------------------------------------------------------------------------------------


def test_a_new_tokens_files_are_for_their_owner_only(box):
    for path in (box.directory, *box.directory.rglob("*")):
        if path.suffix != ".pin":
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_several_tokens_live_in_one_directory(box):
    box.create("root", "another-pin")
    with box.token("ca") as ca, box.token("root") as root:
        ca.generate_ec_key("issuing")
        root.generate_ec_key("root")
        assert [key.label for key in ca.keys()] == ["issuing"]  # noqa: SIM118 (no dict)
        assert [key.label for key in root.keys()] == ["root"]  # noqa: SIM118 (no dict)


def test_a_token_is_made_while_another_is_open(box, token):
    key = token.generate_ec_key("issuing")
    box.create("root")
    with box.token("root") as root:
        root.generate_ec_key("root")
    key.public_key().verify(key.sign(b"data", SHA256), b"data", SHA256)


def test_a_token_of_the_same_label_is_not_made_twice(box):
    with box.token() as token:
        token.generate_ec_key("issuing")
    with pytest.raises(TokenExists, match="'ca'"):
        box.create("ca")
    with box.token() as token:
        assert token.ec_key("issuing")


@pytest.mark.parametrize("label", ["", "a" * 33, "é" * 17, "a\n", " a", "a "])
def test_a_label_that_the_token_cannot_hold_is_refused(tmp_path, label):
    with pytest.raises(TokenRefused, match="label"):
        create_token(tmp_path, label, "user-pin", SO_PIN)


@pytest.mark.parametrize("pin", ["", "123", "1" * 256, "tab\t1234", "pïn-1234"])
def test_an_unusable_pin_is_refused_and_no_token_made(tmp_path, pin):
    for pins in ((pin, SO_PIN), ("user-pin", pin)):
        with pytest.raises(PinUnreadable, match="4 to 255"):
            create_token(tmp_path, "ca", *pins)
    assert not list(tmp_path.glob("tokens/*"))


def test_a_token_whose_making_was_cut_short_is_made_again(box, token):
    with intercepted(token, INIT_PIN, lambda _: CKR_GENERAL_ERROR), pytest.raises(TokenRefused, match="GeneralError"):
        box.create("root")
    with pytest.raises(WrongPin, match="UserPinNotInitialized"):
        Token(settings(box.directory), "root", lambda: "user-pin").open()
    box.create("root")
    with box.token("root") as root:
        assert root.keys() == []
    assert len(list(box.directory.glob("tokens/*"))) == 2


def test_a_directory_that_moved_works_after_its_configuration_is_written_again(box, tmp_path):
    with box.token() as token:
        token.generate_ec_key("issuing")
    box.directory = box.directory.rename(tmp_path / "moved")
    with pytest.raises(TokenUnavailable, match="configuration"):
        box.token().open()
    write_configuration(box.directory)
    with box.token() as token:
        assert token.ec_key("issuing").label == "issuing"


def test_a_path_that_the_configuration_cannot_name_is_refused(tmp_path):
    with pytest.raises(ModuleUnusable, match="cannot name"):
        write_configuration(tmp_path / "a\nb")


def test_the_script_takes_the_pins_from_standard_input(tmp_path):
    script = [sys.executable, "softhsm/make_token.py", str(tmp_path / "t"), "dev"]
    made = subprocess.run(script, input=f"user-pin\n{SO_PIN}\n", capture_output=True, text=True, check=True)
    assert f"SOFTHSM2_CONF={tmp_path}/t/softhsm2.conf" in made.stdout
    again = subprocess.run(script, input=f"user-pin\n{SO_PIN}\n", capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (1, "a token 'dev' is already there\n")
    with Token(settings(tmp_path / "t"), "dev", lambda: "user-pin") as token:
        assert token.keys() == []


# --- opening --------------------------------------------------------------------------------------------------------


def test_a_missing_module_is_named(tmp_path):
    with pytest.raises(ModuleUnusable, match="nowhere"):
        find_module(tmp_path / "nowhere.so")
    for path in (tmp_path / "nowhere.so", "/lib/x86_64-linux-gnu/libm.so.6"):
        with pytest.raises(ModuleUnusable, match="not a PKCS#11 module"):
            Token(ModuleSettings(path=type(tmp_path)(path)), "ca", str).open()


def test_a_missing_token_is_named(box):
    with pytest.raises(TokenNotFound, match="'nobody'"):
        Token(settings(box.directory), "nobody", str).open()


def test_one_label_on_two_tokens_is_refused_until_the_serial_is_said(box, tmp_path):
    other = Box(tmp_path / "other")
    other.create("ca")
    for path in other.directory.glob("tokens/*"):
        path.rename(box.directory / "tokens" / path.name)
    with pytest.raises(TokenAmbiguous, match="2 tokens"):
        box.token().open()
    serials = [path.name.replace("-", "")[-16:] for path in box.directory.glob("tokens/*")]
    for serial in serials:
        with box.token(serial=serial) as token:
            assert token.keys() == []


def test_a_token_is_open_once_in_a_process(box, token):
    token.open()
    with pytest.raises(TokenExists, match="already open"):
        box.token().open()


def test_the_same_module_with_other_settings_is_refused(token, tmp_path):
    other = Box(tmp_path / "other")
    with pytest.raises(ModuleUnusable, match="other settings"):
        other.create("ca")


def test_after_the_last_token_the_module_is_free_for_another_directory(box, tmp_path):
    with box.token() as token:
        token.generate_ec_key("issuing")
    other = Box(tmp_path / "other")
    other.create("ca")
    with other.token() as token:
        assert token.keys() == []
    with box.token() as token:
        assert [key.label for key in token.keys()] == ["issuing"]  # noqa: SIM118 (no dict)
    assert not Module._loaded


def test_a_closed_token_does_not_serve(box):
    token = box.token()
    with token:
        key = token.generate_ec_key("issuing")
    with pytest.raises(TokenUnavailable, match="not open"):
        key.sign(b"data", SHA256)
    with token:
        key.public_key().verify(key.sign(b"data", SHA256), b"data", SHA256)


def test_a_forked_child_is_refused(box):
    script = f"""
import os, sys
from pathlib import Path
from hsm.errors import ModuleUnusable
from hsm.softhsm import settings
from hsm.token import Token
directory = Path({str(box.directory)!r})
token = Token(settings(directory), "ca", lambda: "user-pin")
token.open()
if os.fork() == 0:
    refused = 0
    for use in (token.keys, token.close, Token(settings(directory), "ca", str).open):
        try:
            use()
        except ModuleUnusable as error:
            refused += "fork" in str(error)
    os._exit(40 + refused)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 43


def test_a_process_that_ends_without_closing_ends_well(box):
    script = f"""
from pathlib import Path
from hsm.softhsm import settings
from hsm.token import Token
token = Token(settings(Path({str(box.directory)!r})), "ca", lambda: "user-pin")
token.open()
token.generate_ec_key("issuing")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --- PIN ------------------------------------------------------------------------------------------------------------


def flags_of(token_directory):
    """The token's own flags, read in another process: CKF_USER_PIN_COUNT_LOW says that a wrong PIN reached it."""
    script = """
import sys
import pkcs11
library = pkcs11.lib(sys.argv[1])
print(int(library.get_token(token_label="ca").flags))
"""
    use = settings(token_directory)
    environment = os.environ | dict(use.environment)
    command = [sys.executable, "-c", script, str(use.path)]
    return pkcs11.TokenFlag(int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout))


def test_a_wrong_pin_reaches_the_token_once(box):
    box.write_pin("ca", "wrong-pin")
    token = box.token()
    assert not flags_of(box.directory) & pkcs11.TokenFlag.USER_PIN_COUNT_LOW
    with pytest.raises(WrongPin, match=r"'ca' refused the PIN \(PinIncorrect\)"):
        token.open()
    assert flags_of(box.directory) & pkcs11.TokenFlag.USER_PIN_COUNT_LOW
    with Token(settings(box.directory), "ca", lambda: "user-pin"):
        pass  # the right PIN, given on purpose to a new Token, resets the token's counter
    assert not flags_of(box.directory) & pkcs11.TokenFlag.USER_PIN_COUNT_LOW
    for _ in range(20):
        with pytest.raises(WrongPin):
            token.open()
    assert not flags_of(box.directory) & pkcs11.TokenFlag.USER_PIN_COUNT_LOW


def test_the_last_try_before_the_token_locks_is_left_to_a_person(box, monkeypatch):
    asked = []
    slot = SimpleNamespace(slot_id=0xFFFF)
    at_its_last_try = SimpleNamespace(flags=pkcs11.TokenFlag.USER_PIN_FINAL_TRY, open=asked.append, slot=slot)
    monkeypatch.setattr(Module, "find_token", lambda *_: at_its_last_try)
    with pytest.raises(WrongPin, match="locks at the next wrong PIN"):
        box.token().open()
    assert not asked


@pytest.mark.parametrize("pin", ["", "caf\udce9-canary"])
def test_a_pin_that_is_none_never_reaches_the_token(box, pin):
    token = Token(settings(box.directory), "ca", lambda: pin)
    with pytest.raises(PinUnreadable, match="'ca'"):
        token.open()
    assert not flags_of(box.directory) & pkcs11.TokenFlag.USER_PIN_COUNT_LOW


def test_a_pin_that_cannot_be_read_is_named(box):
    box.directory.joinpath("ca.pin").unlink()
    with pytest.raises(PinUnreadable, match=r"ca\.pin"):
        box.token().open()


def everything_told_by(error):
    error = error.with_traceback(error.__traceback__.tb_next)  # the first frame is the test's own
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    pending, text = [error], "".join(told.format())
    while pending:
        one = pending.pop()
        text += repr(one) + str(one) + repr(one.args) + repr(vars(one))
        pending += [linked for linked in (one.__cause__, one.__context__) if linked]
    return text


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("wrong", [b"c4n4ry-pin", b"c4n4ry-\xe9", b"c4n4ry" * 99])
def test_no_error_tells_the_pin(box, tmp_path, wrong, errors):
    path = tmp_path / "pin"
    path.write_bytes(wrong)
    token = Token(settings(box.directory), "ca", lambda: path.read_text(encoding="utf-8", errors=errors))
    for _ in range(2):
        with pytest.raises(HsmError) as refusal:
            token.open()
        assert "c4n4ry" not in everything_told_by(refusal.value)
    assert "c4n4ry" not in repr(token) + repr(vars(token))


def test_making_a_token_tells_no_pin(box, tmp_path):
    refusals = []
    for label, pin in (("ca", "c4n4ry-pin"), ("new", "c4n4ry\t")):
        try:
            create_token(box.directory, label, pin, "c4n4ry-so-pin")
        except HsmError as error:
            refusals.append(error)
    del pin
    assert [type(error) for error in refusals] == [TokenExists, PinUnreadable]
    for error in refusals:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]  # the first is this test's own
        assert frames
        assert "c4n4ry" not in "".join(repr(frame.f_locals) for frame in frames) + str(error)
        assert error.__cause__ is None
