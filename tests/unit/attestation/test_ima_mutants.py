"""IMA logs and boot logs: what is told of an entry, field by field, and what a refused log says. And each bound."""

import hashlib
import struct

import pytest

from provisioning.attestation import ima_fields
from provisioning.attestation.eventlog import (
    MAX_ALGORITHMS,
    MAX_EVENTS,
    extended_pcrs,
    parse_event_log,
    replay,
    verify_replay,
)
from provisioning.attestation.eventtext_reading import MalformedData
from provisioning.attestation.ima import MAX_ENTRIES, ImaEntry, parse_ima_log, verify_ima
from provisioning.attestation.ima_ascii import is_ima_ascii, parse_ima_ascii
from provisioning.attestation.ima_fields import Fields, Signature, fields_of, measured, signature_of, words
from provisioning.refusals import BootLogDoesNotReplay, BootLogMalformed, Finding, ImaLogDoesNotReplay, ImaLogMalformed
from tests.unit.attestation.test_ima import DATA, LOG, SIGNATURE, digest_ng, entry, kernel, name, old_entry, sized
from wire.messages import BOOT_LOG_MOST, IMA_LOG_MOST

ONE = "01" * 32
TEXT_ENTRY = b"10 " + b"ab" * 20 + b" ima-ng sha256:" + b"01" * 32 + b" /usr/bin/true"


def of(template, data=None, hash_name="sha1"):
    data = DATA[template] if data is None else data
    return ImaEntry(0, 10, hashlib.new(hash_name, data).digest(), template, data)


def both_sides(refusal, call, *arguments):
    with pytest.raises(refusal) as refused:
        call(*arguments)
    return refused.value.expected, refused.value.actual


# --- fields -------------------------------------------------------------------------------------------------------


TOLD = {"kind": "ima", "hash": "sha256", "key_id": "cafef00d", "value": "01020304"}
WORDS = {
    "ima-ng": (
        f"/usr/bin/true sha256:{ONE}",
        {"path": "/usr/bin/true", "digest": f"sha256:{ONE}", "digest_type": "ima"},
    ),
    "ima-ngv2": (
        f"/usr/bin/true sha256:{ONE}",
        {"path": "/usr/bin/true", "digest": f"sha256:{ONE}", "digest_type": "verity"},
    ),
    "ima-sig": (
        f"/usr/bin/true sha256:{ONE}, signed by cafef00d",
        {"path": "/usr/bin/true", "digest": f"sha256:{ONE}", "digest_type": "ima", "signature": TOLD},
    ),
    "ima-buf": (
        f"kexec-cmdline sha256:{ONE}, buffer {b'root=/dev/sda1 ro'.hex()}",
        {
            "path": "kexec-cmdline",
            "digest": f"sha256:{ONE}",
            "digest_type": "ima",
            "buffer": b"root=/dev/sda1 ro".hex(),
        },
    ),
    "ima-modsig": (
        f"/m.ko sha256:{ONE}",
        {
            "path": "/m.ko",
            "digest": f"sha256:{ONE}",
            "digest_type": "ima",
            "d-modsig": b"sha256:\0".hex() + "01" * 24 + "… (40 bytes)",
            "modsig": b"pkcs7".hex(),
        },
    ),
    "d-ng|n-ng|iuid": (
        f"/usr/bin/true sha256:{ONE}",
        {"path": "/usr/bin/true", "digest": f"sha256:{ONE}", "digest_type": "ima", "iuid": "00000000"},
    ),
}


@pytest.mark.parametrize("template", WORDS)
def test_an_entry_is_told_field_by_field(template):
    line, fields = WORDS[template]
    assert words(of(template)) == (line, {"template": template, "violation": False, **fields})


def test_an_old_entry_has_digest_and_name():
    found = fields_of(parse_ima_log(old_entry("/bin/sh")).entries[0])
    assert found == Fields("sha1", b"\2" * 20, "ima", "/bin/sh", b"", b"", {})
    assert words(of("ima", b"\2" * 20 + sized(b"/bin/sh")))[1]["digest"] == "sha1:" + "02" * 20
    assert words(of("ima", b"\2" * 19))[0] == "malformed: digest of 20 bytes, 19 are left"


def test_a_template_of_ones_own_may_leave_digest_or_name_out():
    assert fields_of(of("n", sized(b"/a\0"))) == Fields("", b"", "ima", "/a", b"", b"", {})
    assert fields_of(of("iuid", sized(b"\1"))) == Fields("", b"", "ima", "", b"", b"", {"iuid": b"\1"})
    assert fields_of(of("d-ng|n", digest_ng() + sized(b"/b\0"))).path == "/b"
    both = fields_of(of("n-ng|n", sized(b"/long\0") + sized(b"/short\0")))
    assert (both.path, dict(both.others)) == ("/long", {})


def test_a_name_that_is_no_text_is_shown_escaped():
    assert fields_of(of("n", sized(b"/\xff\xc3\xa4\0\0"))).path == "/\\xffä\0"
    assert words(of("ima-ng", digest_ng() + name("/a\x1b")))[0].startswith("/a\\x1b ")


def test_a_violation_and_a_swapped_entry_are_told():
    broken = ImaEntry(0, 10, bytes(20), "ima-ng", DATA["ima-ng"])
    assert broken.violation
    assert words(broken)[0] == f"violation: /usr/bin/true sha256:{ONE}"
    assert words(broken)[1]["violation"] is True
    assert measured(broken) is None
    swapped = ImaEntry(0, 10, b"\1" * 20, "ima-ng", DATA["ima-ng"])
    assert words(swapped)[0] == f"/usr/bin/true sha256:{ONE} (its data is not what was measured)"


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha384", "sha512"])
def test_a_hash_is_known_by_its_size(hash_name):
    assert measured(of("ima-ng", hash_name=hash_name)) is True


@pytest.mark.parametrize(
    ("template", "data", "why"),
    [
        ("ima-ng", b"", "field size of 4 bytes, 0 are left"),
        ("ima-ng", b"\5\0\0\0ab", "field of 5 bytes, 2 are left"),
        ("ima-ng", digest_ng() + name() + b"abc", "3 bytes behind the last field"),
        ("ima-ng", sized(b"sha256" + b"\0" + b"\1" * 32) + name(), "a digest without its algorithm"),
        ("ima-ng", sized(b"sh\xe4:\0" + b"\1" * 32) + name(), "a digest without its algorithm"),
        ("d-ng|made-up", b"", "unknown field made-up"),
    ],
)
def test_a_malformed_entry_says_why(template, data, why):
    told = both_sides(ImaLogMalformed, fields_of, of(template, data))
    assert told == (f"entry 0: data of {template}", why)
    value = data.hex() if len(data) <= 32 else data[:32].hex() + f"… ({len(data)} bytes)"
    assert words(of(template, data)) == (
        f"malformed: {why}",
        {"template": template, "violation": False, "malformed": why, "value": value},
    )


def test_a_digest_may_hold_what_ends_its_algorithm():
    data = digest_ng(digest=b":\0" + b"\1" * 30) + name()
    assert fields_of(of("ima-ng", data)).digest == b":\0" + b"\1" * 30


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "a signature of 0 bytes"),
        (SIGNATURE[:8], "a signature of 8 bytes"),
        (SIGNATURE + b"\5", "a signature of type 3, version 2, 5 bytes of 4"),
        (b"\4" + SIGNATURE[1:], "a signature of type 4, version 2, 4 bytes of 4"),
        (b"\3\1" + SIGNATURE[2:], "a signature of type 3, version 1, 4 bytes of 4"),
        (b"\3\4" + SIGNATURE[2:], "a signature of type 3, version 4, 4 bytes of 4"),
    ],
)
def test_a_malformed_signature_says_why(data, why):
    with pytest.raises(MalformedData) as refused:
        signature_of(data)
    assert str(refused.value) == why
    if data:
        line, fields = words(of("ima-sig", digest_ng() + name() + sized(data)))
        assert line.endswith(", signature malformed")
        assert fields["signature"] == {"malformed": why, "value": data.hex()}


def test_a_signature_has_its_kind_and_hash():
    assert signature_of(SIGNATURE[:7] + b"\0\0") == Signature("ima", "sha256", b"\xca\xfe\xf0\x0d", b"")
    header = struct.Struct(">BBBIH")
    for kind, title in ((3, "ima"), (5, "evm-portable"), (6, "verity")):
        assert signature_of(header.pack(kind, 3, 22, 1, 1) + b"s") == Signature(title, "sha3-512", b"\0\0\0\1", b"s")
    assert signature_of(header.pack(3, 2, 23, 1, 0)).hash == "hash 23"
    names = [signature_of(header.pack(3, 2, number, 1, 0)).hash for number in range(8)]
    assert names == ["md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224"]


# --- the list as text ---------------------------------------------------------------------------------------------


def test_a_first_line_tells_text_from_octets():
    assert is_ima_ascii(TEXT_ENTRY)
    assert is_ima_ascii(TEXT_ENTRY + b"\nwhatever\nfollows\n")
    assert not is_ima_ascii(b"no entry\n" + TEXT_ENTRY)
    assert not is_ima_ascii(LOG)
    assert not is_ima_ascii(b"")


def test_lines_are_entries():
    log = parse_ima_ascii(TEXT_ENTRY + b"\n" + TEXT_ENTRY.replace(b"10 ", b" 9 ", 1) + b"\n")
    assert log.hash_bytes == 20
    assert log.entries == (
        ImaEntry(0, 10, b"\xab" * 20, "ima-ng", DATA["ima-ng"]),
        ImaEntry(1, 9, b"\xab" * 20, "ima-ng", DATA["ima-ng"]),
    )
    assert parse_ima_ascii(b"").hash_bytes == 20
    assert parse_ima_ascii(TEXT_ENTRY.replace(b"10 ", b"23 ", 1)).entries[0].pcr == 23
    for size in (20, 32, 48, 64):
        line = TEXT_ENTRY.replace(b"ab" * 20, b"cd" * size)
        assert parse_ima_ascii(line).hash_bytes == size


OLD = b"10 " + b"ab" * 20 + b" ima " + b"02" * 20 + b" /bin/sh"


def test_an_old_line_has_its_name_without_a_nul():
    assert parse_ima_ascii(OLD).entries[0].data == b"\2" * 20 + sized(b"/bin/sh")


@pytest.mark.parametrize(
    ("line", "expected", "actual"),
    [
        (b"x", "PCR, hash, template, fields", "x"),
        (b"\xe4" * 90, "PCR, hash, template, fields", "ä" * 80),
        (
            TEXT_ENTRY.replace(b"10 ", b"24 ", 1),
            "PCR, hash, template, fields",
            ("24 " + "ab" * 20 + f" ima-ng sha256:{ONE}")[:80],
        ),
        (b"10 " + b"ab" * 21 + b" n a", "PCR, hash, template, fields", "10 " + "ab" * 21 + " n a"),
        (b"10 " + b"ab" * 33 + b" n a", "PCR, hash, template, fields", "10 " + "ab" * 33 + " n a"),
        (b"10 " + b"ab" * 20 + b" n a b", "1 fields", "2"),
        (b"10 " + b"ab" * 20 + b" ima-ng a b c", "2 fields", "3"),
        (b"10 " + b"ab" * 20 + b" d-ng x:zz", "a field that can be put together again", "d-ng x:zz"),
        (b"10 " + b"ab" * 20 + b" sig " + b"z" * 90, "a field that can be put together again", "sig " + "z" * 80),
        (b"10 " + b"ab" * 20 + b" d " + b"02" * 19, "a field that can be put together again", "d " + "02" * 19),
        (b"10 " + b"ab" * 20 + b" iuid 1", "a field that can be put together again", "iuid 1"),
    ],
)
def test_a_line_that_is_none_says_which_and_why(line, expected, actual):
    for before in (0, 2):
        told = both_sides(ImaLogMalformed, parse_ima_ascii, (TEXT_ENTRY + b"\n") * before + line)
        assert told == (f"line {before + 1}: {expected}", actual)


def test_hashes_of_two_sizes_are_no_list():
    lines = TEXT_ENTRY + b"\n" + TEXT_ENTRY.replace(b"ab" * 20, b"ab" * 32)
    assert both_sides(ImaLogMalformed, parse_ima_ascii, lines) == ("hashes of one size", "[20, 32] bytes")


def test_caps_of_the_text():
    most = 2 * IMA_LOG_MOST
    told = both_sides(ImaLogMalformed, parse_ima_ascii, b"x" * (most + 1))
    assert told == (f"at most {most} bytes", f"{most + 1} bytes")
    assert both_sides(ImaLogMalformed, parse_ima_ascii, b"x" * most)[0] == "line 1: PCR, hash, template, fields"
    told = both_sides(ImaLogMalformed, parse_ima_ascii, b"\n" * (MAX_ENTRIES + 1))
    assert told == (f"at most {MAX_ENTRIES} entries", f"{MAX_ENTRIES + 1}")
    assert both_sides(ImaLogMalformed, parse_ima_ascii, b"\n" * MAX_ENTRIES)[0].startswith("line 1: ")


# --- replay -------------------------------------------------------------------------------------------------------


def test_what_does_not_replay_shows_the_last_value():
    log = parse_ima_log(LOG)
    last = kernel([DATA[template] for template in DATA]).hex()
    told = both_sides(ImaLogDoesNotReplay, verify_ima, log, "sha256", b"\1" * 32)
    assert told[0] == "01" * 32
    assert told[1].endswith(f" after all of {len(DATA)} entries")
    assert last in told[1] or kernel([DATA[t] for t in DATA], padded=True).hex() in told[1]
    assert both_sides(ImaLogDoesNotReplay, verify_ima, log, "sha1", bytes(20)) == (
        "a bank of sha256, sha384, sha512",
        "sha1",
    )
    assert verify_ima(parse_ima_log(b""), "sha256", bytes(32)).extension in {"template", "padded-sha1"}


def test_a_cut_entry_says_which():
    data = entry() + entry("ima-sig")
    for length in range(len(entry()) + 1, len(data)):
        expected, actual = both_sides(ImaLogMalformed, parse_ima_log, data[:length])
        assert "1" in expected
        assert actual


def test_a_boot_log_that_does_not_replay_names_each_pcr():
    digest = hashlib.sha1(b"x", usedforsecurity=False).digest()
    log = parse_event_log(struct.pack("<II", 4, 5) + digest + struct.pack("<I", 1) + b"x")
    told = both_sides(BootLogDoesNotReplay, verify_replay, log, "sha256", {4: bytes(32)})
    assert told == ("digests of the bank sha256", "sha1")
    with pytest.raises(BootLogDoesNotReplay) as refused:
        verify_replay(log, "sha1", {4: b"\1" * 20, 7: b"\2" * 20, 5: bytes(20)})
    replayed = hashlib.sha1(bytes(20) + digest, usedforsecurity=False).hexdigest()
    cure = "Send the log of this very boot."
    assert list(refused.value.findings) == [
        Finding("PCR 4", "01" * 20, f"{replayed} by the log", cure),
        Finding("PCR 7", "02" * 20, f"{'00' * 20} by the log", cure),
    ]
    assert (refused.value.expected, refused.value.actual) == ("the quoted PCRs", "other values of PCR 4, PCR 7")


# --- boot logs ----------------------------------------------------------------------------------------------------

SPEC = (
    b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 106, 2, 2) + struct.pack("<HHHH", 4, 20, 0x0B, 32) + b"\2ab"
)


def spec_event(data=SPEC):
    return struct.pack("<II20sI", 0, 3, bytes(20), len(data)) + data


def agile(pcr, *digests, kind=5, data=b"xyz"):
    """Digests are pairs of algorithm and value."""
    body = b"".join(struct.pack("<H", algorithm) + value for algorithm, value in digests)
    return struct.pack("<III", pcr, kind, len(digests)) + body + struct.pack("<I", len(data)) + data


BOTH = agile(4, (4, b"\1" * 20), (0x0B, b"\2" * 32))
TURNED = agile(4, (0x0B, b"\2" * 32), (4, b"\1" * 20))


def malformed(data):
    return both_sides(BootLogMalformed, parse_event_log, data)


def test_digests_may_stand_in_any_order():
    for event in (BOTH, TURNED):
        (one,) = parse_event_log(spec_event() + event).events[1:]
        assert (one.number, one.pcr, one.event_type, one.data) == (1, 4, 5, b"xyz")
        assert one.digests == {"sha1": b"\1" * 20, "sha256": b"\2" * 32}
    log = parse_event_log(spec_event() + agile(4, (0x0B, b"\2" * 32)))
    assert (log.banks, log.partial) == (("sha256",), ("sha1",))
    assert list(extended_pcrs(log)) == ["sha256", "sha1"]
    assert extended_pcrs(log)["sha1"] == {}


@pytest.mark.parametrize("event", [BOTH, TURNED], ids=["announced order", "another order"])
def test_a_cut_event_of_a_boot_log_is_named(event):
    whole = spec_event() + BOTH
    for length in range(1, len(event)):
        expected, actual = malformed(whole + event[:length])
        assert expected.startswith("event 2: ")
        field, at = expected.removeprefix("event 2: ").split(" bytes at ")
        assert int(at) + int(actual) == len(whole) + length
        assert int(actual) < int(field)
    for length in range(1, 32):
        assert malformed(spec_event()[:length]) == ("event 0: 32 bytes at 0", str(length))


@pytest.mark.parametrize(
    ("data", "expected", "actual"),
    [
        (agile(4), "event 1: 1 to 2 digests", "0"),
        (agile(4, *[(4, b"\1" * 20)] * 3), "event 1: 1 to 2 digests", "3"),
        (agile(4, *[(4, b"\1" * 20)] * 2), "event 1: announced digests, each once", "0x0004"),
        (agile(4, (0x0C, b"\1" * 48)), "event 1: announced digests, each once", "0x000c"),
        (agile(24, (4, b"\1" * 20)), "event 1: a PCR from 0 to 23", "24"),
        (
            agile(0, (4, b"\1" * 20), kind=3, data=b"StartupLocality\0\1"),
            "one startup locality, before all of PCR 0",
            "event 1",
        ),
        (
            agile(0, (4, b"\1" * 20)) + agile(0, (4, b"\1" * 20), kind=3, data=b"StartupLocality\0\3"),
            "one startup locality, before all of PCR 0",
            "event 2",
        ),
    ],
)
def test_a_malformed_event_says_why(data, expected, actual):
    assert malformed(spec_event() + data) == (expected, actual)


def spec(count, *algorithms, behind=b"\0"):
    head = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 106, 2, count)
    return spec_event(head + b"".join(struct.pack("<HH", *one) for one in algorithms) + behind)


@pytest.mark.parametrize(
    ("data", "expected", "actual"),
    [
        (spec_event(SPEC[:20]), "specification version: 24 bytes at 0", "20"),
        (spec_event(SPEC[:26]), "number of algorithms: 4 bytes at 24", "2"),
        (spec_event(SPEC[:30]), "algorithm: 4 bytes at 28", "2"),
        (spec_event(SPEC[:36]), "vendor information size: 1 bytes at 36", "0"),
        (spec_event(SPEC[:38]), "vendor information: 2 bytes at 37", "1"),
        (spec_event(SPEC + b"c"), "nothing behind the vendor information", "more bytes"),
        (spec(0), f"number of algorithms: 1 to {MAX_ALGORITHMS}", "0"),
        (spec(MAX_ALGORITHMS + 1), f"number of algorithms: 1 to {MAX_ALGORITHMS}", f"{MAX_ALGORITHMS + 1}"),
        (spec(1, (4, 21)), "each algorithm once, with its digest's size", "0x0004, 21 bytes"),
        (spec(2, (4, 20), (4, 20)), "each algorithm once, with its digest's size", "0x0004, 20 bytes"),
        (spec(1, (0x99, 0)), "each algorithm once, with its digest's size", "0x0099, 0 bytes"),
        (spec(1, (0x99, 65)), "each algorithm once, with its digest's size", "0x0099, 65 bytes"),
    ],
)
def test_a_malformed_announcement_says_why(data, expected, actual):
    assert malformed(data) == (expected, actual)


def test_the_most_of_everything_in_a_boot_log():
    many = [(0x100 + n, 64) for n in range(MAX_ALGORITHMS)]
    assert parse_event_log(spec(MAX_ALGORITHMS, *many)).banks == ()
    unknown = agile(4, (0x99, b"\7" * 3))
    (one,) = parse_event_log(spec(1, (0x99, 3)) + unknown).events[1:]
    assert one.digests == {"0x0099": b"\7" * 3}
    told = malformed(bytes(BOOT_LOG_MOST + 1))
    assert told == (f"at most {BOOT_LOG_MOST} bytes", f"{BOOT_LOG_MOST + 1} bytes")
    empty = struct.pack("<II20sI", 1, 5, bytes(20), 0)
    assert len(parse_event_log(empty * MAX_EVENTS).events) == MAX_EVENTS
    assert malformed(empty * (MAX_EVENTS + 1)) == (f"at most {MAX_EVENTS} events", "more")


def test_an_event_tells_its_words_and_what_was_measured():
    digest = hashlib.sha256(b"xyz").digest()
    (one,) = parse_event_log(spec_event() + agile(4, (4, b"\1" * 20), (0x0B, digest))).events[1:]
    assert one.measured("sha256") == b"xyz"
    assert one.measured("sha1") is None
    assert one.measured("sha384") is None


def test_the_first_pcr_begins_with_the_locality():
    for locality in (0, 3, 4):
        event = agile(0, (4, bytes(20)), (0x0B, bytes(32)), kind=3, data=b"StartupLocality\0" + bytes([locality]))
        log = parse_event_log(spec_event() + event)
        assert log.locality == locality
        assert replay(log, "sha256")[0] == bytes(31) + bytes([locality])
        assert [pcr for pcr, value in replay(log, "sha256").items() if value == b"\xff" * 32] == list(range(17, 23))
        assert extended_pcrs(log) == {"sha1": {}, "sha256": {}}
    hcrtm = agile(0, (4, bytes(20)), (0x0B, bytes(32)), kind=0x80000010, data=b"HCRTM")
    assert parse_event_log(spec_event() + hcrtm).locality == 4


def test_every_field_of_the_kernel_has_a_template():
    assert {"d", "n", "sig", "buf", "d-ngv2", "imode", "xattrvalues"} <= ima_fields.FIELDS
