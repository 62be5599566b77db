"""Which threads are inside a PKCS#11 module, and since when. A call into a module cannot be broken off.

A service answers without it (its signing threads have deadlines of their own). A command line has one thing to do: it
gives up, which only ending the process does.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_since: dict[int, float] = {}


def enter() -> None:
    """This thread goes into a module. No nesting: the newest call counts."""
    _since[threading.get_ident()] = time.monotonic()


def leave() -> None:
    """It came back."""
    _since.pop(threading.get_ident(), None)


@contextmanager
def inside() -> Iterator[None]:
    """The same for a block."""
    enter()
    try:
        yield
    finally:
        leave()


@contextmanager
def outside() -> Iterator[None]:
    """Within such a block: this thread waits for a person, not for the module."""
    leave()
    try:
        yield
    finally:
        enter()


def longest_seconds() -> float:
    """How long the oldest call has been in a module; 0 where none is."""
    begun = list(_since.values())  # one step of the interpreter: no other thread comes between
    return time.monotonic() - min(begun) if begun else 0.0
