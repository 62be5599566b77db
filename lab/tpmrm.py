"""A resource manager in front of a software TPM: unix sockets that speak what the TCTI `swtpm:path=S` speaks.

swtpm serves one connection; an agent needs two at once, its own and that of the OpenSSL provider. One thread serves
all clients, one command at a time, so there is nothing to lock.
"""

import contextlib
import os
import selectors
import socket
import struct
import threading
from pathlib import Path

from lab.tpmspace import SharedTpm, Space

COMMAND_MAX_BYTES = 4096  # libtpms' own buffer
CLIENTS_MAX = 64
ANSWER_TIMEOUT_SECONDS = 60  # an RSA primary can take some seconds
SEND_TIMEOUT_SECONDS = 5
SOCKET_PATH_MAX = 107 - len(".ctrl")  # unix(7): sun_path has 108 bytes with its NUL

_CMD_SET_LOCALITY = 5  # swtpm's tpm_ioctl.h
_CONTROL_OK, _CONTROL_BAD_LOCALITY, _CONTROL_BAD_ORDINAL = 0, 0x3D, 0x0A


class TpmGone(ConnectionError):
    """The software TPM ended, or does not answer."""


class _Client:
    """One connection: bytes that came, and the client's own space in the TPM (none for control connections)."""

    def __init__(self, connection: socket.socket, space: Space | None) -> None:
        self.connection = connection
        self.space = space
        self.received = bytearray()


class ResourceManager:
    """Serves `path` and `path`.ctrl from a thread until `close`, or until the TPM is gone."""

    def __init__(self, upstream: socket.socket, path: Path) -> None:
        """Raises: TpmGone (no answer to the first command); OSError (the path cannot be listened on)."""
        upstream.settimeout(ANSWER_TIMEOUT_SECONDS)
        self._upstream = upstream
        self._tpm = SharedTpm(self._transmit)
        self._selector = selectors.DefaultSelector()
        self._clients = 0
        self._paths = (path, path.with_name(path.name + ".ctrl"))
        self._listeners = [_listen(place) for place in self._paths]
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        for listener, is_data in zip(self._listeners, (True, False), strict=True):
            self._selector.register(listener, selectors.EVENT_READ, is_data)
        self._thread = threading.Thread(target=self._serve, name="tpmrm", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and wait for the thread. The TPM itself runs on."""
        with contextlib.suppress(OSError):  # closed already: the TPM went first
            self._wake.send(b"x")
        self._thread.join()
        self._wake.close()

    def _serve(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj is self._woken:
                        return
                    if isinstance(key.data, _Client):
                        self._read(key.data)
                    elif isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj, is_data=key.data)
        except TpmGone:
            return  # clients see their connections end, as when power fails
        finally:
            self._shut()

    def _accept(self, listener: socket.socket, *, is_data: bool) -> None:
        connection, _ = listener.accept()
        if self._clients >= CLIENTS_MAX:
            connection.close()
            return
        self._clients += 1
        connection.settimeout(SEND_TIMEOUT_SECONDS)
        client = _Client(connection, self._tpm.open() if is_data else None)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _read(self, client: _Client) -> None:
        try:
            piece = client.connection.recv(COMMAND_MAX_BYTES)
            client.received += piece
            keep = bool(piece) and (self._answer(client) if client.space is not None else _control(client))
        except TpmGone:
            raise
        except OSError:  # this client left or does not read its answers; the others go on
            keep = False
        if not keep:
            self._drop(client)

    def _answer(self, client: _Client) -> bool:
        """Answer every whole command received. False: this client speaks nonsense."""
        while len(client.received) >= 10:
            (size,) = struct.unpack_from(">I", client.received, 2)
            if not 10 <= size <= COMMAND_MAX_BYTES:
                return False
            if len(client.received) < size:
                return True
            command = bytes(client.received[:size])
            del client.received[:size]
            if client.space is not None:
                client.connection.sendall(self._tpm.execute(client.space, command))
        return True

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.connection)
        client.connection.close()
        self._clients -= 1
        if client.space is not None:
            self._tpm.close(client.space)

    def _transmit(self, command: bytes) -> bytes:
        try:
            self._upstream.sendall(command)
            header = _receive(self._upstream, 10)
            (size,) = struct.unpack_from(">I", header, 2)
            return header + _receive(self._upstream, size - 10)
        except (OSError, EOFError) as gone:
            raise TpmGone("the software TPM ended or does not answer") from gone

    def _shut(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        for place in self._paths:
            place.unlink(missing_ok=True)


def _control(client: _Client) -> bool:
    """Answer a control command. Only locality 0 is to be had; initialising or stopping the TPM is its owner's."""
    if len(client.received) < 4:
        return True
    (command,) = struct.unpack_from(">I", client.received)
    if command == _CMD_SET_LOCALITY and len(client.received) < 5:
        return True
    if command != _CMD_SET_LOCALITY:
        client.connection.sendall(struct.pack(">I", _CONTROL_BAD_ORDINAL))
        return False
    client.connection.sendall(struct.pack(">I", _CONTROL_BAD_LOCALITY if client.received[4] else _CONTROL_OK))
    client.received.clear()
    return True


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(path))
    path.chmod(0o600)
    listener.listen(CLIENTS_MAX)
    return listener


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise EOFError
        received += piece
    return bytes(received)
