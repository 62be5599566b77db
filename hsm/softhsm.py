"""SoftHSM2 tokens in a directory: configuration, and making a token without a PIN on any command line.

SoftHSM is software: its token files give the keys to whoever has both the files and the PIN. It stands in for an HSM
in development and in tests.
"""

import os
from contextlib import suppress
from pathlib import Path

import pkcs11

from hsm.cryptoki import LABEL_BYTES
from hsm.errors import HsmError, ModuleUnusable, PinUnreadable, TokenRefused
from hsm.module import Module, ModuleSettings

# Debian and Ubuntu; Fedora; Arch; Homebrew.
MODULE_PATHS = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
    Path("/usr/lib/pkcs11/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
)
CONFIGURATION = """\
# Written by Muster for the tokens next to it; written again when they move. SOFTHSM2_CONF names this file.
directories.tokendir = {tokens}
objectstore.backend = file
log.level = ERROR
slots.removable = false
slots.mechanisms = ALL
library.reset_on_fork = false
"""
# SoftHSM's own bounds (MIN_PIN_LEN, MAX_PIN_LEN), and what can be typed on any keyboard.
PIN_CHARACTERS = range(4, 256)
_WAIT_SECONDS = 10.0


def find_module(configured: Path | None = None) -> Path:
    """Where SoftHSM2's module is: the configured path, else the first of the usual places.

    Raises:
        ModuleUnusable: not there.
    """
    for path in (configured,) if configured else MODULE_PATHS:
        if path.is_file():
            return path
    raise ModuleUnusable(f"{configured or 'libsofthsm2.so'} is not there: apt install softhsm2, or configure its path")


def settings(directory: Path, module: Path | None = None) -> ModuleSettings:
    """How to open the tokens of this directory; `write_configuration` must have been called since it last moved."""
    return ModuleSettings(find_module(module), environment={"SOFTHSM2_CONF": str(_configuration_path(directory))})


def write_configuration(directory: Path) -> None:
    """Make the directory (0700), `tokens/` in it and softhsm2.conf (0600), which holds the absolute path.

    Raises:
        ModuleUnusable: SoftHSM's file format cannot hold this path. OSError: not writable.
    """
    tokens = directory.absolute() / "tokens"
    if not str(tokens).isprintable() or "#" in str(tokens):
        raise ModuleUnusable(f"SoftHSM's configuration cannot name {str(tokens)!r}")
    for made in (directory, tokens):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.chmod(0o700)
    path, text = _configuration_path(directory), CONFIGURATION.format(tokens=tokens)
    if path.is_file() and path.read_text() == text:
        return
    new = path.with_suffix(f".{os.getpid()}.new")
    with suppress(FileNotFoundError):
        new.unlink()
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 (a descriptor: born 0600)
        file.write(text)
    new.replace(path)


def create_token(directory: Path, label: str, pin: str, so_pin: str, module: Path | None = None) -> None:
    """Make a SoftHSM2 token: C_InitToken, then the user's PIN. `softhsm2-util` would take both PINs as arguments.

    Raises:
        TokenExists: a token of this label is there, or open in this process. PinUnreadable: not a usable PIN.
        TokenRefused, TokenUnavailable, ModuleUnusable.
    """
    if not 1 <= len(label.encode()) <= LABEL_BYTES or not label.isprintable() or label != label.strip():
        raise TokenRefused(f"a token label is 1 to {LABEL_BYTES} bytes of printable text with no blank at its ends")
    write_configuration(directory)
    loaded = Module.acquire(settings(directory, module), label)
    try:
        with loaded.alone(_WAIT_SECONDS):
            _initialize(loaded, label, pin, so_pin)
    except HsmError as error:
        del pin, so_pin  # a traceback that shows local variables shows no PIN: not here, not in the frames below
        raise error.with_traceback(None) from None
    finally:
        loaded.release(label)
    for path in (directory / "tokens").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _initialize(loaded: Module, label: str, pin: str, so_pin: str) -> None:
    for name, text in (("PIN", pin), ("security officer's PIN", so_pin)):
        if len(text) not in PIN_CHARACTERS or not (text.isascii() and text.isprintable()):
            bounds = f"{PIN_CHARACTERS.start} to {PIN_CHARACTERS.stop - 1}"
            raise PinUnreadable(f"the {name} must have {bounds} printable ASCII characters")
    try:
        token = loaded.make_token(label, so_pin.encode())
        with token.open(rw=True, so_pin=so_pin) as session:
            session.init_pin(pin)
        return
    except pkcs11.PKCS11Error as error:
        reason = type(error).__name__
    raise TokenRefused(f"the PIN of the new token {label!r} cannot be set: {reason}")


def _configuration_path(directory: Path) -> Path:
    return directory.absolute() / "softhsm2.conf"
