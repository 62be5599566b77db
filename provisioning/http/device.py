"""The device listener: enrollment, factory, boot logs, and what a device fetches with its certificate."""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from aiohttp import web

from provisioning.access.rates import GLOBAL, Rate, RateTable
from provisioning.enrollment import begin_enrollment, complete_enrollment, evidence_most
from provisioning.factory import register
from provisioning.http import est
from provisioning.http.auth import device_of, station_of
from provisioning.http.exchange import NO_STORE, Call, Route, reply, too_many
from provisioning.http.files import send_file
from provisioning.http.public import trust_file
from provisioning.idevids import issue_idevid
from provisioning.logs import store_log
from provisioning.refusals import Busy, RequestMalformed
from provisioning.updates import director_file
from wire.factory import IdevidRequest, RegistrationRequest
from wire.messages import (
    ENROLLMENT_BODY_MOST,
    EVIDENCE_BODY_MOST,
    IMA_LOG_MOST,
    EnrollmentRequest,
    Evidence,
    Standing,
)

REGISTRATION_BODY_MOST = 16 * 1024 * 1024
"""Bytes: a thousand registrations with an EK certificate each."""
REGISTRATION_PARTS_MOST = 32 * 1024
"""Of a thousand of them with every field: 26 each."""
IDEVID_BODY_MOST = 24 * 1024
SHA256_HEX = 64


@dataclass(slots=True)
class InFlight:
    """How many enrollments are being worked on; more than `most` at once are asked to come back."""

    most: int
    count: int = 0

    def __enter__(self) -> None:
        if self.count >= self.most:
            raise Busy(expected=f"at most {self.most} enrollments at once", actual="more")
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


@dataclass(slots=True)
class Pace:
    """How often a challenge may be asked for by all senders together: a second's worth at once, then evenly."""

    rates: RateTable | None = None

    def admit(self, per_second: int) -> None:
        """Count one request. Raises: TooManyRequests."""
        if self.rates is None:
            self.rates = RateTable(Rate(per_second, per_second))
        if (wait := self.rates.wait_seconds(GLOBAL, monotonic())) > 0:
            raise too_many(wait)


def routes(enrollments: InFlight) -> list[Route]:
    """What the device listener serves."""
    pace = Pace()

    async def begin(call: Call) -> web.Response:
        request = await call.message(EnrollmentRequest, ENROLLMENT_BODY_MOST)
        pace.admit(call.service.config.limits.enrollments_per_second)
        with enrollments:
            return reply(await begin_enrollment(call.service, request, source=call.source), 201)

    async def complete(call: Call) -> web.Response:
        most = EVIDENCE_BODY_MOST
        if (call.request.content_length or 0) > most:
            most = await evidence_most(call.service, call.path["id"])
        received, evidence = await call.message_and_bytes(Evidence, most)
        with enrollments:
            issued = await complete_enrollment(
                call.service, call.path["id"], evidence, arrived=call.arrived, source=call.source, received=received
            )
            return reply(issued)

    return [
        Route("POST", "/v1/enrollments", begin),
        Route("POST", "/v1/enrollments/{id}/evidence", complete),
        Route("POST", "/v1/factory/devices", register_devices, detailed=True),
        Route("POST", "/v1/factory/idevids", make_idevid, detailed=True),
        Route("PUT", "/v1/logs/{sha256}", put_log),
        Route("GET", "/v1/standing", standing),
        Route("GET", "/ota/image/{name...}", image_file),
        Route("GET", "/ota/director/{name...}", device_director_file),
        Route("GET", "/trust/{name...}", trust_file),
        *est.routes(enrollments),
    ]


async def register_devices(call: Call) -> web.Response:
    """A factory station vouches for devices."""
    station = await station_of(call)
    request = await call.message(RegistrationRequest, REGISTRATION_BODY_MOST, parts=REGISTRATION_PARTS_MOST)
    return reply(await register(call.service, station, request), 201)


async def make_idevid(call: Call) -> web.Response:
    """A factory station vouches for a device without a TPM."""
    station = await station_of(call)
    request = await call.message(IdevidRequest, IDEVID_BODY_MOST)
    return reply(await issue_idevid(call.service, station, request), 201)


async def put_log(call: Call) -> web.Response:
    """A boot log or IMA log for evidence that travels by MQTT, named by its hash."""
    device = await device_of(call, remedial=True)
    sha256 = call.path["sha256"]
    if len(sha256) != SHA256_HEX:
        raise RequestMalformed(expected="/v1/logs/SHA-256 in hex", actual=sha256)
    await store_log(call.service, device.device, sha256, await call.read(IMA_LOG_MOST))
    return web.Response(status=204, headers=NO_STORE)


async def standing(call: Call) -> web.Response:
    """Does the device's certificate count, and may it use it? Whom the broker turns away asks here what to do."""
    device = await device_of(call, remedial=True)
    return reply(Standing(device.device, device.health))


async def image_file(call: Call) -> web.StreamResponse:
    """A file of the image repository, for a device in service or in quarantine: an update may be the way back."""
    await device_of(call, remedial=True)
    root: Path = call.service.directory.image
    return await send_file(
        call.request, root, call.path["name"], content_type="application/octet-stream", max_age_seconds=0
    )


async def device_director_file(call: Call) -> web.Response:
    """The Director's metadata for this very device."""
    device = await device_of(call, remedial=True)
    content = await director_file(call.service, device.device, call.path["name"])
    return web.Response(body=content, content_type="application/json", headers=NO_STORE)
