"""Processes as the kernel shows them, for tests that kill."""

from pathlib import Path


def children(parent, part=""):
    """The numbers of a process's children whose command line has that part."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == parent:
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            actual = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if part in command and actual == parent:
            found.append(int(entry.name))
    return found


def gone(pid):
    """Is that process no more, or dead and not reaped yet?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
