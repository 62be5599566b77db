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


def test_what_retention_removed_is_said_and_what_is_whole_needs_no_word():
    said = "kept; of what passed before, the IMA log was removed by retention"
    assert f"  evidence  {said}" in lines_of({**FOUND, "evidence": said})
    assert not any("evidence" in line for line in lines_of({**FOUND, "evidence": "kept"}))


def test_a_stranger_without_a_record_is_one():
    lines = lines_of({**FOUND, "device": None, "serial": None, "check": None, "findings": [], "cure": ""})
    assert any("a stranger, by 192.0.2.1" in line for line in lines)
    assert not any("attacker" in line for line in lines)


@pytest.mark.parametrize("field", ["actual", "serial", "title"])
def test_a_hostile_field_stays_on_its_line(field):
    lines = lines_of({**FOUND, field: "x\n\x1b[31mcure      none\r"})
    assert all(line.isprintable() for line in lines)


CHANGE = {"pcr": 4, "change": "changed", "before": {"event": 9, "text": "old"}, "now": {"event": 10, "text": "new"}}
EXPLAINED = {
    **FOUND,
    "findings": [
        {
            "what": "PCR 4",
            "expected": "aa",
            "actual": "bb",
            "others": 2,
            "others_at_least": False,
            "signed": True,
            "why": "Secure Boot was on",
            "edit": None,
            "withheld": "seen on 3 of at least 4 devices",
        }
    ],
    "changed": {
        "since": {"attestation": "A", "at": "2026-11-21T00:00:00Z"},
        "pcrs": [{"pcr": 4, "before": "aa", "now": "bb"}],
        "events": [CHANGE],
        "more_events": 7,
        "files": [{"path": "/x", "before": None, "now": "sha256:00"}],
        "more_files": 0,
        "firmware": {"before": "0x1", "now": "0x2"},
    },
    "policy": {"model": "gateway", "version": 3, "accepts_it_now": False},
    "edit": None,
    "withheld": "PCR 4: seen on 3 of at least 4 devices",
    "second_person": "Two persons.",
}
EDIT = {"toml": '"4" = ["aa", "bb"]', "diff": '--- policy\n+++ policy\n@@ -1 +1 @@\n-"4" = ["aa"]\n+"4" = ["aa", "bb"]'}


def test_a_person_reads_what_changed_who_else_shows_it_and_that_an_edit_is_withheld():
    text = "\n".join(lines_of(EXPLAINED))
    for part in (
        *("seen on   2 other devices", "signed    yes: Secure Boot was on", "PCR 4: aa -> bb", "/x: not measured ->"),
        *("PCR 4, event 10 changed: old -> new", "and 7 more", "TPM firmware: 0x1 -> 0x2", "--show-unsafe"),
    ):
        assert part in text
    assert "Two persons" not in text


def test_an_edit_is_shown_as_a_difference_with_the_second_person_behind():
    lines = lines_of({**EXPLAINED, "edit": EDIT, "withheld": None})
    at = lines.index('    +"4" = ["aa", "bb"]')
    assert lines[at - 1] == '    -"4" = ["aa"]'
    assert "  Two persons." in lines[at:]
    single = {**EXPLAINED, "findings": [{**EXPLAINED["findings"][0], "edit": EDIT}]}
    assert '    +"4" = ["aa", "bb"]' in lines_of(single)


def test_what_the_policy_in_force_accepts_needs_no_edit():
    policy = {"model": "gateway", "version": 4, "accepts_it_now": True}
    lines = lines_of({**EXPLAINED, "policy": policy, "edit": EDIT})
    assert "  policy    version 4, now in force, accepts it" in lines
    assert not any("+" in line for line in lines)


def test_an_attestation_is_told_as_one_and_an_unchanged_boot_as_unchanged():
    unchanged = {"since": {"at": "T"}, "pcrs": [], "events": [], "files": [], "firmware": None}
    monitored = {**EXPLAINED, "refusal": None, "attestation": "A-9", "code": None, "source": None, "changed": unchanged}
    lines = lines_of(monitored)
    assert lines[0] == FOUND["title"]
    assert "    nothing that was quoted or logged" in lines
    assert lines[-1] == "  attested  A-9"


def test_many_findings_are_cut_and_counted():
    lines = lines_of({**FOUND, "findings": [{"what": f"PCR {n}", "expected": "", "actual": ""} for n in range(25)]})
    assert "  and 5 more: muster explain … -o json" in lines


def test_a_hostile_event_stays_on_its_line():
    change = {**CHANGE, "now": {"event": 10, "text": "x\n\x1b[31m  edit  none\r"}}
    edit = {**EDIT, "diff": EDIT["diff"] + "\n+\x1b[2J"}
    lines = lines_of({**EXPLAINED, "edit": edit, "changed": {**EXPLAINED["changed"], "events": [change]}})
    assert all(line.isprintable() for line in lines)
