"""A story on the terminal: steps that run real commands as children, echoed so that a reader can repeat them.

What should pass must pass, and what should be refused must be refused with the expected code; anything else ends the
story. Children end with this process, even by SIGKILL; those in the background are stopped in order when it closes.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

from rich.console import Console
from rich.markup import escape

from provisioning.app.children import kill_child, start_child, stop_child

COMMAND_SECONDS = 60.0
STOP_SECONDS = 12.0
POLL_SECONDS = 0.02
IDLE_SECONDS = 0.5
SHOWN_LINES = 12
TAIL_LINES = 15
PLAIN_COLUMNS = 500
"""Where nobody looks at a terminal: whole lines."""


class StoryFailed(Exception):
    """Something that should have passed did not, or something was not refused as it should have been."""


class StoryStopped(Exception):
    """SIGINT or SIGTERM came."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    command: str
    status: int
    out: str
    err: str


@dataclass(slots=True)
class Step:
    """One step's record, for the closing table and `summary.json`."""

    name: str
    proves: str
    ok: bool = False
    seconds: float = 0.0


@dataclass(slots=True)
class Running:
    """A command that was started and not waited for yet."""

    command: str
    child: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]

    def done(self) -> Done:
        """What it said; it has ended."""
        texts = []
        for stream in (self.out, self.err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
            stream.close()
        return Done(self.command, self.child.returncode, *texts)


@dataclass(slots=True)
class Background:
    """A program that runs until the story closes; what it says goes into a file. Without an essential one it ends."""

    name: str
    child: subprocess.Popen[bytes]
    log: Path
    essential: bool = True

    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def console_for(output: str) -> Console:
    """Where the story is told: on standard output, or, where that gets JSON, on standard error."""
    stream = sys.stderr if output == "json" else sys.stdout
    width = None if stream.isatty() else PLAIN_COLUMNS
    return Console(file=stream, highlight=False, soft_wrap=True, width=width, emoji=False)


@dataclass(slots=True)
class Story:
    """The teller. Commands run in `directory` with `environment`; from the main thread only."""

    directory: Path
    environment: Mapping[str, str]
    console: Console
    steps: list[Step] = field(default_factory=list)
    _stopping: bool = False
    _open: list[Running] = field(default_factory=list)
    _background: list[Background] = field(default_factory=list)

    def __enter__(self) -> Self:
        # Noted, and raised where the story waits: raised by the handler it would be lost in a finalizer.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self._open:
            kill_child(running.child)
        # All are asked before any is waited for, but the first: it may be the service, which the others say goodbye to.
        for background in self._background[1:]:
            if background.child.poll() is None:
                background.child.terminate()
        for background in reversed(self._background):
            stop_child(background.child, STOP_SECONDS)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _pause(self, seconds: float) -> None:
        """Let time pass. Raises: StoryStopped."""
        if self._stopping:
            raise StoryStopped
        time.sleep(seconds)

    # --- telling ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, name: str, without: str, proves: str) -> Iterator[None]:
        """A step: its title, what an attacker would gain without it, its commands, ✔ and seconds."""
        record = Step(name, proves)
        self.steps.append(record)
        self.console.print(f"\n[bold]{len(self.steps)}. {escape(name)}[/]")
        self.say(without)
        started = time.monotonic()
        try:
            yield
            record.ok = True
        finally:
            record.seconds = round(time.monotonic() - started, 2)
            mark = "[bold green]✔[/]" if record.ok else "[bold red]✘[/]"
            self.console.print(f"   {mark} {record.seconds:.1f} s")

    def say(self, text: str) -> None:
        """A sentence for the reader."""
        self.console.print(f"   [italic]{escape(text)}[/]")

    def echo(self, command: str) -> None:
        """A command, as it can be typed."""
        self.console.print(f"   [cyan]$ {escape(command)}[/]")

    def show(self, text: str, most: int = SHOWN_LINES) -> None:
        """What a command said: its first lines."""
        lines = [line for line in text.splitlines() if line.strip()]
        for line in lines[:most]:
            self.console.print(f"     [dim]{escape(line)}[/]")
        if len(lines) > most > 0:
            self.console.print(f"     [dim]… {len(lines) - most} more lines[/]")

    @contextlib.contextmanager
    def _live(self, what: str) -> Iterator[None]:
        """Something moves on a terminal while something waits; a pipe gets nothing."""
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(f"[dim]{escape(what)} …[/]", spinner="dots"):
            yield

    # --- running ------------------------------------------------------------------------------------------------------

    def start(self, command: str) -> Running:
        """Start a command and go on; `finish` waits for it."""
        self._pause(0)
        self.echo(command)
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed by `done`
        child = start_child(_argv(command), env=self.environment, cwd=self.directory, stdout=out, stderr=err)
        running = Running(command, child, out, err)
        self._open.append(running)
        return running

    def finish(self, running: Running) -> Done:
        """Wait for a command to end. Raises: StoryFailed (it does not)."""
        end = time.monotonic() + COMMAND_SECONDS
        with self._live(running.command):
            while running.child.poll() is None and time.monotonic() < end:
                self._pause(POLL_SECONDS)
        if running.child.poll() is None:
            kill_child(running.child)
        self._open.remove(running)
        done = running.done()
        if done.status < 0:
            self._failed(done, "to end by itself")
        return done

    def run(self, command: str, *, shown: int = SHOWN_LINES) -> Done:
        """A command that must pass. Raises: StoryFailed."""
        return self.passed(self.start(command), shown=shown)

    def passed(self, running: Running, *, shown: int = SHOWN_LINES) -> Done:
        """The end of a command that must pass. Raises: StoryFailed."""
        done = self.finish(running)
        if done.status != 0:
            self._failed(done, "exit status 0")
        self.show(done.out, shown)
        return done

    def refused(self, running: Running, reason: str, *, status: int = 1, shown: int = SHOWN_LINES) -> Done:
        """The end of a command that must be refused, with this exit status and for this reason. Raises: StoryFailed."""
        done = self.finish(running)
        if done.status != status or reason not in done.out + done.err:
            self._failed(done, f"exit status {status} and {reason!r}")
        self.show(done.err + done.out, shown)
        self.as_it_must(reason)
        return done

    def as_it_must(self, reason: str) -> None:
        """Tell that a refusal was the expected one."""
        self.console.print(f"     [green]refused, as it must be: {escape(reason)}[/]")

    def background(self, name: str, command: str, *, essential: bool = True) -> Background:
        """Start a program that runs to the end of the story. `NAME.log` gets all that it says."""
        self.echo(f"{command} > {name}.log 2>&1 &")
        log = self.directory / f"{name}.log"
        with log.open("wb") as stream:
            child = start_child(_argv(command), env=self.environment, cwd=self.directory, stdout=stream, stderr=stream)
        background = Background(name, child, log, essential)
        self._background.append(background)
        return background

    def stop(self, background: Background) -> None:
        """Stop a program in order."""
        self._background.remove(background)
        stop_child(background.child, STOP_SECONDS)

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until something is so. Raises: StoryFailed (it is not, or a background program ended)."""
        end = time.monotonic() + seconds
        with self._live(f"waiting: {what}"):
            while not condition():
                for background in self._background:
                    if background.essential and background.child.poll() is not None:
                        self.tail(background)
                        raise StoryFailed(f"{background.name} ended while waiting: {what}")
                if time.monotonic() > end:
                    for background in self._background:
                        self.tail(background)
                    raise StoryFailed(f"not within {seconds:.0f} s: {what}")
                self._pause(POLL_SECONDS)

    def idle(self, look: Callable[[], None]) -> None:
        """Stay until interrupted, and look now and then. Raises: StoryFailed (an essential program ended)."""
        while True:
            for background in self._background:
                if background.essential and background.child.poll() is not None:
                    self.tail(background)
                    raise StoryFailed(f"{background.name} ended")
            look()
            self._pause(IDLE_SECONDS)

    def tail(self, background: Background) -> None:
        """The last lines of what a program said."""
        self.console.print(f"   [red]the end of {escape(background.log.name)}:[/]")
        self.show("\n".join(background.text().splitlines()[-TAIL_LINES:]), TAIL_LINES)

    def _failed(self, done: Done, expected: str) -> None:
        self.show(done.out + done.err, 40)
        raise StoryFailed(f"`{done.command}`: expected {expected}, actual exit status {done.status}")


def project_environment(**more: str) -> dict[str, str]:
    """This process's environment, with the project's own programs first."""
    own = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{own}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        "TSS2_LOG": "all+none",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def _argv(command: str) -> list[str]:
    """The words of a command; through the shell only where it needs one."""
    if any(sign in command for sign in "|>&$*"):
        return ["sh", "-c", command]
    return shlex.split(command)
