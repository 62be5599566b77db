"""The service: registers, verifies, issues, rotates, revokes and records."""
