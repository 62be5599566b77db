"""The certificate authorities of this installation, as the database says: who signs now, and who did before.

The table is the source of truth. Each process holds what it read last; a worker reads again every second, and at once
when it changed something itself. What must not be a second late asks the database in its own transaction
(`issuing`: nothing is reserved under an authority that is not active).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from ota.files import read_at_most, replace_file
from provisioning.db import authorities
from provisioning.db.devices import Record
from provisioning.db.store import Store
from provisioning.issuance.algorithms import CaPublicKey, algorithm_of
from provisioning.issuance.profile import Issuer, issuer_of
from provisioning.refusals import NotFound, SigningUnavailable
from wire.codec import b64url, decode, encode, parse_json, unb64url
from wire.messages import BUNDLE_MOST, TrustBundle

ROOT, ISSUING, COMMAND, LOG, TRUST, RESULTS = "root", "issuing", "command", "log", "trust", "results"
"""The kinds; also the names of the first of each. Later ones are `root-2`, `issuing-2`, …"""
CHAIN_MOST = 256 * 1024
_OWN = (COMMAND, LOG, RESULTS)


class State(StrEnum):
    """Where an authority stands. The changes are in `rollover.NEXT`."""

    PREPARED = "prepared"
    """It has a key, and a certificate unless that is awaited; it signs no certificate. Its CRL is there beforehand."""
    ACTIVE = "active"
    """It signs. There is one of each kind at most."""
    RETIRING = "retiring"
    """It signs CRLs and OCSP answers about what it issued, and no certificate."""
    RETIRED = "retired"
    """It signs nothing any more."""


@dataclass(frozen=True, slots=True)
class Authority:
    """One CA. `key` is what `service.keys` knows its key by; empty where the key is elsewhere."""

    name: str
    kind: str
    state: State
    key: str
    certificate: x509.Certificate
    public_key: CaPublicKey
    spki: bytes
    """Its public key as SubjectPublicKeyInfo, DER."""
    der: bytes
    chain: tuple[bytes, ...]
    """DER, from itself to its root."""
    others: tuple[bytes, ...]
    """DER: more certificates over the same key, by other CAs."""
    issuer: Issuer
    """What certificates say about it."""

    @property
    def pem(self) -> bytes:
        """Its certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key without certificate: the commands' and the log's, which devices know by the trust bundle; the results'."""

    name: str
    state: State
    key: str
    spki: bytes


class Authorities:
    """All of them. Reading is free of locks: what is held are tuples, each replaced whole."""

    def __init__(self, public_url: str | None = None) -> None:
        """`public_url` is where the public listener is reached; None: certificates name no addresses."""
        self.public_url = public_url
        self.bundles: Mapping[int, TrustBundle] = {}
        """Every trust bundle that was published, by its version."""
        self._rows: list[Record] = []
        self._all: tuple[Authority, ...] = ()
        self._keys: Mapping[str, tuple[OwnKey, ...]] = {}

    @property
    def all(self) -> tuple[Authority, ...]:
        """Every authority that has a certificate, oldest first, the retired ones too."""
        return self._all

    def __iter__(self) -> Iterator[Authority]:
        return iter(self._all)

    @property
    def active(self) -> Authority:
        """The issuing authority that signs now. Raises: SigningUnavailable."""
        for one in self._all:
            if one.kind == ISSUING and one.state is State.ACTIVE:
                return one
        raise SigningUnavailable(expected="an active issuing authority", actual="none")

    @property
    def bundle_version(self) -> int:
        """The version of the trust bundle that was published last; 0 where none is on record."""
        return max(self.bundles, default=0)

    def of_kind(self, kind: str, *states: State) -> tuple[Authority, ...]:
        """The authorities of a kind, in these states where any are given."""
        return tuple(one for one in self._all if one.kind == kind and (not states or one.state in states))

    def named(self, name: str) -> Authority:
        """The authority of that name. Raises: NotFound."""
        for one in self._all:
            if one.name == name:
                return one
        raise NotFound(expected="the name of an authority", actual=name)

    def signing_key(self, kind: str, holds: int | None = None) -> str:
        """What `service.keys` knows the key by that signs now: `command` or `log`.

        `holds`: the version of the trust bundle that a device holds. Where that bundle does not name the active key and
        names one that is retiring, it is that one: who was away during a change is still spoken to.
        """
        known = self._keys.get(kind, ())
        active = next((one for one in known if one.state is State.ACTIVE), None)
        if active is None:
            return kind
        bundle = None if holds is None else self.bundles.get(holds)
        if bundle is None or active.spki in bundle.command_keys:
            return active.key
        retiring = (one.key for one in known if one.state is State.RETIRING and one.spki in bundle.command_keys)
        return next(retiring, active.key)

    def own_keys(self, kind: str, *states: State) -> tuple[OwnKey, ...]:
        """The keys of a kind without certificate, in these states, oldest first."""
        return tuple(one for one in self._keys.get(kind, ()) if one.state in states)

    def load(self, tx: Connection) -> bool:
        """Read the tables. Was it anything else than before?"""
        rows, newest = authorities.every(tx), authorities.newest_bundle_version(tx)
        if rows == self._rows and newest == self.bundle_version:
            return False
        self._all = tuple(authority_of(row, self.public_url) for row in rows if row.certificate)
        own = [(row.kind, _own_key(row)) for row in rows if row.kind in _OWN and row.public_key]
        self._keys = {kind: tuple(key for of, key in own if of == kind) for kind in _OWN}
        self.bundles = {
            row.version: decode(TrustBundle, row.content, limit=BUNDLE_MOST) for row in authorities.bundles(tx)
        }
        self._rows = rows
        return True

    async def refresh(self, store: Store) -> bool:
        """The same, from a running loop. Raises: StorageUnavailable."""
        return await store.read(self.load)


def _own_key(row: Record) -> OwnKey:
    return OwnKey(row.name, State(row.state), row.key, row.public_key)


def authority_of(row: Record, public_url: str | None) -> Authority:
    """The authority that a row is."""
    certificate = x509.load_der_x509_certificate(row.certificate)
    return Authority(
        name=row.name,
        kind=row.kind,
        state=State(row.state),
        key=row.key,
        certificate=certificate,
        public_key=ca_public_key(certificate),
        spki=spki_of(row.certificate),
        der=row.certificate,
        chain=(row.certificate, *certificates_in(row.chain)),
        others=certificates_in(row.others),
        issuer=issuer_of(row.certificate, **_addresses(row.name, public_url)),
    )


def spki_of(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a certificate, DER."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def ca_public_key(certificate: x509.Certificate) -> CaPublicKey:
    """Its key, of a kind that signs here. Raises: ToBeSignedRefused."""
    key = certificate.public_key()
    algorithm_of(key)
    return cast("CaPublicKey", key)


def _addresses(name: str, public_url: str | None) -> dict[str, str]:
    if public_url is None:
        return {}
    return {
        "crl_url": f"{public_url}/crl/{name}.crl",
        "ca_url": f"{public_url}/ca/{name}.crt",
        "ocsp_url": f"{public_url}/ocsp",
    }


def write_files(folder: Path, known: Authorities) -> None:
    """NAME.pem and NAME.crt (DER) of each authority, for people and for the public listener.

    Beside them, for who verifies: `roots.pem`, and `trusted.pem` with the issuing CAs too (the broker), of all that are
    not retired.
    """
    trusted = [one for one in known if one.state is not State.RETIRED]
    whole = {
        "roots.pem": b"".join(one.pem for one in trusted if one.kind == ROOT),
        "trusted.pem": b"".join(one.pem for one in trusted),
    }
    for name, content in whole.items():
        if read_at_most(folder / name, CHAIN_MOST) != content:
            replace_file(folder / name, content)
    for one in known:
        for ending, content in (("pem", one.pem), ("crt", one.der)):
            file = folder / f"{one.name}.{ending}"
            if read_at_most(file, CHAIN_MOST) != content:
                replace_file(file, content)


def authority_row(
    name: str, kind: str, key: str, chain: Sequence[bytes], *, state: State, now: datetime, public_key: bytes = b""
) -> dict[str, Any]:
    """The row of a new authority. `chain` runs from itself to its root.

    Where it is empty, because there is no certificate or it is awaited, `public_key` says which key it is.
    """
    at = int(now.astimezone(UTC).timestamp())
    return {
        "name": name,
        "kind": kind,
        "state": state.value,
        "key": key,
        "public_key": spki_of(chain[0]) if chain else public_key,
        "certificate": chain[0] if chain else b"",
        "chain": chain_text(chain[1:]),
        "created_at": at,
        "activated_at": at if state is State.ACTIVE else None,
    }


def certificates_in(text: str) -> tuple[bytes, ...]:
    """The certificates of a stored list."""
    return tuple(unb64url(one) for one in parse_json(text.encode(), limit=CHAIN_MOST))


def chain_text(above: Sequence[bytes]) -> str:
    """How what stands above an authority is stored."""
    return encode([b64url(der) for der in above]).decode()
