"""The composition root: the only place where configuration, database, HSM, clock and entropy meet."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from hsm.errors import HsmError
from provisioning.app.blocklists import debian_weak
from provisioning.app.keys import SERVICE_KEYS, HsmKeys
from provisioning.app.signatures import flush_now
from provisioning.app.signing import PartnerKeys
from provisioning.app.verifying import PartnerVerifier
from provisioning.authorities import COMMAND, ISSUING, LOG, RESULTS, Authorities, State
from provisioning.config import Config, ConfigurationRefused, DataDirectory, public_url
from provisioning.db.ledger import Ledger
from provisioning.db.schema import verify_schema
from provisioning.db.store import Store, open_sqlite, watched
from provisioning.ek_authorities import EkAuthorities
from provisioning.profiles import Profiles
from provisioning.refusals import ProfileMalformed, StorageUnavailable
from provisioning.service import Service
from provisioning.verifier import Here


def clock() -> datetime:
    """The system's clock, UTC."""
    return datetime.now(UTC)


@contextmanager
def compose(
    directory: DataDirectory,
    config: Config,
    *,
    mqtt_port: int = 0,
    public_port: int = 0,
    partners: bool = False,
    core: int | None = None,
) -> Iterator[Service]:
    """A service with all its parts.

    `partners`: a process of its own for the tokens and one for verifications, on that core, as a worker has them; a
    command does without. Call it on the main thread then. Raises: ConfigurationRefused, HsmError.
    """
    with ExitStack() as parts:
        verifier = PartnerVerifier(core) if partners else Here()
        parts.callback(verifier.close)
        store, ledger = open_database(directory, config, parts)
        authorities = load_authorities(store, config, public_port)
        keys = open_keys(directory, config, needed_keys(authorities), partners=partners, core=core)
        parts.callback(lambda: flush_now(keys, ledger, int(clock().timestamp())))
        parts.callback(keys.close)
        verifier.ready()
        yield Service(
            config=config,
            directory=directory,
            store=store,
            ledger=ledger,
            keys=keys,
            authorities=authorities,
            clock=clock,
            entropy=os.urandom,
            profiles=load_profiles(store, config),
            ek_roots=load_ek_roots(store, config),
            debian_weak=debian_weak(directory, config),
            verifier=verifier,
            mqtt_port=mqtt_port or config.listen.mqtt_port,
        )


def open_database(directory: DataDirectory, config: Config, parts: ExitStack) -> tuple[Store, Ledger]:
    """Store and ledger of an installation whose schema is this version's. Raises: ConfigurationRefused."""
    path = directory.database(config)
    if not path.is_file():
        msg = f"{path}: is missing; restore it, or make a new data directory: muster init"
        raise ConfigurationRefused(msg)
    verify_schema(path)
    store = Store(open_sqlite(path, read_only=True))
    parts.callback(store.close)
    ledger = Ledger(open_sqlite(path, read_only=False), watched(path))
    parts.callback(ledger.close)
    return store, ledger


def needed_keys(authorities: Authorities) -> tuple[str, ...]:
    """The keys that sign now. One that was retired may be gone, and one that is prepared may not be there yet."""
    issuing = authorities.of_kind(ISSUING, State.ACTIVE)
    own = [one.key for one in issuing if one.key] + [authorities.signing_key(kind) for kind in (COMMAND, LOG)]
    own += [one.key for one in authorities.own_keys(RESULTS, State.ACTIVE)]
    return (*own, "trust-online", "director-online")


def open_keys(
    directory: DataDirectory,
    config: Config,
    needed: Sequence[str] = SERVICE_KEYS,
    *,
    partners: bool = False,
    core: int | None = None,
) -> HsmKeys | PartnerKeys:
    """The service's keys, logged in once: here, or in a partner on that core. Raises: ConfigurationRefused."""
    try:
        if partners:
            return PartnerKeys(directory, config, needed, core)
        return HsmKeys(directory, config, needed)
    except (HsmError, OSError) as error:
        msg = f"HSM token {config.hsm.token!r}: {error}; look: muster doctor"
        raise ConfigurationRefused(msg) from error


def load_profiles(store: Store, config: Config) -> Profiles:
    """The certificate profiles in force. Raises: ConfigurationRefused."""
    known = Profiles()
    try:
        store.read_now(known.load)
    except (StorageUnavailable, ProfileMalformed) as refusal:
        msg = f"{config.database}: certificate profiles cannot be read ({refusal.actual}); restore it from a backup"
        raise ConfigurationRefused(msg) from refusal
    return known


def load_ek_roots(store: Store, config: Config) -> EkAuthorities:
    """The imported certificates of TPM manufacturers. Raises: ConfigurationRefused."""
    known = EkAuthorities()
    try:
        store.read_now(known.load)
    except StorageUnavailable as refusal:
        msg = f"{config.database}: cannot be read ({refusal.actual}); restore it from a backup"
        raise ConfigurationRefused(msg) from refusal
    return known


def load_authorities(store: Store, config: Config, public_port: int = 0) -> Authorities:
    """The authorities of an installation. Raises: ConfigurationRefused."""
    known = Authorities(public_url(config, public_port or config.listen.public_port))
    try:
        store.read_now(known.load)
    except StorageUnavailable as refusal:
        msg = f"{config.database}: cannot be read ({refusal.actual}); restore it from a backup"
        raise ConfigurationRefused(msg) from refusal
    if not known.all:
        msg = f"{config.database}: names no certificate authority; restore it, or make a new one: muster init"
        raise ConfigurationRefused(msg)
    return known
