"""Processes that live ahead of the clock, with all their children: a small library that is loaded before libc.

Not libfaketime: with an offset its clock_nanosleep fails (Python's time.sleep since 3.11), and only the wall clock is
to be ahead here; whatever counts seconds stays as it is.
"""

import subprocess
from datetime import timedelta
from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += SECONDS;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


def ahead_by(span: timedelta, folder: Path) -> dict[str, str]:
    """What stands in the environment of such a process."""
    library, source = folder / "ahead.so", folder / "ahead.c"
    source.write_text(_SOURCE)
    seconds = f"-DSECONDS={int(span.total_seconds())}L"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", seconds, "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}
