"""The commands as a person types them, and a service as a child to type them at."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from provisioning import cli
from provisioning.config import DataDirectory

MUSTER = Path(sys.executable).with_name("muster")
START_SECONDS = 60


class Person:
    """Somebody who types commands for one data directory."""

    def __init__(self, directory: Path, capsys) -> None:
        self.directory, self._capsys = directory, capsys

    def types(self, *arguments, status=0):
        """The command's output; it must end with this status, and say nothing raw."""
        ended = cli.main([*map(str, arguments), "--data-dir", str(self.directory)])
        captured = self._capsys.readouterr()
        self.err = captured.err
        assert ended == status, captured.err
        assert "Traceback" not in captured.err
        return captured.out

    def asks(self, *arguments):
        """The command's JSON."""
        return json.loads(self.types(*arguments, "-o", "json"))


def initialized(root: Path) -> DataDirectory:
    """`muster init`, as a child."""
    made = subprocess.run(
        [MUSTER, "init", "--data-dir", root, "--ports", "free", "--service-name", "muster.test", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(made.stdout)["service_name"] == "muster.test"
    assert len(set(json.loads(made.stdout)["ports"].values())) == 4
    return DataDirectory(root)


@contextmanager
def serving(directory: DataDirectory, log: Path) -> Iterator[DataDirectory]:
    """`muster serve`, as a child."""
    with log.open("w") as stream:
        child = subprocess.Popen([MUSTER, "serve", "--data-dir", directory.root], stdout=stream, stderr=stream)
        try:
            _wait(directory, child, log)
            yield directory
        finally:
            child.terminate()
            assert child.wait(START_SECONDS) == 0


def _wait(directory, child, log):
    event = threading.Event()
    for _ in range(START_SECONDS * 10):
        if directory.endpoints.is_file():
            return
        assert child.poll() is None, log.read_text()
        event.wait(0.1)
    pytest.fail(f"not ready: {log.read_text()}")
