"""Boot logs: parsed whole or not at all, replayed as the TPM extends, told in words."""

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.firmware import make_image
from ota.firmware import event_log, measure
from provisioning.attestation.eventlog import MAX_EVENTS, parse_event_log, replay, verify_replay
from provisioning.attestation.eventtext import MAX_TEXT, TYPE_NAMES, describe
from provisioning.refusals import BootLogDoesNotReplay, BootLogMalformed, Refusal

LOGS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "boot-logs"
SHA1, SHA256, SHA384, SM3 = 0x04, 0x0B, 0x0C, 0x12
SIZES = {SHA1: 20, SHA256: 32, SHA384: 48, SM3: 32}
NO_ACTION = 3


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


def test_a_bank_that_does_not_count_is_skipped():
    log = parse_event_log(header(((SM3, 32), (SHA256, 32))) + event(digests=((SM3, b"\5" * 32), (SHA256, b"\1" * 32))))
    assert log.banks == ("sha256",)


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
        header(algorithms=((0x99, 32),)),
        header(algorithms=((SHA256, 32), (SHA256, 32))),
        header(behind=b"x"),
        header(vendor_size=9),
        header() + event(digests=()),
        header() + event(count=2),
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
    assert len(parse_event_log(header() + event() * (MAX_EVENTS - 1)).events) == MAX_EVENTS - 1


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
    assert [(e.pcr, e.digests) for e in after.events] == [(e.pcr, e.digests) for e in before.events]
    assert all(isinstance(e.text, str) for e in after.events)


# --- in words -----------------------------------------------------------------------------------------------------


def digest_of(data):
    return {"sha256": hashlib.sha256(data).digest()}


UCS2 = "SecureBoot".encode("utf-16-le")
PATH = "\\EFI\\BOOT\\BOOTX64.EFI".encode("utf-16-le") + b"\0\0"
DEVICE_PATH = struct.pack("<BBH", 2, 1, 12) + bytes(8) + struct.pack("<BBH", 4, 4, 4 + len(PATH)) + PATH


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (0x01, b"POST CODE", "EV_POST_CODE POST CODE"),
        (0x04, bytes(4), "EV_SEPARATOR"),
        (0x04, b"\xff" * 4, "EV_SEPARATOR"),
        (0x04, b"\1\0\0\0", "EV_SEPARATOR error 01000000"),
        (0x08, "1.0\0".encode("utf-16-le"), "EV_S_CRTM_VERSION 1.0"),
        (0x08, b"\1" * 16, "EV_S_CRTM_VERSION " + "01" * 16),
        (0x0D, b"grub_cmd: linux\0", "EV_IPL grub_cmd: linux"),
        (0x80000001, bytes(16) + struct.pack("<QQ", 10, 0) + UCS2, "EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot"),
        (0x80000002, bytes(16) + struct.pack("<QQ", 2**63, 0) + UCS2, "EV_EFI_VARIABLE_BOOT SecureBoot"),
        (0x80000001, b"short", "EV_EFI_VARIABLE_DRIVER_CONFIG"),
        (
            0x80000003,
            struct.pack("<QQQQ", 0, 0, 0, len(DEVICE_PATH)) + DEVICE_PATH,
            "EV_EFI_BOOT_SERVICES_APPLICATION \\EFI\\BOOT\\BOOTX64.EFI",
        ),
        (
            0x80000003,
            struct.pack("<QQQQ", 0, 0, 0, 4) + struct.pack("<BBH", 1, 1, 0),
            "EV_EFI_BOOT_SERVICES_APPLICATION",
        ),
        (0x80000003, struct.pack("<QQQQ", 0, 0, 0, 3) + b"\4\4\4", "EV_EFI_BOOT_SERVICES_APPLICATION"),
        (
            0x80000004,
            struct.pack("<QQQQ", 0, 0, 0, 4) + struct.pack("<BBH", 0x7F, 0xFF, 4),
            "EV_EFI_BOOT_SERVICES_DRIVER",
        ),
        (0x80000007, b"Exit Boot Services Invocation", "EV_EFI_ACTION Exit Boot Services Invocation"),
        (0x80000008, struct.pack("<QQ", 0xFF000000, 4096), "EV_EFI_PLATFORM_FIRMWARE_BLOB 4096 bytes at 0xff000000"),
        (0x12345678, b"anything", "0x12345678"),
        (0x80000006, b"\0" * 40, "EV_EFI_GPT_EVENT"),
    ],
)
def test_events_are_told_in_words(kind, data, text):
    assert describe(kind, data, digest_of(data)) == text


def test_words_that_were_not_measured_are_called_so():
    doubted = describe(0x80000007, b"Exit Boot Services Invocation", digest_of(b"something else"))
    assert doubted.endswith("(its data is not what was measured)")
    # Where the digest is over something else by design, nothing can be said.
    assert describe(0x80000003, b"", digest_of(b"the image")) == "EV_EFI_BOOT_SERVICES_APPLICATION"


def test_hostile_words_stay_on_one_short_line():
    text = describe(0x0D, b"\x1b[31m\n" + b"x" * 10_000, {})
    assert text.isprintable()
    assert len(text) <= MAX_TEXT + len("EV_IPL ")


@given(st.sampled_from([*TYPE_NAMES, 0x77]), st.binary(max_size=200))
def test_any_data_has_a_text(kind, data):
    assert describe(kind, data, digest_of(data)).isprintable()


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
    told = [event.text for event in log.events]
    assert any("EV_SEPARATOR" in text for text in told)
    for cut in (path.read_bytes()[:-1], path.read_bytes() + b"\0"):
        with pytest.raises(BootLogMalformed):
            parse_event_log(cut)


@pytest.mark.skipif(not LOGS.is_dir(), reason="no boot logs: ../shared/vectors is absent")
def test_what_is_no_log_is_refused():
    with pytest.raises(BootLogMalformed):
        parse_event_log((LOGS / "not-a-log.bin").read_bytes())
