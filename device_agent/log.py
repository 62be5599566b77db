"""One event, one line: `time level event key=value …` on stderr. No value forges a line, none is a secret."""

import json
import logging
import re
import sys
import time
import warnings

_PLAIN = re.compile(r"[A-Za-z0-9._:/@+,-]+")
_VALUE_MOST = 500
_LOGGER = logging.getLogger("muster-agent")


def configure(*, verbose: bool = False) -> None:
    """Events to stderr; libraries only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger().handlers = [handler]
    logging.captureWarnings(capture=True)  # what a library warns of is one line, too
    # urllib3 minds a clock at 1970. Trusted time is the floor's affair, and TLS here does not go by the system's clock.
    warnings.filterwarnings("ignore", message="System time is way off")
    _LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)


class _OneLine(logging.Formatter):
    """UTC, and nothing that a library logs breaks the line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def event(name: str, /, **fields: object) -> None:
    """Something happened that an operator may want to know."""
    _LOGGER.info("%s", line(name, fields))


def warning(name: str, /, **fields: object) -> None:
    """Something went wrong, and the agent goes on."""
    _LOGGER.warning("%s", line(name, fields))


def error(name: str, /, **fields: object) -> None:
    """Something went wrong that somebody must mend."""
    _LOGGER.error("%s", line(name, fields))


def line(name: str, fields: dict[str, object]) -> str:
    """`event key=value …`; a value with spaces, quotes or control characters stands in JSON quotes, all ASCII."""
    return " ".join([name, *(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    text = str(value)[:_VALUE_MOST]
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=True)
