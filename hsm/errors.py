"""What can go wrong with a token, one class a reason. No message and no attribute ever holds a PIN."""


class HsmError(Exception):
    """Base of every refusal and failure of this package; the message is one line."""


class UriRefused(HsmError):
    """This text is not a PKCS#11 URI that we accept (RFC 7512)."""


class ModuleUnusable(HsmError):
    """The PKCS#11 module cannot be loaded, or this process already uses it in another way."""


class TokenUnavailable(HsmError):
    """The token does not serve now (gone, hanging, or all sessions busy): the same call may succeed later."""


class TokenNotFound(TokenUnavailable):
    """The module shows no token of this label. It may be plugged in again."""


class TokenAmbiguous(HsmError):
    """Several tokens carry this label: say which by its serial number."""


class TokenExists(HsmError):
    """A token of this label is already there, or already open in this process."""


class TokenRefused(HsmError):
    """The token was reached and said no; the PKCS#11 error is named in the message."""


class WrongPin(HsmError):
    """The token refused the PIN. Nobody tries again: tokens lock after a few attempts."""


class PinUnreadable(HsmError):
    """The PIN could not be read or is not usable as one; the token was not asked."""


class KeyNotFound(HsmError):
    """The token, freshly logged in, has no such key."""


class KeyExists(HsmError):
    """A key of this label is already in the token; it is never overwritten."""


class KeyAmbiguous(HsmError):
    """Several keys carry this label."""


class KeyUnsupported(HsmError):
    """The key is of a kind, a curve or an encoding that is not used here, or the operation is not offered."""


class KeyPairMismatch(HsmError):
    """The private key's signature does not verify with the public key of the same label."""


class KeyNotProtected(HsmError):
    """A private key could be read out of the token, could have been once, or works without login."""
