"""A resource manager in front of a software TPM: unix sockets that speak what the TCTI `swtpm:path=S` speaks.

swtpm serves one connection; an agent needs two at once, its own and that of the OpenSSL provider. One thread serves
all clients, one command at a time, so there is nothing to lock.

A client is a process (SO_PEERCRED), because libtss2's swtpm TCTI connects anew for every command: two connections of
one process share a space, and what a process leaves behind is flushed when it ends.
"""

import contextlib
import os
import selectors
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from lab.tpmspace import SharedTpm, Space

COMMAND_MAX_BYTES = 4096  # libtpms' own buffer
CONNECTIONS_MAX = 64
ANSWER_TIMEOUT_SECONDS = 60  # an RSA primary can take some seconds
SEND_TIMEOUT_SECONDS = 5
SOCKET_PATH_MAX = 107 - len(".ctrl")  # unix(7): sun_path has 108 bytes with its NUL

_CMD_SET_LOCALITY = 5  # swtpm's tpm_ioctl.h
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_CONTROL_OK, _CONTROL_BAD_LOCALITY, _CONTROL_BAD_ORDINAL = 0, 0x3D, 0x0A


class TpmGone(ConnectionError):
    """The software TPM ended, or does not answer."""


class _Connection:
    """Bytes that came on one connection, and its process's space in the TPM (none for control connections)."""

    def __init__(self, connection: socket.socket, space: Space | None) -> None:
        self.connection = connection
        self.space = space
        self.received = bytearray()


@dataclass(frozen=True, slots=True)
class _Process:
    """A process that uses the TPM: its number, a descriptor that becomes readable when it ends, what it owns."""

    pid: int
    pidfd: int
    space: Space


class ResourceManager:
    """Serves `path` and `path`.ctrl from a thread until `close`, or until the TPM is gone."""

    def __init__(self, upstream: socket.socket, path: Path) -> None:
        """Raises: TpmGone (no answer to the first command); OSError (the path cannot be listened on)."""
        upstream.settimeout(ANSWER_TIMEOUT_SECONDS)
        self._upstream = upstream
        self._tpm = SharedTpm(self._transmit)
        self._selector = selectors.DefaultSelector()
        self._connections = 0
        self._processes: dict[int, _Process] = {}
        self._paths = (path, path.with_name(path.name + ".ctrl"))
        self._listeners = [_listen(place) for place in self._paths]
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        for listener, is_data in zip(self._listeners, (True, False), strict=True):
            self._selector.register(listener, selectors.EVENT_READ, is_data)
        self._thread = threading.Thread(target=self._serve, name="tpmrm", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and wait for the thread. swtpm sees its connection end and ends too."""
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
                    if isinstance(key.data, _Connection):
                        if key.data.connection.fileno() != -1:  # not dropped by an earlier event of this round
                            self._read(key.data)
                    elif isinstance(key.data, _Process):
                        self._process_ended(key.data)
                    elif isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj, is_data=key.data)
        except TpmGone:
            return  # clients see their connections end, as when power fails
        finally:
            self._shut()

    def _accept(self, listener: socket.socket, *, is_data: bool) -> None:
        connection, _ = listener.accept()
        if self._connections >= CONNECTIONS_MAX:
            connection.close()
            return
        connection.settimeout(SEND_TIMEOUT_SECONDS)
        try:
            client = _Connection(connection, self._space_of(connection) if is_data else None)
        except ProcessLookupError:  # it connected and ended
            connection.close()
            return
        self._connections += 1
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _space_of(self, connection: socket.socket) -> Space:
        """The space of the process at the other end. Raises: ProcessLookupError (it ended already)."""
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid: int = _PEER.unpack(peer)[0]
        if pid not in self._processes:
            process = _Process(pid, os.pidfd_open(pid), self._tpm.open())
            self._processes[pid] = process
            self._selector.register(process.pidfd, selectors.EVENT_READ, process)
        return self._processes[pid].space

    def _process_ended(self, process: _Process) -> None:
        # A command that still waits to be read would load objects for nobody.
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Connection) and key.data.space is process.space:
                self._drop(key.data)
        self._selector.unregister(process.pidfd)
        os.close(process.pidfd)
        del self._processes[process.pid]  # before the TPM is asked: it may be gone, and then everything is shut once
        self._tpm.close(process.space)

    def _read(self, client: _Connection) -> None:
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

    def _answer(self, client: _Connection) -> bool:
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

    def _drop(self, client: _Connection) -> None:
        self._selector.unregister(client.connection)
        client.connection.close()
        self._connections -= 1

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
        for process in self._processes.values():
            os.close(process.pidfd)
        self._selector.close()
        self._upstream.close()
        for place in self._paths:
            place.unlink(missing_ok=True)


def _control(client: _Connection) -> bool:
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
    listener.listen(CONNECTIONS_MAX)
    return listener


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise EOFError
        received += piece
    return bytes(received)
