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


EVERY_UP = f"{ROOT}/+/up"


def device_of(topic: str) -> str | None:
    """The device of an `up` topic, or None where it is not one."""
    parts = topic.split("/")
    if len(parts) != 4 or "/".join(parts[:2]) != ROOT or parts[3] != "up" or not is_device_id(parts[2]):
        return None
    return parts[2]
