"""Logs: one event, one line of JSON on standard error. Fields, no sentences; no secret, no evidence, no payload."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog

FIELD_MOST = 2000
"""Characters of one field; a traceback keeps its end, where the error stands."""
_SECRET_NAMES = ("pin", "token", "secret", "password", "authorization", "activation_proof")
_HIDDEN = "[hidden]"


def configure_logging(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Configure structlog and the standard library's loggers, once a process.

    Without a `stream` it is whatever standard error is when something is logged: one that is closed or replaced
    later does not take the logs, or who logs, with it.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            hide_secrets,
            shorten,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = _ToStructlog()
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def hide_secrets(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A field that is named like a secret is not printed, whoever logged it."""
    for name in event:
        if any(part in name.lower().split("_") or part == name.lower() for part in _SECRET_NAMES):
            event[name] = _HIDDEN
    return event


def shorten(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Bytes as hex, long texts cut: a hostile field cannot fill the disk with one line."""
    for name, value in event.items():
        if isinstance(value, bytes):
            event[name] = value[: FIELD_MOST // 2].hex()
        elif isinstance(value, str) and len(value) > FIELD_MOST:
            event[name] = value[-FIELD_MOST:] if name == "exception" else value[:FIELD_MOST]
    return event


class _Lines(structlog.WriteLogger):
    """Lines on a stream. Where it takes none (a log file on a full disk), whoever logs goes on without."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


class _ToStructlog(logging.Handler):
    """Warnings of the libraries, as events of the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        method("library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)
