"""Factory stations: who may register devices, how many, and the registration itself."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from provisioning.attestation.endorsement import ek_id_of, ek_id_of_public
from provisioning.db import devices, leaves
from provisioning.findings import Noticed, notice
from provisioning.issuance.profile import Station, station_name
from provisioning.issuing import IssuedCertificate, Order, issue
from provisioning.journal import leaf
from provisioning.monitoring import Kind
from provisioning.refusals import (
    BudgetSpent,
    EkTaken,
    Finding,
    Refusal,
    RegistrationMalformed,
    SerialTaken,
    StationUnknown,
)
from provisioning.service import Service
from wire.factory import Registered, Registration, RegistrationRequest
from wire.topics import is_device_id

SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
"""Also an X520SerialNumber, so that it can stand in a certificate as it is."""
MODEL = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
BUDGET_MOST = 10_000_000
SHA256_OCTETS = 32
WAYS = ("ek_certificate", "ek_public", "ek_sha256", "iak_certificate", "idevid_certificate")
"""What a device may be registered by; each is a trust level of its own, or part of one (`Device.ek_trust`)."""
STATION = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")


@dataclass(frozen=True, slots=True)
class StationIdentity:
    """Who the TLS client certificate says the caller is. The certificate itself was verified by the listener."""

    name: str
    certificate_serial: str


async def add_station(service: Service, name: str, budget: int, csr: bytes, *, by: str) -> IssuedCertificate:
    """A certificate for a station and a fresh budget; a known station's certificate is replaced. Raises: Refusal."""
    if STATION.fullmatch(name) is None or not 0 <= budget <= BUDGET_MOST:
        raise RegistrationMalformed(
            expected=f"a name of a-z 0-9 . - and a budget of at most {BUDGET_MOST}", actual=name
        )
    now = service.clock()
    key = await service.verifier.possession(csr)
    entry = leaf(service, "station", now, name=name, budget=budget, by=by)

    def recorded(tx: Connection, certificate: IssuedCertificate) -> None:
        at = int(now.timestamp())
        devices.put_station(tx, name=name, certificate_serial=certificate.serial, budget=budget, now=at)
        leaves.add(tx, entry)

    wanted = Station(name, service.config.service_name, key)
    order = Order(wanted, station_name(name))
    return await issue(service, order, recorded)


async def register(service: Service, station: StationIdentity, request: RegistrationRequest) -> Registered:
    """Register all devices of the request, or none.

    Raises: RegistrationMalformed, SerialTaken, EkTaken (each with every bad row as a finding), BudgetSpent,
    StationUnknown.
    """
    rows = _rows(service, station, request.devices)
    now = service.clock()
    entries = [
        leaf(
            *(service, "registration", now),
            device=row["id"],
            serial=row["serial"],
            ek=row["ek_id"] or row["identity_id"],
            trust=row["ek_trust"],
            station=station.name,
            **({} if row["group"] is None else {"group": row["group"]}),
        )
        for row in rows
    ]
    try:
        return await service.ledger.write(lambda tx: _register(tx, station, rows, entries))
    except (SerialTaken, EkTaken):
        await service.ledger.write(lambda tx: _note_twice(tx, service, station, rows))
        raise


def _rows(service: Service, station: StationIdentity, registrations: tuple[Registration, ...]) -> list[dict[str, Any]]:
    at = int(service.clock().timestamp())
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    findings: list[Finding] = []
    for number, registration in enumerate(registrations):
        where = f"devices[{number}]"
        if SERIAL.fullmatch(registration.serial) is None:
            findings.append(Finding(where, "a serial of A-Z a-z 0-9 . -", registration.serial))
        if MODEL.fullmatch(registration.model) is None:
            findings.append(Finding(where, "a model of a-z 0-9 . -", registration.model))
        if registration.group is not None and not is_device_id(registration.group):
            findings.append(Finding(where, "a group of a-z 0-9 . _ -", registration.group))
        try:
            known_by = _known_by(registration)
        except Refusal as refusal:
            what = "an EK certificate" if registration.ek_certificate is not None else "an EK, IAK or IDevID"
            findings.append(Finding(where, what, refusal.title))
            continue
        numbers.append(number)
        rows.append(
            {
                "id": "d-" + service.entropy(8).hex(),
                "serial": registration.serial,
                "model": registration.model,
                "group": registration.group,
                **known_by,
                "station": station.name,
                "registered_at": at,
            }
        )
    for column, what in (("serial", "a serial"), ("ek_id", "an EK"), ("identity_id", "an identity")):
        values = [row[column] for row in rows]
        counted = Counter(value for value in values if value is not None)
        twice = {value for value, count in counted.items() if count > 1}
        findings += [
            Finding(f"devices[{n}]", f"{what} once", value)
            for n, value in zip(numbers, values, strict=True)
            if value in twice
        ]
    if findings or not rows:
        raise RegistrationMalformed(expected="good rows", actual=f"{len(findings)} bad ones", findings=tuple(findings))
    return rows


def _known_by(registration: Registration) -> dict[str, Any]:
    """The columns of what the TPM is known by: its EK by key id, however it is named, or its maker's certificate.

    Raises: a Refusal of the check that failed, RegistrationMalformed.
    """
    given = [way for way in WAYS if getattr(registration, way) is not None]
    if len(given) != 1:
        raise RegistrationMalformed(expected="one of " + ", ".join(WAYS), actual="none, or several")
    columns: dict[str, Any] = dict.fromkeys(("ek_id", "identity_id", "ek_certificate", "ek_public"))
    if registration.iak_certificate is not None:
        return columns | {"identity_id": ek_id_of(registration.iak_certificate), "ek_trust": "iak"}
    if registration.idevid_certificate is not None:
        return columns | {"identity_id": ek_id_of(registration.idevid_certificate), "ek_trust": "idevid"}
    if registration.ek_certificate is not None:
        certificate = registration.ek_certificate
        return columns | {"ek_id": ek_id_of(certificate), "ek_certificate": certificate, "ek_trust": "certificate"}
    if registration.ek_public is not None:
        public = registration.ek_public
        return columns | {"ek_id": ek_id_of_public(public), "ek_public": public, "ek_trust": "key"}
    if registration.ek_sha256 is None or len(registration.ek_sha256) != SHA256_OCTETS:
        raise RegistrationMalformed(expected=f"{SHA256_OCTETS} bytes of SHA-256", actual="another length")
    return columns | {"ek_id": registration.ek_sha256.hex(), "ek_trust": "key"}


def _note_twice(tx: Connection, service: Service, station: StationIdentity, rows: list[dict[str, Any]]) -> None:
    """Whose TPM somebody registers under another serial. A station's word: it ends nobody's certificate."""
    for row in rows:
        for taken in devices.conflicts(tx, row["serial"], row["ek_id"], row.get("identity_id")):
            if taken.serial != row["serial"]:
                detail = {"how": "registered again", "as_serial": row["serial"], "station": station.name}
                notice(tx, service, Noticed(taken.id, Kind.EK_TWICE, detail, key="registration", proven=False))


def _register(
    tx: Connection, station: StationIdentity, rows: list[dict[str, Any]], entries: list[dict[str, Any]]
) -> Registered:
    known = devices.station_by_name(tx, station.name)
    if known is None or known.certificate_serial != station.certificate_serial:
        raise StationUnknown(expected="the current certificate of a station", actual=station.name)
    serials: list[Finding] = []
    eks: list[Finding] = []
    for number, row in enumerate(rows):
        for taken in devices.conflicts(tx, row["serial"], row["ek_id"], row.get("identity_id")):
            if taken.serial == row["serial"]:
                serials.append(Finding(f"devices[{number}]", "a new serial", row["serial"]))
            else:
                eks.append(Finding(f"devices[{number}]", "a new TPM", f"the TPM of {taken.serial}"))
    if serials:
        raise SerialTaken(expected="new serials", actual=f"{len(serials)} known ones", findings=tuple(serials + eks))
    if eks:
        raise EkTaken(expected="new TPMs", actual=f"{len(eks)} known ones", findings=tuple(eks))
    left = known.budget - known.used - len(rows)
    if left < 0:
        raise BudgetSpent(expected=f"at most {known.budget - known.used} more", actual=len(rows))
    devices.add(tx, rows)
    devices.spend(tx, station.name, len(rows))
    for entry in entries:
        leaves.add(tx, entry)
    return Registered(tuple(row["id"] for row in rows), left)
