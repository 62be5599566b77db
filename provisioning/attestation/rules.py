"""Rules about what a boot log shows: their types. Judged by `rules_judge`, after the log replayed (check 13).

A log's digests are the TPM's word once it replays; nothing else in it is. So a rule reads only what a digest of the
quoted bank is over (`Event.measured`), and takes neither an event's type nor a label before a string for true: who
runs the device afterwards writes both. It judges *all* events of its PCRs, and what it cannot read it refuses: an
event that may be left out is an event that may be renamed.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

CommandLineKind = Literal["grub", "stub"]
"""Who measures the command line: GRUB, among its own commands (PCR 8); or systemd's stub and boot loader, alone."""


@dataclass(frozen=True, slots=True)
class SecureBootOn:
    """The firmware verified what it started: its variable SecureBoot was 1, and shim's own verification stayed on.

    Not proven: that the firmware is honest (pin PCR 0), nor who may sign (see `SignersListed`).
    """

    name: ClassVar[str] = "secure_boot"
    pcrs: ClassVar[tuple[int, ...]] = (7,)


@dataclass(frozen=True, slots=True)
class SignersListed:
    """Each authority that vouched for an image is listed: a certificate (or an image's hash) by SHA-256, or a subject.

    A subject is a name, which anybody can write into a certificate: it counts for the firmware's `db` and for what is
    built into shim, never for the machine owner's list (MokList).
    """

    name: ClassVar[str] = "signers"
    pcrs: ClassVar[tuple[int, ...]] = (7,)
    sha256: frozenset[bytes]
    subjects: frozenset[str]


@dataclass(frozen=True, slots=True)
class BootLoadersListed:
    """Each image that the firmware (or shim) started has a listed digest: the first `first` of them, or all with 0.

    Digests are of the image as Authenticode hashes it, of any bank: the quoted bank's are compared.
    """

    name: ClassVar[str] = "boot_loaders"
    pcrs: ClassVar[tuple[int, ...]] = (4,)
    digests: frozenset[bytes]
    first: int = 0


@dataclass(frozen=True, slots=True)
class LineForm:
    """One form of a kernel command line: words in any order, none but these.

    Each word of `required` stands in it; every other word is one of `allowed`. A word of the form may hold one `*`,
    which stands for any characters but space, quote and slash. `kernel` is GRUB's first word, the image's path.
    """

    required: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    kernel: str | None = None


@dataclass(frozen=True, slots=True)
class CommandLineMatches:
    """Each kernel command line of this PCR has one of the forms.

    `commands`: names of functions in grub.cfg that start no kernel, beside GRUB's own commands.
    """

    name: ClassVar[str] = "command_line"
    pcr: int
    kind: CommandLineKind
    forms: tuple[LineForm, ...]
    commands: frozenset[str] = frozenset()

    @property
    def pcrs(self) -> tuple[int, ...]:
        """The one PCR whose events it reads."""
        return (self.pcr,)


EventRule = SecureBootOn | SignersListed | BootLoadersListed | CommandLineMatches


def pcrs_of(rules: tuple[EventRule, ...]) -> frozenset[int]:
    """The PCRs whose events these rules read: all must be quoted, and the log replayed to them."""
    return frozenset(pcr for rule in rules for pcr in rule.pcrs)
