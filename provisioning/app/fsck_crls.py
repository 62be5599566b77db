"""The part of `muster fsck` about CRLs: each authority's own, numbers that rise, and exactly what is revoked."""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from sqlalchemy import Connection

from provisioning.app.audit import Check, Report
from provisioning.authorities import ISSUING, Authorities, State
from provisioning.db import inspection, revocations
from provisioning.db.devices import Record
from provisioning.issuance.tbs import UNPARSED, serial_text
from provisioning.refusals import NotFound


@dataclass(frozen=True, slots=True)
class _Newest:
    """The newest CRL of one authority: what it lists, and since when."""

    number: int
    at: datetime
    covers: int
    """The newest change that it shows."""
    entries: dict[str, datetime]


def check_crls(tx: Connection, authorities: Authorities, report: Report) -> None:
    """Are the stored CRLs their authorities', and do the newest say what the certificates' rows say?"""
    signed = Check("every CRL is its CA's, and the numbers rise")
    listed = Check("the CRLs list exactly what is revoked")
    report.checks += [signed, listed]
    newest: dict[str, _Newest] = {}
    for row in inspection.crls(tx):
        signed.looked_at += 1
        crl = _crl(row, authorities, signed)
        if crl is None:
            continue
        before = newest.get(row.authority)
        if before is not None and crl.last_update_utc < before.at:
            signed.faults.append(f"CRL {row.number} of {row.authority}: is dated before the one before it")
        entries = {serial_text(entry.serial_number): entry.revocation_date_utc for entry in crl}
        newest[row.authority] = _Newest(row.number, crl.last_update_utc, row.covers, entries)
    for one in authorities.of_kind(ISSUING, State.ACTIVE, State.RETIRING):
        if one.name not in newest:
            listed.faults.append(f"there is no CRL at all of {one.name}")
    for row in inspection.certificates(tx):
        if row.state == "revoked":
            listed.looked_at += 1
            _verify_listed(tx, row, newest.get(row.issuer), listed, report)
    for row in inspection.adopted(tx):  # out of a CRL that was published before this database was restored
        if row.issuer in newest:
            newest[row.issuer].entries.pop(row.serial, None)
    listed.faults += [
        f"certificate {serial}: CRL {crl.number} of {name} lists it, and it is not revoked"
        for name, crl in newest.items()
        for serial in sorted(crl.entries)
    ]


def _crl(row: Record, authorities: Authorities, check: Check) -> x509.CertificateRevocationList | None:
    name = f"CRL {row.number} of {row.authority}"
    try:
        crl = x509.load_der_x509_crl(row.der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        list(crl)
        key = authorities.named(row.authority).certificate.public_key()
    except (*UNPARSED, x509.ExtensionNotFound, NotFound) as error:
        check.faults.append(f"{name}: cannot be read ({type(error).__name__})")
        return None
    if number != row.number:
        check.faults.append(f"{name}: calls itself {number}")
    if not crl.is_signature_valid(key):  # type: ignore[arg-type]  # a CA's key is none of X25519, X448
        check.faults.append(f"{name}: is not signed by it")
        return None
    return crl


def _verify_listed(tx: Connection, row: Record, crl: _Newest | None, listed: Check, report: Report) -> None:
    """Takes the certificate out of the CRL's entries: what is left there is listed and not revoked."""
    name = f"certificate {row.serial}"
    if crl is None:
        report.notes.append(f"{name} is revoked and {row.issuer} has no CRL here")
        return
    entry = crl.entries.pop(row.serial, None)
    if entry is not None:
        if int(entry.timestamp()) != row.revoked_at:
            listed.faults.append(f"{name}: CRL {crl.number} names another time of revocation")
    elif (revocations.change_of(tx, row.serial) or 0) > crl.covers:
        report.notes.append(f"{name} is revoked and waits for the next CRL: muster serve signs it within a minute")
    elif row.not_after > crl.at.timestamp():
        listed.faults.append(f"{name}: is revoked, and CRL {crl.number} does not list it")
