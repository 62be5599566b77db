"""Where the demo plays: its folder, its devices, what its steps learn from one another."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from lab.story import Background, Story, StoryFailed
from provisioning.config import DEMO_MARKER

MARKER_TEXT = "Made by `muster demo`, which empties this folder each time that it runs.\n"
SERVICE = "service"
EXPORT = "export"
MODEL = "gateway"
MANUFACTURER = "id:00001014"  # what swtpm's EK certificates say (IBM, who wrote swtpm)
GATEWAYS = ("gw-001", "gw-002", "gw-003", "gw-004")
A, B, REGISTERED_TWIN, STRANGER = GATEWAYS
"""A is good; B boots a changed byte; the third is shown a false service; the fourth is registered nowhere."""


class DemoRefused(Exception):
    """The demo cannot start here; one line."""


@dataclass(slots=True)
class Scene:
    """The folder, the teller, and what steps hand on to later ones."""

    root: Path
    story: Story
    device: Background | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def service(self) -> Path:
        """The service's data directory."""
        return self.root / SERVICE

    @property
    def export(self) -> Path:
        """What outsiders check."""
        return self.root / EXPORT

    def endpoints(self) -> dict[str, str]:
        """Where the service listens; empty while it does not."""
        try:
            found = json.loads((self.service / "run" / "endpoints.json").read_bytes())
        except FileNotFoundError:
            return {}
        return {str(name): str(url) for name, url in found.items()}

    def device_log(self) -> str:
        """What device A said so far."""
        return "" if self.device is None else self.device.text()

    def wait_for_device(self, what: str, *words: str, after: int = 0, seconds: float = 20.0) -> str:
        """Wait until a line of device A's log, behind the character `after`, has all these words; the line."""
        found: list[str] = []

        def said() -> bool:
            lines = self.device_log()[after:].splitlines()
            found.extend(line for line in lines if all(word in line for word in words))
            return bool(found)

        self.story.wait(what, said, seconds)
        return found[0]

    def ask(self, command: str) -> dict[str, object]:
        """The JSON answer of a command that only the demo itself needs; it is echoed like all others."""
        answer = json.loads(self.story.run(command, shown=0).out)
        if not isinstance(answer, dict):
            raise StoryFailed(f"`{command}`: expected a JSON object")
        return answer


def empty_folder(root: Path) -> None:
    """An empty folder with the marker. Only what an earlier demo made is deleted. Raises: DemoRefused, OSError."""
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise DemoRefused(f"{root}: is no folder; take another --data-dir")
    if root.exists() and any(root.iterdir()):
        if not _is_ours(root):
            raise DemoRefused(f"{root}: holds something that no demo made; take another --data-dir")
        shutil.rmtree(root)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / DEMO_MARKER).write_text(MARKER_TEXT, encoding="utf-8")


def _is_ours(root: Path) -> bool:
    marker = root / DEMO_MARKER
    return marker.is_file() and not marker.is_symlink() and marker.read_text(encoding="utf-8") == MARKER_TEXT
