"""What can go wrong with a TPM, each with a line that says how to mend it."""


class TpmFailure(Exception):
    """The TPM could not do what the agent needs."""


class TpmUnreachable(TpmFailure):
    """No TPM answers at the configured TCTI."""


class TpmRefused(TpmFailure):
    """The TPM answered a command with an error."""

    def __init__(self, operation: str, reason: str, cure: str = "") -> None:
        super().__init__(f"{operation}: {reason}" + (f"; {cure}" if cure else ""))
        self.operation = operation


class NoEndorsementKey(TpmFailure):
    """The TPM holds no EK certificate of the kind that is asked for."""


class DeviceKeyUnusable(TpmFailure):
    """The stored key is not a key of this TPM (another TPM, a cleared one, or a damaged file)."""


class PcrsKeepChanging(TpmFailure):
    """The PCRs changed between reading and quoting, again and again."""


class CounterMissing(TpmFailure):
    """The NV counter is not defined."""
