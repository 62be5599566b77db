"""One worker: the listeners, and the duties where it holds their lease. Started by the supervisor, as a child."""

import argparse
import asyncio
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import structlog

from hsm.errors import TokenUnavailable
from provisioning import duties
from provisioning.access.rates import Rate, RateTable
from provisioning.app.broker import broker_socket
from provisioning.app.compose import compose
from provisioning.app.endpoints import Ports, bind_shared
from provisioning.app.logging import configure_logging
from provisioning.app.partner import PartnerLost, settle_memory
from provisioning.app.signatures import keep_counting
from provisioning.app.supervisor import CANNOT_START
from provisioning.app.tls import Contexts
from provisioning.authorities import State
from provisioning.config import ConfigurationRefused, DataDirectory, load_config
from provisioning.http import device, operator, public
from provisioning.http.exchange import Dispatcher, Route
from provisioning.http.listener import Listener
from provisioning.messaging import Bridge
from provisioning.ocsp import Responder
from provisioning.refusals import Refusal, StorageUnavailable
from provisioning.service import Service
from wire.codec import decode

GRACE_SECONDS = 3.0
FOLLOW_SECONDS = 1.0
PORTS_MOST = 1024

_log = structlog.get_logger()


async def serve(service: Service, ports: Ports, number: int, ready: int | None) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    listeners, contexts = start_listeners(service, ports)
    host = f"{socket.gethostname()}:{service.directory.root}/{number}"
    socket_path = broker_socket(service.directory)
    carried_out = duties.hold(service, host, lambda receive: Bridge(socket_path, receive))
    background: list[asyncio.Task[object]] = [
        asyncio.create_task(carried_out, name="duties"),
        asyncio.create_task(keep_counting(service), name="signatures"),
        asyncio.create_task(_follow(service, contexts), name="authorities"),
    ]
    if ready is not None:
        os.write(ready, b"+")
        os.close(ready)
    stopped: asyncio.Task[object] = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *background], return_when=asyncio.FIRST_COMPLETED)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, *(listener.stop(GRACE_SECONDS) for listener in listeners), return_exceptions=True)
    for task in done - {stopped}:
        task.result()  # a background task ends only by a defect: let it end the worker, with its traceback


def start_listeners(service: Service, ports: Ports) -> tuple[list[Listener], Contexts]:
    """The three listeners on their ports, and the TLS contexts of two of them. Raises: OSError, ssl.SSLError."""
    limits, directory, host = service.config.limits, service.directory, service.config.listen.host
    contexts = Contexts(directory.tls, service.authorities)
    in_flight = device.InFlight(limits.in_flight_enrollments)
    wanted: list[tuple[str, int, list[Route], str]] = [
        ("device", ports.device, device.routes(in_flight), "ClientCertificate"),
        ("operator", ports.operator, operator.routes(), "Bearer"),
        ("public", ports.public, public.routes(Responder(service)), "None"),
    ]
    listeners = []
    for name, port, routes, challenge in wanted:
        rate = limits.requests_per_second_per_address
        rates = RateTable(Rate(rate, rate * 2))
        dispatcher = Dispatcher(name, service, routes, rates, challenge=challenge)
        listener = Listener(name, dispatcher, limits=limits, rates=rates, tls=contexts.current.get(name))
        listener.start(bind_shared(host, port))
        listeners.append(listener)
        if name in contexts.current:
            contexts.serve(name, listener.use)
    return listeners, contexts


async def _follow(service: Service, contexts: Contexts) -> None:
    """What another process changed, a second later at most: who signs, which CAs are trusted, the TLS certificate.

    Raises: ConfigurationRefused, where somebody deleted or replaced the database.
    """
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        if not service.ledger.is_there():
            gone = StorageUnavailable(expected="the database file that was opened", actual="none, or another one")
            msg = f"{service.config.database} was deleted or replaced while it was in use: stop first, then restore"
            raise ConfigurationRefused(msg) from gone
        try:
            if await service.authorities.refresh(service.store):
                _log.info(
                    "authorities.changed", active=[one.name for one in service.authorities if one.state is State.ACTIVE]
                )
            if await service.profiles.refresh(service.store):
                _log.info("profiles.changed")
            if await service.ek_roots.refresh(service.store):
                _log.info("ek_roots.changed", certificates=len(service.ek_roots.store))
            if contexts.reload():
                _log.info("tls.reloaded")
        except Refusal as refusal:
            _log.warning("authorities.not_read", code=refusal.code, actual=refusal.actual)
        except OSError as error:  # ssl.SSLError is one: a pair that is being replaced does not fit for a moment
            _log.warning("tls.not_reloaded", why=str(error))


def main(argv: list[str] | None = None) -> int:
    """The child's entry. 0: asked to stop; 78: starting it again is of no use; 1: it may be."""
    parser = argparse.ArgumentParser(description="A worker of muster serve; not for people.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--ports", required=True)
    parser.add_argument("--ready-descriptor", type=int)
    given = parser.parse_args(argv)
    os.umask(0o077)
    configure_logging()
    structlog.contextvars.bind_contextvars(worker=given.number)
    _raise_descriptor_limit()
    core = stay_on_one_core(given.number)
    directory = DataDirectory(given.directory)
    try:
        ports = decode(Ports, given.ports.encode(), limit=PORTS_MOST)
        bound = {"mqtt_port": ports.mqtt, "public_port": ports.public}
        with compose(directory, load_config(directory), **bound, partners=True, core=core) as service:
            settle_memory()
            asyncio.run(serve(service, ports, given.number, given.ready_descriptor))
    except ConfigurationRefused as refused:
        _log.error("worker.refused", why=str(refused))
        return 1 if isinstance(refused.__cause__, TokenUnavailable | StorageUnavailable | PartnerLost) else CANNOT_START
    return 0


def stay_on_one_core(number: int) -> int | None:
    """All threads of this process on one core, the next worker's on the next. Its partners' core; None: the same.

    One interpreter does one thing at a time. Handed over from core to core it waits for their caches: staying on one
    core gave a third more enrollments a second and took a quarter of the processor time away.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return None
    mine = os.getppid() + number  # another service on this machine most likely begins elsewhere
    os.sched_setaffinity(0, {cores[mine % len(cores)]})
    return cores[(mine + 1) % len(cores)]


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # no more than the system gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
