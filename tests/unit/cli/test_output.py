"""What reaches the terminal: whole cells, no control character, JSON that a program reads."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.cli import output
from provisioning.cli.output import Format, clean, print_fields, print_records, print_table, show

HOSTILE = "a\x1b[2J\r\nb\u202e"


@given(st.text())
def test_nothing_that_moves_the_cursor_passes(text):
    assert clean(text).isprintable()


def test_a_table_has_whole_cells_and_no_trailing_blanks(capsys):
    print_table(("name", "values"), [("a", ["x" * 300, 1]), ("long name", None), (HOSTILE, True)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "values"]
    assert lines[1].endswith("x" * 300 + ", 1")
    assert lines[2] == "long name" + " " * (len(lines[1].partition("x")[0]) - len("long name")) + "-"
    assert lines[3].startswith("a\\x1b[2J\\r\\nb\\u202e")
    assert len(lines) == 4
    assert all(line == line.rstrip() for line in lines)


def test_on_a_terminal_the_head_is_bold(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    print_records([{"name": "a"}], ("name",))
    assert terminal.getvalue() == "\x1b[1mname\x1b[0m\na\n"


def test_fields_without_a_value_are_left_out(capsys):
    print_fields({"a_b": 1, "none": None, "inner": {"x": [1, 2]}})
    assert capsys.readouterr().out.splitlines() == ["a b    1", "inner  x=1, 2"]


def test_json_is_ascii_and_whole(capsys):
    show(Format.JSON, {"name": HOSTILE, "none": None})
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == {"name": HOSTILE, "none": None}


@pytest.mark.parametrize("lines", [("muster a",), ("muster a", "muster b")])
def test_examples_keep_their_lines(lines):
    text = output.example(*lines)
    assert text.startswith("\b\nExample")
    assert text.endswith("\n".join(f"  {line}" for line in lines))
