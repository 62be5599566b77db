"""The way from a certificate up to a root that a policy names: signatures, names, dates, path lengths (check 2).

RFC 5280, 6.1, as far as manufacturers' certificates use it, with one difference: a CA's validity is judged at the
birth of the certificate below all of them, because a TPM outlives the CAs that made it. No URL is ever fetched.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from provisioning.attestation.certificates import Certificate
from provisioning.attestation.ek_store import EkStore
from provisioning.attestation.names import name_key, name_text
from provisioning.attestation.policy_roots import EkRoot
from provisioning.attestation.signatures import STRONG, WITH_SHA1, why_not_signed

DEPTH_MOST = 8
"""Certificates between a leaf and its root."""
TRIES_MOST = 32
"""Signatures that are verified for one leaf, whatever it and its sender's intermediates say."""


class NoChain(Exception):
    """There is no way up; the text says what was tried."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """Whose signatures may lead up: the policy's roots, what the device sent, what an operator imported.

    `sha1_in_store`: a SHA-1 signature counts between two certificates that both are the operator's own bytes.
    """

    anchors: tuple[EkRoot, ...]
    sent: tuple[Certificate, ...]
    store: EkStore
    sha1_in_store: bool = False


@dataclass(slots=True)
class _Climb:
    """One search: its clock, and what it has spent."""

    known: Authorities
    born: datetime
    tries: int = 0
    used: set[bytes] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)


def verify_chain(leaf: Certificate, known: Authorities) -> tuple[tuple[Certificate, ...], EkRoot]:
    """The intermediates that lead to a root of the policy, and that root; each signed and fit at the leaf's birth.

    Not proven: anything about the leaf beyond who signed it. Raises: NoChain.
    """
    climb = _Climb(known, leaf.not_before)
    found = _climb(leaf, climb, 0, from_store=False)
    if found is None:
        told = "; ".join(dict.fromkeys(climb.reasons)) or f"no certificate of its issuer, {name_text(leaf.issuer)}"
        raise NoChain(told)
    return found


def _climb(
    child: Certificate, climb: _Climb, depth: int, *, from_store: bool
) -> tuple[tuple[Certificate, ...], EkRoot] | None:
    """Depth first, roots first. Each certificate is stood on once, and `TRIES_MOST` bounds the whole."""
    for root in _named(child, climb.known.anchors):
        if _may_issue(root.certificate, child, climb, depth, own=from_store):
            return (), root
    if depth == DEPTH_MOST:
        climb.reasons.append(f"more than {DEPTH_MOST} authorities one above the other")
        return None
    candidates: Iterator[tuple[Certificate, bool]] = iter(
        (
            *((one, True) for one in climb.known.store.named(child.issuer)),
            *((one, False) for one in climb.known.sent if one.subject == child.issuer),
        )
    )
    for candidate, own in candidates:
        if candidate.der in climb.used or not _may_issue(candidate, child, climb, depth, own=own and from_store):
            continue
        climb.used.add(candidate.der)
        if above := _climb(candidate, climb, depth + 1, from_store=own):
            return (candidate, *above[0]), above[1]
        missing = f"no certificate of the issuer {name_text(candidate.issuer)}"
        unnamed = f"{name_text(candidate.subject)} is a root that the policy does not name"
        climb.reasons.append(unnamed if candidate.subject == candidate.issuer else missing)
    return None


def _named(child: Certificate, roots: tuple[EkRoot, ...]) -> tuple[EkRoot, ...]:
    """The roots of that name; those with another encoding of it where there is none."""
    exact = tuple(root for root in roots if root.certificate.subject == child.issuer)
    if exact or not roots:
        return exact
    wanted = name_key(child.issuer)
    return tuple(root for root in roots if name_key(root.certificate.subject) == wanted)


def _may_issue(ca: Certificate, child: Certificate, climb: _Climb, depth: int, *, own: bool) -> bool:
    """Was it a CA at the leaf's birth, with so many CAs below it, and did it sign this (RFC 5280, 6.1.4, 6.1.3)?

    `own`: the child is out of the store, so that its bytes are the operator's, and its issuer's are too.
    """
    born = climb.born
    why: str | None = None
    if climb.tries == TRIES_MOST:
        why = f"was not tried: {TRIES_MOST} signatures were judged before"
    elif not ca.is_ca or (ca.key_usage is not None and "key_cert_sign" not in ca.key_usage):
        why = "is no certificate authority"
    elif ca.path_length is not None and depth > ca.path_length:
        why = f"allows {ca.path_length} authorities below it, not {depth}"
    elif ca.unhandled:
        why = f"has critical extensions that nobody here understands: {', '.join(ca.unhandled)}"
    elif not ca.not_before <= born <= ca.not_after:
        why = f"was valid from {ca.not_before:%Y-%m-%d} to {ca.not_after:%Y-%m-%d}, the EK was made on {born:%Y-%m-%d}"
    else:
        climb.tries += 1
        counted = WITH_SHA1 if own and climb.known.sha1_in_store else STRONG
        if refused := why_not_signed(child, ca.public_key, counted):
            why = f"did not issue {name_text(child.subject)}: {refused}"
    if why is not None:
        climb.reasons.append(f"{name_text(ca.subject)} {why}")
    return why is None
