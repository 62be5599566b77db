"""The OpenSSL provider with which TLS uses a key inside the TPM: find or fetch it, configure it, prove it.

Version 1.1 of tpm2-openssl fails in handshakes; 1.2 and later work. Debian 12 has 1.1.1, but Debian 13's package is one
file that loads with Debian 12's libraries. So where the distribution's own is too old, that package is downloaded by
apt, checked by apt, from the mirror that apt uses already, and unpacked into the project's tools folder: nothing is
installed, no source is added to the system.
"""

import os
import shutil
import tempfile
from pathlib import Path

from host import ROOT, TOOLS, CommandError, SetupError, install, run, step

MODULE = TOOLS / "ossl-modules" / "tpm2.so"
CONFIGURATION = TOOLS / "openssl-tpm2.cnf"
PACKAGE = "tpm2-openssl"
OLDEST = "1.2"
SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

APT_SETTINGS = """
#clear APT::Update;
#clear DPkg::Post-Invoke;
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Retries "2";
APT::Get::AllowUnauthenticated "false";
"""

OPENSSL_SETTINGS = """\
# Written by deploy/setup.py. The agent's OPENSSL_CONF: OpenSSL's own provider first, then the TPM's. A key goes to the
# provider that can read it, so no default properties are set.
openssl_conf = openssl_init

[openssl_init]
providers = providers

[providers]
default = default_provider
tpm2 = tpm2_provider

[default_provider]
activate = 1

[tpm2_provider]
module = "{module}"
activate = 1
"""


def set_up_provider(python: Path) -> None:
    """Puts the provider into the tools folder and proves it by a TLS handshake of `python` with a key in a TPM.

    Raises:
        SetupError: none new enough can be had here, or the handshake fails.
    """
    MODULE.parent.mkdir(parents=True, exist_ok=True)
    if not MODULE.exists():
        candidate = _candidate()
        if candidate is None:
            install([])
            candidate = _candidate()
        if candidate is not None and _is_new_enough(candidate):
            _take_the_distributions()
        else:
            _fetch_from_debian(candidate)
    CONFIGURATION.write_text(OPENSSL_SETTINGS.format(module=str(MODULE).replace("\\", "\\\\").replace("$", "\\$")))
    try:
        step("TLS with a key in a software TPM: " + _prove(python))
    except CommandError as error:
        MODULE.unlink()
        message = f"TLS with a key in the TPM does not work with this Python and provider: {error.last_error}"
        raise SetupError(message) from error


def _prove(python: Path) -> str:
    return run([str(python), str(ROOT / "deploy" / "tls_selftest.py"), str(CONFIGURATION)]).strip()


def _candidate() -> str | None:
    """The version that apt would install, or has installed."""
    if shutil.which("apt-cache") is None:
        message = f"no apt here: put {PACKAGE} {OLDEST} or newer at {MODULE.relative_to(ROOT)}, then repeat"
        raise SetupError(message)
    for line in run(["apt-cache", "policy", PACKAGE]).splitlines():
        key, _, version = line.strip().partition(": ")
        if key == "Candidate" and version != "(none)":
            return version
    return None


def _is_new_enough(version: str) -> bool:
    try:
        run(["dpkg", "--compare-versions", version, "ge", OLDEST])
    except CommandError:
        return False
    return True


def _take_the_distributions() -> None:
    modules = _installed_modules()
    if not modules:
        step(f"apt: {PACKAGE}")
        install([PACKAGE])
        modules = _installed_modules()
    if len(modules) != 1:
        message = f"package {PACKAGE} has no ossl-modules/tpm2.so: report this with the output of `dpkg -L {PACKAGE}`"
        raise SetupError(message)
    MODULE.unlink(missing_ok=True)  # a link to nothing
    MODULE.symlink_to(modules[0])


def _installed_modules() -> list[str]:
    try:
        files = run(["dpkg", "-L", PACKAGE]).splitlines()
    except CommandError:
        return []  # not installed
    return [name for name in files if name.endswith("/ossl-modules/tpm2.so") and Path(name).exists()]


def _debian_mirror() -> str | None:
    """The Debian mirror that apt uses, with the key that its source names, as the middle of a sources.list line."""
    wanted = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)"
    for line in run(["apt-get", "indextargets", "--format", wanted, "Identifier: Packages"]).splitlines():
        origin, label, component, address, signed_by = line.split("|", 4)
        if (origin, label, component) == ("Debian", "Debian", "main"):
            key = signed_by if signed_by.startswith("/") else str(KEYRING)
            return f"deb [target=Packages signed-by={key}] {address}"
    return None


def _fetch_from_debian(candidate: str | None) -> None:
    has = f"apt offers {candidate}" if candidate else "apt offers none"
    source = _debian_mirror()
    if source is None:
        install([])
        source = _debian_mirror()
    if source is None:
        message = f"{PACKAGE} {OLDEST} is needed, {has} and has no Debian mirror: use Debian 12, 13, Ubuntu 24.04"
        raise SetupError(message)
    step(f"{PACKAGE} of {SUITE}, unpacked into {MODULE.parent.relative_to(ROOT)} ({has}, which fails in TLS)")
    try:
        _download_and_unpack(source)
    except CommandError as error:
        if "NO_PUBKEY" not in error.output:
            what = "no network: " if error.looks_offline else ""
            message = f"{what}{PACKAGE} cannot be fetched from {SUITE}: {error.last_error}"
            raise SetupError(message) from error
        install(["debian-archive-keyring"])  # an installation of 2023 does not know this suite's key yet
        try:
            _download_and_unpack(source)
        except CommandError as again:
            message = f"{PACKAGE} cannot be fetched from {SUITE}: {again.last_error}"
            raise SetupError(message) from again


def _download_and_unpack(source: str) -> None:
    with tempfile.TemporaryDirectory(prefix="muster-apt-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt downloads as the user _apt
        for part in ("lists/partial", "cache/archives/partial", "unpacked"):
            (folder / part).mkdir(parents=True)
        (folder / "sources.list").write_text(f"{source} {SUITE} main\n")
        (folder / "apt.conf").write_text(APT_SETTINGS.format(folder=folder))
        apt = ["apt-get", "--config-file", str(folder / "apt.conf")]
        run([*apt, "update", "--error-on=any"])
        run(["sh", "-c", 'cd "$1" && shift && "$@"', "sh", name, *apt, "download", PACKAGE])
        package = next(iter(folder.glob("*.deb")))
        run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")])
        found = next(iter((folder / "unpacked").glob("usr/lib/*/ossl-modules/tpm2.so")))
        partial = MODULE.with_suffix(".partial")
        shutil.copyfile(found, partial)
        os.replace(partial, MODULE)  # noqa: PTH105 - says that it is atomic
