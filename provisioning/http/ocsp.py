"""OCSP over HTTP (RFC 6960 appendix A.1, RFC 5019 sections 4 to 6): GET and POST.

Whatever is no OCSP request is refused with 400 and a problem document, before HTTP says that it went well: a client
that looks at the status alone must not take a refusal for an answer.
"""

import base64
import binascii
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import unquote_to_bytes

from aiohttp import web

from provisioning.http.exchange import NO_STORE, Call, Route
from provisioning.http.problems import SERVER
from provisioning.issuance.ocsp import REQUEST_MOST
from provisioning.ocsp import Answer, Responder
from provisioning.refusals import OcspRequestMalformed, UnsupportedMediaType

REQUEST, RESPONSE = "application/ocsp-request", "application/ocsp-response"
MAX_AGE_SECONDS = 300
"""How long whoever stands between may keep an answer. Shorter than the answer is good for: he learns of no change."""
_LIVE = {"Content-Type": RESPONSE, **NO_STORE}


def routes(responder: Responder) -> list[Route]:
    """GET with the request in the path, POST with the request as the body."""

    async def post(call: Call) -> web.Response:
        """What an OCSP client asks; what is kept ready is answered from here."""
        if call.request.content_type != REQUEST:
            raise UnsupportedMediaType(expected=REQUEST, actual=call.request.content_type[:100])
        data = await call.read(REQUEST_MOST)
        answer = responder.kept(data, call.arrived) or await responder.answer(data, call.source, call.arrived)
        return web.Response(body=answer.der, headers=_headers(answer, call.arrived))

    async def get(call: Call) -> web.Response:
        """The same for caches on the way: base64 in the path."""
        data = request_in(call.path["request"])
        answer = responder.kept(data, call.arrived) or await responder.answer(data, call.source, call.arrived)
        headers = _headers(answer, call.arrived)
        if answer.etag is not None and answer.etag in _tags(call.request.headers.get("If-None-Match", "")):
            return web.Response(status=304, headers=headers)
        return web.Response(body=answer.der, headers=headers)

    return [
        Route("POST", "/ocsp", post),
        Route("POST", "/ocsp/", post),
        Route("GET", "/ocsp/{request*}", get),
    ]


def request_in(path: str) -> bytes:
    """The request out of the rest of a path: base64, percent-encoded (or not). Raises: OcspRequestMalformed."""
    try:
        text = unquote_to_bytes(path)
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise OcspRequestMalformed(expected="base64 of an OCSPRequest", actual=error) from error


def _headers(answer: Answer, now: datetime) -> dict[str, str]:
    if answer.etag is None or answer.this_update is None or answer.next_update is None:
        return _LIVE
    left = int(answer.ends_at - now.timestamp())
    return {
        "Content-Type": RESPONSE,
        "Cache-Control": f"max-age={min(MAX_AGE_SECONDS, max(left - 1, 0))}, public, no-transform, must-revalidate",
        "ETag": answer.etag,
        "Last-Modified": _date(answer.this_update),
        "Expires": _date(answer.next_update),
        **SERVER,
    }


def _date(moment: datetime) -> str:
    return format_datetime(moment.astimezone(UTC), usegmt=True)


def _tags(header: str) -> list[str]:
    return [tag.strip() for tag in header.split(",")]
