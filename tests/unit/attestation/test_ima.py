"""IMA logs: parsed whole or not at all; the quoted PCR 10 says how far they are believed."""

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation import ima_fields
from provisioning.attestation.eventtext_reading import MalformedData
from provisioning.attestation.ima import (
    MAX_ENTRIES,
    is_ima_log,
    parse_ima_log,
    replay_ima,
    verify_ima,
)
from provisioning.attestation.ima_ascii import is_ima_ascii, parse_ima_ascii
from provisioning.refusals import ImaLogDoesNotReplay, ImaLogMalformed, Refusal
from wire.messages import IMA_LOG_MOST

ONES = b"\xff" * 20


def sha1(data):
    return hashlib.sha1(data, usedforsecurity=False)


def sized(data):
    return struct.pack("<I", len(data)) + data


def digest_ng(algorithm="sha256", digest=b"\1" * 32, kind=""):
    return sized(f"{kind}{algorithm}:".encode() + b"\0" + digest)


def name(path="/usr/bin/true"):
    return sized(path.encode() + b"\0")


SIGNATURE = struct.pack(">BBBIH", 3, 2, 4, 0xCAFEF00D, 4) + b"\1\2\3\4"
DATA = {
    "ima-ng": digest_ng() + name(),
    "ima-ngv2": digest_ng(kind="verity:") + name(),
    "ima-sig": digest_ng() + name() + sized(SIGNATURE),
    "ima-sigv2": digest_ng(kind="ima:") + name() + sized(SIGNATURE),
    "ima-buf": digest_ng() + name("kexec-cmdline") + sized(b"root=/dev/sda1 ro"),
    "ima-modsig": digest_ng() + name("/m.ko") + sized(b"") + digest_ng() + sized(b"pkcs7"),
    "d-ng|n-ng|iuid": digest_ng() + name() + sized(b"\0\0\0\0"),
}


def entry(template="ima-ng", data=None, pcr=10, template_hash=None, hash_name="sha1"):
    data = DATA[template] if data is None else data
    digest = hashlib.new(hash_name, data).digest() if template_hash is None else template_hash
    return struct.pack("<I", pcr) + digest + sized(template.encode()) + sized(data)


def old_entry(path="/usr/bin/true", pcr=10, template_hash=None):
    """The template `ima`: digest and name, hashed with the name padded to 256 bytes."""
    digest = sha1(b"\2" * 20 + path.encode().ljust(256, b"\0")).digest()
    digest = digest if template_hash is None else template_hash
    return struct.pack("<I", pcr) + digest + sized(b"ima") + b"\2" * 20 + sized(path.encode())


def kernel(datas, bank="sha256", padded=False):
    """PCR 10 as Linux extends it: None is a violation."""
    size = hashlib.new(bank).digest_size
    pcr = bytes(size)
    for data in datas:
        if padded:
            digest = (ONES if data is None else sha1(data).digest()).ljust(size, b"\0")
        else:
            digest = b"\xff" * size if data is None else hashlib.new(bank, data).digest()
        pcr = hashlib.new(bank, pcr + digest).digest()
    return pcr


ALL = [DATA[template] for template in DATA]
LOG = b"".join(entry(template) for template in DATA)


# --- what replays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_log_replays_as_linux_extends(bank, padded):
    covered = verify_ima(parse_ima_log(LOG), bank, kernel(ALL, bank, padded))
    assert len(covered.entries) == len(ALL)
    assert covered.extension == ("padded-sha1" if padded else "template")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("count", range(len(ALL) + 1))
def test_the_quote_covers_a_beginning_and_the_tail_is_left_out(count, padded):
    covered = verify_ima(parse_ima_log(LOG), "sha256", kernel(ALL[:count], padded=padded))
    assert [one.data for one in covered.entries] == ALL[:count]


def test_a_violation_is_extended_as_ones():
    log = parse_ima_log(entry() + entry(template_hash=bytes(20)) + entry("ima-sig"))
    datas = [DATA["ima-ng"], None, DATA["ima-sig"]]
    for padded in (False, True):
        covered = verify_ima(log, "sha256", kernel(datas, padded=padded))
        assert [one.violation for one in covered.entries] == [False, True, False]


def test_the_old_template_is_hashed_with_its_name_padded():
    log = parse_ima_log(old_entry() + old_entry("/bin/sh"))
    datas = [b"\2" * 20 + path.ljust(256, b"\0") for path in (b"/usr/bin/true", b"/bin/sh")]
    assert len(verify_ima(log, "sha256", kernel(datas)).entries) == 2
    assert len(verify_ima(log, "sha256", kernel(datas, padded=True)).entries) == 2
    assert replay_ima(log, "sha1")[10] == kernel(datas, "sha1")


def test_entries_of_other_pcrs_are_passed_over():
    log = parse_ima_log(entry() + entry("ima-sig", pcr=11) + entry("ima-buf"))
    covered = verify_ima(log, "sha256", kernel([DATA["ima-ng"], DATA["ima-buf"]]))
    assert [one.pcr for one in covered.entries] == [10, 11, 10]
    assert len(verify_ima(log, "sha256", kernel([DATA["ima-sig"]]), pcr=11).entries) == 2
    assert dict(replay_ima(log, "sha256")) == {
        10: kernel([DATA["ima-ng"], DATA["ima-buf"]]),
        11: kernel([DATA["ima-sig"]]),
    }


def test_lists_with_the_hashes_of_a_bank_are_read():
    for hash_name, size in (("sha256", 32), ("sha384", 48), ("sha512", 64)):
        log = parse_ima_log(b"".join(entry(template, hash_name=hash_name) for template in DATA))
        assert log.hash_bytes == size
        assert len(verify_ima(log, "sha256", kernel(ALL)).entries) == len(ALL)
        assert all(ima_fields.measured(one) for one in log.entries)


def test_the_whole_log_is_replayed_for_display_even_in_sha1():
    log = parse_ima_log(LOG)
    assert replay_ima(log, "sha1") == {10: kernel(ALL, "sha1")}
    assert replay_ima(log, "sha256", "padded-sha1") == {10: kernel(ALL, padded=True)}


def test_an_empty_log_covers_nothing():
    assert verify_ima(parse_ima_log(b""), "sha256", bytes(32)).entries == ()


# --- what does not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", ["sha1", "sm3_256", "sha3_256", "md5", ""])
def test_sha1_and_other_banks_are_never_believed(bank):
    quoted = kernel(ALL, "sha1") if bank == "sha1" else bytes(32)
    with pytest.raises(ImaLogDoesNotReplay):
        verify_ima(parse_ima_log(LOG), bank, quoted)


def test_a_shorter_log_than_the_quoted_one_is_refused():
    with pytest.raises(ImaLogDoesNotReplay):
        verify_ima(parse_ima_log(LOG), "sha256", kernel([*ALL, b"more"]))


def test_the_lists_own_hash_is_not_believed():
    """Data that was exchanged below a true template hash replays in no way."""
    forged = entry(data=digest_ng(digest=b"\7" * 32) + name(), template_hash=sha1(DATA["ima-ng"]).digest())
    for padded in (False, True):
        with pytest.raises(ImaLogDoesNotReplay):
            verify_ima(parse_ima_log(forged), "sha256", kernel([DATA["ima-ng"]], padded=padded))


def test_a_violation_cannot_be_told_as_a_measurement():
    log = parse_ima_log(entry())
    with pytest.raises(ImaLogDoesNotReplay):
        verify_ima(log, "sha256", kernel([None]))


@given(st.data())
def test_no_changed_entry_is_covered(draw):
    changed = bytearray(LOG)
    changed[draw.draw(st.integers(0, len(LOG) - 1))] ^= draw.draw(st.integers(1, 255))
    quoted = kernel(ALL)
    try:
        covered = verify_ima(parse_ima_log(bytes(changed)), "sha256", quoted)
    except (ImaLogMalformed, ImaLogDoesNotReplay):
        return
    assert [one.data for one in covered.entries] == ALL
    assert [one.pcr for one in covered.entries] == [10] * len(ALL)


MALFORMED = {
    "half an entry": entry()[:-1],
    "half a header": entry() + entry()[:20],
    "bytes behind": entry() + b"\0",
    "no name": struct.pack("<I", 10) + bytes(20) + sized(b""),
    "a name too long": struct.pack("<I", 10) + bytes(20) + sized(b"a" * 129) + sized(b""),
    "a name without end": struct.pack("<I", 10) + bytes(20) + b"\xff\xff\xff\xff" + b"ima-ng",
    "a later name without end": entry() + struct.pack("<I", 10) + bytes(20) + b"\xff\xff\xff\xff" + b"ima-ng",
    "a name that is none": entry() + struct.pack("<I", 10) + bytes(20) + sized(b"IMA") + sized(b""),
    "data without end": struct.pack("<I", 10) + bytes(20) + sized(b"ima-ng") + b"\xff\xff\xff\xff",
    "no data": struct.pack("<I", 10) + bytes(20) + sized(b"ima-ng"),
    "an old name too long": old_entry("a" * 256),
    "half an old digest": struct.pack("<I", 10) + bytes(20) + sized(b"ima") + bytes(19),
    "a PCR that is none": entry(pcr=24),
    "text": b"10 " + b"0" * 60,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_log_is_refused(data):
    with pytest.raises(ImaLogMalformed):
        parse_ima_log(data)


def test_caps_are_kept():
    with pytest.raises(ImaLogMalformed, match="cannot be parsed") as refused:
        parse_ima_log(bytes(IMA_LOG_MOST + 1))
    assert "at most" in refused.value.expected
    small = entry(data=b"", template="a")
    assert len(parse_ima_log(small * MAX_ENTRIES).entries) == MAX_ENTRIES
    with pytest.raises(ImaLogMalformed):
        parse_ima_log(small * (MAX_ENTRIES + 1))


def test_the_longest_old_name_is_read():
    assert parse_ima_log(old_entry("a" * 255)).entries[0].hashed == b"\2" * 20 + b"a" * 255 + b"\0"


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_name(data):
    for candidate in (data, LOG + data, entry()[:30] + data):
        is_ima_log(candidate)
        try:
            log = parse_ima_log(candidate)
        except ImaLogMalformed:
            continue
        for one in log.entries:
            line, details = ima_fields.words(one)
            assert line.isprintable()
            assert json.dumps(details)


# --- what an entry says -------------------------------------------------------------------------------------------


def test_fields_are_told():
    found = [ima_fields.fields_of(one) for one in parse_ima_log(LOG + old_entry()).entries]
    assert [one.path for one in found[:2]] == ["/usr/bin/true"] * 2
    assert [one.algorithm for one in found] == ["sha256"] * 7 + ["sha1"]
    assert [one.digest_type for one in found[:4]] == ["ima", "verity", "ima", "ima"]
    assert found[0].digest == b"\1" * 32
    assert found[2].signature == SIGNATURE
    assert found[4].buffer == b"root=/dev/sda1 ro"
    assert found[5].others["modsig"] == b"pkcs7"
    assert found[6].others == {"iuid": bytes(4)}
    assert found[7].digest == b"\2" * 20


def test_signatures_are_taken_apart():
    found = ima_fields.signature_of(SIGNATURE)
    assert (found.kind, found.hash, found.key_id, found.value) == ("ima", "sha256", b"\xca\xfe\xf0\x0d", b"\1\2\3\4")
    for wrong in (b"", SIGNATURE[:8], SIGNATURE + b"\0", b"\1" + SIGNATURE[1:], b"\3\1" + SIGNATURE[2:]):
        with pytest.raises(MalformedData):
            ima_fields.signature_of(wrong)
    hashes = {0: "md4", 2: "sha1", 4: "sha256", 5: "sha384", 6: "sha512", 17: "sm3", 22: "sha3-512", 23: "hash 23"}
    for number, hash_name in hashes.items():
        assert ima_fields.signature_of(b"\3\2" + bytes([number]) + SIGNATURE[3:]).hash == hash_name
    for number, kind in ((3, "ima"), (5, "evm-portable"), (6, "verity")):
        assert ima_fields.signature_of(bytes([number, 3]) + SIGNATURE[2:]).kind == kind


@pytest.mark.parametrize(
    ("template", "data"),
    [
        ("ima-ng", digest_ng() + name() + b"\0"),
        ("ima-ng", digest_ng()),
        ("ima-ng", sized(b"nothing") + name()),
        ("ima-ng", b"\xff\xff\xff\xff"),
        ("ima-sig", digest_ng() + name()),
        ("nobody", b""),
        ("d-ng|what", digest_ng() + sized(b"")),
    ],
)
def test_data_that_is_not_its_templates_is_malformed(template, data):
    (one,) = parse_ima_log(entry(template, data)).entries
    with pytest.raises(ImaLogMalformed):
        ima_fields.fields_of(one)
    line, details = ima_fields.words(one)
    assert line.startswith("malformed")
    assert "malformed" in details


def test_entries_are_told_in_words():
    entries = parse_ima_log(
        entry("ima-sig")
        + entry(template_hash=bytes(20))
        + entry(template_hash=b"\1" * 20)
        + entry("ima-sig", digest_ng() + name("/a\x1b") + sized(b"\1"))
        + entry("ima-buf")
    ).entries
    digest = "sha256:" + "01" * 32
    assert [ima_fields.measured(one) for one in entries] == [True, None, False, True, True]
    assert [ima_fields.words(one)[0] for one in entries] == [
        f"/usr/bin/true {digest}, signed by cafef00d",
        f"violation: /usr/bin/true {digest}",
        f"/usr/bin/true {digest} (its data is not what was measured)",
        f"/a\\x1b {digest}, signature malformed",
        f"kexec-cmdline {digest}, buffer {b'root=/dev/sda1 ro'.hex()}",
    ]


# --- as text ------------------------------------------------------------------------------------------------------


def ascii_line(template, data, fields):
    return f"10 {sha1(data).hexdigest()} {template} {fields}\n".encode()


D = "sha256:" + "01" * 32
ASCII = (
    ascii_line("ima-ng", DATA["ima-ng"], f"{D} /usr/bin/true")
    + ascii_line("ima-ngv2", DATA["ima-ngv2"], f"verity:{D} /usr/bin/true")
    + ascii_line("ima-sig", DATA["ima-sig"], f"{D} /usr/bin/true {SIGNATURE.hex()}")
    + ascii_line("ima-sigv2", DATA["ima-sigv2"], f"ima:{D} /usr/bin/true {SIGNATURE.hex()}")
    + ascii_line("ima-buf", DATA["ima-buf"], f"{D} kexec-cmdline {b'root=/dev/sda1 ro'.hex()}")
    + ascii_line("ima-modsig", DATA["ima-modsig"], f"{D} /m.ko  {D} {b'pkcs7'.hex()}")
)


def test_the_list_as_text_is_the_same_list():
    parsed = parse_ima_ascii(ASCII)
    assert [one.data for one in parsed.entries] == ALL[:-1]
    assert len(verify_ima(parsed, "sha256", kernel(ALL[:-1])).entries) == 6
    assert all(ima_fields.measured(one) for one in parsed.entries)


def test_an_unsigned_file_has_an_empty_column():
    data = digest_ng() + name() + sized(b"")
    for fields in (f"{D} /usr/bin/true ", f"{D} /usr/bin/true"):
        assert parse_ima_ascii(ascii_line("ima-sig", data, fields)).entries[0].data == data


def test_the_old_template_as_text():
    line = f"10 {sha1(b'x').hexdigest()} ima {'02' * 20} /usr/bin/true\n".encode()
    assert parse_ima_ascii(line).entries[0].data == parse_ima_log(old_entry()).entries[0].data


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"24 " + b"00" * 20 + b" ima-ng " + D.encode() + b" /a",
        b"10 " + b"00" * 21 + b" ima-ng " + D.encode() + b" /a",
        b"10 " + b"00" * 20 + b" ima-ng " + D.encode() + b" /a b",
        b"10 " + b"00" * 20 + b" ima-ng nothing /a",
        b"10 " + b"00" * 20 + b" ima-sig " + D.encode() + b" /a 0g",
        b"10 " + b"00" * 20 + b" ima 0202 /a",
        b"10 " + b"00" * 20 + b" evm-sig " + D.encode() + b" /a 00 x 00 00 0 0 0",
        b"10 " + b"00" * 20 + b" d-ng|zzz " + D.encode() + b" x",
    ],
)
def test_lines_that_cannot_be_put_together_again_are_refused(line):
    with pytest.raises(ImaLogMalformed):
        parse_ima_ascii(ASCII + line + b"\n")


def test_text_has_its_caps():
    line = b"10 " + b"00" * 20 + b" ima-ng " + D.encode() + b" /a\n"
    for data in (line * (MAX_ENTRIES + 1), bytes(2 * IMA_LOG_MOST + 1)):
        with pytest.raises(ImaLogMalformed) as refused:
            parse_ima_ascii(data)
        assert "at most" in refused.value.expected
    assert parse_ima_ascii(b"").entries == ()


def test_hashes_of_two_sizes_are_refused():
    with pytest.raises(ImaLogMalformed):
        parse_ima_ascii(ASCII + b"10 " + b"00" * 32 + b" ima-ng " + D.encode() + b" /a\n")


def test_the_forms_are_told_apart():
    assert is_ima_log(LOG)
    assert is_ima_log(old_entry())
    assert is_ima_ascii(ASCII)
    assert not is_ima_ascii(LOG)
    assert not is_ima_log(ASCII)
    assert not is_ima_log(b"")


@given(st.binary(max_size=200))
def test_arbitrary_text_is_refused_by_name(data):
    for candidate in (data, ASCII[:300] + data):
        try:
            parse_ima_ascii(candidate)
        except Refusal:
            continue
