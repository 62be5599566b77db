"""EST over HTTPS: which credential opens which route, and what a record asks for; nothing goes around attestation."""

import asyncio
import base64
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning import est, explaining, inventory, outbox, revoking, tokens
from provisioning.db import devices, enrollments, profiles
from provisioning.issuance.csr import verify_possession
from provisioning.issuance.est import csr_attributes
from provisioning.issuance.keys import KeyKind
from provisioning.refusals import (
    AttestationRequired,
    CredentialRefused,
    CsrRefused,
    DeviceKeyReused,
    DeviceRevoked,
    EnrollmentQuotaSpent,
    EstBodyMalformed,
    KeyKindRefused,
    KeyTooShort,
    NamesDiffer,
    NotAuthenticated,
    PassRequired,
    ProfileUnknown,
    RequestTooLarge,
    SigningUnavailable,
    StateConflict,
    TooManyRequests,
    UnsupportedMediaType,
)
from tests.support import fleet
from tests.support.certificates import assert_is_gateway
from tests.support.est import (
    EST,
    IssuedLike,
    ask,
    certificate_in,
    csr_for,
    enrolled,
    names_of,
    new_key,
    renewal_of,
    token_for,
)
from tests.support.listeners import service_with_operators, serving
from tests.support.service import NAME, make_installation
from wire.binding import key_id

OPERATIONS = ("cacerts", "csrattrs", "simplereenroll", "simpleenroll")  # the last one uses a token up


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with service_with_operators(make_installation(tmp_path_factory.mktemp("est") / "D")) as made:
        yield made


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


@pytest.fixture(scope="module")
def names():
    """A new serial each time."""
    numbers = iter(range(1000, 9999))
    return lambda: f"gw-{next(numbers)}"


def refused(answer, kind):
    status, _, body = answer
    assert status >= 400, body
    return body["code"] == kind.code


# --- route x credential -----------------------------------------------------------------------------------------------
# Each credential is made as its life would make it; what it opens stands in the table, and everything else is refused.

NO, FORBIDDEN, ATTEST, ENDED = NotAuthenticated, CredentialRefused, AttestationRequired, DeviceRevoked
MATRIX = {
    "none": (200, NO, NO, NO),
    "wrong token": (200, NO, NO, NO),
    "used token": (200, NO, NO, NO),
    "expired token": (200, NO, NO, NO),
    "revoked token": (200, NO, NO, NO),
    "another device's token": (200, NO, NO, NO),
    "an operator's token": (200, NO, NO, NO),
    "token": (200, 200, FORBIDDEN, 200),
    "token of an attested device": (200, 200, FORBIDDEN, ATTEST),
    "token of a revoked device": (200, ENDED, ENDED, ENDED),
    "station's certificate": (200, NO, NO, NO),
    "LDevID": (200, 200, 200, FORBIDDEN),
    "superseded LDevID": (200, 200, 200, FORBIDDEN),
    "LDevID superseded for too long": (200, NO, NO, NO),
    "revoked LDevID": (200, NO, NO, NO),
    "LDevID on hold": (200, NO, NO, NO),
    "LDevID of an attested device": (200, 200, ATTEST, ATTEST),
}


async def credential(name, service, client, folder, serial):
    """What `ask` takes to show it, and the certificate that a renewal names."""
    member, certificate = None, None
    if "LDevID" in name and "attested" in name:
        member = await fleet.device(service, folder, serial)
        return {"member": member}, certificate_of(member)
    if "LDevID" in name:
        member, certificate = await enrolled(service, client, folder, serial)
        await age(name, service, member)
        return {"member": member}, certificate
    if name == "station's certificate":
        member = await fleet.station(service, folder, serial)
        return {"member": member}, certificate_of(member)
    if name == "an operator's token":
        return {"headers": {"Authorization": "Bearer token-admin"}}, None
    if name == "none":
        return {}, None
    if name == "token of an attested device":
        await fleet.device(service, folder, serial)
    made = await token_for(service, serial)
    token, user = made["token"], serial
    if name == "wrong token":
        token = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    elif name == "another device's token":
        user = f"{serial}-other"
        await token_for(service, user)
    elif name == "used token":
        assert (await ask(client, "simpleenroll", csr_for(new_key()), user=(user, token)))[0] == 200
    elif name == "expired token":
        await sql(service, "update est_token set expires_at = 1 where device_id = ?", made["device"])
    elif name == "revoked token":
        await tokens.revoke_token(service, made["id"], by="test")
    elif name == "token of a revoked device":
        await revoking.revoke_device(service, serial, "key-compromise", by="test")
    return {"user": (user, token)}, None


async def age(name, service, member):
    at = int(service.clock().timestamp())
    if name == "revoked LDevID":
        await revoking.revoke_certificate(service, member.serial, "key-compromise", by="test")
    elif name == "LDevID on hold":
        await revoking.revoke_certificate(service, member.serial, "certificate-hold", by="test")
    elif "superseded" in name:
        end = at - 1 if "too long" in name else at + 3600
        await service.ledger.write(lambda tx: enrollments.supersede(tx, member.name, but="", revoke_at=end))


def certificate_of(member):
    return x509.load_pem_x509_certificates(member.certificate_file.read_bytes())[0]


async def sql(service, statement, *values):
    await service.ledger.write(lambda tx: tx.exec_driver_sql(statement, values))


@pytest.mark.parametrize("name", MATRIX)
async def test_a_credential_opens_what_the_table_says_and_nothing_else(client, service, tmp_path, names, name):
    shown, certificate = await credential(name, service, client, tmp_path, names())
    for operation, expected in zip(OPERATIONS, MATRIX[name], strict=True):
        key = new_key()
        csr = renewal_of(certificate, key) if certificate is not None and "re" in operation else csr_for(key)
        answer = await ask(client, operation, csr, **shown)
        if expected == 200:
            assert answer[0] == 200, (operation, answer[2])
        else:
            assert refused(answer, expected), (operation, answer[2])
            asks = answer[1].get("WWW-Authenticate", "")
            assert asks.startswith("Basic realm=") is (answer[0] == 401)


async def test_a_token_beside_a_certificate_does_not_hinder_its_renewal(client, service, tmp_path, names):
    serial = names()
    member, certificate = await enrolled(service, client, tmp_path, serial)
    csr = renewal_of(certificate, new_key())
    assert (await ask(client, "simplereenroll", csr, member=member, user=(serial, "used-long-ago")))[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic Og==",
        "Basic dXNlcg==",
        "Basic dXNlcjo=",
        "Digest x",
        "Basic " + "A" * 600,
    ],
)
async def test_a_header_that_is_no_user_and_token_is_refused(client, header):
    answer = await ask(client, "simpleenroll", csr_for(new_key()), headers={"Authorization": header})
    assert refused(answer, NotAuthenticated)


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_the_same_csr_with_the_same_token_gets_the_same_certificate(client, service, names):
    serial = names()
    user, csr = (serial, (await token_for(service, serial))["token"]), csr_for(new_key())
    first = await ask(client, "simpleenroll", csr, user=user)
    assert (await ask(client, "simpleenroll", csr, user=user))[2] == first[2]
    assert refused(await ask(client, "simpleenroll", csr_for(new_key()), user=user), NotAuthenticated)


async def test_a_refused_csr_uses_no_token_up(client, service, tmp_path, names):
    serial = names()
    member, _ = await enrolled(service, client, tmp_path, names())
    user = (serial, (await token_for(service, serial))["token"])
    assert refused(await ask(client, "simpleenroll", csr_for(member.key), user=user), DeviceKeyReused)
    assert refused(await ask(client, "simpleenroll", b"\x30\x00", user=user), CsrRefused)
    assert (await ask(client, "simpleenroll", csr_for(new_key()), user=user))[0] == 200


async def test_a_certificate_that_was_revoked_meanwhile_is_not_handed_out_again(client, service, names):
    serial = names()
    user, csr = (serial, (await token_for(service, serial))["token"]), csr_for(new_key())
    issued = certificate_in((await ask(client, "simpleenroll", csr, user=user))[2])
    await revoking.revoke_certificate(service, format(issued.serial_number, "x"), "key-compromise", by="test")
    assert refused(await ask(client, "simpleenroll", csr, user=user), StateConflict)


async def test_tokens_are_forgotten_a_month_after_their_end(service, names):
    serial = names()
    await token_for(service, serial)
    (known,) = await tokens.list_tokens(service, serial, 10)
    for days, left in ((29, [known["id"]]), (31, [])):
        later = service.clock() + timedelta(days=days, seconds=service.config.limits.est_token_seconds)
        await outbox.expire(replace(service, clock=lambda at=later: at))
        assert [one["id"] for one in await tokens.list_tokens(service, serial, 10)] == left


async def test_of_two_keys_with_one_token_at_once_one_wins(client, service, names):
    serial = names()
    user = (serial, (await token_for(service, serial))["token"])
    answers = await asyncio.gather(*(ask(client, "simpleenroll", csr_for(new_key()), user=user) for _ in range(6)))
    assert sorted(status for status, _, _ in answers) == [200, 401, 401, 401, 401, 401]


async def test_a_wrong_token_is_found_by_explain_where_the_name_is_a_devices(client, service, names):
    serial = names()
    await token_for(service, serial)
    await ask(client, "simpleenroll", csr_for(new_key()), user=(serial, "x" * 43))
    explained = await explaining.explain(service, serial)
    assert (explained["flow"], explained["actual"]) == ("est", "a token that is not known")
    assert "x" * 43 not in str(explained)


# --- what the record says ---------------------------------------------------------------------------------------------


async def test_an_answer_does_not_tell_which_names_are_devices(client, service, names):
    serial = names()
    await token_for(service, serial)
    known, unknown = [
        (await ask(client, "csrattrs", user=(name, "not-the-token")))[2] for name in (serial, f"{serial}-not")
    ]
    assert len(known["instance"]) == len(unknown["instance"])
    assert {**known, "instance": ""} == {**unknown, "instance": ""}


async def test_everything_in_the_certificate_but_the_key_is_the_records(client, service, names):
    serial, key = names(), new_key()
    made = await token_for(service, serial)
    subject, alternative = names_of("d-somebody-else", "other")
    answer = await ask(client, "simpleenroll", csr_for(key, subject, alternative), user=(serial, made["token"]))
    issued = certificate_in(answer[2])
    assert issued.subject == names_of(made["device"], serial)[0]
    assert issued.public_key() == key.public_key()


async def test_a_label_names_the_records_profile_or_nothing(client, service, names):
    serial = names()
    user = (serial, (await token_for(service, serial))["token"])
    for operation in ("station/simpleenroll", "simpleenroll/simpleenroll", "service-tls/csrattrs"):
        assert refused(await ask(client, operation, csr_for(new_key()), user=user), ProfileUnknown)
    assert (await ask(client, "ldevid/simpleenroll", csr_for(new_key()), user=user))[0] == 200
    assert (await client.call("device", "GET", f"{EST}/nothing/cacerts"))[0] == 404
    assert (await client.call("device", "POST", f"{EST}/serverkeygen", data=b""))[0] == 404


async def test_a_renewal_names_who_the_presented_certificate_names(client, service, tmp_path, names):
    member, certificate = await enrolled(service, client, tmp_path, names())
    subject, alternative = names_of(member.name, "other")
    for csr in (
        csr_for(new_key()),
        csr_for(new_key(), certificate.subject),
        csr_for(new_key(), subject, alternative),
        csr_for(new_key(), certificate.subject, names_of("d-other", "x")[1]),
        csr_for(new_key(), certificate.subject, [*alternative, *names_of("d-other", "x")[1]]),
    ):
        assert refused(await ask(client, "simplereenroll", csr, member=member), NamesDiffer)


async def test_a_renewal_may_keep_its_key_and_takes_no_other_devices(client, service, tmp_path, names):
    member, certificate = await enrolled(service, client, tmp_path, names())
    other, _ = await enrolled(service, client, tmp_path, names())
    taken = renewal_of(certificate, other.key)
    assert refused(await ask(client, "simplereenroll", taken, member=member), DeviceKeyReused)
    csr = renewal_of(certificate, member.key)
    status, _, body = await ask(client, "simplereenroll", csr, member=member)
    assert status == 200
    assert (await ask(client, "simplereenroll", csr, member=member))[2] == body


async def test_a_device_renews_so_often_a_day_and_no_more(service, tmp_path, names):
    limits = replace(service.config.limits, est_certificates_per_day=2)
    async with serving(replace(service, config=replace(service.config, limits=limits))) as client:
        member, certificate = await enrolled(service, client, tmp_path, names())
        assert (await ask(client, "simplereenroll", renewal_of(certificate, new_key()), member=member))[0] == 200
        answer = await ask(client, "simplereenroll", renewal_of(certificate, new_key()), member=member)
        assert refused(answer, EnrollmentQuotaSpent)
        assert int(answer[1]["Retry-After"]) >= 1


async def test_a_key_that_the_profile_does_not_take_is_refused(client, service, names):
    serial = names()
    user = (serial, (await token_for(service, serial))["token"])
    csr = csr_for(ec.generate_private_key(ec.SECP256K1()))
    assert refused(await ask(client, "simpleenroll", csr, user=user), KeyKindRefused)


# --- attested devices -------------------------------------------------------------------------------------------------


async def attested(service, folder, serial, *, health="healthy", age_seconds=60, flow="enroll"):
    """A device whose LDevID answers a challenge that it passed, so many seconds ago."""
    member = await fleet.device(service, folder, serial)
    await sql(service, "update certificate set enrollment_id = ? where serial = ?", serial, member.serial)
    at = int(service.clock().timestamp()) - age_seconds
    row = {
        "id": serial,
        "flow": flow,
        "device_id": serial,
        "at": at,
        "policy_id": 1,
        "ak_public": b"",
        "evidence": b"{}",
    }

    def write(tx):
        enrollments.add_attestation(tx, {**row, "boot_log_sha256": None, "findings": "[]"})
        devices.change(tx, serial, health=health, last_attested_at=at)

    await service.ledger.write(write)
    return member


async def test_an_attested_device_renews_the_very_key_that_was_attested(client, service, tmp_path, names):
    member = await attested(service, tmp_path, names())
    csr = renewal_of(certificate_of(member), member.key)
    status, _, body = await ask(client, "simplereenroll", csr, member=member)
    assert status == 200, body
    renewed = certificate_in(body)
    assert renewed.public_key() == member.key.public_key()
    assert renewed.not_valid_after_utc - service.clock() > timedelta(days=29)


@pytest.mark.parametrize(("health", "days"), [("healthy", 30), ("unknown", 1)])
async def test_health_caps_the_lifetime(client, service, tmp_path, names, health, days):
    member = await attested(service, tmp_path, names(), health=health)
    _, _, body = await ask(client, "simplereenroll", renewal_of(certificate_of(member), member.key), member=member)
    left = certificate_in(body).not_valid_after_utc - service.clock()
    assert timedelta(days=days, minutes=-5) < left <= timedelta(days=days)


@pytest.mark.parametrize("given", [{"health": "failing"}, {"age_seconds": 86400 + 60}])
async def test_a_failing_device_or_an_old_attestation_renews_nothing(client, service, tmp_path, names, given):
    member = await attested(service, tmp_path, names(), **given)
    csr = renewal_of(certificate_of(member), member.key)
    assert refused(await ask(client, "simplereenroll", csr, member=member), AttestationRequired)


@pytest.mark.parametrize("health", ["quarantined", "silent"])
async def test_in_quarantine_no_route_of_est_is_open(client, service, tmp_path, names, health):
    serial = names()
    member = await attested(service, tmp_path, serial)
    made = await token_for(service, serial)
    await service.ledger.write(lambda tx: devices.change(tx, serial, health=health))
    csr = renewal_of(certificate_of(member), member.key)
    for operation in ("simpleenroll", "simplereenroll"):
        assert refused(await ask(client, operation, csr, member=member), PassRequired)
        assert refused(await ask(client, operation, csr, user=(serial, made["token"])), PassRequired)


async def test_an_attested_device_gets_no_certificate_for_another_key(client, service, tmp_path, names):
    member = await attested(service, tmp_path, names())
    csr = renewal_of(certificate_of(member), new_key())
    assert refused(await ask(client, "simplereenroll", csr, member=member), AttestationRequired)


@pytest.mark.parametrize("change", ["no evidence", "evidence without a key"])
async def test_a_key_that_no_evidence_certified_is_not_renewed(client, service, tmp_path, names, change):
    """A record that was raised to `attested` later: what it got by a token stays worth a token."""
    if change == "no evidence":
        member, _ = await enrolled(service, client, tmp_path, names())
        at = int(service.clock().timestamp())
        raised = {"assurance": "attested", "health": "healthy", "last_attested_at": at}
        await service.ledger.write(lambda tx: devices.change(tx, member.name, **raised))
    else:
        member = await attested(service, tmp_path, names(), flow="attest")
    csr = renewal_of(certificate_of(member), member.key)
    assert refused(await ask(client, "simplereenroll", csr, member=member), AttestationRequired)


async def test_an_attested_device_gets_nothing_by_any_route_with_a_fresh_token(client, service, tmp_path, names):
    serial = names()
    member = await attested(service, tmp_path, serial)
    made = await token_for(service, serial)
    before = await service.store.read(lambda tx: len(enrollments.certificates_of(tx, serial)))
    for operation in ("simpleenroll", "ldevid/simpleenroll", "simplereenroll", "ldevid/simplereenroll"):
        csr = renewal_of(certificate_of(member), new_key())
        for shown in (
            {"user": (serial, made["token"])},
            {"member": member},
            {"member": member, "user": (serial, made["token"])},
        ):
            assert (await ask(client, operation, csr, **shown))[0] == 403
    assert await service.store.read(lambda tx: len(enrollments.certificates_of(tx, serial))) == before


# --- approval ---------------------------------------------------------------------------------------------------------


async def test_an_approval_is_for_one_key_once_and_for_an_hour(client, service, names):
    serial = names()
    made = await token_for(service, serial, approval=True)
    user, wanted, other = (serial, made["token"]), csr_for(new_key()), csr_for(new_key())
    assert (await ask(client, "simpleenroll", wanted, user=user))[0] == 202
    assert (await ask(client, "simpleenroll", other, user=user))[0] == 202
    with pytest.raises(StateConflict):  # two wait: which one is meant?
        await inventory.approve(service, serial, by="test")
    keys = [one["key"] for one in (await inventory.show_device(service, serial))["requests"]]
    assert len(keys) == 2
    mine = key_id(verify_possession(wanted).spki)
    await inventory.approve(service, serial, by="test", key_id=mine)
    later = replace(service, clock=lambda: service.clock() + timedelta(hours=2))
    async with serving(later) as late:
        assert (await ask(late, "simpleenroll", wanted, user=user))[0] == 202
    assert (await ask(client, "simpleenroll", other, user=user))[0] == 202
    assert (await ask(client, "simpleenroll", wanted, user=user))[0] == 200
    again = (serial, (await token_for(service, serial))["token"])
    assert (await ask(client, "simpleenroll", csr_for(new_key()), user=again))[0] == 202


async def test_only_so_many_keys_wait_for_approval(client, service, names):
    serial = names()
    user = (serial, (await token_for(service, serial, approval=True))["token"])
    for _ in range(est.WAITING_MOST):
        assert (await ask(client, "simpleenroll", csr_for(new_key()), user=user))[0] == 202
    assert refused(await ask(client, "simpleenroll", csr_for(new_key()), user=user), TooManyRequests)


async def test_nothing_that_did_not_ask_can_be_approved(service, names):
    serial = names()
    await token_for(service, serial, approval=True)
    for key in (None, "00" * 32):
        with pytest.raises(StateConflict):
            await inventory.approve(service, serial, by="test", key_id=key)


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", EstBodyMalformed),
        (b" \r\n\t", EstBodyMalformed),
        (b"not base64!", EstBodyMalformed),
        (b"MIIB", CsrRefused),
        (b"MIIB=", EstBodyMalformed),
        (b"AB==", EstBodyMalformed),  # stray bits
        (b"-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n", EstBodyMalformed),
        (b"A" * 30_000, RequestTooLarge),
        (b"A" * 24_000, CsrRefused),
        ("MÄIB".encode(), EstBodyMalformed),
    ],
)
async def test_a_body_that_is_no_request_has_a_code(client, service, names, body, kind):
    serial = names()
    user = (serial, (await token_for(service, serial))["token"])
    assert refused(await ask(client, "simpleenroll", user=user, data=body), kind)


async def test_another_media_type_is_refused(client, service, names):
    serial = names()
    user = (serial, (await token_for(service, serial))["token"])
    for kind in ("application/json", "application/x-www-form-urlencoded", "application/pkcs7-mime"):
        headers = {"Content-Type": kind}
        answer = await ask(client, "simpleenroll", csr_for(new_key()), user=user, headers=headers)
        assert refused(answer, UnsupportedMediaType)


async def test_a_request_with_line_breaks_and_parameters_is_taken(client, service, names):
    serial = names()
    user = (serial, (await token_for(service, serial))["token"])
    text = base64.b64encode(csr_for(new_key()))
    body = b"\r\n".join(text[at : at + 7] for at in range(0, len(text), 7)) + b"\r\n"
    headers = {"Content-Type": "application/pkcs10; charset=us-ascii", "Content-Transfer-Encoding": "base64"}
    assert (await ask(client, "simpleenroll", user=user, headers=headers, data=body))[0] == 200


# --- profiles ---------------------------------------------------------------------------------------------------------

GATEWAY = 'name = "edge"\nkind = "gateway"\nkeys = ["P-384", "RSA"]\nrsa_bits_least = 3072\nlifetime_days = 7\n'


@pytest.fixture
async def edge(service):
    """A profile of an operator's own for gateways, in force."""

    async def put(text):
        await service.ledger.write(lambda tx: profiles.add(tx, name="edge", text=text, now=0, by="test"))
        await service.profiles.refresh(service.store)

    await put(GATEWAY)
    return put


async def test_the_records_profile_decides_key_lifetime_and_kind(client, service, names, edge, tmp_path):
    serial = names()
    made = await token_for(service, serial, profile="edge")
    user = (serial, made["token"])
    attributes = (await ask(client, "edge/csrattrs", user=user))[2]
    assert base64.b64decode(attributes) == csr_attributes(KeyKind.P384, 3072)
    assert refused(await ask(client, "simpleenroll", csr_for(new_key()), user=user), KeyKindRefused)
    small = csr_for(rsa.generate_private_key(65537, 2048))
    assert refused(await ask(client, "simpleenroll", small, user=user), KeyTooShort)
    assert refused(await ask(client, "ldevid/simpleenroll", csr_for(new_key()), user=user), ProfileUnknown)
    key = ec.generate_private_key(ec.SECP384R1())
    status, _, body = await ask(client, "edge/simpleenroll", csr_for(key), user=user)
    assert status == 200, body
    issued = certificate_in(body)
    names = {"device_id": made["device"], "serial_number": serial, "service_name": NAME, "hosts": ()}
    assert_is_gateway(issued, **names, issuer=service.authorities.active.certificate)
    assert issued.not_valid_after_utc - service.clock() < timedelta(days=7)
    found = fleet.member(
        tmp_path,
        made["device"],
        key,
        IssuedLike(format(issued.serial_number, "x"), issued.public_bytes(Encoding.DER)),
        service,
    )
    assert (await ask(client, "edge/simplereenroll", renewal_of(issued, key), member=found))[0] == 200


async def test_a_profile_may_ask_for_approval(client, service, names, edge):
    await edge(GATEWAY + "approval = true\n")
    serial = names()
    user = (serial, (await token_for(service, serial, profile="edge"))["token"])
    csr = csr_for(ec.generate_private_key(ec.SECP384R1()))
    assert (await ask(client, "simpleenroll", csr, user=user))[0] == 202
    await inventory.approve(service, serial, by="test")
    assert (await ask(client, "simpleenroll", csr, user=user))[0] == 200


@pytest.mark.parametrize(
    "profile", ["station", "operator", "service-tls", "idevid", "quarantine", "root-ca", "no-such"]
)
async def test_no_token_is_made_for_what_is_no_devices_profile(service, names, profile):
    with pytest.raises(ProfileUnknown):
        await token_for(service, names(), profile=profile)


async def test_a_record_whose_profile_is_none_for_devices_gets_nothing(client, service, names):
    serial = names()
    made = await token_for(service, serial)
    await service.ledger.write(lambda tx: devices.change(tx, made["device"], profile="station"))
    assert refused(await ask(client, "simpleenroll", csr_for(new_key()), user=(serial, made["token"])), ProfileUnknown)


# --- what fails in between --------------------------------------------------------------------------------------------


class Away:
    """Keys of a token that does not answer, until it does."""

    def __init__(self, keys):
        self.keys, self.away = keys, True

    async def sign(self, key, message):
        if self.away:
            raise SigningUnavailable(expected="a signature", actual="none")
        return await self.keys.sign(key, message)

    def __getattr__(self, name):
        return getattr(self.keys, name)


async def test_a_token_is_not_lost_where_the_hsm_is_away(service, names):
    keys, serial = Away(service.keys), names()
    user, csr = (serial, (await token_for(service, serial, approval=True))["token"]), csr_for(new_key())
    async with serving(replace(service, keys=keys)) as client:
        assert (await ask(client, "simpleenroll", csr, user=user))[0] == 202
        await inventory.approve(service, serial, by="test")
        for _ in range(2):
            status, headers, body = await ask(client, "simpleenroll", csr, user=user)
            assert (status, body["code"]) == (503, SigningUnavailable.code)
            assert int(headers["Retry-After"]) >= 1
        keys.away = False
        status, _, body = await ask(client, "simpleenroll", csr, user=user)
        assert status == 200
        assert (await ask(client, "simpleenroll", csr, user=user))[2] == body
    shown = await inventory.show_device(service, serial)
    assert [one["state"] for one in shown["certificates"]] == ["issued"]


async def test_a_device_that_is_revoked_while_the_hsm_signs_gets_nothing(service, names):
    serial = names()
    user = (serial, (await token_for(service, serial))["token"])

    class Slow(Away):
        async def sign(self, key, message):
            await revoking.revoke_device(service, serial, "key-compromise", by="test")
            return await self.keys.sign(key, message)

    async with serving(replace(service, keys=Slow(service.keys))) as client:
        assert refused(await ask(client, "simpleenroll", csr_for(new_key()), user=user), DeviceRevoked)
    shown = await inventory.show_device(service, serial)
    assert [one["state"] for one in shown["certificates"]] == ["revoked"]
