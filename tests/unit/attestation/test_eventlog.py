"""Boot logs: parsed whole or not at all, replayed as the TPM extends, told in words."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.firmware import make_image
from ota.firmware import event_log, measure
from provisioning.attestation.eventlog import MAX_EVENTS, extended_pcrs, parse_event_log, replay, verify_replay
from provisioning.refusals import BootLogDoesNotReplay, BootLogMalformed, Refusal

LOGS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "boot-logs"
SHA1, SHA256, SHA384, OTHER = 0x04, 0x0B, 0x0C, 0x99
NO_ACTION, HCRTM = 3, 0x80000010


def sha1_event(pcr=0, kind=8, digest=b"\1" * 20, data=b""):
    return struct.pack("<II", pcr, kind) + digest + struct.pack("<I", len(data)) + data


def header(algorithms=((SHA256, 32),), vendor=b"", claimed=None, behind=b"", vendor_size=None):
    data = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 105, 2)
    data += struct.pack("<I", len(algorithms) if claimed is None else claimed)
    data += b"".join(struct.pack("<HH", *one) for one in algorithms)
    data += bytes([len(vendor) if vendor_size is None else vendor_size]) + vendor + behind
    return sha1_event(kind=NO_ACTION, digest=bytes(20), data=data)


def event(pcr=0, kind=8, digests=((SHA256, b"\1" * 32),), data=b"", count=None):
    body = struct.pack("<III", pcr, kind, len(digests) if count is None else count)
    body += b"".join(struct.pack("<H", algorithm) + digest for algorithm, digest in digests)
    return body + struct.pack("<I", len(data)) + data


def locality(number=3, pcr=0, data=None):
    data = b"StartupLocality\0" + bytes([number]) if data is None else data
    return event(pcr, NO_ACTION, ((SHA256, bytes(32)),), data)


def extend(value, digest, algorithm="sha256"):
    return hashlib.new(algorithm, value + digest).digest()


# --- what is read -------------------------------------------------------------------------------------------------


def test_a_crypto_agile_log_replays_in_each_of_its_banks():
    digests = ((SHA1, b"\1" * 20), (SHA256, b"\2" * 32), (SHA384, b"\3" * 48))
    sizes = tuple((algorithm, len(digest)) for algorithm, digest in digests)
    log = parse_event_log(header(sizes) + event(4, digests=digests) + event(4, digests=digests[::-1]))
    assert log.banks == ("sha1", "sha256", "sha384")
    for name, digest in (("sha1", b"\1" * 20), ("sha256", b"\2" * 32), ("sha384", b"\3" * 48)):
        zero = bytes(len(digest))
        assert replay(log, name)[4] == extend(extend(zero, digest, name), digest, name)
        assert replay(log, name)[0] == zero
        assert replay(log, name)[17] == b"\xff" * len(digest)


def test_a_sha1_log_is_read_from_its_first_event():
    log = parse_event_log(sha1_event() + sha1_event(4))
    assert (log.banks, len(log.events)) == (("sha1",), 2)
    assert replay(log, "sha1")[0] == extend(bytes(20), b"\1" * 20, "sha1")


def test_a_bank_that_nobody_here_knows_is_passed_over():
    log = parse_event_log(
        header(((OTHER, 33), (SHA256, 32))) + event(digests=((OTHER, b"\5" * 33), (SHA256, b"\1" * 32)))
    )
    assert (log.banks, log.partial) == (("sha256",), ())
    assert log.events[1].digests[f"{OTHER:#06x}"] == b"\5" * 33
    assert replay(log, "sha256")[0] == extend(bytes(32), b"\1" * 32)


@pytest.mark.skipif("sm3" not in hashlib.algorithms_available, reason="OpenSSL was built without SM3")
def test_sm3_is_replayed_for_display():
    log = parse_event_log(header(((0x12, 32),)) + event(2, digests=((0x12, b"\7" * 32),)))
    assert extended_pcrs(log) == {"sm3_256": {2: extend(bytes(32), b"\7" * 32, "sm3")}}
    with pytest.raises(BootLogMalformed):
        parse_event_log(header(((0x12, 33),)))


def test_the_pcrs_are_those_of_a_pc_client():
    assert list(replay(parse_event_log(header() + event(23)), "sha256")) == list(range(24))


@pytest.mark.parametrize(
    ("algorithm", "name", "size"), [(0x27, "sha3_256", 32), (0x28, "sha3_384", 48), (0x29, "sha3_512", 64)]
)
def test_banks_that_no_quote_may_be_over_are_replayed_for_display(algorithm, name, size):
    digest = b"\7" * size
    log = parse_event_log(header(((algorithm, size),)) + event(2, digests=((algorithm, digest),)))
    assert extended_pcrs(log) == {name: {2: extend(bytes(size), digest, name)}}


def test_a_bank_that_is_announced_and_switched_off_cannot_be_verified():
    """Firmware announces banks that are not allocated; where one event lacks a digest, the bank's value is unknown."""
    both = ((SHA256, 32), (SHA384, 48))
    data = header(both) + event(0, digests=((SHA384, b"\3" * 48), (SHA256, b"\2" * 32))) + event(1)
    log = parse_event_log(data)
    assert (log.banks, log.partial) == (("sha256",), ("sha384",))
    verify_replay(log, "sha256", {1: extend(bytes(32), b"\1" * 32)})
    assert extended_pcrs(log)["sha384"] == {0: extend(bytes(48), b"\3" * 48, "sha384")}
    with pytest.raises(BootLogDoesNotReplay):
        verify_replay(log, "sha384", {0: extend(bytes(48), b"\3" * 48, "sha384")})


def test_the_first_event_of_a_crypto_agile_log_is_among_its_events():
    log = parse_event_log(header() + event())
    assert [e.type_name for e in log.events] == ["EV_NO_ACTION", "EV_S_CRTM_VERSION"]
    assert "Spec ID" in str(log.events[0].words.details["signature"])


def test_an_event_says_what_of_its_data_may_be_believed():
    data = b"grub_cmd: insmod gzio\0"
    told = event(8, 0x0D, ((SHA256, hashlib.sha256(b"insmod gzio").digest()),), data)
    log = parse_event_log(header() + told + event(8, 0x0D, data=data))
    assert [one.measured("sha256") for one in log.events[1:]] == [b"insmod gzio", None]
    assert log.events[1].measured("sha384") is None


def test_only_extended_pcrs_are_told():
    log = parse_event_log(header() + event(4) + event(pcr=5, kind=NO_ACTION))
    assert list(extended_pcrs(log)["sha256"]) == [4]


def test_vendor_information_is_passed_over():
    assert parse_event_log(header(vendor=b"vendor") + event()).banks == ("sha256",)


def test_no_action_events_do_not_extend():
    log = parse_event_log(header() + event(kind=NO_ACTION, digests=((SHA256, bytes(32)),), pcr=0xFFFFFFFF))
    assert replay(log, "sha256")[0] == bytes(32)


@pytest.mark.parametrize("number", [0, 3, 4])
def test_the_startup_locality_is_in_pcr_0(number):
    log = parse_event_log(header() + locality(number) + event())
    assert log.locality == number
    assert replay(log, "sha256")[0] == extend(bytes(31) + bytes([number]), b"\1" * 32)


@pytest.mark.parametrize("before", [b"", locality(0), locality(3), locality(4)])
def test_after_an_hcrtm_pcr_0_starts_at_4(before):
    """TPM 2.0 Library, Part 1, 34.3: the H-CRTM is extended before TPM2_Startup, whose locality has no effect then."""
    hcrtm = event(0, HCRTM, data=b"HCRTM")
    log = parse_event_log(header() + before + hcrtm + event())
    assert log.locality == 4
    first = extend(bytes(31) + b"\4", b"\1" * 32)
    assert replay(log, "sha256")[0] == extend(first, b"\1" * 32)


def test_an_hcrtm_event_behind_others_is_an_extend_like_any():
    log = parse_event_log(header() + event() + event(0, HCRTM, data=b"HCRTM"))
    assert log.locality == 0


def test_the_virtual_firmwares_own_log_replays_to_its_prediction():
    image = make_image()
    log = parse_event_log(event_log(image))
    replayed = replay(log, "sha256")
    verify_replay(log, "sha256", measure(image).pcrs)
    assert {pcr: replayed[pcr] for pcr in measure(image).pcrs} == measure(image).pcrs


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header(claimed=0, algorithms=()),
        header(claimed=2),
        header(claimed=99),
        header(algorithms=((SHA256, 20),)),
        header(algorithms=((OTHER, 0),)),
        header(algorithms=((OTHER, 65),)),
        header(algorithms=tuple((0x100 + number, 32) for number in range(17))),
        header(algorithms=((SHA256, 32), (SHA256, 32))),
        header(behind=b"x"),
        header(vendor_size=9),
        header() + event(digests=()),
        header() + event(count=0),
        header() + event(count=2),
        header() + event(count=0xFFFFFFFF),
        header() + event(digests=((SHA384, b"\1" * 48),)),
        header(((SHA1, 20), (SHA256, 32))) + event(digests=((SHA256, b"\1" * 32), (SHA256, b"\1" * 32))),
        header() + event(pcr=24),
        header() + event(pcr=0xFFFFFFFF),
        header() + event()[:-1],
        header() + event() + b"\0",
        header() + struct.pack("<III", 0, 8, 1) + struct.pack("<H", SHA256) + bytes(32) + b"\xff\xff\xff\xff",
        header() + event() + locality(),
        header() + locality() + locality(),
        header() + locality(5),
        header() + locality(data=b"StartupLocality\0"),
        header() + locality(data=b"StartupLocality\0\0\0"),
        sha1_event(pcr=24),
        header() + event() * MAX_EVENTS,
        sha1_event(data=bytes(256 * 1024 - 31)),
    ],
)
def test_a_malformed_log_is_refused(data):
    with pytest.raises(BootLogMalformed):
        parse_event_log(data)


def test_the_most_bytes_and_the_most_events_still_pass():
    assert parse_event_log(sha1_event(data=bytes(256 * 1024 - 32)))
    assert len(parse_event_log(header() + event() * (MAX_EVENTS - 1)).events) == MAX_EVENTS


def test_every_pcr_that_the_log_does_not_explain_is_named():
    log = parse_event_log(header() + event(4))
    good = replay(log, "sha256")
    verify_replay(log, "sha256", {pcr: good[pcr] for pcr in (0, 4, 17)})
    with pytest.raises(BootLogDoesNotReplay) as refused:
        verify_replay(log, "sha256", {0: b"\1" * 32, 4: good[4], 7: b"\2" * 32})
    assert [finding.what for finding in refused.value.findings] == ["PCR 0", "PCR 7"]
    assert refused.value.findings[0].expected == "01" * 32


def test_ima_explains_pcr_10_by_its_own_log():
    verify_replay(parse_event_log(header() + event()), "sha256", {10: b"\1" * 32})


def test_a_log_without_the_quoted_bank_is_refused():
    for data in (sha1_event(), header() + event()):
        with pytest.raises(BootLogDoesNotReplay):
            verify_replay(parse_event_log(data), "sha384", {0: bytes(48)})


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_by_name(data):
    for candidate in (data, header() + data, header() + event() + data):
        try:
            replay(log := parse_event_log(candidate), log.banks[0])
        except Refusal:
            continue


SAMPLE = event_log(make_image())


@given(st.data())
def test_a_changed_digest_never_replays(data):
    """Whatever byte of a log is changed: malformed, or another digest, or words that nothing measured."""
    mutated = bytearray(SAMPLE)
    at = data.draw(st.integers(0, len(SAMPLE) - 1))
    mutated[at] ^= data.draw(st.integers(1, 255))
    before = parse_event_log(SAMPLE)
    try:
        after = parse_event_log(bytes(mutated))
        verify_replay(after, "sha256", replay(before, "sha256"))
    except Refusal:
        return
    measured = [[(e.pcr, e.digests) for e in log.events if e.event_type != NO_ACTION] for log in (before, after)]
    assert measured[0] == measured[1]
    assert all(isinstance(e.text, str) for e in after.events)


# --- real logs ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not LOGS.is_dir(), reason="no boot logs: ../shared/vectors is absent")
@pytest.mark.parametrize("path", sorted(set(LOGS.glob("*.bin")) - {LOGS / "not-a-log.bin"}), ids=lambda path: path.name)
def test_a_real_log_is_read_and_replays(path):
    log = parse_event_log(path.read_bytes())
    for bank in log.banks:
        quoted = replay(log, bank)
        verify_replay(log, bank, quoted)
        assert any(quoted[pcr] != bytes(len(quoted[pcr])) for pcr in (4, 7))
        with pytest.raises(BootLogDoesNotReplay):
            verify_replay(log, bank, quoted | {7: bytes(len(quoted[7]))})
    told = [event.words for event in log.events]
    assert any(words.type == "EV_SEPARATOR" for words in told)
    assert [words.line for words in told if "malformed" in words.text or words.type.startswith("0x")] == []
    assert {words.type for words in told if words.doubted} <= {"EV_S_CRTM_VERSION"}  # of one Dell server
    assert json.dumps([words.details for words in told])
    for cut in (path.read_bytes()[:-1], path.read_bytes() + b"\0"):
        with pytest.raises(BootLogMalformed):
            parse_event_log(cut)


@pytest.mark.skipif(not LOGS.is_dir(), reason="no boot logs: ../shared/vectors is absent")
def test_what_is_no_log_is_refused():
    with pytest.raises(BootLogMalformed):
        parse_event_log((LOGS / "not-a-log.bin").read_bytes())
