"""EST on the device listener (RFC 7030): who calls, base64 in, base64 out. A label in the path names a profile."""

import base64
import binascii
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from aiohttp import web
from cryptography import x509

from provisioning import est
from provisioning.http import problems
from provisioning.http.auth import peer_certificate
from provisioning.http.exchange import NO_STORE, Call, Handler, Route
from provisioning.issuance.est import BODY_MOST, body_of, certs_only, parse_request
from provisioning.issuing import IssuedCertificate
from provisioning.refusals import NotAuthenticated, UnsupportedMediaType

PKCS10 = "application/pkcs10"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
CSR_ATTRIBUTES = "application/csrattrs"
PREFIXES = ("/.well-known/est", "/.well-known/est/{name}")
_BASIC_MOST = 512
# RFC 8951 and erratum 5107 take it out of HTTP; clients of RFC 7030 may still look for it, others pass it over.
_BASE64 = {"Content-Transfer-Encoding": "base64"}

Credential = Callable[[Call], est.Password | est.ClientCertificate | None]


def routes(in_flight: AbstractContextManager[None]) -> list[Route]:
    """The four operations, with and without a label."""

    def issuing(
        operation: Callable[..., Awaitable[IssuedCertificate | est.Pending]], credential: Credential
    ) -> Handler:
        async def handler(call: Call) -> web.Response:
            caller = await est.authenticate(call.service, credential(call), source=call.source)
            csr = await _request(call)
            with in_flight:
                found = await operation(call.service, caller, csr, label=call.path.get("name"), source=call.source)
            return _pending(found) if isinstance(found, est.Pending) else _answer(CERTS_ONLY, certs_only([found.der]))

        return _challenging(handler)

    enroll, renew = issuing(est.enroll, token_or_certificate), issuing(est.renew, certificate_or_token)
    return [
        Route(method, f"{prefix}/{operation}", handler)
        for prefix in PREFIXES
        for method, operation, handler in (
            ("GET", "cacerts", ca_certificates),
            ("GET", "csrattrs", _challenging(csr_attributes)),
            ("POST", "simpleenroll", enroll),
            ("POST", "simplereenroll", renew),
        )
    ]


async def ca_certificates(call: Call) -> web.Response:
    """The CA certificates, for anybody: the caller must know by other means that they are the right ones."""
    est.verify_known_label(call.service, call.path.get("name"))
    return _answer(CERTS_ONLY, certs_only(est.ca_certificates(call.service)))


async def csr_attributes(call: Call) -> web.Response:
    """What this device's request should hold."""
    caller = await est.authenticate(call.service, token_or_certificate(call), source=call.source)
    return _answer(CSR_ATTRIBUTES, est.csr_attributes(call.service, caller, label=call.path.get("name")))


def token_or_certificate(call: Call) -> est.Password | est.ClientCertificate | None:
    """What the caller shows; where it shows both, the token counts. Raises: NotAuthenticated."""
    return _password(call) or _certificate(call)


def certificate_or_token(call: Call) -> est.Password | est.ClientCertificate | None:
    """For a renewal, which is of the certificate: a token beside it is passed over. Raises: NotAuthenticated."""
    return _certificate(call) or _password(call)


def _certificate(call: Call) -> est.ClientCertificate | None:
    der = peer_certificate(call)
    if der is None:
        return None
    return est.ClientCertificate(format(x509.load_der_x509_certificate(der).serial_number, "x"), der)


def _password(call: Call) -> est.Password | None:
    """RFC 7617: user and password in base64, divided by the first colon."""
    header = call.request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _BASIC_MOST:
        raise NotAuthenticated(expected="Authorization: Basic", actual="another scheme")
    try:
        name, colon, token = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise NotAuthenticated(expected="user:token in base64", actual=type(error).__name__) from error
    if not (colon and name and token):
        raise NotAuthenticated(expected="user:token", actual="less")
    return est.Password(name, token)


async def _request(call: Call) -> bytes:
    if call.request.content_type != PKCS10:
        raise UnsupportedMediaType(expected=PKCS10, actual=call.request.content_type[:100])
    return parse_request(await call.read(BODY_MOST))


def _challenging(handler: Handler) -> Handler:
    """A 401 of these routes asks for HTTP Basic (RFC 7030 section 3.2.3)."""

    async def answered(call: Call) -> web.StreamResponse:
        try:
            return await handler(call)
        except NotAuthenticated as refusal:
            realm = f'Basic realm="{call.service.config.service_name}", charset="UTF-8"'
            return problems.response(refusal, detailed=False, headers={"WWW-Authenticate": realm})

    return answered


def _answer(content_type: str, content: bytes) -> web.Response:
    return web.Response(body=body_of(content), headers={"Content-Type": content_type, **_BASE64, **NO_STORE})


def _pending(found: est.Pending) -> web.Response:
    """Section 4.2.3: the same request again, later."""
    text = f"An operator has to approve the key {found.key_id} first.\n"
    headers = {"Retry-After": str(found.retry_after_seconds), "Content-Type": "text/plain; charset=utf-8", **NO_STORE}
    return web.Response(status=202, body=text.encode(), headers=headers)
