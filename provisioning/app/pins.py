"""Where a PIN is read from: a file, an environment variable, a systemd credential, or a person; never an argument.

A source is text that may stand in a configuration (`file:/run/pin`, `env:ROOT_PIN`, `credential:root-pin`, `prompt`);
the PIN itself may not. What a reader returns is kept by nobody.
"""

import getpass
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from hsm.errors import PinUnreadable
from provisioning.config import ConfigurationRefused

PIN_MOST = 256
SOURCE = re.compile(r"file:/.+|env:[A-Za-z_][A-Za-z0-9_]*|credential:[A-Za-z0-9._-]+|prompt")
SOURCES = "file:/path, env:NAME, credential:NAME or prompt"


def pin_reader(source: str, label: str) -> Callable[[], str]:
    """A reader of the PIN of the token with this label.

    The reader raises PinUnreadable, OSError, or ConfigurationRefused (a file that others may read). Raises:
    ConfigurationRefused, where this is no source; the text is not repeated: it may be the PIN itself.
    """
    if SOURCE.fullmatch(source) is None:
        raise ConfigurationRefused(f"the PIN of token {label!r}: is no source; write {SOURCES}")
    kind, _, name = source.partition(":")
    if kind == "file":
        return file_reader(Path(name))
    if kind == "credential":
        return lambda: _of_systemd(name, label)
    return (lambda: _of_environment(name, label)) if kind == "env" else (lambda: _of_a_person(label))


def file_reader(path: Path) -> Callable[[], str]:
    """A reader of a PIN file, without the white space around it. It refuses one that others can read."""

    def read() -> str:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & 0o077 and stat.S_ISREG(status.st_mode):
                raise ConfigurationRefused(f"{path}: others may read this PIN; mend it: chmod 600 {path}")
            return file.read(PIN_MOST + 1).decode().strip()

    return read


def _of_systemd(name: str, label: str) -> str:
    """systemd.exec(5), LoadCredential=: a file of that name. Its folder, not its own mode, keeps others out."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise PinUnreadable(f"the PIN of token {label!r}: systemd gave no credentials; is LoadCredential={name} set?")
    with (Path(folder) / name).open("rb") as file:
        return file.read(PIN_MOST + 1).decode().strip()


def _of_environment(name: str, label: str) -> str:
    pin = os.environ.get(name)
    if not pin:
        raise PinUnreadable(f"the PIN of token {label!r}: the environment has no {name}")
    return pin


def _of_a_person(label: str) -> str:
    if not sys.stdin.isatty():
        raise PinUnreadable(f"the PIN of token {label!r}: nobody can be asked, there is no terminal")
    return getpass.getpass(f"PIN of token {label!r}: ")
