"""The doctor's look at certificate authorities and CRLs."""

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta

from cryptography import x509

from provisioning.app.compose import load_authorities
from provisioning.app.findings import FAIL, SOON, WARN, Finding, Findings, expiry
from provisioning.authorities import ISSUING, ROOT, Authorities, State
from provisioning.config import Config, DataDirectory
from provisioning.db.store import Store, open_sqlite

WAIT_SECONDS = 3.0


def opened(directory: DataDirectory, config: Config) -> sqlite3.Connection:
    """The database, to look at."""
    return sqlite3.connect(f"{directory.database(config).as_uri()}?mode=ro", uri=True, timeout=WAIT_SECONDS)


def authorities_of(directory: DataDirectory, config: Config) -> Authorities:
    """The authorities as the database says. Raises: ConfigurationRefused, Refusal."""
    store = Store(open_sqlite(directory.database(config), read_only=True))
    try:
        return load_authorities(store, config)
    finally:
        store.close()


def authority(directory: DataDirectory, config: Config, now: datetime) -> Findings:
    """Are the authorities' certificates there, and good for a while?"""
    for one in authorities_of(directory, config):
        if one.state is State.RETIRED:
            continue
        file = directory.ca / f"{one.name}.pem"
        if not file.is_file() or x509.load_pem_x509_certificate(file.read_bytes()) != one.certificate:
            says = f"{file}: is not the certificate of {one.name}"
            # Nobody goes by a prepared one yet, and it is on record a moment before its file is there.
            status = WARN if one.state is State.PREPARED else FAIL
            yield Finding("CA", status, says, "restore it: start the service, muster serve writes it")
        cure = "plan the change of CA: muster ca prepare"
        yield expiry(f"{one.name} CA", one.certificate.not_valid_after_utc, now, SOON, cure)


def crl(directory: DataDirectory, config: Config, now: datetime) -> Findings:
    """Is each CRL the newest, its CA's, and good for a while?"""
    online, by_hand = "start the service: muster serve signs a new one", "muster crl sign --authority {}"
    with closing(opened(directory, config)) as database:
        stored = dict(database.execute("select authority, der from crl order by number").fetchall())
    for one in authorities_of(directory, config):
        name, file = f"{one.name} CRL", directory.ca / f"{one.name}.crl"
        if one.state is State.RETIRED or (one.kind == ROOT and one.name not in stored):
            continue  # a root elsewhere publishes its own
        cure = online if one.kind == ISSUING else by_hand.format(one.name)
        if one.state is State.PREPARED and not file.is_file():
            yield Finding(name, WARN, f"{file} is not there yet", cure)
            continue
        data = file.read_bytes()
        found = x509.load_der_x509_crl(data)
        if not found.is_signature_valid(one.certificate.public_key()):  # type: ignore[arg-type]  # a CA's key is none of X25519, X448
            yield Finding(name, FAIL, f"is not signed by {one.name}", cure)
            continue
        if stored.get(one.name) != data:
            yield Finding(name, WARN, f"{file} is not the newest that was signed", online)
        end = found.next_update_utc or found.last_update_utc
        late = timedelta(seconds=config.lifetimes.crl_seconds - 2 * config.lifetimes.crl_refresh_seconds)
        yield expiry(name, end, now, max(late, timedelta()) if one.kind == ISSUING else SOON, cure)
