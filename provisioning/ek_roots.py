"""Which TPMs count: the store of manufacturers' certificates, as an operator fills, reads and empties it.

Importing trusts nobody yet: policies name what of the store vouches for a model's TPMs. But a policy that names a
manufacturer takes whatever is kept as its root, so an import and a removal are an admin's, and are leaves of the log.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from sqlalchemy import Connection

from provisioning.attestation import manufacturers
from provisioning.attestation.certificates import parse_certificate
from provisioning.attestation.ek_store import EkStore, Judged, Role, Stored, judge, roles, stored, way_up
from provisioning.attestation.names import name_text
from provisioning.attestation.policy import line_of, parse_policy
from provisioning.attestation.policy_roots import StoreRoots, missing
from provisioning.db import ek_roots, leaves, policies
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import NotFound, PolicyMalformed, Refusal, RequestMalformed, StateConflict
from provisioning.service import Service
from wire.codec import Cap, rfc3339

Json = dict[str, object]
CERTIFICATES_MOST = 10_000
"""Certificates of one import; Microsoft's list had 2,200 at the end of 2024."""
IMPORT_MOST = 24 * 1024 * 1024
"""Bytes of the message that carries them."""
SOURCE_MOST = 512
ATTEMPTS = 3
"""How often an import is judged again because another one came between."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A certificate (DER) that is to be imported, and where it came from.

    `manufacturer` is the operator's word; without it the folder's name counts, then what the certificate says.
    """

    der: Annotated[bytes, Cap(64 * 1024)]
    source: Annotated[str, Cap(SOURCE_MOST)]
    manufacturer: Annotated[str, Cap(manufacturers.NAME_MOST)] | None = None


@dataclass(frozen=True, slots=True)
class EkRootImport:
    """The whole of one import. With `dry_run` nothing changes, and the answer is the same."""

    certificates: Annotated[tuple[Candidate, ...], Cap(CERTIFICATES_MOST)]
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Accepted:
    """One certificate that is used, with all the places where it was found."""

    judged: Judged
    one: Stored
    sources: tuple[str, ...]


async def import_roots(service: Service, wanted: EkRootImport, *, by: str) -> Json:
    """Judge all of them, take what can vouch, say of the rest why not: `{used: […], refused: [{source, reason}]}`.

    All that is used is written in one transaction, with one leaf. Raises: RequestMalformed, StateConflict.
    """
    if not wanted.certificates:
        raise RequestMalformed(expected="certificates", actual="none")
    now = service.clock()
    accepted, refused = await asyncio.to_thread(_judged, wanted.certificates, now)
    for _ in range(ATTEMPTS):
        await service.ek_roots.refresh(service.store)
        version, known = service.ek_roots.version, service.ek_roots.store
        given = await asyncio.to_thread(_roles, accepted, known)
        used = [_used(one, given, known) for one in accepted]
        if wanted.dry_run or not accepted:
            return {"used": used, "refused": refused}
        if await _write(service, accepted, given, version, by=by):
            await service.ek_roots.refresh(service.store)
            return {"used": used, "refused": refused}
    raise StateConflict(expected="a store that nobody else changes meanwhile", actual="changed again and again")


async def list_roots(service: Service, manufacturer: str | None = None) -> list[Json]:
    """What is in the store, by manufacturer. Raises: NotFound."""
    rows = await service.store.read(ek_roots.present)
    name = None if manufacturer is None else manufacturers.named(manufacturer)
    chosen = [row for row in rows if name in (None, row.manufacturer)]
    if name is not None and not chosen:
        known = ", ".join(sorted({row.manufacturer for row in rows})) or "nothing was imported"
        raise NotFound(expected=f"a manufacturer of the store: {known}", actual=name)
    return await asyncio.to_thread(lambda: [_row(row) for row in chosen])


async def show_root(service: Service, fingerprint: str) -> Json:
    """One certificate: where it came from, what stands above it, which policies in force name it. Raises: NotFound."""

    def read(tx: Connection) -> tuple[Record, list[Record]]:
        return _there(tx, fingerprint), policies.in_force(tx)

    row, in_force = await service.store.read(read)
    await service.ek_roots.refresh(service.store)
    certificate = parse_certificate(row.der)
    return {
        **_row(row),
        "issuer": name_text(certificate.issuer),
        "above": list(way_up(certificate, service.ek_roots.store)),
        "signature_algorithm": certificate.signature_algorithm,
        "not_before": rfc3339(certificate.not_before),
        "policies": _naming(in_force, row),
        "der": row.der,
    }


async def remove_root(service: Service, fingerprint: str, *, by: str) -> Json:
    """Take one certificate out. It counts for no challenge that is made after this. Raises: NotFound."""
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "ek-roots", now, removed=fingerprint, by=by)

    def write(tx: Connection) -> Json:
        row = _there(tx, fingerprint)
        ek_roots.remove(tx, row.fingerprint, now=at, by=by, number=ek_roots.version(tx) + 1)
        leaves.add(tx, entry)
        return {
            "removed": row.fingerprint,
            "manufacturer": row.manufacturer,
            "policies": _naming(policies.in_force(tx), row),
        }

    answer = await service.ledger.write(write)
    await service.ek_roots.refresh(service.store)
    return answer


def verify_named(text: str, store: EkStore) -> None:
    """Does the store have what this policy names in it? A slip of the pen would refuse every device.

    Raises: PolicyMalformed, with the line.
    """
    policy = parse_policy(text)
    for root in missing((*policy.ek_roots, *policy.identity_roots), store):
        known = ", ".join(sorted(store.manufacturers)) or "nothing: muster ek-roots import"
        raise PolicyMalformed(
            expected=f"roots that the store has ({known})",
            actual=f"line {line_of(text, root.where)}: {root.where} names {root}, of which the store has no root",
        )


def _judged(candidates: Sequence[Candidate], now: datetime) -> tuple[list[_Accepted], list[Json]]:
    found: dict[str, _Accepted] = {}
    refused: list[Json] = []
    for candidate in candidates:
        try:
            judged = judge(candidate.der, now)
        except Refusal as refusal:
            refused.append({"source": candidate.source, "reason": _reason(refusal)})
            continue
        first = found.get(judged.fingerprint)
        if first is not None:
            sources = (*first.sources, *({candidate.source} - set(first.sources)))
            found[judged.fingerprint] = _Accepted(first.judged, first.one, sources)
            continue
        name = _manufacturer(candidate, judged)
        role = Role.INTERMEDIATE
        if judged.self_signed:
            role = Role.SELF_SIGNED
        elif manufacturers.in_root_folder(candidate.source):
            role = Role.ROOT_FOLDER
        found[judged.fingerprint] = _Accepted(judged, stored(judged, name, role), (candidate.source,))
    return list(found.values()), refused


def _manufacturer(candidate: Candidate, judged: Judged) -> str:
    said = manufacturers.named(candidate.manufacturer or "") or manufacturers.of_folder(candidate.source)
    return said or manufacturers.of_subject(judged.certificate.subject)


def _reason(refusal: Refusal) -> str:
    return f"{refusal.title}: {refusal.actual}" if refusal.actual else refusal.title


def _roles(accepted: Sequence[_Accepted], known: EkStore) -> dict[str, Role]:
    """Of what is new here, and of what steps back; what is there already keeps its own."""
    there = {one.fingerprint for one in known.all}
    return roles((one.one for one in accepted if one.one.fingerprint not in there), known.all)


async def _write(
    service: Service, accepted: Sequence[_Accepted], given: dict[str, Role], version: int, *, by: str
) -> bool:
    """False: the store is not the one that was judged against any more."""
    now = service.clock()
    at = int(now.timestamp())
    fresh = [one for one in accepted if one.one.fingerprint in given]
    if not given:
        return True
    record = {one.one.fingerprint: given[one.one.fingerprint].value for one in fresh}
    entry = leaf(service, "ek-roots", now, imported=record, by=by)
    rows = [
        {
            "fingerprint": one.one.fingerprint,
            "der": one.one.der,
            "subject": one.one.subject,
            "subject_key": one.one.subject_key,
            "manufacturer": one.one.manufacturer,
            "role": given[one.one.fingerprint].value,
            "source": one.sources[0],
            "imported_at": at,
            "imported_by": by,
        }
        for one in fresh
    ]
    stepped_back = {name: role for name, role in given.items() if name not in record}

    def write(tx: Connection) -> bool:
        if ek_roots.version(tx) != version:
            return False
        ek_roots.put(tx, rows, version + 1)
        for name, role in stepped_back.items():
            ek_roots.set_role(tx, name, role.value, version + 1)
        leaves.add(tx, entry)
        return True

    return await service.ledger.write(write)


def _there(tx: Connection, fingerprint: str) -> Record:
    row = ek_roots.get(tx, fingerprint.replace(":", "").lower())
    if row is None or row.removed_at is not None:
        raise NotFound(expected="the fingerprint of a certificate of the store", actual=fingerprint)
    return row


def _naming(in_force: Sequence[Record], row: Record) -> list[str]:
    """The models whose policy in force takes this certificate as a root."""
    is_root = Role(row.role).is_root
    return [
        policy.model
        for policy in in_force
        if any(
            isinstance(one, StoreRoots)
            and (one.fingerprint == row.fingerprint or (is_root and one.manufacturer == row.manufacturer))
            for parsed in (parse_policy(policy.text),)
            for one in (*parsed.ek_roots, *parsed.identity_roots)
        )
    ]


def _used(accepted: _Accepted, given: dict[str, Role], known: EkStore) -> Json:
    certificate, fingerprint = accepted.judged.certificate, accepted.judged.fingerprint
    before = known.stored_of(fingerprint)
    return {
        "fingerprint": fingerprint,
        "manufacturer": accepted.one.manufacturer if before is None else before.manufacturer,
        "role": given.get(fingerprint, accepted.one.role if before is None else before.role).value,
        "subject": name_text(certificate.subject),
        "not_after": rfc3339(certificate.not_after),
        "source": accepted.sources[0],
        "also": list(accepted.sources[1:]),
        "new": before is None,
        "notes": list(accepted.judged.notes),
    }


def _row(row: Record) -> Json:
    certificate = parse_certificate(row.der)
    return {
        "fingerprint": row.fingerprint,
        "manufacturer": row.manufacturer,
        "role": row.role,
        "root": Role(row.role).is_root,
        "subject": name_text(certificate.subject),
        "not_after": rfc3339(certificate.not_after),
        "source": row.source,
        "imported": rfc3339(datetime.fromtimestamp(row.imported_at, UTC)),
        "by": row.imported_by,
    }
