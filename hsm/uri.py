"""PKCS#11 URIs (RFC 7512): which key of which token, and where the PIN is read from. Pure.

Stricter than the RFC, on purpose: an attribute that this program would not act on is refused, so nobody believes in a
condition that is not checked; `pin-value` is refused, because a PIN never stands in an argument or a configuration.
"""

import re
import string
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote_from_bytes, unquote_to_bytes

from hsm.errors import UriRefused

MAX_URI_CHARACTERS = 2048
SCHEME = "pkcs11:"

# RFC 7512, section 2.3: pk11-path-char and pk11-query-char. "&" ends an attribute in the query part.
_UNRESERVED = string.ascii_letters + string.digits + "-._~"
_RESERVED = ":[]@!$'()*+,="
_PATH_CHARACTERS = frozenset(_UNRESERVED + _RESERVED + "&")
_QUERY_CHARACTERS = frozenset(_UNRESERVED + _RESERVED + "/?|")
_PERCENT = re.compile("%[0-9A-Fa-f]{2}")

# Attribute -> (field, greatest number of bytes). The sizes are those of CK_TOKEN_INFO (PKCS#11 2.40, section 3.2).
_PATH_ATTRIBUTES = {
    "token": ("token", 32),
    "manufacturer": ("manufacturer", 32),
    "serial": ("serial", 16),
    "model": ("model", 16),
    "object": ("object", 255),
    "id": ("id", 255),
}
_QUERY_ATTRIBUTES = {
    "module-path": ("module_path", 1024),
    "module-name": ("module_name", 64),
    "pin-source": ("pin_source", 1024),
}
# RFC 7512, section 2.4 leaves to the consumer what pin-source is; its value "|command" is just none of these.
_PIN_SOURCE = re.compile(r"(file:)?/.+|env:[A-Za-z_][A-Za-z0-9_]*|credential:[A-Za-z0-9._-]+|prompt")


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """What a PKCS#11 URI names; None is "not said". It does not say that such a token or key exists."""

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    object: str | None = None
    id: bytes | None = None
    module_path: str | None = None
    module_name: str | None = None
    """Which of the modules that the configuration describes."""
    pin_source: str | None = None
    """`file:/PATH` or `/PATH`, `credential:NAME` (systemd's), `env:NAME`, `prompt`."""

    def __post_init__(self) -> None:
        for attribute, (name, size) in (_PATH_ATTRIBUTES | _QUERY_ATTRIBUTES).items():
            _check_value(attribute, getattr(self, name), size)
        if self.module_path is not None and not PurePosixPath(self.module_path).is_absolute():
            raise UriRefused("module-path must be an absolute path")
        if self.module_path is not None and self.module_name is not None:
            raise UriRefused("module-path and module-name are two answers to one question")
        if self.pin_source is not None and _PIN_SOURCE.fullmatch(self.pin_source) is None:
            raise UriRefused("pin-source must be an absolute path, credential:NAME, env:NAME or prompt")

    def pin_path(self) -> PurePosixPath | None:
        """The file that `pin-source` names, if it names one."""
        text = "" if self.pin_source is None else self.pin_source.removeprefix("file:")
        return PurePosixPath(text) if text.startswith("/") else None

    def __str__(self) -> str:
        path = ";".join(self._attributes(_PATH_ATTRIBUTES, _PATH_CHARACTERS))
        query = "&".join(self._attributes(_QUERY_ATTRIBUTES, _QUERY_CHARACTERS))
        return SCHEME + path + ("?" + query if query else "")

    def _attributes(self, table: dict[str, tuple[str, int]], plain: frozenset[str]) -> list[str]:
        written = []
        for attribute, (name, _) in table.items():
            value = getattr(self, name)
            if value is not None:
                raw = value if isinstance(value, bytes) else value.encode()
                # RFC 7512, section 2.3: the id SHOULD be percent-encoded throughout.
                text = "".join(f"%{byte:02X}" for byte in raw) if attribute == "id" else _quote(raw, plain)
                written.append(f"{attribute}={text}")
        return written


def parse_uri(text: str) -> Pkcs11Uri:
    """Read a PKCS#11 URI such as `pkcs11:token=ca;object=issuing?pin-source=file:/run/pin`.

    Raises:
        UriRefused: too long, another scheme, a bad escape or character, an unknown, repeated or empty attribute,
            `pin-value`, a value too long for its place in PKCS#11. The message repeats no value.
    """
    if len(text) > MAX_URI_CHARACTERS:
        raise UriRefused(f"longer than {MAX_URI_CHARACTERS} characters")
    if not text.startswith(SCHEME):
        raise UriRefused("does not start with pkcs11:")
    path, question_mark, query = text.removeprefix(SCHEME).partition("?")
    if question_mark and not query:
        raise UriRefused("has a ? and no query after it")
    found: dict[str, str | bytes] = {}
    _collect(found, path, ";", _PATH_ATTRIBUTES, _PATH_CHARACTERS)
    _collect(found, query, "&", _QUERY_ATTRIBUTES, _QUERY_CHARACTERS)
    return Pkcs11Uri(**found)  # type: ignore[arg-type]  # _collect makes bytes for `id` and str for all others


def _collect(
    found: dict[str, str | bytes],
    part: str,
    separator: str,
    table: dict[str, tuple[str, int]],
    plain: frozenset[str],
) -> None:
    for piece in part.split(separator) if part else ():
        attribute, equals, value = piece.partition("=")
        if attribute == "pin-value":
            raise UriRefused("pin-value is refused: a PIN never stands in an argument, use pin-source")
        if attribute not in table:
            raise UriRefused("holds an unknown attribute, or one in the wrong part")
        if not equals or not value:
            raise UriRefused(f"{attribute} has no value")
        name = table[attribute][0]
        if name in found:
            raise UriRefused(f"{attribute} stands twice")
        found[name] = _unquote(attribute, value, plain)


def _unquote(attribute: str, value: str, plain: frozenset[str]) -> str | bytes:
    if not set(_PERCENT.sub("", value)) <= plain:
        raise UriRefused(f"{attribute} holds a character that must be percent-encoded, or a bad escape")
    raw = unquote_to_bytes(value)
    if attribute == "id":
        return raw
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UriRefused(f"{attribute} is not UTF-8") from error


def _quote(raw: bytes, plain: frozenset[str]) -> str:
    return quote_from_bytes(raw, safe="".join(plain))


def _check_value(attribute: str, value: str | bytes | None, size: int) -> None:
    if value is None:
        return
    if isinstance(value, str) and not value.isprintable():
        raise UriRefused(f"{attribute} holds a control character")
    raw = value if isinstance(value, bytes) else value.encode()
    if not raw:
        raise UriRefused(f"{attribute} is empty")
    if len(raw) > size:
        raise UriRefused(f"{attribute} is longer than {size} bytes")
