"""Enrollment by a device maker's certificate for the AK, over HTTPS with a software TPM: who passes, who does not."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lab.ekca import create_ek_ca
from lab.swtpm import fresh_tpm
from provisioning import endorsing, inventory, policies
from provisioning.app.compose import clock as system_clock
from provisioning.attestation.evidence import OpenChallenge
from provisioning.attestation.identity import VERIFIED_TPM_RESIDENCY
from provisioning.db import devices, enrollments
from provisioning.refusals import (
    AnswersAnotherChallenge,
    EkNotRegistered,
    EkTaken,
    IdentityCertificateUnfit,
    IdentityChainRefused,
    IdentityKeyDiffers,
    IdevidOfAnotherTpm,
    PcrsNotAccepted,
    PcrValuesNotQuoted,
    RegistrationMalformed,
    RequestMalformed,
    SerialHasAnotherTpm,
    SignatureWrong,
)
from tests.support import fleet, makers
from tests.support.attestation import Device, answer, policy_text
from tests.support.ek_certificates import ec_key, root
from tests.support.listeners import serving
from tests.support.service import Clock, make_installation, running_service
from wire.codec import decode, encode
from wire.factory import Registered, Registration, RegistrationRequest
from wire.messages import Challenge, EnrollmentRequest, Issued

PCRS = (0, 7)
NOW = system_clock()
SPAN = {"begin": NOW - timedelta(days=1), "end": NOW + timedelta(days=3650)}
MAKER = root("Device Maker", **SPAN)
MIDDLE = MAKER.intermediate("Device Maker CA 7", **SPAN)
STRANGER = root("Somebody", **SPAN)


@pytest.fixture(scope="module")
def ek_ca(tmp_path_factory):
    return create_ek_ca(tmp_path_factory.mktemp("ek-ca") / "ca")


@pytest.fixture(scope="module")
def tpm(ek_ca):
    with fresh_tpm(ek_ca) as running:
        yield running


@pytest.fixture(scope="module")
def clock():
    return Clock(NOW)


@pytest.fixture(scope="module")
def service(tmp_path_factory, clock):
    with running_service(make_installation(tmp_path_factory.mktemp("iak") / "D"), clock) as made:
        yield made


@pytest.fixture
def device(tpm):
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as opened:
        yield opened


@pytest.fixture
async def client(service):
    async with serving(service) as made:
        yield made


class Maker:
    """One model for each test: the certificates of the TPM's AK, and the requests that show them."""

    def __init__(self, client, service, tpm, model, folder):
        self.client, self.service, self.tpm, self.model, self.folder = client, service, tpm, model, folder

    async def set_policy(self, *roots, **changes):
        values = self.tpm.pcrs()
        text = policy_text("", {pcr: changes.get("pcr", values[pcr]) for pcr in PCRS}, model=f'"{self.model}"')
        head, _, _ = text.partition("[[ek_roots]]")
        tail = text[text.index("[pcrs.sha256]") :]
        await policies.set_policy(
            self.service, f"{head}\nenrollments_per_day = 1000\n{makers.identity_roots(*roots)}\n{tail}", by="test"
        )

    async def register(self, **known_by):
        station = await fleet.station(self.service, self.folder, "line-1", 1000)
        request = RegistrationRequest((Registration(self.model, self.model, **known_by),))
        status, _, body = await self.client.call(
            "device", "POST", "/v1/factory/devices", member=station, data=encode(request), headers=JSON
        )
        return status, decode(Registered, body, limit=65536).device_ids[0] if status == 201 else body["code"]

    async def begin(self, ak, **shown):
        request = EnrollmentRequest(ak_public=ak.public, pcr_banks=("sha256",), **shown)
        status, _, body = await self.client.call(
            "device", "POST", "/v1/enrollments", data=encode(request), headers=JSON
        )
        return status, decode(Challenge, body, limit=65536) if status == 201 else body["code"]

    async def complete(self, challenge, evidence):
        path = f"/v1/enrollments/{challenge.enrollment_id}/evidence"
        status, _, body = await self.client.call("device", "POST", path, data=encode(evidence), headers=JSON)
        return status, decode(Issued, body, limit=65536) if status == 200 else body["code"]

    def ak(self, device, which=""):
        """The TPM's AK of this test."""
        return device.ak(unique=f"{self.model}/{which}")

    async def record(self):
        return await self.service.store.read(lambda tx: devices.by_serial(tx, self.model))


JSON = {"Content-Type": "application/json"}


def seen(challenge, ak, flow="enroll"):
    """The challenge as the device sees it: it has no credential, so no secret."""
    assert (challenge.credential_blob, challenge.encrypted_secret) == (b"", b"")
    known = (challenge.enrollment_id, challenge.audience, challenge.nonce, b"", ak.public, challenge.pcr_selection)
    return OpenChallenge(flow, *known, challenge.boot_log, "", proof="quote")


def honest(device, ak, challenge, **changes):
    return answer(device, ak, device.key(), seen(challenge, ak), activation_proof=b"", **changes)


@pytest.fixture
def maker(client, service, tpm, tmp_path, request):
    model = request.node.name.replace("test_", "").replace("_", "-")[:40].strip("-")
    return Maker(client, service, tpm, "".join(c for c in model if c.isalnum() or c == "-"), tmp_path)


async def test_an_ak_with_its_makers_certificate_enrolls_and_its_record_says_so(maker, device, service):
    await maker.set_policy(MAKER)
    ak = maker.ak(device)
    certificate = makers.iak(MIDDLE, ak.public, **SPAN)
    status, device_id = await maker.register(iak_certificate=certificate)
    assert status == 201
    shown = {"iak_certificate": certificate, "iak_intermediates": (MIDDLE.der,), "serial": maker.model}
    status, challenge = await maker.begin(ak, **shown)
    assert status == 201
    evidence = honest(device, ak, challenge)
    status, issued = await maker.complete(challenge, evidence)
    assert (status, issued.device_id) == (200, device_id)
    assert await maker.complete(challenge, evidence) == (200, issued)  # the same again
    x509.load_der_x509_certificate(issued.certificate).verify_directly_issued_by(service.authorities.active.certificate)
    record = await maker.record()
    assert (record.state, record.health, record.ek_trust, record.ek_id) == ("active", "healthy", "iak", None)
    assert (record.ak_public, record.iak_certificate) == (ak.public, certificate)
    assert endorsing.request_of(record, ("sha256",)).iak_intermediates == (MIDDLE.der,)


async def test_a_device_of_a_registered_idevid_shows_both_certificates_of_its_tpm(maker, device):
    await maker.set_policy(MAKER)
    ak, key = maker.ak(device), ec_key(number="idevid")
    iak, idevid = makers.iak(MAKER, ak.public, **SPAN), makers.idevid(MIDDLE, key, **SPAN)
    chain = {"iak_intermediates": (MIDDLE.der,)}
    assert (await maker.register(idevid_certificate=idevid))[0] == 201
    assert await maker.begin(ak, iak_certificate=iak, **chain) == (403, EkNotRegistered.code)
    elsewhere = makers.iak(MAKER, ak.public, serial=b"another TPM", **SPAN)
    assert await maker.begin(ak, iak_certificate=elsewhere, idevid_certificate=idevid, **chain) == (
        403,
        IdevidOfAnotherTpm.code,
    )
    status, challenge = await maker.begin(ak, iak_certificate=iak, idevid_certificate=idevid, **chain)
    assert status == 201
    assert (await maker.record()).idevid_certificate is None  # nobody proved anything yet
    assert (await maker.complete(challenge, honest(device, ak, challenge)))[0] == 200
    record = await maker.record()
    assert (record.ek_trust, record.idevid_certificate, record.iak_certificate) == ("idevid", idevid, iak)


async def test_another_iak_of_the_same_tpm_waits_for_an_approval_and_changes_nothing_before(maker, device, service):
    await maker.set_policy(MAKER)
    idevid = makers.idevid(MAKER, ec_key(number="idevid-3"), **SPAN)
    await maker.register(idevid_certificate=idevid)
    first, second = maker.ak(device), maker.ak(device, "second")
    shown = {
        ak.public: {"iak_certificate": makers.iak(MAKER, ak.public, **SPAN), "idevid_certificate": idevid}
        for ak in (first, second)
    }

    async def enroll(ak):
        _, challenge = await maker.begin(ak, **shown[ak.public])
        return (await maker.complete(challenge, honest(device, ak, challenge)))[0]

    assert await enroll(first) == 200
    before = await maker.record()
    assert await enroll(second) == 403
    record = await maker.record()
    assert (record.ak_public, record.iak_certificate) == (before.ak_public, before.iak_certificate)
    await inventory.approve(service, maker.model, by="test")
    assert await enroll(second) == 200
    record = await maker.record()
    assert (record.ak_public, record.iak_certificate) == (second.public, shown[second.public]["iak_certificate"])


async def test_what_should_be_known_of_the_certificates_stands_with_the_evidence(maker, device, service):
    await maker.set_policy(MAKER)
    over = MAKER.intermediate("Device Maker CA 1", begin=NOW - timedelta(days=9), end=NOW - timedelta(hours=1))
    ak = maker.ak(device)
    certificate = makers.iak(over, ak.public, **SPAN)
    _, device_id = await maker.register(iak_certificate=certificate)
    _, challenge = await maker.begin(ak, iak_certificate=certificate, iak_intermediates=(over.der,))
    assert (await maker.complete(challenge, honest(device, ak, challenge)))[0] == 200
    (row,) = await service.store.read(lambda tx: enrollments.attestations_of(tx, device_id, 1))
    (finding,) = json.loads(row.findings)
    assert (finding["what"], "Device Maker CA 1 expired" in finding["actual"]) == ("device maker's CA", True)


async def test_an_idevid_of_another_root_names_no_tpm_of_this_one(maker, device):
    """One serial by two makers is two TPMs."""
    other = root("Another Maker", **SPAN)
    await maker.set_policy(MAKER, other)
    ak = maker.ak(device)
    idevid = makers.idevid(other, ec_key(number="idevid-2"), **SPAN)
    await maker.register(idevid_certificate=idevid)
    iak = makers.iak(MAKER, ak.public, **SPAN)
    assert await maker.begin(ak, iak_certificate=iak, idevid_certificate=idevid) == (403, IdevidOfAnotherTpm.code)


async def test_a_certificate_by_nobody_whom_the_policy_names_is_refused(maker, device):
    await maker.set_policy(MAKER)
    ak = maker.ak(device)
    forged = makers.iak(STRANGER, ak.public, **SPAN)
    await maker.register(iak_certificate=forged)
    assert await maker.begin(ak, iak_certificate=forged) == (403, IdentityChainRefused.code)


async def test_a_certificate_that_does_not_say_restricted_is_refused(maker, device):
    await maker.set_policy(MAKER)
    ak = maker.ak(device)
    certificate = makers.iak(MAKER, ak.public, policies=(VERIFIED_TPM_RESIDENCY,), **SPAN)
    await maker.register(iak_certificate=certificate)
    assert await maker.begin(ak, iak_certificate=certificate) == (403, IdentityCertificateUnfit.code)


async def test_the_certificate_of_another_key_is_refused(maker, device):
    """A stolen certificate: the key that it is for is not here."""
    await maker.set_policy(MAKER)
    ak, other = maker.ak(device), maker.ak(device, "other")
    certificate = makers.iak(MAKER, other.public, **SPAN)
    await maker.register(iak_certificate=certificate)
    assert await maker.begin(ak, iak_certificate=certificate) == (403, IdentityKeyDiffers.code)


async def test_what_is_not_registered_is_not_known(maker, device):
    await maker.set_policy(MAKER)
    ak = maker.ak(device)
    certificate = makers.iak(MAKER, ak.public, **SPAN)
    assert await maker.begin(ak, iak_certificate=certificate) == (403, EkNotRegistered.code)
    await maker.register(ek_certificate=device.certificate)
    # Registered by its EK: its maker's word for the AK counts for nothing, and is told apart.
    shown = {"iak_certificate": certificate, "serial": maker.model}
    assert await maker.begin(ak, **shown) == (403, SerialHasAnotherTpm.code)


async def test_an_ek_does_not_open_a_record_of_an_iak(maker, device, tpm):
    await maker.set_policy(MAKER)
    ak = maker.ak(device)
    await maker.register(iak_certificate=makers.iak(MAKER, ak.public, **SPAN))
    shown = {"ek_certificate": tpm.ek_certificates()["ecc384"], "serial": maker.model}
    assert await maker.begin(ak, **shown) == (403, SerialHasAnotherTpm.code)


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"ek_public": b"\0", "iak_certificate": b"\0"},
        {"ek_certificate": b"\0", "idevid_certificate": b"\0"},
        {"idevid_certificate": b"\0"},
    ],
    ids=["nothing", "two ways", "an EK and an IDevID", "an IDevID alone"],
)
async def test_a_request_names_its_tpm_in_one_way(maker, device, shown):
    assert await maker.begin(maker.ak(device), **shown) == (400, RequestMalformed.code)


async def test_hostile_certificates_are_refused_and_no_defect(maker, device):
    ak = maker.ak(device)
    for garbage in (b"", b"\x30", b"\x30\x82\xff\xff", b"\xff" * 8192):
        status, _ = await maker.begin(ak, iak_certificate=garbage)
        assert 400 <= status < 500
        status, _ = await maker.begin(ak, iak_certificate=makers.iak(MAKER, ak.public), idevid_certificate=garbage)
        assert 400 <= status < 500


async def test_only_the_quote_of_that_key_over_that_challenge_is_the_devices_own(maker, device, service):
    """Until it is authentic nothing counts for the device's health."""
    await maker.set_policy(MAKER)
    ak = maker.ak(device)
    certificate = makers.iak(MAKER, ak.public, **SPAN)
    await maker.register(iak_certificate=certificate)

    async def refused(make):
        status, challenge = await maker.begin(ak, iak_certificate=certificate)
        assert status == 201
        code = (await maker.complete(challenge, make(challenge)))[1]
        row = await service.store.read(lambda tx: enrollments.get(tx, challenge.enrollment_id))
        refusal = await service.store.read(lambda tx: enrollments.refusal_by_id(tx, row.refusal_id))
        assert refusal.code == code
        return code, refusal.own

    other = maker.ak(device, "other")

    def by_another_key(challenge):
        return answer(device, other, device.key(), seen(challenge, ak), activation_proof=b"")

    def over_another_nonce(challenge):
        old = replace(seen(challenge, ak), nonce=b"x" * 32)
        return answer(device, ak, device.key(), old, activation_proof=b"")

    def with_other_values(challenge):
        evidence = honest(device, ak, challenge)
        lie = {"sha256": dict.fromkeys(evidence.pcrs["sha256"], b"\x01" * 32)}
        return honest(device, ak, challenge, pcrs=lie)

    assert await refused(by_another_key) == (SignatureWrong.code, False)
    assert await refused(over_another_nonce) == (AnswersAnotherChallenge.code, False)
    assert await refused(with_other_values) == (PcrValuesNotQuoted.code, False)


async def test_what_it_booted_is_its_own_doing(maker, device, service):
    await maker.set_policy(MAKER, pcr=b"\1" * 32)
    ak = maker.ak(device)
    certificate = makers.iak(MAKER, ak.public, **SPAN)
    await maker.register(iak_certificate=certificate)
    _, challenge = await maker.begin(ak, iak_certificate=certificate)
    assert await maker.complete(challenge, honest(device, ak, challenge)) == (403, PcrsNotAccepted.code)
    assert (await maker.record()).health in ("failing", "quarantined")


async def test_a_station_registers_an_identity_once_and_in_one_way(maker, device):
    ak = maker.ak(device)
    certificate = makers.iak(MAKER, ak.public, **SPAN)
    idevid = makers.idevid(MAKER, ec.generate_private_key(ec.SECP384R1()), **SPAN)
    malformed = (400, RegistrationMalformed.code)
    assert await maker.register(iak_certificate=certificate, idevid_certificate=idevid) == malformed
    assert await maker.register(iak_certificate=b"\x30\x00") == malformed
    assert (await maker.register(iak_certificate=certificate))[0] == 201
    again = Maker(maker.client, maker.service, maker.tpm, maker.model + "-2", maker.folder)
    assert await again.register(iak_certificate=certificate) == (409, EkTaken.code)
    assert await again.register(idevid_certificate=certificate) == (409, EkTaken.code)
