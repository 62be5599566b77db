"""IMA logs with evidence: asked for by the policy, replayed to the quoted PCR 10, kept once, bounded in waiting."""

import hashlib
import json
from datetime import timedelta

import pytest
from sqlalchemy import select

from lab.ekca import create_ek_ca
from lab.ima import entry_of, measure_file, start_ima
from lab.swtpm import fresh_tpm
from provisioning import enrollment, logs, outbox
from provisioning.app.compose import clock as system_clock
from provisioning.attestation.evidence import OpenChallenge
from provisioning.db import enrollments, policies
from provisioning.db import logs as stored
from provisioning.logs import UPLOADS_KEPT_SECONDS, UPLOADS_MOST
from provisioning.refusals import (
    ImaLogDoesNotReplay,
    ImaLogMalformed,
    ImaLogMissing,
    ImaNotAccepted,
    RequestMalformed,
    RequestTooLarge,
    TooManyRequests,
)
from tests.support import fleet, http
from tests.support.attestation import Device, answer, policy_text
from tests.support.http import connect
from tests.support.listeners import serving
from tests.support.service import Clock, make_installation, registered, running_service
from wire.messages import EVIDENCE_BODY_MOST, IMA_EVIDENCE_BODY_MOST, IMA_LOG_MOST, EnrollmentRequest

FILE, DIGEST = "/usr/bin/gateway", hashlib.sha256(b"gateway").digest()
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def ek_ca(tmp_path_factory):
    return create_ek_ca(tmp_path_factory.mktemp("ek-ca") / "ca")


@pytest.fixture(scope="module")
def tpm(ek_ca, tmp_path_factory):
    with fresh_tpm(ek_ca) as running:
        log = tmp_path_factory.mktemp("ima") / "log"
        with running.esapi() as esapi:
            start_ima(esapi, log)
            measure_file(esapi, log, FILE, DIGEST)
        running.ima = log.read_bytes()
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    clock = Clock(system_clock())
    with running_service(make_installation(tmp_path_factory.mktemp("ima") / "D"), clock) as made:
        yield made


@pytest.fixture(autouse=True)
def _its_own_time(service):
    """A test that looks ahead leaves the time to the next: TLS goes by the real one."""
    before = service.clock.now
    yield
    service.clock.now = before


@pytest.fixture(scope="module")
def policy(ek_ca, tpm):
    def text(**changes):
        values = {pcr: tpm.pcrs()[pcr] for pcr in range(8)}
        written = policy_text(ek_ca.root_pem.read_text(), values, enrollments_per_day="1000", **changes)
        zeros = "0" * 64
        return f'{written}\n"8" = ["{zeros}"]\n"9" = ["{zeros}"]\n"10" = []\n'

    return text


@pytest.fixture
def device(tpm):
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as opened:
        yield opened


_KNOWN = []


def without_pcr_10(text):
    """Where no log is asked for nothing judges PCR 10."""
    return text.replace('"10" = []', "")


async def enrolling(service, device, text):
    """Step 1 under this policy; the challenge as the device sees it."""
    if not _KNOWN:
        _KNOWN.append(await registered(service, text, ("A-1", device.certificate)))
    else:
        now = int(service.clock().timestamp())
        await service.ledger.write(
            lambda tx: policies.add_policy(tx, model="gateway", group=None, text=text, now=now, by="test")
        )
    ak = device.ak()
    request = EnrollmentRequest(ak_public=ak.public, pcr_banks=("sha256",), ek_certificate=device.certificate)
    challenge = await enrollment.begin_enrollment(service, request, source="test")
    secret = device.open(ak, challenge.credential_blob, challenge.encrypted_secret)
    known = (challenge.enrollment_id, challenge.audience, challenge.nonce, secret, ak.public, challenge.pcr_selection)
    return ak, OpenChallenge("enroll", *known, challenge.boot_log, "", challenge.ima_log)


async def send(service, device, ak, challenge, **logs_of):
    evidence = answer(device, ak, device.key(), challenge, **logs_of)
    return await enrollment.complete_enrollment(
        service, challenge.enrollment_id, evidence, arrived=service.clock(), source="test"
    )


REQUIRED = {"ima_log": '"required"'}


async def test_the_tail_that_was_not_quoted_is_passed_over_and_the_log_is_kept_once(service, device, tpm, policy):
    ak, challenge = await enrolling(service, device, policy(**REQUIRED))
    assert challenge.ima_log == "required"
    longer = tpm.ima + entry_of("/usr/bin/evil", bytes(32))[0]
    await send(service, device, ak, challenge, ima_log=longer)
    (row,) = await service.store.read(lambda tx: enrollments.attestations_of(tx, _KNOWN[0][0], 1))
    assert row.ima_log_sha256 == hashlib.sha256(longer).hexdigest()
    assert await service.store.read(lambda tx: stored.content_of(tx, row.ima_log_sha256)) == longer
    assert len(row.evidence) < 8192  # the evidence names it


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda _: {}, ImaLogMissing),
        (lambda _: {"ima_log_sha256": b"\7" * 32}, ImaLogMissing),
        (lambda ima: {"ima_log": ima[:-1]}, ImaLogMalformed),
        (lambda ima: {"ima_log": b""}, ImaLogDoesNotReplay),
        (lambda ima: {"ima_log": ima, "ima_log_sha256": b"\7" * 32}, ImaLogMalformed),
        (lambda ima: {"ima_log": ima.replace(DIGEST, bytes(32))}, ImaLogDoesNotReplay),
        (lambda ima: {"ima_log": entry_of("boot_aggregate", bytes(32))[0]}, ImaLogDoesNotReplay),
    ],
    ids=["none", "named and not here", "cut", "empty", "another hash", "another file", "too short"],
)
async def test_a_log_that_does_not_lead_to_the_quoted_value_is_refused(service, device, tpm, policy, change, refusal):
    ak, challenge = await enrolling(service, device, policy(**REQUIRED))
    with pytest.raises(refusal):
        await send(service, device, ak, challenge, **change(tpm.ima))


async def test_a_file_that_the_policy_does_not_list_is_refused_and_a_listed_one_is_not(service, device, tpm, policy):
    listed = f'{policy()}\n[ima]\nfiles = "{DIGEST.hex()}  {FILE}"\n'
    ak, challenge = await enrolling(service, device, listed)
    await send(service, device, ak, challenge, ima_log=tpm.ima)
    ak, challenge = await enrolling(service, device, listed.replace(FILE, "/usr/bin/other"))
    with pytest.raises(ImaNotAccepted):
        await send(service, device, ak, challenge, ima_log=tpm.ima)


async def test_where_no_log_is_asked_for_none_is_looked_at(service, device, policy):
    ak, challenge = await enrolling(service, device, without_pcr_10(policy()))
    assert challenge.ima_log == "none"
    await send(service, device, ak, challenge, ima_log=b"garbage", boot_log=b"garbage", boot_log_sha256=b"\7" * 32)
    (row,) = await service.store.read(lambda tx: enrollments.attestations_of(tx, _KNOWN[0][0], 1))
    assert (row.boot_log_sha256, row.ima_log_sha256) == (None, None)
    ak, challenge = await enrolling(service, device, policy(ima_log='"optional"'))
    await send(service, device, ak, challenge)


async def test_an_uploaded_log_is_found_by_its_hash_and_stays(service, device, tpm, policy, tmp_path):
    member = await fleet.device(service, tmp_path, "d-upload")
    content = tpm.ima + entry_of("/usr/bin/later", b"\1" * 32)[0]
    digest = hashlib.sha256(content)
    ak, challenge = await enrolling(service, device, policy(**REQUIRED))
    async with serving(service) as client:
        path = f"/v1/logs/{digest.hexdigest()}"
        assert (await client.call("device", "PUT", path, member=member, data=content))[0] == 204
    assert await service.store.read(lambda tx: stored.uploads_of(tx, "d-upload")) == 1
    await send(service, device, ak, challenge, ima_log_sha256=digest.digest())
    assert await service.store.read(lambda tx: stored.uploads_of(tx, "d-upload")) == 0
    await _later(service)
    assert await service.store.read(lambda tx: stored.content_of(tx, digest.hexdigest())) == content


async def test_of_the_logs_of_one_boot_the_longest_is_stored_and_the_others_as_its_beginnings(
    service, device, tpm, policy
):
    more = [entry_of(f"/usr/bin/{number}", b"\2" * 32)[0] for number in range(3)]
    grown = [tpm.ima + b"".join(more[:number]) for number in range(1, 4)]
    other_boot = tpm.ima + entry_of("/usr/bin/another", b"\3" * 32)[0]
    names = [hashlib.sha256(content).hexdigest() for content in (*grown, other_boot)]
    for content in (*grown, other_boot, grown[0]):
        ak, challenge = await enrolling(service, device, policy(**REQUIRED))
        await send(service, device, ak, challenge, ima_log=content)
        service.clock.now += timedelta(seconds=1)  # which of two was the newest stands in the record, in seconds

    def read(tx):
        bodies = [stored.bodies_of(tx, [name]).pop() for name in names]
        sizes = {
            row.sha256: len(row.content)
            for row in tx.execute(select(stored.content_row).where(stored.content_row.c.sha256.in_(names)))
        }
        return bodies, sizes, [stored.content_of(tx, one) for one in names]

    bodies, sizes, contents = await service.store.read(read)
    assert contents == [*grown, other_boot]
    assert len(set(bodies[:3])) == 1
    assert bodies[3] != bodies[0]
    assert sizes == {names[2]: len(grown[2]), names[3]: len(other_boot)}


async def _later(service):
    service.clock.now += timedelta(seconds=UPLOADS_KEPT_SECONDS + 1)
    await outbox.expire(service)


async def test_a_device_uploads_so_many_logs_that_nothing_names_and_they_go(service):
    names = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(UPLOADS_MOST + 1)]
    for number, name in enumerate(names[:-1]):
        await logs.store_log(service, "d-busy", name, b"%d" % number)
    await logs.store_log(service, "d-busy", names[0], b"0")  # the same again
    with pytest.raises(TooManyRequests):
        await logs.store_log(service, "d-busy", names[-1], b"%d" % UPLOADS_MOST)
    await logs.store_log(service, "d-other", names[-1], b"%d" % UPLOADS_MOST)
    await _later(service)
    for name in names:
        assert await service.store.read(lambda tx, one=name: stored.content_of(tx, one)) is None
    await logs.store_log(service, "d-busy", names[-1], b"%d" % UPLOADS_MOST)


async def test_an_upload_that_comes_again_is_young_again(service):
    name = hashlib.sha256(b"again").hexdigest()
    await logs.store_log(service, "d-again", name, b"again")
    service.clock.now += timedelta(seconds=UPLOADS_KEPT_SECONDS - 1)
    await logs.store_log(service, "d-again", name, b"again")
    service.clock.now += timedelta(seconds=2)
    await outbox.expire(service)
    assert await service.store.read(lambda tx: stored.content_of(tx, name)) == b"again"


async def announced(client, line, size, member=None):
    """Status and code for a request of which only the head is sent: its size is judged before its body is read."""
    context = fleet.anonymous(client.root) if member is None else member.context(client.root)
    head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n"
    reader, writer = await connect(client.ports.device, ssl=context)
    writer.write(f"{head}\r\n".encode())
    status, _, body = await http.answer(reader)
    writer.close()
    return status, json.loads(body)["code"]


async def test_a_body_is_as_large_as_its_challenge_makes_room_for(service, device, policy, tmp_path):
    _, small = await enrolling(service, device, without_pcr_10(policy()))
    _, large = await enrolling(service, device, policy(**REQUIRED))
    member = await fleet.device(service, tmp_path, "d-body")
    too_large, malformed = (413, RequestTooLarge.code), (400, RequestMalformed.code)
    async with serving(service) as client:
        paths = [f"/v1/enrollments/{one}/evidence" for one in (small.enrollment_id, large.enrollment_id, "x")]
        for path, most in zip(paths, (EVIDENCE_BODY_MOST, IMA_EVIDENCE_BODY_MOST, EVIDENCE_BODY_MOST), strict=True):
            assert await announced(client, f"POST {path}", most + 1) == too_large
        assert await announced(client, f"PUT /v1/logs/{'0' * 64}", IMA_LOG_MOST + 1, member) == too_large
        body = b"x" * (EVIDENCE_BODY_MOST + 1)
        assert await client.code("device", "POST", paths[1], data=body, headers=JSON) == malformed
