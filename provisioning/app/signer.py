"""A worker's partner that signs: a process of its own, which logs in to the tokens and reads nothing from outside."""

import argparse
import asyncio
import json
import socket
import sys
from contextlib import suppress
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.errors import HsmError
from hsm.kinds import PublicKey
from provisioning.app.keys import HsmKeys, Signed
from provisioning.app.partner import (
    ANSWERED,
    FAILED,
    OPENING,
    READ_OCTETS,
    REFUSED,
    begin,
    frame,
    frames,
    settle_memory,
)
from provisioning.app.signing import ADOPT, BATCH, SIGN, SIGN_PREPARED, TAKE, parted, together, written
from provisioning.config import ConfigurationRefused, DataDirectory, load_config
from provisioning.refusals import SigningUnavailable

_log = structlog.get_logger()


class _Signer:
    """Answers what one worker asks, until that worker ends."""

    def __init__(self, keys: HsmKeys, connection: socket.socket) -> None:
        self._keys = keys
        self._connection = connection
        self._got = bytearray()
        self._answers: list[bytes] = []
        self._at_work: set[asyncio.Task[None]] = set()
        self._batch, self._taken = 0, list[Signed]()
        """The counted signatures that were told last, until it is known that they arrived."""
        self._ended = asyncio.Event()

    async def serve(self) -> None:
        """Until the worker closes its end."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._connection, self._read)
        await self._ended.wait()
        loop.remove_reader(self._connection)

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_OCTETS)
        except OSError:
            data = b""
        if not data:
            self._ended.set()
            return
        self._got += data
        for number, kind, content in frames(self._got):
            task = asyncio.create_task(self._answer(number, kind, content))
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)

    async def _answer(self, number: int, kind: int, content: bytes) -> None:
        try:
            status, answer = ANSWERED, await self._done(kind, content)
        except SigningUnavailable as refusal:
            status, answer = REFUSED, _refusal(refusal.actual, refusal.expected)
        except (HsmError, KeyError) as error:
            status, answer = REFUSED, _refusal(str(error))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  the outer edge: one request must not leave its caller waiting
            _log.exception("signer.failed", kind=kind)
            status, answer = FAILED, type(error).__name__.encode()
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._send)
        self._answers.append(frame(number, status, answer))

    async def _done(self, kind: int, content: bytes) -> bytes:
        if kind == TAKE:
            return self._take(content)
        name, rest = parted(content)
        if kind == SIGN:
            return await self._keys.sign(name, rest)
        if kind == SIGN_PREPARED:
            await self._keys.adopt(name)
            return await asyncio.to_thread(self._keys.sign_prepared, name, rest)
        if kind == ADOPT:
            return _spki(await self._keys.adopt(name))
        msg = f"kind {kind} of request"
        raise KeyError(msg)

    def _take(self, content: bytes) -> bytes:
        """What was counted; once more what was told before, where nobody says that it arrived."""
        if BATCH.unpack(content) == (self._batch,):
            self._taken = []
        self._batch += 1
        self._taken = together(self._taken, self._keys.take_signatures())
        return BATCH.pack(self._batch) + written(self._taken)

    def _send(self) -> None:
        data, self._answers = b"".join(self._answers), []
        try:
            self._connection.sendall(data)  # the worker reads all the time
        except OSError:
            self._ended.set()


def main(argv: list[str] | None = None) -> int:
    """The child's entry."""
    parser = argparse.ArgumentParser(description="A partner of a worker of muster serve; not for people.")
    parser.add_argument("directory", type=Path)
    given = begin("signer", parser, argv)
    connection = socket.socket(fileno=given.descriptor)
    try:
        keys = _opened(connection, DataDirectory(given.directory))
    except (HsmError, ConfigurationRefused, OSError) as error:
        told = json.dumps([type(error).__name__, str(error)])
        with suppress(OSError):  # the worker may have ended
            connection.sendall(frame(OPENING, REFUSED, told.encode()))
        return 1
    settle_memory()
    try:
        asyncio.run(_Signer(keys, connection).serve())
    finally:
        keys.close()
    return 0


def _opened(connection: socket.socket, directory: DataDirectory) -> HsmKeys:
    """The keys that the worker needs, told to it. Raises: HsmError, ConfigurationRefused, OSError."""
    got = bytearray()
    while True:
        for _, _, content in frames(got):
            needed = json.loads(content)
            keys = HsmKeys(directory, load_config(directory), needed)
            told = {name: _spki(keys.public(name)).hex() for name in needed}
            connection.sendall(frame(OPENING, ANSWERED, json.dumps(told).encode()))
            return keys
        data = connection.recv(READ_OCTETS)
        if not data:
            raise ConnectionAbortedError("the worker ended")
        got += data


def _refusal(actual: str, expected: str = "a signature") -> bytes:
    return json.dumps({"expected": expected, "actual": actual}).encode()


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


if __name__ == "__main__":
    sys.exit(main())
