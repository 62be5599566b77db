"""Event rules as a policy writes them: `[rules]`. A mistake names its field, which becomes a line (`policy_text`)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from provisioning.attestation.algorithms import DIGEST_BYTES, MAX_PCR
from provisioning.attestation.policy_text import demand, digest_of
from provisioning.attestation.rules import (
    BootLoadersListed,
    CommandLineKind,
    CommandLineMatches,
    EventRule,
    LineForm,
    SecureBootOn,
    SignersListed,
)
from wire.codec import Cap

WORD_MOST = 512
"""Characters of one word of a command line's form."""
_DEFAULT_PCR: dict[CommandLineKind, int] = {"grub": 8, "stub": 12}
_COMMAND = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_WORD = re.compile(r"[!-~]+")

_Word = Annotated[str, Cap(WORD_MOST)]
_Digests = Annotated[tuple[Annotated[str, Cap(128)], ...], Cap(1024)]


@dataclass(frozen=True, slots=True)
class SignersText:
    """`[rules.signers]`."""

    sha256: _Digests = ()
    subjects: Annotated[tuple[Annotated[str, Cap(1024)], ...], Cap(256)] = ()


@dataclass(frozen=True, slots=True)
class BootLoadersText:
    """`[rules.boot_loaders]`."""

    digests: _Digests
    first: int = 0


@dataclass(frozen=True, slots=True)
class CommandLineText:
    """One `[[rules.command_line]]`: one form. Those of one PCR are alternatives."""

    by: CommandLineKind = "grub"
    pcr: int | None = None
    kernel: _Word | None = None
    required: Annotated[tuple[_Word, ...], Cap(128)] = ()
    allowed: Annotated[tuple[_Word, ...], Cap(256)] = ()
    commands: Annotated[tuple[Annotated[str, Cap(64)], ...], Cap(64)] = ()


@dataclass(frozen=True, slots=True)
class RulesText:
    """`[rules]`."""

    secure_boot: Literal["on"] | None = None
    signers: SignersText | None = None
    boot_loaders: BootLoadersText | None = None
    command_line: Annotated[tuple[CommandLineText, ...], Cap(16)] = ()


def rules_of(written: RulesText) -> tuple[EventRule, ...]:
    """The rules, in the order in which they are judged. Raises: MalformedMessage."""
    return tuple(_rules(written))


def _rules(written: RulesText) -> Iterator[EventRule]:
    if written.secure_boot is not None:
        yield SecureBootOn()
    if written.signers is not None:
        yield _signers(written.signers, secure_boot=written.secure_boot is not None)
    if written.boot_loaders is not None:
        yield _boot_loaders(written.boot_loaders)
    pcrs = [_pcr_of(f"rules.command_line[{number}]", text) for number, text in enumerate(written.command_line)]
    for pcr in sorted(set(pcrs)):
        yield _command_line(pcr, [(n, text) for n, text in enumerate(written.command_line) if pcrs[n] == pcr])


def _signers(written: SignersText, *, secure_boot: bool) -> SignersListed:
    where = "rules.signers"
    # Without Secure Boot nothing is verified and nobody vouches: PCR 7 then holds what the system wrote afterwards.
    demand(secure_boot, where, 'needs secure_boot = "on" in [rules]: without it no signer is asked')
    demand(bool(written.sha256 or written.subjects), where, "names no signer: nothing could pass")
    digests = [digest_of(f"{where}.sha256[{n}]", text, (32,)) for n, text in enumerate(written.sha256)]
    for number, subject in enumerate(written.subjects):
        demand(bool(subject.strip()), f"{where}.subjects[{number}]", "is empty")
    return SignersListed(frozenset(digests), frozenset(written.subjects))


def _boot_loaders(written: BootLoadersText) -> BootLoadersListed:
    where = "rules.boot_loaders"
    demand(bool(written.digests), f"{where}.digests", "is empty: nothing could pass")
    demand(written.first >= 0, f"{where}.first", "is negative")
    sizes = tuple(DIGEST_BYTES.values())
    digests = [digest_of(f"{where}.digests[{n}]", text, sizes) for n, text in enumerate(written.digests)]
    return BootLoadersListed(frozenset(digests), written.first)


def _pcr_of(where: str, written: CommandLineText) -> int:
    pcr = _DEFAULT_PCR[written.by] if written.pcr is None else written.pcr
    demand(0 <= pcr <= MAX_PCR, f"{where}.pcr", f"is not a PCR from 0 to {MAX_PCR}")
    return pcr


def _command_line(pcr: int, written: Sequence[tuple[int, CommandLineText]]) -> CommandLineMatches:
    forms, commands = [], set[str]()
    kind = written[0][1].by
    for number, text in written:
        where = f"rules.command_line[{number}]"
        demand(text.by == kind, f"{where}.by", f"is not what the other forms of PCR {pcr} say")
        forms.append(_form(where, text))
        for at, command in enumerate(text.commands):
            known = _COMMAND.fullmatch(command) is not None
            demand(known, f"{where}.commands[{at}]", "is not a name of GRUB's (letters, digits, _ . -)")
        demand(not text.commands or kind == "grub", f"{where}.commands", "are GRUB's alone")
        commands.update(text.commands)
    return CommandLineMatches(pcr, kind, tuple(forms), frozenset(commands))


def _form(where: str, written: CommandLineText) -> LineForm:
    grub = written.by == "grub"
    demand((written.kernel is not None) == grub, f"{where}.kernel", "is GRUB's first word: the kernel's path")
    demand(bool(written.required or written.allowed), where, "accepts no word: no command line could pass")
    for name, words in (("required", written.required), ("allowed", written.allowed)):
        for number, word in enumerate(words):
            _demand_word(f"{where}.{name}[{number}]", word)
    if written.kernel is not None:
        _demand_word(f"{where}.kernel", written.kernel)
    return LineForm(written.required, written.allowed, written.kernel)


def _demand_word(where: str, word: str) -> None:
    demand(_WORD.fullmatch(word) is not None, where, "is not one word of printable ASCII")
    demand(word.count("*") <= 1, where, "has more than one *")
    demand(word != "*", where, "is * alone, which accepts every word")
