"""The plan of a key ceremony: from the answers to every token, key and certificate that there will be. Pure.

`plan` decides everything that can be decided before a token is touched; `describe` is what the people in the room
read, and `fingerprint` is what they agree to. Carrying it out is `ceremony`'s.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hsm.errors import UriRefused
from hsm.uri import Pkcs11Uri, parse_uri
from provisioning.app.ceremony_answers import Answers, AnswersRefused, TokenAnswers, line_of
from provisioning.app.pins import SOURCE, SOURCES
from provisioning.config import Config, Listen, public_url
from provisioning.issuance.profiles import builtin
from provisioning.issuance.tbs import Profile
from wire.codec import encode

KEY_KINDS = ("P-256", "P-384", "RSA-3072", "Ed25519")
PROTOCOL_KIND = "P-256"
"""Of every key whose signatures devices verify in our own envelope, in the log and in update metadata."""
SERVICE, ROOT = "service", "root"
PROMPT = "prompt"
TRUST_ROLES = ("trust-1", "trust-2", "trust-3")
TOKEN_ROLES = (SERVICE, ROOT, *TRUST_ROLES)
TRUST_THRESHOLD = 2
ROOT_KEY, TRUST_KEY, ISSUING_KEY, OCSP_KEY = "root", "trust", "issuing", "ocsp"
COMMON_NAME_MOST = 64
PORTS, PORT_MOST = 4, 65535
_LABELS = {SERVICE: "muster", ROOT: "root", **{role: role for role in TRUST_ROLES}}
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_CONSTRAINT = re.compile(rf"\.?{_DNS_NAME.pattern}")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  named so that neither stands in a certificate


@dataclass(frozen=True, slots=True)
class PlannedToken:
    """A token of the ceremony. An empty `uri`: a SoftHSM2 token that is made. Offline: the service never needs it."""

    role: str
    label: str
    uri: str
    pin: str
    offline: bool

    @property
    def is_made(self) -> bool:
        """Is it a SoftHSM2 token of the data directory, made by the ceremony?"""
        return not self.uri

    @property
    def keeps_pin(self) -> bool:
        """Is its PIN asked of a person, and written where a service that starts without one reads it?"""
        return self.pin == PROMPT and not self.offline


@dataclass(frozen=True, slots=True)
class PlannedKey:
    """A key pair that is made inside its token."""

    token: str
    label: str
    kind: str
    purpose: str


@dataclass(frozen=True, slots=True)
class PlannedCertificate:
    """A CA certificate. `issuer` is the name of an authority, or "outside"."""

    name: str
    common_name: str
    days: int
    issuer: str
    path_length: int | None
    permitted_dns: tuple[str, ...] = ()
    permitted_uri: tuple[str, ...] = ()
    permitted_ip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ceremony:
    """Everything that will be made, in the order in which it is."""

    kind: Literal["muster key ceremony, version 1"]
    answers: Answers
    tokens: tuple[PlannedToken, ...]
    keys: tuple[PlannedKey, ...]
    certificates: tuple[PlannedCertificate, ...]
    root_crl_days: int | None
    threshold: int

    @property
    def outside(self) -> bool:
        """Does another CA sign the issuing CA?"""
        return self.answers.root.outside

    def token(self, role: str) -> PlannedToken:
        """The token of that role."""
        return next(token for token in self.tokens if token.role == role)

    def certificate(self, name: str) -> PlannedCertificate:
        """The certificate of that authority."""
        return next(certificate for certificate in self.certificates if certificate.name == name)


def plan(answers: Answers, *, name: str = "answers", text: str = "") -> Ceremony:
    """What the ceremony will make. `text`, the answers file's, is for line numbers alone.

    Raises: AnswersRefused, with everything that is wrong.
    """
    if wrong := list(_faults(answers)):
        raise AnswersRefused(*(_line(name, text, where, what) for where, what in wrong))
    outside = answers.root.outside
    tokens = tuple(_token(role, answers) for role in TOKEN_ROLES if role != ROOT or not outside)
    return Ceremony(
        "muster key ceremony, version 1",
        answers,
        tokens,
        tuple(_keys(answers)),
        tuple(_certificates(answers)),
        None if outside else answers.root.crl_days,
        TRUST_THRESHOLD,
    )


def fingerprint(ceremony: Ceremony) -> str:
    """SHA-256 of the plan in canonical JSON, lower hex: who confirms it confirms exactly this plan."""
    return hashlib.sha256(encode(ceremony)).hexdigest()


def hosts_of(answers: Answers) -> tuple[str, ...]:
    """The names and addresses beside the service name that the service's own certificate carries."""
    named = (answers.advertised_host or answers.host, answers.host)
    return tuple(dict.fromkeys(host for host in named if host not in _EVERYWHERE))


def asked_at(answers: Answers) -> str:
    """The address in certificates (CRL, OCSP, CA certificates)."""
    told, port = answers.advertised_host or answers.host, answers.ports[2]  # device, operator, public, MQTT
    listen = Listen(advertised_host=told, public_url=answers.public_url)
    return public_url(Config(answers.service_name, listen=listen), port)


def is_host(name: str) -> bool:
    """Is it an address, or a DNS name in lower case?"""
    return _is_address(name) or _DNS_NAME.fullmatch(name) is not None


def _line(name: str, text: str, where: str, what: str) -> str:
    place = f"line {line_of(text, where)}: " if text else ""
    return f"{name}: {place}{where}: {what}"


def _token(role: str, answers: Answers) -> PlannedToken:
    said = answers.tokens.get(role, TokenAnswers())
    label = parse_uri(said.uri).token if said.uri else said.label
    return PlannedToken(role, label or _LABELS[role], said.uri, said.pin, role != SERVICE)


def _keys(answers: Answers) -> Iterator[PlannedKey]:
    if not answers.root.outside:
        yield PlannedKey(ROOT, ROOT_KEY, answers.root.key, "root CA: signs itself, issuing CAs and its CRL")
    yield PlannedKey(SERVICE, ISSUING_KEY, answers.issuing.key, "issuing CA: signs certificates and CRLs")
    yield PlannedKey(SERVICE, OCSP_KEY, answers.ocsp.key, "OCSP responder of the issuing CA")
    yield PlannedKey(SERVICE, "command", PROTOCOL_KIND, "commands to devices")
    yield PlannedKey(SERVICE, "log", PROTOCOL_KIND, "tree heads of the log")
    yield PlannedKey(SERVICE, "results", PROTOCOL_KIND, "attestation results for relying parties")
    yield PlannedKey(SERVICE, "trust-online", PROTOCOL_KIND, "trust repository: snapshot and timestamp")
    yield PlannedKey(SERVICE, "director-online", PROTOCOL_KIND, "Director: targets, snapshot and timestamp")
    for role in TRUST_ROLES:
        yield PlannedKey(role, TRUST_KEY, PROTOCOL_KIND, "trust and Director roots, trust bundles")


def _certificates(answers: Answers) -> Iterator[PlannedCertificate]:
    root, issuing = answers.root, answers.issuing
    if not root.outside:
        title = root.common_name or f"{answers.service_name} root CA"[:COMMON_NAME_MOST]
        yield PlannedCertificate("root", title, root.days, "root", None)
    title = issuing.common_name or f"{answers.service_name} issuing CA"[:COMMON_NAME_MOST]
    dns: tuple[str, ...] = ()
    uri: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    if issuing.constrained or issuing.permitted_dns or issuing.permitted_uri or issuing.permitted_ip:
        # The service's own certificate and the devices' SPIFFE ids must stay possible.
        hosts = (answers.service_name, "localhost", "127.0.0.1", *hosts_of(answers))
        dns = _once(*(host for host in hosts if not _is_address(host)), *issuing.permitted_dns)
        uri = _once(answers.service_name, *issuing.permitted_uri)
        own = [str(ipaddress.ip_network(host)) for host in hosts if _is_address(host)]
        addresses = _once(*own, *(str(ipaddress.ip_network(text)) for text in issuing.permitted_ip))
    issuer = "outside" if root.outside else "root"
    yield PlannedCertificate("issuing", title, issuing.days, issuer, 0, dns, uri, addresses)


def _once(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


# --- what makes no ceremony -------------------------------------------------------------------------------------------


def _faults(answers: Answers) -> Iterator[tuple[str, str]]:
    """Every fault: the key's path, and what is wrong with it."""
    if _DNS_NAME.fullmatch(answers.service_name) is None:
        yield "service_name", f"{answers.service_name!r} is no DNS name in lower case"
    for where in ("host", "advertised_host"):
        name = getattr(answers, where)
        if not is_host(name) and not (where == "advertised_host" and not name):
            yield where, f"{name!r} is no host name in lower case and no address"
    if answers.host in _EVERYWHERE and not answers.advertised_host:
        yield "advertised_host", f"say what devices are told: {answers.host} is no address to connect to"
    yield from _port_faults(answers)
    yield from _authority_faults(answers)
    yield from _token_faults(answers)
    for number, person in enumerate(answers.people):
        for where in ("name", "role"):
            said = getattr(person, where)
            if not said.strip() or not said.isprintable():
                yield f"people[{number}].{where}", "write a text of printable characters"


def _port_faults(answers: Answers) -> Iterator[tuple[str, str]]:
    named = [port for port in answers.ports if port]
    if (
        len(answers.ports) != PORTS
        or len(set(named)) != len(named)
        or not all(0 <= port <= PORT_MOST for port in answers.ports)
    ):
        yield "ports", f"write four different numbers from 0 (a free one) to {PORT_MOST}"


def _authority_faults(answers: Answers) -> Iterator[tuple[str, str]]:
    root, issuing = answers.root, answers.issuing
    for where, part in (("root", root), ("issuing", issuing), ("ocsp", answers.ocsp)):
        if part.key not in KEY_KINDS:
            yield f"{where}.key", f"{part.key!r} is none of {', '.join(KEY_KINDS)}"
    for where, days, most in (
        ("root.days", root.days, _days_most(Profile.ROOT_CA)),
        ("root.crl_days", root.crl_days, _days_most(Profile.ROOT_CA)),
        ("issuing.days", issuing.days, _days_most(Profile.ISSUING_CA)),
    ):
        if not 1 <= days <= most:
            yield where, f"write 1 to {most} days"
    if not root.outside and issuing.days > root.days:
        yield "issuing.days", f"the issuing CA cannot outlive its root ({root.days} days)"
    for where, name in (("root.common_name", root.common_name), ("issuing.common_name", issuing.common_name)):
        if len(name) > COMMON_NAME_MOST or not name.isprintable() or name != name.strip():
            yield where, f"a common name is 1 to {COMMON_NAME_MOST} printable characters"
    if root.common_name and root.common_name == issuing.common_name:
        yield "issuing.common_name", "differs from the root's: chains are built by names"
    for where in ("permitted_dns", "permitted_uri"):
        for name in getattr(issuing, where):
            if _CONSTRAINT.fullmatch(name) is None:
                yield f"issuing.{where}", f"{name!r} is no DNS name in lower case"
    for network in issuing.permitted_ip:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            yield "issuing.permitted_ip", f"{network!r} is no network such as 192.0.2.0/24"


def _days_most(kind: Profile) -> int:
    """What the certificate profile of that kind allows at most."""
    lifetime = builtin(kind).lifetime
    assert lifetime is not None  # noqa: S101  for mypy: a CA's profile has an end
    return lifetime.days


def _token_faults(answers: Answers) -> Iterator[tuple[str, str]]:
    taken: dict[str, str] = {}
    for role in sorted(set(answers.tokens) - set(TOKEN_ROLES)):
        yield f"tokens.{role}", f"is none of {', '.join(TOKEN_ROLES)}"
    if answers.root.outside and ROOT in answers.tokens:
        yield "tokens.root", "there is no root here: root.outside is true"
    for role in TOKEN_ROLES:
        said, where = answers.tokens.get(role, TokenAnswers()), f"tokens.{role}"
        if said.pin and SOURCE.fullmatch(said.pin) is None:
            # What stands there is not repeated: it may be the PIN itself.
            yield f"{where}.pin", f"is no source: write {SOURCES}"
        label = said.label or _LABELS[role]
        if said.uri:
            try:
                uri = parse_uri(said.uri)
            except UriRefused as error:
                yield f"{where}.uri", str(error)
                continue
            yield from _uri_faults(where, said, uri, answers)
            label = uri.token or label
        elif not label.isprintable() or label != label.strip() or "/" in label:
            yield f"{where}.label", "a label is 1 to 32 printable characters, no /"
        if label in taken:
            yield where, f"is called {label!r}, as {taken[label]} is: each role has a token of its own"
        taken[label] = role


def _uri_faults(where: str, said: TokenAnswers, uri: Pkcs11Uri, answers: Answers) -> Iterator[tuple[str, str]]:
    if not uri.token or "/" in uri.token:
        yield f"{where}.uri", "names no token: pkcs11:token=LABEL?module-path=/path"
    if not uri.module_path and not uri.module_name:
        yield f"{where}.uri", "names neither module-path nor module-name"
    if uri.module_name and uri.module_name not in answers.modules:
        yield f"{where}.uri", f"there is no [modules.{uri.module_name}]"
    if uri.object or uri.id:
        yield f"{where}.uri", "names a key: the ceremony makes the keys; name the token"
    if uri.pin_source:
        yield f"{where}.uri", "holds pin-source: write it as pin"
    if said.label:
        yield f"{where}.label", "stands in the URI already"
    if not said.pin:
        yield f"{where}.pin", f"say where its PIN is read from: {SOURCES}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
