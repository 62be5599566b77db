"""Which registered device is this TPM, and who vouches for its AK: the EK, or the device maker's certificate."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection

from provisioning.attestation.attestation_key import AttestationKey
from provisioning.attestation.endorsement import (
    RegisteredEk,
    TrustedEk,
    ek_id_of,
    ek_id_of_public,
    verify_endorsement,
)
from provisioning.attestation.evidence import verify_attestation_key
from provisioning.attestation.identity import verify_identity, verify_idevid
from provisioning.attestation.policy import Policy
from provisioning.attestation.verdicts import EkVerdicts
from provisioning.db import devices, enrollments
from provisioning.db.devices import Record
from provisioning.refusals import EkNotRegistered, Finding, IdentityCertificateUnfit, RequestMalformed
from provisioning.service import Service
from wire.codec import b64url, unb64url
from wire.messages import EnrollmentRequest


@dataclass(frozen=True, slots=True)
class Named:
    """By what a request names its TPM: the key id of its EK, or of the identity that its maker certified."""

    kind: Literal["ek", "iak", "idevid"]
    key_id: str

    def __str__(self) -> str:
        names = {"ek": "EK", "iak": "IAK", "idevid": "IDevID"}
        return f"the {names[self.kind]} {self.key_id}"


@dataclass(frozen=True, slots=True)
class Endorsed:
    """An AK that a challenge may be made for. `ek` is None where the AK's own certificate took its place."""

    ek: TrustedEk | None
    ak: AttestationKey
    findings: tuple[Finding, ...]


def named_by(request: EnrollmentRequest) -> Named:
    """To look a record up, not to believe anything. Raises: RequestMalformed; a Refusal of the checks 1 or 2."""
    given = (request.ek_certificate, request.ek_public, request.iak_certificate)
    if sum(one is not None for one in given) != 1:
        raise RequestMalformed(
            expected="one of ek_certificate, ek_public and iak_certificate", actual="none, or several"
        )
    if request.iak_certificate is None:
        if request.idevid_certificate is not None:
            raise RequestMalformed(expected="an iak_certificate beside idevid_certificate", actual="none")
        if request.ek_certificate is not None:
            return Named("ek", ek_id_of(request.ek_certificate))
        return Named("ek", ek_id_of_public(request.ek_public or b""))
    if request.idevid_certificate is not None:
        return Named("idevid", ek_id_of(request.idevid_certificate))
    return Named("iak", ek_id_of(request.iak_certificate))


def device_of(tx: Connection, named: Named) -> Record | None:
    """The device that is registered by exactly that: a record of an IAK is not found by an IDevID of the same key."""
    if named.kind == "ek":
        return devices.by_ek(tx, named.key_id)
    found = devices.by_identity(tx, named.key_id)
    return None if found is None or found.ek_trust != named.kind else found


def endorse(
    service: Service,
    device: Record,
    request: EnrollmentRequest,
    policy: Policy,
    now: datetime,
    verdicts: EkVerdicts | None = None,
) -> Endorsed:
    """Checks 1 to 6, up to the credential, by what the device is registered with.

    `verdicts`: where what was found about an EK before may stand for what would be found now. Raises: a Refusal of
    theirs.
    """
    store = service.ek_roots.store
    if device.identity_id is None:
        registered = RegisteredEk(device.ek_id, device.ek_trust, device.ek_certificate)
        verify = verify_endorsement if verdicts is None else verdicts.verify_endorsement
        ek = verify(request, policy, now, registered, store)
        return Endorsed(ek, verify_attestation_key(request.ak_public), ek.findings)
    if request.iak_certificate is None:
        raise EkNotRegistered(expected="an IAK certificate", actual="an EK")
    chain = request.iak_intermediates
    known = verify_identity(request.ak_public, request.iak_certificate, chain, policy, now, store)
    findings = known.findings
    if device.ek_trust == "idevid":
        if request.idevid_certificate is None:
            raise IdentityCertificateUnfit(expected="the registered IDevID certificate too", actual="none")
        findings += verify_idevid(request.idevid_certificate, chain, known, policy, now, store)
    return Endorsed(None, known.ak, tuple(dict.fromkeys(findings)))


def ek_columns(request: EnrollmentRequest, device: Record) -> dict[str, Any]:
    """What the record keeps of an endorsed request, so that later challenges can be made.

    The factory may have read another certificate of the same EK. Of a device without EK nothing is kept before it has
    proven itself: see `identity_text`.
    """
    if request.iak_certificate is not None:
        return {}
    return {
        "ek_certificate": request.ek_certificate or device.ek_certificate,
        "ek_public": request.ek_public or device.ek_public,
        "ek_intermediates": _text(request.ek_intermediates),
    }


def identity_text(request: EnrollmentRequest) -> str | None:
    """The certificates of a certified AK, as they wait with the challenge."""
    if request.iak_certificate is None:
        return None
    idevid = () if request.idevid_certificate is None else (request.idevid_certificate,)
    return json.dumps([_text((request.iak_certificate,)), _text(request.iak_intermediates), _text(idevid)])


def keep_identity(tx: Connection, device_id: str, enrollment_id: str) -> None:
    """The evidence of this challenge passed: the certificates that waited with it are the record's now."""
    challenge = enrollments.get(tx, enrollment_id)
    if challenge is None or challenge.identity is None:
        return
    iak, intermediates, idevid = json.loads(challenge.identity)
    (certificate,) = _chain(iak)
    devices.change(
        tx,
        device_id,
        iak_certificate=certificate,
        iak_intermediates=intermediates,
        idevid_certificate=next(iter(_chain(idevid)), None),
    )


def request_of(device: Record, banks: tuple[str, ...]) -> EnrollmentRequest:
    """The same request again, out of the record: for a challenge that the service makes by itself."""
    if device.identity_id is not None:
        return EnrollmentRequest(
            ak_public=device.ak_public,
            pcr_banks=banks,
            iak_certificate=device.iak_certificate,
            iak_intermediates=_chain(device.iak_intermediates),
            idevid_certificate=device.idevid_certificate,
        )
    return EnrollmentRequest(
        ak_public=device.ak_public,
        pcr_banks=banks,
        ek_certificate=device.ek_certificate,
        ek_public=device.ek_public if device.ek_certificate is None else None,
        ek_intermediates=_chain(device.ek_intermediates),
    )


def _text(certificates: tuple[bytes, ...]) -> str:
    return json.dumps([b64url(der) for der in certificates])


def _chain(text: str) -> tuple[bytes, ...]:
    return tuple(unb64url(one) for one in json.loads(text))
