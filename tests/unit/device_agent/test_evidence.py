"""A challenge that is not this device's is not answered, whoever signed it."""

from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from device_agent.evidence import Attester, BootLogMissing, ChallengeRefused, ImaLogMissing
from device_agent.tpm import IAK
from tests.unit.device_agent.builders import NOW, SERVICE
from wire.binding import ak_unique
from wire.messages import BOOT_LOG_MOST, IMA_LOG_MOST, Challenge, PcrSelection

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


def test_an_ima_log_is_given_only_when_asked_for_and_missed_only_when_required(tmp_path):
    path = tmp_path / "ima"
    attester = Attester(SERVICE, 0, None, path)
    optional, required = (replace(CHALLENGE, ima_log=rule) for rule in ("optional", "required"))
    for missing in (attester, ATTESTER):
        assert missing.read_ima_log(optional) is None
        with pytest.raises(ImaLogMissing):
            missing.read_ima_log(required)
    path.write_bytes(b"x" * (IMA_LOG_MOST + 1))
    assert attester.read_ima_log(optional) is None
    with pytest.raises(ImaLogMissing, match="larger than"):
        attester.read_ima_log(required)
    path.write_bytes(b"x" * IMA_LOG_MOST)
    assert attester.read_ima_log(CHALLENGE) is None
    assert len(attester.read_ima_log(optional)) == IMA_LOG_MOST


def test_a_challenge_without_credential_is_answered_by_a_certified_key_alone():
    """A service cannot spare an EK its part, nor ask one of a key that has none."""
    bare = replace(CHALLENGE, credential_blob=b"", encrypted_secret=b"")
    for challenge, kind in ((bare, "EK-RSA2048"), (CHALLENGE, IAK)):
        with pytest.raises(ChallengeRefused, match="vouched for by"):
            ATTESTER.attest_platform(None, challenge, kind)


class CertifiedTpm:
    """A TPM whose AK quotes and opens nothing."""

    def __init__(self):
        self.opened = []

    @contextmanager
    def key(self, which):
        self.opened.append(which)
        yield SimpleNamespace(name=b"name", quote=lambda _bound, _selection: ("quote", {"0": b"", "7": b""}))

    attestation_key = persistent_key = key


def test_a_certified_key_is_the_agents_own_or_the_one_at_the_handle():
    bare = replace(CHALLENGE, credential_blob=b"", encrypted_secret=b"")
    tpm = CertifiedTpm()
    assert ATTESTER.attest_platform(tpm, bare, IAK).activation_proof == b""
    Attester(SERVICE, 0, None, None, 0x81080000).attest_platform(tpm, bare, IAK)
    assert tpm.opened == [ATTESTER.unique, 0x81080000]


def test_a_log_that_cannot_be_read_or_is_too_large_is_said(tmp_path):
    attester = Attester(SERVICE, 0, tmp_path / "log")
    asked = replace(CHALLENGE, boot_log="optional")
    with pytest.raises(BootLogMissing, match="No such file"):
        attester.read_boot_log(asked)
    (tmp_path / "log").write_bytes(b"x" * (BOOT_LOG_MOST + 1))
    with pytest.raises(BootLogMissing, match="larger than"):
        attester.read_boot_log(asked)
