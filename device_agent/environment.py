"""What OpenSSL must find in the environment before Python's `ssl` is imported: where the key in the TPM is served.

libcrypto reads OPENSSL_CONF once, when it is first used, so this module and all that it imports stay clear of `ssl`
and `hashlib`.
"""

from collections.abc import Mapping
from pathlib import Path

from device_agent.config import AgentConfig
from device_agent.state import atomic_write, private_folder

_CHECKOUT_CONF = Path(__file__).resolve().parent.parent / ".tools" / "openssl-tpm2.cnf"

# The distribution's module, found by its name in OpenSSL's own modules folder. OpenSSL's provider comes first and no
# default properties are set, so a key goes to the provider that can read it.
_DISTRIBUTION_CONF = b"""\
openssl_conf = openssl_init

[openssl_init]
providers = providers

[providers]
default = default_provider
tpm2 = tpm2_provider

[default_provider]
activate = 1

[tpm2_provider]
activate = 1
"""


def openssl_settings(config: AgentConfig, present: Mapping[str, str]) -> dict[str, str]:
    """The variables to set. `present` is the environment now; a TSS log level that stands there is kept."""
    return {
        "OPENSSL_CONF": str(_configuration(config)),
        "TPM2OPENSSL_TCTI": config.tcti,
        "TSS2_LOG": present.get("TSS2_LOG", "all+none"),  # what the TSS prints repeats what the exceptions say
    }


def _configuration(config: AgentConfig) -> Path:
    if config.openssl_conf is not None:
        return config.openssl_conf
    if _CHECKOUT_CONF.is_file():
        return _CHECKOUT_CONF
    path = config.state_dir / "openssl-tpm2.cnf"
    if not path.is_file() or path.read_bytes() != _DISTRIBUTION_CONF:
        private_folder(config.state_dir)
        atomic_write(path, _DISTRIBUTION_CONF)
    return path
