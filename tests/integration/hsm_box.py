"""SoftHSM2 tokens for tests: a directory of them, and faults put between python-pkcs11 and the module."""

import contextlib
import ctypes
from dataclasses import replace

from hsm.softhsm import create_token, settings
from hsm.token import Token

SO_PIN = "security-officer"

# Positions in CK_FUNCTION_LIST.
FINALIZE, INIT_PIN, CLOSE_ALL_SESSIONS = 1, 10, 14
LOGIN, LOGOUT, FIND_INIT, SIGN_INIT, SIGN = 18, 19, 26, 42, 43
CKR_GENERAL_ERROR = 0x05
CKR_DEVICE_REMOVED = 0x32
CKR_USER_NOT_LOGGED_IN = 0x101


class Box:
    """A directory of tokens; each token's PIN stands in a file, as it does in service."""

    def __init__(self, directory):
        self.directory = directory

    def create(self, label, pin="user-pin"):
        create_token(self.directory, label, pin, SO_PIN)
        self.write_pin(label, pin)

    def write_pin(self, label, pin):
        self.directory.joinpath(f"{label}.pin").write_text(pin)

    def token(self, label="ca", **options):
        path = self.directory / f"{label}.pin"
        copies = options.pop("session_copies", True)
        return Token(replace(settings(self.directory), session_copies=copies), label, path.read_text, **options)


def module_of(token):
    return token._sessions._module


def close_all_sessions(token):
    """What another program does, or a token that was reset: every session is gone, behind our back."""
    slot = ctypes.c_ulong(token._sessions._login.token.slot.slot_id)
    assert module_of(token).form.call(CLOSE_ALL_SESSIONS, slot) == 0


def log_out(token):
    """NSS goes on signing with session copies: the second time it is logged out still."""
    status = module_of(token).form.call(LOGOUT, ctypes.c_ulong(token._sessions._login.handle))
    assert status in (0, CKR_USER_NOT_LOGGED_IN)


def finalize(token):
    assert module_of(token).form.call(FINALIZE, None) == 0


@contextlib.contextmanager
def intercepted(token, position, answer):
    """Between python-pkcs11 and the module: `answer(go_on)` returns a CK_RV, its own or that of `go_on()`."""
    functions = module_of(token).form.functions
    original = functions[position]
    kind = ctypes.CFUNCTYPE(ctypes.c_ulong, *[ctypes.c_void_p] * 5)
    call = kind(original)
    # Five arguments are enough for every function here; a C function ignores those that it does not take.
    hook = kind(lambda *arguments: answer(lambda: call(*arguments)))
    functions[position] = ctypes.cast(hook, ctypes.c_void_p).value
    try:
        yield
    finally:
        functions[position] = original
