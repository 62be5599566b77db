"""The operator listener's routes for policies and for the groups of devices that they are for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from provisioning import policies
from provisioning.http.exchange import query
from provisioning.refusals import RequestMalformed
from wire.codec import Cap

if TYPE_CHECKING:
    from provisioning.http.operator import Asked

TEXT_MOST = 1024 * 1024
BODY_MOST = 3 * 1024 * 1024
"""Bytes of a body with a policy in it: JSON escapes each line's end, and more."""
_DIGITS = 9

Name = Annotated[str, Cap(128)]
Toml = Annotated[str, Cap(TEXT_MOST)]


@dataclass(frozen=True, slots=True)
class PolicyText:
    """A model's policy, as `muster policy set` reads it."""

    toml: Toml


@dataclass(frozen=True, slots=True)
class OtherText:
    """A text to hold against the policy in force for a group (none: for the model), or against another version."""

    toml: Toml
    group: Name | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """Which policy, and which page of the stored evidence: `behind` is what the last page named, at first empty."""

    toml: Toml | None = None
    model: Name | None = None
    group: Name | None = None
    version: int | None = None
    every: bool = False
    behind: Annotated[str, Cap(256)] = ""


@dataclass(frozen=True, slots=True)
class Promotion:
    """The draft that is to be in force."""

    version: int


@dataclass(frozen=True, slots=True)
class Learning:
    """From which devices, by id or serial; none: from those that the policy names."""

    group: Name | None = None
    version: int | None = None
    devices: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupName:
    """The group that a device is to belong to; None: to none."""

    group: Annotated[str, Cap(63)] | None = None


async def put(asked: "Asked") -> object:
    """Put one into force at once."""
    return await policies.set_policy(asked.call.service, asked.body.toml, by=asked.operator.name)


async def propose(asked: "Asked") -> object:
    """Keep a draft."""
    return await policies.propose_policy(asked.call.service, asked.body.toml, by=asked.operator.name)


async def promote(asked: "Asked") -> object:
    """Put another person's draft into force."""
    service, by = asked.call.service, asked.operator.name
    return await policies.promote_policy(service, asked.name, asked.body.version, by=by)


async def every(asked: "Asked") -> object:
    """What is in force, and the drafts."""
    return {"policies": await policies.list_policies(asked.call.service)}


async def one(asked: "Asked") -> object:
    """One, whole."""
    fields = query(asked.call.request, "group", "version")
    wanted = policies.Named(asked.name, fields.get("group"), _number(fields.get("version"), "version"))
    return await policies.show_policy(asked.call.service, wanted)


async def compare(asked: "Asked") -> object:
    """What a draft, or another version, changes."""
    fields = query(asked.call.request, "group", "version", "to")
    wanted = policies.Named(asked.name, fields.get("group"), _number(fields.get("version"), "version"))
    return await policies.compare(asked.call.service, wanted, _number(fields.get("to"), "to"), None)


async def compare_text(asked: "Asked") -> object:
    """What a text changes."""
    other = asked.body
    wanted = policies.Named(asked.name, other.group, other.version)
    return await policies.compare(asked.call.service, wanted, None, other.toml)


async def test(asked: "Asked") -> object:
    """One page of a run over stored evidence."""
    body, by = asked.body, asked.operator.name
    wanted = None if body.model is None else policies.Named(body.model, body.group, body.version)
    if wanted is None and (body.group, body.version) != (None, None):
        raise RequestMalformed(expected="a model with its group or version", actual="no model")
    return await policies.test_policy(asked.call.service, body.toml, wanted, body.behind, every=body.every, by=by)


async def learn(asked: "Asked") -> object:
    """A text with the values that devices showed."""
    body = asked.body
    wanted = policies.Named(asked.name, body.group, body.version)
    return await policies.learn_policy(asked.call.service, wanted, body.devices, by=asked.operator.name)


async def set_group(asked: "Asked") -> object:
    """Which group's policy counts for a device."""
    return await policies.set_group(asked.call.service, asked.name, asked.body.group, by=asked.operator.name)


def _number(text: str | None, name: str) -> int | None:
    """Raises: RequestMalformed."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise RequestMalformed(expected=f"{name}: a number", actual=text[:16])
    return int(text)
