"""Runs muster-agent and kills it (kill -9) at the N-th change of its files: `agent_killed_at.py N FILTER ARGS…`.

Counted are the system calls that change what a later start finds (creating, syncing, renaming, removing) on paths
that contain one of the comma-separated words of FILTER (all paths, where it is empty). A file that is being synced is
cut to half its length first: what was never renamed into place must never be believed.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

STEP, FILTER = int(sys.argv[1]), tuple(word for word in sys.argv[2].split(",") if word)
sys.argv = ["muster-agent", *sys.argv[3:]]
COUNT = itertools.count(1)


def counts(path):
    return not FILTER or any(word in path for word in FILTER)


def path_of(argument):
    if isinstance(argument, int):
        return str(Path(f"/proc/self/fd/{argument}").readlink())
    return os.fsdecode(argument)


def patched(name, original):
    def call(first, *rest, **options):
        path = path_of(first)
        if options.get("dir_fd") is not None:
            path = f"{path_of(options['dir_fd'])}/{path}"
        changes = name != "open" or (rest and rest[0] & os.O_CREAT)
        if changes and counts(path) and next(COUNT) == STEP:
            if name == "fsync" and Path(path).is_file():
                os.ftruncate(first, os.fstat(first).st_size // 2)
            print(f"killed at {name} {path}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(first, *rest, **options)

    return call


for function in ("open", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
    setattr(os, function, patched(function, getattr(os, function)))

from device_agent.__main__ import main  # noqa: E402  only now: nothing may hold the originals

sys.exit(main())
