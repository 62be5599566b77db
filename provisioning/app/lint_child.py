"""`muster fsck --lint` as the nightly duty starts it: a child of the lowest priority that says one line of JSON.

It reads, and writes nothing. It ends with the process that started it, even when that one is killed.
"""

import ctypes
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from provisioning.app.compose import load_authorities
from provisioning.app.fsck_lint import lint_installation
from provisioning.config import DataDirectory, load_config
from provisioning.db.store import Store, open_sqlite

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
NICENESS = 19
FAULTS_SHOWN = 20


def main(argv: list[str]) -> int:
    """0: it said how many certificates were looked at, and the first faults."""
    folder, parent = argv
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1  # it ended before the signal was asked for
    os.nice(NICENESS)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # not on its worker's core
    directory = DataDirectory(Path(folder))
    config = load_config(directory)
    with ExitStack() as opened:
        store = Store(open_sqlite(directory.database(config), read_only=True))
        opened.callback(store.close)
        report = lint_installation(store.read_now, load_authorities(store, config), config.service_name)
    faults = [fault for check in report.checks for fault in check.faults]
    said = {"looked_at": report.checks[0].looked_at, "faults": len(faults), "first": faults[:FAULTS_SHOWN]}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
