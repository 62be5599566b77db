"""The three listeners of a real installation: who may call what, by which certificate or token, and hostile bodies."""

import asyncio
import hashlib
import json
import random
import ssl
import subprocess
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import aiohttp
import pytest

from provisioning.access import Operator, Role, may
from provisioning.app.endpoints import Ports
from provisioning.app.installation import hash_token, renew_service_certificate
from provisioning.app.worker import start_listeners
from provisioning.db import devices
from provisioning.http import operator
from provisioning.refusals import RequestMalformed
from tests.support import fleet
from tests.support.http import no_loose_ends
from tests.support.service import csr, free_ports, make_installation, running_service
from wire.codec import b64url, decode, unb64url
from wire.envelope import open_envelope
from wire.messages import TIME_PAYLOAD_TYPE, SignedTime
from wire.problems import MEDIA_TYPE

ROLES = [role.value for role in Role]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("http") / "D")


@pytest.fixture(scope="module")
def service(directory):
    with running_service(directory) as made:

        def operators(tx):
            for role in [*ROLES, "stranger"]:
                devices.add_operator(tx, name=role, role=role, token_sha256=hash_token(f"token-{role}"), now=0)

        made.ledger.write_now(operators)
        yield made


class Client:
    """Requests to the three listeners, as somebody."""

    def __init__(self, service, ports, session):
        self.ports, self.session = ports, session
        self.root = service.directory.ca / "root.pem"
        self.directory = service.directory

    def url(self, listener, path):
        scheme = "http" if listener == "public" else "https"
        return f"{scheme}://127.0.0.1:{getattr(self.ports, listener)}{path}"

    async def call(self, listener, method, path, *, member=None, role=None, **options):
        """`(status, headers, body)`; a refusal's document is checked."""
        context = (
            None
            if listener == "public"
            else fleet.anonymous(self.root)
            if member is None
            else member.context(self.root)
        )
        headers = dict(options.pop("headers", {}))
        if role is not None:
            headers["Authorization"] = f"Bearer token-{role}"
        async with self.session.request(
            method, self.url(listener, path), ssl=context or True, headers=headers, allow_redirects=False, **options
        ) as answer:
            body = await answer.read()
            if answer.status >= 400:
                assert answer.headers["Content-Type"] == MEDIA_TYPE
                body = json.loads(body)
                assert body["status"] == answer.status
            return answer.status, answer.headers, body

    async def code(self, *arguments, **options):
        """Status and code of a refusal."""
        status, _, body = await self.call(*arguments, **options)
        return status, body["code"]


@asynccontextmanager
async def serving(service):
    ports = Ports(*free_ports())
    with no_loose_ends():
        listeners, certificates = start_listeners(service, ports)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            made = Client(service, ports, session)
            made.certificates = certificates
            yield made
        await asyncio.gather(*(listener.stop(1.0) for listener in listeners))
        await asyncio.sleep(0)
    assert [listener.connections for listener in listeners] == [0, 0, 0]


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


# --- devices and stations -----------------------------------------------------------------------------------------

LOG = b"a boot log"
LOG_PATH = f"/v1/logs/{hashlib.sha256(LOG).hexdigest()}"
FOR_DEVICES = [
    ("GET", "/ota/image/metadata/timestamp.json"),
    ("GET", "/ota/director/metadata/timestamp.json"),
    ("PUT", LOG_PATH),
]


@pytest.mark.parametrize(("method", "path"), FOR_DEVICES)
async def test_without_a_certificate_a_devices_route_is_closed(client, method, path):
    assert await client.code("device", method, path) == (401, "MUSTER-ACC-001")


@pytest.mark.parametrize(("method", "path"), FOR_DEVICES)
async def test_a_stations_certificate_opens_no_devices_route(client, service, tmp_path, method, path):
    station = await fleet.station(service, tmp_path, "line-2")
    assert await client.code("device", method, path, member=station) == (401, "MUSTER-ACC-001")


async def test_a_devices_certificate_registers_nothing(client, service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-1")
    assert await client.code("device", "POST", "/v1/factory/devices", member=member, json={}) == (401, "MUSTER-ACC-001")


async def test_a_device_stores_its_boot_log_under_its_hash(client, service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-1")
    assert (await client.call("device", "PUT", LOG_PATH, member=member, data=LOG))[0] == 204


async def test_a_boot_log_of_another_hash_is_refused(client, service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-1")
    assert (await client.code("device", "PUT", LOG_PATH, member=member, data=b"other"))[1] == RequestMalformed.code


@pytest.mark.parametrize(("state", "status"), [("issued", 204), ("superseded", 204), ("revoked", 401)])
async def test_a_certificate_counts_as_long_as_the_database_says(client, service, tmp_path, state, status):
    member = await fleet.device(service, tmp_path, f"d-{state}")
    if state != "issued":
        await fleet.set_state(service, member, state)
    assert (await client.call("device", "PUT", LOG_PATH, member=member, data=LOG))[0] == status


async def test_a_revocation_ends_a_connection_that_is_open_already(service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-open")
    async with serving(service) as client:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def put():
                async with session.put(
                    client.url("device", LOG_PATH), data=LOG, ssl=member.context(client.root)
                ) as answer:
                    return answer.status

            assert await put() == 204
            await fleet.set_state(service, member, "revoked")
            assert await put() == 401


async def test_a_revoked_devices_other_certificates_do_not_count(client, service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-gone")
    await service.ledger.write(lambda tx: devices.change(tx, "d-gone", state="revoked"))
    assert await client.code("device", "PUT", LOG_PATH, member=member, data=LOG) == (401, "MUSTER-ACC-001")


async def test_a_certificate_that_expired_while_its_connection_was_open_does_not_count(service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-old")
    later = replace(service, clock=lambda: service.clock() + timedelta(days=31))
    async with serving(later) as client:
        assert await client.code("device", "PUT", LOG_PATH, member=member, data=LOG) == (401, "MUSTER-ACC-001")


async def test_a_certificate_of_another_ca_does_not_pass_the_handshake(client, tmp_path):
    key, certificate = tmp_path / "k.pem", tmp_path / "c.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=d-1",
    ]
    command += ["-keyout", key, "-out", certificate, "-days", "1"]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    context = fleet.anonymous(client.root)
    context.load_cert_chain(certificate, key)
    with pytest.raises(aiohttp.ClientError):
        await client.session.put(client.url("device", LOG_PATH), data=LOG, ssl=context)


async def test_the_services_own_certificate_is_no_clients(client, directory):
    context = fleet.anonymous(client.root)
    context.load_cert_chain(directory.tls / "service.pem", directory.tls / "service.key")
    with pytest.raises(aiohttp.ClientError):
        await client.session.put(client.url("device", LOG_PATH), data=LOG, ssl=context)


async def test_a_station_reads_which_of_its_rows_is_wrong(client, service, tmp_path):
    station = await fleet.station(service, tmp_path, "line-3")
    rows = {"devices": [{"serial": "bad serial!", "model": "gateway", "ek_certificate": b64url(b"x")}]}
    status, _, body = await client.call("device", "POST", "/v1/factory/devices", member=station, json=rows)
    assert (status, body["code"]) == (400, "MUSTER-FAC-005")
    assert "devices[0]" in body["detail"]


async def test_a_replaced_stations_certificate_registers_nothing(client, service, tmp_path):
    old = await fleet.station(service, tmp_path, "line-4")
    await fleet.station(service, tmp_path, "line-4")
    rows = {"devices": [{"serial": "s-1", "model": "gateway", "ek_certificate": b64url(b"x")}]}
    status, _ = await client.code("device", "POST", "/v1/factory/devices", member=old, json=rows)
    assert status in (400, 401)


# --- the operator's routes ----------------------------------------------------------------------------------------


def example(path):
    return path.replace("{name...}", "metadata/x.json").replace("{name}", "nobody")


@pytest.mark.parametrize("row", operator.TABLE, ids=lambda row: f"{row.method} {row.path}")
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic dG9rZW4=", "Bearer token-admin x", "token-admin"]
)
async def test_without_a_good_token_every_operator_route_is_closed(client, row, header):
    headers = {} if header is None else {"Authorization": header}
    status, answered, body = await client.call("operator", row.method, example(row.path), headers=headers, json={})
    assert (status, body["code"]) == (401, "MUSTER-ACC-001")
    assert answered["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("row", operator.TABLE, ids=lambda row: f"{row.method} {row.path}")
@pytest.mark.parametrize("role", [*ROLES, "stranger"])
async def test_every_role_gets_every_route_that_it_may_and_no_other(client, row, role):
    status, _, _ = await client.call("operator", row.method, example(row.path), role=role, data=b"")
    if may(Operator("x", role), row.role):
        assert status not in (401, 403, 500)
    else:
        assert status == 403


@pytest.mark.parametrize(
    "path", ["/", "/api/v1/", "/api/v1/operators", "/api/v1/devices/a/b", "/v1/enrollments", "/openapi.json"]
)
async def test_an_unlisted_route_is_not_there_for_anybody(client, path):
    for role in (None, "admin"):
        assert await client.code("operator", "GET", path, role=role) == (404, "MUSTER-ACC-003")


async def test_operators_read_what_was_expected(client):
    _, _, body = await client.call("operator", "GET", "/api/v1/devices/nobody", role="viewer")
    assert "nobody" in body["detail"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "limit=1&limit=2", "limit=-1", "other=1", "limit=²"]
)
async def test_a_query_of_another_shape_is_refused(client, query):
    assert (await client.code("operator", "GET", f"/api/v1/devices?{query}", role="viewer"))[0] == 400


async def test_devices_come_in_pages(client, service, tmp_path):
    for name in ("p-1", "p-2", "p-3"):
        await fleet.device(service, tmp_path, name)
    _, _, body = await client.call("operator", "GET", "/api/v1/devices?after=sn-p-1&limit=1", role="viewer")
    assert [device["id"] for device in json.loads(body)["devices"]] == ["p-2"]


async def test_a_station_is_added_with_its_chain(client):
    new = {"name": "line-9", "budget": 3, "csr": b64url(csr())}
    status, _, body = await client.call("operator", "POST", "/api/v1/stations", role="admin", json=new)
    answered = json.loads(body)
    assert status == 201
    assert len(answered["chain"]) == 2
    assert unb64url(answered["certificate"])[:1] == b"0"


async def test_a_revoked_device_stays_revoked(client, service, tmp_path):
    await fleet.device(service, tmp_path, "d-end")
    path = "/api/v1/devices/d-end/revoke"
    status, _, _ = await client.call("operator", "POST", path, role="operator", json={"reason": "key-compromise"})
    assert status == 200
    assert (await client.code("operator", "POST", path, role="operator", json={"reason": "key-compromise"}))[0] == 409


async def test_an_upload_is_stored_whole_under_its_name(client, directory):
    content = random.Random(1).randbytes(700_000)
    status, _, _ = await client.call(
        "operator", "PUT", "/api/v1/ota/image/targets/a/b.bin", role="publisher", data=content
    )
    assert status == 201
    assert (directory.image / "targets/a/b.bin").read_bytes() == content


async def test_an_upload_that_is_too_large_leaves_nothing(client, directory):
    path = "/api/v1/ota/image/metadata/huge.json"
    data = b"x" * (operator.METADATA_MOST + 1)
    assert (await client.code("operator", "PUT", path, role="publisher", data=data))[0] == 413
    assert not [file for file in (directory.image / "metadata").iterdir() if "huge" in file.name]


@pytest.mark.parametrize(
    "name", ["x", "other/x", "metadata/a/b", "targets", "metadata/../x", "targets/%2e%2e/x", "targets/.x"]
)
async def test_an_upload_goes_nowhere_else(client, directory, name):
    before = sorted(directory.root.rglob("*"))
    status, _, _ = await client.call("operator", "PUT", f"/api/v1/ota/image/{name}", role="publisher", data=b"x")
    assert status in (400, 404)
    assert not [
        path for path in sorted(directory.root.rglob("*")) if path not in before and "muster.db" not in path.name
    ]


async def test_the_figures_are_there_for_prometheus(client):
    _, headers, body = await client.call("operator", "GET", "/metrics", role="viewer")
    assert headers["Content-Type"].startswith("text/plain")
    assert b"muster_http_requests_total" in body


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


# --- hostile bodies -----------------------------------------------------------------------------------------------

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
