"""Who may do what on the operator listener. Pure; what is not granted here is denied."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a route asks for, and what an operator has."""

    VIEWER = "viewer"
    """Reads: devices, policies, refusals, figures."""
    OPERATOR = "operator"
    """Acts on devices and releases: rotate, approve, revoke, assign."""
    PUBLISHER = "publisher"
    """Uploads releases, which count for nothing but their own signatures."""
    RELYING_PARTY = "relying-party"
    """Asks for attestation results, and learns nothing else."""
    ADMIN = "admin"
    """Decides whom and what to trust: policies, factory stations."""


GRANTS: dict[Role, frozenset[Role]] = {
    Role.VIEWER: frozenset({Role.VIEWER, Role.RELYING_PARTY}),
    Role.OPERATOR: frozenset({Role.VIEWER, Role.RELYING_PARTY, Role.OPERATOR}),
    Role.PUBLISHER: frozenset({Role.VIEWER, Role.RELYING_PARTY, Role.PUBLISHER}),
    Role.RELYING_PARTY: frozenset({Role.RELYING_PARTY}),
    Role.ADMIN: frozenset(Role),
}
"""What each role may do, by the role that a route asks for."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An authenticated person or program. `role` is the record's text; one that is not in `Role` may do nothing."""

    name: str
    role: str


def may(operator: Operator, needed: Role) -> bool:
    """Does the operator's role cover the route's?"""
    try:
        return needed in GRANTS[Role(operator.role)]
    except ValueError:
        return False
