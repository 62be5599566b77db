"""The way back for a device that the service put into quarantine, or took for silent: a new attestation.

While that does not pass, a certificate of quarantine keeps the line open on which help may come: the service's attest
commands, an update.
"""

from contextlib import closing

from device_agent import log
from device_agent.device import Device, trust_at_hand
from device_agent.enroll import AttemptFailure, enroll_once, enroll_until_done
from device_agent.http import ServiceRefused
from device_agent.identity import Pair
from device_agent.trust import Trust
from wire.problems import Problem

STANDING_MOST = 1024


def must_attest(device: Device, trust: Trust, pair: Pair) -> bool:
    """A broker says not why it turns somebody away: the service is asked by HTTPS. Is a new attestation the answer?"""
    try:
        with closing(device.client(trust, pair)) as client:
            client.get("/v1/standing", STANDING_MOST)
    except ServiceRefused as refusal:
        log.warning("turned-away", reason=refusal, code=refusal.code)
        return pair.is_quarantine or refusal.problem is Problem.ATTESTATION_REQUIRED
    except AttemptFailure as failure:
        log.warning("standing-not-known", reason=failure)
    return False


def come_back(device: Device, current: Pair, *, attempts: int | None) -> Pair:
    """A pair for normal service; else a quarantine's, the current one where it is one that is still let in.

    Where there is neither, both are tried again, as after any refusal. Raises: any of `AttemptFailure`; Stopped.
    """
    return enroll_until_done(device, attempts=attempts, once=lambda one: _normal_or_remedial(one, current))


def _normal_or_remedial(device: Device, current: Pair) -> Pair:
    try:
        return enroll_once(device)
    except ServiceRefused as refusal:
        if refusal.problem is not Problem.ATTESTATION_REFUSED:
            raise
        log.warning("not-back", reason=refusal)
        if _is_line(device, current):
            return current
        try:
            return enroll_once(device, quarantine=True)
        except AttemptFailure as failure:
            log.warning("no-quarantine-certificate", reason=failure)
        raise


def _is_line(device: Device, pair: Pair) -> bool:
    """Can help come by this pair? A quarantine's ends early, too: with a pass, and another refusal may follow that."""
    if not pair.is_quarantine or device.now() >= pair.certificate.not_valid_after_utc:
        return False
    return not must_attest(device, trust_at_hand(device), pair)
