"""TLS of the listeners: 1.3, or 1.2 with forward secrecy and an AEAD. Nothing older, nothing else."""

import ssl
from collections.abc import Callable
from pathlib import Path

from provisioning.authorities import Authorities, State

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


def device_context(certificate: Path, key: Path, authorities: str) -> ssl.SSLContext:
    """The device listener: a client certificate is optional, and where one comes it must chain to `authorities` (PEM).

    Does NOT say that a certificate still counts: that is asked of the database for each request.

    Raises: OSError, ssl.SSLError.
    """
    context = server_context(certificate, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authorities)
    return context


class Contexts:
    """The listeners' contexts, made anew where the certificate or a CA is another one; open connections keep theirs.

    A new one takes its place only when it is whole: a pair that is being replaced and does not fit serves nobody. A CA
    that was retired goes so too (`load_verify_locations` on a live context only adds).
    """

    def __init__(self, folder: Path, known: Authorities) -> None:
        """Raises: OSError, ssl.SSLError."""
        self._certificate, self._key = folder / "service.pem", folder / "service.key"
        self._known = known
        self._use: dict[str, Callable[[ssl.SSLContext], None]] = {}
        self._seen = self._state()
        self.current = self._made()

    def serve(self, name: str, use: Callable[[ssl.SSLContext], None]) -> None:
        """Have that listener use each new context."""
        self._use[name] = use

    def reload(self) -> bool:
        """Was there anything new? Raises: OSError, ssl.SSLError; what was served is then served still."""
        state = self._state()
        if state == self._seen:
            return False
        self.current = self._made()
        for name, use in self._use.items():
            use(self.current[name])
        self._seen = state
        return True

    def _made(self) -> dict[str, ssl.SSLContext]:
        trusted = b"".join(one.pem for one in self._known if one.state is not State.RETIRED).decode()
        return {
            "device": device_context(self._certificate, self._key, trusted),
            "operator": server_context(self._certificate, self._key),
        }

    def _state(self) -> tuple[object, ...]:
        certificate, key = self._certificate.stat(), self._key.stat()
        trusted = tuple(one.der for one in self._known if one.state is not State.RETIRED)
        return certificate.st_ino, certificate.st_mtime_ns, key.st_ino, key.st_mtime_ns, trusted
