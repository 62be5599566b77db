"""Measured boots and passing time on real software TPMs: logs that are forged or cut, resets, power cuts, clears."""

import shutil
from dataclasses import replace

import pytest
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.types import TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

from lab.ekca import create_ek_ca
from lab.firmware import boot_measured, flip_byte, make_image
from lab.swtpm import VirtualTpm
from ota.firmware import measure
from provisioning.attestation.evidence import verify_activation, verify_platform
from provisioning.attestation.policy import parse_policy
from provisioning.refusals import (
    AnswersAnotherChallenge,
    BootLogDoesNotReplay,
    BootLogMalformed,
    BootLogMissing,
    PcrsNotAccepted,
    TpmCleared,
    TpmWentBack,
)
from tests.support.attestation import Device, answer, bound, challenge_for, policy_text, proof, verify
from wire.messages import PlatformEvidence

PCRS = (0, 4, 7, 8, 9)


@pytest.fixture(scope="module")
def ek_ca(tmp_path_factory):
    return create_ek_ca(tmp_path_factory.mktemp("ek-ca") / "ca")


@pytest.fixture
def tpm(ek_ca, tmp_path):
    ek_ca.make_tpm(tmp_path / "tpm", "boot")
    with VirtualTpm(tmp_path / "tpm") as running:
        yield running


@pytest.fixture
def image():
    return make_image()


@pytest.fixture
def policy(ek_ca, image):
    values = measure(image).pcrs
    events = "".join(
        f'[[events]]\npcr = {event.pcr}\ndigest = "{event.digest.hex()}"\ndescription = "{event.description}"\n'
        for event in measure(image).events
    )
    text = policy_text(ek_ca.root_pem.read_text(), {pcr: values[pcr] for pcr in PCRS}, release_pcrs="[8, 9]")
    return parse_policy(f"{text}\n{events}")


def attest(tpm, policy, boot_log=None, rule="required", **given):
    """One enrollment of the TPM as it is now."""
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as device:
        ak, key = device.ak(), device.key()
        challenge = challenge_for(device, ak, PCRS, boot_log=rule)
        return verify(answer(device, ak, key, challenge), challenge, policy, boot_log=boot_log, **given)


def boot(tpm, image, tmp_path):
    with tpm.esapi() as esapi:
        boot_measured(esapi, image, tmp_path / "log.bin")
    return (tmp_path / "log.bin").read_bytes()


# --- the boot log (check 13) --------------------------------------------------------------------------------------


def test_a_boot_that_the_policy_names_passes(tpm, image, policy, tmp_path):
    log = boot(tpm, image, tmp_path)
    assert dict(attest(tpm, policy, log).pcrs.values) == {pcr: measure(image).pcrs[pcr] for pcr in PCRS}


def test_one_changed_byte_is_refused_and_its_event_is_named(tpm, image, policy, tmp_path):
    tampered = flip_byte(image, "kernel")
    log = boot(tpm, tampered, tmp_path)
    with pytest.raises(PcrsNotAccepted) as refused:
        attest(tpm, policy, log)
    value, event = refused.value.findings
    assert (value.what, value.expected) == ("PCR 8", measure(image).pcrs[8].hex())
    assert value.actual == measure(tampered).pcrs[8].hex()
    wanted = next(e for e in measure(image).events if e.description == "kernel")
    found = next(e for e in measure(tampered).events if e.description == "kernel")
    assert event.expected == f"{wanted.digest.hex()} kernel"
    assert event.actual == f"{found.digest.hex()} EV_IPL kernel"
    assert event.what.startswith("PCR 8, event ")


def test_a_release_of_the_campaign_is_accepted_only_in_its_own_pcrs(tpm, image, policy, tmp_path):
    newer = make_image(version="2", release_counter=2)
    log = boot(tpm, newer, tmp_path)
    values = {pcr: frozenset({value}) for pcr, value in measure(newer).pcrs.items()}
    with pytest.raises(PcrsNotAccepted):
        attest(tpm, policy, log)
    assert attest(tpm, policy, log, release_values=values)
    with pytest.raises(PcrsNotAccepted):
        attest(tpm, replace(policy, release_pcrs=frozenset({9})), log, release_values=values)


def test_a_required_log_that_is_missing_is_refused(tpm, image, policy, tmp_path):
    boot(tpm, image, tmp_path)
    with pytest.raises(BootLogMissing):
        attest(tpm, policy)
    assert attest(tpm, policy, rule="optional")


def test_the_log_of_another_boot_is_refused(tpm, image, policy, tmp_path):
    """A tampered boot with the log of a good one: the quote gives the log away."""
    good = boot(tpm, image, tmp_path)
    tpm.reset()
    boot(tpm, flip_byte(image, "bootloader"), tmp_path)
    with pytest.raises(BootLogDoesNotReplay) as refused:
        attest(tpm, policy, good)
    assert [finding.what for finding in refused.value.findings] == ["PCR 4"]


def test_an_optional_log_that_does_not_replay_is_refused(tpm, image, policy, tmp_path):
    log = boot(tpm, image, tmp_path)
    tpm.reset()
    boot(tpm, flip_byte(image, "bootloader"), tmp_path)
    with pytest.raises(BootLogDoesNotReplay):
        attest(tpm, policy, log, rule="optional")


def test_what_the_log_does_not_mention_is_refused(tpm, image, policy, tmp_path):
    """Something was measured after the log ended."""
    log = boot(tpm, image, tmp_path)
    with tpm.esapi() as esapi:
        more = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=b"\1" * 32))])
        esapi.pcr_extend(ESYS_TR.PCR9, more)
    with pytest.raises(BootLogDoesNotReplay):
        attest(tpm, policy, log)


def test_a_cut_log_is_refused(tpm, image, policy, tmp_path):
    log = boot(tpm, image, tmp_path)
    for cut in (log[:-1], log[: len(log) // 2], log[:31], b"", log + b"\0"):
        with pytest.raises(BootLogMalformed):
            attest(tpm, policy, cut)


# --- passing time (check 16) --------------------------------------------------------------------------------------


def later(state):
    """As if the TPM had run for an hour when it was last seen: the tests need not wait for a clock that goes back."""
    return replace(state, clock=state.clock + 3_600_000)


def test_orderly_reboots_are_the_same_tpm_later(tpm, policy, image, tmp_path):
    boot(tpm, image, tmp_path)
    first = attest(tpm, policy, rule="none").tpm
    tpm.reset()
    boot(tpm, image, tmp_path)
    second = attest(tpm, policy, rule="none", previous=first).tpm
    assert second.reset_count == first.reset_count + 1
    assert second.clock >= first.clock


def test_a_power_cut_is_no_rollback(tpm, policy, image, tmp_path):
    """The clock falls back to what was last written, and says so (safe = NO)."""
    boot(tpm, image, tmp_path)
    first = later(attest(tpm, policy, rule="none").tpm)
    tpm.power_cut()
    tpm.start()
    boot(tpm, image, tmp_path)
    second = attest(tpm, policy, rule="none", previous=first).tpm
    assert not second.safe
    assert second.clock < first.clock
    with pytest.raises(TpmWentBack):
        attest(tpm, policy, rule="none", previous=replace(first, reset_count=second.reset_count))


def test_a_cleared_tpm_is_called_cleared(tpm, policy, image, tmp_path):
    for _ in range(3):
        tpm.reset()
    boot(tpm, image, tmp_path)
    first = later(attest(tpm, policy, rule="none").tpm)
    tpm.clear()
    with pytest.raises(TpmCleared):
        attest(tpm, policy, rule="none", previous=first)
    tpm.reset()
    boot(tpm, image, tmp_path)
    with pytest.raises(TpmCleared):
        attest(tpm, policy, rule="none", previous=first)


def test_a_restored_copy_of_the_state_is_a_rollback(tpm, policy, image, tmp_path):
    """A clone: the state of yesterday, put back."""
    for _ in range(5):
        tpm.reset()
    tpm.stop()
    shutil.copytree(tmp_path / "tpm", tmp_path / "copy")
    tpm.start()
    tpm.reset()
    boot(tpm, image, tmp_path)
    first = attest(tpm, policy, rule="none").tpm
    tpm.stop()
    with VirtualTpm(tmp_path / "copy") as clone:
        boot(clone, image, tmp_path)
        with pytest.raises(TpmWentBack) as refused:
            attest(clone, policy, rule="none", previous=first)
    assert refused.value.findings[0].what == "resetCount, restartCount"


# --- an attest command: the same line without a key ---------------------------------------------------------------


def test_a_platform_is_attested_without_a_key(tpm, image, policy, tmp_path):
    log = boot(tpm, image, tmp_path)
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as device:
        ak = device.ak()
        challenge = challenge_for(device, ak, PCRS, flow="attest", boot_log="required")
        quote = device.quote(ak, bound(challenge, "quote", b""), challenge.pcr_selection)
        evidence = PlatformEvidence(quote, device.pcrs(challenge.pcr_selection), proof(challenge, b""))
        activated = verify_activation(evidence.activation_proof, b"", challenge)
        assert verify_platform(evidence, log, activated, policy, None, {}).pcrs.bank == "sha256"
        with pytest.raises(BootLogMissing):
            verify_platform(evidence, None, activated, policy, None, {})
        with_request = verify_activation(proof(challenge, b"csr"), b"csr", challenge)
        with pytest.raises(AnswersAnotherChallenge):
            verify_platform(evidence, log, with_request, policy, None, {})
