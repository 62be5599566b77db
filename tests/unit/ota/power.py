"""Power cuts: the n-th durable step of a piece of code does not happen, and nothing after it does."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest


class PowerCut(BaseException):
    """Not an Exception: no handler of the code under test may go on."""


@contextlib.contextmanager
def cut_at(step: int) -> Iterator[None]:
    """Lose power just before the durable step of this number (from 0): write, flush, rename, remove, truncate."""
    left = step
    dead = False

    def guard(real):
        def guarded(*args, **kwargs):
            nonlocal left, dead
            if dead or left == 0:
                dead = True
                raise PowerCut
            left -= 1
            return real(*args, **kwargs)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (os, "fsync"),
            (os, "rename"),
            (os, "replace"),
            (os, "open"),
            (os, "unlink"),
            (os, "mkdir"),
            (shutil, "rmtree"),
            (pathlib.Path, "rename"),
            (pathlib.Path, "replace"),
            (pathlib.Path, "unlink"),
            (pathlib.Path, "mkdir"),
        ):
            patch.setattr(owner, name, guard(getattr(owner, name)))
        yield
