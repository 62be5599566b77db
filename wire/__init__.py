"""The contract between a device and the service. Standard library only, so that both sides and any test can hold it."""
