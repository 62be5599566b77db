"""A service that does nothing: it answers from a table, over the same TLS. What is left is the load's own ceiling."""

import multiprocessing
import secrets
import selectors
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from lab.light import LightDevice
from lab.light_fleet import SELECTED_PCRS
from lab.light_load import Target
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import TrustedEk
from wire.codec import encode
from wire.messages import Challenge, Issued, MqttAddress, PcrSelection

_HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_START_SECONDS = 30
_SHA256 = 0x000B


@contextmanager
def null_service(devices: Sequence[LightDevice]) -> Iterator[Target]:
    """A process that answers these devices at once with challenges made beforehand. It ends with this one."""
    table = {encode(device.request()): encode(_challenge(device, number)) for number, device in enumerate(devices)}
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, table), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_SECONDS):
            raise TimeoutError("the null service did not start")
        port, certificate = ours.recv()
        yield Target(_HOST, port, certificate)
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()


def _challenge(device: LightDevice, number: int) -> Challenge:
    public = device.ek.public_key()
    ek = TrustedEk("", public, _SHA256, 128, "certificate", "", "", "", ())
    blob, secret = make_credential(ek, device.ak.name, secrets.token_bytes(32))
    selection = PcrSelection("sha256", SELECTED_PCRS)
    expires = datetime.now(UTC) + timedelta(minutes=5)
    return Challenge(
        f"null{number:018d}", "null.example", blob, secret, secrets.token_bytes(32), selection, "required", expires
    )


def _serve(parent: Connection, table: Mapping[bytes, bytes]) -> None:
    """The loop. `parent` at its end: the process that asked is gone."""
    certificate, context = _tls()
    issued = encode(Issued("null", bytes(600), (bytes(450), bytes(450)), MqttAddress(_HOST, 1), datetime.now(UTC)))
    listener = socket.create_server((_HOST, 0), backlog=512)
    parent.send((listener.getsockname()[1], certificate))
    selector = selectors.DefaultSelector()
    selector.register(parent, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    buffers: dict[ssl.SSLSocket, bytearray] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is parent:
                return
            if key.fileobj is listener:
                plain, _address = listener.accept()
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.settimeout(10)
                sock = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                sock.setblocking(False)  # noqa: FBT003  the name says it
                buffers[sock] = bytearray()
                selector.register(sock, selectors.EVENT_READ)
                continue
            sock = key.fileobj  # type: ignore[assignment]  # whatever is neither of the two is a connection
            try:
                _answer(sock, buffers[sock], table, issued)
            except OSError:
                selector.unregister(sock)
                del buffers[sock]
                with suppress(OSError):
                    sock.close()


def _answer(sock: ssl.SSLSocket, buffer: bytearray, table: Mapping[bytes, bytes], issued: bytes) -> None:
    """Read, and answer every whole request. Raises: OSError, where the connection is over."""
    while True:
        try:
            piece = sock.recv(_CHUNK)
        except ssl.SSLWantReadError:
            return
        if not piece:
            raise ConnectionResetError
        buffer += piece
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            continue
        at = buffer.find(b"Content-Length: ")
        end = head_end + 4 + int(buffer[at + 16 : head_end])
        if len(buffer) < end:
            continue
        body = bytes(buffer[head_end + 4 : end])
        evidence = b"/evidence " in buffer[:100]
        del buffer[:end]
        answer, status = (issued, b"200 OK") if evidence else (table.get(body, b""), b"201 Created")
        status = status if answer else b"404 Not Found"
        sock.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(answer)) + answer)


def _tls() -> tuple[str, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "null")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), secrets.randbits(127) + 1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(_HOST))]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:  # ssl reads a chain from a file only
        pem = Path(folder) / "null.pem"
        pem.touch(mode=0o600)
        pem.write_bytes(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        context.load_cert_chain(pem)
    return certificate.decode(), context
