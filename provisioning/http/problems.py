"""Refusals as RFC 9457 problem documents. This is the one place that knows HTTP's status numbers for them."""

from collections.abc import Mapping

from aiohttp import web

from provisioning.refusals import Finding, Refusal, RequestMalformed
from wire.codec import MalformedMessage, encode
from wire.problems import MEDIA_TYPE, Problem, ProblemDocument

STATUS: dict[Problem, int] = {
    Problem.MALFORMED: 400,
    Problem.TOO_LARGE: 413,
    Problem.TOO_SLOW: 408,
    Problem.UNSUPPORTED_MEDIA_TYPE: 415,
    Problem.NOT_FOUND: 404,
    Problem.METHOD_NOT_ALLOWED: 405,
    Problem.UNAUTHENTICATED: 401,
    Problem.FORBIDDEN: 403,
    Problem.NOT_REGISTERED: 403,
    Problem.ENDORSEMENT_REFUSED: 403,
    Problem.ATTESTATION_REFUSED: 403,
    Problem.ATTESTATION_REQUIRED: 403,
    Problem.TPM_CLEARED: 403,
    Problem.CHALLENGE_GONE: 410,
    Problem.CHALLENGE_TAKEN: 409,
    Problem.NO_POLICY: 403,
    Problem.BUDGET_SPENT: 403,
    Problem.REVOKED: 403,
    Problem.CONFLICT: 409,
    Problem.TOO_MANY_REQUESTS: 429,
    Problem.UNAVAILABLE: 503,
}

RETRY_AFTER_SECONDS = 5
"""What a client is told where a refusal names no time of its own."""

SERVER = {"Server": "muster"}
"""What every answer says instead of versions."""
_COMMON = {"Cache-Control": "no-store", **SERVER}
_DETAIL_MOST = 2000
# The connection ends with these: what follows on it is not, or not yet, the next request.
_CLOSING = frozenset({Problem.TOO_LARGE, Problem.TOO_SLOW})
_DEFECT = encode(ProblemDocument("about:blank", "Internal Server Error", 500, "MUSTER-INT-001"))


def as_refusal(error: Refusal | MalformedMessage) -> Refusal:
    """The refusal by name: a message of the wrong shape is `RequestMalformed`."""
    if isinstance(error, Refusal):
        return error
    # Only the device's own field names and our caps stand in it, never a value of ours.
    return RequestMalformed(expected="a message of this protocol", actual=str(error))


def document(refusal: Refusal, *, detailed: bool) -> ProblemDocument:
    """The problem document. `detailed` is for operators: a device never learns expected and actual."""
    return ProblemDocument(
        type=refusal.problem.uri,
        title=refusal.title,
        status=STATUS[refusal.problem],
        code=refusal.code,
        instance=refusal.instance,
        detail=_detail(refusal) if detailed else None,
    )


def response(refusal: Refusal, *, detailed: bool, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer to a request that was refused."""
    answer = web.Response(
        status=STATUS[refusal.problem],
        body=encode(document(refusal, detailed=detailed)),
        headers={**_COMMON, "Content-Type": MEDIA_TYPE, **_headers_of(refusal), **(headers or {})},
    )
    if refusal.problem in _CLOSING:
        answer.force_close()
    return answer


def defect() -> web.Response:
    """The answer where the service itself failed. It says nothing about how (RFC 9457, about:blank)."""
    answer = web.Response(status=500, body=_DEFECT, headers={**_COMMON, "Content-Type": MEDIA_TYPE})
    answer.force_close()
    return answer


def _headers_of(refusal: Refusal) -> dict[str, str]:
    if refusal.problem in {Problem.TOO_MANY_REQUESTS, Problem.UNAVAILABLE}:
        return {"Retry-After": str(refusal.retry_after_seconds or RETRY_AFTER_SECONDS)}
    return {}


def _detail(refusal: Refusal) -> str:
    parts = [
        f"expected {refusal.expected}" if refusal.expected else "",
        f"actual {refusal.actual}" if refusal.actual else "",
        *map(_line, refusal.findings),
        refusal.cure,
    ]
    return "; ".join(part for part in parts if part)[:_DETAIL_MOST]


def _line(finding: Finding) -> str:
    return f"{finding.what}: expected {finding.expected}, actual {finding.actual}"
