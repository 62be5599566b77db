"""The MQTT broker: its configuration, and the process. It routes bytes and is trusted with nothing else.

Two listeners. Devices come by mutual TLS; the certificate's CN becomes user name and client id, so that nobody takes
over a session by claiming its id, and the access list names topics by it. The service comes by a Unix socket in a
directory that only its user can enter.
"""

import os
import pwd
import shutil
import socket
import subprocess
from base64 import encodebytes
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP
from time import monotonic, sleep

from provisioning.app.children import kill_child, start_child, stop_child
from provisioning.app.tls import CIPHERS_1_2
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.messaging import SERVICE_USER
from provisioning.service_tls import settle
from wire.envelope import MAX_ENVELOPE
from wire.topics import ROOT, down, is_device_id, remedy_down, remedy_up, up

SOCKET = "broker.sock"
PACKET_MOST = MAX_ENVELOPE + 1024
"""Bytes: an envelope, its topic, and MQTT's own fields."""
REMEDY = "remedy"
START_SECONDS = 10.0
STOP_SECONDS = 3.0
LOG_MOST = 10 * 1024 * 1024

DEVICE_ACL = f"pattern write {ROOT}/%u/up\npattern read {ROOT}/%u/down\n"
SERVICE_ACL = f"user {SERVICE_USER}\ntopic read {ROOT}/+/up\ntopic write {ROOT}/+/down\n"
SERVICE_ACL += f"topic read {ROOT}/+/remedy/up\ntopic write {ROOT}/+/remedy/down\n"
"""On the Unix socket everybody but the bridge has no right at all: a session that was taken over to end it (see
`messaging.end_session`) keeps the rights of the listener it was on last, and a `#` that its device subscribed to
would begin to match there."""


@dataclass(frozen=True, slots=True)
class BrokerPlan:
    """What the configuration depends on. `directory` is the broker's own; file names in it are relative to it."""

    directory: Path
    host: str
    port: int
    certificate: Path
    key: Path
    user: str
    connections: int = 10_000


def configuration(plan: BrokerPlan) -> str:
    """mosquitto.conf (mosquitto 2.0). Raises: ConfigurationRefused where a path cannot stand in it.

    No `persistent_client_expiration`: with it, each SIGHUP while a device is offline leaves an entry behind that points
    to its session, also when that is freed (mosquitto 2.0.11, tests/faults/test_broker_memory.py). What waits for an
    offline device is little: the outbox ends its commands.
    """
    for path in (plan.certificate, plan.key):
        if any(character in str(path) for character in "\r\n\0"):
            msg = f"{path!r}: a path with a line break cannot be given to the broker; move the data directory"
            raise ConfigurationRefused(msg)
    return f"""\
per_listener_settings true
user {plan.user}
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
sys_interval 0
persistence true
persistence_location ./
persistence_file sessions.db
autosave_interval 60
retain_available false
max_packet_size {PACKET_MOST}
max_inflight_messages 64
max_queued_messages 10000
max_queued_bytes {64 * 1024 * 1024}
memory_limit {1024 * 1024 * 1024}
set_tcp_nodelay true

listener 0 {SOCKET}
allow_anonymous true
allow_zero_length_clientid false
acl_file service.acl
max_topic_alias 0

listener {plan.port} {plan.host}
allow_anonymous false
allow_zero_length_clientid false
acl_file device.acl
max_connections {plan.connections}
max_topic_alias 0
cafile authorities.pem
crlfile crl.pem
certfile {plan.certificate}
keyfile {plan.key}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2
ciphers {CIPHERS_1_2}
"""


def broker_directory(directory: DataDirectory) -> Path:
    """Where the broker's files and socket are."""
    return directory.run / "broker"


def broker_socket(directory: DataDirectory) -> Path:
    """The service's own way in."""
    return broker_directory(directory) / SOCKET


def crl_files(directory: DataDirectory) -> list[Path]:
    """The CRLs as they were signed last (DER). Who replaces one has the broker refuse what it lists."""
    return sorted(directory.ca.glob("*.crl"))


def device_rights(denied: str) -> str:
    """The access list for devices. Who is revoked and in no CRL yet may connect, and do nothing.

    A line is a device, or a device and `remedy`: one in quarantine, that has a certificate of quarantine. It may say
    and hear what leads back, by topics of their own, and nothing else.
    """
    rights = [DEVICE_ACL]
    for line in denied.splitlines():
        name, _, what = line.partition(" ")
        if is_device_id(name) and what in ("", REMEDY):
            rights.append(f"\nuser {name}\n" + (_remedial(name) if what else "topic deny #\n"))
    return "".join(rights)


def _remedial(name: str) -> str:
    return (
        f"topic deny {up(name)}\ntopic deny {down(name)}\n"
        f"topic write {remedy_up(name)}\ntopic read {remedy_down(name)}\n"
    )


def crl_pem(der: bytes) -> bytes:
    """A CRL in PEM (RFC 7468 section 6): mosquitto reads no other form."""
    return b"-----BEGIN X509 CRL-----\n" + encodebytes(der) + b"-----END X509 CRL-----\n"


def replace(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all; mode 0600."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class Broker:
    """The broker as a child of this process; from the main thread only."""

    def __init__(self, directory: DataDirectory, config: Config, port: int) -> None:
        self._directory = directory
        self._plan = BrokerPlan(
            broker_directory(directory),
            config.listen.host,
            port,
            directory.tls / "service.pem",
            directory.tls / "service.key",
            pwd.getpwuid(os.geteuid()).pw_name,
        )
        self._child: subprocess.Popen[bytes] | None = None
        self._seen: tuple[int | str, ...] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; not ready yet: `wait_ready`. Raises: ConfigurationRefused, OSError."""
        self._write_files()
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            msg = "mosquitto: not found; install it: apt install mosquitto"
            raise ConfigurationRefused(msg)
        log = self._plan.directory / "mosquitto.log"
        mode = "wb" if log.exists() and log.stat().st_size > LOG_MOST else "ab"
        with log.open(mode) as stream:
            self._child = start_child(
                [program, "-c", "mosquitto.conf"], cwd=self._plan.directory, stdout=stream, stderr=stream
            )
        return self._child

    def wait_ready(self) -> None:
        """Wait until both listeners answer. Raises: ConfigurationRefused with the broker's last words."""
        end = monotonic() + START_SECONDS
        while self._child is not None and self._child.poll() is None and monotonic() < end:
            if _answers(self._plan.host, self._plan.port) and broker_socket(self._directory).exists():
                return
            sleep(0.02)
        self.stop()
        words = (self._plan.directory / "mosquitto.log").read_text(errors="replace").strip().splitlines()[-1:]
        msg = f"the broker does not start on {self._plan.host}:{self._plan.port}: {''.join(words)}"
        raise ConfigurationRefused(msg)

    def reload_if_changed(self) -> bool:
        """Have it read CAs, CRLs, rights and certificate again where one is another. Sessions that are open stay open.

        mosquitto 2.0 makes a new TLS context on SIGHUP: a CA that is gone from the file is trusted no more.
        """
        state = self._state()
        if self._child is None or state == self._seen:
            return False
        self._write_trusted()
        self._write_revoked()
        self._seen = state
        self._child.send_signal(SIGHUP)
        return True

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            stop_child(self._child, STOP_SECONDS)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._child is not None:
            kill_child(self._child)

    def _state(self) -> tuple[int | str, ...]:
        # The key is replaced before its certificate.
        trusted = self._directory.ca / "trusted.pem"
        files = (trusted, *crl_files(self._directory), self._directory.denied, self._plan.certificate)
        return tuple(number for path in files for number in _identity(path))

    def _write_trusted(self) -> None:
        trusted = (self._directory.ca / "trusted.pem").read_bytes()
        replace(self._plan.directory / "authorities.pem", trusted)

    def _write_revoked(self) -> None:
        lists = b"".join(crl_pem(path.read_bytes()) for path in crl_files(self._directory))
        replace(self._plan.directory / "crl.pem", lists)
        denied = self._directory.denied
        rights = device_rights(denied.read_text("ascii", "replace") if denied.is_file() else "")
        replace(self._plan.directory / "device.acl", rights.encode())

    def _write_files(self) -> None:
        own = self._plan.directory
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        own.chmod(0o700)
        ca = self._directory.ca
        settle(self._directory.tls)
        for needed in (ca / "trusted.pem", ca / "root.pem", ca / "issuing.crl", self._plan.certificate, self._plan.key):
            if not needed.is_file():
                msg = f"{needed}: is missing; make a data directory: muster init"
                raise ConfigurationRefused(msg)
        state = self._state()
        self._write_trusted()
        self._write_revoked()
        replace(own / "service.acl", SERVICE_ACL.encode())
        replace(own / "mosquitto.conf", configuration(self._plan).encode())
        self._seen = state


def _identity(path: Path) -> tuple[int | str, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (path.name, 0, 0)
    return (path.name, status.st_ino, status.st_mtime_ns)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False
