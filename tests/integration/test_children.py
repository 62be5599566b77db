"""Children end when their parent ends, even by SIGKILL: as root, and as a user."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from provisioning.app import children
from provisioning.app.children import NotTheMainThread, kill_child, start_child, stop_child

DEADLINE_SECONDS = 20
MODULE = Path(__file__).resolve().parents[2] / "provisioning" / "app" / "children.py"

# A parent that starts a child as its arguments say, tells its number, and waits to be killed.
PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from children import start_child
child = start_child(sys.argv[2:], user=sys.argv[1] or None)
print(child.pid, flush=True)
time.sleep(600)
"""


def _gone(pid: int) -> bool:
    """Is that process no more, or dead and not reaped yet?"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def _gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if _gone(pid):
            return True
        time.sleep(0.01)
    return False


def _commands(folder: Path) -> dict[str, list[str]]:
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener 0 {folder}/broker.sock\nallow_anonymous true\n", encoding="utf-8")
    configuration.chmod(0o644)  # the child is another user
    swtpm = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
    return {
        "python": [sys.executable, "-c", "import time; time.sleep(600)"],
        "swtpm": [*swtpm, "--server", f"type=unixio,path={folder}/s", "--ctrl", f"type=unixio,path={folder}/s.ctrl"],
        "mosquitto": ["mosquitto", "-c", str(configuration)],
    }


@pytest.fixture
def open_folder():
    """A folder that an unprivileged user may write to, with a short path and the module, which may lie in a home."""
    folder = Path(tempfile.mkdtemp(prefix="mc-", dir="/tmp"))
    folder.chmod(0o777)
    shutil.copyfile(MODULE, folder / "children.py")
    (folder / "children.py").chmod(0o644)
    yield folder
    shutil.rmtree(folder)


def _kill_parent(folder: Path, command: list[str], *, parent_user: str | None, child_user: str) -> int:
    """Start parent and child, wait until the child runs its program, kill the parent. Returns the child's number."""
    # The system's interpreter: another user may not reach the one of the virtual environment.
    argv = ["/usr/bin/python3", "-c", PARENT.format(folder=str(folder)), child_user, *command]
    account = pwd.getpwnam(parent_user) if parent_user else None
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    ) as parent:
        try:
            line = parent.stdout.readline()
            if not line:
                pytest.fail(parent.stderr.read().decode())
            child = int(line)
            time.sleep(0.3)  # until it has changed what it changes about itself
            assert not _gone(child), "the child did not run"
        finally:
            parent.kill()
    return child


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as other users")


@pytest.mark.parametrize("name", ["python", "swtpm"])
def test_a_child_ends_when_its_parent_is_killed(name, open_folder):
    assert _gone_soon(_kill_parent(open_folder, _commands(open_folder)[name], parent_user=None, child_user=""))


@root_only
@pytest.mark.parametrize("name", ["python", "swtpm", "mosquitto"])
def test_a_child_of_an_unprivileged_parent_ends_when_it_is_killed(name, open_folder):
    command = _commands(open_folder)[name]
    if name == "python":
        command[0] = "/usr/bin/python3"
    assert _gone_soon(_kill_parent(open_folder, command, parent_user="nobody", child_user=""))


@root_only
@pytest.mark.parametrize("name", ["python", "mosquitto"])
def test_a_child_that_root_starts_as_another_user_ends_when_root_is_killed(name, open_folder):
    command = _commands(open_folder)[name]
    if name == "python":
        command[0] = "/usr/bin/python3"
    assert _gone_soon(_kill_parent(open_folder, command, parent_user=None, child_user="nobody"))


@root_only
def test_a_child_started_as_another_user_has_that_users_rights_alone():
    with_ids = "import os; print(os.getuid(), os.getgid(), sorted(os.getgroups()))"
    child = start_child(["/usr/bin/python3", "-c", with_ids], user="nobody", stdout=subprocess.PIPE)
    nobody = pwd.getpwnam("nobody")
    assert child.communicate()[0].decode().split(maxsplit=2) == [
        str(nobody.pw_uid),
        str(nobody.pw_gid),
        f"[{nobody.pw_gid}]\n",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_only_root_starts_a_child_as_another_user():
    with pytest.raises(PermissionError, match="only root"):
        start_child(["true"], user="root")


def test_an_unknown_user_is_refused_before_anything_starts():
    with pytest.raises(LookupError):
        start_child(["true"], user="no-such-user-here")


def test_another_thread_than_the_main_one_may_not_start_a_child():
    refused: list[type] = []

    def start() -> None:
        try:
            start_child(["true"])
        except NotTheMainThread as refusal:
            refused.append(type(refusal))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert refused == [NotTheMainThread]


def test_a_child_whose_parent_died_before_it_set_the_signal_does_not_run():
    # Seen from the child: its parent is not the process that started it.
    forked = os.fork()
    if forked == 0:
        children._die_with(parent=1 if os.getppid() != 1 else 2)()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 127


def test_a_child_has_no_input_no_foreign_descriptor_and_a_session_of_its_own(tmp_path):
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    script = f"import os, sys; print(sys.stdin.read() == '', os.path.exists('/proc/self/fd/{leaked}'), os.getsid(0))"
    child = start_child([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.communicate()[0].decode().split() == ["True", "False", str(child.pid)]
    os.close(leaked)


def test_stopping_lets_a_child_end_by_itself():
    script = "import signal, time, sys; signal.signal(15, lambda *_: sys.exit(7)); print(flush=True); time.sleep(600)"
    child = start_child([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child.stdout.readline()
    assert stop_child(child, timeout_seconds=DEADLINE_SECONDS) == 7
    assert stop_child(child, timeout_seconds=DEADLINE_SECONDS) == 7  # once more does nothing
    child.stdout.close()


def test_a_child_that_does_not_listen_is_killed_with_its_group():
    script = (
        "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    child = start_child([sys.executable, "-c", script], stdout=subprocess.PIPE)
    grandchild = int(child.stdout.readline())
    assert stop_child(child, timeout_seconds=0.1) == -signal.SIGKILL
    assert _gone_soon(grandchild)
    child.stdout.close()


def test_killing_takes_the_group_along():
    script = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    child = start_child([sys.executable, "-c", script], stdout=subprocess.PIPE)
    grandchild = int(child.stdout.readline())
    assert kill_child(child) == -signal.SIGKILL
    assert _gone_soon(grandchild)
    child.stdout.close()
