"""How often one address may ask: the generic cell rate algorithm (ITU-T I.371), one number for each address."""

import ipaddress
import math
from dataclasses import dataclass, field

GLOBAL = ""
"""The key of the limit over all addresses: no address is an empty text."""


_ROUNDING_SECONDS = 1e-9


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` on average, `burst` at once."""

    per_second: float
    burst: int


def conforms(arrival: float, now: float, rate: Rate) -> tuple[float, float]:
    """One cell against a theoretical arrival time: `(next arrival time, seconds to wait)`.

    A wait above 0 means refused; the arrival time is then the old one, so that asking too often costs nothing more.
    """
    interval = 1 / rate.per_second
    start = max(arrival, now)
    wait = start + interval - now - rate.burst * interval
    return (arrival, wait) if wait > _ROUNDING_SECONDS else (start + interval, 0.0)


def source_key(address: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 that one IPv6 subscriber holds."""
    if ":" not in address:
        return address
    bare = ipaddress.IPv6Address(address.partition("%")[0])
    if bare.ipv4_mapped is not None:
        return str(bare.ipv4_mapped)
    return str(ipaddress.IPv6Network((bare, 64), strict=False))


@dataclass(slots=True)
class RateTable:
    """The arrival times, bounded in number. `now` is monotonic, in seconds.

    Full, it forgets first those that owe nothing, then the longest untouched: an attacker with that many addresses
    gains a burst, and meets the global limit.
    """

    rate: Rate
    most: int = 65_536
    _arrivals: dict[str, float] = field(default_factory=dict)

    def wait_seconds(self, key: str, now: float) -> float:
        """0 where the request may pass; else how long its source should wait."""
        arrival, wait = conforms(self._arrivals.pop(key, 0.0), now, self.rate)
        if len(self._arrivals) >= self.most:
            self._forget(now)
        self._arrivals[key] = arrival  # at the end: a dict keeps the order of insertion
        return wait

    def __len__(self) -> int:
        return len(self._arrivals)

    def _forget(self, now: float) -> None:
        self._arrivals = {key: arrival for key, arrival in self._arrivals.items() if arrival > now}
        surplus = len(self._arrivals) - (self.most - max(1, self.most // 8))
        for key in list(self._arrivals)[: max(0, surplus)]:
            del self._arrivals[key]


def retry_after(wait: float) -> int:
    """Whole seconds for `Retry-After`, at least one."""
    return max(1, math.ceil(wait))
