"""Child processes that never outlive their parent: broker, workers, software TPMs, virtual devices."""

import ctypes
import os
import pwd
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_DIED_BEFORE_EXEC = 127
_REAPING_SECONDS = 0.5

# Looked up once, here: between fork and exec nothing may be imported or allocated needlessly.
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl


class NotTheMainThread(RuntimeError):
    """A child was to be started by a thread; it would be killed when that thread ends (prctl(2), PR_SET_PDEATHSIG)."""


def start_child(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | IO[str] | None = None,
    stderr: int | IO[bytes] | IO[str] | None = None,
    user: str | None = None,
    cwd: str | Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills when this process ends, even by SIGKILL.

    It gets a session of its own (Ctrl-C reaches only the parent, which then stops its children in order) and an
    empty standard input; no descriptor is inherited but those in `pass_fds`. `user` starts it under that account
    with that account's groups: a program that changes its user by itself would lose the signal.

    Does NOT cover what the child starts in turn: the signal is not inherited.

    Raises: NotTheMainThread; LookupError (no such user); PermissionError (another user, without being root);
    OSError (the program cannot be started).
    """
    if threading.current_thread() is not threading.main_thread():
        raise NotTheMainThread(f"{argv[0]} must be started from the main thread")
    account = _account(user)
    return subprocess.Popen(
        [os.fspath(part) for part in argv],
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        close_fds=True,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        user=None if account is None else account.pw_uid,
        group=None if account is None else account.pw_gid,
        extra_groups=None if account is None else os.getgrouplist(account.pw_name, account.pw_gid),
        # Runs after the change of user, which would clear the signal. The function touches no lock and no module.
        preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  no other way to set the signal without a wrapper program
    )


def stop_child(child: subprocess.Popen[bytes], timeout_seconds: float) -> int:
    """Ask a child to end, wait, then kill it with its whole process group. Returns its exit status (negative: signal).

    A child that ended already is only reaped.
    """
    if child.poll() is None:
        child.terminate()
        try:
            return child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return kill_child(child)
    return child.returncode


def kill_child(child: subprocess.Popen[bytes]) -> int:
    """Kill a child and its process group at once, as a power cut would. Returns its exit status."""
    # Only while the child is not reaped is its group's number certain to be still its own.
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def give_up_child(child: subprocess.Popen[bytes]) -> None:
    """Kill it like `kill_child`, and wait only a moment: one that is in a driver dies when that lets go of it.

    It is reaped then when the next child is started (`subprocess` does so).
    """
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_REAPING_SECONDS)


def _account(user: str | None) -> pwd.struct_passwd | None:
    if user is None:
        return None
    account = pwd.getpwnam(user)
    if account.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise PermissionError(f"only root can start a program as {user}")
    return account


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        # The parent may have ended between fork and prctl: then the signal will never come.
        if _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(_DIED_BEFORE_EXEC)

    return before_exec
