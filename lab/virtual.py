"""A virtual device: software TPM, measured boot, two slots, anchor and the real agent."""

from lab.swtpm import TpmClock, VirtualTpm, VirtualTpmFailure, fresh_tpm

__all__ = ["TpmClock", "VirtualTpm", "VirtualTpmFailure", "fresh_tpm"]
