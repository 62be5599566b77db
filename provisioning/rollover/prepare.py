"""Preparing what comes next: its name, its key, its certificate. Nothing that exists signs otherwise because of it.

A key is made by whoever has the token (`muster ca prepare`); the service notes it and says what is to be signed: the
to-be-signed bytes of each CA certificate, built, checked and reserved here as every other certificate is (`issuing`).
A root's key signs them where its token is. After a crash the same command goes on from what is on record.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection

from provisioning.authorities import (
    ISSUING,
    ROOT,
    TRUST,
    State,
    authority_of,
    authority_row,
    certificates_in,
    chain_text,
)
from provisioning.db import authorities, enrollments, leaves, signatures
from provisioning.db.devices import Record
from provisioning.issuance.algorithms import algorithm_of, verify
from provisioning.issuance.check import check_tbs
from provisioning.issuance.cross import build_cross, check_cross
from provisioning.issuance.outside import verify_outside
from provisioning.issuance.profile import Issuer, IssuingCa, RootCa, build, permitted_of
from provisioning.issuance.request import ca_request_info
from provisioning.issuance.tbs import ToBeSigned, assemble, serial_of, serial_text, unsigned
from provisioning.journal import leaf
from provisioning.refusals import NotFound, RequestMalformed, WrongStep
from provisioning.rollover.lifecycle import following_name
from provisioning.service import Service
from wire.binding import key_id

KINDS = ("root", "issuing", "command", "log", "trust", "results")
REQUEST = "ca:"
"""What the request ids of CA certificates begin with: `ca:SUBJECT:SIGNER`, so that each is reserved once."""
BACKDATE = timedelta(minutes=5)
P256_BITS = 256


@dataclass(frozen=True, slots=True)
class Task:
    """A CA certificate that waits for a signature: by whose key, over which bytes."""

    serial: str
    subject: str
    signer: str
    signer_key: str
    tbs: bytes


async def prepare(service: Service, kind: str, *, by: str) -> Record:
    """Begin with the next one of a kind, or go on with the one that is prepared already. Its key is made next.

    Raises: RequestMalformed.
    """
    if kind not in KINDS:
        raise RequestMalformed(expected=", ".join(KINDS), actual=kind)
    now = service.clock()

    def write(tx: Connection) -> Record:
        begun = authorities.of_kind(tx, kind, State.PREPARED.value)
        if begun:
            return begun[0]
        name = following_name(kind, [row.name for row in authorities.every(tx)])
        authorities.add(tx, authority_row(name, kind, "", (), state=State.PREPARED, now=now))
        leaves.add(tx, leaf(service, "authority", now, name=name, step="prepare", by=by))
        return _known(tx, name)

    row = await service.ledger.write(write)
    await service.authorities.refresh(service.store)
    return row


async def note_key(service: Service, name: str, key: str, public_key: bytes | None, *, by: str) -> Record:
    """Note which key it is. `public_key` (SubjectPublicKeyInfo) is given where the service does not reach the key.

    Raises: NotFound, WrongStep, RequestMalformed, SigningUnavailable, ToBeSignedRefused.
    """
    row = await service.store.read(lambda tx: _known(tx, name))
    if row.kind in (ROOT, TRUST):
        if public_key is None:
            raise RequestMalformed(expected="the public key: the service does not have this one", actual="none")
        spki = _parsed(public_key)
    else:
        found = await service.keys.adopt(key)
        algorithm_of(found)
        if row.kind != ISSUING and not (isinstance(found, ec.EllipticCurvePublicKey) and found.key_size == P256_BITS):
            raise RequestMalformed(expected=f"a key on P-256: {row.kind} keys sign nothing else", actual=key)
        spki = found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    now = service.clock()
    entry = leaf(service, "authority", now, name=name, step="key", key=key_id(spki), by=by)

    def write(tx: Connection) -> Record:
        known = _known(tx, name)
        if known.public_key == spki and known.key == key:
            return known
        if known.state != State.PREPARED or known.public_key:
            raise WrongStep(expected=f"{name} without a key", actual=f"{known.state}, key {key_id(known.public_key)}")
        if any(one.public_key == spki for one in authorities.every(tx)):
            raise WrongStep(expected="a key that nothing here uses", actual=f"key {key_id(spki)}")
        authorities.change(tx, name, key=key, public_key=spki)
        leaves.add(tx, entry)
        return _known(tx, name)

    noted = await service.ledger.write(write)
    await service.authorities.refresh(service.store)
    return noted


def _parsed(spki: bytes) -> bytes:
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError) as error:
        raise RequestMalformed(expected="a SubjectPublicKeyInfo", actual=type(error).__name__) from error
    algorithm_of(key)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


async def tasks(service: Service, name: str) -> list[Task]:
    """The certificates that still wait for a signature; each is reserved, once. Raises: NotFound, ToBeSignedRefused."""
    now, draw = service.clock(), [serial_of(service.entropy(16)) for _ in range(24)]

    def write(tx: Connection) -> list[Task]:
        row = _known(tx, name)
        if row.state == State.RETIRED or not row.public_key:
            return []
        wanted = _of_root(tx, service, row) if row.kind == ROOT else []
        wanted += _of_issuing(tx, service, row) if row.kind == ISSUING else []
        return [task for one in wanted if (task := _reserved(tx, one, draw.pop(), now)) is not None]

    return await service.ledger.write(write)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A certificate that there is to be: `over` is the CA's certificate so far (DER), None where it is its first."""

    subject: Record
    signer: Record
    issuer: Issuer | None
    days: int
    common_name: str
    over: bytes | None = None
    service_name: str = ""
    """The SPIFFE trust domain whose signing certificate it becomes."""
    predecessor: bytes = b""
    """The issuing CA that signs now (DER): the next one may name no more than it."""


def _of_issuing(tx: Connection, service: Service, row: Record) -> list[_Wanted]:
    """The issuing CA under the active root, if that root's key is ours."""
    above = next((one for one in authorities.of_kind(tx, ROOT, State.ACTIVE.value) if one.key), None)
    if row.certificate or above is None:
        return []
    before = authorities.of_kind(tx, ISSUING, State.ACTIVE.value)[0].certificate
    issuer = authority_of(above, service.authorities.public_url).issuer
    title = f"{service.config.service_name} {row.name.replace('-', ' ')} CA"[:64]
    days, name = service.config.lifetimes.issuing_days, service.config.service_name
    return [_Wanted(row, above, issuer, days, title, service_name=name, predecessor=before)]


def _of_root(tx: Connection, service: Service, row: Record) -> list[_Wanted]:
    """Itself; then, cross-signed both ways with the active root; then every issuing CA under it."""
    title = f"{service.config.service_name} {row.name.replace('-', ' ')} CA"[:64]
    if not row.certificate:
        return [_Wanted(row, row, None, service.config.lifetimes.root_days, title)]
    url = service.authorities.public_url
    own = authority_of(row, url).issuer
    wanted = []
    for other in authorities.of_kind(tx, ROOT, State.ACTIVE.value):
        if other.name != row.name:
            if other.key:
                wanted.append(_Wanted(row, other, authority_of(other, url).issuer, 0, title, row.certificate))
            wanted.append(_Wanted(other, row, own, 0, other.name, other.certificate))
    wanted.extend(
        _Wanted(below, row, own, 0, below.name, below.certificate)
        for below in authorities.of_kind(tx, ISSUING)
        if below.certificate and below.state != State.RETIRED and row.certificate not in certificates_in(below.chain)
    )
    return wanted


def _reserved(tx: Connection, wanted: _Wanted, serial: int, now: datetime) -> Task | None:
    """The task; None where it is done."""
    request = f"{REQUEST}{wanted.subject.name}:{wanted.signer.name}"
    known = enrollments.certificate_of_enrollment(tx, request)
    if known is None:
        tbs = _built(wanted, serial, now)
        enrollments.add_certificate(tx, _certificate_row(wanted, request, tbs, now))
        known = enrollments.certificate_of_enrollment(tx, request)
    if known is None or known.signature is not None:
        return None
    return Task(known.serial, wanted.subject.name, wanted.signer.name, wanted.signer.key, known.tbs)


def _built(wanted: _Wanted, serial: int, now: datetime) -> ToBeSigned:
    begin = now - BACKDATE
    if wanted.over is not None and wanted.issuer is not None:
        tbs = build_cross(wanted.over, wanted.issuer, serial=serial, not_before=begin)
        check_cross(tbs, wanted.over, wanted.issuer)
        return tbs
    ca: RootCa | IssuingCa = RootCa(wanted.common_name, wanted.subject.public_key)
    if wanted.issuer is not None:
        names = permitted_of(x509.load_der_x509_certificate(wanted.predecessor))
        ca = IssuingCa(wanted.common_name, wanted.subject.public_key, *names, service_name=wanted.service_name)
    end = now + timedelta(days=wanted.days)
    if wanted.issuer is not None:
        end = min(end, wanted.issuer.not_after)
    tbs = build(ca, wanted.issuer, serial=serial, not_before=begin, not_after=end)
    check_tbs(tbs, ca, wanted.issuer)
    return tbs


def _certificate_row(wanted: _Wanted, request: str, tbs: ToBeSigned, now: datetime) -> dict[str, Any]:
    return {
        "serial": serial_text(tbs.serial),
        "issuer": wanted.signer.name,
        "profile": tbs.profile.value,
        "subject": _common_name(tbs.der),
        "enrollment_id": request,
        "key_id": key_id(wanted.subject.public_key),
        "tbs": tbs.der,
        "state": "reserved",
        "not_before": int(tbs.not_before.timestamp()),
        "not_after": int(tbs.not_after.timestamp()),
        "reserved_at": int(now.timestamp()),
        "signature": None,
        "device_id": None,
    }


def _common_name(tbs: bytes) -> str:
    """As `fsck` reads it: of an outside CA's name whatever stands there, if it is one."""
    names = x509.load_der_x509_certificate(unsigned(tbs)).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


async def take_signature(service: Service, serial: str, signature: bytes) -> Record:
    """Record the signature that a root's key made over a reserved CA certificate; the authority is returned.

    Raises: NotFound, ToBeSignedRefused.
    """
    now = service.clock()
    found = await service.store.read(lambda tx: enrollments.certificate_by_serial(tx, serial))
    if found is None or not str(found.enrollment_id).startswith(REQUEST):
        raise NotFound(expected="a CA certificate that waits for a signature", actual=serial)
    subject, signer = str(found.enrollment_id).removeprefix(REQUEST).split(":")
    row = await service.store.read(lambda tx: _known(tx, signer))
    verify(load_der_public_key(row.public_key), found.tbs, signature)
    der = assemble(found.tbs, signature)
    digest = hashlib.sha256(found.tbs).digest()
    entry = leaf(service, "certificate", now, serial=serial, profile=found.profile, tbs_sha256=digest)

    def write(tx: Connection) -> Record:
        known = _known(tx, subject)
        if not enrollments.sign_certificate(tx, serial, signature):
            return known  # it came twice
        leaves.add(tx, entry)
        _adopt(tx, known, _known(tx, signer), der)
        return _known(tx, subject)

    authority = await service.ledger.write(write)
    await service.authorities.refresh(service.store)
    return authority


def _adopt(tx: Connection, subject: Record, signer: Record, der: bytes) -> None:
    """Its first certificate is the authority's; what another CA says about it besides is kept with it."""
    if not subject.certificate:
        above = () if signer.name == subject.name else (signer.certificate, *certificates_in(signer.chain))
        authorities.change(tx, subject.name, certificate=der, chain=chain_text(above))
    else:
        authorities.change(tx, subject.name, others=chain_text((*certificates_in(subject.others), der)))


async def request_of(service: Service, name: str) -> bytes:
    """A request (PKCS #10, DER) for an outside CA to sign. Raises: NotFound, WrongStep, SigningUnavailable."""
    row = await service.store.read(lambda tx: _known(tx, name))
    if row.kind != ISSUING or not row.public_key:
        raise WrongStep(expected="an issuing CA that has its key", actual=f"{row.kind} {name}")
    title = f"{service.config.service_name} {name.replace('-', ' ')} CA"[:64]
    info = ca_request_info(title, row.public_key)
    digest, at = hashlib.sha256(info).digest(), int(service.clock().timestamp())
    await service.ledger.write(lambda tx: signatures.announce(tx, digest, "request", at))
    signature = await service.keys.sign(row.key, info)
    key = load_der_public_key(row.public_key)
    verify(key, info, signature)
    return assemble(info, signature, algorithm_of(key))


async def take_outside(service: Service, name: str, chain: Sequence[bytes], *, by: str) -> Record:
    """Take the certificate that an outside CA made for an issuing CA, with those above it up to its root.

    A root that is not known yet is prepared with it: devices trust it from the next bundle on.
    Raises: NotFound, WrongStep, OutsideCertificateRefused.
    """
    now, url = service.clock(), service.config.service_name
    row = await service.store.read(lambda tx: _known(tx, name))
    if row.kind != ISSUING or not row.public_key:
        raise WrongStep(expected="an issuing CA that has its key", actual=f"{row.kind} {name}")
    names = (url, f"spiffe://{url}/service")
    key, weak = row.public_key, service.debian_weak
    outside = verify_outside(chain[0], chain[1:], public_key=key, now=now, names=names, debian_weak=weak)
    entry = leaf(service, "authority", now, name=name, step="import", certificate=outside.chain[0], by=by)

    def write(tx: Connection) -> Record:
        known = _known(tx, name)
        if known.certificate:
            if known.certificate == outside.chain[0]:
                return known
            raise WrongStep(expected=f"{name} without a certificate", actual="one that it has")
        roots = authorities.of_kind(tx, ROOT)
        if all(one.certificate != outside.chain[-1] for one in roots):
            _add_root(tx, outside.chain[-1], now)
        authorities.change(tx, name, certificate=outside.chain[0], chain=chain_text(outside.chain[1:]))
        leaves.add(tx, entry)
        return _known(tx, name)

    taken = await service.ledger.write(write)
    await service.authorities.refresh(service.store)
    return taken


def _add_root(tx: Connection, root: bytes, now: datetime) -> None:
    title = following_name(ROOT, [row.name for row in authorities.every(tx)])
    authorities.add(tx, authority_row(title, ROOT, "", (root,), state=State.PREPARED, now=now))


def _known(tx: Connection, name: str) -> Record:
    row = authorities.named(tx, name)
    if row is None:
        raise NotFound(expected="an authority or key of muster ca status", actual=name)
    return row
