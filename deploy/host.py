"""What set-up asks of the host: run a command, become root for apt only, install what is missing."""

import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
LOG = TOOLS / "setup.log"

# Debian keeps mosquitto and swtpm's relatives where a user's PATH does not look.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

PROXY_SETTINGS = ("http_proxy", "https_proxy", "no_proxy")

NETWORK_SIGNS = (
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
    "Network is unreachable",
    "Connection timed out",
    "Connection refused",
    "dns error",
    "tcp connect error",
    "Failed to establish a new connection",
    "NewConnectionError",
)


class SetupError(Exception):
    """What is wrong and how to mend it, in one line."""


class CommandError(Exception):
    """A command failed; carries its output."""

    def __init__(self, command: Sequence[str], output: str) -> None:
        super().__init__(f"{Path(command[0]).name} failed")
        self.output = output

    @property
    def looks_offline(self) -> bool:
        """Did the output name a network that cannot be reached?"""
        return any(sign in self.output for sign in NETWORK_SIGNS)

    @property
    def last_error(self) -> str:
        """What tells most: of the network, else the last line that calls itself an error, else the last line."""
        if self.looks_offline:
            return next(sign for sign in NETWORK_SIGNS if sign in self.output)
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "error", "ERROR", "Caused by"))]
        return (errors or lines or ["no output"])[-1]


def step(sentence: str) -> None:
    """Says what is being done, at once."""
    print(f"  · {sentence}", flush=True)


def run(command: Sequence[str], **settings: str) -> str:
    """Runs a command with extra environment variables and gives its output, which also goes to the set-up log.

    Raises:
        CommandError: it could not be started, or its exit status was not 0.
    """
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", **settings}
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            check=False,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        output, status = done.stdout, done.returncode
    except OSError as error:
        output, status = str(error), 127
    with LOG.open("a", encoding="utf-8") as log:
        shown = " ".join(word if "\n" not in word else "…" for word in command)
        log.write(f"$ {shown}  [{status}, {time.monotonic() - started:.1f} s]\n{output}\n")
    if status != 0:
        raise CommandError(command, output)
    return output


def has_program(name: str) -> Callable[[], bool]:
    """A probe: is this program there?"""
    return lambda: shutil.which(name, path=PATH) is not None


def has_file(*patterns: str) -> Callable[[], bool]:
    """A probe: does one of these files exist (patterns from the file system's root)?"""
    return lambda: any(next(Path("/").glob(pattern), None) is not None for pattern in patterns)


def has_all(*probes: Callable[[], bool]) -> Callable[[], bool]:
    """A probe: do all of these hold?"""
    return lambda: all(probe() for probe in probes)


def has_venv() -> bool:
    """Can the system's Python make a virtual environment, which Debian ships in pieces?"""
    return next(Path(sysconfig.get_path("stdlib")).glob("ensurepip/__init__.py"), None) is not None


def has_python_headers() -> bool:
    """Can an extension module be compiled for this Python?"""
    return Path(sysconfig.get_path("include"), "Python.h").exists()


# Debian package -> how to see that what it gives is there, from whatever source.
PACKAGES: dict[str, Callable[[], bool]] = {
    "ca-certificates": has_file("etc/ssl/certs/ca-certificates.crt"),
    "cabextract": has_program("cabextract"),
    "curl": has_program("curl"),
    "gcc": has_program("gcc"),
    "gnutls-bin": has_program("certtool"),
    "ima-evm-utils": has_program("evmctl"),
    "libc6-dev": has_file("usr/include/stdio.h"),
    "libnss3": has_file("usr/lib/*/libsoftokn3.so", "usr/lib/*/nss/libsoftokn3.so"),
    "libnss3-tools": has_program("certutil"),
    "libtss2-dev": has_file("usr/include/tss2/tss2_esys.h"),
    "mosquitto": has_program("mosquitto"),
    "openssl": has_program("openssl"),
    "faketime": has_file("usr/lib/*/faketime/libfaketime.so.1", "usr/lib/faketime/libfaketime.so.1"),
    "p11-kit": has_program("p11-kit"),
    "p11-kit-modules": has_file("usr/lib/*/pkcs11/p11-kit-client.so"),
    "pkg-config": has_program("pkg-config"),
    "python3-dev": has_python_headers,
    "python3-venv": has_venv,
    "softhsm2": has_all(
        has_program("softhsm2-util"),
        has_file("usr/lib/softhsm/libsofthsm2.so", "usr/lib/*/softhsm/libsofthsm2.so", "usr/local/lib/softhsm/lib*.so"),
    ),
    "swtpm": has_program("swtpm"),
    "swtpm-tools": has_all(has_program("swtpm_setup"), has_program("swtpm_localca")),
    "tpm2-tools": has_program("tpm2_checkquote"),
}


def missing_packages() -> list[str]:
    """The Debian packages that would have to be installed."""
    return [name for name, is_there in PACKAGES.items() if not is_there()]


# Run as root. A package that brings a service must neither start it now nor at the next boot: Muster runs its own
# broker with its own configuration. policy-rc.d is Debian's own switch for that; the file goes when the script ends.
INSTALL = r"""
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
policy=/usr/sbin/policy-rc.d
mark='# written by muster set-up'
if [ ! -e $policy ] || grep -qxF "$mark" $policy; then
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" > $policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
fi
options='-o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 -o Dpkg::Use-Pty=0'
apt-get $options update || echo 'some package lists could not be renewed'
[ $# -gt 0 ] || exit 0
apt-get $options -o Dpkg::Options::=--force-confold install -y --no-install-recommends --reinstall "$@"
for package in "$@"; do
    [ "$package" = mosquitto ] || continue
    if command -v systemctl > /dev/null; then
        systemctl disable mosquitto.service
    else
        rm -f /etc/systemd/system/*.wants/mosquitto.service
    fi
    update-rc.d mosquitto disable || true  # where there is no init script either, nothing starts it
done
"""


def install(packages: Sequence[str]) -> None:
    """Renews apt's lists and installs these packages (none: only the lists); as root, by sudo if need be.

    Raises:
        SetupError: with the cure.
    """
    wanted = " ".join(packages)
    if shutil.which("apt-get", path=PATH) is None:
        message = (
            f"no apt here: install what gives {wanted} by hand, then repeat (Debian 12, 13, Ubuntu 24.04 are set up)"
        )
        raise SetupError(message)
    by_hand = f"have root run `apt install --no-install-recommends {wanted}`, then repeat"
    command = ["sh", "-c", INSTALL, "sh", *packages]
    if os.geteuid() != 0:
        if shutil.which("sudo", path=PATH) is None:
            message = f"not root, and no sudo: {by_hand}"
            raise SetupError(message)
        passed_on = [name for name in PROXY_SETTINGS if name in os.environ]
        command = ["sudo", *([f"--preserve-env={','.join(passed_on)}"] if passed_on else []), *command]
    try:
        run(command)
    except CommandError as error:
        if "a password is required" in error.output:
            message = f"sudo needs a password and no terminal can give it: {by_hand}"
        elif error.looks_offline:
            message = f"no network: the package mirror cannot be reached ({error.last_error}): connect, then repeat"
        else:
            message = f"apt could not install {wanted}: {error.last_error} (all of it: {LOG.relative_to(ROOT)})"
        raise SetupError(message) from error
