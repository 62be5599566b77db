"""A virtual device: a software TPM, a measured boot, two slots, an anchor, and the real agent.

Its folder: `device.json` (name), `tpm/` (state), `slots/` (see `lab.slots`), `boot_log.bin`, `ima_log.bin` (where its
kernel has IMA), `ek-*.pem`, `agent/` (the agent's data directory with `agent.toml` and `anchor.json`).
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lab import LabFailure
from lab.firmware import boot_measured
from lab.ima import measure_file, start_ima
from lab.slots import Boot, choose_boot, create_slots
from lab.swtpm import TpmClock, VirtualTpm, VirtualTpmFailure, fresh_tpm
from ota.firmware import parse_image
from provisioning.app.children import kill_child, start_child, stop_child

if TYPE_CHECKING:
    from lab.ekca import EkCa

__all__ = [
    "DeviceSettings",
    "TpmClock",
    "VirtualDevice",
    "VirtualTpm",
    "VirtualTpmFailure",
    "create_device",
    "fresh_tpm",
]

EXIT_REBOOT = 75  # the agent asks for a reboot (EX_TEMPFAIL of sysexits.h)
AGENT_STOP_TIMEOUT_SECONDS = 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class DeviceFailure(LabFailure):
    """A virtual device cannot be made or run; the message is one line."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What the factory writes into a device besides its image: who it is and whom it trusts."""

    name: str
    service: str  # URL of the device listener
    public: str  # URL of the public listener
    anchor: Path | None = None
    openssl_conf: Path | None = None
    build_time: datetime | None = None  # the floor of the device's trusted time; now, if not given
    ima: bool = False  # does its kernel measure files into PCR 10?


def create_device(directory: Path, image: bytes, ek_ca: "EkCa", settings: DeviceSettings) -> dict[str, Path]:
    """Make a device in a new or empty folder: TPM with SRK, both slots, the agent's configuration.

    Returns the PEM files of its EK certificates by kind (`rsa2048`, `ecc384`), read from the TPM's NV.

    Raises: DeviceFailure, VirtualTpmFailure, EkCaFailure, MalformedImage, OSError.
    """
    if _NAME.fullmatch(settings.name) is None:
        raise DeviceFailure(f"{settings.name!r} is not a name of letters, digits and . _ -")
    hardware = parse_image(image).hardware
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise DeviceFailure(f"{directory} is not empty")
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, directory)  # nothing half-made stays
        pems = _make(directory, image, ek_ca, settings, hardware)
        undo.pop_all()
    return pems


def _make(directory: Path, image: bytes, ek_ca: "EkCa", settings: DeviceSettings, hardware: str) -> dict[str, Path]:
    agent = directory / "agent"
    agent.mkdir(mode=0o700)
    if settings.anchor is not None:
        shutil.copyfile(settings.anchor, agent / "anchor.json")
    create_slots(directory / "slots", image)
    ek_ca.make_tpm(directory / "tpm", settings.name)
    with VirtualTpm(directory / "tpm") as tpm:
        tpm.provision_srk()
        pems = _write_ek_certificates(directory, tpm.ek_certificates())
        _write_private(agent / "agent.toml", _agent_toml(settings, hardware, tpm.tcti).encode())
    described = {"name": settings.name, "hardware": hardware, "ima": settings.ima}
    _write_private(directory / "device.json", json.dumps(described).encode())
    return pems


class VirtualDevice:
    """A device made by `create_device`. It ends with this process, even by SIGKILL; use it from the main thread.

    `clock`: where the agent's wall clock starts at every boot (libfaketime); the TPM keeps its own time.
    `agent`: the command in place of `muster-agent run --data-dir …`, for tests of the device itself.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: datetime | None = None,
        agent: Sequence[str | Path] | None = None,
        output: int | IO[bytes] | None = None,
    ) -> None:
        self.directory = directory.resolve()
        if not (self.directory / "device.json").is_file():
            raise DeviceFailure(f"{directory} holds no virtual device; make one with: python -m lab create")
        self._has_ima = bool(json.loads((self.directory / "device.json").read_bytes()).get("ima", False))
        self.tpm = VirtualTpm(self.directory / "tpm")
        self.agent: subprocess.Popen[bytes] | None = None
        self.boot: Boot | None = None
        self._environment = None if clock is None else _fake_clock(os.environ, clock)
        self._command = _agent_command(self.directory / "agent") if agent is None else tuple(agent)
        self._output = output

    @property
    def slots(self) -> Path:
        """The folder of the two slots."""
        return self.directory / "slots"

    @property
    def ima_log(self) -> Path:
        """The kernel's list of what it measured since the boot."""
        return self.directory / "ima_log.bin"

    def run_file(self, path: str, content: bytes) -> None:
        """Something on the device runs or reads this file: IMA measures it. Raises: VirtualTpmFailure."""
        with self.tpm.esapi() as tpm:
            measure_file(tpm, self.ima_log, path, hashlib.sha256(content).digest())

    def boot_firmware(self) -> Boot:
        """Power on as far as the operating system: TPM reset, boot loader, measured boot, both logs; no agent.

        Raises: VirtualTpmFailure, BootFailure.
        """
        if self.tpm.running:
            self.tpm.reset()
        else:
            self.tpm.start()
        boot = choose_boot(self.slots)
        with self.tpm.esapi() as tpm:
            boot_measured(tpm, boot.image, self.directory / "boot_log.bin")
            if self._has_ima:
                start_ima(tpm, self.ima_log)
        self.boot = boot
        return boot

    def power_on(self) -> Boot:
        """Boot the slot that is due and start the agent. Raises: VirtualTpmFailure, BootFailure, DeviceFailure."""
        boot = self.boot_firmware()
        try:
            self.agent = start_child(
                self._command, env=self._environment, stdout=self._output, stderr=self._output, cwd=self.directory
            )
        except OSError as failure:
            raise DeviceFailure(f"the agent cannot be started: {failure}") from failure
        return boot

    def run(self) -> int:
        """Boot, and boot again as often as the agent asks for it. Returns the exit status of the agent that ended.

        An agent that fails while a new slot is being tried is reset by the watchdog, which uses up a try.
        """
        while True:
            boot = self.power_on()
            status = self.wait_for_agent(timeout_seconds=None)
            if status != EXIT_REBOOT and not (boot.is_trial and status != 0):
                return status

    def wait_for_agent(self, timeout_seconds: float | None) -> int:
        """The agent's exit status, once it ended (75: it asks for a reboot). Raises: subprocess.TimeoutExpired."""
        if self.agent is None:
            raise DeviceFailure("the device is off")
        return self.agent.wait(timeout_seconds)

    def power_off(self) -> None:
        """Stop the agent and the TPM in order."""
        if self.agent is not None:
            stop_child(self.agent, AGENT_STOP_TIMEOUT_SECONDS)
            self.agent = None
        self.tpm.stop()

    def power_cut(self) -> None:
        """Everything ends at once; what was not on the disk is lost."""
        if self.agent is not None:
            kill_child(self.agent)
            self.agent = None
        self.tpm.power_cut()


def _agent_command(data_directory: Path) -> tuple[str | Path, ...]:
    # The one installed with this interpreter, whatever PATH says.
    return (Path(sys.executable).with_name("muster-agent"), "run", "--data-dir", data_directory)


def _fake_clock(environment: Mapping[str, str], clock: datetime) -> dict[str, str]:
    # The library and not the `faketime` command: that one forks, and its child would outlive a power cut.
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise DeviceFailure("libfaketime is missing; install the package faketime")
    start = clock.astimezone(UTC).strftime("@%Y-%m-%d %H:%M:%S")
    faked = {"LD_PRELOAD": str(libraries[0]), "FAKETIME": start, "TZ": "UTC", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {**environment, **faked}


def _agent_toml(settings: DeviceSettings, hardware: str, tcti: str) -> str:
    build_time = settings.build_time or datetime.now(UTC)
    values = {
        "service": settings.service,
        "public": settings.public,
        "anchor": "anchor.json",
        "tcti": tcti,
        "serial": settings.name,
        "hardware": hardware,
        "slots": "../slots",
        "boot_log": "../boot_log.bin",
        "ima_log": "../ima_log.bin",
        "build_time": build_time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if settings.openssl_conf is not None:
        values["openssl_conf"] = str(settings.openssl_conf.resolve())
    # A JSON string with ASCII escapes is a TOML basic string.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _write_ek_certificates(directory: Path, certificates: Mapping[str, bytes]) -> dict[str, Path]:
    from cryptography import x509  # noqa: PLC0415  a device that only boots needs none of it
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415  the same

    pems: dict[str, Path] = {}
    for kind, der in certificates.items():
        pems[kind] = directory / f"ek-{kind}.pem"
        pems[kind].write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    return pems


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
