"""Requests that need a signature while the token hangs or is away: 503 in time, and all else goes on."""

import asyncio
import time

import pytest

from tests.support.listeners import service_with_operators, serving
from tests.support.service import csr, make_installation
from tests.support.tokens import Behind
from wire.codec import b64url

WITHIN_SECONDS = 1.0
RECOVERED_SECONDS = 5.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("signing") / "D")


@pytest.fixture(scope="module")
def token(directory):
    made = Behind(directory)
    # Half of the default deadline: what is left of a second is for a busy machine.
    text = '[hsm]\nmodule = "remote"\ndeadline_milliseconds = 400\n' + made.toml("remote")
    directory.config.write_text(directory.config.read_text() + text)
    yield made
    made.close()


@pytest.fixture(scope="module")
def service(directory, token):
    with service_with_operators(directory) as made:
        yield made


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


def signing(client, number=0):
    """Two that need a signature: by the command key, and a certificate by the CA's."""
    new = {"name": f"line-{number}", "budget": 1, "csr": b64url(csr())}
    return [
        client.call("public", "GET", "/v1/time?nonce=n"),
        client.call("operator", "POST", "/api/v1/stations", role="admin", json=new),
    ]


async def assert_all_else_goes_on(client):
    status, _, _ = await client.call("public", "GET", "/ca/issuing.pem")
    assert status == 200
    status, _, _ = await client.call("operator", "GET", "/api/v1/devices", role="viewer")
    assert status == 200


async def assert_unavailable(asked):
    begun = time.monotonic()
    status, headers, body = await asked
    assert (status, body["code"]) == (503, "MUSTER-ISS-002")
    assert int(headers["Retry-After"]) > 0
    assert time.monotonic() - begun < WITHIN_SECONDS


async def until_it_signs(client, number):
    deadline = time.monotonic() + RECOVERED_SECONDS
    while any(status >= 400 for status, _, _ in await asyncio.gather(*signing(client, number))):
        assert time.monotonic() < deadline, f"no signature within {RECOVERED_SECONDS} s"
        await asyncio.sleep(0.1)


async def test_while_the_module_hangs_callers_get_503_and_it_signs_again_without_restart(client, token):
    await until_it_signs(client, 1)
    with token.hanging():
        asked = [one for number in range(2, 6) for one in signing(client, number)]
        await asyncio.gather(*map(assert_unavailable, asked), assert_all_else_goes_on(client))
        await asyncio.gather(*map(assert_unavailable, signing(client, 6)), assert_all_else_goes_on(client))
    await until_it_signs(client, 7)


async def test_while_the_token_is_away_callers_get_503_and_it_signs_again_without_restart(client, token):
    token.kill()
    for number in range(10, 13):
        await asyncio.gather(*map(assert_unavailable, signing(client, number)))
    await assert_all_else_goes_on(client)
    token.start()
    await until_it_signs(client, 13)


async def test_a_request_that_was_refused_gets_its_certificate_when_it_comes_again(client, token):
    """What was reserved is signed then: nothing is lost, and nothing is there twice."""
    new = {"name": "line-20", "budget": 1, "csr": b64url(csr())}
    token.kill()
    await assert_unavailable(client.call("operator", "POST", "/api/v1/stations", role="admin", json=new))
    token.start()
    await until_it_signs(client, 21)
    status, _, _ = await client.call("operator", "POST", "/api/v1/stations", role="admin", json=new)
    assert status == 201
