"""The device's TPM. Nothing else in the agent talks to it, but OpenSSL's provider during a TLS handshake.

The TPM is opened for one job and closed after it: a job is some milliseconds, and on a TPM without a resource manager
nothing else could run meanwhile.
"""

from device_agent.tpm.access import IAK, DeviceKey, Endorsement, TpmAccess
from device_agent.tpm.errors import (
    CounterMissing,
    DeviceKeyUnusable,
    NoEndorsementKey,
    PcrsKeepChanging,
    TpmFailure,
    TpmRefused,
    TpmUnreachable,
)

__all__ = [
    "IAK",
    "CounterMissing",
    "DeviceKey",
    "DeviceKeyUnusable",
    "Endorsement",
    "NoEndorsementKey",
    "PcrsKeepChanging",
    "TpmAccess",
    "TpmFailure",
    "TpmRefused",
    "TpmUnreachable",
]
