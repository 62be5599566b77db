"""Refusals as problem documents: complete, of the right shape, and silent towards devices."""

import inspect
import json

import pytest

from provisioning import refusals
from provisioning.http import problems
from provisioning.refusals import Finding, PcrsNotAccepted, Refusal, RequestMalformed, TooManyRequests
from wire.codec import MalformedMessage, decode
from wire.problems import MEDIA_TYPE, Problem, ProblemDocument

EVERY = [c for _, c in inspect.getmembers(refusals, inspect.isclass) if issubclass(c, Refusal) and c is not Refusal]


def body(answer):
    return decode(ProblemDocument, bytes(answer.body), limit=10_000)


def test_every_class_of_problem_has_a_status_and_no_other_has():
    assert set(problems.STATUS) == set(Problem)


def test_every_status_says_that_the_client_or_the_moment_was_wrong_and_never_the_service():
    assert all(400 <= status < 500 or status == 503 for status in problems.STATUS.values())


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_refusal_becomes_a_document_that_the_agent_can_read(kind):
    answer = problems.response(kind(expected="e", actual="a"), detailed=False)
    document = body(answer)
    assert (answer.status, document.status) == (problems.STATUS[kind.problem],) * 2
    assert (document.type, document.code, document.title) == (kind.problem.uri, kind.code, kind.title)
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    assert answer.headers["Cache-Control"] == "no-store"


def secret_refusal():
    refusal = PcrsNotAccepted(
        expected="EXPECTED", actual="ACTUAL", findings=(Finding("pcr 4", "FOUND-EXPECTED", "FOUND-ACTUAL"),)
    )
    refusal.instance = "r-1"
    return refusal


def test_a_device_learns_the_class_and_the_id_and_neither_expected_nor_actual():
    answer = problems.response(secret_refusal(), detailed=False)
    assert set(json.loads(answer.body)) == {"type", "title", "status", "code", "instance"}
    assert b"EXPECTED" not in answer.body
    assert b"ACTUAL" not in answer.body


def test_an_operator_reads_expected_actual_every_finding_and_the_cure():
    detail = body(problems.response(secret_refusal(), detailed=True)).detail
    for part in ("EXPECTED", "ACTUAL", "pcr 4", "FOUND-EXPECTED", "FOUND-ACTUAL", PcrsNotAccepted.cure):
        assert part in detail


def test_a_detail_is_cut_where_the_document_has_its_cap():
    findings = tuple(Finding("x" * 100, "y" * 100, "z" * 100) for _ in range(100))
    assert len(body(problems.response(PcrsNotAccepted(findings=findings), detailed=True)).detail) == 2000


def test_a_message_of_the_wrong_shape_is_a_malformed_request():
    refusal = problems.as_refusal(MalformedMessage("quote.attest", "is missing"))
    assert isinstance(refusal, RequestMalformed)
    assert refusal.actual == "quote.attest: is missing"


def test_who_asks_too_often_learns_how_long_to_wait():
    refusal = TooManyRequests()
    refusal.retry_after_seconds = 7
    assert problems.response(refusal, detailed=False).headers["Retry-After"] == "7"


def test_who_meets_a_busy_service_learns_how_long_to_wait():
    answer = problems.response(refusals.Busy(), detailed=False)
    assert answer.headers["Retry-After"] == str(problems.RETRY_AFTER_SECONDS)


@pytest.mark.parametrize("kind", [refusals.RequestTooLarge, refusals.TooSlow])
def test_a_connection_with_an_unread_body_is_closed(kind):
    assert problems.response(kind(), detailed=False).keep_alive is False


def test_a_defect_says_nothing_about_itself():
    answer = problems.defect()
    assert answer.status == 500
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "code": "MUSTER-INT-001",
    }
