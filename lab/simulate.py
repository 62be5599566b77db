"""`muster simulate`: virtual devices, registered, enrolled and connected to a running service, until Ctrl-C.

With `--up` (that is `make up`) it makes the installation where there is none, and runs the service too. Devices and
TPM maker live in the data directory, under `simulated/`, and are the same again the next time.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab.story import Background, Story, StoryFailed, StoryStopped, console_for, project_environment
from provisioning.config import UP_MARKER, DataDirectory

FOLDER = "simulated"
MODEL = "simulated-gateway"
STATION = "simulator"
MANUFACTURER = "id:00001014"  # what swtpm's EK certificates say (IBM, who wrote swtpm)
IMAGE = "gateway-1.img"
AT_ONCE = 4
"""Devices that are made, or start, at the same time."""
START_SECONDS = 60.0
INTERRUPTED = 130


@dataclass(slots=True)
class Fleet:
    """The devices of one data directory."""

    story: Story
    directory: DataDirectory
    running: dict[str, Background] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    """Devices that ended by themselves. Each is told once, and the others go on."""

    @property
    def folder(self) -> Path:
        """Where the devices live."""
        return self.directory.root / FOLDER

    def endpoints(self) -> dict[str, str]:
        """Where the service listens; empty while none runs."""
        try:
            found = json.loads(self.directory.endpoints.read_bytes())
        except FileNotFoundError:
            return {}
        return {str(name): str(url) for name, url in found.items()}


def main(directory: DataDirectory, *, devices: int = 3, up: bool = False, output: str = "table") -> int:
    """Run the fleet. Exit status: 0 Ctrl-C when it was up, 130 before that, 1 something failed, 3 no service runs.

    A device that ends, or does not connect, is told on standard error, and the others go on; one that ended is
    something that failed.
    """
    root = directory.root
    with Story(root, project_environment(MUSTER_DATA_DIR=str(root)), console_for(output)) as story:
        fleet = Fleet(story, directory)
        try:
            if up:
                _serve(fleet)
            elif not fleet.endpoints():
                print(
                    f"muster simulate: {root}: no service runs on it; start it: muster serve, or --up", file=sys.stderr
                )
                return 3
            _bring_up(fleet, devices)
        except (StoryFailed, OSError) as failed:
            print(f"muster simulate: {failed}", file=sys.stderr)
            return 1
        except StoryStopped:
            return INTERRUPTED
        return _stay(fleet, output)


def _serve(fleet: Fleet) -> None:
    """A service of our own. Raises: StoryFailed."""
    story, root = fleet.story, fleet.directory.root
    if not fleet.directory.config.is_file():
        root.parent.mkdir(parents=True, exist_ok=True)
        story.directory = root.parent
        story.run("muster init --ports free")  # random ones: the standard ports are for an installation
        story.directory = root
    (root / UP_MARKER).write_text("Made by `muster simulate --up`.\n", encoding="utf-8")
    story.background("serve", "muster serve")
    story.wait("the listeners answer", lambda: bool(fleet.endpoints()), START_SECONDS)


def _bring_up(fleet: Fleet, devices: int) -> None:
    """Make what is missing, register what is new, start all. Raises: StoryFailed."""
    story, folder = fleet.story, fleet.folder
    folder.mkdir(mode=0o700, exist_ok=True)
    story.directory = folder
    names = [f"sim-{number:04}" for number in range(1, devices + 1)]
    if not (folder / "ek-ca" / "setup.conf").is_file():
        story.run("python -m lab ek-ca ek-ca", shown=0)
    if not (folder / IMAGE).is_file():
        story.run(f"python -m lab image {IMAGE} --version 1", shown=0)
        measure = f"muster ota measure {IMAGE} --policy-toml --model {MODEL} --ek-root ek-ca/root.pem"
        story.run(f"{measure} --manufacturer {MANUFACTURER} --software-tpm > {MODEL}.toml", shown=0)
    story.run(f"muster policy set {MODEL}.toml", shown=0)
    missing = [name for name in names if not (folder / name / "device.json").is_file()]
    for batch in _batches(missing):
        _make(fleet, batch)
    _register(fleet, names)
    for batch in _batches(names):
        _start(fleet, batch)


def _make(fleet: Fleet, names: list[str]) -> None:
    urls = fleet.endpoints()
    common = f"--image {IMAGE} --ek-ca ek-ca --service {urls['device']} --public {urls['public']}"
    made = [
        fleet.story.start(f"python -m lab create {name} --name {name} {common} --anchor ../anchor.json")
        for name in names
    ]
    for running in made:
        fleet.story.passed(running, shown=0)


def _register(fleet: Fleet, names: list[str]) -> None:
    """Those that the service does not know yet, in one file."""
    story = fleet.story
    new = [name for name in names if not (fleet.folder / f"{name}.registered").is_file()]
    if not new:
        return
    rows = [f"{name},{MODEL},{name}/ek-rsa2048.pem" for name in new]
    table = "\n".join(["serial,model,ek_certificate", *rows, ""])
    (fleet.folder / "devices.csv").write_text(table, encoding="utf-8")
    story.run(f"muster factory station add {STATION} --budget {len(new)}", shown=0)
    story.run(f"muster factory register devices.csv --station {STATION}", shown=0)
    for name in new:
        (fleet.folder / f"{name}.registered").touch()


def _start(fleet: Fleet, names: list[str]) -> None:
    """Start these, and wait until each is connected, has ended, or had its time."""
    for name in names:
        fleet.running[name] = fleet.story.background(name, f"python -m lab boot {name}", essential=False)
    until = time.monotonic() + START_SECONDS

    def away() -> list[str]:
        _tell_ended(fleet)
        return [name for name in names if name in fleet.running and not _is_connected(fleet.running[name])]

    fleet.story.wait(f"{', '.join(names)} connect", lambda: not away() or time.monotonic() > until, START_SECONDS + 1.0)
    for name in away():
        _tell(f"{name} is not connected after {START_SECONDS:.0f} s, and goes on trying", fleet, fleet.running[name])


def _tell_ended(fleet: Fleet) -> None:
    """Say which devices ended since the last look."""
    for name, background in [*fleet.running.items()]:
        if (status := background.child.poll()) is not None:
            del fleet.running[name]
            fleet.ended.append(name)
            _tell(f"{name} ended with status {status}; the others go on", fleet, background)


def _look(fleet: Fleet) -> None:
    """Raises: StoryFailed (no device is left)."""
    _tell_ended(fleet)
    if not fleet.running:
        raise StoryFailed("no device is left")


def _tell(what: str, fleet: Fleet, background: Background) -> None:
    fleet.story.tail(background)
    print(f"muster simulate: {what}", file=sys.stderr, flush=True)


def _is_connected(background: Background) -> bool:
    return " connected " in background.text()


def _stay(fleet: Fleet, output: str) -> int:
    """Until Ctrl-C, or until no device is left."""
    console, urls = fleet.story.console, fleet.endpoints()
    if output == "json":
        told = {"endpoints": urls, "devices": sorted(fleet.running), "ended": sorted(fleet.ended)}
        print(json.dumps(told), flush=True)
    else:
        for name, url in urls.items():
            console.print(f"  {name:<9} {url}")
        connected = sum(map(_is_connected, fleet.running.values()))
        console.print(f"{connected} devices are connected. Look: muster devices list --data-dir", end=" ")
        console.print(f"{fleet.directory.root}\nCtrl-C ends everything.")
    try:
        fleet.story.idle(lambda: _look(fleet))
    except StoryFailed as failed:
        print(f"muster simulate: {failed}", file=sys.stderr)
        return 1
    except StoryStopped:
        pass
    return 1 if fleet.ended else 0


def _batches(names: list[str]) -> list[list[str]]:
    return [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
