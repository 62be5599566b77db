"""The lists of weak keys that the configuration names."""

import mmap
from pathlib import Path

from provisioning.app.findings import OK, WARN, Finding, Findings
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.issuance.blocklist import ENTRY_OCTETS, is_list, listed_in
from provisioning.issuance.weakkeys import DebianWeak


def debian_weak(directory: DataDirectory, config: Config) -> DebianWeak:
    """Is a key in any list? The files are mapped, not read: all workers share their pages.

    Raises: ConfigurationRefused, where a list that is named cannot be used: keys are not left unchecked in silence.
    """
    return listed_in([_mapped(directory.root / name) for name in config.weak_keys])


def weak_keys(directory: DataDirectory, config: Config) -> Findings:
    """The doctor's look at them. Raises: ConfigurationRefused."""
    if not config.weak_keys:
        says = "no list is named: keys that Debian's OpenSSL of 2006 to 2008 made are not known"
        cure = 'badkeys --update-bl, then weak_keys = ["blocklist.dat"] in muster.toml'
        yield Finding("weak keys", WARN, says, cure)
        return
    keys = sum(len(_mapped(directory.root / name)) // ENTRY_OCTETS for name in config.weak_keys)
    yield Finding("weak keys", OK, f"{keys} are known")


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            entries = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        msg = f"{path}: the list of weak keys cannot be read ({error}); correct weak_keys in muster.toml"
        raise ConfigurationRefused(msg) from error
    if not is_list(entries):
        msg = f"{path}: is no sorted list of weak keys; get it again: badkeys --update-bl, then take blocklist.dat"
        raise ConfigurationRefused(msg)
    return entries
