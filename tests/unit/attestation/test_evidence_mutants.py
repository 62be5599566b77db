"""The straight line over the evidence, and the appraisal behind it: what each refusal says, what is passed on."""

import hashlib
from dataclasses import replace
from types import MappingProxyType

import pytest

from provisioning.attestation.appraisal import appraise, select_pcrs, softened
from provisioning.attestation.eventlog import parse_event_log
from provisioning.attestation.evidence import verify_activation, verify_evidence, verify_platform
from provisioning.attestation.ima_policy import ImaPolicy
from provisioning.attestation.policy import ExpectedEvent, parse_policy
from provisioning.attestation.policy_roots import anchors, missing
from provisioning.attestation.quote import TpmState, VerifiedPcrs
from provisioning.refusals import (
    AkNotInEndorsementHierarchy,
    AnswersAnotherChallenge,
    BankRefused,
    BootLogMalformed,
    BootLogMissing,
    DeviceKeyAttributesRefused,
    DeviceKeyNotCertified,
    DeviceKeyReused,
    Finding,
    ImaLogDoesNotReplay,
    ImaLogMalformed,
    ImaLogMissing,
    ImaNotAccepted,
    OnlySha1Banks,
    PcrsNotAccepted,
    PolicyMalformed,
    Refusal,
    TpmWentBack,
)
from tests.support.ek_certificates import pem, root, rsa_key
from tests.unit.attestation import test_evidence as line
from tests.unit.attestation.test_ima import ALL, LOG, entry, kernel
from wire.binding import binding
from wire.messages import PcrSelection, PlatformEvidence


def both_sides(refusal, call, *arguments, **given):
    with pytest.raises(Refusal) as refused:
        call(*arguments, **given)
    assert type(refused.value) is refusal
    return refused.value.expected, refused.value.actual


@pytest.fixture(scope="module")
def device():
    return line.LightDevice("device", rsa_key(), b"", line.BOOT)


# --- evidence -----------------------------------------------------------------------------------------------------


def bound(stored, part, csr, ak):
    return binding(
        stored.flow,
        part,
        audience=stored.audience,
        nonce=stored.nonce,
        csr=csr,
        ak_name=ak.name,
        enrollment_id=stored.enrollment_id,
    )


def test_evidence_with_another_request_shows_what_was_bound(device):
    evidence, stored = line.honest(device)
    other, _ = line.honest(device)
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    told = both_sides(AnswersAnotherChallenge, verify_evidence, other, None, activated, line.POLICY, None, {})
    expected = bound(stored, "certify", evidence.csr, line.verify_attestation_key(stored.ak_public))
    assert told == (expected.hex(), "evidence with another CSR")
    platform = PlatformEvidence(evidence.quote, evidence.pcrs, evidence.activation_proof)
    told = both_sides(AnswersAnotherChallenge, verify_platform, platform, None, activated, line.POLICY, None, {})
    assert told == ("an attest challenge", "one that was activated with a CSR")


def test_a_quote_for_another_challenge_shows_both(device):
    evidence, stored = line.honest(device)
    other = replace(stored, nonce=b"m" * 32)
    told = both_sides(AnswersAnotherChallenge, line.verify, line.proven(evidence, other), other)
    ak = line.verify_attestation_key(stored.ak_public)
    quotes = (bound(one, "quote", evidence.csr, ak).hex() for one in (other, stored))
    assert told == tuple(quotes)


def test_an_ak_of_another_hierarchy_shows_its_name():
    device = line.LightDevice("owner", rsa_key(), b"", line.BOOT)
    device.ak = line.OwnersKey(device.ak.private, device.ak.public, device.ak.name)
    ak = line.verify_attestation_key(device.ak.public)
    told = both_sides(AkNotInEndorsementHierarchy, line.verify, *line.honest(device))
    assert told == (ak.qualified_name.hex(), device.ak.qualified_name.hex())


def test_what_is_known_of_a_device_key_comes_back_and_each_refusal_shows_it(device):
    evidence, stored = line.honest(device)
    verified = line.verify(evidence, stored)
    name = b"\0\x0b" + hashlib.sha256(evidence.device_public).digest()
    assert verified.key.name == name
    assert verified.tpm == verified.pcrs.tpm
    other, _ = line.honest(device)
    told = both_sides(DeviceKeyNotCertified, line.verify, replace(evidence, device_public=other.device_public), stored)
    assert told == ((b"\0\x0b" + hashlib.sha256(other.device_public).digest()).hex(), name.hex())
    told = both_sides(DeviceKeyReused, line.verify, evidence, replace(stored, ek_id=verified.key.key_id))
    assert told == ("a key of its own", "the EK")


def test_the_attributes_of_a_device_key_are_shown(device):
    device.prepare()
    key = device.device_key
    public = key.public[:4] + (int.from_bytes(key.public[4:8], "big") | 1 << 16).to_bytes(4, "big") + key.public[8:]
    device.device_key = replace(key, public=public, name=b"\0\x0b" + hashlib.sha256(public).digest())
    stored = line.challenge_for(device)
    expected, actual = both_sides(DeviceKeyAttributesRefused, line.verify, device.answer(line.sent(stored)), stored)
    assert "; not " in expected
    assert "restricted" in expected.split("; not ")[1]
    assert "restricted" in actual
    assert "fixedTPM" in expected.split("; not ")[0]


def attested(device, **changes):
    stored = line.challenge_for(device, flow="attest", boot_log="required", **changes)
    evidence = device.attest(line.sent(stored))
    return evidence, verify_activation(evidence.activation_proof, b"", stored)


def test_an_attestation_tells_values_and_state(device):
    evidence, activated = attested(device)
    verified = verify_platform(evidence, evidence.boot_log, activated, line.POLICY, None, {})
    assert dict(verified.pcrs.values) == {pcr: line.BOOT.pcrs[pcr] for pcr in line.PCRS}
    assert verified.tpm == verified.pcrs.tpm
    assert verified.tpm.reset_count == 1
    before = replace(verified.tpm, clock=verified.tpm.clock + 1)
    with pytest.raises(TpmWentBack):
        verify_platform(evidence, evidence.boot_log, activated, line.POLICY, before, {})
    assert verify_platform(evidence, evidence.boot_log, activated, line.POLICY, verified.tpm, {})


def test_a_log_that_was_asked_for_is_there_and_is_the_announced_one(device):
    evidence, activated = attested(device)
    told = both_sides(BootLogMissing, verify_platform, evidence, None, activated, line.POLICY, None, {})
    assert told == ("a boot log", "none")
    log = evidence.boot_log
    announced = replace(evidence, boot_log_sha256=hashlib.sha256(b"other").digest())
    told = both_sides(BootLogMalformed, verify_platform, announced, log, activated, line.POLICY, None, {})
    assert told == (hashlib.sha256(b"other").hexdigest(), hashlib.sha256(log).hexdigest())
    true = replace(evidence, boot_log_sha256=hashlib.sha256(log).digest())
    assert verify_platform(true, log, activated, line.POLICY, None, {}).findings == ()


def test_the_devices_names_reach_the_appraisal(device):
    """A policy that learns lets exactly these pass, on both roads."""
    bad = MappingProxyType({"sha256": MappingProxyType({pcr: frozenset({bytes(32)}) for pcr in line.PCRS})})
    policy = replace(line.POLICY, pcrs=bad, mode="learn", learn_from=("gw-1",))
    evidence, stored = line.honest(device)
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    found = verify_evidence(evidence, None, activated, policy, None, {}, device=("gw-1",)).findings
    assert [finding.refused for finding in found] == [True] * len(line.PCRS)
    with pytest.raises(PcrsNotAccepted):
        verify_evidence(evidence, None, activated, policy, None, {}, device=("gw-2",))
    platform, opened = attested(device)
    found = verify_platform(platform, platform.boot_log, opened, policy, None, {}, device=("gw-1",)).findings
    assert [finding.refused for finding in found] == [True] * len(line.PCRS)
    with pytest.raises(PcrsNotAccepted):
        verify_platform(platform, platform.boot_log, opened, policy, None, {}, device=("gw-2",))


def test_the_log_explains_a_value_on_both_roads(device):
    """With the log, the first event that the policy does not expect is named."""
    values = {pcr: frozenset({line.BOOT.pcrs[pcr]}) for pcr in line.PCRS} | {0: frozenset({bytes(32)})}
    expected = ExpectedEvent(0, bytes(32), "the firmware")
    policy = replace(line.POLICY, pcrs=MappingProxyType({"sha256": MappingProxyType(values)}), events=(expected,))
    platform, opened = attested(device)
    with pytest.raises(PcrsNotAccepted) as refused:
        verify_platform(platform, platform.boot_log, opened, policy, None, {})
    assert refused.value.actual == "PCR 0"
    value, event = refused.value.findings
    assert (value.what, value.expected, value.actual) == ("PCR 0", "00" * 32, line.BOOT.pcrs[0].hex())
    assert event.what.startswith("PCR 0, event ")
    assert event.expected == "00" * 32 + " the firmware"
    evidence, stored = line.honest(device, boot_log="required")
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    with pytest.raises(PcrsNotAccepted) as refused:
        verify_evidence(evidence, evidence.boot_log, activated, policy, None, {})
    assert len(refused.value.findings) == 2


# --- appraisal ----------------------------------------------------------------------------------------------------

STATE = TpmState(1, 0, 1000, safe=True, firmware_version=1)


def shown(**values):
    return VerifiedPcrs("sha256", MappingProxyType({int(name[1:]): value for name, value in values.items()}), STATE)


def accepting(values, **changes):
    table = MappingProxyType({"sha256": MappingProxyType({pcr: frozenset(some) for pcr, some in values.items()})})
    return replace(line.POLICY, pcrs=table, release_pcrs=frozenset(), **changes)


A, B, C = b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32


def test_banks_that_do_not_count_are_shown():
    assert select_pcrs(line.POLICY, ("sha1", "sha256")).bank == "sha256"
    told = both_sides(OnlySha1Banks, select_pcrs, line.POLICY, ("sha1",))
    assert told == ("a SHA-256 bank, or stronger", "sha1")
    assert both_sides(BankRefused, select_pcrs, line.POLICY, ("sha512", "sha3_256")) == (
        "sha384, sha256",
        "sha512, sha3_256",
    )
    assert both_sides(BankRefused, select_pcrs, line.POLICY, ()) == ("sha384, sha256", "none")


def test_what_is_wrong_is_named_once_each():
    policy = accepting({0: [B, A], 4: [A], 7: [A], 9: [A]})
    with pytest.raises(PcrsNotAccepted) as refused:
        appraise(shown(p0=C, p4=C, p7=A), None, None, policy, {})
    assert (refused.value.expected, refused.value.actual) == ("the values of the policy", "PCR 9, PCR 0, PCR 4")
    said = 'Boot what the policy names; or, if this boot is meant, add "{}" to "{}" of [pcrs.sha256].'
    assert list(refused.value.findings) == [
        Finding("PCR 9", "to be quoted", "not quoted"),
        Finding("PCR 0", f"{A.hex()} or {B.hex()}", C.hex(), said.format(C.hex(), 0)),
        Finding("PCR 4", A.hex(), C.hex(), said.format(C.hex(), 4)),
    ]


def test_a_policy_of_another_bank_judges_no_pcr_and_accepts_none():
    policy = replace(line.POLICY, pcrs=MappingProxyType({}))
    told = both_sides(PcrsNotAccepted, appraise, shown(p0=A), None, None, policy, {})
    assert told == ("the values of the policy", "every PCR")


def test_what_nobody_judges_is_told():
    policy = accepting({0: [A]})
    assert appraise(shown(p0=A, p9=B), None, None, policy, {}) == (Finding("PCR 9", "a value in the policy", "none"),)


def test_the_first_deviation_is_told_from_both_lists():
    image = line.IMAGE
    log = parse_event_log(line.event_log(image))
    mine = [event for event in log.events if event.pcr == 0 and event.event_type != 3]
    wanted = [ExpectedEvent(0, event.digests["sha256"], f"step {n} ") for n, event in enumerate(mine)]
    policy = accepting({0: [A]})

    def deviation(events):
        with pytest.raises(PcrsNotAccepted) as refused:
            appraise(shown(p0=B), log, None, replace(policy, events=tuple(events)), {})
        return list(refused.value.findings[1:])

    assert deviation(wanted) == []
    last = mine[-1]
    shown_last = f"{last.digests['sha256'].hex()} {last.text}"
    if len(mine) > 1:
        assert deviation(wanted[:-1]) == [Finding(f"PCR 0, event {last.number}", "no further event", shown_last)]
    more = ExpectedEvent(0, C, "the end ")
    assert deviation([*wanted, more]) == [
        Finding(f"PCR 0, its event {len(wanted)}", f"{C.hex()} the end", "the log ends"),
    ]
    changed = replace(wanted[-1], digest=C, description="")
    assert deviation([*wanted[:-1], changed]) == [Finding(f"PCR 0, event {last.number}", C.hex(), shown_last)]
    assert deviation([ExpectedEvent(0, b"\1" * 48, "of another bank"), ExpectedEvent(1, C, "of another PCR")]) == []


def test_only_these_modes_soften():
    assert not softened(line.POLICY, ("gw",))
    assert softened(replace(line.POLICY, mode="monitor"), ())
    learning = replace(line.POLICY, mode="learn", learn_from=("gw",))
    assert softened(learning, ("x", "gw"))
    assert not softened(learning, ("x",))
    assert not softened(replace(learning, mode="enforce"), ("gw",))


# --- policies -----------------------------------------------------------------------------------------------------

ROOT = root("Policy Root")
INTEL = 'manufacturers = ["id:494E5443"]'


ONE_PCR = f'"0" = ["{"ab" * 32}"]'


def text(*tables, pcrs=ONE_PCR, **fields):
    lines = ['model = "m"', *(f"{name} = {value}" for name, value in fields.items()), *tables]
    return "\n".join([*lines, "[pcrs.sha256]", pcrs])


def rooted(certificate=None, more="", name="ek_roots"):
    body = pem(ROOT.der) if certificate is None else certificate
    return f'[[{name}]]\ncertificate = """{body}"""\n{INTEL}\n{more}'


def why(written):
    with pytest.raises(PolicyMalformed) as refused:
        parse_policy(written)
    return refused.value.actual.split(": ", 1)[1]


def test_the_extremes_of_a_policy_are_read():
    pcrs = "\n".join(f'"{pcr}" = ["{"ab" * 32}"]' for pcr in (0, 23))
    events = "\n".join(f'[[events]]\npcr = {pcr}\ndigest = "{"cd" * 32}"\ndescription = "e{pcr}"' for pcr in (0, 23))
    parsed = parse_policy(text(rooted(), events, pcrs=pcrs, enrollments_per_day=1, min_tpm_firmware=0))
    assert list(parsed.pcrs["sha256"]) == [0, 23]
    assert parsed.events == tuple(ExpectedEvent(pcr, b"\xcd" * 32, f"e{pcr}") for pcr in (0, 23))
    assert parsed.enrollments_per_day == 1
    for name, value, said in (
        ("enrollments_per_day", 0, "enrollments_per_day is less than 1"),
        ("min_tpm_firmware", -1, "min_tpm_firmware is negative"),
    ):
        assert why(text(rooted(), **{name: value})) == said
    for pcr in (-1, 24):
        event = f'[[events]]\npcr = {pcr}\ndigest = "{"cd" * 32}"'
        assert why(text(rooted(), event)) == "events[0].pcr is not a PCR from 0 to 23"
    assert why(text(rooted(), pcrs='"24" = []')).endswith("is not a PCR from 0 to 23")


def test_what_a_policy_says_of_roots_is_read_whole():
    key = parse_policy(text(ek_trust='"key"', sha1_authorities='"accept"'))
    assert (key.ek_trust, key.sha1_authorities, key.model, key.ek_roots) == ("key", "accept", "m", ())
    both = parse_policy(text(rooted(), rooted(name="identity_roots")))
    assert len(both.ek_roots) == len(both.identity_roots) == 1
    assert (both.ek_trust, both.sha1_authorities) == ("certificate", "refuse")
    stores = [f'[[{name}]]\nstore = "intel"' for name in ("ek_roots", "identity_roots")]
    prints = [f'[[{name}]]\nfingerprint = "{"ab" * 32}"\n{INTEL}' for name in ("ek_roots", "identity_roots")]
    named = parse_policy(text(*stores, *prints))
    for name, found in (("ek_roots", named.ek_roots), ("identity_roots", named.identity_roots)):
        store, fingerprint = found
        assert (store.manufacturer, store.fingerprint, store.where) == ("Intel", None, f"{name}[0].store")
        assert store.manufacturers == {"id:494E5443"}
        assert (fingerprint.manufacturer, fingerprint.fingerprint) == (None, "ab" * 32)
        assert fingerprint.where == f"{name}[1].fingerprint"
        assert [one.where for one in missing(found, line_store())] == [f"{name}[0].store", f"{name}[1].fingerprint"]


def line_store():
    from provisioning.attestation.ek_store import EMPTY

    return EMPTY


def test_roots_of_both_ways_stand_side_by_side():
    from tests.unit.attestation.test_ek_store import store_of

    other = root("Kept Root")
    parsed = parse_policy(text(rooted(), '[[ek_roots]]\nstore = "Intel"'))
    found = anchors(parsed.ek_roots, store_of(other))
    assert [one.certificate.der for one in found] == [ROOT.der, other.der]
    assert all(one.manufacturers == {"id:494E5443"} for one in found)


def test_what_is_no_root_says_why():
    impostor = ROOT.intermediate("Device", ca=False)
    assert why(text(rooted(pem(impostor.der)))).endswith("is not of a certificate authority")
    assert why(text(rooted(""))) == "ek_roots[0].certificate holds no PEM certificate"
    assert why(text('[[ek_roots]]\nstore = "Acme"')) == (
        "ek_roots[0].store is in no registry: write manufacturers = [...] beside it"
    )
    assert why(text(f"[[ek_roots]]\n{INTEL}")) == (
        "ek_roots[0] names nothing: write one of certificate, store, fingerprint"
    )
    twice = rooted(more='store = "Intel"\n')
    assert why(text(twice)).startswith("ek_roots[0] names certificate and store: ")
    broken = pem(ROOT.der).replace("MI", "M!I", 1)
    assert "ek_roots[0]" in why(text(rooted(broken)))
    lists = 'crls = "no list"\n'
    assert why(text(rooted(more=lists))) == "ek_roots[0].crls holds no PEM CRL"
    assert why(text(rooted(), rooted(more=lists, name="identity_roots"))) == "identity_roots[0].crls holds no PEM CRL"
    blank = parse_policy(text(rooted(more='crls = " "\n')))
    assert blank.crls == ()


# --- the IMA log on both roads ------------------------------------------------------------------------------------

IMA_BOOT = line.LightBoot({**line.BOOT.pcrs, 10: kernel(ALL)}, line.BOOT.log)
BAD_FILES = replace(line.POLICY, pcrs=MappingProxyType({"sha256": MappingProxyType({10: frozenset()})}))
BAD_FILES = replace(
    BAD_FILES,
    ima_log="required",
    release_pcrs=frozenset(),
    ima=ImaPolicy(MappingProxyType({}), boot_aggregate="accept"),
)


def roads(rule, *, digest=None, log=LOG, pcrs=(10,), policy=BAD_FILES):
    """Evidence and platform evidence under one rule: what each line makes of the log."""
    device = line.LightDevice("ima", rsa_key(), b"", IMA_BOOT)
    selection = PcrSelection("sha256", pcrs)
    stored = line.challenge_for(device, ima_log=rule, pcr_selection=selection)
    evidence = replace(device.answer(line.sent(stored), stored.flow), ima_log_sha256=digest)
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    stored = line.challenge_for(device, ima_log=rule, pcr_selection=selection, flow="attest")
    platform = replace(device.attest(line.sent(stored)), ima_log_sha256=digest)
    opened = verify_activation(platform.activation_proof, b"", stored)
    given = {"ima_log": log}
    return (
        lambda: verify_evidence(evidence, None, activated, policy, None, {}, **given),
        lambda: verify_platform(platform, None, opened, policy, None, {}, **given),
    )


def test_a_log_that_replays_reaches_the_appraisal():
    for road in roads("required"):
        with pytest.raises(ImaNotAccepted) as refused:
            road()
        assert len(refused.value.findings) == len(ALL)
    for road in roads("optional", digest=hashlib.sha256(LOG).digest()):
        with pytest.raises(ImaNotAccepted):
            road()


@pytest.mark.parametrize(
    ("rule", "given", "refusal", "told"),
    [
        ("required", {"log": None}, ImaLogMissing, ("an IMA log", "none")),
        (
            "optional",
            {"digest": b"\1" * 32},
            ImaLogMalformed,
            ("01" * 32, hashlib.sha256(LOG).hexdigest()),
        ),
        ("optional", {"pcrs": (0,)}, ImaLogDoesNotReplay, ("PCR 10 in the quote", "another selection")),
        ("required", {"log": LOG[:-1]}, ImaLogMalformed, None),
        ("required", {"log": entry(data=b"another")}, ImaLogDoesNotReplay, None),
    ],
)
def test_a_log_that_does_not_count_says_why(rule, given, refusal, told):
    for road in roads(rule, **given):
        assert both_sides(refusal, road) == (told or both_sides(refusal, road))


def test_a_log_that_nobody_asked_for_is_not_looked_at():
    """It may be anything: the policy that needs one says that none was there."""
    for rule, log in (("none", b"junk"), ("none", LOG), ("optional", None)):
        for road in roads(rule, log=log):
            assert both_sides(ImaLogMissing, road) == ("an IMA log", "none was sent")
