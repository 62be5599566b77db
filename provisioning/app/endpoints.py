"""Where the listeners are: decided once, by the supervisor, and told to everybody else in a file."""

import errno
import socket
from dataclasses import dataclass

from provisioning.config import Config, ConfigurationRefused, DataDirectory


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports as they are bound."""

    device: int
    operator: int
    public: int
    mqtt: int


@dataclass(frozen=True, slots=True)
class Endpoints:
    """`run/endpoints.json`: URLs for clients. It is there when and only when the service is ready."""

    device: str
    operator: str
    public: str
    mqtt: str


def endpoints_of(config: Config, ports: Ports) -> Endpoints:
    """The URLs under which clients reach these ports."""
    host = config.listen.advertised_host
    shown = f"[{host}]" if ":" in host else host
    return Endpoints(
        f"https://{shown}:{ports.device}",
        f"https://{shown}:{ports.operator}",
        f"http://{shown}:{ports.public}",
        f"mqtts://{shown}:{ports.mqtt}",
    )


def bind_shared(host: str, port: int) -> socket.socket:
    """A socket that shares its port with the other workers' (SO_REUSEPORT), bound but not listening."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def reserve(config: Config, directory: DataDirectory) -> tuple[Ports, list[socket.socket]]:
    """Take the ports; 0 takes a free one. The sockets hold them until they are closed.

    Raises: ConfigurationRefused, in one line that names port and cure.
    """
    listen = config.listen
    held: list[socket.socket] = []
    numbers: dict[str, int] = {}
    for name in ("device", "operator", "public"):
        held.append(_reserve_one(listen.host, getattr(listen, f"{name}_port"), name, directory))
        numbers[name] = held[-1].getsockname()[1]
    # The broker binds its port itself and shares it with nobody: it can be chosen, but not held.
    with _reserve_one(listen.host, listen.mqtt_port, "mqtt", directory) as chosen:
        numbers["mqtt"] = chosen.getsockname()[1]
    return Ports(**numbers), held


def _reserve_one(host: str, port: int, name: str, directory: DataDirectory) -> socket.socket:
    try:
        if port:
            # First without SO_REUSEPORT: otherwise a second service of the same user would quietly share the port.
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        return bind_shared(host, port)
    except OSError as error:
        raise ConfigurationRefused(_why(error, host, port, name, directory)) from error


def _why(error: OSError, host: str, port: int, name: str, directory: DataDirectory) -> str:
    cure = f"set listen.{name}_port in {directory.config}"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is held by another program; stop that, or {cure} (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs root; {cure} to one above 1023"
    return f"cannot listen on {host}:{port} ({error.strerror or error}); {cure}, or listen.host"
