"""However a command ends, its user reads one line with the cure, and a program reads the exit status."""

import errno
import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from hsm.errors import WrongPin
from ota.refusals import TooFewSigners
from provisioning.cli.failures import Failed, Mistaken, Unreachable, described, naming, refusal_line
from provisioning.config import ConfigurationRefused
from provisioning.refusals import Finding, PcrsNotAccepted


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (Failed("a", "b"), 1, "a\nb"),
        (Mistaken("a"), 2, "a"),
        (Unreachable("a"), 3, "a"),
        (ConfigurationRefused("muster.toml: line 3: no; correct it"), 1, "muster.toml: line 3: no; correct it"),
        (WrongPin("token 'muster': wrong PIN"), 1, "HSM: token 'muster': wrong PIN; look: muster doctor"),
        (TooFewSigners("root"), 1, "MUSTER-OTA-160 Fewer keys than the role's threshold would sign: root"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space and repeat"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "/x: Permission denied; run as the owner, or mend the permissions",
        ),
        (
            OperationalError("insert", {}, sqlite3.OperationalError("database or disk is full")),
            1,
            "database: database or disk is full; look: muster doctor",
        ),
    ],
)
def test_each_kind_of_failure_has_its_status_and_line(error, status, line):
    assert described(error) == (status, tuple(line.split("\n")))


def test_a_defect_is_one_line_too_and_says_where():
    def broken():
        raise KeyError("x" * 1000)

    try:
        broken()
    except KeyError as error:
        status, lines = described(error)
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("defect: KeyError: ")
    assert "test_failures.py:" in lines[0]
    assert len(lines[0]) < 400


def test_a_refusal_shows_title_code_expected_actual_findings_and_cure():
    refusal = PcrsNotAccepted(expected="these", actual="those", findings=(Finding("PCR 4", "aa", "bb"),))
    assert refusal_line(refusal) == (
        f"{PcrsNotAccepted.title} (MUSTER-ATT-049): expected these; actual those; "
        f"PCR 4: expected aa, actual bb; {PcrsNotAccepted.cure}"
    )


def test_a_system_call_that_names_no_file_is_said_to_be_about_this_one():
    with pytest.raises(Failed, match=r"^/data: No space left on device; free some space"), naming("/data"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(Failed, match=r"^/other: Is a directory"), naming("/data"):
        raise OSError(errno.EISDIR, "Is a directory", "/other")
