"""The operator listener's routes for operators themselves (`operators`), and for the profile of a device."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from provisioning import inventory, operators
from wire.codec import Cap

if TYPE_CHECKING:
    from provisioning.http.operator import Asked


@dataclass(frozen=True, slots=True)
class NewOperator:
    """`role`: one of `access.Role`."""

    name: Annotated[str, Cap(63)]
    role: Annotated[str, Cap(32)]


@dataclass(frozen=True, slots=True)
class ProfileName:
    """The certificate profile that a device's record is to name."""

    profile: Annotated[str, Cap(63)]


async def add(asked: "Asked") -> object:
    """Make one, and tell the token."""
    new = asked.body
    return await operators.add_operator(asked.call.service, new.name, new.role, by=asked.operator.name)


async def every(asked: "Asked") -> object:
    """Who there is."""
    return {"operators": await operators.list_operators(asked.call.service)}


async def remove(asked: "Asked") -> object:
    """End one."""
    return await operators.remove_operator(asked.call.service, asked.name, by=asked.operator.name)


async def set_device_profile(asked: "Asked") -> object:
    """What a device's next certificate is issued under."""
    wanted = asked.body.profile
    return await inventory.set_profile(asked.call.service, asked.name, wanted, by=asked.operator.name)
