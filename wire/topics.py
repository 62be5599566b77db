"""MQTT topics, and the one pattern of a device id (ids become topic levels, so the pattern is a security rule)."""

import re

DEVICE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ROOT = "muster/v1"


def is_device_id(text: str) -> bool:
    """Is this text a device id? No `/`, `+`, `#`, no upper case, at most 63 characters."""
    return DEVICE_ID.fullmatch(text) is not None


def down(device: str) -> str:
    """Where the service speaks to one device."""
    return f"{ROOT}/{device}/down"


def up(device: str) -> str:
    """Where one device speaks to the service."""
    return f"{ROOT}/{device}/up"


def remedy_down(device: str) -> str:
    """Where the service speaks to a device in quarantine."""
    return f"{ROOT}/{device}/remedy/down"


def remedy_up(device: str) -> str:
    """Where a device in quarantine speaks to the service."""
    return f"{ROOT}/{device}/remedy/up"


EVERY_UP = f"{ROOT}/+/up"
EVERY_REMEDY_UP = f"{ROOT}/+/remedy/up"


def device_of(topic: str) -> str | None:
    """The device of an `up` topic, or of one of quarantine; None where it is neither."""
    device = topic.removeprefix(f"{ROOT}/").removesuffix("/up").removesuffix("/remedy")
    return device if is_device_id(device) and topic in (up(device), remedy_up(device)) else None
