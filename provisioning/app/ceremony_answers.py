"""The answers to a key ceremony's questions: from a TOML file or a person, with the defaults. Pure.

Names, types and lengths are judged here; whether the answers make a ceremony is `ceremony_plan`'s.
"""

import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

from provisioning.config import ConfigurationRefused, Pkcs11Module
from wire.codec import Cap, MalformedMessage, load

TOKEN_ROLES_MOST = 5
_WORDS_MOST = 200
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")

Words = Annotated[str, Cap(_WORDS_MOST)]
Names = Annotated[tuple[str, ...], Cap(32)]


class AnswersRefused(ConfigurationRefused):
    """The answers make no ceremony. `lines`: everything that is wrong, one line each, with its cure."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Person:
    """Who takes part, and as what."""

    name: Words
    role: Words


@dataclass(frozen=True, slots=True)
class TokenAnswers:
    """A token. Without `uri`, a SoftHSM2 token is made in the data directory.

    `uri` is a PKCS#11 URI (RFC 7512) of a token that is initialised already. `pin` says where the PIN is read from:
    `file:/path`, `env:NAME`, `credential:NAME` (systemd's) or `prompt`; empty, for a token that is made: a random one.
    """

    label: Annotated[str, Cap(32)] = ""
    uri: Annotated[str, Cap(2048)] = ""
    pin: Annotated[str, Cap(1024)] = ""


@dataclass(frozen=True, slots=True)
class RootAnswers:
    """The root CA. `outside`: there is none here; another CA signs the issuing CA."""

    key: Annotated[str, Cap(16)] = "P-256"
    common_name: Words = ""
    days: int = 7300
    crl_days: int = 365
    outside: bool = False


@dataclass(frozen=True, slots=True)
class IssuingAnswers:
    """The issuing CA. `constrained`, or any `permitted_*`: it can name nothing beyond this service and those."""

    key: Annotated[str, Cap(16)] = "P-256"
    common_name: Words = ""
    days: int = 3650
    constrained: bool = False
    permitted_dns: Names = ()
    permitted_uri: Names = ()
    permitted_ip: Names = ()


@dataclass(frozen=True, slots=True)
class OcspAnswers:
    """The key that answers for the issuing CA (RFC 6960 section 2.6, a delegated responder)."""

    key: Annotated[str, Cap(16)] = "P-256"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the owner decides. Every name is a key of the answers file."""

    service_name: Annotated[str, Cap(253)]
    host: Annotated[str, Cap(253)] = "127.0.0.1"
    advertised_host: Annotated[str, Cap(253)] = ""
    ports: Annotated[tuple[int, ...], Cap(4)] = (8443, 8444, 8080, 8883)
    """Device, operator, public, MQTT."""
    public_url: Annotated[str, Cap(300)] = ""
    """Where strangers reach the public listener; it stands in certificates. Empty: made of host and port."""
    people: Annotated[tuple[Person, ...], Cap(32)] = ()
    root: RootAnswers = field(default_factory=RootAnswers)
    issuing: IssuingAnswers = field(default_factory=IssuingAnswers)
    ocsp: OcspAnswers = field(default_factory=OcspAnswers)
    tokens: Annotated[dict[str, TokenAnswers], Cap(TOKEN_ROLES_MOST)] = field(default_factory=dict)
    modules: Annotated[dict[str, Pkcs11Module], Cap(16)] = field(default_factory=dict)
    """How PKCS#11 modules are loaded, as `hsm.modules` of the configuration: URIs say `?module-name=NAME`."""


def parse_answers(text: str, name: str) -> Answers:
    """The answers out of TOML; what is unknown or of another type is refused with its line. Raises: AnswersRefused."""
    try:
        return load(Answers, tomllib.loads(text))
    except MalformedMessage as error:
        raise AnswersRefused(f"{name}: line {line_of(text, error.where)}: {error}; correct or remove it") from error
    except (ValueError, RecursionError) as error:
        raise AnswersRefused(f"{name}: is not TOML: {error}; correct that line") from error


def line_of(text: str, where: str) -> int:
    """The line of a TOML text that sets the key of this path (`tokens.root.pin`, `people[1].name`), or its table."""
    wanted = where.split(".")
    plain = [re.sub(r"\[\d+\]$", "", part) for part in wanted]  # `ports[1]` stands on the line of `ports`
    table: list[str] = []
    seen: Counter[str] = Counter()
    deepest, line = 0, 1
    for number, row in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(row):
            table = _parts(header[2])
            if header[1] == "[[":
                seen[header[2]] += 1
                table[-1] += f"[{seen[header[2]] - 1}]"
            path = table
        elif assignment := _ASSIGNMENT.match(row):
            path = [*table, *_parts(assignment[1])]
        else:
            continue
        fits = len(path) <= len(wanted) and all(map(_is_either, path, wanted, plain))
        if fits and len(path) > deepest:
            deepest, line = len(path), number
    return line


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _is_either(part: str, wanted: str, plain: str) -> bool:
    return part in (wanted, plain)
