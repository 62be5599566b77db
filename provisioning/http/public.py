"""The public listener: signed objects and nothing else. It has no TLS because nothing on it needs any."""

import hashlib
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.authorities import COMMAND
from provisioning.db import leaves
from provisioning.http import ocsp, results
from provisioning.http.exchange import NO_STORE, Call, Route, query
from provisioning.http.files import send_file
from provisioning.ocsp import Responder
from provisioning.refusals import NotFound, RequestMalformed
from provisioning.service import Service
from wire.codec import encode
from wire.envelope import pae, seal
from wire.messages import TIME_PAYLOAD_TYPE, SignedTime

NONCE_MOST = 64
"""Characters of `GET /v1/time?nonce=…`."""
MINUTE = 60


def routes(responder: Responder) -> list[Route]:
    """What the public listener serves."""
    return [
        *ocsp.routes(responder),
        Route("GET", "/trust/{name...}", trust_file),
        Route("GET", "/v1/time", signed_time),
        Route("GET", "/crl/{name}", crl),
        Route("GET", "/ca/{name}", ca_certificate),
        Route("GET", "/log/checkpoint", checkpoint),
        Route("GET", results.KEY_SET_PATH, results.key_set),
    ]


async def trust_file(call: Call) -> web.StreamResponse:
    """A file of the trust repository."""
    return await _file(call, call.service.directory.trust, call.path["name"], "application/octet-stream")


async def signed_time(call: Call) -> web.Response:
    """The time, for a device whose clock is not set: fresh by its nonce, authentic by a command key."""
    nonce = query(call.request, "nonce").get("nonce", "")
    if not 1 <= len(nonce) <= NONCE_MOST or not (nonce.isascii() and nonce.isprintable()):
        raise RequestMalformed(expected=f"nonce: 1 to {NONCE_MOST} printable characters", actual=f"{len(nonce)}")
    payload = encode(SignedTime(nonce, call.service.clock()))
    return web.Response(
        body=await seal_by_command_key(call.service, TIME_PAYLOAD_TYPE, payload),
        headers={"Content-Type": "application/json", **NO_STORE},
    )


async def crl(call: Call) -> web.StreamResponse:
    """An authority's revocation list (RFC 5280 section 5), as it was last signed: `/crl/NAME.crl`."""
    name = call.path["name"]
    call.service.authorities.named(name.removesuffix(".crl"))  # no other file of that folder
    return await _file(call, call.service.directory.ca, name, "application/pkix-crl")


async def checkpoint(call: Call) -> web.Response:
    """The log's newest signed tree head (C2SP tlog-checkpoint)."""
    row = await call.service.store.read(leaves.newest_checkpoint)
    if row is None:
        raise NotFound(expected="a checkpoint", actual="none was signed yet")
    return web.Response(text=row.note, content_type="text/plain", headers=NO_STORE)


CA_TYPES = {".pem": "application/pem-certificate-chain", ".crt": "application/pkix-cert"}


async def ca_certificate(call: Call) -> web.StreamResponse:
    """A CA's certificate: `/ca/NAME.pem`, and in DER, as AIA's caIssuers has it (RFC 5280 section 4.2.2.1), `.crt`."""
    name = call.path["name"]
    content_type = CA_TYPES.get(name[-4:])
    if content_type is None:
        raise NotFound(expected=f"NAME{' or NAME'.join(CA_TYPES)}", actual=name)
    call.service.authorities.named(name[:-4])  # no other file of that folder
    return await _file(call, call.service.directory.ca, name, content_type)


async def seal_by_command_key(service: Service, payload_type: str, payload: bytes) -> bytes:
    """An envelope by the command key. Raises: SigningUnavailable."""
    key = service.authorities.signing_key(COMMAND)
    spki = (await service.keys.adopt(key)).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = await service.keys.sign(key, pae(payload_type, payload))
    return seal(payload_type, payload, hashlib.sha256(spki).hexdigest(), lambda _: signature)


async def _file(call: Call, root: Path, name: str, content_type: str) -> web.StreamResponse:
    return await send_file(call.request, root, name, content_type=content_type, max_age_seconds=MINUTE)
