"""Where metadata comes from, as a function: a network, a folder, a dict. Costs nothing to import."""

from collections.abc import Callable

Fetch = Callable[[str, int], bytes]
"""`(path, most) -> bytes`: e.g. `("metadata/2.root.json", 65536)`. At most `most` bytes are worth reading.

Raises: NotFoundAtSource, SourceUnavailable.
"""


class NotFoundAtSource(Exception):
    """The source answered that it has no such file (404)."""


class SourceUnavailable(Exception):
    """The source could not be reached, or broke off: the same request may succeed later."""
