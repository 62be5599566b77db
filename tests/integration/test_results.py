"""Attestation results of an installation with real parts: who gets one, what stands in it, whose key signs it."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography import x509

from hsm.kinds import KeyKind
from provisioning import results
from provisioning.access import Role
from provisioning.app import trusting
from provisioning.attestation.jwk import thumbprint
from provisioning.attestation.relying import Asked, parse_key_set, verify_result
from provisioning.attestation.results import Tier
from provisioning.authorities import RESULTS
from provisioning.cli.app import run
from provisioning.config import load_config
from provisioning.db import authorities, devices, enrollments, policies
from provisioning.issuance.tbs import assemble
from provisioning.refusals import (
    AttestationStale,
    DeviceOutOfService,
    NeverAttested,
    NoCertificateInForce,
    NotFound,
    Refusal,
    RequestMalformed,
    ResultsKeyMissing,
    StillInUse,
)
from provisioning.revoking import release_device, revoke_device
from provisioning.rollover import change, prepare, status
from tests.support.cli import Person
from tests.support.cli import serving as served
from tests.support.enrolled import copy_of, make_history
from tests.support.listeners import service_with_operators, serving
from tests.support.service import running_service
from wire.codec import encode

ME, NONCE = "rp.example", "6eXvQ0zQ0bM"


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    return make_history(tmp_path_factory.mktemp("results"))


@pytest.fixture
def directory(history, tmp_path):
    return copy_of(history, tmp_path / "D")


@pytest.fixture
def service(directory):
    with running_service(directory) as made:
        yield made


def enrolled(service, state="active"):
    return next(row for row in service.store.read_now(lambda tx: devices.after(tx, "", 10)) if row.state == state)


def keys_of(service):
    return parse_key_set(encode(results.public_keys(service)))


async def asked(service, name=None, nonce=NONCE):
    signed = await results.attestation_result(
        service, name or enrolled(service).id, audience=ME, nonce=nonce, by="test"
    )
    asker = Asked(service.config.service_name, ME, nonce)
    return verify_result(signed.token, keys_of(service), asker, service.clock())


def at(service, **later):
    moment = service.clock() + timedelta(**later)
    return replace(service, clock=lambda: moment)


# --- what stands in it ------------------------------------------------------------------------------------------------


async def test_a_result_names_device_key_and_policy_and_ends_in_time(service):
    device = enrolled(service)
    (row,) = service.store.read_now(lambda tx: enrollments.certificates_of(tx, device.id))
    certificate = x509.load_der_x509_certificate(assemble(row.tbs, row.signature))
    found = await asked(service)
    assert found.device == f"spiffe://muster.test/device/{device.id}"
    assert found.jkt == thumbprint(certificate.public_key())
    assert found.status is Tier.AFFIRMING
    assert found.expires_at - found.issued_at == timedelta(seconds=service.config.lifetimes.result_seconds)
    told = found.claims["submods"]["tpm"]["ear_verifier_claims"]
    assert (told["urn:muster:health"], told["urn:muster:attested"]) == ("healthy", device.last_attested_at)
    assert (told["urn:muster:policy"]["version"], told["urn:muster:policy"]["in_force"]) == (1, True)


async def test_a_result_ends_with_the_attestation(service):
    fresh = timedelta(seconds=service.config.lifetimes.attestation_seconds)
    attested = datetime.fromtimestamp(enrolled(service).last_attested_at, UTC)
    late = replace(service, clock=lambda: attested + fresh - timedelta(seconds=90))
    assert (await asked(late)).expires_at == attested + fresh
    with pytest.raises(AttestationStale):
        await asked(replace(service, clock=lambda: attested + fresh))


async def test_a_result_ends_with_the_certificate(service):
    device = enrolled(service)
    await service.ledger.write(
        lambda tx: devices.change(tx, device.id, last_attested_at=device.last_attested_at + 40 * 86400)
    )
    end = max(row.not_after for row in service.store.read_now(lambda tx: enrollments.certificates_of(tx, device.id)))
    late = replace(service, clock=lambda: datetime.fromtimestamp(end - 90, UTC))
    assert (await asked(late)).expires_at == datetime.fromtimestamp(end, UTC)
    with pytest.raises(NoCertificateInForce):
        await asked(replace(service, clock=lambda: datetime.fromtimestamp(end, UTC)))


@pytest.mark.parametrize(
    ("health", "status"),
    [("unknown", Tier.WARNING), ("failing", Tier.CONTRAINDICATED), ("quarantined", Tier.CONTRAINDICATED)],
)
async def test_a_device_that_failed_since_gets_a_result_that_says_so(service, health, status):
    await service.ledger.write(lambda tx: devices.change(tx, enrolled(service).id, health=health))
    assert (await asked(service)).status is status


async def test_a_policy_that_was_changed_since_is_said(service):
    device = enrolled(service)
    text = service.store.read_now(lambda tx: policies.newest_policy(tx, device.model, None)).text
    await service.ledger.write(lambda tx: policies.add_policy(tx, model=device.model, text=text, now=1, by="test"))
    told = (await asked(service)).claims["submods"]["tpm"]["ear_verifier_claims"]["urn:muster:policy"]
    assert (told["version"], told["in_force"]) == (1, False)


# --- who gets none ----------------------------------------------------------------------------------------------------


async def test_of_a_revoked_device_nothing_is_said(service):
    with pytest.raises(DeviceOutOfService) as caught:
        await asked(service, enrolled(service, "revoked").id)
    assert caught.value.actual == "revoked"


async def test_of_a_device_on_hold_nothing_is_said_until_its_release(service):
    device = enrolled(service)
    await revoke_device(service, device.id, "certificate-hold", by="test")
    with pytest.raises(DeviceOutOfService) as caught:
        await asked(service, device.id)
    assert caught.value.actual == "on hold"
    await release_device(service, device.id, by="test")
    assert (await asked(service, device.id)).status is Tier.AFFIRMING


async def test_of_a_device_that_never_attested_nothing_is_said(service):
    device = enrolled(service)
    await service.ledger.write(lambda tx: devices.change(tx, device.id, last_attested_at=None))
    with pytest.raises(NeverAttested):
        await asked(service, device.id)


async def test_a_device_whose_certificates_are_superseded_has_no_key(service):
    device = enrolled(service)
    await service.ledger.write(lambda tx: enrollments.supersede(tx, device.id, but="", revoke_at=2**40))
    with pytest.raises(NoCertificateInForce):
        await asked(service, device.id)


async def test_a_device_that_is_not_there_is_not_found(service):
    with pytest.raises(NotFound):
        await asked(service, "nobody")


# --- the key ----------------------------------------------------------------------------------------------------------


async def _drop_key(service):
    """As an installation from before there were results."""
    table = authorities.authority
    await service.ledger.write(lambda tx: tx.execute(table.delete().where(table.c.kind == RESULTS)))
    await service.authorities.refresh(service.store)


def test_an_older_installation_gets_its_key_by_the_cure_that_the_refusal_names(directory):
    """Its token holds a key of that name already: prepare finds it again, as after a crash."""
    with running_service(directory) as service:
        asyncio.run(_drop_key(service))
        with pytest.raises(ResultsKeyMissing) as caught:
            asyncio.run(asked(service))
        assert "muster ca prepare results, then muster ca activate results" in caught.value.cure
        assert results.public_keys(service) == {"keys": []}

    async def cure(service):
        row = await prepare.prepare(service, RESULTS, by="owner")
        await prepare.note_key(service, row.name, row.name, None, by="owner")
        await change.activate(service, row.name, force=False, by="owner")
        return row.name, await asked(service)

    with running_service(directory) as service:  # it starts without that key
        name, found = asyncio.run(cure(service))
    assert (name, found.status) == ("results", Tier.AFFIRMING)


def test_the_key_before_stays_in_the_key_set_as_long_as_its_results_are_good(directory):
    made = trusting.make_key(directory, load_config(directory), RESULTS, "results-2", KeyKind.RSA3072)
    other = trusting.make_key(directory, load_config(directory), "issuing", "issuing-9", KeyKind.P384)
    with running_service(directory) as service:
        asyncio.run(_roll_over(service, made.key, other.key))


async def _roll_over(service, key, other):
    before = await asked(service)
    row = await prepare.prepare(service, RESULTS, by="owner")
    with pytest.raises(RequestMalformed, match="not a message") as caught:
        await prepare.note_key(service, row.name, other, None, by="owner")
    assert "P-256" in caught.value.expected
    await prepare.note_key(service, row.name, key, None, by="owner")
    assert len(keys_of(service)) == 2  # it is known before it signs, and on P-256 whatever was asked for
    assert (await asked(service)).key_id == before.key_id
    await change.activate(service, row.name, force=False, by="owner")
    after = await asked(service)
    assert after.key_id != before.key_id
    assert keys_of(service).keys() == {before.key_id, after.key_id}
    rows = {row["name"]: row["next"] for row in (await status.show(service))["authorities"]}
    assert rows["results"] == "retire it when the last of its results has ended: muster ca retire results"
    with pytest.raises(StillInUse):
        await change.retire(service, "results", force=False, by="owner")
    later = at(service, seconds=service.config.lifetimes.result_seconds + 2)
    await change.retire(later, "results", force=False, by="owner")
    assert keys_of(service).keys() == {after.key_id}


# --- over HTTP, and by the commands -----------------------------------------------------------------------------------


async def test_a_relying_party_asks_over_https_and_verifies_with_another_library(directory):
    with service_with_operators(directory) as service:
        device = enrolled(service)
        path = f"/api/v1/devices/{device.serial}/attestation-result"
        async with serving(service) as client:
            status, headers, body = await client.call(
                "operator", "GET", f"{path}?aud={ME}&nonce={NONCE}", role=Role.RELYING_PARTY.value
            )
            assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
            token = json.loads(body)["result"]
            bare = await client.call(
                "operator",
                "GET",
                f"{path}?aud={ME}",
                role=Role.RELYING_PARTY.value,
                headers={"Accept": "application/eat+jwt"},
            )
            assert bare[1]["Content-Type"] == "application/eat+jwt"
            public = await client.call("public", "GET", "/.well-known/jwks.json")
            assert (public[0], public[1]["Content-Type"]) == (200, "application/jwk-set+json")
            own = await client.call("operator", "GET", "/.well-known/jwks.json", role=Role.RELYING_PARTY.value)
            assert own[2] == public[2]
            for mistake in ("", "?nonce=12345678", f"?aud={ME}&nonce=short", "?aud=", f"?aud={ME}&aud=x", "?aud=a%20b"):
                found = await client.code("operator", "GET", path + mistake, role="relying-party")
                assert found == (400, RequestMalformed.code), mistake
            gone = f"/api/v1/devices/{enrolled(service, 'revoked').id}/attestation-result?aud={ME}"
            assert await client.code("operator", "GET", gone, role="viewer") == (409, DeviceOutOfService.code)
            assert await client.code("operator", "GET", f"{path}?aud={ME}") == (401, "MUSTER-ACC-001")
            assert (await client.code("operator", "GET", "/api/v1/devices", role="relying-party"))[0] == 403
    keys = jwt.PyJWKSet.from_dict(json.loads(public[2]))
    for made in (token, bare[2].decode()):
        key = keys[jwt.get_unverified_header(made)["kid"]]
        claims = jwt.decode(made, key, algorithms=["ES256"], audience=ME, issuer="muster.test")
        assert claims["sub"].endswith(device.id)


async def test_a_relying_party_that_asks_too_often_waits(directory):
    with service_with_operators(directory) as made:
        service = replace(made, config=replace(made.config, limits=replace(made.config.limits, results_per_second=1)))
        path = f"/api/v1/devices/nobody/attestation-result?aud={ME}"
        async with serving(service) as client:
            codes = [(await client.code("operator", "GET", path, role="relying-party"))[0] for _ in range(4)]
            assert codes[:2] == [404, 404]
            assert 429 in codes[2:]
            assert (await client.code("operator", "GET", path, role="viewer"))[0] == 404  # another one's allowance


def _verified(capsys, *arguments):
    capsys.readouterr()
    status = run(["result", "verify", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command_verifies_what_was_signed(directory, tmp_path, capsys):
    with running_service(directory) as service:
        device = enrolled(service).id
        ask = results.attestation_result(service, device, audience=ME, nonce=NONCE, by="test")
        token = asyncio.run(ask).token
        asyncio.run(service.ledger.write(lambda tx: devices.change(tx, device, health="failing")))
        bad = asyncio.run(results.attestation_result(service, device, audience=ME, nonce=None, by="test")).token
        (tmp_path / "keys").write_bytes(encode(results.public_keys(service)))
        (kid,) = keys_of(service)
    keys = ("--jwks", str(tmp_path / "keys"), "--aud", ME)
    status, out, _ = _verified(capsys, token, *keys, "--nonce", NONCE, "--issuer", "muster.test", "--key", kid)
    assert (status, f"spiffe://muster.test/device/{device}" in out, "affirming" in out) == (0, True, True)
    status, out, _ = _verified(capsys, token, *keys, "--nonce", NONCE, "-o", "json")
    assert (status, json.loads(out)["eat_nonce"]) == (0, NONCE)
    status, out, err = _verified(capsys, bad, *keys)
    assert (status, "contraindicated" in out, "MUSTER-RES-020" in err) == (1, True, True)
    assert _verified(capsys, bad, *keys, "--accept", "contraindicated")[0] == 0
    for wrong, code in (
        ((token, *keys), "MUSTER-RES-016"),
        ((token, *keys, "--nonce", "87654321"), "MUSTER-RES-016"),
        ((token, *keys, "--nonce", NONCE, "--key", "A" * 43), "MUSTER-RES-012"),
        ((token, *keys, "--nonce", NONCE, "--issuer", "other.test"), "MUSTER-RES-014"),
        ((token, *keys[:3], "other", "--nonce", NONCE), "MUSTER-RES-015"),
    ):
        status, _, err = _verified(capsys, *wrong)
        assert (status, code in err) == (1, True), err


def test_a_person_asks_for_a_result_and_a_relying_party_verifies_it_with_the_published_keys(
    directory, tmp_path, capsys
):
    with running_service(directory) as service:
        device, revoked = enrolled(service), enrolled(service, "revoked")
    person = Person(directory.root, capsys)
    with served(directory, tmp_path / "log"):
        token = person.types("devices", "result", device.serial, "--aud", "https://rp.example/a?b&c", "--nonce", NONCE)
        told = person.asks("devices", "result", device.id, "--aud", ME)
        keys = f"{json.loads(directory.endpoints.read_text())['public']}/.well-known/jwks.json"
        url = ("--jwks", keys, "--nonce", NONCE)
        status, out, _ = _verified(capsys, token.strip(), *url, "--aud", "https://rp.example/a?b&c")
        assert (status, device.id in out) == (0, True)
        assert _verified(capsys, told["result"], "--jwks", keys, "--aud", ME)[0] == 0
        person.types("devices", "result", revoked.id, "--aud", ME, status=1)
        assert DeviceOutOfService.code in person.err
        person.types("devices", "result", device.id, "--aud", ME, "--nonce", "short", status=1)
        assert RequestMalformed.code in person.err


@pytest.mark.parametrize(
    ("source", "status", "says"),
    [
        ("http://ca.example/.well-known/jwks.json", 2, "by plain http anybody may have written it"),
        ("http://127.0.0.1:1/.well-known/jwks.json", 3, "does not give a key set"),
        ("https://127.0.0.1:1/", 3, "does not give a key set"),
        ("/nowhere/keys", 2, "does not exist"),
    ],
)
def test_a_key_set_that_cannot_be_had_is_said(capsys, source, status, says):
    found = _verified(capsys, "a.b.c", "--jwks", source, "--aud", ME)
    assert (found[0], says in found[2]) == (status, True), found[2]


def test_every_refusal_of_a_result_names_a_cure():
    assert [kind.__name__ for kind in Refusal.__subclasses__() if "-RES-" in kind.code and not kind.cure] == []
