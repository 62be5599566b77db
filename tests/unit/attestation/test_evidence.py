"""The straight line over a device's evidence, with software keys: each check refuses by its own name.

The attacks that need a TPM to be convincing stand in tests/integration/test_attestation*.py.
"""

import hashlib
import struct
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.firmware import flip_byte, make_image
from lab.light import LightBoot, LightDevice, LightKey
from ota.firmware import event_log, measure
from provisioning.attestation.appraisal import appraise, select_pcrs
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import TrustedEk
from provisioning.attestation.eventlog import parse_event_log
from provisioning.attestation.evidence import (
    OpenChallenge,
    TpmState,
    verify_activation,
    verify_attestation_key,
    verify_evidence,
    verify_platform,
)
from provisioning.attestation.policy import ExpectedEvent, Policy
from provisioning.attestation.quote import VerifiedPcrs, verify_continuity, verify_firmware
from provisioning.refusals import (
    ActivationProofWrong,
    AkAttributesRefused,
    AkNotInEndorsementHierarchy,
    AlgorithmRefused,
    AnswersAnotherChallenge,
    BankRefused,
    BootLogDoesNotReplay,
    BootLogMalformed,
    BootLogMissing,
    CsrKeyNotCertified,
    CsrRefused,
    DeviceKeyAttributesRefused,
    DeviceKeyNotCertified,
    DeviceKeyReused,
    OnlySha1Banks,
    PcrSelectionWrong,
    PcrsNotAccepted,
    PcrValuesNotQuoted,
    Refusal,
    SignatureWrong,
    TpmCleared,
    TpmFirmwareRefused,
    TpmWentBack,
)
from tests.support.ek_certificates import NOW, rsa_key
from wire.binding import activation_proof, binding
from wire.codec import decode, encode
from wire.messages import Attestation, Challenge, Evidence, PcrSelection, PlatformEvidence

PCRS = (0, 4, 7, 8)
IMAGE = make_image()
BOOT = LightBoot(measure(IMAGE).pcrs, event_log(IMAGE))
SELECTION = PcrSelection("sha256", PCRS)
EK = TrustedEk("ek", rsa_key().public_key(), 0x0B, 128, "certificate", "id:00001014", "light", "1", ())
POLICY = Policy(
    model="gateway",
    software_tpm=True,
    expired_ek="refuse",
    banks=("sha384", "sha256"),
    boot_log="none",
    release_pcrs=frozenset({8}),
    min_tpm_firmware=0,
    enrollments_per_day=20,
    ek_roots=(),
    pcrs=MappingProxyType({"sha256": MappingProxyType({pcr: frozenset({BOOT.pcrs[pcr]}) for pcr in PCRS})}),
    events=(),
)


@pytest.fixture(scope="module")
def device():
    return LightDevice("device", rsa_key(), b"", BOOT)


def challenge_for(device, **changes):
    fields = {
        "flow": "enroll",
        "enrollment_id": "enrollment-1",
        "audience": "muster.test",
        "nonce": b"n" * 32,
        "secret": b"s" * 32,
        "ak_public": device.ak.public,
        "pcr_selection": SELECTION,
        "boot_log": "none",
        "ek_id": "ek",
    }
    return OpenChallenge(**{**fields, **changes})


def sent(stored):
    """The challenge as the device gets it."""
    name = verify_attestation_key(stored.ak_public).name
    blob, encrypted = make_credential(EK, name, stored.secret)
    fields = (stored.enrollment_id, stored.audience, blob, encrypted, stored.nonce, stored.pcr_selection)
    return Challenge(*fields, stored.boot_log, NOW)


def verify(evidence, stored, policy=POLICY, **given):
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    log = given.get("boot_log", evidence.boot_log)
    return verify_evidence(evidence, log, activated, policy, given.get("previous"), given.get("release_values", {}))


def proven(evidence, stored):
    """The evidence with a true activation proof: so that a later check must do the refusing."""
    bound = binding(
        stored.flow,
        "activate",
        audience=stored.audience,
        nonce=stored.nonce,
        csr=evidence.csr,
        ak_name=verify_attestation_key(stored.ak_public).name,
        enrollment_id=stored.enrollment_id,
    )
    return replace(evidence, activation_proof=activation_proof(stored.secret, bound))


def honest(device, **changes):
    stored = challenge_for(device, **changes)
    return device.answer(sent(stored), stored.flow), stored


# --- the line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["enroll", "rotate"])
def test_honest_evidence_passes(device, flow):
    evidence, stored = honest(device, flow=flow)
    verified = verify(evidence, stored)
    assert verified.key.spki == verified.csr.spki
    assert verified.key.key_id == hashlib.sha256(verified.key.spki).hexdigest()
    assert dict(verified.pcrs.values) == {pcr: BOOT.pcrs[pcr] for pcr in PCRS}
    assert verified.tpm.reset_count == 1
    assert verified.findings == ()


def test_evidence_survives_the_wire(device):
    evidence, stored = honest(device)
    assert verify(decode(Evidence, encode(evidence), limit=65536), stored)


def test_an_attest_command_has_no_key_and_no_request(device):
    stored = challenge_for(device, flow="attest", boot_log="required")
    evidence = device.attest(sent(stored))
    activated = verify_activation(evidence.activation_proof, b"", stored)
    assert verify_platform(evidence, evidence.boot_log, activated, POLICY, None, {}).findings == ()
    with pytest.raises(BootLogMissing):
        verify_platform(evidence, None, activated, POLICY, None, {})


def test_an_attest_challenge_is_not_answered_with_a_request(device):
    evidence, stored = honest(device)
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    platform = PlatformEvidence(evidence.quote, evidence.pcrs, evidence.activation_proof)
    with pytest.raises(AnswersAnotherChallenge):
        verify_platform(platform, None, activated, POLICY, None, {})


def test_the_secret_of_a_challenge_is_not_shown(device):
    evidence, stored = honest(device, secret=b"canary of exactly thirty-two by.")
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    for shown in (repr(stored), str([stored]), repr(activated), f"{stored}"):
        assert "canary" not in shown


# --- activation (check 7) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("proof", [b"", b"x", bytes(32), bytes(64)])
def test_a_wrong_proof_is_refused_without_a_hint(device, proof):
    evidence, stored = honest(device)
    with pytest.raises(ActivationProofWrong) as refused:
        verify(replace(evidence, activation_proof=proof), stored)
    assert (refused.value.expected, refused.value.actual, refused.value.findings) == ("", "", ())


@pytest.mark.parametrize(
    "change",
    [{"nonce": b"m" * 32}, {"audience": "b"}, {"enrollment_id": "2"}, {"flow": "rotate"}, {"secret": b"t" * 32}],
)
def test_a_proof_answers_one_challenge(device, change):
    evidence, stored = honest(device)
    with pytest.raises(ActivationProofWrong):
        verify(evidence, replace(stored, **change))


def test_a_proof_is_for_one_ak(device):
    evidence, stored = honest(device)
    other = LightDevice("other", rsa_key(), b"", BOOT)
    with pytest.raises(ActivationProofWrong):
        verify(evidence, replace(stored, ak_public=other.ak.public))


def test_evidence_must_be_that_which_was_activated(device):
    evidence, stored = honest(device)
    other, _ = honest(device)
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    with pytest.raises(AnswersAnotherChallenge):
        verify_evidence(other, None, activated, POLICY, None, {})


# --- the AK (check 5) ---------------------------------------------------------------------------------------------

BITS = {"fixedTPM": 1, "fixedParent": 4, "sensitiveDataOrigin": 5, "restricted": 16, "sign": 18}


@pytest.mark.parametrize("bit", [*BITS.values(), 17, 11, 2])
def test_each_attribute_of_the_ak_counts(device, bit):
    public = device.ak.public
    attributes = int.from_bytes(public[4:8], "big") ^ 1 << bit
    with pytest.raises(AkAttributesRefused):
        verify_attestation_key(public[:4] + attributes.to_bytes(4, "big") + public[8:])


def test_attributes_that_do_not_matter_do_not_count(device):
    public = device.ak.public
    for bit in (6, 7, 10):
        attributes = int.from_bytes(public[4:8], "big") ^ 1 << bit
        assert verify_attestation_key(public[:4] + attributes.to_bytes(4, "big") + public[8:])


def test_an_ak_has_a_scheme_and_no_cipher(device):
    public = device.ak.public
    without = public.replace(struct.pack(">HHH", 0x10, 0x18, 0x0B), struct.pack(">HH", 0x10, 0x10))
    storage = public.replace(struct.pack(">HHH", 0x10, 0x18, 0x0B), struct.pack(">HHHHH", 6, 128, 0x43, 0x18, 0x0B))
    for changed in (without, storage):
        with pytest.raises(AlgorithmRefused):
            verify_attestation_key(changed)


class OwnersKey(LightKey):
    """Signs as a primary key of the owner hierarchy."""

    @property
    def qualified_name(self):
        return b"\0\x0b" + hashlib.sha256((0x40000001).to_bytes(4, "big") + self.name).digest()


def test_an_ak_of_another_hierarchy_is_refused():
    device = LightDevice("owner", rsa_key(), b"", BOOT)
    device.ak = OwnersKey(device.ak.private, device.ak.public, device.ak.name)
    evidence, stored = honest(device)
    with pytest.raises(AkNotInEndorsementHierarchy):
        verify(evidence, stored)


# --- signatures, keys (checks 10, 14, 15, 19) ---------------------------------------------------------------------


def test_every_byte_of_the_signed_structures_counts(device):
    evidence, stored = honest(device)
    for part in ("quote", "certify"):
        signed = getattr(evidence, part)
        for at in range(len(signed.attest)):
            changed = signed.attest[:at] + bytes([signed.attest[at] ^ 1]) + signed.attest[at + 1 :]
            with pytest.raises(Refusal):
                verify(replace(evidence, **{part: replace(signed, attest=changed)}), stored)


def test_the_signature_of_another_key_is_refused(device):
    evidence, stored = honest(device)
    stranger = LightDevice("stranger", rsa_key(), b"", BOOT, clock_ms=device.clock_ms)
    signed = stranger.answer(sent(replace(stored, ak_public=stranger.ak.public)))
    for part in ("quote", "certify"):
        with pytest.raises(SignatureWrong):
            verify(replace(evidence, **{part: getattr(signed, part)}), stored)


def test_the_quotes_signature_does_not_fit_the_certification(device):
    evidence, stored = honest(device)
    crossed = Attestation(evidence.certify.attest, evidence.quote.signature)
    with pytest.raises(SignatureWrong):
        verify(replace(evidence, certify=crossed), stored)


def test_another_devices_public_area_is_refused(device):
    evidence, stored = honest(device)
    other, _ = honest(device)
    with pytest.raises(DeviceKeyNotCertified):
        verify(replace(evidence, device_public=other.device_public), stored)


@pytest.mark.parametrize("bit", [1, 4, 5, 11, 16, 17, 18])
def test_each_attribute_of_the_device_key_counts(device, bit):
    """As the TPM would have certified it: the Name is that of the changed public area."""
    device.prepare()
    key = device.device_key
    public = key.public[:4] + (int.from_bytes(key.public[4:8], "big") ^ 1 << bit).to_bytes(4, "big") + key.public[8:]
    device.device_key = replace(key, public=public, name=b"\0\x0b" + hashlib.sha256(public).digest())
    stored = challenge_for(device)
    with pytest.raises(DeviceKeyAttributesRefused):
        verify(device.answer(sent(stored)), stored)


def test_the_ek_as_device_key_is_refused(device):
    evidence, stored = honest(device)
    key_id = verify(evidence, stored).key.key_id
    with pytest.raises(DeviceKeyReused) as refused:
        verify(evidence, replace(stored, ek_id=key_id))
    assert refused.value.actual == "the EK"


def test_the_ak_as_device_key_is_refused():
    """Two objects of one key: a restricted AK, and an unrestricted twin with the same point."""
    device = LightDevice("twin", rsa_key(), b"", BOOT)
    device.prepare()
    twin = replace(device.device_key, public=device.device_key.public)
    restricted = (int.from_bytes(twin.public[4:8], "big") | 1 << 16).to_bytes(4, "big")
    public = twin.public[:4] + restricted + twin.public[8:]
    public = public.replace(struct.pack(">HHH", 0x10, 0x10, 3), struct.pack(">HHHH", 0x10, 0x18, 0x0B, 3))
    name = b"\0\x0b" + hashlib.sha256(public).digest()
    device.ak = replace(twin, public=public, name=name)
    evidence, stored = honest(device)
    with pytest.raises(DeviceKeyReused) as refused:
        verify(evidence, stored)
    assert refused.value.actual == "the AK"


def test_the_request_of_another_key_is_refused(device):
    evidence, stored = honest(device)
    other, _ = honest(device)
    swapped = proven(replace(evidence, csr=other.csr), stored)
    with pytest.raises(AnswersAnotherChallenge):
        verify(swapped, stored)
    # Bound into quote and certification by its own TPM, and still not the certified key's.
    device.prepare()
    key = device.device_key
    device._csr = other.csr
    evidence = device.answer(sent(stored))
    assert evidence.device_public == key.public
    with pytest.raises(CsrKeyNotCertified):
        verify(evidence, stored)


def test_a_request_without_proof_of_possession_is_refused(device):
    stored = challenge_for(device)
    device.prepare()
    device._csr = device._csr[:-1] + bytes([device._csr[-1] ^ 1])
    with pytest.raises(CsrRefused):
        verify(device.answer(sent(stored)), stored)


# --- PCRs (check 12) ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pcrs", [(0, 4), (0, 4, 7, 8, 9), (0, 4, 7, 9), ()])
def test_another_selection_than_the_challenges_is_refused(device, pcrs):
    stored = challenge_for(device)
    quoted = replace(stored, pcr_selection=PcrSelection("sha256", pcrs))
    evidence = device.answer(sent(quoted))
    with pytest.raises(PcrSelectionWrong):
        verify(evidence, stored)


def test_another_bank_than_the_challenges_is_refused(device):
    evidence, stored = honest(device)
    with pytest.raises(PcrSelectionWrong):
        verify(evidence, replace(stored, pcr_selection=PcrSelection("sha384", PCRS)))
    with pytest.raises(PcrSelectionWrong):
        verify(evidence, replace(stored, pcr_selection=PcrSelection("sha1", PCRS)))


def test_the_order_of_the_selection_does_not_matter(device):
    evidence, stored = honest(device)
    assert verify(evidence, replace(stored, pcr_selection=PcrSelection("sha256", (8, 7, 4, 0, 0))))


@pytest.mark.parametrize(
    "lie",
    [
        {"sha256": {"4": b"\1" * 32}},
        {"sha256": {"4": b"\1" * 31}},
        {"sha256": {"9": bytes(32)}},
        {"sha256": {"04": bytes(32)}},
        {"sha384": {"4": bytes(48)}},
    ],
)
def test_values_that_were_not_quoted_are_refused(device, lie):
    evidence, stored = honest(device)
    told = {"sha256": evidence.pcrs["sha256"] | lie.get("sha256", {})} | {k: v for k, v in lie.items() if k != "sha256"}
    with pytest.raises(PcrValuesNotQuoted):
        verify(replace(evidence, pcrs=told), stored)


def test_values_have_the_size_of_their_bank(device):
    """The same bytes, cut elsewhere, have the quoted digest too."""
    evidence, stored = honest(device)
    values = evidence.pcrs["sha256"]
    shifted = values | {"0": values["0"][:-1], "4": values["0"][-1:] + values["4"]}
    with pytest.raises(PcrValuesNotQuoted) as refused:
        verify(replace(evidence, pcrs={"sha256": shifted}), stored)
    assert refused.value.expected == "32 bytes each"


@pytest.mark.parametrize("pcrs", [{}, {"sha256": {}}, {"sha384": {"0": bytes(48)}}])
def test_values_that_are_missing_are_refused(device, pcrs):
    evidence, stored = honest(device)
    with pytest.raises(PcrValuesNotQuoted):
        verify(replace(evidence, pcrs=pcrs), stored)


# --- the boot (check 13) ------------------------------------------------------------------------------------------


def test_a_log_is_asked_for_by_the_challenge(device):
    evidence, stored = honest(device, boot_log="required")
    assert evidence.boot_log
    assert verify(evidence, stored)
    with pytest.raises(BootLogMissing):
        verify(evidence, stored, boot_log=None)
    assert verify(evidence, replace(stored, boot_log="optional"), boot_log=None)
    # Where none is wanted, none is read.
    assert verify(evidence, replace(stored, boot_log="none"), boot_log=b"garbage")


@pytest.mark.parametrize("rule", ["required", "optional"])
def test_a_log_that_is_sent_must_be_true(device, rule):
    evidence, stored = honest(device, boot_log=rule)
    with pytest.raises(BootLogMalformed):
        verify(evidence, stored, boot_log=BOOT.log[:-1])
    with pytest.raises(BootLogDoesNotReplay):
        verify(evidence, stored, boot_log=event_log(flip_byte(IMAGE, "bootloader")))


def test_an_uploaded_log_is_the_one_that_was_announced(device):
    stored = challenge_for(device, boot_log="required")
    evidence = device.answer(sent(stored), log_by_hash=True)
    assert verify(evidence, stored, boot_log=BOOT.log)
    # Another log that replays as well: a word that nothing measured is another one.
    other = BOOT.log.replace(b"rootfs\0", b"rootfz\0")
    assert verify(replace(evidence, boot_log_sha256=None), stored, boot_log=other)
    with pytest.raises(BootLogMalformed) as refused:
        verify(evidence, stored, boot_log=other)
    assert refused.value.expected == evidence.boot_log_sha256.hex()


def pcrs_of(image):
    boot = measure(image).pcrs
    state = TpmState(1, 0, 1000, safe=True, firmware_version=1)
    return VerifiedPcrs("sha256", MappingProxyType({pcr: boot[pcr] for pcr in PCRS}), state)


EVENTS = tuple(ExpectedEvent(e.pcr, e.digest, e.description) for e in measure(IMAGE).events)


def test_the_first_event_that_differs_is_named():
    tampered = flip_byte(IMAGE, "firmware")
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(pcrs_of(tampered), parse_event_log(event_log(tampered)), None, replace(POLICY, events=EVENTS), {})
    value, event = refused.value.findings
    assert value.what == "PCR 0"
    assert value.cure.startswith("Boot what the policy names; or, if this boot is meant, add ")
    assert (event.what.partition(",")[0], event.expected.split(" ", 1)[1]) == ("PCR 0", "firmware")
    assert event.actual.endswith("EV_POST_CODE firmware")


def test_an_event_too_few_and_one_too_many_are_named():
    more = replace(POLICY, events=(*EVENTS, ExpectedEvent(8, b"\1" * 32, "an initramfs")))
    wrong = replace(pcrs_of(IMAGE), values=pcrs_of(IMAGE).values | {8: b"\2" * 32})
    log = parse_event_log(event_log(IMAGE))
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(wrong, log, None, more, {})
    assert refused.value.findings[1].actual == "the log ends"
    assert refused.value.findings[1].expected == "01" * 32 + " an initramfs"
    fewer = replace(POLICY, events=tuple(event for event in EVENTS if event.description != "kernel"))
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(wrong, log, None, fewer, {})
    assert refused.value.findings[1].expected == "no further event"


def test_without_events_the_pcr_alone_is_named():
    wrong = replace(pcrs_of(IMAGE), values=pcrs_of(IMAGE).values | {8: b"\2" * 32})
    for log, policy in ((None, replace(POLICY, events=EVENTS)), (parse_event_log(BOOT.log), POLICY)):
        with pytest.raises(PcrsNotAccepted) as refused:
            appraise(wrong, log, None, policy, {})
        assert [finding.what for finding in refused.value.findings] == ["PCR 8"]
    # Every event as expected, and the PCR is another one: the events explain nothing, and claim nothing.
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(wrong, parse_event_log(BOOT.log), None, replace(POLICY, events=EVENTS), {})
    assert [finding.what for finding in refused.value.findings] == ["PCR 8"]


def test_release_values_count_in_release_pcrs_only():
    released = {pcr: frozenset({b"\2" * 32}) for pcr in PCRS}
    values = pcrs_of(IMAGE).values
    assert appraise(replace(pcrs_of(IMAGE), values=values | {8: b"\2" * 32}), None, None, POLICY, released) == ()
    with pytest.raises(PcrsNotAccepted):
        appraise(replace(pcrs_of(IMAGE), values=values | {4: b"\2" * 32}), None, None, POLICY, released)


def test_a_pcr_without_any_value_waits_for_a_release():
    policy = replace(POLICY, pcrs={"sha256": {**POLICY.pcrs["sha256"], 8: frozenset()}})
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(pcrs_of(IMAGE), None, None, policy, {})
    assert refused.value.findings[0].expected == "a value of an assigned release"


def test_a_pcr_that_the_policy_judges_must_be_quoted():
    """A policy that was tightened after the challenge is not satisfied by less."""
    tightened = replace(POLICY, pcrs={"sha256": {**POLICY.pcrs["sha256"], 9: frozenset({bytes(32)})}})
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(pcrs_of(IMAGE), None, None, tightened, {})
    assert refused.value.findings[0].what == "PCR 9"
    loosened = replace(POLICY, pcrs={"sha256": {0: POLICY.pcrs["sha256"][0]}})
    assert [f.what for f in appraise(pcrs_of(IMAGE), None, None, loosened, {})] == ["PCR 4", "PCR 7", "PCR 8"]


def test_a_bank_that_the_policy_does_not_judge_is_never_accepted():
    with pytest.raises(PcrsNotAccepted):
        appraise(pcrs_of(IMAGE), None, None, replace(POLICY, pcrs={}), {})


def test_the_policys_order_of_banks_decides():
    both = replace(POLICY, pcrs={**POLICY.pcrs, "sha384": {7: frozenset({bytes(48)})}})
    assert select_pcrs(both, ("sha1", "sha256", "sha384")) == PcrSelection("sha384", (7,))
    assert select_pcrs(both, ("sha256",)) == PcrSelection("sha256", PCRS)
    for offered in ((), ("SHA256",), ("sha1", "sha512")):
        with pytest.raises(BankRefused):
            select_pcrs(both, offered)


def test_a_machine_with_no_bank_but_sha1_is_refused_by_that_name():
    with pytest.raises(OnlySha1Banks):
        select_pcrs(POLICY, ("sha1",))


# --- time (checks 16, 17) -----------------------------------------------------------------------------------------


def state(resets=10, restarts=2, clock=10_000_000, safe=True):
    return TpmState(resets, restarts, clock, safe, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, state(0, 0, 0)),
        (state(), state()),
        (state(), state(clock=10_000_001)),
        (state(), state(restarts=3)),
        (state(), state(resets=11, restarts=0, clock=10_000_001)),
        (state(), state(resets=11, restarts=0, clock=5, safe=False)),
        (state(safe=False), state(resets=11, restarts=0)),
    ],
    ids=["first", "same", "later", "resumed", "reset", "power cut", "after a power cut"],
)
def test_time_went_on(before, after):
    verify_continuity(after, before)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (state(), state(resets=9, clock=10_000_001)),
        (state(), state(restarts=1, clock=10_000_001)),
        (state(), state(resets=9, restarts=99, clock=10_000_001)),
        (state(), state(clock=9_999_999)),
        (state(), state(clock=9_999_999, safe=False)),
        (state(), state(resets=11, clock=9_999_999)),
        (state(), state(resets=1, restarts=0, clock=3_600_001)),
        (state(), state(resets=5, restarts=0, clock=1)),
        (state(), state(resets=0, restarts=0, clock=1, safe=False)),
        (state(clock=5), state(resets=9, restarts=2, clock=6)),
    ],
    ids=[
        *("a reset less", "a restart less", "lexicographically", "clock back", "clock back without a reset"),
        *("clock back over an orderly reset", "not near zero", "too many resets", "not safe", "young but not cleared"),
    ],
)
def test_time_that_went_back_is_a_rollback(before, after):
    with pytest.raises(TpmWentBack) as refused:
        verify_continuity(after, before)
    assert refused.value.findings


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (state(), state(0, 0, 0)),
        (state(), state(4, 0, 3_600_000)),
        (state(0, 0, 5000), state(0, 0, 10)),
        (state(1, 0), state(2, 0, 10)),
    ],
    ids=["at once", "an hour and four resets later", "a young one", "past its old count"],
)
def test_a_cleared_tpm_is_no_clone(before, after):
    with pytest.raises(TpmCleared):
        verify_continuity(after, before)


def test_the_checks_of_time_are_on_the_line(device):
    evidence, stored = honest(device)
    now = verify(evidence, stored).tpm
    assert verify(evidence, stored, previous=now)
    with pytest.raises(TpmWentBack):
        verify(evidence, stored, previous=replace(now, reset_count=99))
    with pytest.raises(TpmFirmwareRefused):
        verify(evidence, stored, replace(POLICY, min_tpm_firmware=now.firmware_version + 1))
    verify_firmware(now, now.firmware_version)


# --- properties ---------------------------------------------------------------------------------------------------

DEVICE = LightDevice("property", rsa_key(), b"", BOOT)
EVIDENCE, STORED = honest(DEVICE, boot_log="required")


def paths(value, path=()):
    """Every byte string of the evidence."""
    for name in value.__dataclass_fields__:
        item = getattr(value, name)
        if isinstance(item, bytes):
            yield (*path, name)
        elif isinstance(item, Attestation):
            yield from paths(item, (*path, name))


def changed(value, path, at, bits):
    name, *rest = path
    item = getattr(value, name)
    if rest:
        return replace(value, **{name: changed(item, rest, at, bits)})
    at %= len(item)
    return replace(value, **{name: item[:at] + bytes([item[at] ^ bits]) + item[at + 1 :]})


@given(st.sampled_from(sorted(paths(EVIDENCE))), st.integers(0, 2**16), st.integers(1, 255), st.booleans())
def test_no_byte_of_the_evidence_can_be_changed(path, at, bits, prove):
    """Even by who knows the secret; but for words of the boot log that nothing measured."""
    mutated = changed(EVIDENCE, path, at, bits)
    if prove and path != ("activation_proof",):
        mutated = proven(mutated, STORED)
    try:
        verified = verify(mutated, STORED)
    except Refusal:
        return
    assert path == ("boot_log",)
    assert verified.pcrs == verify(EVIDENCE, STORED).pcrs


@given(st.binary(max_size=200), st.sampled_from(sorted(paths(EVIDENCE))))
def test_garbage_in_any_field_is_refused_by_name(garbage, path):
    name, *rest = path
    value = replace(getattr(EVIDENCE, name), **{rest[0]: garbage}) if rest else garbage
    mutated = replace(EVIDENCE, **{name: value})
    if path != ("activation_proof",):
        mutated = proven(mutated, STORED)
    with pytest.raises(Refusal):
        verify(mutated, STORED)
