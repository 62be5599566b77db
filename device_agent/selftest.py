"""Can this key be used for TLS? A handshake in memory tells: an unusable one shows nowhere earlier.

Proves the chain Python - libssl - provider - TSS - TPM. Says nothing about the service.
"""

import ssl
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.device import Device
from device_agent.identity import Pair
from device_agent.tls import NO_CHECK_TIME
from device_agent.tpm import TpmFailure

_FLIGHTS_MOST = 12
_CURE = (
    "check OPENSSL_CONF (openssl_conf in agent.toml) and the tpm2 provider: 1.2 or newer is needed, "
    "and a Python that links libssl dynamically"
)


class TlsKeyUnusable(TpmFailure):
    """OpenSSL cannot sign with the key in the TPM; the message is one line with a cure."""


def prove_pair(pair: Pair, roots: Sequence[bytes]) -> str:
    """A mutual handshake with this pair on both ends; the protocol version. Raises: TlsKeyUnusable."""
    return _handshake(pair.chain_file, pair.key_file, roots)


def prove_provider(device: Device) -> str:
    """The same with a key made for it, for a device that has no certificate yet. Raises: TlsKeyUnusable, TpmFailure."""
    with tempfile.TemporaryDirectory(dir=device.config.state_dir, prefix="selftest-") as name:
        key_file, chain_file = Path(name) / "key.pem", Path(name) / "chain.pem"
        with device.tpm.open() as tpm:
            key = tpm.create_device_key()
            with tpm.signing_key(key.pem) as private:
                subject = x509.Name([])
                certificate = (
                    x509.CertificateBuilder()
                    .subject_name(subject)
                    .issuer_name(subject)
                    .public_key(private.public_key())
                    .serial_number(1)
                    .not_valid_before(device.now())
                    .not_valid_after(device.now() + timedelta(days=1))
                    .sign(private, SHA256())
                )
        key_file.write_bytes(key.pem)
        chain_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        return _handshake(chain_file, key_file, [certificate.public_bytes(Encoding.DER)])


def _handshake(chain_file: Path, key_file: Path, roots: Sequence[bytes]) -> str:
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE  # this end is ourselves; what is tested is that the other end verifies
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    try:
        server_context.load_verify_locations(cadata=b"".join(roots))
        for context in (client_context, server_context):
            context.load_cert_chain(chain_file, key_file)
        return _shake(client_context, server_context)
    except ssl.SSLError as error:
        raise TlsKeyUnusable(f"TLS with the key in the TPM fails ({error.reason or error}): {_CURE}") from error


def _shake(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> str:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(_FLIGHTS_MOST):
        for end in list(waiting):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
        if not waiting:
            return str(client.version())
    raise TlsKeyUnusable(f"a TLS handshake with the key in the TPM does not end: {_CURE}")
