"""Thousands of damaged bodies against the real routes: each gets a 4xx with a code, none a 500, none a certificate."""

import asyncio
import base64
import json
import random
import socket

import pytest

from provisioning.access.rates import Rate, RateTable
from provisioning.db import enrollments
from provisioning.http import device
from provisioning.http.exchange import Dispatcher
from provisioning.http.listener import Listener
from tests.support.est import basic, csr_for, new_key, token_for
from tests.support.http import no_loose_ends
from tests.support.service import make_installation, running_service

BODIES = 3000
CONNECTIONS = 8


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running_service(make_installation(tmp_path_factory.mktemp("hostile") / "D")) as made:
        yield made


def bodies(rng, good):
    """Damaged in DER, damaged in base64, or no request at all."""
    for number in range(BODIES):
        data = bytearray(good)
        kind = number % 6
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0x82, 0x84, 0xFF, 0x30, rng.randrange(256)))
        if kind == 0:
            data = bytearray(rng.randbytes(rng.randint(1, 400)))
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        elif kind == 2:
            at = rng.randrange(len(data))
            data[at:at] = data[: rng.randint(1, 200)]
        text = bytearray(base64.encodebytes(bytes(data)))
        if kind in (3, 4) and text:
            for _ in range(rng.randint(1, 5)):
                text[rng.randrange(len(text))] = rng.randrange(256)
        yield bytes(text)


async def send(port, head, waiting):
    """Every answer's status and document, over connections that stay open."""
    answers, writer = [], None
    for body in waiting:
        if writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answered = await reader.readuntil(b"\r\n\r\n")
        length = int(answered.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        answers.append((int(answered.split(b" ", 2)[1]), content))
        if b"connection: close" in answered.lower():
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return answers


async def test_no_body_gets_a_500_or_a_certificate(service):
    made = await token_for(service, "hostile", approval=True)  # a request that is still good waits, and uses nothing up
    rates = RateTable(Rate(10**6, 10**6))
    routes = device.routes(device.InFlight(64))
    listener = Listener("test", Dispatcher("test", service, routes, rates), limits=service.config.limits, rates=rates)
    bound = socket.create_server(("127.0.0.1", 0))
    head = "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in basic("hostile", made["token"]).items())
    waiting = bodies(random.Random(7030), csr_for(new_key()))
    with no_loose_ends():
        port = bound.getsockname()[1]
        listener.start(bound)
        answers = await asyncio.gather(*(send(port, head.encode(), waiting) for _ in range(CONNECTIONS)))
        await listener.stop(1.0)
    flat = [answer for some in answers for answer in some]
    assert len(flat) == BODIES
    codes = {}
    for status, content in flat:
        assert status == 202 or 400 <= status < 500, content
        code = "202" if status == 202 else json.loads(content)["code"]
        codes[code] = codes.get(code, 0) + 1
    known = {"202", "MUSTER-EST-002", "MUSTER-ATT-052", "MUSTER-REQ-004", "MUSTER-ACC-006"}
    assert {code for code in codes if not code.startswith("MUSTER-KEY-")} <= known, codes
    assert min(codes["MUSTER-EST-002"], codes["MUSTER-ATT-052"]) > 100
    assert await service.store.read(lambda tx: enrollments.certificates_of(tx, made["device"])) == []
