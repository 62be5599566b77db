"""`muster serve`: starts the broker and the workers, starts again what dies, and takes all of them with it.

It opens no database and no token, so that nothing it does can end it. Its children die with it, even by SIGKILL
(`children.start_child`).
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import IO

import structlog

from provisioning.app.broker import Broker, replace
from provisioning.app.children import start_child, stop_child
from provisioning.app.endpoints import Ports, endpoints_of, reserve
from provisioning.app.logging import configure_logging
from provisioning.config import Config, ConfigurationRefused, DataDirectory, load_config
from wire.codec import encode

READY_SECONDS = 60.0
STOP_SECONDS = 8.0
TICK_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 30.0
CANNOT_START = 78
"""sysexits.h, EX_CONFIG: how a worker says that starting it again is of no use (a wrong PIN is never tried again)."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Kept:
    """A child that is started again when it dies, after a pause that doubles while it dies young."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    child: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    due: float = 0.0

    def run(self) -> None:
        self.child = self.start()
        self.started = monotonic()

    def tend(self, now: float) -> int | None:
        """Start it where it is due. Returns the exit status, once, where it has just died."""
        if self.child is None:
            if now >= self.due:
                self._run_again(now)
            return None
        status = self.child.poll()
        if status is None:
            return None
        self.pause = FIRST_PAUSE_SECONDS if now - self.started > STEADY_SECONDS else self.pause * 2
        self._put_off(now)
        _log.warning("child.died", child=self.name, status=status, again_in_seconds=round(self.due - now, 1))
        return status

    def _run_again(self, now: float) -> None:
        try:
            self.run()
        except OSError as error:  # a full disk, no more processes: that passes
            self.pause *= 2
            self._put_off(now)
            _log.error("child.not_started", child=self.name, why=str(error))

    def _put_off(self, now: float) -> None:
        self.child, self.due = None, now + min(self.pause, LONGEST_PAUSE_SECONDS)


class Supervisor:
    """Everything that `muster serve` runs. One a data directory; from the main thread."""

    def __init__(self, directory: DataDirectory, config: Config) -> None:
        self._directory = directory
        self._config = config
        self._stopping = False
        self._kept: list[_Kept] = []
        self._broker: Broker | None = None
        self._stale = False
        """Does the broker not know what is in force, because its files could not be written?"""

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT: 0; 1 where a worker cannot start any more. Raises: ConfigurationRefused."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with _only_one(self._directory):
            ports, held = reserve(self._config, self._directory)
            try:
                self._start(ports)
                replace(self._directory.endpoints, encode(endpoints_of(self._config, ports)))
                _log.info("serving", **{name: getattr(ports, name) for name in ports.__slots__})
                return self._tend()
            finally:
                self._directory.endpoints.unlink(missing_ok=True)
                self._end()
                for bound in held:
                    bound.close()

    def _start(self, ports: Ports) -> None:
        self._broker = Broker(self._directory, self._config, ports.mqtt)
        self._kept.append(_Kept("broker", self._broker.start))
        self._kept[0].run()
        self._broker.wait_ready()
        for number in range(self._config.workers):
            reading, writing = os.pipe()
            worker = _Kept(f"worker {number}", lambda number=number: self._start_worker(number, ports))  # type: ignore[misc]  # mypy cannot type a lambda's default
            self._kept.append(worker)
            worker.child = self._start_worker(number, ports, writing)
            worker.started = monotonic()
            os.close(writing)
            self._wait_ready(worker, reading)

    def _start_worker(self, number: int, ports: Ports, ready: int | None = None) -> subprocess.Popen[bytes]:
        argv: list[str | Path] = [sys.executable, "-m", "provisioning.app.worker", self._directory.root]
        argv += ["--number", str(number), "--ports", encode(ports).decode()]
        argv += [] if ready is None else ["--ready-descriptor", str(ready)]
        return start_child(argv, pass_fds=() if ready is None else (ready,))

    def _wait_ready(self, worker: _Kept, reading: int) -> None:
        # One byte means ready; the pipe's end means that the worker is gone, and it has said why on standard error.
        end = monotonic() + READY_SECONDS
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while monotonic() < end and not self._stopping:
                if select.select([pipe], [], [], TICK_SECONDS)[0]:
                    if pipe.read(1):
                        return
                    break
        if not self._stopping:
            msg = f"{worker.name} does not start; what it said stands above"
            raise ConfigurationRefused(msg)

    def _tend(self) -> int:
        while not self._stopping:
            for kept in self._kept:
                if kept.tend(monotonic()) == CANNOT_START:
                    _log.error("worker.cannot_start", child=kept.name)
                    return 1
            self._reload_broker()
            sleep(TICK_SECONDS)
        return 0

    def _reload_broker(self) -> None:
        """What it is to read again is written until it could be: a full disk ends nothing."""
        try:
            if self._broker is not None:
                self._broker.reload_if_changed()
        except OSError as error:
            if not self._stale:
                _log.error("broker.not_reloaded", why=str(error))
            self._stale = True
        else:
            self._stale = False

    def _end(self) -> None:
        # Workers first: they still need the broker to say goodbye. All are asked before any is waited for.
        children = [kept.child for kept in reversed(self._kept) if kept.child is not None]
        for child in children[:-1]:
            if child.poll() is None:
                child.terminate()
        for child in children:
            stop_child(child, STOP_SECONDS)

    def _stop(self, *_: object) -> None:
        self._stopping = True


def supervise(directory: DataDirectory) -> int:
    """`muster serve`; the exit status. Raises: ConfigurationRefused (one line: what, and the cure)."""
    os.umask(0o077)
    configure_logging()
    config = load_config(directory)
    directory.run.mkdir(mode=0o700, exist_ok=True)
    return Supervisor(directory, config).run()


def _only_one(directory: DataDirectory) -> IO[str]:
    lock = (directory.run / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        msg = f"{directory.root}: a muster serve runs on this data directory already; stop it first"
        raise ConfigurationRefused(msg) from error
    return lock
