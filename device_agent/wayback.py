"""The way back for a device that the service put into quarantine, or took for silent: a new attestation.

While that does not pass, a certificate of quarantine keeps the line open on which help may come: the service's attest
commands, an update.
"""

from contextlib import closing

from device_agent import log
from device_agent.device import Device
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
    """A pair for normal service; else a quarantine's, the current one where it is one that is still good.

    Where there is neither, attempts go on as after any refusal. Raises: any of `AttemptFailure`; Stopped.
    """
    try:
        pair = enroll_once(device)
    except AttemptFailure as failure:
        log.warning("not-back", reason=failure)
        if isinstance(failure, ServiceRefused) and failure.problem is Problem.ATTESTATION_REFUSED:
            remedial = _remedial(device, current)
            if remedial is not None:
                return remedial
        return enroll_until_done(device, attempts=attempts)
    log.event("enrolled", device=pair.details.device_id, serial=pair.serial)
    return pair


def _remedial(device: Device, current: Pair) -> Pair | None:
    if current.is_quarantine and device.now() < current.certificate.not_valid_after_utc:
        return current
    try:
        pair = enroll_once(device, quarantine=True)
    except AttemptFailure as failure:
        log.warning("no-quarantine-certificate", reason=failure)
        return None
    log.event("in-quarantine", device=pair.details.device_id, serial=pair.serial)
    return pair
