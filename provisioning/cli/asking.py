"""The questions of a key ceremony, on a terminal. The answers are checked with the plan, all of them together."""

import sys
from typing import TYPE_CHECKING

import typer

from provisioning.cli.failures import Failed

if TYPE_CHECKING:
    from provisioning.app.ceremony_answers import Answers, Person, TokenAnswers


def asked_answers(*, outside: bool) -> "Answers":
    """The answers of the people in the room. PINs are not among them: only where each is read from.

    Raises: Failed, where there is no terminal.
    """
    from provisioning.app.ceremony_answers import Answers, IssuingAnswers, OcspAnswers, RootAnswers

    if not sys.stdin.isatty():
        raise Failed("nobody can be asked, there is no terminal; write the answers: --answers FILE")
    usual, root, issuing = Answers(""), RootAnswers(), IssuingAnswers()
    service_name = _text("DNS name of the service", "muster.internal")
    host = _text("Address to listen on", usual.host)
    advertised = _text("Address that devices are told", "" if host in ("0.0.0.0", "::") else host)  # noqa: S104  compared
    ports = _text("Ports: device,operator,public,MQTT", ",".join(map(str, usual.ports)))
    if not all(part.strip().isdecimal() for part in ports.split(",")):
        raise Failed(f"{ports!r}: are no ports; four numbers with commas")
    people = _people()
    if not outside:
        key = _text("Root CA: key (P-256, P-384, RSA-3072, Ed25519)", root.key)
        days, crl_days = _number("Root CA: days", root.days), _number("Root CA: days until its next CRL", root.crl_days)
        root = RootAnswers(key=key, days=days, crl_days=crl_days)
    key = _text("Issuing CA: key", issuing.key)
    days = issuing.days if outside else _number("Issuing CA: days", issuing.days)
    constrained = not outside and typer.confirm("Issuing CA: may it name this service and its devices only?", err=True)
    return Answers(
        service_name=service_name,
        host=host,
        advertised_host=advertised,
        ports=tuple(int(part) for part in ports.split(",")),
        people=people,
        root=root,
        issuing=IssuingAnswers(key=key, days=days, constrained=constrained),
        ocsp=OcspAnswers(key=_text("OCSP responder: key", OcspAnswers().key)),
        tokens=_tokens(outside=outside),
    )


def _people() -> "tuple[Person, ...]":
    from provisioning.app.ceremony_answers import Person

    found = []
    while name := _text("Who takes part? (name, nothing ends the list)", ""):
        found.append(Person(name, _text(f"{name}: as what?", "witness")))
    return tuple(found)


def _tokens(*, outside: bool) -> "dict[str, TokenAnswers]":
    from provisioning.app.ceremony_answers import TokenAnswers
    from provisioning.app.ceremony_plan import ROOT, TOKEN_ROLES
    from provisioning.app.pins import SOURCES

    found = {}
    for role in TOKEN_ROLES:
        if role == ROOT and outside:
            continue
        uri = _text(f"Token {role}: PKCS#11 URI (nothing: a SoftHSM2 token is made here)", "")
        pin = _text(f"Token {role}: where is its PIN? ({SOURCES}{'' if uri else '; nothing: a random one'})", "")
        if uri or pin:
            found[role] = TokenAnswers(uri=uri, pin=pin)
    return found


def _text(question: str, default: str) -> str:
    answer: str = typer.prompt(question, default=default, show_default=bool(default), err=True)
    return answer.strip()


def _number(question: str, default: int) -> int:
    answer: int = typer.prompt(question, default=default, type=int, err=True)
    return answer
