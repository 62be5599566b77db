"""Signed objects as files and messages, and the TLS around the listeners."""

import asyncio
import random
import ssl
import subprocess
from dataclasses import replace

import pytest

from provisioning.app.tls import server_context
from provisioning.service_tls import renew_service_certificate
from tests.support.listeners import service_with_operators, serving
from tests.support.service import make_installation
from wire.codec import decode
from wire.envelope import open_envelope
from wire.messages import TIME_PAYLOAD_TYPE, SignedTime


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("http") / "D")


@pytest.fixture(scope="module")
def service(directory):
    with service_with_operators(directory) as made:
        yield made


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


# --- signed objects -----------------------------------------------------------------------------------------------


async def test_the_time_is_signed_by_the_command_key_for_this_nonce(client, service):
    _, _, body = await client.call("public", "GET", "/v1/time?nonce=n-1")
    key = service.keys.public("command")

    def verify(_keyid, signature, message):
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        return True

    assert decode(SignedTime, open_envelope(body, TIME_PAYLOAD_TYPE, verify), limit=1000).nonce == "n-1"


@pytest.mark.parametrize(
    "query", ["", "nonce=", "nonce=" + "x" * 65, "nonce=a%0ab", "nonce=%C3%A4", "nonce=a&nonce=b", "nonce=a&x=1"]
)
async def test_a_nonce_of_another_shape_is_refused(client, query):
    assert await client.code("public", "GET", f"/v1/time?{query}") == (400, "MUSTER-REQ-001")


@pytest.mark.parametrize(
    "path",
    [
        "/crl/issuing.crl",
        "/ca/issuing.pem",
        "/ca/root.pem",
        "/ca/issuing.crt",
        "/trust/metadata/1.root.json",
        "/trust/metadata/timestamp.json",
    ],
)
async def test_signed_objects_are_the_files(client, directory, path):
    file = directory.root / path.lstrip("/").replace("crl/", "ca/")
    status, _, body = await client.call("public", "GET", path)
    assert (status, body) == (200, file.read_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "/ca/issuing.crl",
        "/ca/trusted.pem",
        "/ca/roots.pem",
        "/ca/issuing",
        "/ca/issuing.key",
        "/ca/nobody.pem",
        "/ca/..pem",
        "/ca/service.key",
        "/trust/",
        "/trust/metadata",
        "/trust/../muster.toml",
        "/trust/%2e%2e/muster.toml",
        "/trust/metadata/../../muster.toml",
        "/trust/metadata/..%2f..%2fmuster.toml",
        "/trust/.lock",
        "/trust//etc/passwd",
        "/trust/metadata/1.root.json/",
        "/secrets/operator.token",
        "/trust/metadata/nope.json",
        "/trust/metadata/1.root.json/x",
    ],
)
async def test_nothing_else_is_served(client, path):
    from yarl import URL

    async with client.session.get(URL(client.url("public", "") + path, encoded=True)) as answer:
        assert answer.status == 404


async def test_a_link_is_not_followed(client, directory):
    link = directory.trust / "metadata" / "link.json"
    link.symlink_to(directory.config)
    assert (await client.code("public", "GET", "/trust/metadata/link.json"))[0] == 404
    link.unlink()


async def test_a_file_is_resumed_where_it_is_still_the_same(client, directory):
    content = random.Random(2).randbytes(900_000)
    file = directory.trust / "targets" / "large.bin"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    path = "/trust/targets/large.bin"
    status, headers, body = await client.call("public", "GET", path)
    assert (status, body) == (200, content)
    fresh = {"Range": "bytes=500000-", "If-Range": headers["ETag"]}
    status, partial, body = await client.call("public", "GET", path, headers=fresh)
    assert (status, partial["Content-Range"], body) == (206, "bytes 500000-899999/900000", content[500_000:])
    status, _, body = await client.call(
        "public", "GET", path, headers={"Range": "bytes=500000-", "If-Range": '"other"'}
    )
    assert (status, body) == (200, content)
    assert (await client.call("public", "GET", path, headers={"If-None-Match": headers["ETag"]}))[0] == 304
    status, _, body = await client.call("public", "HEAD", path)
    assert (status, body) == (200, b"")
    async with client.session.get(client.url("public", path), headers={"Range": "bytes=900000-"}) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */900000")


# --- TLS ----------------------------------------------------------------------------------------------------------


def s_client(port, *options):
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]
    return subprocess.run(command, check=False, input=b"", capture_output=True, timeout=20).returncode == 0


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (["-tls1_3"], True),
        (["-tls1_2"], True),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], True),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"], False),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"], False),
        (["-tls1_2", "-cipher", "AES128-GCM-SHA256:@SECLEVEL=0"], False),
        (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], False),
        (["-tls1", "-cipher", "ALL:@SECLEVEL=0"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("listener", ["device", "operator"])
async def test_only_modern_tls_is_spoken(client, listener, options, accepted):
    assert await asyncio.to_thread(s_client, getattr(client.ports, listener), *options) is accepted


def test_the_oldest_version_is_said_and_does_not_follow_from_the_ciphers(directory):
    context = server_context(directory.tls / "service.pem", directory.tls / "service.key")
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


async def test_no_session_is_resumed_by_ticket(client):
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{client.ports.device}", "-tls1_3"]
    done = await asyncio.to_thread(subprocess.run, command, input=b"", capture_output=True, timeout=20)
    assert b"New Session Ticket" not in done.stdout


async def test_a_silent_handshake_ends(service):
    bounds = replace(service.config.limits, handshake_deadline_seconds=1)
    async with serving(replace(service, config=replace(service.config, limits=bounds))) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.ports.device)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


async def test_a_new_certificate_is_served_without_a_restart(client, service):
    def served():
        return ssl.get_server_certificate(("127.0.0.1", client.ports.device))

    before = await asyncio.to_thread(served)
    assert client.certificates.reload() is False
    await renew_service_certificate(service)
    assert client.certificates.reload() is True
    assert await asyncio.to_thread(served) != before
