"""The lab's IMA: its list is the kernel's, and its extensions lead to what a verifier replays."""

import hashlib

from lab.ima import entry_of
from provisioning.attestation.ima import parse_ima_log, replay_ima
from provisioning.attestation.ima_fields import measured


def test_the_labs_entries_are_those_of_the_kernel():
    entries = [entry_of(path, hashlib.sha256(path.encode()).digest()) for path in ("boot_aggregate", "/usr/bin/true")]
    log = parse_ima_log(b"".join(listed for listed, _ in entries))
    value = bytes(32)
    for _, extended in entries:
        value = hashlib.sha256(value + extended).digest()
    assert replay_ima(log, "sha256") == {10: value}
    assert [entry.template for entry in log.entries] == ["ima-ng", "ima-ng"]
    assert all(measured(entry) for entry in log.entries)
