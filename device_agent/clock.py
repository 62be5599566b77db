"""Time from the service for a device that has none: `GET /v1/time`, signed by a command key of the trust bundle."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from device_agent.http import ServiceClient
from device_agent.signing import verifier
from wire.codec import MalformedMessage, decode
from wire.envelope import EnvelopeNotAuthentic, open_envelope
from wire.messages import TIME_PAYLOAD_TYPE, SignedTime

_ANSWER_MOST = 8 * 1024
_NONCE_BYTES = 16


class TimeRefused(Exception):
    """The answer is not the service's time for this question."""


class SteadyClock:
    """The system clock, or the last signed time plus the seconds since, whichever is later.

    A device without a clock of its own would otherwise stand still at the last signed time.
    """

    def __init__(self, system_clock: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._system_clock = system_clock
        self._monotonic = monotonic
        self._signed: tuple[datetime, float] | None = None

    def __call__(self) -> datetime:
        """The time now, in UTC."""
        system = self._system_clock()
        if self._signed is None:
            return system
        moment, at = self._signed
        return max(system, moment + timedelta(seconds=self._monotonic() - at))

    def learn(self, moment: datetime) -> None:
        """A time that the service signed just now."""
        self._signed = (max(moment, self()), self._monotonic())


def fetch_signed_time(
    public: ServiceClient, command_keys: Sequence[bytes], entropy: Callable[[int], bytes]
) -> datetime:
    """The service's time, fresh: it answers a nonce of this very request. Raises: TimeRefused, HttpFailure."""
    nonce = entropy(_NONCE_BYTES).hex()
    answer = public.get(f"/v1/time?nonce={nonce}", _ANSWER_MOST)
    try:
        payload = open_envelope(answer, TIME_PAYLOAD_TYPE, verifier(command_keys))
        signed = decode(SignedTime, payload, limit=_ANSWER_MOST, ignore_unknown=True)
    except (MalformedMessage, EnvelopeNotAuthentic) as error:
        raise TimeRefused("the time is not signed by a command key of the trust bundle") from error
    if signed.nonce != nonce:
        raise TimeRefused("the signed time answers another question")
    return signed.now
