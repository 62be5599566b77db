"""Three PKCS#11 tokens of different makers: SoftHSM2, NSS softokn, and SoftHSM2 behind p11-kit's remote protocol.

A token is made empty, with its PIN in a file. The last one stands in for an HSM in the network: its server is a process
that can be stopped, killed and started again.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hsm.cryptoki import ForThreads
from hsm.kinds import KeyKind
from hsm.module import ModuleSettings
from hsm.softhsm import create_token, find_module, settings, write_configuration
from hsm.token import Token

PIN, SO_PIN = "user-pin-1", "security-officer"
ALL = frozenset(KeyKind)


def installed(*patterns):
    """The first file of these patterns. A missing package is a failure: set-up installs it."""
    found = [path for pattern in patterns for path in sorted(Path("/").glob(pattern))]
    assert found, f"{patterns} is missing: run `make`, which installs the packages of deploy/host.py"
    return found[0]


class SoftHsm:
    """SoftHSM2 in this process."""

    label = "ca"
    makes = ALL
    tells_local = True

    def __init__(self, directory):
        self.directory = directory
        create_token(directory, self.label, PIN, SO_PIN)
        self.pin_file = write_pin(directory / "ca.pin")
        self.settings = settings(directory)

    def token(self, **options):
        return Token(options.pop("settings", self.settings), self.label, self.pin_file.read_text, **options)

    def toml(self, name):
        """Its entry in `hsm.modules`."""
        lines = [f"[hsm.modules.{name}]", f'path = "{self.settings.path}"', f'locking = "{self.settings.locking}"']
        if self.settings.reserved:
            lines.append(f'reserved = "{self.settings.reserved}"')
        lines.append(f"[hsm.modules.{name}.environment]")
        lines += [f'{key} = "{value}"' for key, value in self.settings.environment.items()]
        return "\n".join(lines) + "\n"

    def close(self):
        """Nothing runs beside this process."""


class Nss(SoftHsm):
    """NSS's softokn: its place is told in pReserved. It makes no Ed25519 keys, and forgets that it made a key."""

    label = "NSS Certificate DB"
    makes = ALL - {KeyKind.ED25519}
    tells_local = False

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        self.pin_file = write_pin(directory / "ca.pin")
        database = f"sql:{directory}"
        subprocess.run(["certutil", "-N", "-d", database, "-f", self.pin_file], check=True, capture_output=True)
        module = installed("usr/lib/*/libsoftokn3.so", "usr/lib/*/nss/libsoftokn3.so")
        reserved = f"configdir='{database}' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
        self.settings = ModuleSettings(module, reserved=reserved)


class P11Kit(SoftHsm):
    """SoftHSM2 behind `p11-kit server`, reached through p11-kit-client.so. Its protocol has no EdDSA."""

    makes = ALL - {KeyKind.ED25519}

    def __init__(self, directory):
        self.directory = directory
        self.socket = directory / "p11"
        self.make()
        self.pin_file = write_pin(directory / "ca.pin")
        environment = {"P11_KIT_SERVER_ADDRESS": f"unix:path={self.socket}"}
        module = installed("usr/lib/*/pkcs11/p11-kit-client.so")
        self.settings = ModuleSettings(module, locking="null", environment=environment)
        self.server = None
        self.start()

    def make(self):
        """Make the token, in a process of its own: this one may have SoftHSM2 open with another configuration."""
        program = "import sys, pathlib; from hsm.softhsm import create_token as make; make(pathlib.Path(sys.argv[1]),"
        program += "*sys.argv[2:])"
        subprocess.run([sys.executable, "-c", program, self.directory, self.label, PIN, SO_PIN], check=True)

    def start(self):
        """Begin to serve."""
        self.socket.unlink(missing_ok=True)
        write_configuration(self.directory)
        environment = os.environ | settings(self.directory).environment
        command = ["p11-kit", "server", "-f", "-n", self.socket, "--provider", find_module(), "pkcs11:"]
        self.server = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until(self.is_reached)

    def is_reached(self):
        """Does the server take connections? Its socket is there a moment earlier."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(os.fspath(self.socket)) == 0

    def signal_all(self, number):
        """A signal to the server and to the process that it forked for each connection."""
        os.killpg(self.server.pid, number)

    def kill(self):
        """The token is gone."""
        self.signal_all(signal.SIGKILL)
        self.server.wait()

    @contextlib.contextmanager
    def hanging(self):
        """Inside, no call comes back."""
        self.signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal_all(signal.SIGCONT)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.kill()


class Behind(P11Kit):
    """The token of an installation that was made with SoftHSM2, now behind a server of its own."""

    label = "muster"

    def __init__(self, directory):
        shutil.move(directory.tokens, directory.root / "elsewhere")
        super().__init__(directory.root / "elsewhere")

    def make(self):
        """It is there."""


TOKENS = {"SoftHSM2": SoftHsm, "NSS": Nss, "p11-kit": P11Kit}


def copy_of(token, directory):
    """SoftHSM2 with the same keys in another directory: two tokens that hold one CA key."""
    shutil.copytree(token.directory / "tokens", directory / "tokens")
    write_configuration(directory)
    copied = SoftHsm.__new__(SoftHsm)
    copied.directory, copied.settings = directory, settings(directory)
    copied.pin_file = write_pin(directory / "ca.pin")
    return copied


def write_pin(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text(PIN)
    path.chmod(0o600)
    return path


def until(condition, seconds=20.0):
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def is_threaded(token):
    """Is this token's module used by several threads?"""
    return isinstance(token._sessions._module.form, ForThreads)
