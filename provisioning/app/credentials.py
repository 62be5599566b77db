"""How a bearer token is stored."""

import hashlib


def hash_token(token: str) -> str:
    """How a bearer token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()
