"""Hostile bodies on every route that takes one: a 4xx problem document, never a 500."""

import json
import random

import aiohttp
import pytest

from provisioning.http import exchange, operator
from provisioning.http.device import REGISTRATION_PARTS_MOST
from provisioning.refusals import RequestMalformed
from tests.support import fleet
from tests.support.listeners import example, service_with_operators, serving
from tests.support.service import make_installation
from wire.codec import decode


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("http") / "D")


@pytest.fixture(scope="module")
def service(directory):
    with service_with_operators(directory) as made:
        yield made


SEEDS = [
    b"", b"null", b"[]", b"{}", b'""', b"0", b"nan", b"\xff\xfe", b"\x00" * 1000,
    b"{" * 1000, b"[" * 100_000, b'{"a":' * 5000,
    b'{"ak_public":"AAAA","pcr_banks":["sha256"]}', b'{"ak_public":"AAAA","ak_public":"AAAA","pcr_banks":["sha256"]}',
    b'{"ak_public":"' + b"A" * 2000 + b'","pcr_banks":["sha256"],"ek_certificate":"MIIB"}',
    b'{"ak_public":"AAAA","pcr_banks":["sha256"],"ek_certificate":"' + b"A" * 60_000 + b'"}',
    b'{"ak_public":"AAAA","pcr_banks":["sha256"],"ek_public":"AAEACwADALIAIIOXcWdEhLP4GsyQ"}',
    b'{"ak_public":1e400,"pcr_banks":[1]}', b'{"ak_public":123456789012345678901234567890}', b'{"\\ud800":1}',
    b'{"csr":"","device_public":"","certify":{"attest":"","signature":""},"quote":{"attest":"","signature":""}}',
    b'{"csr":"MIIB","pcrs":{"sha256":{"0":""}},"activation_proof":""}',
    b'{"devices":[{"serial":"a","model":"b","ek_certificate":"MIIB"}]}', b'{"toml":"model = 1"}', b'{"toml":"[["}',
    b'{"reason":"x"}', b'{"name":"a","budget":-1,"csr":"AAAA"}', b'{"name":"a","budget":1,"csr":"MIIB"}',
    b'{"device":"d-1","target":"../x"}',
]  # fmt: skip


def mutated(generator):
    """A body that was once a message."""
    body = bytearray(generator.choice(SEEDS))
    for _ in range(generator.randrange(4)):
        place = generator.randrange(len(body) + 1)
        match generator.randrange(4):
            case 0:
                body[place:place] = generator.randbytes(generator.randrange(1, 20))
            case 1:
                del body[place : place + generator.randrange(1, 20)]
            case 2:
                body[place : place + 1] = generator.choice([b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"9" * 30])
            case _:
                body[place:place] = bytes(generator.choice(SEEDS))[:500]
    return bytes(body)


async def hostile(service, tmp_path, count, seed):
    generator = random.Random(seed)
    station = await fleet.station(service, tmp_path, "line-hostile", 10)
    async with serving(service) as client:
        posts = [
            ("device", "POST", "/v1/enrollments", None, None),
            ("device", "POST", "/v1/enrollments/abc/evidence", None, None),
            ("device", "POST", "/v1/factory/devices", station.context(client.root), None),
            *(
                ("operator", row.method, example(row.path), None, "admin")
                for row in operator.TABLE
                if row.body is not None
            ),
        ]
        contexts = {None: fleet.anonymous(client.root)}
        async with aiohttp.ClientSession() as session:
            for _ in range(count):
                listener, method, path, context, role = generator.choice(posts)
                headers = {
                    "Content-Type": "application/json",
                    **({"Authorization": f"Bearer token-{role}"} if role else {}),
                }
                body = mutated(generator)
                async with session.request(
                    method, client.url(listener, path), data=body, headers=headers, ssl=context or contexts[None]
                ) as answer:
                    document = await answer.read()
                    assert answer.status < 500, (path, body)
                    if answer.status >= 400:
                        assert json.loads(document)["code"].startswith("MUSTER-")


async def test_hostile_bodies_are_refused_and_never_break_the_service(service, tmp_path):
    await hostile(service, tmp_path, 1500, seed=1)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_many_hostile_bodies_are_refused_and_never_break_the_service(service, tmp_path):
    await hostile(service, tmp_path, 20_000, seed=2)


async def test_a_stranger_s_message_of_very_many_parts_is_read_no_further(service, tmp_path, monkeypatch):
    """What each costs grows with the number of its parts, not with its bytes; a station's may have a thousand rows."""
    allowed = []

    def watched(cls, data, *, limit, parts):
        allowed.append((cls.__name__, parts))
        return decode(cls, data, limit=limit, parts=parts)

    monkeypatch.setattr(exchange, "decode", watched)
    station = await fleet.station(service, tmp_path, "line-parts", 1)
    body = b"[" + b"{}," * 20_000 + b"{}]"
    async with serving(service) as client, aiohttp.ClientSession() as session:
        for path in ("/v1/enrollments", "/v1/enrollments/abc/evidence", "/v1/factory/devices"):
            context = station.context(client.root) if "factory" in path else fleet.anonymous(client.root)
            headers = {"Content-Type": "application/json"}
            async with session.post(client.url("device", path), data=body, headers=headers, ssl=context) as answer:
                assert (answer.status, json.loads(await answer.read())["code"]) == (400, RequestMalformed.code)
    assert allowed == [
        ("EnrollmentRequest", exchange.PARTS_MOST),
        ("Evidence", exchange.PARTS_MOST),
        ("RegistrationRequest", REGISTRATION_PARTS_MOST),
    ]
