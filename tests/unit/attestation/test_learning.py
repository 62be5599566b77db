"""Learned policies: every value of the chosen devices, on how many it was seen, and nothing else."""

import hashlib
import re
import tomllib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation import learning
from provisioning.attestation.ima import CoveredIma, parse_ima_log
from provisioning.attestation.ima_fields import Fields
from provisioning.attestation.learning import Lessons, learned
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.policy_toml import Remarked, to_toml
from provisioning.attestation.rejudging import judge_again, verify_shown
from provisioning.refusals import PolicyMalformed
from tests.support.boot_logs import booted, entry
from tests.support.shown import ima_log_of, pcrs_after, signed_entry, stored

PCRS = tuple(range(11))
AGENT = {"/usr/bin/agent": hashlib.sha256(b"agent").digest()}
SHELL = {**AGENT, "/bin/a shell": hashlib.sha256(b"shell").digest()}
GOOD = [entry(0, 0x80000008, b"firmware"), *booted()]
OTHER = [entry(0, 0x80000008, b"another firmware"), *booted()]
LEARNING = 'model = "gateway"\nek_trust = "key"\nmode = "learn"\nlearn_from = ["a", "b"]\n'


def text_of(*, head=LEARNING, pcrs=PCRS, more="", values=None):
    known = values or {}
    lines = [f'"{pcr}" = [{", ".join(repr(value.hex()) for value in known.get(pcr, ()))}]' for pcr in pcrs]
    return head + "[pcrs.sha256]\n" + "\n".join(lines) + "\n" + more


def lessons_of(text, *evidence):
    found = Lessons(parse_policy(text))
    for number, one in enumerate(evidence):
        found.add(f"device-{number}", verify_shown(one))
    return found


def learn(text, *evidence, head=()):
    return learned(text, lessons_of(text, *evidence), head)


def remarks(text):
    """Each value of the text with the remark behind it."""
    return dict(re.findall(r'^ *"([0-9a-f]+)",  # (.*)$', text, re.MULTILINE))


def test_each_value_says_on_how_many_devices_it_was_seen():
    shown = [stored(GOOD, PCRS), stored(OTHER, PCRS), stored(GOOD, PCRS)]
    text = learn(text_of(), *shown)
    policy = parse_policy(text)
    assert policy.pcrs["sha256"][0] == {pcrs_after(GOOD)[0], pcrs_after(OTHER)[0]}
    said = remarks(text)
    assert said[pcrs_after(GOOD)[0].hex()] == "seen on 2 of 3 devices"
    assert said[pcrs_after(OTHER)[0].hex()] == "seen on 1 of 3 devices"
    assert said[pcrs_after(GOOD)[4].hex()] == "seen on 3 of 3 devices"
    # The most frequent first, so that what stands out stands last.
    assert text.index(pcrs_after(GOOD)[0].hex()) < text.index(pcrs_after(OTHER)[0].hex())
    assert all(judge_again(one, policy, {}).outcome == "pass" for one in shown)


def test_one_device_is_one_device():
    assert set(remarks(learn(text_of(), stored(booted(), PCRS))).values()) == {"seen on 1 of 1 device"}


def test_what_no_device_showed_is_not_accepted():
    policy = parse_policy(learn(text_of(), stored(booted(), PCRS)))
    verdict = judge_again(stored(OTHER, PCRS), policy, {})
    assert (verdict.outcome, [f.what for f in verdict.refusals[0].findings]) == ("fail", ["PCR 0"])


def test_the_next_step_monitors_and_says_who_taught():
    text = learn(text_of(), stored(booted(), PCRS), head=("gateway: learned", "a line\nwith # more"))
    assert text.startswith("# gateway: learned\n# a line with # more\n")
    policy = parse_policy(text)
    assert (policy.mode, policy.learn_from) == ("monitor", ())


@pytest.mark.parametrize("mode", ["monitor", "enforce"])
def test_a_policy_that_does_not_learn_keeps_its_mode(mode):
    values = {pcr: [bytes(32)] for pcr in PCRS}
    text = text_of(head=f'model = "gateway"\nek_trust = "key"\nmode = "{mode}"\n', values=values)
    assert parse_policy(learn(text, stored(booted(), PCRS))).mode == mode


def test_values_that_no_device_showed_any_more_go_and_others_stay():
    old = bytes([7]) * 32
    text = text_of(pcrs=(0, 14), values={0: [old], 14: [old]})
    policy = parse_policy(learn(text, stored(booted(), (0, 1))))
    assert policy.pcrs["sha256"] == {0: {pcrs_after(booted())[0]}, 14: {old}}
    assert remarks(learn(text, stored(booted(), (0, 1))))[old.hex()] == "no device showed this PCR: as it was"


def test_a_pcr_that_no_device_showed_and_that_has_no_value_goes():
    policy = parse_policy(learn(text_of(pcrs=(0, 14)), stored(booted(), (0, 1))))
    assert set(policy.pcrs["sha256"]) == {0}


def test_what_rules_and_releases_judge_stays_without_values():
    text = text_of(
        head=LEARNING + "release_pcrs = [8, 9]\n", more='[rules]\nsecure_boot = "on"\n', pcrs=(0, 4, 7, 8, 9)
    )
    policy = parse_policy(learn(text, stored(booted(), PCRS)))
    assert [len(policy.pcrs["sha256"][pcr]) for pcr in (0, 4, 7, 8, 9)] == [1, 1, 0, 0, 0]
    assert policy.rules == parse_policy(text).rules


def test_a_bank_of_which_there_is_no_evidence_goes():
    text = LEARNING + 'banks = ["sha384", "sha256"]\n[pcrs.sha384]\n0 = []\n[pcrs.sha256]\n0 = []\n'
    policy = parse_policy(learn(text, stored(booted(), PCRS)))
    assert (policy.banks, set(policy.pcrs)) == (("sha256",), {"sha256"})


@pytest.mark.parametrize(
    "text", [text_of(), text_of(values={pcr: [bytes(32)] for pcr in PCRS})], ids=["no values", "values"]
)
def test_nothing_is_learned_from_nobody(text):
    with pytest.raises(PolicyMalformed) as refused:
        learn(text)
    assert "of a device to learn from" in refused.value.expected


# --- files --------------------------------------------------------------------------------------------------------

MEASURED = text_of(head=LEARNING + 'ima_log = "required"\n')


def test_files_are_listed_under_the_number_of_devices_that_measured_them():
    shown = [stored(booted(), PCRS, SHELL), stored(booted(), PCRS, AGENT), stored(OTHER, PCRS, AGENT)]
    text = learn(MEASURED, *shown)
    files = tomllib.loads(text)["ima"]["files"].splitlines()
    assert files == [
        "# each seen on 3 of 3 devices",
        f"sha256:{AGENT['/usr/bin/agent'].hex()}  /usr/bin/agent",
        "# each seen on 1 of 3 devices",
        f"sha256:{SHELL['/bin/a shell'].hex()}  /bin/a shell",
    ]
    policy = parse_policy(text)
    assert policy.pcrs["sha256"][10] == frozenset()
    assert policy.ima.boot_aggregate == "check"
    assert all(judge_again(one, policy, {}).outcome == "pass" for one in shown)
    more = {**SHELL, "/bin/more": bytes([9]) * 32}
    assert judge_again(stored(booted(), PCRS, more), policy, {}).outcome == "fail"


def test_without_the_aggregated_pcrs_the_aggregate_is_not_checked():
    text = learn(text_of(head=LEARNING + 'ima_log = "required"\n', pcrs=(0, 10)), stored(booted(), PCRS, AGENT))
    assert parse_policy(text).ima.boot_aggregate == "accept"


def test_excluded_files_and_what_the_policy_says_of_files_stay():
    more = "[ima]\nexcludes = ['/bin/*']\nfiles = 'sha256:" + "0" * 64 + "  /gone'\nboot_aggregate = 'accept'\n"
    text = learn(text_of(more=more), stored(booted(), PCRS, SHELL))
    policy = parse_policy(text)
    assert policy.ima.excludes == ("/bin/*",)
    assert [sorted(paths) for paths in policy.ima.files.values()] == [["/usr/bin/agent"]]
    assert policy.ima.boot_aggregate == "accept"


def test_what_no_line_can_say_is_left_out_and_named():
    odd = {**AGENT, "/bin/a\nb": bytes([3]) * 32, "/bin/end ": bytes([4]) * 32, "relative/path": bytes([5]) * 32}
    text = learn(MEASURED, stored(booted(), PCRS, odd))
    assert len(parse_policy(text).ima.files) == 1
    head = text.splitlines()[0]
    assert head.startswith("# Not listed, for no line can say them: ")
    assert "/bin/end" in head
    assert "relative/path" in head


def covered_by(log):
    return CoveredIma(parse_ima_log(log).entries, "template")


def lines_of(text, log):
    """The files that one log teaches."""
    found = Lessons(parse_policy(text))
    return list(found._lines(covered_by(log))), found.left_out


def test_what_a_key_of_the_policy_signed_needs_no_line():
    key, digest = ec.generate_private_key(ec.SECP256R1()), AGENT["/usr/bin/agent"]
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    made = key.sign(digest, ec.ECDSA(Prehashed(SHA256())))
    named = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[-4:]
    header = b"\x03\x02\x04" + named + len(made).to_bytes(2, "big")
    log = ima_log_of(pcrs_after(booted()), {}) + signed_entry("/usr/bin/agent", digest, header + made)
    keys = f'[ima]\nkeys = ["""{public}"""]\n'
    assert lines_of(text_of(more=keys), log) == ([], set())
    forged = ima_log_of(pcrs_after(booted()), {}) + signed_entry("/usr/bin/agent", bytes(32), header + made)
    assert lines_of(text_of(more=keys), forged)[0] == [f"sha256:{'0' * 64}  /usr/bin/agent"]
    assert len(lines_of(MEASURED, log)[0]) == 1


def test_what_says_nothing_of_a_file_teaches_none():
    before = ima_log_of(pcrs_after(booted()), {})
    log = bytearray(ima_log_of(pcrs_after(booted()), AGENT))
    log[len(before) + 4 : len(before) + 24] = bytes(20)  # a violation
    assert lines_of(MEASURED, bytes(log)) == ([], set())
    other = bytearray(ima_log_of(pcrs_after(booted()), AGENT))
    other[len(before)] = 11  # of another PCR
    assert lines_of(MEASURED, bytes(other)) == ([], set())
    unknown = ima_log_of(pcrs_after(booted()), AGENT).replace(b"ima-ng", b"my-own")
    assert lines_of(MEASURED, unknown)[1] == {"entry 0", "entry 1"}


def test_files_are_not_learned_where_no_log_is_asked_for():
    text = learn(text_of(pcrs=(0, 10)), stored(booted(), PCRS, AGENT))
    assert parse_policy(text).ima is None


def test_more_files_than_a_policy_holds_are_refused(monkeypatch):
    monkeypatch.setattr(learning, "FILES_MOST", 1)
    with pytest.raises(PolicyMalformed):
        learn(MEASURED, stored(booted(), PCRS, SHELL))


def test_the_hash_of_an_old_kernel_is_not_listed():
    fields = Fields("sha1", bytes(20), "ima", "/bin/x", b"", b"", {})
    assert learning._line(fields) is None
    assert learning._line(replace(fields, algorithm="sha256", digest=bytes(32))) == f"sha256:{'0' * 64}  /bin/x"
    verity = replace(fields, algorithm="sha256", digest=bytes(32), digest_type="verity")
    assert learning._line(verity) == f"verity:sha256:{'0' * 64}  /bin/x"


# --- TOML ---------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXTS)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_written_is_read_as_it_was(document):
    assert tomllib.loads(to_toml(document, ("a head", "of two\nlines"))) == document


def test_a_certificate_keeps_its_lines():
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    assert f"certificate = '''\n{pem}'''" in to_toml({"ek_roots": [{"certificate": pem}]})


def test_a_remark_stays_on_its_line():
    written = to_toml({"a": [Remarked("v", "one\n] two")]})
    assert written == 'a = [\n  "v",  # one ] two\n]\n'
    assert tomllib.loads(written) == {"a": ["v"]}


def test_what_no_policy_has_is_not_written():
    with pytest.raises(TypeError):
        to_toml({"a": None})
