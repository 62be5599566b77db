"""A worker's partner that signs: a process of its own, which logs in to the tokens and reads nothing from outside."""

import argparse
import asyncio
import gc
import json
import os
import socket
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.errors import HsmError
from hsm.kinds import PublicKey
from provisioning.app.keys import HsmKeys
from provisioning.app.logging import configure_logging
from provisioning.app.partner import ANSWERED, OPENING, READ_OCTETS, REFUSED, frame, frames
from provisioning.app.signing import ADOPT, SIGN, SIGN_PREPARED, TAKE, parted, written
from provisioning.config import ConfigurationRefused, DataDirectory, load_config
from provisioning.refusals import SigningUnavailable

YOUNG_MOST = 20_000
"""Objects that are made before the youngest are looked at for cycles."""


class _Signer:
    """Answers what one worker asks, until that worker ends."""

    def __init__(self, keys: HsmKeys, connection: socket.socket) -> None:
        self._keys = keys
        self._connection = connection
        self._got = bytearray()
        self._answers: list[bytes] = []
        self._at_work: set[asyncio.Task[None]] = set()
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
            status, answer = REFUSED, json.dumps({"expected": refusal.expected, "actual": refusal.actual}).encode()
        except (HsmError, KeyError) as error:
            status, answer = REFUSED, str(error).encode()
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._send)
        self._answers.append(frame(number, status, answer))

    async def _done(self, kind: int, content: bytes) -> bytes:
        if kind == TAKE:
            return written(self._keys.take_signatures())
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
    parser.add_argument("--core", type=int)
    parser.add_argument("--descriptor", type=int, required=True)
    given = parser.parse_args(argv)
    os.umask(0o077)
    configure_logging()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    connection = socket.socket(fileno=given.descriptor)
    try:
        keys = _opened(connection, DataDirectory(given.directory))
    except (HsmError, ConfigurationRefused, OSError) as error:
        told = json.dumps([type(error).__name__, str(error)])
        connection.sendall(frame(OPENING, REFUSED, told.encode()))
        return 1
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MOST, 20, 20)
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


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


if __name__ == "__main__":
    sys.exit(main())
