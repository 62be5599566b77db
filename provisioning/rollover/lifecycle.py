"""The lifecycle of what rolls over, as a table.

    prepared --activate--> active --succeed--> retiring --retire--> retired
        |                    ^                    |
        +------retire------> . <----activate------+

Laws: of each kind one is active at most, and an activation makes the one before it retire. `retired` is the end. What
was prepared and never used may be given up. Until it is retired, the one before can be made active again.
"""

from enum import StrEnum

from provisioning.authorities import State
from provisioning.refusals import WrongStep


class Step(StrEnum):
    """What an operator, or another one's activation (`SUCCEED`), does to it."""

    ACTIVATE = "activate"
    SUCCEED = "succeed"
    RETIRE = "retire"


NEXT: dict[tuple[State, Step], State] = {
    (State.PREPARED, Step.ACTIVATE): State.ACTIVE,
    (State.RETIRING, Step.ACTIVATE): State.ACTIVE,
    (State.ACTIVE, Step.SUCCEED): State.RETIRING,
    (State.RETIRING, Step.RETIRE): State.RETIRED,
    (State.PREPARED, Step.RETIRE): State.RETIRED,
}


def after(name: str, state: str, step: Step) -> State:
    """The state that a step leads to. Raises: WrongStep."""
    following = NEXT.get((State(state), step))
    if following is None:
        allowed = ", ".join(sorted({one.value for one, other in NEXT if other is step}))
        raise WrongStep(expected=f"{name} to be {allowed}", actual=state)
    return following


def following_name(kind: str, names: list[str]) -> str:
    """The name of the next one of a kind: `issuing`, `issuing-2`, … (in the order in which they were made)."""
    numbers = [int(name.removeprefix(f"{kind}-") or 0) for name in names if name.removeprefix(f"{kind}-").isdigit()]
    taken = max([1 if kind in names else 0, *numbers])
    return kind if taken == 0 else f"{kind}-{taken + 1}"
