"""Light devices: what they send passes the verifier, and stops passing where it should."""

import csv
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from lab.light import LightDevice, make_ak
from lab.light_fleet import FLEET_MOST, SELECTED_PCRS, load_fleet, make_fleet
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import ek_id_of, verify_endorsement
from provisioning.attestation.evidence import (
    OpenChallenge,
    verify_activation,
    verify_attestation_key,
    verify_evidence,
    verify_platform,
)
from provisioning.attestation.policy import parse_policy
from provisioning.refusals import ActivationProofWrong, PcrsNotAccepted, SoftwareTpmRefused
from wire.messages import Challenge, PcrSelection

NOW = datetime.now(UTC)
SELECTION = PcrSelection("sha256", SELECTED_PCRS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("fleet") / "f", 7)


@pytest.fixture
def device(files):
    return load_fleet(files.directory, 0, 1)[0]


@pytest.fixture
def policy(files):
    return parse_policy(files.policy.read_text())


def challenge(device: LightDevice, policy, flow="enroll"):
    """What the service would send, and what it would store."""
    ek = verify_endorsement(device.request(), policy, NOW)
    ak = verify_attestation_key(device.ak.public)
    blob, encrypted = make_credential(ek, ak.name, b"s" * 32)
    expires = NOW + timedelta(minutes=5)
    sent = Challenge("id", "muster.example", blob, encrypted, b"n" * 32, SELECTION, "required", expires)
    kept = OpenChallenge(
        flow, "id", "muster.example", b"n" * 32, b"s" * 32, device.ak.public, SELECTION, "required", ek.ek_id
    )
    return sent, kept


@pytest.mark.parametrize("flow", ["enroll", "rotate"])
def test_its_evidence_passes_every_check(device, policy, flow):
    sent, kept = challenge(device, policy, flow)
    evidence = device.answer(sent, flow)
    activated = verify_activation(evidence.activation_proof, evidence.csr, kept)
    verified = verify_evidence(evidence, evidence.boot_log, activated, policy, None, {})
    assert verified.findings == ()
    again = device.answer(sent, flow)
    assert again.csr != evidence.csr  # a new key each time
    later = verify_evidence(
        again, again.boot_log, verify_activation(again.activation_proof, again.csr, kept), policy, verified.tpm, {}
    )
    assert later.tpm.clock > verified.tpm.clock


def test_its_platform_evidence_passes(device, policy):
    sent, kept = challenge(device, policy, "attest")
    evidence = device.attest(sent, log_by_hash=True)
    assert evidence.boot_log is None
    activated = verify_activation(evidence.activation_proof, b"", kept)
    verify_platform(evidence, device.boot.log, activated, policy, None, {})


def test_a_rotation_does_not_pass_as_an_enrollment(device, policy):
    sent, kept = challenge(device, policy, "enroll")
    evidence = device.answer(sent, "rotate")
    with pytest.raises(ActivationProofWrong):
        verify_activation(evidence.activation_proof, evidence.csr, kept)


def test_another_boot_is_refused(device, policy):
    sent, kept = challenge(device, policy)
    evidence = device.answer(sent)
    activated = verify_activation(evidence.activation_proof, evidence.csr, kept)
    changed = {pcr: values if pcr != 4 else frozenset({bytes(32)}) for pcr, values in policy.pcrs["sha256"].items()}
    stricter = replace(policy, pcrs={"sha256": changed})
    with pytest.raises(PcrsNotAccepted):
        verify_evidence(evidence, evidence.boot_log, activated, stricter, None, {})


def test_a_credential_for_another_ak_is_not_opened(device, policy):
    sent, _ = challenge(device, policy)
    device.ak = make_ak()
    with pytest.raises(ValueError, match="another AK"):
        device.answer(sent)


def test_a_credential_for_another_ek_is_not_opened(files, policy):
    one, two = load_fleet(files.directory, 0, 2)
    sent, _ = challenge(one, policy)
    with pytest.raises(ValueError):  # noqa: PT011  OAEP says nothing more
        two.answer(sent)


def test_it_passes_for_software_only(files, device):
    strict = parse_policy(files.policy.read_text().replace("software_tpm = true", "software_tpm = false"))
    with pytest.raises(SoftwareTpmRefused):
        verify_endorsement(device.request(), strict, NOW)


def test_every_device_of_a_fleet_has_an_ek_of_its_own_and_a_row(files):
    devices = load_fleet(files.directory)
    (path,) = files.registrations
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["serial"] for row in rows] == [device.serial for device in devices]
    assert len({ek_id_of(device.ek_certificate) for device in devices}) == len(devices) == 7
    for device in devices:
        certified = x509.load_der_x509_certificate(device.ek_certificate).public_key()
        assert certified == device.ek.public_key()
        assert certified.key_size == 2048


def test_a_fleet_keeps_its_keys_and_guards_them(files):
    first, second = load_fleet(files.directory), load_fleet(files.directory)
    assert [device.ak.public for device in first] == [device.ak.public for device in second]
    assert files.keys.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("count", [0, FLEET_MOST + 1])
def test_a_fleet_has_a_bounded_size(tmp_path, count):
    with pytest.raises(ValueError, match="1 to 3000"):
        make_fleet(tmp_path / "f", count)
    assert not (tmp_path / "f").exists()
