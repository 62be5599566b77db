"""`muster demo`: the main job from a factory to an update, and the attacks on it, told on the terminal.

It runs commands as children, and nothing else: whatever it shows can be typed.
"""

import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from lab.demo import identity, operate, outsiders
from lab.demo.scene import EXPORT, SERVICE, A, DemoRefused, Scene, empty_folder
from lab.story import Story, StoryFailed, StoryStopped, console_for, project_environment

STEPS = (
    identity.initialize,
    identity.serve,
    identity.register,
    identity.enroll,
    identity.refuse,
    operate.connect,
    operate.rotate,
    operate.update,
    operate.refuse_updates,
    outsiders.check,
)
INTERRUPTED = 130


def main(root: Path, *, output: str = "table") -> int:
    """Tell the story in this folder. Exit status: 0 all passed or was refused as it should, 1 not, 130 Ctrl-C."""
    try:
        empty_folder(root)
    except (DemoRefused, OSError) as refused:
        print(f"muster demo: {refused}", file=sys.stderr)
        return 1
    environment = project_environment(MUSTER_DATA_DIR=SERVICE)
    with Story(root, environment, console_for(output)) as story:
        scene = Scene(root, story)
        started = time.monotonic()
        failure = _tell(scene)
        seconds = time.monotonic() - started
        _close(scene, seconds, failure)
    if output == "json":
        print((root / EXPORT / "summary.json").read_text(encoding="utf-8"))
    return {"": 0, "interrupted": INTERRUPTED}.get(failure, 1)


def _tell(scene: Scene) -> str:
    """Why the story ended early; empty where it did not."""
    console = scene.story.console
    console.print("[bold]Muster: from a factory to an update, with the attacks in between[/]")
    console.print("Everything below is real and runs here, as children of this command. To repeat a line marked $:")
    own = Path(sys.executable).parent
    console.print(
        f"  cd {shlex.quote(str(scene.root))} && export PATH={shlex.quote(str(own))}:$PATH MUSTER_DATA_DIR={SERVICE}"
    )
    try:
        for step in STEPS:
            step(scene)
    except (StoryFailed, OSError) as failed:
        console.print(f"\n[bold red]The demo failed:[/] {escape(str(failed))}")
        return str(failed)
    except StoryStopped:
        console.print("\nStopped.")
        return "interrupted"
    return ""


def _close(scene: Scene, seconds: float, failure: str) -> None:
    story = scene.story
    scene.export.mkdir(exist_ok=True)
    steps = [{"name": step.name, "ok": step.ok, "seconds": step.seconds} for step in story.steps]
    summary = {
        "ok": not failure,
        "failure": failure or None,
        "seconds": round(seconds, 2),
        "steps": steps,
        "device_id": scene.facts.get(A),
        "versions": {"muster": version("muster"), "python": platform.python_version()},
    }
    (scene.export / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("", "step", "seconds", "what was proven"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for number, step in enumerate(story.steps, 1):
        table.add_row("✔" if step.ok else "✘", f"{number}. {step.name}", f"{step.seconds:.1f}", step.proves)
    story.console.print()
    story.console.print(table)
    if not failure:
        outsiders.farewell(scene)
    story.console.print(f"\n{'Done' if not failure else 'Ended'} in {seconds:.1f} s.")
