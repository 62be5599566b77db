"""The classes of refusal that a device or client learns (RFC 9457 `type`), and what the agent does about each.

A class is coarse on purpose: it tells a device whether to retry, not an attacker which check to work on. The named
check, expected and actual, stay with the operator.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from wire.codec import Cap

PREFIX = "urn:muster:problem:"
MEDIA_TYPE = "application/problem+json"


class Problem(StrEnum):
    """The class of a refusal."""

    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    TOO_SLOW = "too-slow"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_REGISTERED = "not-registered"
    ENDORSEMENT_REFUSED = "endorsement-refused"
    ATTESTATION_REFUSED = "attestation-refused"
    ATTESTATION_REQUIRED = "attestation-required"
    TPM_CLEARED = "tpm-cleared"
    CHALLENGE_GONE = "challenge-gone"
    CHALLENGE_TAKEN = "challenge-taken"
    NO_POLICY = "no-policy"
    BUDGET_SPENT = "budget-spent"
    REVOKED = "revoked"
    CONFLICT = "conflict"
    TOO_MANY_REQUESTS = "too-many-requests"
    UNAVAILABLE = "unavailable"

    @property
    def uri(self) -> str:
        """The problem-type URI."""
        return PREFIX + self.value


class Reaction(StrEnum):
    """What an agent does about a refusal."""

    RETRY = "retry"
    """The same request again, after a jittered back-off."""
    RESTART = "restart"
    """The flow from its first step, after a jittered back-off."""
    WAIT = "wait"
    """From its first step, but after minutes: somebody must act first (register, approve, set a policy)."""
    STOP = "stop"
    """Not again by itself: the same request will be refused again."""


REACTION: dict[Problem, Reaction] = {
    Problem.MALFORMED: Reaction.STOP,
    Problem.TOO_LARGE: Reaction.STOP,
    Problem.TOO_SLOW: Reaction.RETRY,
    Problem.UNSUPPORTED_MEDIA_TYPE: Reaction.STOP,
    Problem.NOT_FOUND: Reaction.STOP,
    Problem.METHOD_NOT_ALLOWED: Reaction.STOP,
    Problem.UNAUTHENTICATED: Reaction.RESTART,
    Problem.FORBIDDEN: Reaction.STOP,
    Problem.NOT_REGISTERED: Reaction.WAIT,
    Problem.ENDORSEMENT_REFUSED: Reaction.WAIT,
    Problem.ATTESTATION_REFUSED: Reaction.WAIT,
    Problem.ATTESTATION_REQUIRED: Reaction.RESTART,
    Problem.TPM_CLEARED: Reaction.WAIT,
    Problem.CHALLENGE_GONE: Reaction.RESTART,
    Problem.CHALLENGE_TAKEN: Reaction.RESTART,
    Problem.NO_POLICY: Reaction.WAIT,
    Problem.BUDGET_SPENT: Reaction.STOP,
    Problem.REVOKED: Reaction.STOP,
    Problem.CONFLICT: Reaction.STOP,
    Problem.TOO_MANY_REQUESTS: Reaction.RETRY,
    Problem.UNAVAILABLE: Reaction.RETRY,
}


@dataclass(frozen=True, slots=True)
class ProblemDocument:
    """RFC 9457. `code` is the stable code of the check, `instance` the id that `muster explain` takes."""

    type: Annotated[str, Cap(200)]
    title: Annotated[str, Cap(200)]
    status: int
    code: Annotated[str, Cap(32)]
    instance: Annotated[str, Cap(64)] | None = None
    detail: Annotated[str, Cap(2000)] | None = None


def problem_of(document_type: str) -> Problem | None:
    """The class behind a problem-type URI, or None where this version knows none of that name."""
    try:
        return Problem(document_type.removeprefix(PREFIX)) if document_type.startswith(PREFIX) else None
    except ValueError:
        return None
