"""A service for a benchmark: made and run by the commands that a user types, in a folder that goes with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from provisioning.app.children import start_child

FOLDER = Path("build")
"""On the disk of the clone: a temporary folder may be in memory, where every write is durable at once."""
READY_SECONDS = 60
STOP_SECONDS = 20
STATION = "bench"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stack:
    """A running service and its data directory."""

    directory: Path
    device: str
    public: str
    root: Path
    log: Path

    def muster(self, *arguments: str | Path) -> str:
        """Run a command; what it printed. Raises: RuntimeError, with its last line."""
        return command(BIN / "muster", *arguments, "--data-dir", self.directory)

    def worker(self) -> int:
        """The process id of the worker that serves devices."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"provisioning.app.worker" in line and os.fsencode(self.directory) in line:
                return int(entry.name)
        raise RuntimeError("no worker is running")


@contextmanager
def running_stack(settings: str = "") -> Iterator[Stack]:
    """`muster init`, `muster serve`, a station with a budget; all gone at the end.

    `settings` are more lines of `muster.toml`.
    """
    FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=FOLDER)).resolve()
    directory, log = folder / "d", folder / "serve.log"
    try:
        command(BIN / "muster", "init", "--ports", "free", "--data-dir", directory)
        with (directory / "muster.toml").open("a") as configuration:
            configuration.write(settings)
        with log.open("wb") as output:
            serve = start_child([BIN / "muster", "serve", "--data-dir", directory], stdout=output, stderr=output)
        try:
            endpoints = _endpoints(directory, serve, log)
            stack = Stack(directory, endpoints["device"], endpoints["public"], directory / "ca" / "root.pem", log)
            stack.muster("factory", "station", "add", STATION, "--budget", "10000")
            yield stack
        finally:
            serve.send_signal(signal.SIGTERM)
            try:
                serve.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                serve.kill()
                serve.wait()
    finally:
        shutil.rmtree(folder)


def command(*arguments: str | Path) -> str:
    """Run a command; what it printed. Raises: RuntimeError, with its last line."""
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"{' '.join(map(str, arguments[:4]))}: {told[-1] if told else done.returncode}")
    return done.stdout


def _endpoints(directory: Path, serve: "subprocess.Popen[bytes]", log: Path) -> dict[str, str]:
    path, deadline = directory / "run" / "endpoints.json", time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and serve.poll() is None:
        if path.is_file():
            return dict(json.loads(path.read_text()))
        time.sleep(0.1)
    told = log.read_text(errors="replace").strip().splitlines()
    raise RuntimeError(f"muster serve is not ready: {told[-1] if told else 'it said nothing'}")


def host_and_port(url: str) -> tuple[str, int]:
    """Of an endpoint."""
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 0)
