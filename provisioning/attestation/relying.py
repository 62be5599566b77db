"""The relying party's side: is this attestation result authentic, for me, fresh, and good enough?

In the order of RFC 8725: form, algorithm, key, signature; then what it says (RFC 7519 section 7.2, RFC 9711, EAR). The
key comes out of the key set that the caller trusts, never out of the token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from provisioning.attestation.jwk import thumbprint
from provisioning.attestation.results import ALGORITHM, COORDINATE_BYTES, PROFILE, TYPE, Tier
from provisioning.refusals import (
    ResultAlgorithmRefused,
    ResultExpired,
    ResultForAnother,
    ResultFromTheFuture,
    ResultIssuerDiffers,
    ResultKeysMalformed,
    ResultKeyUnknown,
    ResultMalformed,
    ResultNonceDiffers,
    ResultNotGoodEnough,
    ResultSignatureWrong,
)
from wire.codec import MalformedMessage, parse_json, unb64url

RESULT_MOST, KEY_SET_MOST, KEYS_MOST = 16 * 1024, 64 * 1024, 32
"""Bytes of a result and of a key set, and keys in one."""
SKEW_SECONDS = 60
"""How far the verifier's clock may be ahead of ours."""
GOOD_ENOUGH = {
    Tier.AFFIRMING: frozenset({Tier.AFFIRMING}),
    Tier.WARNING: frozenset({Tier.AFFIRMING, Tier.WARNING}),
    Tier.CONTRAINDICATED: frozenset({Tier.AFFIRMING, Tier.WARNING, Tier.CONTRAINDICATED}),
}
"""Which verdicts are at least as good as one. No verdict is good enough for nothing."""
_MISSING = object()

KeySet = Mapping[str, ec.EllipticCurvePublicKey]
"""Keys by their thumbprints."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the relying party asked for. `issuer` None: whoever the keys are of.

    `nonce` None: it sent none, takes freshness from the times alone, and none may stand there.
    """

    issuer: str | None
    audience: str
    nonce: str | None


@dataclass(frozen=True, slots=True)
class VerifiedResult:
    """An authentic result for this relying party. `status` is the worst verdict in it, `jkt` the device key's."""

    device: str
    status: Tier
    jkt: str
    issued_at: datetime
    expires_at: datetime
    key_id: str
    claims: Mapping[str, Any]


def parse_key_set(data: bytes) -> KeySet:
    """The ES256 keys of a JWK Set (RFC 7517). Keys of other kinds are passed over, as section 5 says.

    Not proven: that they are the verifier's. Whoever gets them over an unprotected channel compares thumbprints.

    Raises: ResultKeysMalformed.
    """
    try:
        parsed = parse_json(data, limit=KEY_SET_MOST)
    except MalformedMessage as error:
        raise ResultKeysMalformed(expected="a JWK Set", actual=error) from error
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list) or len(listed) > KEYS_MOST or not all(isinstance(one, dict) for one in listed):
        raise ResultKeysMalformed(expected=f"keys: a list of at most {KEYS_MOST} objects", actual="something else")
    known: dict[str, ec.EllipticCurvePublicKey] = {}
    for jwk in listed:
        if (jwk.get("kty"), jwk.get("crv")) != ("EC", "P-256") or jwk.get("alg", ALGORITHM) != ALGORITHM:
            continue
        key = _key_of(jwk)
        if jwk.get("kid", thumbprint(key)) != thumbprint(key):
            raise ResultKeysMalformed(expected=f"the kid {thumbprint(key)}", actual=jwk["kid"])
        known[thumbprint(key)] = key
    return known


def _key_of(jwk: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
    if "d" in jwk:
        raise ResultKeysMalformed(expected="public keys", actual="a private one: it is not secret any more")
    try:
        x, y = (unb64url(jwk[name]) for name in ("x", "y"))
        if (len(x), len(y)) != (COORDINATE_BYTES, COORDINATE_BYTES):
            raise ResultKeysMalformed(expected=f"coordinates of {COORDINATE_BYTES} bytes", actual=f"{len(x)}, {len(y)}")
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # MalformedMessage is a ValueError
        raise ResultKeysMalformed(expected="a point on P-256", actual=type(error).__name__) from error


def verify_result(token: str, keys: KeySet, asked: Asked, now: datetime) -> VerifiedResult:
    """Is the result by one of these keys, for whoever asked, and still good?

    Authentic is not good enough: see `appraise_result`. Not proven: that the device was not revoked since `iat`; that
    whoever showed the result is that device, unless it also proves the key of `jkt`.

    Raises: ResultMalformed, ResultAlgorithmRefused, ResultKeyUnknown, ResultSignatureWrong, ResultIssuerDiffers,
    ResultForAnother, ResultNonceDiffers, ResultFromTheFuture, ResultExpired.
    """
    header, claims, signed, signature = _parts(token)
    key_id = _key_id(header)
    key = keys.get(key_id)
    if key is None:
        raise ResultKeyUnknown(expected=", ".join(sorted(keys)) or "a key", actual=key_id)
    half = COORDINATE_BYTES
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise ResultSignatureWrong(expected=f"a signature by {key_id}", actual="another one") from error
    if asked.issuer is not None and claims.get("iss") != asked.issuer:
        raise ResultIssuerDiffers(expected=asked.issuer, actual=claims.get("iss"))
    if claims.get("aud") != asked.audience:
        raise ResultForAnother(expected=asked.audience, actual=claims.get("aud"))
    if claims.get("eat_nonce") != asked.nonce:
        raise ResultNonceDiffers(expected=asked.nonce or "none", actual=claims.get("eat_nonce", "none"))
    issued_at, expires_at = _moment(claims, "iat"), _moment(claims, "exp")
    if (issued_at - now).total_seconds() > SKEW_SECONDS:
        raise ResultFromTheFuture(expected=f"issued by {now:%Y-%m-%dT%H:%M:%SZ}", actual=issued_at.isoformat())
    if now >= expires_at:
        raise ResultExpired(expected=f"good at {now:%Y-%m-%dT%H:%M:%SZ}", actual=expires_at.isoformat())
    if claims.get("eat_profile") != PROFILE:
        raise ResultMalformed(expected=f"eat_profile {PROFILE}", actual=claims.get("eat_profile"))
    device, jkt = claims.get("sub"), _member(claims.get("cnf"), "jkt")
    if not isinstance(device, str) or not isinstance(jkt, str):
        raise ResultMalformed(expected="sub and cnf.jkt", actual="not both")
    return VerifiedResult(device, _worst(claims), jkt, issued_at, expires_at, key_id, claims)


def appraise_result(result: VerifiedResult, least: Tier) -> VerifiedResult:
    """Is the verdict at least that good? Raises: ResultNotGoodEnough."""
    if result.status not in GOOD_ENOUGH.get(least, frozenset()):
        raise ResultNotGoodEnough(expected=f"{least} or better", actual=result.status)
    return result


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, claims, what is signed, the signature: compact serialization (RFC 7515 section 7.1), nothing else."""
    pieces = token.split(".") if len(token) <= RESULT_MOST and token.isascii() else []
    if len(pieces) != 3:  # noqa: PLR2004  header, claims, signature
        form = f"three parts with dots between them, at most {RESULT_MOST} characters"
        raise ResultMalformed(expected=form, actual=f"{len(token)} characters")
    try:
        raw_header, raw_claims, signature = (unb64url(piece) for piece in pieces)
        header, claims = (parse_json(raw, limit=RESULT_MOST) for raw in (raw_header, raw_claims))
    except ValueError as error:  # MalformedMessage is one
        raise ResultMalformed(expected="base64url of JSON", actual=error) from error
    if not isinstance(header, dict) or not isinstance(claims, dict) or len(signature) != 2 * COORDINATE_BYTES:
        raise ResultMalformed(expected="two JSON objects and a signature of 64 bytes", actual="something else")
    return header, claims, f"{pieces[0]}.{pieces[1]}".encode(), signature


def _key_id(header: Mapping[str, Any]) -> str:
    """Raises: ResultAlgorithmRefused; ResultMalformed where the header brings its own key, or more than we know."""
    if header.get("alg") != ALGORITHM:
        raise ResultAlgorithmRefused(expected=ALGORITHM, actual=header.get("alg"))
    if header.keys() != {"alg", "kid", "typ"} or header["typ"] != TYPE or not isinstance(header["kid"], str):
        raise ResultMalformed(expected=f"a header of alg, kid and typ {TYPE}", actual=", ".join(sorted(header)))
    return str(header["kid"])


def _moment(claims: Mapping[str, Any], name: str) -> datetime:
    """Whole seconds (RFC 9711 section 4.3.1). Raises: ResultMalformed."""
    value = claims.get(name, _MISSING)
    if type(value) is not int:
        raise ResultMalformed(expected=f"{name}: whole seconds", actual=type(value).__name__)
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ResultMalformed(expected=f"{name}: a moment", actual=value) from error


def _worst(claims: Mapping[str, Any]) -> Tier:
    """The worst of all verdicts in it, whatever the one over all of them says. Raises: ResultMalformed."""
    submodules = claims.get("submods")
    if not isinstance(submodules, dict) or not submodules:
        raise ResultMalformed(expected="submods", actual="none")
    said = [_member(one, "ear_status") for one in submodules.values()]
    try:
        verdicts = [Tier(one) for one in (*said, claims.get("ear_status", said[0]))]
    except ValueError as error:
        raise ResultMalformed(expected="ear_status: one of AR4SI's tiers, in each submodule", actual=error) from error
    return max(verdicts, key=list(Tier).index)


def _member(value: object, name: str) -> object:
    return value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
