"""`muster fsck --lint`: every stored certificate again, through the look before signing and through pkilint.

Page by page, each in a read of its own: memory stays bounded, and a long run holds up neither writers nor the
database's own housekeeping. What a certificate must say comes out of the records: device, profile version, authority.
Only the addresses of CRL, responder and issuer are taken as they stand in it: the service may have moved since.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID
from sqlalchemy import Connection

from provisioning.app.audit import Check, Report
from provisioning.authorities import Authorities
from provisioning.db import devices, enrollments
from provisioning.db.devices import Record
from provisioning.issuance.check import check_tbs
from provisioning.issuance.profile import (
    Gateway,
    Idevid,
    Issuer,
    IssuingCa,
    Ldevid,
    OcspResponder,
    Operator,
    Quarantine,
    RootCa,
    ServiceTls,
    Station,
    Wanted,
    operator_name,
    permitted_of,
    station_name,
)
from provisioning.issuance.profiles import CertificateProfile
from provisioning.issuance.reader import pieces_of
from provisioning.issuance.tbs import UNPARSED, Profile, ToBeSigned, assemble
from provisioning.profiles import profile_of
from provisioning.refusals import NotFound, ProfileMalformed, ToBeSignedRefused

PAGE = 500
FAULTS_MOST = 1000
"""Faults that are kept of one check: where all certificates fail, a thousand of them say enough."""
SAYS = "every certificate says what its record and profile say"
CLEAN = "pkilint finds nothing in any certificate"
CURE = "find out how it was issued, replace it, and revoke it: muster certificates revoke SERIAL"

T = TypeVar("T")
Read = Callable[[Callable[[Connection], T]], T]


class _Unlike(Exception):
    """The certificate's record does not say what it must say; the message is one line."""


def lint_installation(
    read: Read[list[tuple[str, bytes | None, list[str]]]], authorities: Authorities, service_name: str
) -> Report:
    """Both checks over all certificates, in the order of serials. Imports pkilint: a second, and some 60 MiB."""
    from provisioning.app.lint import lint_certificate  # noqa: PLC0415  it costs what stands above

    says, clean = Check(SAYS, cure=CURE), Check(CLEAN, cure=CURE)
    report = Report([says, clean])
    last = ""
    while page := read(lambda tx, last=last: _page(tx, last, authorities, service_name)):  # type: ignore[misc]  # bound now
        for serial, der, faults in page:
            last = serial
            if der is None:
                continue
            says.looked_at += 1
            clean.looked_at += 1
            _note(says, serial, faults)
            try:
                _note(clean, serial, lint_certificate(der))
            except (ValueError, TypeError) as error:
                _note(clean, serial, [f"cannot be read ({type(error).__name__})"])
    return report


def _note(check: Check, serial: str, faults: list[str]) -> None:
    if len(check.faults) < FAULTS_MOST:
        check.faults += [f"certificate {serial}: {fault}" for fault in faults]


def _page(
    tx: Connection, last: str, authorities: Authorities, service_name: str
) -> list[tuple[str, bytes | None, list[str]]]:
    """Serial, certificate (None where it was never signed), faults."""
    found: list[tuple[str, bytes | None, list[str]]] = []
    known: dict[tuple[str, int | None], CertificateProfile] = {}
    for row in enrollments.certificates_after(tx, last, PAGE):
        if row.signature is None:
            found.append((row.serial, None, []))
            continue
        try:
            der = assemble(row.tbs, row.signature)
        except (ValueError, TypeError) as error:
            found.append((row.serial, b"", [str(error)]))
            continue
        found.append((row.serial, der, list(_faults(tx, row, der, authorities, service_name, known))))
    return found


def _faults(
    tx: Connection,
    row: Record,
    der: bytes,
    authorities: Authorities,
    service_name: str,
    known: dict[tuple[str, int | None], CertificateProfile],
) -> Iterator[str]:
    if row.profile not in set(Profile):
        yield f"is of no kind that is known: {row.profile}"
        return
    try:
        key = (row.profile, row.profile_id)
        if key not in known:
            known[key] = profile_of(tx, *key)
        certificate = x509.load_der_x509_certificate(der)
        wanted = _wanted(tx, row, certificate, known[key], service_name)
        begin, end = (datetime.fromtimestamp(at, UTC) for at in (row.not_before, row.not_after))
        tbs = ToBeSigned(row.tbs, int(row.serial, 16), Profile(row.profile), begin, end)
        check_tbs(tbs, wanted, _issuer(row, certificate, authorities), known[key])
    except _Unlike as error:
        yield str(error)
    except NotFound as refusal:
        yield f"is of no authority that is known ({refusal.actual})"
    except ProfileMalformed as refusal:
        yield f"its profile cannot be read: {refusal.actual}"
    except ToBeSignedRefused as refusal:
        if not refusal.findings:
            yield f"is not what {refusal.expected} is: {refusal.actual}"
        for found in refusal.findings:
            yield f"its {found.what}: {found.actual[:200]} instead of {found.expected[:200]}"
    except UNPARSED as error:
        yield f"cannot be read ({type(error).__name__})"


def _wanted(
    tx: Connection, row: Record, certificate: x509.Certificate, profile: CertificateProfile, service_name: str
) -> Wanted:
    """What it must say, by its record. Raises: _Unlike."""
    spki, kind = pieces_of(row.tbs).public_key, Profile(row.profile)
    if kind is not profile.kind:
        raise _Unlike(f"its profile {profile.name} is one for the kind {profile.kind}")
    if kind in (Profile.LDEVID, Profile.GATEWAY, Profile.QUARANTINE, Profile.IDEVID):
        return _device(tx, row, spki, profile, service_name)
    if kind is Profile.STATION:
        return Station(row.subject.removeprefix(station_name("")), service_name, spki)
    if kind is Profile.OPERATOR:
        return Operator(row.subject.removeprefix(operator_name("")), service_name, spki)
    if kind is Profile.OCSP_RESPONDER:
        return OcspResponder(row.issuer, service_name, spki)
    names = _alternative_names(certificate)
    if kind is Profile.SERVICE_TLS:
        hosts = [str(name.value) for name in names if not isinstance(name, x509.UniformResourceIdentifier)]
        return ServiceTls(service_name, tuple(hosts), spki)
    if kind is Profile.ROOT_CA:
        return RootCa(row.subject, spki)
    return IssuingCa(row.subject, spki, *permitted_of(certificate), service_name=service_name if names else "")


def _device(tx: Connection, row: Record, spki: bytes, profile: CertificateProfile, service_name: str) -> Wanted:
    device = None if row.device_id is None else devices.by_id(tx, row.device_id)
    if device is None:
        raise _Unlike(f"its device {row.device_id} is not registered")
    names = (device.id, device.serial, service_name)
    if profile.kind is Profile.GATEWAY:
        hosts = () if profile.dns_domain is None else (f"{device.id}.{profile.dns_domain}",)
        return Gateway(*names, hosts, spki)
    if profile.kind is Profile.IDEVID:
        return Idevid(*names, spki)
    return Quarantine(*names, spki) if profile.kind is Profile.QUARANTINE else Ldevid(*names, spki)


def _issuer(row: Record, certificate: x509.Certificate, authorities: Authorities) -> Issuer | None:
    """Its authority, with the addresses that stand in it; None where it signed itself. Raises: NotFound."""
    if row.profile == Profile.ROOT_CA and certificate.issuer == certificate.subject:
        return None
    crl, responder, issuer = None, None, None
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.CRLDistributionPoints):
            points = [name for point in extension.value for name in point.full_name or ()]
            crl = str(points[0].value) if len(points) == 1 else None
        elif isinstance(extension.value, x509.AuthorityInformationAccess):
            where = {each.access_method: str(each.access_location.value) for each in extension.value}
            responder = where.get(AuthorityInformationAccessOID.OCSP)
            issuer = where.get(AuthorityInformationAccessOID.CA_ISSUERS)
    authority = authorities.named(row.issuer).issuer
    return replace(authority, crl_url=crl, ocsp_url=responder, ca_url=issuer)


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
