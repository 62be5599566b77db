"""TLS of the listeners: 1.3, or 1.2 with forward secrecy and an AEAD. Nothing older, nothing else."""

import ssl
from collections.abc import Sequence
from pathlib import Path

CIPHERS_1_2 = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:"
    "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305"
)
"""RFC 9325 section 4.2, and ChaCha20 (RFC 7905). TLS 1.3 has AEADs only; OpenSSL names its suites by themselves."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A listener that asks for no client certificate. Raises: OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_1_2)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    # A ticket would resume a session with a certificate that was revoked in the meantime.
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    return context


def device_context(certificate: Path, key: Path, authorities: Sequence[Path]) -> ssl.SSLContext:
    """The device listener: a client certificate is optional, and where one comes it must chain to `authorities`.

    Does NOT say that a certificate still counts: that is asked of the database for each request.

    Raises: OSError, ssl.SSLError.
    """
    context = server_context(certificate, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for authority in authorities:
        context.load_verify_locations(authority)
    return context


class ReloadedOnChange:
    """Loads a certificate again when its file is another one; connections that are open keep theirs.

    `load_cert_chain` on a live context serves new connections with the new pair.
    """

    def __init__(self, certificate: Path, key: Path, *contexts: ssl.SSLContext) -> None:
        self._certificate = certificate
        self._key = key
        self._contexts = contexts
        self._seen = self._state()

    def reload(self) -> bool:
        """Was there a new pair? Raises: OSError, ssl.SSLError; the old pair is then still served."""
        state = self._state()
        if state == self._seen:
            return False
        for context in self._contexts:
            context.load_cert_chain(self._certificate, self._key)
        self._seen = state
        return True

    def _state(self) -> tuple[int, int, int, int]:
        certificate, key = self._certificate.stat(), self._key.stat()
        return certificate.st_ino, certificate.st_mtime_ns, key.st_ino, key.st_mtime_ns
