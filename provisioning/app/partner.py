"""Another process that does one kind of work for this one, over a pair of sockets of their own.

One interpreter does one thing at a time; what costs the most and needs the least is done by a partner, on another core:
signatures (`signing`) and verifications (`verifying`). Neither can do what the other does: the partner that reads
what strangers sent holds no token, and the one that holds the tokens reads nothing from outside.

A frame is a header (octets of the content, number, kind) and the content. A request's kind says what is asked for, an
answer's how it ended. The event loop sends once a turn whatever was asked in it, and is woken once for many answers.
A partner that ends, or owes an answer for too long, is replaced; what it was asked fails, and may have been done. But
for one that said that a successor is of no use (a wrong PIN is never tried again).

Not a sandbox: a partner has this process's user and files.
"""

import argparse
import asyncio
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from provisioning.app.children import give_up_child, start_child
from provisioning.app.logging import configure_logging

HEADER = struct.Struct("<IIB")
CONTENT_MOST = 1 << 26
READ_OCTETS = 1 << 18
WAITING_MOST = 10_000
START_SECONDS = 30.0
CLOSING_SECONDS = 2.0
PAUSE_SECONDS, PAUSE_MOST_SECONDS = 0.2, 10.0
"""Before a partner is started again; twice as long after each start that failed."""
YOUNG_MOST = 20_000
"""Objects that are made before the youngest are looked at for cycles."""
ANSWERED, REFUSED, FAILED = 0, 1, 2
"""How a request ended. FAILED: the partner met a defect, which it has logged, and goes on."""
OPENING = 0
"""The number and the kind of the first request, which says what the partner needs to know, and of its answer."""

_log = structlog.get_logger()


class PartnerLost(Exception):
    """It is not there, or did not answer in time. What it was asked may have been done."""


class PartnerFailed(PartnerLost):
    """It met a defect at this request, and goes on."""


class PartnerRefused(Exception):
    """It answered that it cannot. The message is what it said."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a partner runs, and how it is told apart. `module` takes `arguments` and `--descriptor N`."""

    name: str
    module: str
    arguments: Sequence[str]
    opening: bytes = b""
    deadline_seconds: float = 15.0
    """A partner that owes an answer for so long hangs."""
    is_final: Callable[[str], bool] = lambda _: False
    """Is a successor of no use, where a partner answered this to the opening?"""


def frame(number: int, kind: int, content: bytes) -> bytes:
    """One request or answer as it goes over the socket."""
    return HEADER.pack(len(content), number, kind) + content


def frames(got: bytearray) -> Iterator[tuple[int, int, bytes]]:
    """Take the whole frames out of what came: number, kind, content. Raises: ValueError, where one is too long."""
    at = 0
    try:
        while len(got) - at >= HEADER.size:
            length, number, kind = HEADER.unpack_from(got, at)
            if length > CONTENT_MOST:
                msg = f"a frame of {length} octets"
                raise ValueError(msg)
            end = at + HEADER.size + length
            if len(got) < end:
                return
            content = bytes(got[at + HEADER.size : end])
            at = end
            yield number, kind, content
    finally:
        del got[:at]


class Partner:
    """One partner, and its successors. But for `start` and `ask_now` it belongs to one event loop."""

    def __init__(self, work: Work, opened: Callable[[bytes], None]) -> None:
        """`opened` is given what each partner answers to the opening, before it is asked for anything."""
        self._work = work
        self._opened = opened
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = OPENING
        self._waiting: dict[int, tuple[asyncio.Future[tuple[int, bytes]], float]] = {}
        self._gathered: list[bytes] = []
        self._unsent = bytearray()
        self._got = bytearray()
        self._serves = False
        self._pause = PAUSE_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._next: asyncio.TimerHandle | None = None
        """What happens where it does not serve: it is started, or its opening took too long."""
        self.given_up: str | None = None
        """Why it has no successor, where it has none."""

    def start(self) -> None:
        """Start it; `ready` waits for it. Call it on the main thread. Raises: OSError, NotTheMainThread."""
        ours, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        argv = [sys.executable, "-m", self._work.module, *self._work.arguments, "--descriptor", str(descriptor)]
        if (worker := structlog.contextvars.get_contextvars().get("worker")) is not None:
            argv += ["--worker", str(worker)]
        with theirs:
            try:
                self._process = start_child(argv, pass_fds=[descriptor])
            except BaseException:
                ours.close()
                raise
        self._socket, self._got, self._unsent, self._serves = ours, bytearray(), bytearray(), False
        ours.sendall(frame(OPENING, OPENING, self._work.opening))

    def ready(self) -> None:
        """Wait until it serves, without a loop. Raises: PartnerRefused, PartnerLost."""
        self._open(*self._answer_now(OPENING, START_SECONDS))

    async def ask(self, kind: int, content: bytes) -> bytes:
        """What it answers. A caller that is cancelled leaves it undone. Raises: PartnerRefused, PartnerLost."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._belong_to(loop)
        if not self._serves:
            raise PartnerLost(f"the {self._work.name} does not answer")
        if len(self._waiting) >= WAITING_MOST:
            raise PartnerLost(f"too many wait for the {self._work.name}")
        if len(content) > CONTENT_MOST:  # it would end it
            raise PartnerLost(f"{len(content)} octets are too many for the {self._work.name}")
        self._number = self._number % 0xFFFFFFFF + 1
        future: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        due = loop.time() + self._work.deadline_seconds
        self._waiting[self._number] = future, due
        if not self._gathered and not self._unsent:  # else it goes when the socket takes more
            loop.call_soon(self._send)
        self._gathered += (HEADER.pack(len(content), self._number, kind), content)
        if self._timer is None:  # one for all
            self._timer = loop.call_at(due, self._expire, loop)
        return self._judged(*await future)

    def ask_now(self, kind: int, content: bytes) -> bytes:
        """The same when no loop runs any more. Raises: PartnerRefused, PartnerLost."""
        if self._socket is None or not self._serves:
            raise PartnerLost(f"the {self._work.name} does not answer")
        self._number = self._number % 0xFFFFFFFF + 1
        try:
            self._socket.settimeout(self._work.deadline_seconds)
            self._socket.sendall(self._unsent + frame(self._number, kind, content))
        except OSError as error:
            raise PartnerLost(f"the {self._work.name} ended") from error
        self._unsent.clear()
        return self._judged(*self._answer_now(self._number, self._work.deadline_seconds))

    def close(self) -> None:
        """End it. It ends by itself, too, when this process does."""
        self._serves = False
        for timer in (self._timer, self._next):
            if timer is not None:
                timer.cancel()
        if self._socket is not None:
            self._forget_socket()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):  # it ends when its socket does
                self._process.wait(CLOSING_SECONDS)
            give_up_child(self._process)

    # --- without a loop -----------------------------------------------------------------------------------------------

    def _answer_now(self, wanted: int, seconds: float) -> tuple[int, bytes]:
        assert self._socket is not None  # noqa: S101  it was started
        deadline = time.monotonic() + seconds
        while True:
            for number, kind, content in frames(self._got):
                if number == wanted:
                    return kind, content
            try:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                data = self._socket.recv(READ_OCTETS)
            except OSError as error:  # TimeoutError is one
                raise PartnerLost(f"the {self._work.name} does not answer") from error
            if not data:
                raise PartnerLost(f"the {self._work.name} ended")
            self._got += data

    def _open(self, status: int, content: bytes) -> None:
        if status != ANSWERED:
            raise PartnerRefused(content.decode())
        self._opened(content)
        self._serves, self._pause = True, PAUSE_SECONDS
        if self._next is not None:
            self._next.cancel()

    def _judged(self, status: int, answer: bytes) -> bytes:
        if status == ANSWERED:
            return answer
        if status == FAILED:
            raise PartnerFailed(f"the {self._work.name} met a defect: {answer.decode()}")
        raise PartnerRefused(answer.decode())

    # --- on the loop --------------------------------------------------------------------------------------------------

    def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._timer, self._gathered = loop, None, []
        self._waiting.clear()
        if self._socket is not None:
            self._socket.settimeout(0)
            loop.add_reader(self._socket, self._read)

    def _send(self) -> None:
        if self._socket is None or self._loop is None:
            self._gathered = []
            return
        waits = bool(self._unsent)
        gathered, self._gathered = b"".join(self._gathered), []
        if waits:
            self._unsent += gathered
        data = self._unsent if waits else gathered
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost("it ended")
            return
        if waits:
            del self._unsent[:sent]  # no copy of the rest, which may be a CRL of many megabytes
        elif sent < len(gathered):
            self._unsent += memoryview(gathered)[sent:]
        if self._unsent and not waits:
            self._loop.add_writer(self._socket, self._send)
        elif waits and not self._unsent:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        assert self._socket is not None  # noqa: S101  it is what was readable
        try:
            data = self._socket.recv(READ_OCTETS)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost("it ended")
            return
        self._got += data
        try:
            for number, kind, content in frames(self._got):
                if number == OPENING:
                    self._open(kind, content)
                elif (waited := self._waiting.pop(number, None)) is not None and not waited[0].done():
                    waited[0].set_result((kind, content))
        except (PartnerRefused, ValueError) as error:
            refused = isinstance(error, PartnerRefused) and self._work.is_final(str(error))
            self._lost(str(error), is_final=refused)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look whether the oldest request waits too long, and come again for the next."""
        self._timer = None
        if self._waiting:
            _, due = next(iter(self._waiting.values()))
            if due <= loop.time():
                self._lost(f"no answer in {self._work.deadline_seconds:g} s")
            else:
                self._timer = loop.call_at(due, self._expire, loop)

    def _lost(self, why: str, *, is_final: bool = False) -> None:
        """It is of no use any more: tell everybody, and start another one in a while."""
        assert self._loop is not None  # noqa: S101  only the loop notices
        pause = None if is_final else self._pause
        _log.warning("partner.lost", partner=self._work.name, why=why, again_in_seconds=pause)
        self._serves, self._gathered, self._unsent = False, [], bytearray()
        self._forget_socket()
        if self._process is not None:
            give_up_child(self._process)
        waiting = [future for future, _ in self._waiting.values()]
        self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(PartnerLost(f"the {self._work.name}: {why}"))
        if self._next is not None:
            self._next.cancel()
        if pause is None:
            self.given_up = why
        else:
            self._next = self._loop.call_later(pause, self._start_again)
            self._pause = min(2 * pause, PAUSE_MOST_SECONDS)

    def _start_again(self) -> None:
        assert self._loop is not None  # noqa: S101  it called this
        try:
            self.start()
        except OSError as error:
            self._lost(str(error))
            return
        assert self._socket is not None  # noqa: S101  it was just made
        self._socket.settimeout(0)
        self._loop.add_reader(self._socket, self._read)
        late = f"it does not serve after {START_SECONDS:g} s"
        self._next = self._loop.call_later(START_SECONDS, self._lost, late)

    def _forget_socket(self) -> None:
        if self._socket is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            with suppress(OSError, ValueError):
                self._loop.remove_reader(self._socket)
                self._loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None


# --- in the partner ---------------------------------------------------------------------------------------------------


def begin(name: str, parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """What every partner does first. What was started gives `--core`, `--worker` and `--descriptor`."""
    parser.add_argument("--core", type=int)
    parser.add_argument("--worker", type=int)
    parser.add_argument("--descriptor", type=int, required=True)
    given = parser.parse_args(argv)
    # systemd asks all processes of a unit at once to end. A partner works until its worker needs it no more.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    configure_logging()
    whose = {} if given.worker is None else {"worker": given.worker}
    structlog.contextvars.bind_contextvars(partner=name, **whose)
    if given.core is not None:
        with suppress(OSError):  # it was taken from this container since the worker began: any other does
            os.sched_setaffinity(0, {given.core})
    return given


def settle_memory() -> None:
    """What is there now lives as long as the process: no collection looks at it again (a third of a long CRL).

    What comes is looked for cycles in larger pieces: a request makes hundreds of objects and hardly ever a cycle, and
    looking at those in flight again and again took a tenth of the processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MOST, 20, 20)
