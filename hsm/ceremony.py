"""The check of a key ceremony: no private key of this token can be, or ever was, outside of it."""

from hsm.errors import KeyNotProtected
from hsm.objects import KeyInfo
from hsm.token import Token

# What each flag has to be, and what it means when it is not (PKCS#11 2.40, section 4.9).
_REQUIRED = (
    ("sensitive", True, "can be read in plain text"),
    ("extractable", False, "can be wrapped and taken out"),
    ("always_sensitive", True, "could once be read in plain text"),
    ("never_extractable", True, "could once be taken out"),
    ("local", True, "was made elsewhere and brought in"),
    ("needs_login", True, "can be used without the PIN"),
)


def check_protection(token: Token) -> list[KeyInfo]:
    """The token's private keys, every one of them protected.

    Proves what the token says about itself, not that the token is honest or is hardware.

    Raises:
        KeyNotProtected: names every key and everything that is wrong with it.
    """
    keys = token.keys()
    found = [f"{key.label!r} {fault}" for key in keys for fault in protection_faults(key)]
    if found:
        raise KeyNotProtected(f"token {token.label!r}: key " + "; key ".join(found))
    return keys


def protection_faults(key: KeyInfo) -> list[str]:
    """Everything that is wrong with this key's protection; empty if nothing is."""
    return [meaning for name, wanted, meaning in _REQUIRED if getattr(key, name) is not wanted]
