"""`muster serve`: ready when it says so, restarts what dies, takes all with it, says in one line what is wrong."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from provisioning.app.endpoints import bind_shared
from provisioning.config import DataDirectory
from tests.support.processes import children, gone
from tests.support.service import make_installation

PATIENCE_SECONDS = 60
SERVE = """
import sys
from pathlib import Path
from provisioning.app.supervisor import supervise
from provisioning.config import ConfigurationRefused, DataDirectory
try:
    sys.exit(supervise(DataDirectory(Path(sys.argv[1]))))
except ConfigurationRefused as refused:
    print(refused, file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("supervisor") / "D")


@pytest.fixture
def directory(template, tmp_path):
    copy = DataDirectory(Path(shutil.copytree(template.root, tmp_path / "D")))
    text = copy.config.read_text()
    copy.config.write_text(re.sub(r"_port = \d+", "_port = 0", text))
    return copy


class Serving:
    """A `muster serve` in a process of its own."""

    def __init__(self, directory, log):
        self.directory, self.log = directory, log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, directory.root], stdout=stream, stderr=stream, start_new_session=True
            )

    def ready(self):
        eventually(lambda: self.directory.endpoints.is_file() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return json.loads(self.directory.endpoints.read_text())

    def children(self, part):
        """The numbers of the children whose command line has that part."""
        return children(self.process.pid, part)

    def events(self):
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [json.loads(line)["event"] for line in lines]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def serve(directory, tmp_path):
    started = []

    def start():
        started.append(Serving(directory, tmp_path / f"log-{len(started)}"))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.kill()
            serving.process.wait()


def eventually(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def answers(url):
    host, port = url.rpartition("/")[2].split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def test_when_it_says_ready_everything_answers_and_when_it_ends_nothing_does(serve, directory):
    serving = serve()
    endpoints = serving.ready()
    assert set(endpoints) == {"device", "operator", "public", "mqtt"}
    assert all(answers(url) for url in endpoints.values())
    started = serving.children("")
    assert len(started) == 2
    assert serving.stop() == 0
    assert not directory.endpoints.exists()
    assert all(gone(child) for child in started)
    assert not any(answers(url) for url in endpoints.values())


def test_when_it_is_killed_its_children_die(serve):
    serving = serve()
    serving.ready()
    started = serving.children("")
    assert len(started) == 2
    serving.process.kill()
    serving.process.wait()
    eventually(lambda: all(gone(child) for child in started))


@pytest.mark.parametrize("part", ["provisioning.app.worker", "mosquitto"])
def test_a_child_that_is_killed_is_started_again_on_the_same_port(serve, part):
    serving = serve()
    endpoints = serving.ready()
    (child,) = serving.children(part)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: serving.children(part) not in ([], [child]))
    eventually(lambda: all(answers(url) for url in endpoints.values()))
    assert "child.died" in serving.events()
    assert serving.stop() == 0


def test_only_the_signer_holds_the_token_and_partners_die_with_their_worker(serve):
    serving = serve()
    serving.ready()
    (worker,) = serving.children("provisioning.app.worker")
    (signer,), (verifier,) = (children(worker, f"provisioning.app.{part}") for part in ("signer", "verifying"))
    holds = {pid: "libsofthsm2.so" in Path(f"/proc/{pid}/maps").read_text() for pid in (worker, signer, verifier)}
    assert holds == {worker: False, signer: True, verifier: False}
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: gone(signer) and gone(verifier))
    eventually(lambda: serving.children("provisioning.app.worker") not in ([], [worker]))
    (again,) = serving.children("provisioning.app.worker")
    eventually(lambda: children(again, "provisioning.app.signer") and children(again, "provisioning.app.verifying"))


def test_a_database_that_is_replaced_is_opened_anew_and_one_that_is_gone_ends_it(serve, directory):
    serving = serve()
    serving.ready()
    (worker,) = serving.children("provisioning.app.worker")
    database = directory.root / "muster.db"
    shutil.copy(database, directory.root / "restored")
    (directory.root / "restored").replace(database)
    eventually(lambda: serving.children("provisioning.app.worker") not in ([], [worker]))
    assert "stop first, then restore" in serving.log.read_text()
    database.unlink()
    assert serving.process.wait(PATIENCE_SECONDS) != 0
    assert "is missing; restore it" in serving.log.read_text()


def test_several_workers_share_the_ports(serve, directory):
    directory.config.write_text("workers = 2\n" + directory.config.read_text())
    serving = serve()
    endpoints = serving.ready()
    workers = serving.children("provisioning.app.worker")
    assert len(workers) == 2
    cores = os.sched_getaffinity(0)
    assert len({frozenset(os.sched_getaffinity(worker)) for worker in workers}) == min(2, len(cores))
    assert all(len(os.sched_getaffinity(worker)) == 1 for worker in workers)
    os.kill(workers[0], signal.SIGSTOP)
    os.kill(workers[0], signal.SIGKILL)
    assert all(answers(url) for url in endpoints.values())
    assert serving.stop() == 0


def test_a_second_one_on_the_same_directory_is_refused(serve):
    first = serve()
    first.ready()
    second = serve()
    assert second.process.wait(PATIENCE_SECONDS) == 1
    assert "already" in second.log.read_text()
    assert first.process.poll() is None
    assert first.directory.endpoints.is_file()


@pytest.mark.parametrize("name", ["device", "operator", "public", "mqtt"])
@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_a_held_port_is_named_with_its_cure(serve, directory, name, shared):
    held = bind_shared("127.0.0.1", 0) if shared else socket.create_server(("127.0.0.1", 0))
    held.listen()
    port = held.getsockname()[1]
    directory.config.write_text(directory.config.read_text().replace(f"{name}_port = 0", f"{name}_port = {port}"))
    serving = serve()
    assert serving.process.wait(PATIENCE_SECONDS) == 1
    (line,) = serving.log.read_text().splitlines()
    assert line == (
        f"port {port} on 127.0.0.1 is held by another program; stop that, "
        f"or set listen.{name}_port in {directory.config} (0 takes a free one)"
    )
    held.close()


def test_a_wrong_pin_ends_it_after_one_attempt(serve, directory):
    directory.pin("muster").write_text("wrong")
    serving = serve()
    assert serving.process.wait(PATIENCE_SECONDS) == 1
    assert serving.log.read_text().count("worker.refused") == 1
    assert "wrong" not in serving.log.read_text().replace("WrongPin", "")


def test_a_worker_that_meets_a_wrong_pin_later_ends_everything_after_one_attempt(serve, directory):
    serving = serve()
    serving.ready()
    directory.pin("muster").write_text("1234-canary")
    (child,) = serving.children("provisioning.app.worker")
    os.kill(child, signal.SIGKILL)
    assert serving.process.wait(PATIENCE_SECONDS) == 1
    assert serving.events().count("worker.refused") == 1
    assert "canary" not in serving.log.read_text()


def test_a_signer_that_meets_a_wrong_pin_later_ends_everything_after_one_attempt(serve, directory):
    serving = serve()
    serving.ready()
    (worker,) = serving.children("provisioning.app.worker")
    eventually(lambda: children(worker, "provisioning.app.signer"))
    (signer,) = children(worker, "provisioning.app.signer")
    directory.pin("muster").write_text("1234-canary")
    os.kill(signer, signal.SIGKILL)
    assert serving.process.wait(PATIENCE_SECONDS) == 1
    assert serving.events().count("worker.refused") == 1
    assert serving.log.read_text().count("keys.token_fails") == 1
    assert "canary" not in serving.log.read_text()


@pytest.mark.parametrize("missing", ["ca/issuing.crl", "tls/service.pem", "ca/root.pem", "muster.db"])
def test_a_missing_file_is_named_with_its_cure(serve, directory, missing):
    (directory.root / missing).unlink()
    serving = serve()
    assert serving.process.wait(PATIENCE_SECONDS) == 1
    assert str(directory.root / missing) in serving.log.read_text()
    assert "muster init" in serving.log.read_text()
    assert not directory.endpoints.exists()


def test_no_secret_stands_in_the_arguments_or_the_log(serve, directory):
    serving = serve()
    serving.ready()
    secrets = [path.read_text().strip() for path in directory.secrets.iterdir()]
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in serving.children("")]
    assert serving.stop() == 0
    for secret in secrets:
        assert secret not in serving.log.read_text()
        assert not any(secret in command for command in commands)


def test_what_it_writes_is_its_users_alone(serve, directory):
    serving = serve()
    serving.ready()
    written = [path for path in directory.run.rglob("*") if not path.is_socket()]
    assert written
    assert [path for path in written if path.stat().st_mode & 0o077] == []
    serving.stop()
