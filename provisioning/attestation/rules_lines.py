"""Kernel command lines of a boot log: which events hold one, and whether its words are those of the policy.

GRUB measures each command that it runs and each command line that it hands over, into one PCR, by the bare string:
the label before it (`grub_cmd:`, `kernel_cmdline:`) is not measured (grub-core/commands/tpm.c). So who sends the log
may call a command line a command. What tells them apart is their first word: a command line starts with the kernel's
path. A string that starts with a command of GRUB that starts no kernel is none; every other is judged; and of `linux`
and its like the words behind, too. The time is linear in the length of the log, whatever stands in it.

Not proven: what a kernel has built in or finds in its initial file system, and command lines that nobody measured: a
policy with this rule judges PCR 4 too, so that only a boot loader that measures them has run (`policy`).
"""

import re
from collections.abc import Iterator, Sequence

from provisioning.attestation.eventlog import Event
from provisioning.attestation.eventtext_reading import printable
from provisioning.attestation.rules import CommandLineMatches, LineForm
from provisioning.refusals import Finding

LINE_MOST = 2000
"""Characters of a command line. Kernels cut what is longer (COMMAND_LINE_SIZE is 2048 on x86 and Arm)."""
LINES_MOST = 16
_SHOWN_MOST = 512
_SEPARATORS = frozenset({bytes(4), b"\xff" * 4})
_ANY = re.compile(r"[!#-.0-~]*")
"""What `*` stands for: printable ASCII but space, quote and slash."""
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")

STARTS = frozenset(
    {"linux", "linux16", "linuxefi", "multiboot", "multiboot2", "module", "module2", "xen_hypervisor", "xen_module"}
)
"""Commands whose words behind are a path and a command line."""
_COMMANDS = frozenset(
    {
        *(".", "[", "authenticate", "background_color", "background_image", "blscfg", "boot", "break", "cat", "clear"),
        *("cmp", "configfile", "continue", "cpuid", "cryptomount", "date", "decrement", "distrust", "echo", "eval"),
        *("exit", "export", "false", "function", "fwsetup", "gettext", "gptpriority", "halt", "hashsum", "help"),
        *("hwmatch", "increment", "initrd", "initrd16", "initrdefi", "insmod", "keymap", "keystatus", "list_env"),
        *("list_trusted", "load_env", "loadfont", "loopback", "ls", "lsfonts", "lsmod", "lspci", "md5sum"),
        *("menuentry", "nativedisk", "net_add_addr", "net_add_dns", "net_add_route", "net_bootp", "net_del_addr"),
        *("net_del_dns", "net_del_route", "net_dhcp", "net_get_dhcp_option", "net_ipv6_autoconf", "net_ls_addr"),
        *("net_ls_cards", "net_ls_dns", "net_ls_routes", "net_nslookup", "normal", "normal_exit", "password"),
        *("password_pbkdf2", "play", "probe", "read", "reboot", "regexp", "return", "rmmod", "save_env", "search"),
        *("search.file", "search.fs_label", "search.fs_uuid", "sendkey", "serial", "set", "setparams", "sha1sum"),
        *("sha256sum", "sha512sum", "shift", "sleep", "smbios", "source", "submenu", "terminal_input"),
        *("terminal_output", "terminfo", "test", "time", "tr", "true", "trust", "unset", "verify_detached"),
        *("versioninfo", "videoinfo", "videotest", "zfskey"),
        # functions that grub-mkconfig defines on Debian, Ubuntu and Fedora
        *("gfxmode", "initrdfail", "load_video", "recordfail", "savedefault"),
    }
)
"""Commands that start no kernel. Not here, so refused: `chainloader`, `devicetree`, `acpi`, `wrmsr` and their like."""


def judge_lines(rule: CommandLineMatches, read: Sequence[tuple[Event, bytes | None]]) -> Iterator[Finding]:
    """What breaks the rule in the events of its PCR, each with what its digest is over."""
    lines = 0
    for event, preimage in read:
        where = f"rule {rule.name}, PCR {event.pcr}, event {event.number}"
        if preimage in _SEPARATORS:
            continue
        text = None if preimage is None else _text(rule, preimage)
        if text is None:
            yield Finding(where, "a string that its digest is over", f"other data: {event.text}")
            continue
        line = _line(rule, text)
        if line is None:
            continue
        lines += 1
        if lines > LINES_MOST:
            yield Finding(where, f"at most {LINES_MOST} command lines", "more")
            return
        if (why := _why_not(rule, line)) is not None:
            yield Finding(where, "a command line of the policy", why, "Add the words that are meant to the form.")
    if not lines:
        yield Finding(f"rule {rule.name}, PCR {rule.pcr}", "a kernel's command line", "none was measured")


def _text(rule: CommandLineMatches, preimage: bytes) -> str | None:
    """The string that was measured: UTF-16 by systemd, bytes by GRUB. None where it is none."""
    try:
        text = preimage.decode("utf-16-le" if rule.kind == "stub" else "utf-8")
    except UnicodeDecodeError:
        return None
    text = text.removesuffix("\0")
    return None if "\0" in text else text


def _line(rule: CommandLineMatches, text: str) -> str | None:
    """The command line that the string is or hands over; None where it is a command that starts no kernel."""
    if rule.kind == "stub":
        return text
    first, _, behind = text.lstrip(" ").partition(" ")
    if first in STARTS:
        return behind
    harmless = not first or first in _COMMANDS or first in rule.commands or _ASSIGNMENT.match(first) is not None
    return None if harmless else text


def _why_not(rule: CommandLineMatches, line: str) -> str | None:
    """Why no form accepts it: of the form that comes nearest, what is wrong."""
    if len(line) > LINE_MOST:
        return f"{len(line)} characters, more than {LINE_MOST}"
    words = list(dict.fromkeys(word for word in line.split(" ") if word))  # the path is the first of them, always
    wrongs = [_wrong(form, words) for form in rule.forms]
    if not all(wrongs):
        return None
    nearest = min(wrongs, key=len)
    return f"{'; '.join(nearest)[:_SHOWN_MOST]} in: {printable(line)[:_SHOWN_MOST]}"


def _wrong(form: LineForm, words: list[str]) -> list[str]:
    found = []
    if form.kernel is not None:
        kernel, words = words[0] if words else "", words[1:]
        if not _accepts(form.kernel, kernel):
            found.append(f"the kernel {printable(kernel)}")
    accepted = (*form.required, *form.allowed)
    exact = {word for word in accepted if "*" not in word}
    open_ended = [word for word in accepted if "*" in word]
    unknown = [w for w in words if w not in exact and not any(_accepts(pattern, w) for pattern in open_ended)]
    found += [f"not allowed: {printable(word)}" for word in dict.fromkeys(unknown)]
    missing = [pattern for pattern in form.required if not any(_accepts(pattern, word) for word in words)]
    return found + [f"missing: {pattern}" for pattern in missing]


def _accepts(pattern: str, word: str) -> bool:
    """Is the word what the pattern says, whole? One `*` at most: no backtracking."""
    before, star, behind = pattern.partition("*")
    if not star:
        return word == pattern
    fits = len(word) >= len(before) + len(behind) and word.startswith(before) and word.endswith(behind)
    return fits and _ANY.fullmatch(word, len(before), len(word) - len(behind)) is not None
