"""A challenge that is not this device's is not answered, whoever signed it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from device_agent.evidence import Attester, BootLogMissing, ChallengeRefused
from tests.unit.device_agent.builders import NOW, SERVICE
from wire.binding import ak_unique
from wire.messages import BOOT_LOG_MOST, Challenge, PcrSelection

CHALLENGE = Challenge(
    "e-1", SERVICE, b"blob", b"secret", b"n" * 32, PcrSelection("sha256", (0, 7)), "none", NOW + timedelta(minutes=5)
)
ATTESTER = Attester(SERVICE, 0, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"audience": "evil.example"}, "belongs to fleet.example"),
        ({"nonce": b"short"}, "no usable nonce"),
        ({"nonce": b""}, "no usable nonce"),
        ({"enrollment_id": ""}, "no usable nonce or id"),
        ({"pcr_selection": PcrSelection("sha1", (0,))}, "PCR bank 'sha1'"),
        ({"pcr_selection": PcrSelection("sha256:0+sha1", (0,))}, "PCR bank"),
        ({"pcr_selection": PcrSelection("sha256", ())}, "no PCRs"),
        ({"pcr_selection": PcrSelection("sha256", (1, 1))}, "one twice"),
        ({"pcr_selection": PcrSelection("sha256", (24,))}, "does not exist"),
        ({"pcr_selection": PcrSelection("sha256", (-1,))}, "does not exist"),
    ],
)
def test_a_challenge_that_is_not_for_this_device_is_refused_before_the_tpm_is_asked(changes, reason):
    challenge = replace(CHALLENGE, **changes)
    with pytest.raises(ChallengeRefused, match=reason):
        ATTESTER.attest_platform(None, challenge, "EK-RSA2048")
    with pytest.raises(ChallengeRefused, match=reason):
        ATTESTER.attest_key(None, challenge, "enroll", "EK-RSA2048", None, b"csr")


def test_another_owner_or_service_sees_another_attestation_key():
    assert ATTESTER.unique == ak_unique(SERVICE, 0)
    assert len({ATTESTER.unique, Attester(SERVICE, 1, None).unique, Attester("other.example", 0, None).unique}) == 3


def test_a_boot_log_is_given_only_when_asked_for(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"log")
    attester = Attester(SERVICE, 0, path)
    assert attester.read_boot_log(CHALLENGE) is None
    for rule in ("optional", "required"):
        assert attester.read_boot_log(replace(CHALLENGE, boot_log=rule)) == b"log"
    assert ATTESTER.read_boot_log(replace(CHALLENGE, boot_log="optional")) is None
    with pytest.raises(BootLogMissing, match="set boot_log in"):
        ATTESTER.read_boot_log(replace(CHALLENGE, boot_log="required"))


def test_a_log_that_cannot_be_read_or_is_too_large_is_said(tmp_path):
    attester = Attester(SERVICE, 0, tmp_path / "log")
    asked = replace(CHALLENGE, boot_log="optional")
    with pytest.raises(BootLogMissing, match="No such file"):
        attester.read_boot_log(asked)
    (tmp_path / "log").write_bytes(b"x" * (BOOT_LOG_MOST + 1))
    with pytest.raises(BootLogMissing, match="larger than"):
        attester.read_boot_log(asked)
