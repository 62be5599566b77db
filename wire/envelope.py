"""DSSE envelopes (https://github.com/secure-systems-lab/dsse, protocol 1.0.2): what was signed is what is parsed."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from wire.codec import Cap, MalformedMessage, decode, encode

MAX_ENVELOPE = 64 * 1024
"""Bytes of one MQTT message, at most."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; `keyid` is a hint, never trusted by itself."""

    keyid: Annotated[str, Cap(128)]
    sig: Annotated[str, Cap(1024)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """The envelope as it travels. Its texts are standard base64, as DSSE wants."""

    payloadType: Annotated[str, Cap(128)]  # noqa: N815  DSSE's own field name
    payload: Annotated[str, Cap(MAX_ENVELOPE)]
    signatures: Annotated[tuple[Signature, ...], Cap(4)]


class EnvelopeNotAuthentic(ValueError):
    """No signature of the envelope is by a key that may sign this payload type, or none verifies."""


Verify = Callable[[str, bytes, bytes], bool]
"""`(keyid, signature, message) -> bool`: is this a good signature by the trusted key of that id?"""


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, keyid: str, sign: Callable[[bytes], bytes]) -> bytes:
    """An envelope with one signature, as JSON. Raises: MalformedMessage where it would be over `MAX_ENVELOPE`."""
    signature = base64.b64encode(sign(pae(payload_type, payload))).decode()
    envelope = Envelope(payload_type, base64.b64encode(payload).decode(), (Signature(keyid, signature),))
    data = encode(envelope)
    if len(data) > MAX_ENVELOPE:
        raise MalformedMessage("payload", f"makes an envelope of {len(data)} bytes, more than {MAX_ENVELOPE}")
    return data


def open_envelope(data: bytes, payload_type: str, verify: Verify) -> bytes:
    """The payload of an envelope as it travels: see `open_parsed`. Raises: MalformedMessage, EnvelopeNotAuthentic."""
    return open_parsed(parse_envelope(data), payload_type, verify)


def parse_envelope(data: bytes) -> Envelope:
    """The envelope, of which nothing is authentic: its payload type tells what to expect. Raises: MalformedMessage."""
    return decode(Envelope, data, limit=MAX_ENVELOPE)


def open_parsed(envelope: Envelope, payload_type: str, verify: Verify) -> bytes:
    """The payload, once one of its signatures has verified; `payload_type` is the one that the caller expects.

    Not proven: freshness, order, addressee. Those are fields of the payload.

    Raises: MalformedMessage, EnvelopeNotAuthentic.
    """
    if envelope.payloadType != payload_type:
        raise MalformedMessage("payloadType", f"is not {payload_type}")
    payload = _standard_base64("payload", envelope.payload)
    message = pae(payload_type, payload)
    for signature in envelope.signatures:
        if verify(signature.keyid, _standard_base64("sig", signature.sig), message):
            return payload
    raise EnvelopeNotAuthentic


def unverified_payload_type(data: bytes) -> str:
    """Which payload type the envelope claims; only to choose what to expect. Raises: MalformedMessage."""
    return parse_envelope(data).payloadType


def _standard_base64(where: str, text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage(where, "is not base64") from error
    if base64.b64encode(data).decode() != text:  # bits behind the last byte: two texts of one value
        raise MalformedMessage(where, "is not canonical base64")
    return data
