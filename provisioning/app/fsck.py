"""`muster fsck`: does the database keep its promises? Read again from the stored bytes, by other code than wrote them.

Each check is an invariant of tests and operation: it must hold after every load, fault and restore. Nothing is mended
here, and no key is needed: the certificates and the trust bundle say who must have signed.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection

from provisioning.app.audit import Check, LogKeys, Report, verify_log
from provisioning.app.fsck_crls import check_crls
from provisioning.app.signatures import check_signatures
from provisioning.attestation.endorsement import ek_id_of
from provisioning.authorities import Authorities
from provisioning.db import inspection
from provisioning.db.devices import Record
from provisioning.db.logs import stored
from provisioning.est import REQUEST_PREFIX
from provisioning.issuance.tbs import UNPARSED, Profile, assemble, serial_text
from provisioning.refusals import Refusal
from wire.binding import key_id
from wire.codec import MalformedMessage, parse_json, unb64url

SIGNED = ("issued", "superseded", "revoked")
RECORD_MOST = 256 * 1024
UNSIGNED_FOR = timedelta(minutes=5)
"""A reserved certificate that is older was left by a crash; a younger one may be at the HSM right now."""
_BY_ROOT = (Profile.ROOT_CA.value, Profile.ISSUING_CA.value)
_IN_SERVICE = (Profile.LDEVID.value, Profile.GATEWAY.value)
"""What a device earns, by evidence or by EST. A certificate of quarantine stands on evidence that did not pass."""
_LEAVES = ("certificate", "attestation", "registration")


_Other = tuple[str, str | None, bytes, str | None]
"""Serial, device, key, request."""


@dataclass(slots=True)
class _Records:
    """What the log says, by what it speaks of."""

    certificates: dict[str, bytes] = field(default_factory=dict)
    """Serial to the SHA-256 of the to-be-signed bytes."""
    attestations: Counter[tuple[str, str, bytes]] = field(default_factory=Counter)
    """Device, flow, SHA-256 of the evidence."""
    registrations: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    """Device to serial, EK (empty where it has none), assurance, and on what the trust in the EK rests."""


def check_installation(tx: Connection, authorities: Authorities, keys: LogKeys, now: datetime) -> Report:
    """All invariants, in one consistent state of the database."""
    report = verify_log(tx, keys)
    records = _records(tx, report)
    attested = _attestations(tx, records, report)
    _certificates(tx, authorities, records, attested, now, report)
    check_crls(tx, authorities, report)
    _devices(tx, records, report)
    check_signatures(tx, report)
    return report


def _records(tx: Connection, report: Report) -> _Records:
    check = Check("every record of the log can be read")
    report.checks.append(check)
    found = _Records()
    for rows in (inspection.numbered_leaves(tx), inspection.waiting_leaves(tx)):
        for row in rows:
            if row.kind in _LEAVES and row.record is not None:
                check.looked_at += 1
                try:
                    _remember(found, row.kind, parse_json(row.record, limit=RECORD_MOST))
                except (MalformedMessage, KeyError, TypeError, ValueError):
                    check.faults.append(f"leaf {row.number}: its record is no {row.kind}")
    return found


def _remember(found: _Records, kind: str, record: dict[str, str]) -> None:
    if kind == "certificate":
        found.certificates[record["serial"]] = unb64url(record["tbs_sha256"])
    elif kind == "attestation":
        found.attestations[record["device"], record["flow"], unb64url(record["evidence"])] += 1
    else:
        assurance = record.get("assurance", "attested")
        found.registrations[record["device"]] = (record["serial"], record["ek"], assurance, record["trust"])


def _attestations(tx: Connection, records: _Records, report: Report) -> dict[str, tuple[str, str]]:
    """The device and flow of every attestation by its id, which is that of its challenge."""
    logged, logs = Check("every attestation stands in the log"), Check("every log is the one that its name says")
    report.checks += [logged, logs]
    attested: dict[str, tuple[str, str]] = {}
    named: set[str] = set()
    for row in inspection.attestations(tx):
        logged.looked_at += 1
        attested[row.id] = (row.device_id, row.flow)
        named |= {name for name in (row.boot_log_sha256, row.ima_log_sha256) if name is not None}
        if (row.device_id, row.flow, hashlib.sha256(row.evidence).digest()) not in records.attestations:
            logged.faults.append(f"attestation {row.id} of {row.device_id}: the log has no leaf for this evidence")
    for row in inspection.removed_attestations(tx):
        logged.looked_at += 1
        attested[row.id] = (row.device_id, row.flow)
        if (row.device_id, row.flow, row.evidence_sha256) not in records.attestations:
            logged.faults.append(f"attestation {row.id} of {row.device_id}: removed, and the log has no leaf for it")
    gone = 0
    for row in inspection.boot_logs(tx):
        logs.looked_at += 1
        named.discard(row.sha256)
        found = stored(tx, row.sha256)
        if found is not None and found.removed_at is not None:
            gone += 1
        elif found is None or found.content is None or hashlib.sha256(found.content).hexdigest() != row.sha256:
            logs.faults.append(f"log {row.sha256}: is not what its name says")
    if gone:
        report.notes.append(f"{gone} logs that evidence names were removed by retention: their hashes stand alone")
    logs.faults += [f"log {sha256}: an attestation names it, and it is gone" for sha256 in sorted(named)]
    return attested


def _certificates(
    tx: Connection,
    authorities: Authorities,
    records: _Records,
    attested: dict[str, tuple[str, str]],
    now: datetime,
    report: Report,
) -> None:
    same = Check("every certificate is what was reserved, and signed by its CA")
    serials = Check("no serial stands twice")
    evidence = Check("every LDevID has its attestation")
    logged = Check("every certificate stands in the log, and nothing else does")
    report.checks += [same, serials, evidence, logged]
    missing = dict(records.certificates)
    seen: set[int] = set()
    proven: set[tuple[str, bytes]] = set()
    others: list[_Other] = []
    for row in inspection.certificates(tx):
        serials.looked_at += 1
        number = int(row.serial, 16)
        if number in seen:
            serials.faults.append(f"certificate {row.serial}: a second one has this serial")
        seen.add(number)
        committed = missing.pop(row.serial, None)
        if row.signature is None:
            _unsigned(row, now, same, report)
            if committed is not None:
                logged.faults.append(
                    f"certificate {row.serial}: the log says that it was issued, and its signature is gone"
                )
            continue
        same.looked_at += 1
        same.faults += [f"certificate {row.serial}: {fault}" for fault in faults_of(row, authorities)]
        if row.profile in _BY_ROOT:
            continue
        logged.looked_at += 1
        if committed != hashlib.sha256(row.tbs).digest():
            why = "has no leaf in the log" if committed is None else "is another one than the log says"
            logged.faults.append(f"certificate {row.serial}: {why}")
        if row.profile in _IN_SERVICE:
            evidence.looked_at += 1
            device, flow = attested.get(row.enrollment_id or "", ("", ""))
            if device == row.device_id and flow in ("enroll", "rotate"):
                proven.add((device, row.key_id))
            else:
                others.append((row.serial, row.device_id, row.key_id, row.enrollment_id))
    _renewals(others, proven, records, evidence)
    logged.faults += [f"certificate {serial}: stands in the log and not in the database" for serial in sorted(missing)]


def _renewals(others: list[_Other], proven: set[tuple[str, bytes]], records: _Records, evidence: Check) -> None:
    """LDevIDs that answer no challenge: by EST, of a device without a TPM, or over a key that was attested."""
    for serial, device, key, request in others:
        by_est = request is not None and request.startswith(REQUEST_PREFIX)
        _, _, assurance, _ = records.registrations.get(device or "", ("", "", "attested", ""))
        if not by_est or (assurance == "attested" and (device, key) not in proven):
            evidence.faults.append(f"certificate {serial} of {device}: no attestation answers its challenge")


def _unsigned(row: Record, now: datetime, same: Check, report: Report) -> None:
    if row.state not in ("reserved", "revoked"):
        same.faults.append(f"certificate {row.serial}: is {row.state} and has no signature")
    elif now - datetime.fromtimestamp(row.reserved_at, UTC) > UNSIGNED_FOR:
        report.notes.append(
            f"certificate {row.serial} for {row.subject} was reserved and never issued ({row.state}): a crash;"
            " its request may come again, nothing is to be done"
        )


def faults_of(row: Record, authorities: Authorities) -> list[str]:
    """How a signed row differs from the certificate that it becomes; nothing where it does not."""
    try:
        certificate = x509.load_der_x509_certificate(assemble(row.tbs, row.signature))
        certificate.verify_directly_issued_by(authorities.named(row.issuer).certificate)
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        facts = (
            ("state", True, row.state in SIGNED),
            ("to-be-signed bytes", row.tbs, certificate.tbs_certificate_bytes),
            ("serial", row.serial, serial_text(certificate.serial_number)),
            ("key", row.key_id.hex(), key_id(spki)),
            ("start", row.not_before, int(certificate.not_valid_before_utc.timestamp())),
            ("end", row.not_after, int(certificate.not_valid_after_utc.timestamp())),
            ("name", row.subject, _common_name(certificate)),
        )
    except InvalidSignature:
        return ["its signature is not its CA's over these bytes"]
    except UNPARSED as error:
        return [f"is not a certificate of its CA ({type(error).__name__})"]
    return [f"its {what} in the row and in the certificate differ" for what, stored, read in facts if stored != read]


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _devices(tx: Connection, records: _Records, report: Report) -> None:
    single = Check("at most one identity an EK")
    registered = Check("every device is the one that was registered")
    report.checks += [single, registered]
    active: dict[str, str] = {}
    for row in inspection.devices(tx):
        single.looked_at += 1
        registered.looked_at += 1
        if row.state in ("registered", "active") and row.ek_id is not None:
            other = active.setdefault(row.ek_id, row.id)
            if other != row.id:
                single.faults.append(f"device {row.id}: {other} is in service with the same EK")
        if records.registrations.get(row.id) != (
            row.serial,
            row.ek_id or row.identity_id or "",
            row.assurance,
            row.ek_trust,
        ):
            registered.faults.append(
                f"device {row.id}: its serial, EK, assurance or trust is not what the log says was registered"
            )
        if row.ek_trust == "certificate" and not _is_ek(row.ek_certificate, row.ek_id):
            registered.faults.append(f"device {row.id}: its EK certificate is of another key than its record says")


def _is_ek(certificate: bytes, ek_id: str) -> bool:
    try:
        return ek_id_of(certificate) == ek_id
    except Refusal:
        return False
