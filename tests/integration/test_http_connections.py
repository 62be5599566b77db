"""What a slow or hostile peer can do to a connection: nothing for long, and nothing to others."""

import asyncio
import errno
import json
import random
import socket

import pytest
from aiohttp import web

from provisioning.access.rates import Rate
from provisioning.http.device import InFlight
from provisioning.http.exchange import Route
from provisioning.refusals import Busy
from tests.support.http import answer, connect, exchange, limits, listening, post, until_closed
from wire.problems import MEDIA_TYPE

BODY_MOST = 1000


async def echo(call):
    return web.Response(body=await call.read(BODY_MOST))


async def hello(call):
    return web.Response(text="hello")


async def broken(call):
    raise ZeroDivisionError("canary-of-a-traceback")


async def late(call):
    raise TimeoutError


async def large(call):
    return web.Response(body=b"x" * 50_000_000)


async def pieces(call):
    return web.Response(text=str(sum([len(piece) async for piece in call.pieces(BODY_MOST)])))


ROUTES = (
    Route("POST", "/echo", echo),
    Route("GET", "/hello", hello),
    Route("GET", "/broken", broken),
    Route("GET", "/late", late),
    Route("GET", "/large", large),
    Route("PUT", "/pieces", pieces),
)
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


def problem(data):
    """Status and document of a refusal, whose shape is checked."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert f"Content-Type: {MEDIA_TYPE}".encode() in head
    document = json.loads(body)
    assert set(document) >= {"type", "title", "status", "code"}
    assert int(head.split()[1]) == document["status"]
    return document["status"], document["code"]


# --- slow peers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /hello HTTP/1.1\r\n", b"GET /hello HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"])
async def test_a_head_that_is_not_completed_ends_the_connection(sent):
    async with listening(*ROUTES) as listener:
        assert await exchange(listener.port, sent) == b""
        assert listener.connections == 0


async def test_a_head_that_comes_byte_by_byte_ends_the_connection():
    async with listening(*ROUTES) as listener:
        reader, writer = await connect(listener.port)

        async def trickle():
            while True:
                writer.write(b"G")
                await asyncio.sleep(0.05)

        task = asyncio.create_task(trickle())
        assert b"200 OK" not in await until_closed(reader)
        task.cancel()


async def test_a_second_head_that_is_not_completed_ends_the_connection():
    async with listening(*ROUTES, bounds=limits(idle_seconds=600)) as listener:
        reader, writer = await connect(listener.port)
        writer.write(GET)
        assert (await answer(reader))[0] == 200
        writer.write(b"GET /hello HT")
        assert await until_closed(reader) == b""


async def test_an_idle_connection_ends():
    async with listening(*ROUTES, bounds=limits(header_deadline_seconds=600)) as listener:
        reader, writer = await connect(listener.port)
        writer.write(GET)
        assert (await answer(reader))[0] == 200
        assert await until_closed(reader) == b""


async def test_a_connection_in_use_stays():
    async with listening(*ROUTES, bounds=limits(header_deadline_seconds=600, idle_seconds=600)) as listener:
        reader, writer = await connect(listener.port)
        for _ in range(20):
            writer.write(GET)
            assert (await answer(reader))[2] == b"hello"


@pytest.mark.parametrize("path", ["POST /echo", "PUT /pieces"])
async def test_a_body_that_is_not_completed_is_too_slow(path):
    async with listening(*ROUTES) as listener:
        data = await exchange(listener.port, f"{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf".encode())
        assert problem(data) == (408, "MUSTER-ACC-005")


async def test_a_body_that_nobody_reads_does_not_hold_the_connection():
    async with listening(*ROUTES, bounds=limits(idle_seconds=600, header_deadline_seconds=600)) as listener:
        data = await exchange(listener.port, b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf")
        assert problem(data)[0] == 404


async def test_who_does_not_take_the_answer_loses_the_connection(monkeypatch):
    monkeypatch.setattr("provisioning.http.connection.WRITE_SECONDS", 0.5)
    async with listening(*ROUTES, bounds=limits(idle_seconds=600)) as listener:
        reader, writer = await connect(listener.port, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await _drained(listener)
        writer.close()
        del reader


async def test_who_pipelines_and_never_reads_loses_the_connection(monkeypatch):
    monkeypatch.setattr("provisioning.http.connection.WRITE_SECONDS", 0.5)
    async with listening(*ROUTES, bounds=limits(idle_seconds=600)) as listener:
        peer = socket.create_connection(("127.0.0.1", listener.port))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        request = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
        await loop.sock_sendall(peer, request * 20)
        await _drained(listener)
        peer.close()


async def _drained(listener):
    async with asyncio.timeout(20):
        while not listener.connections:  # noqa: ASYNC110  a listener has no event for its connections
            await asyncio.sleep(0.01)
        while listener.connections:  # noqa: ASYNC110  the same
            await asyncio.sleep(0.05)


async def test_a_thousand_silent_connections_end_and_shut_nobody_out():
    bounds = limits(connections=300, connections_per_address=200)
    async with listening(*ROUTES, bounds=bounds) as listener:
        silent = [await connect(listener.port) for _ in range(1000)]
        assert listener.connections <= bounds.connections_per_address
        assert b"200 OK" in await exchange(listener.port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert [await until_closed(reader) for reader, _ in silent] == [b""] * 1000
        for _, writer in silent:
            writer.close()


async def test_a_connection_at_work_is_not_dropped_for_a_new_one():
    release = asyncio.Event()

    async def working(call):
        await release.wait()
        return web.Response(text="done")

    bounds = limits(connections=2, connections_per_address=2)
    async with listening(Route("GET", "/working", working), bounds=bounds) as listener:
        workers = [await connect(listener.port) for _ in range(2)]
        for _, writer in workers:
            writer.write(b"GET /working HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.2)
        assert await exchange(listener.port, GET) == b""
        release.set()
        assert [(await answer(reader))[2] for reader, _ in workers] == [b"done", b"done"]


async def test_more_work_than_fits_is_asked_to_come_back():
    most = InFlight(1)
    with most, pytest.raises(Busy), most:
        pytest.fail("two at once")
    with most:
        pass


async def test_without_descriptors_it_waits_and_goes_on(monkeypatch):
    monkeypatch.setattr("provisioning.http.listener._PAUSE_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, iter([errno.EMFILE, errno.ECONNABORTED, errno.ENOMEM])

    async def failing(bound):
        if (number := next(failures, None)) is not None:
            raise OSError(number, "as accept(2) says")
        return await accept(bound)

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with listening(*ROUTES) as listener:
        reader, writer = await connect(listener.port)
        writer.write(GET)
        assert (await answer(reader))[0] == 200


# --- hostile bytes ------------------------------------------------------------------------------------------------

HOSTILE = {
    "not http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 100 + b"\r\n\r\n",
    "no version": b"GET /hello\r\n\r\n",
    "http/0.9": b"GET /hello HTTP/0.9\r\n\r\n",
    "http/3": b"GET /hello HTTP/3.0\r\nHost: x\r\n\r\n",
    "bad header": b"GET /hello HTTP/1.1\r\nHost x\r\n\r\n",
    "space before colon": b"GET /hello HTTP/1.1\r\nHost : x\r\n\r\n",
    "folded header": b"GET /hello HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "nul in header": b"GET /hello HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
    "long line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long field": b"GET /hello HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n",
    "many fields": b"GET /hello HTTP/1.1\r\nHost: x\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(500)) + b"\r\n",
    "two lengths": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"POST /echo HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "signed length": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
    "unknown coding": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "bad chunk size": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "bad method": b"G\x01T /hello HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_bad_http_is_refused_with_a_problem_document_and_closed(name):
    async with listening(*ROUTES) as listener:
        status, code = problem(await exchange(listener.port, HOSTILE[name]))
        assert 400 <= status < 500
        assert code.startswith("MUSTER-")


async def test_what_is_smuggled_behind_bad_framing_is_not_a_request():
    smuggled = HOSTILE["length and chunks"] + GET
    async with listening(*ROUTES) as listener:
        data = await exchange(listener.port, smuggled)
        assert b"200 OK" not in data
        assert data.count(b"HTTP/1.") == 1


async def test_random_bytes_never_get_a_500():
    generator = random.Random(7)
    async with listening(*ROUTES, bounds=limits(connections_per_address=2000)) as listener:
        for number in range(300):
            junk = generator.randbytes(number + 1) + b"\r\n\r\n"
            data = await exchange(listener.port, post("/echo", b"", close=True)[:-2] + junk if number % 2 else junk)
            assert b" 500 " not in data.partition(b"\r\n")[0]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity"])
async def test_a_compressed_body_is_refused_and_not_unpacked(coding):
    async with listening(*ROUTES) as listener:
        data = await exchange(listener.port, post("/echo", b"\x1f\x8b" + b"\x00" * 50, f"Content-Encoding: {coding}"))
        assert problem(data) == (415, "MUSTER-ACC-007")


async def test_a_body_at_the_cap_passes_and_one_byte_more_is_refused():
    async with listening(*ROUTES) as listener:
        assert (await exchange(listener.port, post("/echo", b"x" * BODY_MOST))).endswith(b"x" * BODY_MOST)
        assert problem(await exchange(listener.port, post("/echo", b"x" * (BODY_MOST + 1)))) == (413, "MUSTER-REQ-002")


@pytest.mark.parametrize("path", ["POST /echo", "PUT /pieces"])
async def test_a_body_without_length_is_counted_while_it_comes(path):
    chunked = f"{path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with listening(*ROUTES, bounds=limits(body_deadline_seconds=600)) as listener:
        data = await exchange(
            listener.port, chunked + b"100\r\n" + b"x" * 256 + b"\r\n" + (b"100\r\n" + b"x" * 256 + b"\r\n") * 4
        )
        assert problem(data) == (413, "MUSTER-REQ-002")


async def test_a_huge_length_is_refused_before_a_byte_of_it_came():
    async with listening(*ROUTES, bounds=limits(body_deadline_seconds=600)) as listener:
        head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        data = await exchange(listener.port, head)
        assert b"100 Continue" not in data
        assert problem(data) == (413, "MUSTER-REQ-002")


async def test_who_asks_to_continue_may_where_the_head_is_good():
    async with listening(*ROUTES, bounds=limits(body_deadline_seconds=20)) as listener:
        reader, writer = await connect(listener.port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await answer(reader))[2] == b"body"


@pytest.mark.parametrize(
    "head", [b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\n", b"Upgrade: h2c\r\n"]
)
async def test_an_upgrade_is_not_done(head):
    async with listening(*ROUTES) as listener:
        data = await exchange(listener.port, b"GET /hello HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
        assert data.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "line", [b"CONNECT x:1 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"TRACE /hello HTTP/1.1", b"GET http://y/nope HTTP/1.1"]
)
async def test_other_forms_of_request_find_nothing(line):
    async with listening(*ROUTES) as listener:
        assert problem(await exchange(listener.port, line + b"\r\nHost: x\r\nConnection: close\r\n\r\n"))[0] in (
            404,
            405,
        )


async def test_a_405_names_what_is_allowed():
    async with listening(*ROUTES) as listener:
        data = await exchange(listener.port, b"DELETE /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert problem(data) == (405, "MUSTER-ACC-004")
        assert b"\r\nAllow: GET\r\n" in data


# --- rates, defects, the end --------------------------------------------------------------------------------------


async def test_who_asks_too_often_is_told_to_wait():
    async with listening(*ROUTES, rate=Rate(0.01, 3)) as listener:
        reader, writer = await connect(listener.port)
        for _ in range(2):
            writer.write(GET)
            assert (await answer(reader))[0] == 200
        writer.write(GET)
        status, headers, body = await answer(reader)
        assert (status, json.loads(body)["code"]) == (429, "MUSTER-ACC-006")
        assert int(headers["retry-after"]) >= 1


async def test_a_defect_is_a_500_without_a_word_about_it(caplog):
    async with listening(*ROUTES) as listener:
        data = await exchange(listener.port, b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        assert problem(data) == (500, "MUSTER-INT-001")
        assert b"canary" not in data


async def test_a_deadline_that_nobody_named_is_a_busy_service():
    async with listening(*ROUTES) as listener:
        data = await exchange(listener.port, b"GET /late HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert problem(data) == (503, Busy.code)


async def test_no_answer_names_versions():
    async with listening(*ROUTES) as listener:
        for data in (post("/nope"), HOSTILE["bad header"]):
            assert b"\r\nServer: muster\r\n" in await exchange(listener.port, data)


async def test_stopping_finishes_what_runs_and_takes_nothing_new():
    begun, release = asyncio.Event(), asyncio.Event()

    async def working(call):
        begun.set()
        await release.wait()
        return web.Response(text="done")

    async with listening(Route("GET", "/working", working)) as listener:
        reader, writer = await connect(listener.port)
        writer.write(b"GET /working HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        stopping = asyncio.create_task(listener.stop(20.0))
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            await connect(listener.port)
        release.set()
        assert (await answer(reader))[2] == b"done"
        await stopping
