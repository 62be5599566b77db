"""`muster-agent`: the shell around everything else. It owns the environment, the clock, randomness and the exit status.

OpenSSL's settings must stand in the environment before `ssl` or `hashlib` is imported, so this module imports neither;
what does is imported inside the commands.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from device_agent import log
from device_agent.config import AgentConfig, ConfigMistake, load_config
from device_agent.environment import openssl_settings
from device_agent.host import Host

if TYPE_CHECKING:
    from device_agent.device import Device
    from device_agent.identity import Pair

OK, REFUSED, USAGE, UNREACHABLE, REBOOT = 0, 1, 2, 3, 75
ENROLL_ATTEMPTS = 3

_DESCRIPTION = "The agent of a Muster device: attests its TPM, keeps its certificate fresh, updates its software."
_EPILOG = """\
example:
  muster-agent doctor --data-dir /etc/muster-agent
  muster-agent enroll --data-dir /etc/muster-agent -o json

exit status: 0 done, 1 refused or a check failed, 2 usage or configuration, 3 out of reach, 75 wants a reboot
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status."""
    chosen = _parser().parse_args(arguments)
    log.configure(verbose=chosen.verbose)
    try:
        config = load_config(chosen.data_dir)
        _set_up_openssl(config)
        command: Callable[[AgentConfig, argparse.Namespace], int] = _COMMANDS[chosen.command]
        status = command(config, chosen)
        sys.stdout.flush()
        return status
    except ConfigMistake as mistake:
        return _fail(USAGE, mistake)
    except BrokenPipeError:  # the reader had enough; nor is anything more written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except OSError as error:
        return _fail(REFUSED, f"{error.filename or 'system'}: {error.strerror or error}")


def _run(config: AgentConfig, _: argparse.Namespace) -> int:
    from device_agent.agent import Agent, Ended

    with _stoppable() as stop, _opened(config, stop) as device:
        ended = Agent(device, stop).run()
    if ended is Ended.REBOOT:
        log.event("reboot-requested")
        return REBOOT
    return OK if ended is Ended.STOPPED else REFUSED


def _enroll(config: AgentConfig, chosen: argparse.Namespace) -> int:
    from device_agent.enroll import AttemptFailure, Stopped, enroll_until_done, exit_status

    with _stoppable() as stop, _opened(config, stop) as device:
        current = device.identity.current()
        if current is not None and not chosen.again and _counts(device, current):
            _note(f"enrolled already as {current.details.device_id}; --again enrolls once more")
            return _show(chosen, _identity_lines(device))
        try:
            enroll_until_done(device, attempts=None if chosen.wait else ENROLL_ATTEMPTS)
        except Stopped:
            return REFUSED
        except AttemptFailure as failure:
            status, text = exit_status(failure)
            return _fail(status, text)
        return _show(chosen, _identity_lines(device))


def _counts(device: "Device", current: "Pair") -> bool:
    """Is the certificate still good, and by a CA that the trust bundle names? An unset clock is set first.

    Out of reach of the service what is known counts: nothing better can be had.
    """
    from device_agent.device import is_clock_unset, trust_at_hand
    from device_agent.enroll import AttemptFailure
    from device_agent.presence import is_orphan

    trust = device.trust.current()
    if is_clock_unset(device):
        try:
            trust = trust_at_hand(device)
        except AttemptFailure as failure:
            _note(f"the time is not known: {failure}")
    ended = device.now() >= current.certificate.not_valid_after_utc
    return not ended and (trust is None or not is_orphan(current, trust))


def _status(config: AgentConfig, chosen: argparse.Namespace) -> int:
    from device_agent.device import open_device
    from device_agent.state import StateDamaged
    from device_agent.status import status_of
    from ota.refusals import UpdateRefused

    try:
        return _show(chosen, status_of(open_device(config, _host(threading.Event()))))
    except (StateDamaged, UpdateRefused) as error:
        return _fail(REFUSED, error)


def _doctor(config: AgentConfig, chosen: argparse.Namespace) -> int:
    from device_agent.doctor import examine

    findings = examine(config, _host(threading.Event()))
    if chosen.output == "json":
        _print_json([{"check": one.check, "ok": one.ok, "says": one.says, "cure": one.cure} for one in findings])
    else:
        for one in findings:
            print(f"{'ok  ' if one.ok else 'FAIL'}  {one.check:<22}{one.says}")
            if not one.ok and one.cure:
                print(f"      {'':<22}→ {one.cure}")
    return OK if all(one.ok for one in findings) else REFUSED


_COMMANDS = {"run": _run, "enroll": _enroll, "status": _status, "doctor": _doctor}


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    default = os.environ.get("MUSTER_AGENT_DATA_DIR") or os.environ.get("MUSTER_DATA_DIR") or ".muster-agent"
    shared.add_argument(
        "--data-dir",
        type=Path,
        default=Path(default),
        help="folder with agent.toml (MUSTER_AGENT_DATA_DIR, MUSTER_DATA_DIR; now %(default)s)",
    )
    shared.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: %(default)s")
    shared.add_argument("-v", "--verbose", action="store_true", help="more events on stderr")
    parser = argparse.ArgumentParser(
        "muster-agent", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|enroll|status|doctor")

    def add(name: str, does: str, example: str) -> argparse.ArgumentParser:
        text = f"example:\n  muster-agent {name} --data-dir /etc/muster-agent{example}\n"
        shape = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(
            name, parents=[shared], help=does, description=f"{does}.", epilog=text, formatter_class=shape
        )

    add("run", "enroll if needed, then stay connected until stopped", "")
    enroll = add("enroll", "get the device's certificate and end", " -o json")
    enroll.add_argument("--again", action="store_true", help="although there is a valid certificate")
    enroll.add_argument("--wait", action="store_true", help="do not give up while the service may still say yes")
    add("status", "identity, dates, trust, slot; asks nobody", " -o json")
    add("doctor", "examine TPM, TLS key, anchor, clock, service, files", "")
    return parser


def _set_up_openssl(config: AgentConfig) -> None:
    settings = openssl_settings(config, os.environ)
    late = [name for name in ("_ssl", "_hashlib") if name in sys.modules]
    if late and any(os.environ.get(name) != value for name, value in settings.items()):
        raise ConfigMistake(f"{late[0]} was imported before OpenSSL could be configured: start muster-agent by itself")
    os.environ.update(settings)


@contextmanager
def _opened(config: AgentConfig, stop: threading.Event) -> Iterator["Device"]:
    """The device, for this process alone."""
    from device_agent.device import open_device
    from device_agent.lock import AlreadyRunning, hold
    from device_agent.state import StateDamaged, private_folder
    from ota.refusals import UpdateRefused

    private_folder(config.state_dir)
    try:
        with hold(config.state_dir / "agent.lock"):
            device = open_device(config, _host(stop))
            device.identity.sweep()
            yield device
    except (AlreadyRunning, StateDamaged, UpdateRefused) as error:
        raise SystemExit(_fail(REFUSED, error)) from error


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    yield stop


def _host(stop: threading.Event) -> Host:
    return Host(
        system_clock=lambda: datetime.now(UTC),
        monotonic=time.monotonic,
        entropy=os.urandom,
        jitter=random.SystemRandom().uniform,
        pause=stop.wait,
        trim=_trim,
    )


def _trim() -> None:
    """Importing and verifying metadata leave some megabytes of free heap, which glibc keeps unless it is asked."""
    import ctypes
    import gc

    gc.collect()
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def _identity_lines(device: "Device") -> dict[str, object]:
    from device_agent.status import identity_of

    return identity_of(device.identity.current())


def _show(chosen: argparse.Namespace, values: dict[str, object]) -> int:
    if chosen.output == "json":
        _print_json(values)
    else:
        width = max(map(len, values), default=0) + 2
        for key, value in values.items():
            print(f"{key.replace('_', ' '):<{width}}{'-' if value is None else value}")
    return OK


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, default=str))


def _note(text: object) -> None:
    print(f"muster-agent: {text}", file=sys.stderr)


def _fail(status: int, text: object) -> int:
    _note(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
