"""The way back: when a new attestation is the answer, and what an agent holds until it passes."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from device_agent import wayback
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
    """What each attempt comes to, by whether it asks for a certificate of quarantine."""
    outcomes = {}

    def once(_device, *, quarantine=False):
        outcome = outcomes[quarantine]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(wayback, "enroll_once", once)
    monkeypatch.setattr(wayback, "enroll_until_done", lambda _device, *, attempts: ("until done", attempts))
    return outcomes


def test_who_passes_is_back(attempts):
    attempts[False] = pair()
    assert wayback.come_back(device(), pair(quarantine=True), attempts=None) is attempts[False]


def test_who_does_not_pass_gets_a_certificate_of_quarantine_and_keeps_the_one_that_is_good(attempts):
    attempts[False] = refused(Problem.ATTESTATION_REFUSED)
    attempts[True] = pair(quarantine=True)
    assert wayback.come_back(device(), pair(), attempts=None) is attempts[True]
    kept, ended = pair(quarantine=True), pair(quarantine=True, left=timedelta(0))
    assert wayback.come_back(device(), kept, attempts=None) is kept
    assert wayback.come_back(device(), ended, attempts=None) is attempts[True]


def test_where_there_is_no_certificate_of_quarantine_attempts_go_on(attempts):
    attempts[False] = refused(Problem.ATTESTATION_REFUSED)
    attempts[True] = refused(Problem.FORBIDDEN)
    assert wayback.come_back(device(), pair(), attempts=3) == ("until done", 3)


@pytest.mark.parametrize("failure", [ServiceUnreachable("away"), refused(Problem.TPM_CLEARED)])
def test_nobody_asks_for_quarantine_who_was_not_refused_for_what_it_runs(attempts, failure):
    attempts[False], attempts[True] = failure, AssertionError("must not be asked for")
    assert wayback.come_back(device(), pair(), attempts=None) == ("until done", None)
