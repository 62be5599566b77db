"""IMA's part of a policy: which of the measured files it accepts, and whose signatures count."""

import hashlib
import struct
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation.ima import parse_ima_log, verify_ima
from provisioning.attestation.ima_policy import FileDigest, ImaPolicy
from provisioning.attestation.ima_policy_judge import FINDINGS_MOST, excludes, judge_ima
from provisioning.attestation.ima_policy_signatures import why_not_signed
from provisioning.attestation.ima_policy_text import ImaText, ima_of
from provisioning.attestation.quote import VerifiedPcrs
from tests.support.boot_logs import TPM
from tests.support.ek_certificates import rsa_key
from wire.codec import MalformedMessage

BOOTED = {pcr: bytes([pcr]) * 32 for pcr in range(10)}
AGGREGATE = hashlib.sha256(b"".join(BOOTED.values())).digest()
OLD_AGGREGATE = hashlib.sha256(b"".join(list(BOOTED.values())[:8])).digest()
SHELL = hashlib.sha256(b"shell").digest()
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP384R1())
NUMBERS = {"sha256": 4, "sha384": 5, "sha512": 6}
WEAK_NUMBERS = rsa.RSAPublicNumbers(65537, (1 << 1023) + 1)
LISTED = ImaPolicy(MappingProxyType({FileDigest("ima", "sha256", SHELL): frozenset({"/bin/sh"})}))


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


WEAK = WEAK_NUMBERS.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def certificate(key, ski=None):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
    builder = builder.not_valid_after(datetime(2021, 1, 1, tzinfo=UTC))
    if ski is not None:
        builder = builder.add_extension(x509.SubjectKeyIdentifier(ski), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def key_id(key):
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[-4:]


def sized(data):
    return struct.pack("<I", len(data)) + data


def data_of(path, digest=SHELL, algorithm="sha256", kind="", signature=None, behind=b""):
    fields = sized(f"{kind}{algorithm}:".encode() + b"\0" + digest) + sized(path.encode() + b"\0")
    return fields + (b"" if signature is None else sized(signature)) + behind


def signed(key, digest=SHELL, algorithm="sha256", *, version=2, kind=3, named=None, over=None):
    """A signature as evmctl makes it: over the digest (2), or over struct ima_file_id (3)."""
    scheme = Prehashed({"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[algorithm])
    message = over or digest
    if version == 3:
        message = hashlib.new(algorithm, bytes((kind, NUMBERS[algorithm])) + message).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        value = key.sign(message, padding.PKCS1v15(), scheme)
    else:
        value = key.sign(message, ec.ECDSA(scheme))
    header = struct.pack(">BBB", kind, version, NUMBERS[algorithm]) + (named or key_id(key))
    return header + struct.pack(">H", len(value)) + value


def entry(template, data, pcr=10, *, violation=False):
    shown = bytes(20) if violation else hashlib.sha1(data, usedforsecurity=False).digest()
    return struct.pack("<I", pcr) + shown + sized(template.encode()) + sized(data)


def measured(*entries, aggregate=AGGREGATE, padded=False):
    """What a kernel logged, covered by the PCR 10 that it extended. An entry is (template, data), or None."""
    first = [] if aggregate is None else [("ima-ng", data_of("boot_aggregate", aggregate))]
    log, pcr = b"", bytes(32)
    for template, data in [*first, *(one or ("ima-ng", None) for one in entries)]:
        log += entry(template, data or data_of("/x"), violation=data is None)
        if padded:
            digest = (b"\xff" * 20 if data is None else hashlib.sha1(data, usedforsecurity=False).digest()).ljust(
                32, b"\0"
            )
        else:
            digest = b"\xff" * 32 if data is None else hashlib.sha256(data).digest()
        pcr = hashlib.sha256(pcr + digest).digest()
    return verify_ima(parse_ima_log(log), "sha256", pcr)


def judged(covered, policy=LISTED, pcrs=None):
    verified = VerifiedPcrs("sha256", MappingProxyType(BOOTED if pcrs is None else pcrs), TPM)
    return [(finding.what, finding.actual) for finding in judge_ima(covered, policy, verified)]


def by_keys(*keys, **changes):
    parsed = ima_of(ImaText(keys=tuple(key if isinstance(key, str) else pem(key) for key in keys)))
    return replace(parsed, **changes)


SHELL_ENTRY = ("ima-ng", data_of("/bin/sh"))
EVIL_ENTRY = ("ima-ng", data_of("/bin/evil", b"\6" * 32))


# --- the list -------------------------------------------------------------------------------------------------------


def test_a_listed_file_passes_and_another_does_not():
    assert judged(measured(SHELL_ENTRY, SHELL_ENTRY)) == []
    assert judged(measured(SHELL_ENTRY, EVIL_ENTRY)) == [
        ("IMA, entry 2", f"/bin/evil sha256:{'06' * 32}, no signature"),
    ]


def test_a_listed_digest_counts_at_its_path_only():
    found = judged(measured(("ima-ng", data_of("/tmp/sh"))))
    assert found[0][1].startswith("/tmp/sh ")
    anywhere = replace(LISTED, files=MappingProxyType({FileDigest("ima", "sha256", SHELL): None}))
    assert judged(measured(("ima-ng", data_of("/tmp/sh"))), anywhere) == []


@pytest.mark.parametrize(
    "data",
    [
        data_of("/bin/sh", SHELL, kind="verity:"),
        data_of("/bin/sh", SHELL, "sm3"),
        data_of("/bin/sh", SHELL[:20], "sha1"),
        data_of("/bin/sh", SHELL + b"\0"),
    ],
)
def test_a_digest_of_another_kind_is_another(data):
    assert len(judged(measured(("ima-ngv2", data)))) == 1


def test_what_cannot_be_read_is_refused():
    found = judged(measured(("ima-ng", data_of("/bin/sh", behind=b"x")), ("unknown", b"data")))
    assert [what for what, _ in found] == ["IMA, entry 1", "IMA, entry 2"]
    assert found[1][1] == "unknown: 4 bytes"


def test_a_violation_is_refused_unless_the_policy_says_otherwise():
    covered = measured(None, SHELL_ENTRY)
    assert judged(covered) == [("IMA, entry 1", "a violation: it changed meanwhile")]
    assert judged(covered, replace(LISTED, violations="accept")) == []


def test_only_what_was_quoted_is_judged():
    """The tail was not quoted: it is the next attestation's."""
    whole = [("ima-ng", data_of("boot_aggregate", AGGREGATE)), SHELL_ENTRY, EVIL_ENTRY]
    log = parse_ima_log(b"".join(entry(template, data) for template, data in whole))
    pcr = bytes(32)
    for _, data in whole[:2]:
        pcr = hashlib.sha256(pcr + hashlib.sha256(data).digest()).digest()
    assert judged(verify_ima(log, "sha256", pcr)) == []


def test_entries_of_other_pcrs_are_not_believed_and_not_judged():
    log = entry("ima-ng", data_of("boot_aggregate", AGGREGATE)) + entry(*EVIL_ENTRY, pcr=11) + entry(*SHELL_ENTRY)
    pcr = bytes(32)
    for data in (data_of("boot_aggregate", AGGREGATE), SHELL_ENTRY[1]):
        pcr = hashlib.sha256(pcr + hashlib.sha256(data).digest()).digest()
    assert judged(verify_ima(parse_ima_log(log), "sha256", pcr)) == []


def test_a_kernel_without_ima_is_refused():
    covered = verify_ima(parse_ima_log(b""), "sha256", bytes(32))
    assert judged(covered) == [("IMA", "none: IMA is off")]


def test_old_kernels_extend_sha1_which_does_not_count():
    assert judged(measured(SHELL_ENTRY, padded=True)) == [("IMA", "SHA-1 and zeros")]
    assert judged(measured(SHELL_ENTRY, padded=True), replace(LISTED, sha1_template="accept")) == []


def test_findings_are_bounded_and_what_follows_is_not_judged():
    found = judged(measured(*[("ima-ng", data_of(f"/evil/{n}")) for n in range(100)]))
    assert len(found) == FINDINGS_MOST + 1
    assert found[-1] == ("IMA", "more than are named here")


def test_hostile_names_stand_in_findings_escaped_and_short():
    found = judged(measured(("ima-ng", data_of("/tmp/\x1b[31m\n" + "x" * 1000))))
    assert "\x1b" not in found[0][1]
    assert "\n" not in found[0][1]
    assert len(found[0][1]) < 400


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/var/log/*", "/var/log/a/b", True),
        ("/var/log/*", "/var/log/", True),
        ("/var/log/*", "/var/logs", False),
        ("/var/log/*", "/x/var/log/a", False),
        ("/var/*.log", "/var/a.log", True),
        ("/var/*.log", "/var/a.log.exe", False),
        ("/aXa*aXa", "/aXa", False),
        ("/a*a", "/a", False),
        ("kexec-cmdline", "kexec-cmdline", True),
        ("kexec-cmdline", "/kexec-cmdline", False),
    ],
)
def test_an_exclude_is_a_whole_path(pattern, path, fits):
    assert excludes(pattern, path) is fits
    found = judged(measured(("ima-ng", data_of(path, b"\6" * 32))), replace(LISTED, excludes=(pattern,)))
    assert (found == []) is fits


def test_an_exclude_does_not_hide_a_violation():
    assert len(judged(measured(None), replace(LISTED, excludes=("/x",)))) == 1


def test_a_buffer_is_listed_as_a_file_is():
    line = b"root=/dev/sda1 ro"
    data = data_of("kexec-cmdline", hashlib.sha256(line).digest(), behind=sized(line))
    assert len(judged(measured(("ima-buf", data)))) == 1
    listed = ima_of(ImaText(files=f"{hashlib.sha256(line).hexdigest()}  kexec-cmdline"))
    assert judged(measured(("ima-buf", data)), listed) == []


# --- the boot aggregate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", [AGGREGATE, OLD_AGGREGATE])
def test_the_first_entry_is_the_hash_of_the_quoted_pcrs(aggregate):
    assert judged(measured(SHELL_ENTRY, aggregate=aggregate)) == []


def test_the_log_of_another_boot_is_refused():
    found = judged(measured(SHELL_ENTRY, aggregate=b"\3" * 32))
    assert found == [("IMA, entry 0", f"sha256:{'03' * 32} as boot_aggregate")]
    assert judged(measured(SHELL_ENTRY, aggregate=b"\3" * 32), replace(LISTED, boot_aggregate="accept")) == []
    changed = BOOTED | {9: b"\1" * 32}
    assert judged(measured(SHELL_ENTRY), pcrs=changed) == [
        ("IMA, entry 0", f"sha256:{AGGREGATE.hex()} as boot_aggregate")
    ]
    assert judged(measured(SHELL_ENTRY), pcrs=BOOTED | {0: b"\1" * 32}) != []


def test_an_aggregate_over_pcrs_that_were_not_quoted_is_not_believed():
    without = {pcr: value for pcr, value in BOOTED.items() if pcr != 7}
    for aggregate in (AGGREGATE, OLD_AGGREGATE):
        assert len(judged(measured(SHELL_ENTRY, aggregate=aggregate), pcrs=without)) == 1


def test_an_aggregate_of_another_bank_is_refused():
    data = data_of("boot_aggregate", hashlib.sha1(b"".join(BOOTED.values()), usedforsecurity=False).digest(), "sha1")
    covered = measured(("ima-ng", data), SHELL_ENTRY, aggregate=None)
    assert [what for what, _ in judged(covered)] == ["IMA, entry 0"]


def test_nothing_stands_before_the_aggregate():
    for first in (SHELL_ENTRY, None):
        covered = measured(first, ("ima-ng", data_of("boot_aggregate", AGGREGATE)), aggregate=None)
        for policy in (LISTED, replace(LISTED, boot_aggregate="accept", violations="accept")):
            assert ("IMA, entry 0", "another entry") in judged(covered, policy)


def test_kexec_repeats_the_aggregate_and_no_file_may_call_itself_so():
    again = ("ima-ng", data_of("boot_aggregate", AGGREGATE))
    assert judged(measured(SHELL_ENTRY, again)) == []
    other = ("ima-ng", data_of("boot_aggregate", b"\6" * 32))
    assert [what for what, _ in judged(measured(SHELL_ENTRY, other))] == ["IMA, entry 2"]


# --- signatures -----------------------------------------------------------------------------------------------------


def by_signature(signature, digest=SHELL, algorithm="sha256", kind="", template="ima-sig"):
    return measured((template, data_of("/opt/app", digest, algorithm, kind, signature)))


@pytest.mark.parametrize("key", [rsa_key(), EC_KEY, OTHER_KEY], ids=["rsa", "p256", "p384"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_file_that_a_key_of_the_policy_signed_passes(key, algorithm, version):
    digest = hashlib.new(algorithm, b"app").digest()
    covered = by_signature(signed(key, digest, algorithm, version=version), digest, algorithm)
    assert judged(covered, by_keys(key)) == []
    assert len(judged(covered)) == 1
    assert len(judged(covered, by_keys(ec.generate_private_key(ec.SECP256R1())))) == 1


def test_a_verity_digest_is_signed_with_its_kind():
    signature = signed(EC_KEY, version=3, kind=6)
    assert judged(by_signature(signature, kind="verity:", template="ima-sigv2"), by_keys(EC_KEY)) == []
    # the same digest as a file's, or signed without its kind
    assert len(judged(by_signature(signature), by_keys(EC_KEY))) == 1
    for other in (signed(EC_KEY, version=2, kind=6), signed(EC_KEY, version=2), signed(EC_KEY, version=3)):
        assert len(judged(by_signature(other, kind="verity:", template="ima-sigv2"), by_keys(EC_KEY))) == 1


def test_a_signature_over_another_file_does_not_count():
    assert len(judged(by_signature(signed(EC_KEY, b"\1" * 32)), by_keys(EC_KEY))) == 1


def test_a_signature_with_another_hash_does_not_count():
    signature = bytearray(signed(EC_KEY))
    signature[2] = NUMBERS["sha512"]
    found = judged(by_signature(bytes(signature)), by_keys(EC_KEY))
    assert "over another digest" in found[0][1]


def test_a_signature_of_a_files_metadata_does_not_count():
    assert "over another digest" in judged(by_signature(signed(EC_KEY, kind=5)), by_keys(EC_KEY))[0][1]


def test_sha1_does_not_count():
    digest = hashlib.sha1(b"app", usedforsecurity=False).digest()
    value = EC_KEY.sign(digest, ec.ECDSA(Prehashed(hashes.SHA1())))  # noqa: S303  what is to be refused
    signature = struct.pack(">BBB", 3, 2, 2) + key_id(EC_KEY) + struct.pack(">H", len(value)) + value
    found = judged(by_signature(signature, digest, "sha1"), by_keys(EC_KEY))
    assert "which does not count" in found[0][1]


def test_a_digest_of_the_wrong_length_is_not_signed():
    covered = by_signature(signed(EC_KEY, over=SHELL), SHELL + b"\0")
    assert len(judged(covered, by_keys(EC_KEY))) == 1


@pytest.mark.parametrize(
    "signature",
    [b"\3", b"\3\2\4" + bytes(6), b"\3\1\4" + bytes(6), signed(EC_KEY) + b"x"],
    ids=["one octet", "no signature", "version 1", "longer than it says"],
)
def test_a_malformed_signature_is_named(signature):
    found = judged(by_signature(signature), by_keys(EC_KEY))
    assert len(found) == 1
    assert found[0][0] == "IMA, entry 1"


def test_a_key_is_found_whatever_a_signature_calls_it():
    """The id is a hint, not proof: neither a wrong one counts against a good signature, nor a right one for a bad."""
    assert judged(by_signature(signed(EC_KEY, named=b"\0\0\0\0")), by_keys(OTHER_KEY, EC_KEY)) == []
    found = judged(by_signature(signed(OTHER_KEY, named=key_id(EC_KEY))), by_keys(EC_KEY))
    assert found[0][1].endswith(f"a signature that names the key {key_id(EC_KEY).hex()}, by no key of the policy")


def test_a_certificate_names_a_key_and_its_dates_do_not_matter():
    """As in the kernel; and its own key identifier is one of the key's."""
    policy = by_keys(certificate(EC_KEY, ski=b"\1" * 16 + b"abcd"))
    assert policy.keys[0].ids == {b"abcd", key_id(EC_KEY)}
    assert judged(by_signature(signed(EC_KEY, named=b"abcd")), policy) == []
    assert by_keys(certificate(EC_KEY)).keys[0].ids == {key_id(EC_KEY)}


@given(st.binary(max_size=200))
def test_no_bytes_are_a_signature(data):
    assert why_not_signed(by_keys(EC_KEY).keys, FileDigest("ima", "sha256", SHELL), data) is not None


# --- the text -------------------------------------------------------------------------------------------------------


def test_files_are_listed_as_sha256sum_writes_them():
    text = f"""
# the base system
{"11" * 32}  /usr/bin/a b
{"22" * 32} */usr/bin/c
{"11" * 32}  /usr/bin/d
{"33" * 48}
sha512:{"44" * 64}  /e
verity:sha256:{"55" * 32}  /f
ima:{"AA" * 32}
{"66" * 32}  /g
{"66" * 32}
{"66" * 32}  /h
"""
    assert dict(ima_of(ImaText(files=text)).files) == {
        FileDigest("ima", "sha256", b"\x11" * 32): {"/usr/bin/a b", "/usr/bin/d"},
        FileDigest("ima", "sha256", b"\x22" * 32): {"/usr/bin/c"},
        FileDigest("ima", "sha384", b"\x33" * 48): None,
        FileDigest("ima", "sha512", b"\x44" * 64): {"/e"},
        FileDigest("verity", "sha256", b"\x55" * 32): {"/f"},
        FileDigest("ima", "sha256", b"\xaa" * 32): None,
        FileDigest("ima", "sha256", b"\x66" * 32): None,
    }


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        (ImaText(), "ima", "neither files nor keys"),
        (ImaText(files=" \n# none\n"), "ima", "neither files nor keys"),
        (ImaText(files=f"{'11' * 32}  /a\n/b"), "ima.files", "its line 2 has no digest"),
        (ImaText(files=f"{'11' * 32} /a"), "ima.files", "its line 1 has no digest"),
        (ImaText(files=f"\\{'11' * 32}  /a\\nb"), "ima.files", "its line 1 has no digest"),
        (ImaText(files=f"{'11' * 20}  /a"), "ima.files", "no digest of SHA-256"),
        (ImaText(files=f"{'11' * 32}1  /a"), "ima.files", "no digest of SHA-256"),
        (ImaText(files=f"sha1:{'11' * 32}  /a"), "ima.files", "no digest of sha1"),
        (ImaText(files=f"sha384:{'11' * 32}  /a"), "ima.files", "no digest of sha384"),
        (ImaText(files=f"{'11' * 32}  ./a"), "ima.files", "not absolute"),
        (ImaText(keys=("x",)), "ima.keys[0]", "is not one PEM"),
        (ImaText(keys=(pem(EC_KEY) + pem(EC_KEY),)), "ima.keys[0]", "is not one PEM"),
        (ImaText(keys=(pem(EC_KEY), pem(ed25519.Ed25519PrivateKey.generate()))), "ima.keys[1]", "is not usable"),
        (ImaText(keys=(WEAK,)), "ima.keys[0]", "is not usable"),
        (ImaText(keys=("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",)), "ima.keys[0]", "is not usable"),
        (ImaText(keys=(certificate(EC_KEY).replace("MII", "AAA"),)), "ima.keys[0]", "is not usable"),
        (ImaText(files="11" * 32, excludes=("/a*b*",)), "ima.excludes[0]", "more than one *"),
        (ImaText(files="11" * 32, excludes=("/x", "*")), "ima.excludes[1]", "is neither"),
        (ImaText(files="11" * 32, excludes=("*.log",)), "ima.excludes[0]", "is neither"),
        (ImaText(files="11" * 32, excludes=("a/b",)), "ima.excludes[0]", "is neither"),
        (ImaText(files="11" * 32, excludes=("",)), "ima.excludes[0]", "is neither"),
        (ImaText(files="11" * 32, excludes=("/*",)), "ima.excludes[0]", "excludes everything"),
        (ImaText(files="11" * 32, excludes=("//*",)), "ima.excludes[0]", "excludes everything"),
    ],
)
def test_a_wrong_text_names_its_field(text, where, why):
    with pytest.raises(MalformedMessage) as refused:
        ima_of(text)
    assert refused.value.where == where
    assert why in refused.value.why


@given(st.text(max_size=200))
def test_any_list_of_files_is_read_or_refused_by_name(text):
    try:
        parsed = ima_of(ImaText(files=text))
    except MalformedMessage:
        return
    assert parsed.files
