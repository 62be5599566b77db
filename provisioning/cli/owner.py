"""The owner's commands that make and run an installation."""

import asyncio
import fcntl
import ipaddress
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from provisioning.cli.failures import Failed, Mistaken, naming
from provisioning.cli.output import DataDir, Format, Output, directory_of, example, note, show
from provisioning.config import ConfigurationRefused, DataDirectory, Listen, load_config

PORT_MOST = 65535
_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  named so that it is not told to devices as an address
_NAMES = ("device", "operator", "public", "mqtt")

ServiceName = Annotated[str, typer.Option(metavar="N", help="The DNS name that devices know the service by.")]
Host = Annotated[str, typer.Option(metavar="H", help="The address to listen on.")]
Advertised = Annotated[
    str | None, typer.Option(metavar="H", help="The address that devices are told.  [default: --host]")
]
PortsText = Annotated[
    str,
    typer.Option(
        metavar="default|free|D,O,P,M",
        help="The standard ports (a free one where one is held); free ones; or device, operator, public, MQTT.",
    ),
]


Migrate = Annotated[bool, typer.Option("--migrate", help="Bring an existing database to this program's schema.")]
RenewTls = Annotated[bool, typer.Option("--renew-tls", help="Make the existing listeners a new key and certificate.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    app.command(epilog=example("muster init --service-name muster.example.com --host 0.0.0.0"))(init)
    app.command(epilog=example("muster serve --data-dir /var/lib/muster"))(serve)


def init(
    *,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    service_name: ServiceName = "muster.internal",
    host: Host = "127.0.0.1",
    advertised_host: Advertised = None,
    ports: PortsText = "default",
    migrate: Migrate = False,
    renew_tls: RenewTls = False,
) -> None:
    """Make a data directory. Tokens, CA, trust repository, database, the owner's token."""
    directory = directory_of(data_dir)
    if migrate or renew_tls:
        _mend(directory, migrate=migrate, renew_tls=renew_tls)
        show(output, {"data_dir": str(directory.root), "migrated": migrate, "tls_renewed": renew_tls})
        return
    host = host.lower()
    advertised = (advertised_host or (socket.gethostname() if host in _EVERYWHERE else host)).lower()
    for option, name in (("--host", host), ("--advertised-host", advertised)):
        if not _is_host(name):
            raise Mistaken(f"{name!r} is no host name or address; correct {option}")
    if _DNS_NAME.fullmatch(service_name) is None:
        raise Mistaken(f"{service_name!r} is no DNS name in lower case; correct --service-name")
    from provisioning.app.installation import Installation, initialize

    numbers = _ports(ports, host)
    with naming(directory.root):
        initialize(directory, Installation(service_name, host, advertised, numbers))
    taken = dict(zip(_NAMES, numbers, strict=True))
    show(
        output,
        {
            "data_dir": str(directory.root),
            "service_name": service_name,
            "host": host,
            "advertised_host": advertised,
            **({"ports": taken} if output is Format.JSON else {f"{name}_port": port for name, port in taken.items()}),
            "root_certificate": str(directory.ca / "root.pem"),
            "anchor": str(directory.anchor),
        },
    )
    note(f"next: muster serve{_option(directory)}")


def serve(data_dir: DataDir = None) -> None:
    """Run the service until Ctrl-C. Broker, device, operator and public listeners."""
    from provisioning.app.logging import configure_logging
    from provisioning.app.supervisor import supervise

    directory = directory_of(data_dir)
    configure_logging()
    try:
        status = supervise(directory)
    except ConfigurationRefused:
        _verify_database(directory)  # a worker has said so among its log lines; here it is the one line
        raise
    if status:
        raise typer.Exit(status)


def _verify_database(directory: DataDirectory) -> None:
    """Is it there, and of this program's schema? Raises: ConfigurationRefused, OSError."""
    from provisioning.db.schema import verify_schema

    path = directory.database(load_config(directory))
    path.stat()
    verify_schema(path)


def _mend(directory: DataDirectory, *, migrate: bool, renew_tls: bool) -> None:
    """What an existing installation needs now and then. Raises: ConfigurationRefused, HsmError."""
    from alembic.util import CommandError

    from provisioning.app.compose import compose
    from provisioning.db.schema import migrate as migrate_database
    from provisioning.service_tls import renew_service_certificate

    config = load_config(directory)
    if migrate:
        with _stopped(directory):
            directory.database(config).stat()
            try:
                migrate_database(directory.database(config))
            except CommandError as error:
                why = f"{directory.database(config)}: cannot be migrated: {error}"
                raise Failed(f"{why}; is it of a newer Muster? update this program") from error
        note(f"{directory.database(config)}: is of this program's schema")
    if renew_tls:
        with compose(directory, config) as service:
            asyncio.run(renew_service_certificate(service))
        note(f"{directory.tls / 'service.pem'}: is new; the broker takes it at its next start: muster serve")


@contextmanager
def _stopped(directory: DataDirectory) -> Iterator[None]:
    """No service runs meanwhile: it holds this lock. Raises: Failed."""
    directory.run.mkdir(mode=0o700, exist_ok=True)
    with (directory.run / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failed(f"{directory.root}: a muster serve runs on it; stop it first") from error
        yield


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return _DNS_NAME.fullmatch(name) is not None
    return True


def _ports(text: str, host: str) -> tuple[int, int, int, int]:
    from provisioning.app.installation import free_port

    listen = Listen()
    standard = (listen.device_port, listen.operator_port, listen.public_port, listen.mqtt_port)
    if text in ("default", "free"):
        found: list[int] = []
        for name, wanted in zip(_NAMES, standard, strict=True):
            port = free_port(host, wanted if text == "default" else None)
            while port in found:
                port = free_port(host, None)
            if text == "default" and port != wanted:
                note(f"port {wanted} ({name}) is held by another program; {port} is used")
            found.append(port)
        return (found[0], found[1], found[2], found[3])
    parts = text.split(",")
    if len(parts) != len(_NAMES) or not all(
        part.isascii() and part.isdigit() and len(part) <= len("65535") for part in parts
    ):
        raise Mistaken(f"--ports {text!r}: is neither default, nor free, nor four numbers: device,operator,public,mqtt")
    numbers = (int(parts[0]), int(parts[1]), int(parts[2]), int(parts[3]))
    named = [number for number in numbers if number]
    if max(numbers) > PORT_MOST or len(set(named)) != len(named):
        raise Mistaken(f"--ports {text!r}: four different numbers from 0 (a free one at each start) to {PORT_MOST}")
    return numbers


def _option(directory: DataDirectory) -> str:
    return "" if directory == directory_of(None) else f" --data-dir {directory.root}"
