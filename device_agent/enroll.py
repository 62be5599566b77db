"""Enrollment with the TPM, top to bottom (docs/protocol.md, section 1): trust, keys, challenge, evidence, certificate.

The evidence is on disk before it is sent: after a lost answer or lost power the same bytes go again, and get the same
certificate.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from device_agent import log, state
from device_agent.certificates import CertificateRefused, Expectation, verify_issued
from device_agent.config import ConfigMistake
from device_agent.device import TRUST_FAILURES, Device, trust_at_hand
from device_agent.evidence import ChallengeRefused, LogMissing, with_logs
from device_agent.host import Backoff
from device_agent.http import (
    ApprovalPending,
    HttpFailure,
    ServiceClient,
    ServiceRefused,
    ServiceUnreachable,
    to_body,
)
from device_agent.identity import IdentityDetails, Pair
from device_agent.maker import makers_endorsement
from device_agent.state import StateDamaged
from device_agent.tpm import IAK, DeviceKey, Endorsement, NoEndorsementKey, TpmFailure
from device_agent.trust import Trust
from ota.source import SourceUnavailable
from wire.codec import Cap
from wire.messages import IMA_EVIDENCE_BODY_MOST, Challenge, EnrollmentRequest, Identifier, Issued
from wire.problems import Problem, Reaction

if TYPE_CHECKING:
    from device_agent.tpm.keys import Tpm

PENDING_MOST = 2 * IMA_EVIDENCE_BODY_MOST
WAIT_SECONDS = 120.0
"""Before the next attempt where somebody must act first."""

AttemptFailure = (
    HttpFailure,
    TpmFailure,
    CertificateRefused,
    ChallengeRefused,
    LogMissing,
    StateDamaged,
    ConfigMistake,
    OSError,
    *TRUST_FAILURES,
)
"""Everything that an attempt may end with. OSError: a full disk, and TLS (ssl.SSLError is one)."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """Evidence that was made and not answered yet, and the key that it is about."""

    enrollment_id: Identifier
    ek_kind: Identifier
    key_pem: Annotated[bytes, Cap(8 * 1024)]
    spki: Annotated[bytes, Cap(1024)]
    body: Annotated[bytes, Cap(IMA_EVIDENCE_BODY_MOST)]
    quarantine: bool = False


def enroll_once(device: Device, *, quarantine: bool = False) -> Pair:
    """One attempt, or the rest of an interrupted one. Raises: any of `AttemptFailure`.

    `quarantine`: for a certificate of quarantine, which the service has only for a device that is there.
    """
    trust = trust_at_hand(device)
    with_service = device.client(trust)
    try:
        pending = _left_over(device)
        if pending is not None and pending.quarantine == quarantine:
            try:
                return _send(device, trust, with_service, pending)
            except CertificateRefused as refused:  # it was answered long ago, by a certificate that is over
                log.warning("old-answer-refused", enrollment=pending.enrollment_id, reason=refused)
        pending = _make_evidence(device, with_service, quarantine=quarantine)
        state.write_value(_pending_file(device), pending)
        return _send(device, trust, with_service, pending)
    finally:
        with_service.close()


def _send(device: Device, trust: Trust, with_service: ServiceClient, pending: _Pending) -> Pair:
    """The evidence, and what it earns. It is forgotten where the same bytes cannot pass later."""
    try:
        issued = with_service.post(f"/v1/enrollments/{pending.enrollment_id}/evidence", pending.body, Issued)
    except (ServiceRefused, ApprovalPending) as refusal:
        if not _same_again(refusal):
            state.remove(_pending_file(device))
        raise
    return _install(device, trust, pending, issued)


def enroll_until_done(
    device: Device, *, attempts: int | None = None, once: Callable[[Device], Pair] = enroll_once
) -> Pair:
    """Attempts (`once`) with back-off until there is an identity, the service says stop, or `attempts` are used up.

    With `attempts` a failure that waits for a person ends it too. Raises: any of `AttemptFailure`; Stopped.
    """
    backoff = Backoff(device.host.jitter)
    made = 0
    while True:
        made += 1
        try:
            pair = once(device)
        except AttemptFailure as failure:
            reaction = reaction_to(failure)
            last = attempts is not None and (made >= attempts or reaction is Reaction.WAIT)
            if last or reaction is Reaction.STOP:
                raise
            wait = backoff.next(_asked_for(failure) + (WAIT_SECONDS if reaction is Reaction.WAIT else 0.0))
            log.warning("enrollment-failed", reason=failure, refusal=_instance(failure), again_in_seconds=round(wait))
            if device.host.pause(wait):
                raise Stopped from failure
            continue
        event = "in-quarantine" if pair.is_quarantine else "enrolled"
        log.event(event, device=pair.details.device_id, serial=pair.serial)
        return pair


class Stopped(Exception):
    """The agent was asked to end."""


def reaction_to(failure: BaseException) -> Reaction:
    """What to do about a failure: again, from the start, after somebody acted, or never by itself."""
    if isinstance(failure, ServiceRefused):
        return failure.reaction
    if isinstance(failure, ServiceUnreachable | SourceUnavailable):
        return Reaction.RETRY
    if isinstance(failure, ConfigMistake | StateDamaged | NoEndorsementKey):
        return Reaction.STOP
    return Reaction.WAIT


def exit_status(failure: BaseException) -> tuple[int, str]:
    """The exit status of a command that ended by this failure (1 refused, 3 out of reach), and the line to print."""
    status = 3 if isinstance(failure, ServiceUnreachable | SourceUnavailable) else 1
    instance = _instance(failure)
    return status, f"{failure}" + (f"; the operator sees why: muster explain {instance}" if instance else "")


def _left_over(device: Device) -> _Pending | None:
    """Evidence of an interrupted attempt, unless its certificate is installed already."""
    pending = state.read_or_drop(_Pending, _pending_file(device), PENDING_MOST)
    current = device.identity.current()
    if pending is None or current is None or current.spki != pending.spki:
        return pending
    state.remove(_pending_file(device))
    return None


def _make_evidence(device: Device, with_service: ServiceClient, *, quarantine: bool) -> _Pending:
    attester = device.attester
    with device.tpm.open() as tpm:  # the keys are made before step 1: a challenge lives for minutes only
        makers = makers_endorsement(device.config, tpm)
        endorsements = _offered(device, _endorsements(tpm)) if makers is None else (makers,)
        banks = tpm.pcr_banks()
        key = tpm.create_device_key()
        csr = tpm.certificate_request(key.pem)
        with attester.key(tpm, endorsements[0].kind) as ak:
            ak_public = ak.public
    found = device.identity.current()
    said = EnrollmentRequest(
        ak_public=ak_public,
        pcr_banks=banks,
        serial=device.config.serial,
        profile="quarantine" if quarantine else None,
        state_of=None if found is None else found.details.device_id,
    )
    ek, challenge = _begin(with_service, endorsements, said)
    boot_log = attester.read_boot_log(challenge)
    with device.tpm.open() as tpm:
        evidence = attester.attest_key(tpm, challenge, "enroll", ek.kind, key, csr)
    ima_log = attester.read_ima_log(challenge)
    log.event("evidence-made", enrollment=challenge.enrollment_id, pcrs=challenge.pcr_selection.bank)
    pending = _pending(challenge, ek, key, to_body(with_logs(evidence, boot_log, ima_log)))
    return replace(pending, quarantine=quarantine)


def _endorsements(tpm: "Tpm") -> tuple[Endorsement, ...]:
    """What the TPM has certificates for; a TPM without any is known by its keys, or not at all."""
    try:
        return tpm.endorsements()
    except NoEndorsementKey as none:
        log.event("no-ek-certificate", reason=none)
        return tpm.bare_endorsements()


def _begin(
    with_service: ServiceClient, endorsements: tuple[Endorsement, ...], said: EnrollmentRequest
) -> tuple[Endorsement, Challenge]:
    """Step 1 with the first EK that the service knows: a factory registers one of them, not always the same."""
    refusal: ServiceRefused | None = None
    for ek in endorsements:
        if ek.kind == IAK:
            chain = ek.intermediates
            request = replace(
                said, iak_certificate=ek.certificate, iak_intermediates=chain, idevid_certificate=ek.idevid
            )
        else:
            request = replace(
                said, ek_certificate=ek.certificate, ek_public=ek.public, ek_intermediates=ek.intermediates
            )
        try:
            return ek, with_service.post("/v1/enrollments", to_body(request), Challenge)
        except ServiceRefused as refused:
            if refused.problem is not Problem.NOT_REGISTERED:
                raise
            refusal = refusal or refused
    raise refusal or NoEndorsementKey("no EK to offer")


def _install(device: Device, trust: Trust, pending: _Pending, issued: Issued) -> Pair:
    expected = Expectation(
        service_name=device.anchor.service_name,
        spki=pending.spki,
        roots=trust.bundle.ca_roots,
        issuing_keys=trust.bundle.issuing_keys,
        now=device.now(),
        quarantine=pending.quarantine,
    )
    try:
        verify_issued(issued.certificate, issued.chain, issued.device_id, expected)
    except CertificateRefused:
        state.remove(_pending_file(device))  # the same evidence would get the same certificate
        raise
    details = IdentityDetails(
        device_id=issued.device_id,
        certificate=issued.certificate,
        chain=issued.chain,
        mqtt=issued.mqtt,
        renew_after=issued.renew_after,
        ek_kind=pending.ek_kind,
    )
    device.identity.store_next(pending.key_pem, details)
    pair = device.identity.swap()
    state.remove(_pending_file(device))
    return pair


def _pending(challenge: Challenge, ek: Endorsement, key: DeviceKey, body: bytes) -> _Pending:
    return _Pending(enrollment_id=challenge.enrollment_id, ek_kind=ek.kind, key_pem=key.pem, spki=key.spki, body=body)


def _pending_file(device: Device) -> Path:
    return device.config.state_dir / "pending-enrollment.json"


def _offered(device: Device, found: tuple[Endorsement, ...]) -> tuple[Endorsement, ...]:
    offered = tuple(ek for ek in found if device.config.ek in (None, ek.algorithm))
    if not offered:
        raise NoEndorsementKey(f"the TPM has no EK of the kind that agent.toml asks for: {device.config.ek}")
    return offered


def _same_again(refusal: ServiceRefused | ApprovalPending) -> bool:
    """May these very bytes pass later? An approval is answered by new evidence."""
    return isinstance(refusal, ServiceRefused) and refusal.reaction is Reaction.RETRY


def _asked_for(failure: BaseException) -> float:
    return failure.retry_after if isinstance(failure, ServiceRefused | ApprovalPending) else 0.0


def _instance(failure: BaseException) -> str | None:
    return failure.instance if isinstance(failure, ServiceRefused) else None
