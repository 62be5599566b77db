"""How long the verifier works on a boot log of 50 kB and on an IMA log of 1,650 entries: parsed, and replayed.

Nothing is kept from the run before: the log of each round differs in its last byte, so no cache answers. `limit` is
the hashing alone in the same run: what every verifier of these logs must do. Words for people are made when they are
read, and are not in it. All of it is computing on one core, so processor time is measured.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from statistics import median
from struct import pack

from provisioning.attestation.eventlog import parse_event_log, replay, verify_replay
from provisioning.attestation.ima import parse_ima_log, verify_ima

ROUNDS = 20
BOOT_LOG_BYTES = 50_000
IMA_ENTRIES = 1650
SHA1, SHA256 = 0x0004, 0x000B


def figures() -> Iterator[dict[str, str | float]]:
    """One figure a dictionary: name, value, unit, limit, ratio."""
    logs, digests = zip(*(boot_log(number) for number in range(ROUNDS)), strict=True)
    quoted = [dict(replay(parse_event_log(log), "sha256")) for log in logs]
    parse_event_log.cache_clear()
    replay.cache_clear()

    def boot(number: int) -> None:
        verify_replay(parse_event_log(logs[number]), "sha256", quoted[number])

    def extend(number: int) -> None:
        pcr = bytes(32)
        for digest in digests[number]:
            pcr = hashlib.sha256(pcr + digest).digest()

    yield _figure("boot_log_50k", boot, extend)
    lists, datas = zip(*(ima_log(number) for number in range(ROUNDS)), strict=True)
    pcrs = [_pcr_10(data) for data in datas]

    def ima(number: int) -> None:
        verify_ima(parse_ima_log(lists[number]), "sha256", pcrs[number])

    yield _figure("ima_log", ima, lambda number: _pcr_10(datas[number]))


def boot_log(seed: int) -> tuple[bytes, list[bytes]]:
    """A log as a server with Secure Boot and GRUB writes it: some long variables, many short commands; two banks."""
    header = b"Spec ID Event03\0" + pack("<IBBBBI", 0, 0, 2, 105, 2, 2) + pack("<HHHHB", SHA1, 20, SHA256, 32, 0)
    log = bytearray(pack("<II20sI", 0, 3, bytes(20), len(header)) + header)
    digests: list[bytes] = []
    sizes = [3143, 1560, 7636, 845, 1600] + [132, 61, 44, 90, 180, 33, 260, 51] * 100
    for number, size in enumerate(sizes):
        if len(log) + size + 72 > BOOT_LOG_BYTES:
            break
        data = (b"%d grub_cmd: " % seed).ljust(size, b"x")
        digests.append(hashlib.sha256(data).digest())
        sha1 = hashlib.sha1(data, usedforsecurity=False).digest()
        log += pack("<IIIH20sH32sI", 8 if number > 4 else 7, 0x0D, 2, SHA1, sha1, SHA256, digests[-1], size) + data
    return bytes(log), digests


def ima_log(seed: int) -> tuple[bytes, list[bytes]]:
    """A list of `ima-sig` entries, three of four with an RSA-2048 signature, and what is hashed of it."""
    log, datas = bytearray(), []
    for number in range(IMA_ENTRIES):
        digest = b"sha256:\0" + hashlib.sha256(b"%d %d" % (seed, number)).digest()
        path = b"/usr/lib/x86_64-linux-gnu/libmeasured-%d.so.0\0" % number
        signature = bytes(265) if number % 4 else b""
        data = b"".join(pack("<I", len(field)) + field for field in (digest, path, signature))
        datas.append(data)
        template_hash = hashlib.sha1(data, usedforsecurity=False).digest()
        log += pack("<I20sI", 10, template_hash, 7) + b"ima-sig" + pack("<I", len(data)) + data
    return bytes(log), datas


def _pcr_10(datas: list[bytes]) -> bytes:
    pcr = bytes(32)
    for data in datas:
        pcr = hashlib.sha256(pcr + hashlib.sha256(data).digest()).digest()
    return pcr


def _figure(name: str, work: Callable[[int], object], bare: Callable[[int], object]) -> dict[str, str | float]:
    """The median of each, in turn, so that a noisy machine slows both alike."""
    values, limits = [], []
    for number in range(ROUNDS):
        values.append(_milliseconds(work, number))
        limits.append(_milliseconds(bare, number))
    value, limit = median(values), median(limits)
    return {
        "name": name,
        "value": round(value, 2),
        "unit": "ms",
        "limit": round(limit, 2),
        "ratio": round(value / limit, 2),
    }


def _milliseconds(work: Callable[[int], object], number: int) -> float:
    start = time.thread_time()
    work(number)
    return (time.thread_time() - start) * 1e3
