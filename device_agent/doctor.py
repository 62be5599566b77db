"""Examines everything that the agent needs, and says how to mend what it finds. It keeps only newer trust."""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from device_agent.config import AgentConfig, ConfigMistake
from device_agent.device import TRUST_FAILURES, Device, is_clock_unset, open_device
from device_agent.host import Host
from device_agent.http import HttpFailure
from device_agent.maker import makers_endorsement
from device_agent.selftest import prove_pair, prove_provider
from device_agent.state import StateDamaged
from device_agent.tpm import IAK, TpmFailure
from ota.refusals import UpdateRefused

_FAILURES = (TpmFailure, HttpFailure, StateDamaged, ConfigMistake, OSError, *TRUST_FAILURES)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what it says, and where it failed, how to mend it."""

    check: str
    ok: bool
    says: str
    cure: str = ""


def examine(config: AgentConfig, host: Host) -> list[Finding]:
    """All checks, in the order in which a failure of one explains the next."""
    findings = list(_files(config))
    try:
        device = open_device(config, host)
    except (UpdateRefused, ConfigMistake, OSError) as error:
        cure = "copy anchor.json from the service's data directory and name it in agent.toml"
        return [*findings, Finding("anchor", ok=False, says=str(error), cure=cure)]
    findings.append(Finding("anchor", ok=True, says=device.anchor.service_name))
    for check, examine_one, cure in _CHECKS:
        try:
            findings.append(Finding(check, ok=True, says=examine_one(device)))
        except _FAILURES as failure:
            findings.append(Finding(check, ok=False, says=str(failure), cure=cure))
    return findings


def _files(config: AgentConfig) -> Iterator[Finding]:
    """Nothing that the agent wrote may be read by others."""
    if not config.state_dir.exists():
        yield Finding("permissions", ok=True, says="nothing written yet")
        return
    open_to_others = [path for path in _below(config.state_dir) if stat.S_IMODE(path.lstat().st_mode) & 0o077]
    if open_to_others:
        says = f"{open_to_others[0]} and {len(open_to_others) - 1} more are open to others"
        yield Finding("permissions", ok=False, says=says, cure=f"chmod -R go= {config.state_dir}")
    else:
        yield Finding("permissions", ok=True, says=str(config.state_dir))


def _below(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (path for path in folder.rglob("*") if not path.is_symlink())


def _tpm(device: Device) -> str:
    with device.tpm.open() as tpm:
        banks = ", ".join(bank for bank in tpm.pcr_banks() if bank != "sha1") or "none that count"
        return f"{device.config.tcti}, PCR banks {banks}"


def _endorsement(device: Device) -> str:
    with device.tpm.open() as tpm:
        makers = makers_endorsement(device.config, tpm)
        return ", ".join(ek.kind for ek in ((makers,) if makers is not None else tpm.endorsements()))


def _attestation_key(device: Device) -> str:
    kind = "" if device.config.iak_certificate is None else IAK
    with device.tpm.open() as tpm, device.attester.key(tpm, kind) as ak:
        return f"name {ak.name.hex()[:16]}…"


def _device_key(device: Device) -> str:
    with device.tpm.open() as tpm:
        parent = tpm.storage_parent()
        tpm.create_device_key()
        return f"under {parent:#x}"


def _tls_key(device: Device) -> str:
    return f"{prove_provider(device)} with a key in the TPM"


def _boot_log(device: Device) -> str:
    path = device.config.boot_log
    if path is None:
        return "not configured; a policy may require one"
    with path.open("rb") as file:
        return f"{path}, {'readable' if file.read(1) else 'empty'}"


def _clock(device: Device) -> str:
    system = f"{device.host.system_clock():%Y-%m-%d %H:%M:%S} UTC"
    if is_clock_unset(device):
        return f"{system} is before {device.now():%Y-%m-%d %H:%M:%S}, which has been: the service's time is used"
    return system


def _service(device: Device) -> str:
    trust = device.trust.refresh()
    return f"{device.config.public}, trust bundle {trust.bundle.version}, until {trust.expires:%Y-%m-%d %H:%M}"


def _device_listener(device: Device) -> str:
    trust = device.trust.current() or device.trust.refresh()
    client = device.client(trust)
    try:
        client.get("/trust/metadata/timestamp.json", 256 * 1024)
    finally:
        client.close()
    return f"{device.config.service} is {device.anchor.service_name}"


def _identity(device: Device) -> str:
    pair = device.identity.current()
    if pair is None:
        return "not enrolled yet"
    end = pair.certificate.not_valid_after_utc
    if device.now() >= end:
        raise StateDamaged(f"the certificate of {pair.details.device_id} ended at {end:%Y-%m-%d %H:%M}")
    trust = device.trust.current()
    if trust is not None:
        prove_pair(pair, trust.bundle.ca_roots)
    return f"{pair.details.device_id}, certificate until {end:%Y-%m-%d %H:%M}"


_SERVICE_CURE = "check the URLs in agent.toml, the network, and that the service runs; muster doctor helps there"

_CHECKS: tuple[tuple[str, Callable[[Device], str], str], ...] = (
    ("tpm", _tpm, "check tcti in agent.toml; for /dev/tpmrm0 this user must be in the group tss"),
    ("ek certificate", _endorsement, "ask the TPM's manufacturer for the EK certificate"),
    ("attestation key", _attestation_key, "name the endorsement hierarchy's authorisation: endorsement_auth"),
    ("device key", _device_key, "make a storage root key at 0x81000001 (tpm2_createprimary, tpm2_evictcontrol)"),
    ("tls key", _tls_key, "install tpm2-openssl 1.2 or newer and name its configuration: openssl_conf"),
    ("boot log", _boot_log, "let the agent read it, or name the right file: boot_log"),
    ("clock", _clock, ""),
    ("service", _service, _SERVICE_CURE),
    ("device listener", _device_listener, _SERVICE_CURE),
    ("identity", _identity, "muster-agent enroll --again"),
)
