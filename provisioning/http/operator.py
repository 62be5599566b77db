"""The operator listener: a table of routes, each with the role that it asks for. What is not in the table is not there.

A handler gets an authenticated, authorized caller and a decoded body, calls one flow, and returns what JSON can say.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from provisioning import certificate_profiles, explaining, inventory, outbox, reattesting, revoking, tokens, updates
from provisioning.access import Operator, Role, may
from provisioning.access.rates import Rate, RateTable
from provisioning.config import Limits
from provisioning.factory import add_station
from provisioning.http import ca, ek_roots, findings, operators, policies, results
from provisioning.http.auth import operator_of
from provisioning.http.exchange import NO_STORE, Call, Route, query, reply, too_many
from provisioning.http.files import receive_file
from provisioning.refusals import NotAuthorized, RequestMalformed
from wire.codec import Cap

BODY_MOST = 256 * 1024
"""Bytes of a JSON body."""
METADATA_MOST = 4 * 1024 * 1024
TARGET_MOST = 4 * 1024 * 1024 * 1024
"""Bytes of one uploaded file of an image repository."""
PAGE_MOST = 500

Name = Annotated[str, Cap(128)]


@dataclass(frozen=True, slots=True)
class Revocation:
    """`reason`: one of RFC 5280's, as `revocation.REASONS` names them. Only `certificate-hold` can be released."""

    reason: Annotated[str, Cap(64)] = "unspecified"


@dataclass(frozen=True, slots=True)
class ProfileText:
    """A certificate profile, as `muster profile set` reads it."""

    toml: Annotated[str, Cap(16 * 1024)]


@dataclass(frozen=True, slots=True)
class NewStation:
    """`csr`: PKCS#10, DER, over the station's own key."""

    name: Name
    budget: int
    csr: Annotated[bytes, Cap(16 * 1024)]


@dataclass(frozen=True, slots=True)
class NewAssignment:
    """Which device, by id or serial, is to run which release."""

    device: Name
    target: Annotated[str, Cap(256)]


@dataclass(frozen=True, slots=True)
class NewEstToken:
    """A one-time token for a device by id or serial; a new serial is registered (`tokens.Wanted`)."""

    device: Name
    profile: Name | None = None
    lifetime_seconds: int | None = None
    model: Name | None = None
    approval: bool = False


@dataclass(frozen=True, slots=True)
class Approval:
    """`key_id`: which of the keys that a device asked for by EST; needed where several wait."""

    key_id: Name | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A call whose sender is known and may make it."""

    call: Call
    operator: Operator
    body: Any
    """A message of the route's body type; None where it has none."""

    @property
    def name(self) -> str:
        """What the path names."""
        return self.call.path["name"]


@dataclass(frozen=True, slots=True)
class OperatorRoute:
    """One row of the table."""

    method: str
    path: str
    role: Role
    handler: Callable[[Asked], Awaitable[object]]
    body: type | None = None
    status: int = 200
    body_most: int = BODY_MOST
    per_second: Callable[[Limits], int] | None = None
    """How often one operator may ask one worker; None: as often as an address may ask for anything."""


async def _devices(asked: Asked) -> object:
    fields = query(asked.call.request, "after", "limit")
    return {"devices": await inventory.list_devices(asked.call.service, fields.get("after", ""), _limit(fields))}


async def _device(asked: Asked) -> object:
    return await inventory.show_device(asked.call.service, asked.name)


async def _evidence(asked: Asked) -> object:
    flow = query(asked.call.request, "flow").get("flow", "enroll")
    return await inventory.show_evidence(asked.call.service, asked.name, flow)


async def _revoke(asked: Asked) -> object:
    device = await revoking.revoke_device(asked.call.service, asked.name, asked.body.reason, by=asked.operator.name)
    return {"device": device.id, "state": revoking.state_after(asked.body.reason), "reason": asked.body.reason}


async def _release(asked: Asked) -> object:
    device = await revoking.release_device(asked.call.service, asked.name, by=asked.operator.name)
    return {"device": device.id, "state": revoking.state_of(device), "health": device.health}


async def _certificates(asked: Asked) -> object:
    fields = query(asked.call.request, "after", "limit", "state")
    after, state = fields.get("after", "").lower(), fields.get("state")
    return {"certificates": await inventory.list_certificates(asked.call.service, after, _limit(fields), state)}


async def _revoke_certificate(asked: Asked) -> object:
    reason = asked.body.reason
    row = await revoking.revoke_certificate(asked.call.service, asked.name, reason, by=asked.operator.name)
    return {"serial": row.serial, "device": row.device_id, "state": revoking.state_after(reason), "reason": reason}


async def _release_certificate(asked: Asked) -> object:
    row = await revoking.release_certificate(asked.call.service, asked.name, by=asked.operator.name)
    return {"serial": row.serial, "device": row.device_id, "released": True}


async def _attest(asked: Asked) -> object:
    device = await reattesting.demand(asked.call.service, asked.name, by=asked.operator.name)
    return {"device": device.id, "ordered": "attest"}


async def _rotate(asked: Asked) -> object:
    device = await outbox.order(asked.call.service, asked.name, "rotate", by=asked.operator.name)
    return {"device": device.id, "ordered": "rotate"}


async def _approve(asked: Asked) -> object:
    by, key = asked.operator.name, asked.body.key_id
    return await inventory.approve(asked.call.service, asked.name, key_id=key, by=by)


async def _create_est_token(asked: Asked) -> object:
    new = asked.body
    wanted = tokens.Wanted(new.device, new.profile, new.lifetime_seconds, new.model, new.approval)
    return await tokens.create_token(asked.call.service, wanted, by=asked.operator.name)


async def _est_tokens(asked: Asked) -> object:
    fields = query(asked.call.request, "device", "limit")
    return {"tokens": await tokens.list_tokens(asked.call.service, fields.get("device"), _limit(fields))}


async def _revoke_est_token(asked: Asked) -> object:
    return await tokens.revoke_token(asked.call.service, asked.name, by=asked.operator.name)


async def _set_profile(asked: Asked) -> object:
    return await certificate_profiles.set_profile(asked.call.service, asked.body.toml, by=asked.operator.name)


async def _profiles(asked: Asked) -> object:
    return {"profiles": await certificate_profiles.list_profiles(asked.call.service)}


async def _profile(asked: Asked) -> object:
    version = query(asked.call.request, "version").get("version")
    if version is not None and not (version.isascii() and version.isdigit() and len(version) <= 9):  # noqa: PLR2004  digits
        raise RequestMalformed(expected="version: a number", actual=version[:16])
    number = None if version is None else int(version)
    return await certificate_profiles.show_profile(asked.call.service, asked.name, number)


async def _add_station(asked: Asked) -> object:
    new, service = asked.body, asked.call.service
    issued = await add_station(service, new.name, new.budget, new.csr, by=asked.operator.name)
    chain = service.authorities.named(issued.issuer).chain
    return {"name": new.name, "budget": new.budget, "certificate": issued.der, "chain": chain}


async def _stations(asked: Asked) -> object:
    return {"stations": await inventory.list_stations(asked.call.service)}


async def _explain(asked: Asked) -> object:
    fields = query(asked.call.request, "monitor", "show_unsafe")
    wanted = {name: _flag(fields, name) for name in ("monitor", "show_unsafe")}
    if wanted["show_unsafe"] and not may(asked.operator, Role.OPERATOR):
        raise NotAuthorized(expected=f"the role {Role.OPERATOR}", actual=f"the role {asked.operator.role}")
    return await explaining.explain(asked.call.service, asked.name, **wanted, by=asked.operator.name)


async def _certificate(asked: Asked) -> object:
    return await inventory.show_certificate(asked.call.service, asked.name)


async def _upload(asked: Asked) -> object:
    kind, _, rest = asked.name.partition("/")
    if kind not in {"metadata", "targets"} or not rest or (kind == "metadata" and "/" in rest):
        raise RequestMalformed(expected="metadata/NAME or targets/NAME", actual=asked.name)
    path = asked.call.service.directory.image / asked.name
    await receive_file(asked.call, path, METADATA_MOST if kind == "metadata" else TARGET_MOST)
    return {"stored": asked.name}


async def _record_releases(asked: Asked) -> object:
    await updates.record_releases(asked.call.service, by=asked.operator.name)
    return {"releases": await inventory.list_releases(asked.call.service)}


async def _releases(asked: Asked) -> object:
    return {"releases": await inventory.list_releases(asked.call.service)}


async def _assign(asked: Asked) -> object:
    new = asked.body
    release = await updates.assign(asked.call.service, new.device, new.target, by=asked.operator.name)
    return {"device": new.device, "target": new.target, "version": release.version}


async def _health(asked: Asked) -> object:
    return {"status": "ok", **await inventory.figures(asked.call.service)}


async def _metrics(asked: Asked) -> web.Response:
    await findings.measure(asked)
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST, **NO_STORE})


TABLE = (
    OperatorRoute("GET", "/api/v1/devices", Role.VIEWER, _devices),
    OperatorRoute("GET", "/api/v1/devices/{name}", Role.VIEWER, _device),
    OperatorRoute("GET", "/api/v1/devices/{name}/evidence", Role.VIEWER, _evidence),
    OperatorRoute(
        *("GET", "/api/v1/devices/{name}/attestation-result", Role.RELYING_PARTY, results.result),
        per_second=lambda limits: limits.results_per_second,
    ),
    OperatorRoute("GET", results.KEY_SET_PATH, Role.RELYING_PARTY, results.key_set_for),
    OperatorRoute("POST", "/api/v1/devices/{name}/revoke", Role.OPERATOR, _revoke, Revocation),
    OperatorRoute("POST", "/api/v1/devices/{name}/release", Role.OPERATOR, _release),
    OperatorRoute("POST", "/api/v1/devices/{name}/attest", Role.OPERATOR, _attest, status=202),
    OperatorRoute("POST", "/api/v1/devices/{name}/rotate", Role.OPERATOR, _rotate, status=202),
    OperatorRoute("POST", "/api/v1/devices/{name}/approve", Role.OPERATOR, _approve, Approval),
    OperatorRoute(
        *("POST", "/api/v1/devices/{name}/profile", Role.OPERATOR, operators.set_device_profile, operators.ProfileName)
    ),
    OperatorRoute("POST", "/api/v1/est-tokens", Role.ADMIN, _create_est_token, NewEstToken, 201),
    OperatorRoute("GET", "/api/v1/est-tokens", Role.VIEWER, _est_tokens),
    OperatorRoute("POST", "/api/v1/est-tokens/{name}/revoke", Role.OPERATOR, _revoke_est_token),
    OperatorRoute("POST", "/api/v1/devices/{name}/group", Role.ADMIN, policies.set_group, policies.GroupName),
    OperatorRoute(
        *("PUT", "/api/v1/policies", Role.ADMIN, policies.put, policies.PolicyText),
        body_most=policies.BODY_MOST,
    ),
    OperatorRoute("GET", "/api/v1/policies", Role.VIEWER, policies.every),
    OperatorRoute("GET", "/api/v1/policies/{name}", Role.VIEWER, policies.one),
    OperatorRoute("GET", "/api/v1/policies/{name}/diff", Role.VIEWER, policies.compare),
    OperatorRoute(
        *("POST", "/api/v1/policies/{name}/diff", Role.OPERATOR, policies.compare_text, policies.OtherText),
        body_most=policies.BODY_MOST,
    ),
    OperatorRoute("POST", "/api/v1/policies/{name}/learn", Role.OPERATOR, policies.learn, policies.Learning),
    OperatorRoute("POST", "/api/v1/policies/{name}/promote", Role.ADMIN, policies.promote, policies.Promotion),
    OperatorRoute(
        *("POST", "/api/v1/policy-drafts", Role.OPERATOR, policies.propose, policies.PolicyText, 201),
        body_most=policies.BODY_MOST,
    ),
    OperatorRoute(
        *("POST", "/api/v1/policy-tests", Role.OPERATOR, policies.test, policies.PolicyTest),
        body_most=policies.BODY_MOST,
    ),
    OperatorRoute("PUT", "/api/v1/profiles", Role.ADMIN, _set_profile, ProfileText),
    OperatorRoute("GET", "/api/v1/profiles", Role.VIEWER, _profiles),
    OperatorRoute("GET", "/api/v1/profiles/{name}", Role.VIEWER, _profile),
    OperatorRoute(
        *("POST", "/api/v1/ek-roots", Role.ADMIN, ek_roots.take, ek_roots.EkRootImport),
        body_most=ek_roots.IMPORT_MOST,
    ),
    OperatorRoute("GET", "/api/v1/ek-roots", Role.VIEWER, ek_roots.every),
    OperatorRoute("GET", "/api/v1/ek-roots/{name}", Role.VIEWER, ek_roots.one),
    OperatorRoute("DELETE", "/api/v1/ek-roots/{name}", Role.ADMIN, ek_roots.remove),
    OperatorRoute("POST", "/api/v1/operators", Role.ADMIN, operators.add, operators.NewOperator, 201),
    OperatorRoute("GET", "/api/v1/operators", Role.ADMIN, operators.every),
    OperatorRoute("DELETE", "/api/v1/operators/{name}", Role.ADMIN, operators.remove),
    OperatorRoute("GET", "/api/v1/findings", Role.VIEWER, findings.every),
    OperatorRoute("POST", "/api/v1/findings/{name}/close", Role.OPERATOR, findings.close),
    OperatorRoute("POST", "/api/v1/stations", Role.ADMIN, _add_station, NewStation, 201),
    OperatorRoute("GET", "/api/v1/stations", Role.VIEWER, _stations),
    OperatorRoute("GET", "/api/v1/explain/{name}", Role.VIEWER, _explain),
    OperatorRoute("GET", "/api/v1/certificates", Role.VIEWER, _certificates),
    OperatorRoute("GET", "/api/v1/certificates/{name}", Role.VIEWER, _certificate),
    OperatorRoute("POST", "/api/v1/certificates/{name}/revoke", Role.OPERATOR, _revoke_certificate, Revocation),
    OperatorRoute("POST", "/api/v1/certificates/{name}/release", Role.OPERATOR, _release_certificate),
    OperatorRoute("PUT", "/api/v1/ota/image/{name...}", Role.PUBLISHER, _upload, status=201),
    OperatorRoute("POST", "/api/v1/ota/release", Role.PUBLISHER, _record_releases),
    OperatorRoute("GET", "/api/v1/ota/releases", Role.VIEWER, _releases),
    OperatorRoute("POST", "/api/v1/ota/assign", Role.OPERATOR, _assign, NewAssignment),
    OperatorRoute("GET", "/api/v1/ca", Role.VIEWER, ca.show),
    OperatorRoute("POST", "/api/v1/ca", Role.ADMIN, ca.begin, ca.NewAuthority, 201),
    OperatorRoute("POST", "/api/v1/ca-published", Role.ADMIN, ca.note_published),
    OperatorRoute("POST", "/api/v1/ca-signatures/{name}", Role.ADMIN, ca.take_signature, ca.NewSignature),
    OperatorRoute("GET", "/api/v1/ca/{name}", Role.VIEWER, ca.show_one),
    OperatorRoute("PUT", "/api/v1/ca/{name}/key", Role.ADMIN, ca.note_key, ca.NewKey),
    OperatorRoute("GET", "/api/v1/ca/{name}/request", Role.ADMIN, ca.request),
    OperatorRoute("PUT", "/api/v1/ca/{name}/certificate", Role.ADMIN, ca.take_outside, ca.NewChain),
    OperatorRoute("POST", "/api/v1/ca/{name}/tasks", Role.ADMIN, ca.tasks),
    OperatorRoute("POST", "/api/v1/ca/{name}/activate", Role.ADMIN, ca.activate, ca.Change),
    OperatorRoute("POST", "/api/v1/ca/{name}/retire", Role.ADMIN, ca.retire, ca.Change),
    OperatorRoute("POST", "/api/v1/ca/{name}/rotate", Role.OPERATOR, ca.rotate, ca.Rotations, 202),
    OperatorRoute("GET", "/api/v1/health", Role.VIEWER, _health),
    OperatorRoute("GET", "/metrics", Role.VIEWER, _metrics),
)


def routes() -> list[Route]:
    """The table behind its guard."""
    return [Route(row.method, row.path, _guarded(row), detailed=True) for row in TABLE]


def _guarded(row: OperatorRoute) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    rates: list[RateTable] = []

    def spend(name: str, limits: Limits) -> None:
        """Raises: TooManyRequests."""
        if row.per_second is None:
            return
        if not rates:
            most = row.per_second(limits)
            rates.append(RateTable(Rate(most, most * 2)))
        if (wait := rates[0].wait_seconds(name, monotonic())) > 0:
            raise too_many(wait)

    async def handler(call: Call) -> web.StreamResponse:
        operator = await operator_of(call)
        if not may(operator, row.role):
            raise NotAuthorized(expected=f"the role {row.role}", actual=f"the role {operator.role}")
        spend(operator.name, call.service.config.limits)
        body: object = None
        if row.body is not None:
            body = await call.message(row.body, row.body_most, parts=None)
        answer = await row.handler(Asked(call, operator, body))
        return answer if isinstance(answer, web.StreamResponse) else reply(answer, row.status)

    return handler


def _flag(fields: Mapping[str, str], name: str) -> bool:
    text = fields.get(name, "false")
    if text not in ("true", "false"):
        raise RequestMalformed(expected=f"{name}: true or false", actual=text[:16])
    return text == "true"


def _limit(fields: Mapping[str, str]) -> int:
    text = fields.get("limit", "100")
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= PAGE_MOST):  # noqa: PLR2004  digits
        raise RequestMalformed(expected=f"limit: 1 to {PAGE_MOST}", actual=text[:16])
    return int(text)
