"""Requests by keep-alive connections, as fast as the answers come: `python -m benchmarks.http_load PORT SECONDS FILE`.

FILE holds requests as they go over the wire, as a JSON list of base64. All answers to one request have one length,
which the first of them says. One JSON object at the end: requests, seconds, other answers than 200.
"""

import asyncio
import json
import sys
import time
from base64 import b64decode
from itertools import cycle
from pathlib import Path

CONNECTIONS = 16
WARM_SECONDS = 1.0


class _Load:
    def __init__(self, requests: list[bytes]) -> None:
        self.requests = cycle(requests)
        self.lengths: dict[bytes, int] = {}
        self.done = 0
        self.bad = 0


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._got = bytearray()
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._got += data
        length = self._load.lengths.get(self._request)
        if length is None:
            head = self._got.find(b"\r\n\r\n")
            if head < 0:
                return
            field = bytes(self._got[:head]).lower().split(b"content-length: ")[1]
            length = self._load.lengths[self._request] = head + 4 + int(field.split(b"\r\n")[0])
        if len(self._got) < length:
            return
        if not self._got.startswith(b"HTTP/1.1 200 "):
            self._load.bad += 1
        self._load.done += 1
        self._got.clear()
        self._next()

    def _next(self) -> None:
        self._request = next(self._load.requests)
        self._transport.write(self._request)  # type: ignore[attr-defined]  # a TCP transport writes


async def main(port: int, seconds: float, requests: list[bytes]) -> None:
    load = _Load(requests)
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: _Connection(load), "127.0.0.1", port)
    await asyncio.sleep(WARM_SECONDS)
    before, bad, start = load.done, load.bad, time.monotonic()
    print("begin", flush=True)
    await asyncio.sleep(seconds)
    taken = time.monotonic() - start
    print(json.dumps({"requests": load.done - before, "seconds": taken, "bad": load.bad - bad}), flush=True)


if __name__ == "__main__":
    found = [b64decode(text) for text in json.loads(Path(sys.argv[3]).read_text())]
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), found))
