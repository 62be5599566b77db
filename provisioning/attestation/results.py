"""Attestation results for relying parties: EAT (RFC 9711) with the claims of EAR (draft-ietf-rats-ear-04), as JWT.

A result says what the verifier made of a device's evidence; it is signed by ES256 and nothing else (RFC 7518 section
3.4). `claims_of` says only what the records bear out: what nobody appraised is left out of the trustworthiness vector.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from provisioning.attestation.jwk import jwk_of, thumbprint
from provisioning.attestation.policy import Policy
from provisioning.refusals import RequestMalformed
from wire.codec import b64url, encode

PROFILE = "tag:ietf.org,2026:rats/ear#04"
"""The EAT profile of EAR (draft-ietf-rats-ear-04 section 3): it says what the claims are called and mean."""
TYPE = "eat+jwt"
"""RFC 9782: the media type is application/eat+jwt; RFC 8725 section 3.11 has it in the header."""
ALGORITHM = "ES256"
SUBMODULE = "tpm"
"""The one attester of a device: its TPM, and what that measured."""
POLICY_ID = "urn:muster:policy:"
AUDIENCE_MOST = 256
NONCE_LEAST, NONCE_MOST = 8, 88
"""Characters of `eat_nonce` in JSON: 8 to 64 bytes as text or base64url (RFC 9711 section 4.1, nonce-type)."""
_TEXT = re.compile(r"[!-~]+")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:.+")
COORDINATE_BYTES = 32
BOOT_PCRS = frozenset({0, 2, 4})
"""Code of the platform's firmware, of option ROMs, of the boot manager (TCG PC Client Platform Firmware Profile,
section 3.3.4): with fewer of them pinned nobody can say that only approved executables were loaded."""


class Tier(StrEnum):
    """AR4SI's tiers of trust (draft-ietf-rats-ar4si section 3.2), the best first; none is no verdict."""

    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"
    NONE = "none"


TIER_OF_HEALTH = {
    "healthy": Tier.AFFIRMING,
    "unknown": Tier.WARNING,
    "silent": Tier.WARNING,
    "failing": Tier.CONTRAINDICATED,
    "quarantined": Tier.CONTRAINDICATED,
}
"""What a device's health makes of an attestation that passed before. A state that is not here: contraindicated."""

RECOGNIZED, NOT_TRUSTWORTHY = 2, 96
"""instance-identity (draft-ietf-rats-ar4si section 3.1.3)."""
GENUINE = 2
"""hardware."""
BOOTED_APPROVED, BOOTED_UNRECOGNIZED = 3, 33
"""executables."""


@dataclass(frozen=True, slots=True)
class Appraised:
    """What the records say of one device's newest evidence that passed.

    `policy` is the one that appraised it, `policy_version` its version, and `in_force` whether that is still the one in
    force. `compared`: it was held against the reference values (a policy that only learns holds it against none).
    `deviates`: it differed from them, and passed only because the policy does not enforce them.
    """

    health: str
    ek_trust: str
    flow: str
    attested_at: datetime
    policy: Policy
    policy_version: int
    policy_sha256: str
    in_force: bool
    compared: bool
    deviates: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """Who says it, about whom, to whom, and until when. `jkt`: the thumbprint of the device's key (RFC 7638)."""

    issuer: str
    subject: str
    audience: str
    nonce: str | None
    jkt: str
    issued_at: datetime
    expires_at: datetime
    build: str


def parse_audience(text: str) -> str:
    """The relying party's name for itself: a StringOrURI (RFC 7519 section 2). Raises: RequestMalformed."""
    if not 1 <= len(text) <= AUDIENCE_MOST or _TEXT.fullmatch(text) is None or (":" in text and not _URI.match(text)):
        wanted = f"aud: 1 to {AUDIENCE_MOST} printable characters without blanks; with a colon, a URI"
        raise RequestMalformed(expected=wanted, actual=text[:AUDIENCE_MOST])
    return text


def parse_nonce(text: str) -> str:
    """The relying party's challenge, which comes back as it is (RFC 9711 section 4.1). Raises: RequestMalformed."""
    if not NONCE_LEAST <= len(text) <= NONCE_MOST or _TEXT.fullmatch(text) is None:
        wanted = f"nonce: {NONCE_LEAST} to {NONCE_MOST} printable characters without blanks"
        raise RequestMalformed(expected=wanted, actual=text[:NONCE_MOST])
    return text


def tier_of(appraised: Appraised) -> Tier:
    """The verdict. Affirming only where the device is healthy and what it booted was held against reference values."""
    tier = TIER_OF_HEALTH.get(appraised.health, Tier.CONTRAINDICATED)
    if tier is Tier.AFFIRMING and (appraised.deviates or not appraised.compared):
        return Tier.WARNING
    return tier


def trust_vector(appraised: Appraised) -> dict[str, int]:
    """AR4SI's trustworthiness claims, those that the records bear out. No claim is left in that they do not."""
    contraindicated = tier_of(appraised) is Tier.CONTRAINDICATED
    vector = {"instance-identity": NOT_TRUSTWORTHY if contraindicated else RECOGNIZED}
    if appraised.ek_trust == "certificate" and not appraised.policy.software_tpm:
        vector["hardware"] = GENUINE
    if appraised.deviates:
        vector["executables"] = BOOTED_UNRECOGNIZED
    elif not contraindicated and appraised.compared and _pins_the_boot(appraised.policy):
        vector["executables"] = BOOTED_APPROVED
    return vector


def _pins_the_boot(policy: Policy) -> bool:
    return all(policy.pcrs[bank].keys() >= BOOT_PCRS for bank in policy.banks)


def claims_of(frame: Frame, appraised: Appraised) -> dict[str, Any]:
    """The claims set of a result (draft-ietf-rats-ear-04 section 3)."""
    tier, policy = tier_of(appraised).value, appraised.policy
    submodule = {
        "ear_status": tier,
        "ear_trustworthiness_vector": trust_vector(appraised),
        "ear_appraisal_policy_ids": [f"{POLICY_ID}{policy.model}:{appraised.policy_version}"],
        "ear_verifier_claims": {
            "urn:muster:health": appraised.health,
            "urn:muster:attested": int(appraised.attested_at.timestamp()),
            "urn:muster:flow": appraised.flow,
            "urn:muster:policy": {
                "model": policy.model,
                "version": appraised.policy_version,
                "sha256": appraised.policy_sha256,
                "in_force": appraised.in_force,
            },
        },
    }
    nonce = {} if frame.nonce is None else {"eat_nonce": frame.nonce}
    return {
        "eat_profile": PROFILE,
        "iss": frame.issuer,
        "sub": frame.subject,
        "aud": frame.audience,
        "iat": int(frame.issued_at.timestamp()),
        "exp": int(frame.expires_at.timestamp()),
        **nonce,
        "cnf": {"jkt": frame.jkt},
        "ear_verifier_id": {"developer": "muster", "build": frame.build},
        "ear_status": tier,
        "submods": {SUBMODULE: submodule},
    }


def signing_input(claims: Mapping[str, Any], key: ec.EllipticCurvePublicKey) -> bytes:
    """What is signed (RFC 7515 section 5.1); the header names the key by its thumbprint."""
    header = {"alg": ALGORITHM, "kid": thumbprint(key), "typ": TYPE}
    return f"{b64url(encode(header))}.{b64url(encode(dict(claims)))}".encode()


def assembled(signed: bytes, signature: bytes) -> str:
    """The JWT out of `signing_input` and the ECDSA signature over it in DER, which becomes R || S (RFC 7518, 3.4)."""
    r, s = decode_dss_signature(signature)
    raw = r.to_bytes(COORDINATE_BYTES, "big") + s.to_bytes(COORDINATE_BYTES, "big")
    return f"{signed.decode()}.{b64url(raw)}"


def key_set(keys: Sequence[ec.EllipticCurvePublicKey]) -> dict[str, Any]:
    """The keys by which results are signed, as a JWK Set (RFC 7517 section 5)."""
    return {"keys": [{**jwk_of(key), "kid": thumbprint(key), "use": "sig", "alg": ALGORITHM} for key in keys]}
