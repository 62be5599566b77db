"""What the agent knows about itself, from its own disk; nobody is asked."""

from device_agent.device import Device
from device_agent.identity import Pair
from wire.codec import rfc3339


def identity_of(pair: Pair | None) -> dict[str, object]:
    """The identity in use, for a person or as JSON; `device_id` is None before enrollment."""
    if pair is None:
        return {"device_id": None}
    certificate = pair.certificate
    return {
        "device_id": pair.details.device_id,
        "serial": pair.serial,
        "valid_from": rfc3339(certificate.not_valid_before_utc),
        "valid_until": rfc3339(certificate.not_valid_after_utc),
        "renew_after": rfc3339(pair.details.renew_after),
        "certificate": str(pair.chain_file),
        "key": str(pair.key_file),
    }


def status_of(device: Device) -> dict[str, object]:
    """Identity, trust, attestation, slot. Raises: StateDamaged."""
    from device_agent.memory import recall

    trust = device.trust.current()
    memory = recall(device.config.state_dir)
    attested = memory.attested_until
    return {
        **identity_of(device.identity.current()),
        "service": device.config.service,
        "service_name": device.anchor.service_name,
        "trust_version": None if trust is None else trust.bundle.version,
        "trust_expires": None if trust is None else rfc3339(trust.expires),
        "trusted_time": rfc3339(device.now()),
        "attested_until": None if attested is None else rfc3339(attested),
        "slot": _booted_slot(device),
    }


def _booted_slot(device: Device) -> str | None:
    slots = device.config.slots
    try:
        return None if slots is None else (slots / "booted").read_text(encoding="ascii").strip()[:16]
    except (OSError, UnicodeDecodeError):
        return None
