"""Small facts that outlive a restart and that nothing depends on: they are shown, not believed."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from device_agent import log, state
from device_agent.state import StateDamaged

_MOST = 4096


@dataclass(frozen=True, slots=True)
class Memory:
    """`attested_until` is when the service's last attestation result ends."""

    attested_until: datetime | None = None


def recall(state_dir: Path) -> Memory:
    """What was remembered; a damaged file is as good as none."""
    try:
        return state.read_value(Memory, state_dir / "memory.json", _MOST) or Memory()
    except StateDamaged as damage:
        log.warning("memory-damaged", reason=damage)
        return Memory()


def remember_attested(state_dir: Path, until: datetime) -> None:
    """The service said that the evidence passed."""
    state.write_value(state_dir / "memory.json", replace(recall(state_dir), attested_until=until))
