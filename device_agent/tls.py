"""TLS to the service: its name is the anchor's, its roots are the trust bundle's, its dates are judged by trusted time.

A device whose clock stands at 1970 must reach its service, so OpenSSL is told not to check dates
(X509_V_FLAG_NO_CHECK_TIME) and the agent checks them itself, at the end of the handshake and before a byte is sent,
over the very chain that OpenSSL verified. Urllib3 and paho both make their sockets through the context, so the name
and the dates are checked here once, and cannot be forgotten there.
"""

import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Self

from cryptography import x509

from device_agent.certificates import CertificateRefused, check_dates, check_issuer
from device_agent.identity import Pair

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of openssl/x509_vfy.h, which Python does not name."""
_TLS12_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"


class _DatedSocket(ssl.SSLSocket):
    """Ends its handshake by the context's own check."""

    context: "ServiceContext"

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  the standard library's signature
        super().do_handshake(block)
        try:
            self.context.check_peer(_verified_chain(self))
        except CertificateRefused as error:
            raise ssl.SSLCertVerificationError(str(error)) from error


class ServiceContext(ssl.SSLContext):
    """A client's context for one service: TLS 1.3, or 1.2 with AEAD."""

    sslsocket_class = _DatedSocket
    _service_name: str
    _now: Callable[[], datetime]
    _issuing_keys: Sequence[bytes]

    @classmethod
    def to(
        cls,
        service_name: str,
        roots: Sequence[bytes],
        now: Callable[[], datetime],
        identity: Pair | None = None,
        *,
        issuing_keys: Sequence[bytes] = (),
    ) -> Self:
        """A context that trusts these roots (DER) for this name, at trusted time; with `identity`, mutual TLS.

        `issuing_keys`, where given: the CA right above the peer's certificate has one of them. An unusable key of ours
        shows only in the handshake. Raises: ssl.SSLError (no provider for the key, damaged files).
        """
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context._service_name = service_name
        context._now = now
        context._issuing_keys = issuing_keys
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_TLS12_SUITES)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.hostname_checks_common_name = False
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
        context.load_verify_locations(cadata=b"".join(roots))
        if identity is not None:
            context.load_cert_chain(identity.chain_file, identity.key_file)
        return context

    def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:  # noqa: ANN401  a pass-through
        """As `SSLContext.wrap_socket`, but the peer's name is the service's, whatever address was dialled."""
        options["server_hostname"] = self._service_name
        return super().wrap_socket(sock, *args, **options)

    def check_peer(self, chain: Sequence[bytes]) -> None:
        """Is the whole verified chain valid now, and its CA one that counts? Raises: CertificateRefused."""
        if not chain:
            raise CertificateRefused("the peer showed no certificate")
        now, parsed = self._now(), [x509.load_der_x509_certificate(one) for one in chain]
        for certificate in parsed:
            check_dates(certificate, now)
        check_issuer(parsed, self._issuing_keys)


def _verified_chain(sock: Any) -> list[bytes]:  # noqa: ANN401  its chain is public only from Python 3.13 on
    """The chain that OpenSSL verified, leaf first, DER."""
    if hasattr(sock, "get_verified_chain"):
        return [bytes(one) for one in sock.get_verified_chain()]
    import _ssl

    found = sock._sslobj.get_verified_chain() or []  # noqa: SLF001  public only from Python 3.13 on
    return [one.public_bytes(_ssl.ENCODING_DER) for one in found]
