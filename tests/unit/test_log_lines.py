"""Log lines: one event one line, whatever the fields hold; no secret by name; nothing endless."""

import ast
import io
import json
import logging
import sys
from pathlib import Path

import pytest
import structlog

from provisioning.app.logging import FIELD_MOST, configure_logging, hide_secrets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lines():
    stream = io.StringIO()
    configure_logging(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    logging.basicConfig(force=True, handlers=[logging.NullHandler()])


@pytest.mark.parametrize("hostile", ["a\nb", "a\r\nb", "\x1b[31mred", "a\u2028b", "a\x00b", '"}{"event":"forged"}'])
def test_a_hostile_field_stays_inside_its_line(lines, hostile):
    structlog.get_logger().info("event", field=hostile)
    (line,) = lines()
    assert line["event"] == "event"
    assert line["field"] == hostile


def test_a_traceback_is_a_field_of_one_line(lines):
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines()
    assert "ValueError" in line["exception"]


@pytest.mark.parametrize("name", ["pin", "token", "operator_token", "client_secret", "Authorization", "password"])
def test_a_field_named_like_a_secret_is_hidden(lines, name):
    structlog.get_logger().info("event", **{name: "canary"})
    assert "canary" not in json.dumps(lines())


def test_no_event_of_ours_has_a_field_that_would_be_hidden():
    """What a person needs to know would not be told: `keys.token_fails` once hid which token."""
    hidden = []
    for file in sorted(ROOT.glob("provisioning/**/*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("_log."):
                fields = {word.arg: "shown" for word in call.keywords if word.arg}
                if hide_secrets(None, "", dict(fields)) != fields:
                    hidden.append(f"{file.name}:{call.lineno}")
    assert hidden == []


def test_a_long_field_is_cut(lines):
    structlog.get_logger().info("event", text="x" * 100_000, raw=b"\xff" * 100_000)
    (line,) = lines()
    assert len(line["text"]) == FIELD_MOST
    assert len(line["raw"]) <= FIELD_MOST


def test_a_librarys_warning_has_the_same_form_and_its_chatter_is_dropped(lines):
    logging.getLogger("library").warning("careful: %s", "value")
    logging.getLogger("library").info("chatter")
    (line,) = lines()
    assert (line["event"], line["logger"], line["message"]) == ("library", "library", "careful: value")


def test_a_closed_standard_error_does_not_take_the_logger_with_it(monkeypatch):
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    configure_logging()
    log = structlog.get_logger()
    log.info("one")
    first_line = first.getvalue()
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    log.info("two")
    assert ("one" in first_line, "two" in second.getvalue()) == (True, True)
