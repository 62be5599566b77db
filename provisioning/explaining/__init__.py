"""Refusals, and what a policy's mode let pass, explained to operators."""

from provisioning.explaining.flow import explain

__all__ = ["explain"]
