"""The way back: when a new attestation is the answer, and what an agent holds until it passes."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from device_agent import wayback
from device_agent.enroll import Stopped
from device_agent.http import ServiceRefused, ServiceUnreachable
from tests.unit.device_agent.builders import NOW
from wire.problems import Problem, ProblemDocument


def refused(problem, status=403):
    document = ProblemDocument(type=problem.uri, title="no", status=status, code="MUSTER-HLT-001")
    return ServiceRefused(status, document, 0.0)


def pair(*, quarantine=False, left=timedelta(days=1)):
    certificate = SimpleNamespace(not_valid_after_utc=NOW + left)
    details = SimpleNamespace(device_id="d-1")
    return SimpleNamespace(is_quarantine=quarantine, certificate=certificate, details=details, serial="1")


def device(answer=None):
    def get(_path, _most):
        if answer is not None:
            raise answer

    return SimpleNamespace(client=lambda *_: SimpleNamespace(get=get, close=lambda: None), now=lambda: NOW)


@pytest.mark.parametrize(
    ("answer", "quarantine", "must"),
    [
        (None, False, False),
        (None, True, False),
        (refused(Problem.ATTESTATION_REQUIRED), False, True),
        (refused(Problem.UNAUTHENTICATED, 401), False, False),
        (refused(Problem.UNAUTHENTICATED, 401), True, True),
        (refused(Problem.REVOKED), False, False),
        (ServiceUnreachable("away"), True, False),
    ],
)
def test_a_new_attestation_is_the_answer_where_the_service_says_so(answer, quarantine, must):
    assert wayback.must_attest(device(answer), None, pair(quarantine=quarantine)) is must


@pytest.fixture
def attempts(monkeypatch):
    """What each attempt comes to, by whether it asks for a certificate of quarantine; those that were made."""
    outcomes = SimpleNamespace(normal=None, quarantine=None, made=[])

    def once(_device, *, quarantine=False):
        outcomes.made.append("quarantine" if quarantine else "normal")
        outcome = outcomes.quarantine if quarantine else outcomes.normal
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(wayback, "enroll_once", once)
    monkeypatch.setattr(wayback, "trust_at_hand", lambda _: None)
    return outcomes


def patient(waits, answer=None):
    """A device that waits so often between attempts, and then is asked to end."""
    left = iter([False] * waits + [True])
    host = SimpleNamespace(jitter=lambda low, _high: low, pause=lambda _: next(left))
    return SimpleNamespace(**vars(device(answer)), host=host)


def test_who_passes_is_back(attempts):
    attempts.normal = pair()
    assert wayback.come_back(patient(0), pair(quarantine=True), attempts=None) is attempts.normal


def test_who_does_not_pass_gets_a_certificate_of_quarantine_and_keeps_the_one_that_is_good(attempts):
    attempts.normal, attempts.quarantine = refused(Problem.ATTESTATION_REFUSED), pair(quarantine=True)
    assert wayback.come_back(patient(0), pair(), attempts=None) is attempts.quarantine
    kept, ended = pair(quarantine=True), pair(quarantine=True, left=timedelta(0))
    assert wayback.come_back(patient(0), kept, attempts=None) is kept
    assert wayback.come_back(patient(0), ended, attempts=None) is attempts.quarantine


def test_a_certificate_of_quarantine_that_is_let_in_no_more_is_replaced(attempts):
    """It ended with a pass, and another refusal came after that: with it, no help would ever reach the device."""
    attempts.normal, attempts.quarantine = refused(Problem.ATTESTATION_REFUSED), pair(quarantine=True)
    ended = patient(0, refused(Problem.UNAUTHENTICATED, 401))
    assert wayback.come_back(ended, pair(quarantine=True), attempts=None) is attempts.quarantine
    away = patient(0, ServiceUnreachable("away"))
    assert wayback.come_back(away, kept := pair(quarantine=True), attempts=None) is kept


def test_where_there_is_no_certificate_of_quarantine_both_are_tried_again(attempts):
    attempts.normal, attempts.quarantine = refused(Problem.ATTESTATION_REFUSED), refused(Problem.FORBIDDEN)
    with pytest.raises(Stopped):
        wayback.come_back(patient(1), pair(), attempts=None)
    assert attempts.made == ["normal", "quarantine"] * 2
    with pytest.raises(ServiceRefused, match="MUSTER-HLT-001"):
        wayback.come_back(patient(9), pair(), attempts=1)


@pytest.mark.parametrize("failure", [ServiceUnreachable("away"), refused(Problem.TPM_CLEARED)])
def test_nobody_asks_for_quarantine_who_was_not_refused_for_what_it_runs(attempts, failure):
    attempts.normal = failure
    with pytest.raises(Stopped):
        wayback.come_back(patient(1), pair(), attempts=None)
    assert attempts.made == ["normal"] * 2


def test_a_service_that_was_away_for_a_moment_costs_nobody_the_line_of_quarantine(attempts, monkeypatch):
    outcomes = iter([ServiceUnreachable("away"), refused(Problem.ATTESTATION_REFUSED)])
    attempts.quarantine = pair(quarantine=True)

    def once(_device, *, quarantine=False):
        if quarantine:
            return attempts.quarantine
        raise next(outcomes)

    monkeypatch.setattr(wayback, "enroll_once", once)
    assert wayback.come_back(patient(1), pair(), attempts=None) is attempts.quarantine
