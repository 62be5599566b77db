"""Who lives in a folder: processes whose working directory or arguments name it."""

import time
from pathlib import Path

DEADLINE_SECONDS = 15


def living_in(folder: Path) -> dict[int, str]:
    """The command lines of the processes that work in the folder, by process id."""
    name = str(folder.resolve())
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            status = (process / "stat").read_text(encoding="utf-8", errors="replace")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            at_home = (process / "cwd").readlink().is_relative_to(name)
        except OSError:
            continue  # it ended meanwhile
        if status.rpartition(")")[2].split()[0] != "Z" and (at_home or name in command):
            found[int(process.name)] = command
    return found


def wait_until_nobody_lives_in(folder: Path) -> None:
    """Fails with the command lines of those who stay."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while left := living_in(folder):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)
