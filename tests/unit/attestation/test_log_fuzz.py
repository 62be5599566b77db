"""Mutated logs and quote files for a bounded time: refused by name, or read; no crash, and nothing wrong accepted.

MUSTER_FUZZ_SECONDS is the time of each target (15 by default, a minute in all). A failure prints the seed and writes
the bytes into the message: make a unit test of them.
"""

import os
import random
import struct
import time
from itertools import count
from pathlib import Path

import pytest

from benchmarks.logs import ima_log
from lab.firmware import make_image
from ota.firmware import event_log
from provisioning.attestation import ima_fields
from provisioning.attestation.eventlog import EV_NO_ACTION, extended_pcrs, parse_event_log, replay, verify_replay
from provisioning.attestation.eventtext import TYPE_NAMES, decode
from provisioning.attestation.ima import is_ima_log, parse_ima_log, replay_ima, verify_ima
from provisioning.attestation.ima_ascii import is_ima_ascii, parse_ima_ascii
from provisioning.attestation.second_opinion import verify_tool_quote
from provisioning.refusals import Refusal

SECONDS = float(os.environ.get("MUSTER_FUZZ_SECONDS", "15"))
VECTORS = Path(__file__).resolve().parents[4] / "shared" / "vectors"
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(600)]


def mutated(data, rng):
    """A few changes: bits, numbers at the edges, pieces cut out, doubled, swapped."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            return b""
        at = rng.randrange(len(changed))
        size = rng.choice((1, 2, 4, 8, 16, 64))
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2:
                number = struct.pack("<Q", rng.choice(INTERESTING))[: min(size, 8)]
                changed[at : at + len(number)] = number
            case 3:
                del changed[at : at + size]
            case 4:
                changed[at:at] = changed[at : at + size]
            case _:
                other = rng.randrange(len(changed))
                changed[at : at + size], changed[other : other + size] = (
                    changed[other : other + size],
                    changed[at : at + size],
                )
    return bytes(changed)


def cases(seeds):
    """Mutations of the seeds, for the target's time: each with what reproduces it."""
    end = time.monotonic() + SECONDS
    for number in count():
        if time.monotonic() > end:
            return
        rng = random.Random(number)
        yield number, mutated(seeds[number % len(seeds)], rng)


def boot_logs():
    found = sorted((VECTORS / "boot-logs").glob("*.bin"))
    return [event_log(make_image()), *(path.read_bytes() for path in found)]


def readable(data):
    try:
        parse_event_log(data)
    except Refusal:
        return False
    return True


def test_boot_logs():
    """Whatever replays to the quoted PCRs has the digests of the boot, in its order."""
    seeds = [data for data in boot_logs() if readable(data)]
    truths = []
    for data in seeds:
        log = parse_event_log(data)
        truths.append((log, log.banks[-1], dict(replay(log, log.banks[-1]))))
    for number, data in cases(seeds):
        log, bank, quoted = truths[number % len(seeds)]
        try:
            changed = parse_event_log(data)
            extended_pcrs(changed)
            verify_replay(changed, bank, quoted)
        except Refusal:
            continue
        assert digests(changed, bank) == digests(log, bank), (number, data.hex())


def digests(log, bank):
    measured = {}
    for event in log.events:
        if event.event_type != EV_NO_ACTION and event.pcr != 10:
            measured.setdefault(event.pcr, []).append(event.digests[bank])
    return measured


def test_words():
    """Every event's data, mutated, under its own type and under others."""
    events = [event for data in boot_logs() if readable(data) for event in parse_event_log(data).events]
    types = [*TYPE_NAMES, 0x55]
    for number, data in cases([event.data for event in events]):
        event = events[number % len(events)]
        for kind in (event.event_type, types[number % len(types)]):
            words = decode(kind, data, event.digests)
            assert words.line.isprintable(), (number, kind, data.hex())


def test_ima_logs():
    """Whatever a quoted PCR 10 covers is what was measured."""
    binary = ima_log(0)[0]
    small, entries = _first(binary, 12)
    text = "".join(_line(entry) for entry in entries).encode()
    quoted = replay_ima(parse_ima_log(small), "sha256")[10]
    truth = [entry.data for entry in entries]
    assert [entry.data for entry in parse_ima_ascii(text).entries] == truth
    for number, data in cases([small, text]):
        is_ima_log(data), is_ima_ascii(data)
        try:
            changed = parse_ima_ascii(data) if number % 2 else parse_ima_log(data)
            for entry in changed.entries:
                assert ima_fields.words(entry)[0].isprintable(), (number, data.hex())
            covered = verify_ima(changed, "sha256", quoted)
        except Refusal:
            continue
        assert [entry.data for entry in covered.entries if entry.pcr == 10] == truth, (number, data.hex())


def _first(binary, entries):
    found = parse_ima_log(binary).entries[:entries]
    size = sum(4 + 20 + 4 + len(entry.template) + 4 + len(entry.data) for entry in found)
    return binary[:size], found


def _line(entry):
    fields = ima_fields.fields_of(entry)
    text = f"{fields.algorithm}:{fields.digest.hex()} {fields.path} {fields.signature.hex()}"
    return f"{entry.pcr} {entry.template_hash.hex()} {entry.template} {text}\n"


@pytest.mark.skipif(not (VECTORS / "quote").is_dir(), reason="no quote: ../shared/vectors is absent")
def test_quote_files():
    """Only the quote that was made passes, for the values that it was made over."""
    names = ("ak.pub", "quote.out", "quotesig.out", "quotepcr.out", "akpub.pem")
    good = {name: (VECTORS / "quote" / name).read_bytes() for name in names}
    truth = verify_tool_quote(*(good[name] for name in names[:3]), None, good["quotepcr.out"])
    for number, data in cases([good[name] for name in names]):
        files = good | {names[number % len(names)]: data}
        ak = files["akpub.pem" if names[number % len(names)] == "akpub.pem" else "ak.pub"]
        try:
            found = verify_tool_quote(
                ak, files["quote.out"], files["quotesig.out"], truth.quote.extra_data, files["quotepcr.out"]
            )
        except Refusal:
            continue
        assert found.quote == truth.quote, (number, data.hex())
        assert found.values == truth.values, (number, data.hex())
