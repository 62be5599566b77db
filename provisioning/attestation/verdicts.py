"""What was found about an EK, remembered in the process: a device that attests every day shows the same certificate.

A verdict of `verify_endorsement` depends on nothing but the bytes that it is about, the policy, the store of
manufacturers' certificates, and on which of their dates have passed. So it is handed out again only for the same bytes
under the same policy (with its roots and CRLs) and the same store, and until the next of those dates: any other policy,
an import, a CRL or an end of validity has all of it verified again. What is remembered is never older than the process,
and never a refusal.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from provisioning.attestation.ek_store import EMPTY, EkStore
from provisioning.attestation.endorsement import RegisteredEk, TrustedEk, verify_endorsement
from provisioning.attestation.policy import Policy
from wire.messages import EnrollmentRequest

MOST = 16_384
"""Verdicts of one process, of a few KiB each. Of a larger fleet the oldest goes, and is verified again."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    policy: Policy
    store: EkStore
    since: datetime
    ek: TrustedEk


class EkVerdicts:
    """For one thread: that of the event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: dict[bytes, _Verdict] = {}

    def __len__(self) -> int:
        return len(self._known)

    def verify_endorsement(
        self,
        request: EnrollmentRequest,
        policy: Policy,
        now: datetime,
        registered: RegisteredEk,
        store: EkStore = EMPTY,
    ) -> TrustedEk:
        """What `endorsement.verify_endorsement` says now. Raises: as it does."""
        about = _digest(request, registered)
        found = self._known.get(about)
        if (
            found is not None
            and found.policy is policy
            and found.store is store
            and found.since <= now <= found.ek.settled_until
        ):
            return found.ek
        self._known.pop(about, None)
        ek = verify_endorsement(request, policy, now, registered, store)
        if len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[about] = _Verdict(policy, store, now, ek)
        return ek


def _digest(request: EnrollmentRequest, registered: RegisteredEk) -> bytes:
    """Of all that the verdict is about: each part with its length, so that no two requests are one text."""
    parts = (
        *(request.ek_certificate, request.ek_public, registered.certificate),
        *(registered.ek_id.encode(), registered.trust.encode(), *request.ek_intermediates),
    )
    return hashlib.sha256(
        b"".join(b"-" if part is None else len(part).to_bytes(5, "big") + part for part in parts)
    ).digest()
