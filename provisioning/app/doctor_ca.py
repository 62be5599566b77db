"""The doctor's look at certificate authorities and CRLs."""

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta

from cryptography import x509

from provisioning.app.compose import load_authorities
from provisioning.app.findings import FAIL, SOON, WARN, Finding, Findings, expiry
from provisioning.authorities import Authorities, State
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
            yield Finding("CA", FAIL, says, "restore it: start the service, muster serve writes it")
        cure = "plan the change of CA: muster ca prepare"
        yield expiry(f"{one.name} CA", one.certificate.not_valid_after_utc, now, SOON, cure)


def crl(directory: DataDirectory, config: Config, now: datetime) -> Findings:
    """Is the CRL the newest, its CA's, and good for a while?"""
    cure = "start the service: muster serve signs a new one"
    data = (directory.ca / "issuing.crl").read_bytes()
    crl = x509.load_der_x509_crl(data)
    if not crl.is_signature_valid(authorities_of(directory, config).named("issuing").certificate.public_key()):  # type: ignore[arg-type]  # a CA's key is none of X25519, X448
        yield Finding("CRL", FAIL, "is not signed by the issuing CA", cure)
        return
    with closing(opened(directory, config)) as database:
        row = database.execute("select der from crl order by number desc limit 1").fetchone()
    if row is None or row[0] != data:
        yield Finding("CRL", WARN, f"{directory.ca / 'issuing.crl'} is not the newest that was signed", cure)
    end = crl.next_update_utc or crl.last_update_utc
    late = timedelta(seconds=config.lifetimes.crl_seconds - 2 * config.lifetimes.crl_refresh_seconds)
    yield expiry("CRL", end, now, max(late, timedelta()), cure)
