"""Sets up what is missing, then runs one target. The Makefile's targets call this; it needs Python and apt, no more.

Usage: setup.py setup|demo|test|check|bench|mutants|up|clean [arguments of the command that the target runs]

What is set up: Debian packages (only missing ones, no service is started), the tpm2 OpenSSL provider, uv in .tools, and
the locked Python packages in .venv. A second run compares a stamp and starts at once.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this is the line that tells an old Python
    sys.exit(
        "muster: Python 3.11 or newer is needed, not {}.{}: use Debian 12, 13, Ubuntu 24.04".format(*sys.version_info)
    )

import fcntl
import hashlib
import os
import shutil
import time
from pathlib import Path

from host import PATH, ROOT, TOOLS, CommandError, SetupError, install, missing_packages, run, step
from provider import CONFIGURATION, MODULE, set_up_provider

VENV = ROOT / ".venv"
UV_VENV = TOOLS / "uv"
UV = UV_VENV / "bin" / "uv"
STAMP = TOOLS / "stamp"
SYSTEM_PYTHON = Path("/usr/bin/python3")
PACKAGES = ("wire", "provisioning", "device_agent", "hsm", "ota", "lab")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# What decides whether the set-up is still right.
INPUTS = ("uv.lock", "pyproject.toml", "deploy/*.py", "deploy/uv-requirements.txt")

# The commands of each target, run in this order; "bin/" is the project's environment.
TARGETS: dict[str, list[list[str]]] = {
    "setup": [],
    "demo": [["bin/muster", "demo"]],
    "up": [["bin/muster", "simulate", "--up"]],
    "test": [["bin/python", "-m", "pytest", "-n", "2", "--dist", "loadfile"]],
    "bench": [["bin/python", "-m", "benchmarks"]],
    "mutants": [["bin/python", "tests/mutants.py"]],
    "check": [
        ["bin/ruff", "check"],
        ["bin/ruff", "format", "--check"],
        ["bin/mypy"],
        ["bin/lint-imports"],
        ["bin/python", "deploy/lock_guard.py"],
    ],
}

# What `clean` removes, everywhere outside .git and at the top.
CACHES = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache", ".hypothesis")
LEFTOVERS = (".muster", ".venv", ".tools", ".coverage", "htmlcov", "mutants", "dist", "build")


def fingerprint() -> str:
    """Names everything that the set-up depends on: our files, this place, this system, .venv's Python."""
    digest = hashlib.sha256()
    for pattern in INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for path in (Path("/etc/os-release"), VENV / "pyvenv.cfg"):
        digest.update(path.read_bytes() if path.exists() else b"")
    digest.update(f"{ROOT}\0{(VENV / 'bin' / 'python').resolve()}".encode())
    return digest.hexdigest()


def installed() -> str:
    """Names what stands in .venv, so that a half-deleted one is noticed."""
    names = sorted(path.name for path in VENV.glob("lib/python3.*/site-packages/*.dist-info"))
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def is_set_up() -> bool:
    """Is there nothing to do? Compares the stamp and looks whether the files and programs are still there."""
    stamp = STAMP.read_text().split() if STAMP.exists() else []
    return (
        stamp == [fingerprint(), installed()]
        and all(path.exists() for path in (VENV / "bin" / "python", VENV / "bin" / "muster", UV, MODULE, CONFIGURATION))
        and not missing_packages()
    )


def base_python() -> Path:
    """The Python to make .venv from: the one it has, else the system's, else the one running.

    The one it has, so that another PATH does not remake it. The system's is an optimised build; those of version
    managers often are not, and half as fast.

    Raises:
        SetupError: none will do.
    """
    running = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    for python in ((VENV / "bin" / "python").resolve(), SYSTEM_PYTHON.resolve(), running):
        if is_fit(python):
            return python
    message = f"{running} carries its own OpenSSL, which cannot use a TPM: repeat with `PATH=/usr/bin:$PATH make`"
    raise SetupError(message)


def is_fit(python: Path) -> bool:
    """Is this a Python that is new enough and loads the system's libssl? One with its own cannot load the provider."""
    program = "import pathlib, ssl, sys; maps = pathlib.Path('/proc/self/maps').read_text();"
    program += "print(sys.version_info >= (3, 11) and 'libssl.so' in maps)"
    try:
        return run([str(python), "-c", program]).strip() == "True"
    except CommandError:
        return False


def set_up() -> None:
    """Brings everything up to date; each part is skipped where it is already right.

    Raises:
        SetupError: with the cure.
    """
    packages = missing_packages()
    if packages:
        step(f"apt: {' '.join(packages)}")
        install(packages)
        left = missing_packages()
        if left:
            message = f"installed, but not found afterwards: {' '.join(left)}: report this with .tools/setup.log"
            raise SetupError(message)
    python = base_python()
    set_up_uv(python)
    set_up_venv(python)
    set_up_provider(VENV / "bin" / "python")


def set_up_uv(python: Path) -> None:
    """Installs the pinned uv, by hash, into an environment of its own: `uv sync` would remove it from .venv."""
    requirements = ROOT / "deploy" / "uv-requirements.txt"
    wanted = next(line.split()[0] for line in requirements.read_text().splitlines() if line.startswith("uv=="))
    try:
        if run([str(UV), "--version"]).split()[1] == wanted.removeprefix("uv=="):
            return
    except CommandError:
        pass  # not there, or made by a Python that has gone: make it anew
    step(wanted)
    try:
        run([str(python), "-m", "venv", "--clear", str(UV_VENV)])
        pip = [str(UV_VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
        run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)])
    except CommandError as error:
        raise unreachable_or("uv cannot be installed", error) from error


def set_up_venv(python: Path) -> None:
    """Makes .venv what uv.lock says, no more and no less."""
    step("the locked Python packages (tpm2-pytss is compiled: under a minute)")
    settings = {"UV_PYTHON_DOWNLOADS": "never", "UV_PROJECT_ENVIRONMENT": str(VENV), "UV_NO_PROGRESS": "1"}
    if CERTIFICATES.exists():
        settings["UV_SYSTEM_CERTS"] = "1"  # a network with a certificate authority of its own
    try:
        run([str(UV), "sync", "--frozen", "--all-extras", "--no-managed-python", "--python", str(python)], **settings)
    except CommandError as error:
        raise unreachable_or("the Python packages cannot be installed", error) from error
    # Without bytecode each command compiles half a second of sources, wherever PYTHONDONTWRITEBYTECODE is set.
    run([str(VENV / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", str(VENV / "lib"), *PACKAGES])


def unreachable_or(what: str, error: CommandError) -> SetupError:
    """The one line for a failed download, and for any other failure."""
    if error.looks_offline:
        return SetupError(
            f"no network: pypi.org or files.pythonhosted.org cannot be reached ({error.last_error}): repeat"
        )
    return SetupError(f"{what}: {error.last_error} (all of it: .tools/setup.log)")


def ensure_set_up() -> None:
    """Does nothing when there is nothing to do; otherwise sets up, one process at a time."""
    if is_set_up():
        return
    started = time.monotonic()
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_set_up():
            return
        print("Setting up (once):", flush=True)
        STAMP.unlink(missing_ok=True)
        set_up()
        STAMP.write_text(f"{fingerprint()}\n{installed()}\n")
    print(f"Set up in {time.monotonic() - started:.0f} s.", flush=True)


def run_target(commands: list[list[str]], arguments: list[str]) -> int:
    """Runs a target's commands. A single one takes this process's place, so that Ctrl-C reaches it and no one else."""
    environment = {**os.environ, "PATH": PATH}
    failed = []
    for command in commands:
        program = str(VENV / command[0])
        full = [program, *command[1:], *arguments]
        if len(commands) == 1:
            os.chdir(ROOT)
            os.execve(program, full, environment)  # noqa: S606 - no shell is wanted
        print(f"$ {' '.join([command[0].removeprefix('bin/'), *command[1:]])}", flush=True)
        pid = os.spawnve(os.P_WAIT, program, full, environment)  # noqa: S606 - no shell is wanted
        if pid != 0:
            failed.append(command[0].removeprefix("bin/"))
    if failed:
        print(f"muster: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def clean() -> None:
    """Removes everything that set-up, tests and demo made."""
    for name in LEFTOVERS:
        path = ROOT / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in CACHES:
        for path in list(ROOT.rglob(name)):
            shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    """Exit status 0, 1 for a failure, 2 for wrong usage."""
    target, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    os.chdir(ROOT)
    if target == "clean":
        clean()
        return 0
    if target not in TARGETS:
        print(f"usage: setup.py {'|'.join(TARGETS)}|clean [arguments]", file=sys.stderr)
        return 2
    try:
        ensure_set_up()
    except SetupError as error:
        print(f"muster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("muster: set-up interrupted; repeat to go on", file=sys.stderr)
        return 1
    if target == "setup":
        print("Ready: `make demo` shows everything.")
    return run_target(TARGETS[target], arguments)


if __name__ == "__main__":
    sys.exit(main())
