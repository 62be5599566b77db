"""Who may call what: by which certificate, by which token, with which role; and nobody else."""

import asyncio
import hashlib
import json
import random
import subprocess
from dataclasses import replace
from datetime import timedelta

import aiohttp
import pytest
from sqlalchemy import update

from hsm.errors import TokenUnavailable
from provisioning import updates
from provisioning.access import Operator, may
from provisioning.authorities import State
from provisioning.config import ConfigurationRefused, parse_config
from provisioning.db import devices, revocations
from provisioning.db.ca_tables import Certificate
from provisioning.db.columns import table_of
from provisioning.http import operator
from provisioning.refusals import RequestMalformed
from tests.support import fleet
from tests.support.listeners import ROLES, example, service_with_operators, serving
from tests.support.service import csr, make_installation
from wire.codec import b64url, unb64url


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


# --- devices and stations -----------------------------------------------------------------------------------------

LOG = b"a boot log"
LOG_PATH = f"/v1/logs/{hashlib.sha256(LOG).hexdigest()}"
FOR_DEVICES = [
    ("GET", "/ota/image/metadata/timestamp.json"),
    ("GET", "/ota/director/metadata/timestamp.json"),
    ("PUT", LOG_PATH),
    ("GET", "/v1/standing"),
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


@pytest.mark.parametrize("state", ["quarantined", "silent"])
@pytest.mark.parametrize(("method", "path"), FOR_DEVICES)
async def test_in_quarantine_every_request_is_refused_whatever_its_certificate(
    client, service, tmp_path, method, path, state
):
    """Also before its certificate is on hold: the record is asked for each request."""
    name = f"d-{state}-{method.lower()}{len(path)}"
    member = await fleet.device(service, tmp_path, name)
    for held in (False, True):
        if held:
            at = int(service.clock().timestamp())
            hold = {"at": at, "reason": revocations.HOLD, "held_by": revocations.HEALTH}
            await service.ledger.write(lambda tx, how=hold: revocations.revoke(tx, member.serial, **how))
        await service.ledger.write(lambda tx: devices.change(tx, name, health=state))
        assert await client.code("device", method, path, member=member, data=LOG) == (403, "MUSTER-HLT-001")


async def test_a_certificate_of_quarantine_opens_the_way_back_and_nothing_without_it(client, service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-back")
    await service.ledger.write(lambda tx: devices.change(tx, "d-back", health="quarantined"))
    made = update(table_of(Certificate)).where(table_of(Certificate).c.serial == member.serial)
    await service.ledger.write(lambda tx: tx.execute(made.values(profile="quarantine")))
    assert (await client.call("device", "PUT", LOG_PATH, member=member, data=LOG))[0] == 204
    status, _, body = await client.call("device", "GET", "/v1/standing", member=member)
    assert (status, json.loads(body)["health"]) == (200, "quarantined")
    for operation in ("simpleenroll", "simplereenroll"):
        headers = {"Content-Type": "application/pkcs10"}
        path = f"/.well-known/est/{operation}"
        answered = await client.code("device", "POST", path, member=member, data=b"AA==", headers=headers)
        assert answered == (403, "MUSTER-HLT-001")


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
    "path", ["/", "/api/v1/", "/api/v1/operator", "/api/v1/devices/a/b", "/v1/enrollments", "/openapi.json"]
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


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "before=x", "before=-1", "all=yes", "other=1", f"before={'9' * 16}"]
)
async def test_a_question_for_findings_of_another_shape_is_refused(client, query):
    assert (await client.code("operator", "GET", f"/api/v1/findings?{query}", role="viewer"))[0] == 400


async def test_a_viewer_reads_findings_and_closes_none(client):
    assert (await client.call("operator", "GET", "/api/v1/findings", role="viewer"))[0] == 200
    assert (await client.code("operator", "POST", "/api/v1/findings/1/close", role="viewer"))[0] == 403
    assert (await client.code("operator", "POST", "/api/v1/findings/1/close", role="operator"))[0] == 404
    assert (await client.code("operator", "POST", "/api/v1/findings/one/close", role="operator"))[0] == 400


async def test_open_findings_are_measured(client):
    _, _, body = await client.call("operator", "GET", "/metrics", role="viewer")
    assert 'muster_findings_open{kind="two-sessions"} 0.0' in body.decode()


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


async def test_all_senders_together_ask_for_challenges_at_the_configured_rate(service):
    limits = replace(service.config.limits, enrollments_per_second=1)
    body = {"ak_public": "AAAA", "pcr_banks": ["sha256"]}
    async with serving(replace(service, config=replace(service.config, limits=limits))) as client:
        answers = [await client.call("device", "POST", "/v1/enrollments", json=body) for _ in range(20)]
        assert {status for status, _, _ in answers} == {400, 429}
        _, headers, refusal = next(answer for answer in answers if answer[0] == 429)
        assert refusal["code"] == "MUSTER-ACC-006"
        assert int(headers["Retry-After"]) >= 1
        # who was challenged already is not held up by who asks
        assert (await client.code("device", "POST", "/v1/enrollments/abc/evidence", json={}))[0] == 400


@pytest.mark.parametrize("name", ["enrollments_per_second", "requests_per_second_per_address"])
def test_a_rate_of_nothing_is_refused_at_the_start(name):
    with pytest.raises(ConfigurationRefused, match=name):
        parse_config(f'service_name = "a.test"\n[limits]\n{name} = 0\n', "muster.toml")


async def test_a_token_that_is_away_is_said_to_who_asks_the_director(client, service, tmp_path, monkeypatch):
    def away(*_, **__):
        raise TokenUnavailable("gone")

    monkeypatch.setattr(updates, "director_metadata", away)
    member = await fleet.device(service, tmp_path, "d-director")
    path = "/ota/director/metadata/timestamp.json"
    status, headers, body = await client.call("device", "GET", path, member=member)
    assert (status, body["code"]) == (503, "MUSTER-ISS-002")
    assert int(headers["Retry-After"]) >= 1


async def test_a_connection_that_a_retired_ca_opened_opens_nothing_more(client, service, tmp_path):
    """It was open already when the CA was retired: the handshake of a new one fails before."""
    held = service.authorities._all
    retired = tuple(replace(one, state=State.RETIRED) if one.kind == "issuing" else one for one in held)
    path = "/ota/director/metadata/timestamp.json"
    member = await fleet.device(service, tmp_path, "d-1")
    assert (await client.call("device", "GET", path, member=member))[0] == 200
    service.authorities._all = retired
    try:
        assert await client.code("device", "GET", path, member=member) == (401, "MUSTER-ACC-001")
    finally:
        service.authorities._all = held
