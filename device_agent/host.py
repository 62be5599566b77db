"""What the shell gives to everything else: time, randomness, and waiting."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Host:
    """`system_clock` may be wrong, `monotonic` only counts seconds. `jitter(a, b)` draws evenly between the two.

    `pause(seconds)` waits, and gives True where the agent is to end. `trim` gives memory that start-up left unused back
    to the system.
    """

    system_clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    entropy: Callable[[int], bytes]
    jitter: Callable[[float, float], float]
    pause: Callable[[float], bool]
    trim: Callable[[], None]


class Backoff:
    """Waits that double from `first` to `most` seconds, each drawn at random below its bound.

    So a fleet that lost its service does not return at once.
    """

    def __init__(self, jitter: Callable[[float, float], float], first: float = 1.0, most: float = 300.0) -> None:
        self._jitter = jitter
        self._first = first
        self._most = most
        self._bound = first

    def next(self, at_least: float = 0.0) -> float:
        """How many seconds to wait now; `at_least` is what the service asked for."""
        bound, self._bound = self._bound, min(self._bound * 2, self._most)
        return at_least + self._jitter(bound / 2, bound)

    def reset(self) -> None:
        """Something worked: the next wait is the shortest again."""
        self._bound = self._first
