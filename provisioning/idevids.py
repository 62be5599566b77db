"""IDevIDs (IEEE 802.1AR) out of the factory: a station vouches for a device without a TPM, under its counted budget.

The record says `idevid`: such a device shows its IDevID to EST's simpleenroll and gets an LDevID. Nothing else is
opened by an IDevID.
"""

import hashlib

from sqlalchemy import Connection

from provisioning.db import devices, enrollments, leaves
from provisioning.db.devices import Record
from provisioning.factory import MODEL, SERIAL, StationIdentity
from provisioning.issuing import idevid_order, issue
from provisioning.journal import leaf
from provisioning.refusals import BudgetSpent, RegistrationMalformed, SerialTaken, StationUnknown
from provisioning.service import Service
from wire.codec import b64url
from wire.factory import IdevidIssued, IdevidRequest

REQUEST_PREFIX = "idevid."
"""What stands before the id of a request for an IDevID."""


async def issue_idevid(service: Service, station: StationIdentity, request: IdevidRequest) -> IdevidIssued:
    """Register a device and certify its key, in one. The same request again gets the same certificate.

    Raises: RegistrationMalformed, CsrRefused, KeyKindRefused, StationUnknown, SerialTaken, BudgetSpent,
    DeviceKeyReused, and what `issue` raises.
    """
    if SERIAL.fullmatch(request.serial) is None or MODEL.fullmatch(request.model) is None:
        raise RegistrationMalformed(
            expected="a serial of A-Z a-z 0-9 . - and a model of a-z 0-9 . -",
            actual=f"{request.serial} {request.model}",
        )
    spki = await service.verifier.possession(request.csr)
    said = f"muster/v1/idevid\0{station.name}\0{request.serial}\0{request.model}\0".encode()
    digest = hashlib.sha256(said + hashlib.sha256(request.csr).digest()).digest()
    request_id = REQUEST_PREFIX + b64url(digest[:16])
    before = await service.store.read(lambda tx: _before(tx, station, request, request_id))
    device_id = "d-" + service.entropy(8).hex() if before is None else before.id
    now = service.clock()
    entry = leaf(
        service,
        "registration",
        now,
        device=device_id,
        serial=request.serial,
        ek="",
        assurance="idevid",
        trust="none",
        station=station.name,
    )

    def claim(tx: Connection, again: bool) -> None:  # noqa: FBT001  the shape of a claim
        """The record, the budget and the leaf of a device, in the commit that reserves its IDevID."""
        if again or before is not None:  # this very request made them already
            return
        known = _station(tx, station)
        if devices.by_serial(tx, request.serial) is not None:
            raise SerialTaken(expected="a new serial", actual=request.serial)
        if known.budget - known.used < 1:
            raise BudgetSpent(expected="at most 0 more", actual=1)
        named = {"id": device_id, "serial": request.serial, "model": request.model, "station": station.name}
        row = {**named, "assurance": "idevid", "ek_trust": "none", "registered_at": int(now.timestamp())}
        devices.add(tx, [row])
        devices.spend(tx, station.name, 1)
        leaves.add(tx, entry)

    order = idevid_order(service, device_id, request.serial, spki, request_id)
    issued = await issue(service, order, lambda _tx, _certificate: None, claim)
    left = await service.store.read(lambda tx: _station(tx, station))
    chain = service.authorities.named(issued.issuer).chain
    return IdevidIssued(device_id, issued.der, chain, left.budget - left.used)


def _before(tx: Connection, station: StationIdentity, request: IdevidRequest, request_id: str) -> Record | None:
    """The device that this very request made before. Raises: StationUnknown, SerialTaken."""
    _station(tx, station)
    device = devices.by_serial(tx, request.serial)
    certificate = enrollments.certificate_of_enrollment(tx, request_id)
    if device is not None and (certificate is None or certificate.device_id != device.id):
        raise SerialTaken(expected="a new serial", actual=request.serial)
    return device


def _station(tx: Connection, station: StationIdentity) -> Record:
    """The station, by its newest certificate. Raises: StationUnknown."""
    known = devices.station_by_name(tx, station.name)
    if known is None or known.certificate_serial != station.certificate_serial:
        raise StationUnknown(expected="the current certificate of a station", actual=station.name)
    return known
