"""A data directory: made by a key ceremony in a folder beside, then put in place at once. `muster init` is one.

The folder beside has one name, so that a ceremony that was killed is found by the next one: what lies in it was never
an installation and goes away; keys that it may have made in tokens that were there before are named.
"""

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from hsm.errors import HsmError
from ota.files import replace_file
from provisioning import crls
from provisioning.access import Role as OperatorRole
from provisioning.app.ceremony import Begun, Done, carry_out, go_on, make_request
from provisioning.app.ceremony_answers import Answers, IssuingAnswers, RootAnswers
from provisioning.app.ceremony_plan import ISSUING_KEY, Ceremony, hosts_of, plan
from provisioning.app.ceremony_state import Journal, Waiting, read_journal, read_waiting, write_state
from provisioning.app.ceremony_tokens import destroy_keys
from provisioning.app.ceremony_transcript import digests, key_sha256
from provisioning.app.compose import clock, compose, open_database
from provisioning.app.configuration import configuration_of, configuration_text
from provisioning.app.credentials import hash_token
from provisioning.authorities import ISSUING, ROOT, write_files
from provisioning.config import (
    DEMO_MARKER,
    UP_MARKER,
    Config,
    ConfigurationRefused,
    DataDirectory,
    parse_config,
)
from provisioning.db import authorities, devices, enrollments, leaves, revocations
from provisioning.db.schema import migrate
from provisioning.issuance.outside import OutsideAuthority
from provisioning.issuance.profile import device_uri
from provisioning.journal import leaf
from provisioning.rollover import bundles
from provisioning.service import Service
from provisioning.service_tls import renew_service_certificate

REQUEST_NAME = "issuing.csr"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Installation:
    """What the caller of `muster init` decides."""

    service_name: str
    host: str
    advertised_host: str
    ports: tuple[int, int, int, int]
    """Device, operator, public, MQTT."""
    settings: str = ""
    """More lines of `muster.toml`."""


def initialize(directory: DataDirectory, wanted: Installation) -> None:
    """Make an installation by the ceremony with default answers; where a step fails nothing is left behind.

    Folders of the demo and of `muster simulate --up` that stand in the directory already stay there.

    Raises: ConfigurationRefused, HsmError, OSError.
    """
    ceremony = plan(Answers(wanted.service_name, wanted.host, wanted.advertised_host, wanted.ports))
    days = parse_config(configuration_text(ceremony, wanted.settings), str(directory.config)).lifetimes
    root = RootAnswers(days=days.root_days, crl_days=days.root_crl_days)
    issuing = IssuingAnswers(days=days.issuing_days)
    ceremony = plan(replace(ceremony.answers, root=root, issuing=issuing))
    install(directory, ceremony, Begun(clock(), ("muster init",)), settings=wanted.settings)


def install(directory: DataDirectory, ceremony: Ceremony, begun: Begun, *, settings: str = "") -> Done:
    """Carry the ceremony out: tokens, keys, CA, and the installation that serves with them.

    `settings` are more lines of `muster.toml`. Raises: ConfigurationRefused, HsmError, OSError.
    """

    def fill(made: DataDirectory) -> Done:
        text = configuration_text(ceremony, settings)
        config = parse_config(text, str(made.config))
        done = carry_out(made, ceremony, config, begun, clock())
        with _keys_destroyed_on_failure(ceremony, config):
            _put_to_use(made, config, text, done)
        return done

    return _built(directory, ceremony, begun, fill)


def request(directory: DataDirectory, ceremony: Ceremony, begun: Begun) -> Path:
    """The ceremony up to the request for the outside CA, whose file is returned. It then waits for `complete`.

    Raises: ConfigurationRefused, HsmError, OSError.
    """

    def fill(made: DataDirectory) -> None:
        config = configuration_of(ceremony, str(made.config))
        csr, keys = make_request(made, ceremony, config)
        with _keys_destroyed_on_failure(ceremony, config):
            replace_file(made.root / REQUEST_NAME, csr)
            write_state(made.ceremony, Waiting(ceremony.answers, begun.at.replace(microsecond=0), begun.commands, keys))

    _built(directory, ceremony, begun, fill)
    return directory.root / REQUEST_NAME


def waiting(directory: DataDirectory) -> tuple[Ceremony, Waiting]:
    """The ceremony that waits here for an outside CA. Raises: ConfigurationRefused."""
    _restore(directory)
    state = None if directory.config.exists() else read_waiting(directory.ceremony)
    if state is None:
        msg = f"{directory.root}: no ceremony waits here; begin one: muster hsm ceremony --outside-ca"
        raise ConfigurationRefused(msg)
    return plan(state.answers), state


def outside_wishes(directory: DataDirectory) -> tuple[bytes, tuple[str, ...]]:
    """What the outside CA's certificate must fit: our key (SubjectPublicKeyInfo, DER), and the names below it.

    Raises: ConfigurationRefused, where the request is not the one that the ceremony made.
    """
    ceremony, state = waiting(directory)
    file = directory.root / REQUEST_NAME
    key = x509.load_pem_x509_csr(file.read_bytes()).public_key()
    known = {record.label: record.sha256 for record in state.keys}
    if key_sha256(key) != known[ISSUING_KEY]:
        raise ConfigurationRefused(f"{file}: is not over the key that the ceremony made; restore it")
    name = ceremony.answers.service_name
    names = (name, "localhost", "127.0.0.1", *hosts_of(ceremony.answers), device_uri(name, "any"))
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), names


def complete(directory: DataDirectory, outside: OutsideAuthority, begun: Begun) -> Done:
    """The rest of a ceremony that waited, with the outside CA's certificate, which is verified.

    Made in a copy: where a step fails the ceremony waits as before. Raises: ConfigurationRefused, HsmError, OSError.
    """
    ceremony, state = waiting(directory)
    text = configuration_text(ceremony)
    with _aside(directory) as made:
        shutil.copytree(directory.root, made.root, symlinks=True, dirs_exist_ok=True)
        config = parse_config(text, str(made.config))
        commands = Begun(state.started_at, (*state.commands, *begun.commands))
        done = go_on(made, ceremony, config, commands, state.keys, outside, clock())
        _put_to_use(made, config, text, done)
        (made.ceremony / "waiting.json").unlink()
        old = _old(directory)
        directory.root.rename(old)
        made.root.rename(directory.root)
    shutil.rmtree(old)
    return done


def discard(directory: DataDirectory) -> list[str]:
    """Give up a ceremony that waits or was killed: its keys are destroyed, its folder goes. What was destroyed.

    Raises: ConfigurationRefused, where there is none; HsmError, OSError.
    """
    aside = DataDirectory(_beside(directory))
    journal = read_journal(aside.ceremony) if aside.root.is_dir() else None
    if journal is not None:
        ceremony = plan(journal.answers)
        gone = destroy_keys(ceremony, configuration_of(ceremony, str(directory.config)))
        (aside.ceremony / "journal.json").unlink()
        _clear(aside.root, directory.root)
        return gone
    ceremony, _ = waiting(directory)
    gone = destroy_keys(ceremony, configuration_of(ceremony, str(directory.config)))
    shutil.rmtree(directory.root)
    return gone


# --- the folder beside ------------------------------------------------------------------------------------------------


def _built(directory: DataDirectory, ceremony: Ceremony, begun: Begun, fill: Callable[[DataDirectory], T]) -> T:
    """Fill a folder beside and put it in place; where that fails nothing is left."""
    refuse_occupied(directory)
    directory.root.parent.mkdir(parents=True, exist_ok=True)
    with _aside(directory) as made:
        foreign = {token.role: token.label for token in ceremony.tokens if not token.is_made}
        keys = tuple(f"{foreign[key.token]}/{key.label}" for key in ceremony.keys if key.token in foreign)
        if keys:
            write_state(made.ceremony, Journal(ceremony.answers, begun.at.replace(microsecond=0), keys))
        result = fill(made)
        (made.ceremony / "journal.json").unlink(missing_ok=True)
        if directory.root.exists():
            _move_labs(directory.root, made.root)
            directory.root.rmdir()
        made.root.rename(directory.root)
        return result


@contextmanager
def _aside(directory: DataDirectory) -> Iterator[DataDirectory]:
    """An empty folder beside the data directory, ours alone; what is still there afterwards goes away."""
    made = DataDirectory(_beside(directory))
    if made.root.exists():
        _reclaim(made, directory)
    made.root.mkdir(mode=0o700)
    descriptor = os.open(made.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, made.root)
        for folder in (made.secrets, made.tokens, made.ca, made.run, made.tls, made.ceremony):
            folder.mkdir(mode=0o700)
        yield made
    except BaseException:
        _clear(made.root, directory.root)
        raise
    finally:
        os.close(descriptor)


def _reclaim(made: DataDirectory, directory: DataDirectory) -> None:
    """Clear what a ceremony that was killed has left. Raises: ConfigurationRefused, where a person must act."""
    descriptor = os.open(made.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(descriptor, made.root)
        _refuse_journal(made)
        _clear(made.root, directory.root)
    finally:
        os.close(descriptor)


def _refuse_journal(made: DataDirectory) -> None:
    journal = read_journal(made.ceremony)
    if journal is not None:
        msg = f"a ceremony works here, or was killed and may have made keys {', '.join(journal.keys)}"
        raise ConfigurationRefused(f"{made.root}: {msg}; destroy them: muster hsm ceremony --discard")


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationRefused(f"{folder}: another ceremony is at work; wait for it") from error


def _beside(directory: DataDirectory) -> Path:
    return directory.root.with_name(f".{directory.root.name}.ceremony")


def _clear(made: Path, home: Path) -> None:
    """Remove the folder; what the demo keeps in it goes back first."""
    if made.is_dir():
        if any(map(_is_labs, made.iterdir())):
            home.mkdir(mode=0o700, exist_ok=True)
            _move_labs(made, home)
        shutil.rmtree(made)


def _move_labs(folder: Path, into: Path) -> None:
    for found in sorted(folder.iterdir()):
        if _is_labs(found):
            found.rename(into / found.name)


def _old(directory: DataDirectory) -> Path:
    return directory.root.with_name(f".{directory.root.name}.waiting")


def _restore(directory: DataDirectory) -> None:
    """Put the ceremony that waits back in place, where `complete` was killed between its two last steps."""
    if _old(directory).is_dir() and not directory.root.exists():
        _old(directory).rename(directory.root)


def refuse_occupied(directory: DataDirectory) -> None:
    """Only an absent folder, or one that the demo alone uses, becomes one. Raises: ConfigurationRefused."""
    _restore(directory)
    _refuse_journal(DataDirectory(_beside(directory)))
    if directory.config.is_file():
        msg = f"{directory.root}: is a Muster data directory already; remove it, or take another --data-dir"
        raise ConfigurationRefused(msg)
    if read_waiting(directory.ceremony) is not None:
        msg = f"{directory.root}: a ceremony waits here for an outside CA's certificate"
        raise ConfigurationRefused(f"{msg}; go on: muster hsm ceremony --import, or give it up: --discard")
    if directory.root.exists() and not (directory.root.is_dir() and all(map(_is_labs, directory.root.iterdir()))):
        msg = f"{directory.root}: holds something else; take an empty or new --data-dir"
        raise ConfigurationRefused(msg)


def refuse_unwritable(directory: DataDirectory) -> None:
    """The data directory is made beside itself. Raises: ConfigurationRefused."""
    above = next(folder for folder in directory.root.parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise ConfigurationRefused(f"{above}: no folder can be made in it; take another --data-dir")


def _is_labs(folder: Path) -> bool:
    """Did the demo, or a fleet in a laptop, make this folder, so that an installation may stand around it?"""
    return not folder.is_symlink() and any((folder / marker).is_file() for marker in (DEMO_MARKER, UP_MARKER))


@contextmanager
def _keys_destroyed_on_failure(ceremony: Ceremony, config: Config) -> Iterator[None]:
    """The ceremony's tokens are closed again: what fails from here on costs the keys that it made in others' tokens."""
    try:
        yield
    except BaseException as error:
        try:
            destroy_keys(ceremony, config)
        except (HsmError, ConfigurationRefused, OSError) as why:
            labels = ", ".join(f"{key.token}/{key.label}" for key in ceremony.keys)
            raise HsmError(f"{error}; the keys {labels} could not be destroyed ({why}): remove them") from error
        raise


def free_port(host: str, preferred: int | None) -> int:
    """The preferred port if nobody holds it, else a free one below the range of outgoing connections."""
    candidates = [preferred] if preferred else []
    candidates += [20_000 + secrets.randbelow(12_000) for _ in range(50)]
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                    msg = f"{host}: is no IPv4 address or name of this machine; correct --host"
                    raise ConfigurationRefused(msg) from error
                continue
            return port
    msg = f"{host}: no free port found; name ports with --ports"
    raise ConfigurationRefused(msg)


# --- what stands in it ------------------------------------------------------------------------------------------------


def _put_to_use(directory: DataDirectory, config: Config, text: str, done: Done) -> None:
    """Database, the service's own certificate, the first CRL, the first operator; the configuration comes last."""
    migrate(directory.database(config))
    token = secrets.token_urlsafe(32)
    replace_file(directory.operator_token, token.encode(), mode=0o600)
    hashed, at = hash_token(token), int(clock().timestamp())

    def write(tx: Connection) -> None:
        for row in done.rows.certificates:
            enrollments.add_certificate(tx, row)
        for row in done.rows.authorities:
            authorities.add(tx, row)
        if done.rows.crl is not None:
            revocations.add_crl(tx, done.rows.crl)
        devices.add_operator(tx, name="owner", role=OperatorRole.ADMIN.value, token_sha256=hashed, now=at)

    with ExitStack() as parts:
        open_database(directory, config, parts)[1].write_now(write)
    with compose(directory, config) as service:
        write_files(directory.ca, service.authorities)
        asyncio.run(_first_signatures(service, done))
    replace_file(directory.config, text.encode(), mode=0o600)


async def _first_signatures(service: Service, done: Done) -> None:
    sha256, text = digests(done.transcript)
    entry = leaf(service, "ceremony", service.clock(), transcript=sha256, text=text, plan=done.transcript.plan_sha256)
    await service.ledger.write(lambda tx: leaves.add(tx, entry))
    await bundles.note_results_key(service)
    await renew_service_certificate(service)
    # Written here and not by `crls.publish`, whose log line would stand in a command's output.
    der = await crls.sign_due(service, service.authorities.active)
    if der is not None:
        replace_file(crls.crl_file(service.directory, ISSUING), der)
    if done.rows.crl is not None:
        replace_file(crls.crl_file(service.directory, ROOT), done.rows.crl["der"])
