"""The verifier (RFC 9334), pure: bytes, keys, policy and `now` in, verified types out. Read `evidence` first."""
