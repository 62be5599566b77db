"""An explained refusal: every check has a name and a reason, and what the device said is harmless to read."""

import pytest

from provisioning import refusals
from provisioning.cli.explain import CHECKS, lines_of

FOUND = {
    "refusal": "r-1",
    "at": "2026-11-22T00:00:00Z",
    "code": "MUSTER-ATT-049",
    "name": "PcrsNotAccepted",
    "check": 13,
    "title": "The device booted something that the policy does not accept",
    "flow": "enroll",
    "device": "d-1",
    "serial": "gw-1",
    "source": "192.0.2.1",
    "proven_own": True,
    "expected": "these",
    "actual": "those",
    "findings": [{"what": "PCR 4", "expected": "aa", "actual": "bb", "cure": "boot the other one"}],
    "cure": "Install it.",
}


def test_every_check_of_every_refusal_has_a_name_and_a_reason():
    kinds = [kind for kind in vars(refusals).values() if isinstance(kind, type) and issubclass(kind, refusals.Refusal)]
    assert {kind.check for kind in kinds if kind.check is not None} <= CHECKS.keys()
    assert set(CHECKS) == set(range(1, 21))


def test_a_person_reads_who_which_check_what_and_the_cure():
    text = "\n".join(lines_of(FOUND))
    for part in ("MUSTER-ATT-049", "d-1 (serial gw-1)", "192.0.2.1", "13: what was booted", "an attacker could", "aa"):
        assert part in text
    assert (
        text.index("expected  these") < text.index("actual    those") < text.index("PCR 4") < text.index("Install it.")
    )
    assert "boot the other one" in text
    assert text.endswith("refusal   r-1")
    assert "Not proven" not in text


def test_a_strangers_garbage_is_said_not_to_count_against_the_device():
    assert any("its health is untouched" in line for line in lines_of({**FOUND, "proven_own": False}))


def test_a_stranger_without_a_record_is_one():
    lines = lines_of({**FOUND, "device": None, "serial": None, "check": None, "findings": [], "cure": ""})
    assert any("a stranger, by 192.0.2.1" in line for line in lines)
    assert not any("attacker" in line for line in lines)


@pytest.mark.parametrize("field", ["actual", "serial", "title"])
def test_a_hostile_field_stays_on_its_line(field):
    lines = lines_of({**FOUND, field: "x\n\x1b[31mcure      none\r"})
    assert all(line.isprintable() for line in lines)
