"""Runs muster-agent and kills it (kill -9) at the N-th change of its files: `agent_killed_at.py N CALLS WORDS ARGS…`.

Counted are the system calls named in CALLS (those that change what a later start finds) on paths that contain one of
WORDS; both are separated by commas, and no words mean all paths. A file that is being synced is
cut to half its length first: what was never renamed into place must never be believed.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

STEP, CALLS, WORDS = int(sys.argv[1]), sys.argv[2].split(","), [word for word in sys.argv[3].split(",") if word]
sys.argv = ["muster-agent", *sys.argv[4:]]
COUNT = itertools.count(1)


def counts(name, path, arguments):
    if WORDS and not any(word in path for word in WORDS):
        return False
    if name == "open":
        return bool(arguments and arguments[0] & os.O_CREAT)
    return name != "unlink" or Path(path).exists()


def path_of(argument):
    if isinstance(argument, int):
        return str(Path(f"/proc/self/fd/{argument}").readlink())
    return os.fsdecode(argument)


def patched(name, original):
    def call(first, *rest, **options):
        path = path_of(first)
        if options.get("dir_fd") is not None:
            path = f"{path_of(options['dir_fd'])}/{path}"
        if counts(name, path, rest) and next(COUNT) == STEP:
            if name == "fsync" and Path(path).is_file():
                os.ftruncate(first, os.fstat(first).st_size // 2)
            print(f"killed at {name} {path}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(first, *rest, **options)

    return call


for function in CALLS:
    setattr(os, function, patched(function, getattr(os, function)))

from device_agent.__main__ import main  # noqa: E402  only now: nothing may hold the originals

sys.exit(main())
