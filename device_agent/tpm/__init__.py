"""The device's TPM. Nothing else in the agent talks to it, but OpenSSL's provider during a TLS handshake.

The TPM is opened for one job and closed after it: a job is some milliseconds, and on a TPM without a resource manager
nothing else could run meanwhile.
"""

from device_agent.tpm.counter import COUNTER_INDEX, NvCounter
from device_agent.tpm.errors import (
    CounterMissing,
    DeviceKeyUnusable,
    NoEndorsementKey,
    PcrsKeepChanging,
    TpmFailure,
    TpmRefused,
    TpmUnreachable,
)
from device_agent.tpm.keys import AttestationKey, DeviceKey, Endorsement, Tpm, TpmAccess

__all__ = [
    "COUNTER_INDEX",
    "AttestationKey",
    "CounterMissing",
    "DeviceKey",
    "DeviceKeyUnusable",
    "Endorsement",
    "NoEndorsementKey",
    "NvCounter",
    "PcrsKeepChanging",
    "Tpm",
    "TpmAccess",
    "TpmFailure",
    "TpmRefused",
    "TpmUnreachable",
]
