"""Routes for relying parties: attestation results, and the keys that they are verified by."""

from typing import TYPE_CHECKING

from aiohttp import web

from provisioning import results
from provisioning.http.exchange import NO_STORE, Call, query
from provisioning.http.problems import SERVER
from provisioning.refusals import RequestMalformed
from wire.codec import encode, rfc3339

if TYPE_CHECKING:
    from provisioning.http.operator import Asked

RESULT = "application/eat+jwt"
"""RFC 9782 section 6.3."""
KEY_SET = "application/jwk-set+json"
"""RFC 7517 section 8.5.2."""
KEY_SET_PATH = "/.well-known/jwks.json"
KEY_SET_SECONDS = 300
"""How long a key set may be kept. A key is in it before it signs, and longer than what it signed is good."""


async def result(asked: "Asked") -> object:
    """A result about a device: in JSON, or bare where the caller accepts `RESULT` by name."""
    fields = query(asked.call.request, "aud", "nonce")
    if "aud" not in fields:
        raise RequestMalformed(expected="aud: whom the result is for", actual="no aud")
    signed = await results.attestation_result(
        asked.call.service, asked.name, audience=fields["aud"], nonce=fields.get("nonce"), by=asked.operator.name
    )
    if RESULT in asked.call.request.headers.get("Accept", ""):
        return web.Response(body=signed.token.encode(), headers={"Content-Type": RESULT, **NO_STORE})
    return {"result": signed.token, "expires": rfc3339(signed.expires_at)}


async def key_set(call: Call) -> web.Response:
    """The keys, for everybody."""
    headers = {"Content-Type": KEY_SET, "Cache-Control": f"max-age={KEY_SET_SECONDS}, public", **SERVER}
    return web.Response(body=encode(results.public_keys(call.service)), headers=headers)


async def key_set_for(asked: "Asked") -> web.Response:
    """The same on the operator listener, whose TLS proves where they come from."""
    return await key_set(asked.call)
