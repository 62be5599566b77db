"""OCSP over the public listener: what relying parties' own tools read, what is kept, hostile requests."""

import asyncio
import base64
import random
import subprocess
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from urllib.parse import quote

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.x509 import ocsp as x509_ocsp

from provisioning import ocsp, revoking
from provisioning.db import authorities, enrollments, revocations
from provisioning.http import ocsp as over_http
from provisioning.issuance.ocsp import REQUEST_MOST, UNAUTHORIZED
from provisioning.refusals import OcspRequestMalformed, SigningUnavailable, TooManyRequests
from tests.support import fleet
from tests.support.listeners import Client, service_with_operators, serving
from tests.support.ocsp import SHA1, SHA256, cert_id, lint, nonce, request
from tests.support.service import Clock, make_installation

REQUEST, RESPONSE = "application/ocsp-request", "application/ocsp-response"
GENEROUS = "[limits]\nocsp_signatures_per_second = 100000\nocsp_signatures_per_second_per_address = 100000\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("ocsp") / "D", GENEROUS)


@pytest.fixture(scope="module")
def service(directory):
    with service_with_operators(directory) as made:
        asyncio.run(ocsp.renew_responder(made))
        yield made


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


@pytest.fixture
async def member(service, tmp_path):
    """A device of this test's own."""
    return await fleet.device(service, tmp_path, f"d-{random.randrange(10**12)}")


@pytest.fixture
async def responder(service):
    made = ocsp.Responder(service)
    yield made
    await made.stop()


def asks(service, serial, **options):
    serial = int(serial, 16) if isinstance(serial, str) else serial
    return request(cert_id(service.authorities.active.certificate, serial), **options)


async def post(client: Client, body, **headers):
    return await client.call("public", "POST", "/ocsp", data=body, headers={"Content-Type": REQUEST, **headers})


async def get(client: Client, body, **headers):
    path = "/ocsp/" + quote(base64.b64encode(body).decode(), safe="")
    url = aiohttp.client.URL(client.url("public", path), encoded=True)
    async with client.session.get(url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


def status(der):
    read = x509_ocsp.load_der_ocsp_response(der)
    assert lint(der) == []
    return read.certificate_status.name


async def answered(responder, service, body):
    return (await responder.answer(body, "192.0.2.1", service.clock())).der


# --- the tools that relying parties have --------------------------------------------------------------------------


async def by_openssl(client, service, member, *options):
    ca = service.directory.ca
    command = ["openssl", "ocsp", *options, "-issuer", ca / "issuing.pem", "-cert", member.certificate_file]
    command += ["-url", client.url("public", "/ocsp"), "-CAfile", ca / "root.pem", "-verify_other", ca / "issuing.pem"]
    done = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, text=True, timeout=20)
    assert "Response verify OK" in done.stderr, done.stderr
    return done.stdout.split(": ")[1].split("\n")[0]


@pytest.mark.parametrize("options", [["-no_nonce"], [], ["-sha256", "-no_nonce"], ["-sha256"]], ids=" ".join)
async def test_openssl_reads_good_held_released_and_revoked(client, service, member, options):
    async def reads():
        await asyncio.sleep(ocsp.FOLLOW_SECONDS)
        return await by_openssl(client, service, member, *options)

    assert await reads() == "good"
    await revoking.revoke_device(service, member.name, "certificate-hold", by="test")
    assert await reads() == "revoked"
    await revoking.release_device(service, member.name, by="test")
    assert await reads() == "good"
    await revoking.revoke_device(service, member.name, "key-compromise", by="test")
    assert await reads() == "revoked"


async def test_get_and_post_by_curl_are_the_same_answer(client, service, member, tmp_path):
    body = asks(service, member.serial)
    (tmp_path / "request").write_bytes(body)
    url = client.url("public", "/ocsp")
    posted = ["-H", f"Content-Type: {REQUEST}", "--data-binary", f"@{tmp_path / 'request'}", url]
    got = [f"{url}/{quote(base64.b64encode(body).decode(), safe='')}"]
    raw = ["--path-as-is", f"{url}/{base64.b64encode(body).decode()}"]
    answers = []
    for options in (posted, got, raw):
        command = ["curl", "-sSf", *options]
        done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=20)
        answers.append(done.stdout)
    assert len(set(answers)) == 1
    assert status(answers[0]) == "GOOD"


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serial", [1, 2**127 + 5, -1, 0])
async def test_a_serial_that_was_never_issued_is_unknown(client, service, serial):
    code, headers, der = await post(client, asks(service, serial))
    assert (code, headers["Content-Type"], status(der)) == (200, RESPONSE, "UNKNOWN")
    assert headers["Cache-Control"] == "no-store"


async def test_a_serial_that_is_reserved_and_not_issued_is_unknown(client, service, member):
    row = {"serial": "abcdef0123456789abcdef0123456789", "profile": "ldevid", "subject": "x", "key_id": "00"}
    row |= {
        "issuer": "issuing",
        "tbs": b"x",
        "not_before": 0,
        "not_after": 2**31,
        "reserved_at": 0,
        "state": "reserved",
    }
    await service.ledger.write(lambda tx: enrollments.add_certificate(tx, row))
    assert status((await post(client, asks(service, row["serial"])))[2]) == "UNKNOWN"


async def test_every_reason_is_said(client, service, tmp_path):
    for reason in ("key-compromise", "affiliation-changed", "superseded", "cessation-of-operation"):
        member = await fleet.device(service, tmp_path, f"d-{random.randrange(10**12)}")
        await revoking.revoke_certificate(service, member.serial, reason, by="test")
        await asyncio.sleep(ocsp.FOLLOW_SECONDS)
        read = x509_ocsp.load_der_ocsp_response((await post(client, asks(service, member.serial)))[2])
        assert read.revocation_reason.name.replace("_", "-") == reason


async def test_another_issuers_certificate_is_none_of_ours(client, service, member):
    root = service.authorities.named("root").certificate
    ours, theirs = cert_id(service.authorities.active.certificate, int(member.serial, 16)), cert_id(root, 7)
    for body in (request(theirs), request(ours, theirs), request(theirs, extensions=nonce(b"x"))):
        code, headers, der = await post(client, body)
        assert (code, der, headers["Cache-Control"]) == (200, UNAUTHORIZED, "no-store")
        assert x509_ocsp.load_der_ocsp_response(der).response_status is x509_ocsp.OCSPResponseStatus.UNAUTHORIZED


async def test_several_are_answered_in_one(client, service, tmp_path):
    issuer = service.authorities.active.certificate
    members = [await fleet.device(service, tmp_path, f"d-{random.randrange(10**12)}") for _ in range(2)]
    await revoking.revoke_device(service, members[1].name, "key-compromise", by="test")
    await asyncio.sleep(ocsp.FOLLOW_SECONDS)
    asked = [cert_id(issuer, int(member.serial, 16), kind) for member in members for kind in (SHA1, SHA256)]
    _, _, der = await post(client, request(*asked, cert_id(issuer, 5)))
    read = [single.certificate_status.name for single in x509_ocsp.load_der_ocsp_response(der).responses]
    assert read == ["GOOD", "GOOD", "REVOKED", "REVOKED", "UNKNOWN"]


@pytest.mark.parametrize("size", [1, 32, 128])
async def test_a_nonce_comes_back_in_an_answer_that_nobody_may_keep(client, service, member, size):
    said = bytes(range(size))
    _, headers, der = await post(client, asks(service, member.serial, extensions=nonce(said)))
    read = x509_ocsp.load_der_ocsp_response(der)
    assert read.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == said
    assert (headers["Cache-Control"], "ETag" in headers) == ("no-store", False)


async def test_the_responder_is_delegated_and_its_certificate_is_renewed_at_half_its_life(service, responder, member):
    clock = Clock(service.clock())
    later = replace(service, clock=clock)
    der = await answered(responder, service, asks(service, member.serial))
    (certificate,) = x509_ocsp.load_der_ocsp_response(der).certificates
    issuing = service.authorities.active.certificate
    certificate.verify_directly_issued_by(issuing)
    assert certificate.public_key() != issuing.public_key()
    assert certificate.extensions.get_extension_for_class(x509.OCSPNoCheck)
    first = await ocsp.responder_of(later, later.authorities.active, clock.now)
    half = timedelta(seconds=(first.not_after - first.not_before) / 2)
    for move, renewed in ((half - timedelta(days=1), False), (timedelta(days=2), True)):
        clock.now += move
        await ocsp.renew_responder(later)
        assert ((await ocsp.responder_of(later, later.authorities.active, clock.now)).serial != first.serial) is renewed


@pytest.mark.parametrize(("state", "expected"), [("retiring", "GOOD"), ("retired", None)])
async def test_a_retiring_authority_is_answered_for_and_a_retired_one_no_more(service, member, state, expected):
    issuing = service.authorities.active
    later = replace(service, clock=Clock(service.clock() + timedelta(days=100)))  # no responder's certificate is left

    async def stand(now):
        await service.ledger.write(lambda tx: authorities.change(tx, "issuing", state=now))
        await service.authorities.refresh(service.store)

    await stand(state)
    try:
        await ocsp.renew_responder(later)
        responder = ocsp.Responder(later)
        der = await answered(responder, later, request(cert_id(issuing.certificate, int(member.serial, 16))))
    finally:
        await stand("active")
    if expected is None:
        assert der == UNAUTHORIZED
        return
    read = x509_ocsp.load_der_ocsp_response(der)
    (delegate,) = read.certificates
    assert read.certificate_status.name == expected
    delegate.verify_directly_issued_by(issuing.certificate)
    delegate.public_key().verify(read.signature, read.tbs_response_bytes, ECDSA(hashes.SHA256()))


async def test_without_a_responders_certificate_there_is_no_answer(service, member):
    later = replace(service, clock=Clock(service.clock() + timedelta(days=1000)))
    with pytest.raises(SigningUnavailable):
        await answered(ocsp.Responder(later), later, asks(service, member.serial))


# --- what is kept -------------------------------------------------------------------------------------------------


async def test_an_answer_is_kept_and_says_for_how_long(client, service, member):
    body = asks(service, member.serial)
    _, headers, first = await post(client, body)
    code, again, second = await get(client, body)
    assert (code, second) == (200, first)
    read = x509_ocsp.load_der_ocsp_response(first)
    left = read.next_update_utc - service.clock()
    seconds = int(headers["Cache-Control"].split(",")[0].removeprefix("max-age="))
    assert timedelta(0) < timedelta(seconds=seconds) < left
    assert headers["Cache-Control"].split(", ")[1:] == ["public", "no-transform", "must-revalidate"]
    assert again["ETag"] == headers["ETag"]
    assert again["Last-Modified"] == over_http._date(read.this_update_utc)
    assert again["Expires"] == over_http._date(read.next_update_utc)
    assert (await get(client, body, **{"If-None-Match": again["ETag"]}))[0] == 304
    assert (await get(client, body, **{"If-None-Match": '"other"'}))[0] == 200


async def test_what_changes_nothing_does_not_make_another_answer(service, responder, member):
    plain = asks(service, member.serial)
    kept = await answered(responder, service, plain)
    name = b"\xa1\x04\xa4\x02\x30\x00"  # a requestor's name: the same question in other bytes
    assert await answered(responder, service, asks(service, member.serial, before=name)) == kept
    assert await answered(responder, service, asks(service, member.serial, extensions=nonce(b"x"))) != kept


async def test_other_workers_hear_of_a_change(service, member):
    workers = [ocsp.Responder(service) for _ in range(3)]
    body = asks(service, member.serial)
    for worker in workers:
        assert status(await answered(worker, service, body)) == "GOOD"
    await revoking.revoke_device(service, member.name, "key-compromise", by="test")
    await asyncio.sleep(ocsp.FOLLOW_SECONDS)
    for worker in workers:
        assert worker.kept(body, service.clock()) is None
        assert status(await answered(worker, service, body)) == "REVOKED"


async def test_an_answer_that_a_change_overtook_is_not_kept(service, member):
    async def sign(key, message):
        if not overtaken:
            overtaken.append(await revoking.revoke_device(service, member.name, "key-compromise", by="test"))
            responder._followed = float("-inf")
            await responder._follow()
        return await service.keys.sign(key, message)

    overtaken = []
    keys = SimpleNamespace(sign=sign, adopt=service.keys.adopt)
    responder = ocsp.Responder(replace(service, keys=keys))
    body = asks(service, member.serial)
    assert status(await answered(responder, service, body)) == "GOOD"
    assert responder.kept(body, service.clock()) is None
    assert status(await answered(responder, service, body)) == "REVOKED"


async def test_the_next_answer_is_made_while_the_old_one_is_given(service, member):
    clock = Clock(service.clock())
    responder = ocsp.Responder(replace(service, clock=clock))
    body = asks(service, member.serial)
    first = await responder.answer(body, "x", clock.now)
    clock.now += timedelta(seconds=service.config.lifetimes.ocsp_seconds / 2 + 1)
    assert (await responder.answer(body, "x", clock.now)).der == first.der
    await asyncio.gather(*responder._renewing.values())
    second = await responder.answer(body, "x", clock.now)
    assert second.this_update > first.this_update


async def test_an_answer_is_not_given_past_its_end(service, member):
    clock = Clock(service.clock())
    responder = ocsp.Responder(replace(service, clock=clock))
    body = asks(service, member.serial)
    first = await responder.answer(body, "x", clock.now)
    clock.now += timedelta(seconds=service.config.lifetimes.ocsp_seconds)
    assert (await responder.answer(body, "x", clock.now)).this_update > first.this_update
    await responder.stop()


async def test_without_the_hsm_what_is_kept_is_given_and_the_rest_is_unavailable(service, member, tmp_path):
    async def refuse(_key, _message):
        raise SigningUnavailable

    kept, other = asks(service, member.serial), asks(service, 12345)
    clock = Clock(service.clock())
    responder = ocsp.Responder(replace(service, clock=clock))
    der = await answered(responder, service, kept)
    responder._service = replace(service, clock=clock, keys=SimpleNamespace(sign=refuse, adopt=service.keys.adopt))
    clock.now += timedelta(seconds=service.config.lifetimes.ocsp_seconds * 0.75)
    assert (await responder.answer(kept, "x", clock.now)).der == der
    await asyncio.gather(*responder._renewing.values())
    assert (await responder.answer(kept, "x", clock.now)).der == der
    with pytest.raises(SigningUnavailable):
        await responder.answer(other, "x", clock.now)
    await revoking.revoke_device(service, member.name, "key-compromise", by="test")
    await asyncio.sleep(ocsp.FOLLOW_SECONDS)
    with pytest.raises(SigningUnavailable):  # never again good
        await responder.answer(kept, "x", clock.now)


async def test_only_so_many_answers_are_kept(service, tmp_path, monkeypatch):
    monkeypatch.setattr(ocsp, "KEPT_MOST", 3)
    responder = ocsp.Responder(service)
    members = [await fleet.device(service, tmp_path, f"d-{random.randrange(10**12)}") for _ in range(5)]
    for member in members:
        await answered(responder, service, asks(service, member.serial))
    kept = [responder.kept(asks(service, member.serial), service.clock()) is not None for member in members]
    assert kept == [False, False, True, True, True]
    assert len(responder._by_serial) == 3


# --- hostile ------------------------------------------------------------------------------------------------------


async def test_what_strangers_may_have_signed_is_limited_and_what_is_kept_is_not(service, member):
    limits = replace(service.config.limits, ocsp_signatures_per_second=20, ocsp_signatures_per_second_per_address=2)
    responder = ocsp.Responder(replace(service, config=replace(service.config, limits=limits)))
    kept = asks(service, member.serial)
    now = service.clock()
    await responder.answer(kept, "a", now)

    async def ask(times, serial, source, **options):
        for number in range(times):
            await responder.answer(asks(service, serial, **options), source.format(number), now)

    with pytest.raises(TooManyRequests) as caught:
        await ask(10, member.serial, "a", extensions=nonce(b"x"))
    assert caught.value.retry_after_seconds >= 1
    with pytest.raises(TooManyRequests):
        await ask(1, 99, "a")
    await ask(1, 99, "b")
    with pytest.raises(TooManyRequests):
        await ask(100, 99, "address {}")
    await responder.answer(kept, "a", now)


CODE = OcspRequestMalformed.code


async def test_a_malformed_request_is_a_400_with_its_code(client, service):
    good = asks(service, 5)
    for body in (b"", b"x", good[:-1], good + b"\x00", bytes(1000), b"\x30\x80\x00\x00"):
        code, _, problem = await post(client, body)
        assert (code, problem["code"]) == (400, CODE), body


@pytest.mark.parametrize("path", ["AAAA", "%00", "====", "a", "MDA", "%ff%ff", "//", "++++", "%2F"])
async def test_a_malformed_path_is_a_400_with_its_code(client, path):
    url = aiohttp.client.URL(client.url("public", f"/ocsp/{path}"), encoded=True)
    async with client.session.get(url) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (400, CODE)


@pytest.mark.parametrize("path", ["/ocsp", "/ocsp/" + "A" * 4000, "/ocsp/../x", "/ocsp/$"])
async def test_other_paths_are_refused_before_anybody_reads_them(client, path):
    url = aiohttp.client.URL(client.url("public", path), encoded=True)
    async with client.session.get(url) as answer:
        assert answer.status in (404, 405, 414, 400)


async def test_other_bodies_are_refused_before_anybody_reads_them(client, service):
    assert (await post(client, bytes(REQUEST_MOST + 1)))[0] == 413
    code, _, problem = await client.call(
        "public", "POST", "/ocsp", data=asks(service, 5), headers={"Content-Type": "x/y"}
    )
    assert (code, problem["code"]) == (415, "MUSTER-ACC-007")


async def test_thousands_of_hostile_bodies_are_refused_by_name_and_none_is_a_defect(client, service, member):
    """Never a 500: whole requests, cut, spliced, with octets changed, and noise."""
    draw = random.Random(7)
    whole = [
        asks(service, member.serial, extensions=nonce(bytes(16))),
        asks(service, member.serial),
        request(*(cert_id(service.authorities.active.certificate, n) for n in range(3))),
    ]
    seen = set()
    connector = aiohttp.TCPConnector(limit=8)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send(body):
            async with session.post(
                client.url("public", "/ocsp"), data=body, headers={"Content-Type": REQUEST}
            ) as answer:
                seen.add(answer.status)
                if answer.status != 200:
                    problem = await answer.json(content_type=None)
                    assert problem["code"] in (CODE, "MUSTER-ACC-006"), (problem, body.hex())

        for _ in range(300):
            await asyncio.gather(*(send(_hostile(draw, whole)) for _ in range(10)))
    assert seen <= {200, 400, 429}
    assert 400 in seen


def _hostile(draw, whole):
    body = bytearray(draw.choice(whole))
    match draw.randrange(5):
        case 0:
            return draw.randbytes(draw.randrange(200))
        case 1:
            return bytes(body[: draw.randrange(len(body))])
        case 2:
            at = draw.randrange(len(body))
            return bytes(body[:at]) + draw.randbytes(draw.randrange(8)) + bytes(body[at + draw.randrange(8) :])
        case _:
            for _ in range(draw.randrange(1, 4)):
                body[draw.randrange(len(body))] = draw.randrange(256)
            return bytes(body)


async def test_a_certificate_out_of_a_restored_crl_is_revoked(service, responder):
    """An entry that a published CRL had, of a certificate that this database does not know."""
    serial = "5" * 31
    await service.ledger.write(
        lambda tx: revocations.adopt(tx, "issuing", serial, at=1_700_000_000, reason="superseded")
    )
    assert status(await answered(responder, service, asks(service, serial))) == "REVOKED"
