"""The agent on its device: how long `import device_agent.agent` takes, and what it holds once it is connected.

`limit` is the same with nothing but the libraries it cannot do without: TPM, TLS, MQTT, X.509.
"""

import csv
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from cryptography import x509

from benchmarks.stack import BIN, STATION, Stack, command, running_stack
from lab.light_fleet import policy_text
from provisioning.app.children import start_child, stop_child

RUNS = 9
CONNECT_SECONDS = 60
SETTLED_SECONDS = 30
SWTPM_MANUFACTURER = "id:00001014"
MODEL = "gateway"
LIBRARIES = "import tpm2_pytss, urllib3, paho.mqtt.client, ssl, cryptography.x509"


def import_time() -> Iterator[dict[str, str | float]]:
    """One figure: name, value, unit, limit, ratio."""
    value, limit = _import_milliseconds()
    yield _figure("agent_import", value, "ms", limit)


def resident() -> Iterator[dict[str, str | float]]:
    """One figure: name, value, unit, limit, ratio."""
    value, limit = _resident_megabytes()
    yield _figure("agent_resident", value, "MB", limit)


def _figure(name: str, value: float, unit: str, limit: float) -> dict[str, str | float]:
    return {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "limit": round(limit, 1),
        "ratio": round(value / limit, 2),
    }


def _import_milliseconds() -> tuple[float, float]:
    """Medians, whole processes, warm; the two in turn."""
    taken: dict[str, list[float]] = {"import device_agent.agent": [], LIBRARIES: []}
    for statement in taken:
        command(sys.executable, "-c", statement)
    for _ in range(RUNS):
        for statement, times in taken.items():
            start = time.perf_counter()
            command(sys.executable, "-c", statement)
            times.append((time.perf_counter() - start) * 1000)
    value, limit = (median(times) for times in taken.values())
    return value, limit


def _resident_megabytes() -> tuple[float, float]:
    """RSS of a real agent with a software TPM, half a minute after it connected by MQTT; and of the libraries."""
    with running_stack() as stack:
        device = _make_device(stack)
        log = stack.directory.parent / "device.log"
        with log.open("wb") as output:
            boot = start_child([BIN / "python", "-m", "lab", "boot", device], stdout=output, stderr=output)
        try:
            _wait_for(" INFO connected ", log, boot)
            time.sleep(SETTLED_SECONDS)
            value = _resident(_agent_of(device))
        finally:
            stop_child(boot, 20)
    with tempfile.TemporaryFile() as output:
        alone = subprocess.Popen(
            [sys.executable, "-c", f"{LIBRARIES}; print(1, flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        )
        with alone:
            assert alone.stdout is not None
            alone.stdout.readline()
            limit = _resident(alone.pid)
    return value, limit


def _make_device(stack: Stack) -> Path:
    folder = stack.directory.parent
    image, device = folder / "image.bin", folder / "device"
    command(BIN / "python", "-m", "lab", "image", image, "--hardware", MODEL)
    listeners = ("--service", stack.device, "--public", stack.public, "--anchor", stack.directory / "anchor.json")
    options = ("--name", "bench-0", "--ek-ca", folder / "ek-ca", *listeners)
    openssl = Path(".tools/openssl-tpm2.cnf").resolve()
    configured = ("--openssl-conf", openssl) if openssl.is_file() else ()
    command(BIN / "python", "-m", "lab", "create", device, "--image", image, *options, *configured)
    rows = folder / "device.csv"
    with rows.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("serial", "model", "ek_certificate"), ("bench-0", MODEL, str(device / "ek-rsa2048.pem"))]
        )
    root = x509.load_pem_x509_certificate((folder / "ek-ca" / "root.pem").read_bytes())
    policy = folder / "policy.toml"
    policy.write_text(policy_text(MODEL, root, SWTPM_MANUFACTURER))
    stack.muster("policy", "set", policy)
    stack.muster("factory", "register", rows, "--station", STATION)
    return device


def _wait_for(text: str, log: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if text in log.read_text(errors="replace"):
            return
        time.sleep(0.2)
    told = log.read_text(errors="replace").strip().splitlines()
    raise RuntimeError(f"the agent did not connect: {told[-1] if told else 'it said nothing'}")


def _agent_of(device: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(part.endswith(b"muster-agent") for part in line) and str(device / "agent").encode() in line:
            return int(entry.name)
    raise RuntimeError("no agent is running")


def _resident(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"process {pid} has no memory")
    return int(found[1]) * 1024 / 1e6
