"""How long the verifier works on one device's evidence: `verify_activation` and `verify_evidence`, no boot log.

RSA-2048 EK, P-256 AK and device key, every device another one and no parsed key cached. `limit` is what cannot be
saved: three ECDSA verifications (quote, certification, CSR) and one HMAC, alone, in the same run. All of it is
computing on one core, so processor time is measured: what else the machine does counts less.
"""

import hmac
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from statistics import median
from types import MappingProxyType

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from lab.light import LightBoot, LightDevice
from provisioning.attestation.algorithms import SHA256
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import TrustedEk
from provisioning.attestation.evidence import (
    OpenChallenge,
    verify_activation,
    verify_attestation_key,
    verify_evidence,
)
from provisioning.attestation.keys import spki
from provisioning.attestation.policy import Policy
from wire.binding import key_id
from wire.messages import Challenge, Evidence, PcrSelection

DEVICES = 100
ROUNDS = 10
PCRS = (0, 1, 2, 3, 4, 7, 8, 9)
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def run() -> Iterable[dict[str, str | float]]:
    """One figure a dictionary: name, value, unit, limit, ratio."""
    yield from figures()


def figures() -> Iterator[dict[str, str | float]]:
    """Whole verification, and the making of a credential for an RSA EK."""
    ek = rsa.generate_private_key(65537, 2048)
    trusted = _trusted(ek)
    boot = LightBoot(dict.fromkeys(PCRS, bytes(32)), b"")
    devices = [LightDevice(f"device-{number}", ek, b"", boot) for number in range(DEVICES)]
    cases = [_case(device, trusted, number) for number, device in enumerate(devices)]
    policy = _policy()

    def verify_all() -> None:
        for challenge, evidence in cases:
            activated = verify_activation(evidence.activation_proof, evidence.csr, challenge)
            verify_evidence(evidence, None, activated, policy, None, {})

    private = ec.generate_private_key(ec.SECP256R1())
    algorithm, message = ec.ECDSA(hashes.SHA256()), bytes(150)
    public, signature = private.public_key(), private.sign(message, algorithm)

    def bare() -> None:
        for _ in range(DEVICES):
            hmac.digest(bytes(32), message, "sha256")
            for _ in range(3):
                public.verify(signature, message, algorithm)

    def credentials() -> None:
        for device in devices:
            make_credential(trusted, device.ak.name, bytes(32))

    limit, value, credential = _microseconds(bare, verify_all, credentials)
    yield _figure("evidence_verification", value, limit)
    yield _figure("make_credential_rsa", credential, limit)


def _microseconds(*works: Callable[[], None]) -> list[float]:
    """The median of each, for one device; in turn, so that a noisy machine slows all of them alike."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for times, work in zip(taken, works, strict=True):
            verify_attestation_key.cache_clear()
            start = time.thread_time()
            work()
            times.append((time.thread_time() - start) / DEVICES * 1e6)
    return [median(times) for times in taken]


def _figure(name: str, value: float, limit: float) -> dict[str, str | float]:
    return {"name": name, "value": round(value), "unit": "µs", "limit": round(limit), "ratio": round(value / limit, 2)}


def _trusted(ek: rsa.RSAPrivateKey) -> TrustedEk:
    public = ek.public_key()
    return TrustedEk(key_id(spki(public)), public, SHA256, 128, "certificate", "id:00001014", "light", "1", ())


def _case(device: LightDevice, ek: TrustedEk, number: int) -> tuple[OpenChallenge, Evidence]:
    selection = PcrSelection("sha256", PCRS)
    secret, nonce, identifier = number.to_bytes(32, "big"), bytes(32), f"enrollment-{number}"
    blob, encrypted = make_credential(ek, device.ak.name, secret)
    sent = Challenge(identifier, "bench", blob, encrypted, nonce, selection, "none", NOW)
    stored = OpenChallenge("enroll", identifier, "bench", nonce, secret, device.ak.public, selection, "none", ek.ek_id)
    return stored, device.answer(sent)


def _policy() -> Policy:
    accepted = MappingProxyType({pcr: frozenset({bytes(32)}) for pcr in PCRS})
    return Policy(
        model="bench",
        software_tpm=True,
        expired_ek="refuse",
        banks=("sha256",),
        boot_log="none",
        release_pcrs=frozenset(),
        min_tpm_firmware=0,
        enrollments_per_day=20,
        ek_roots=(),
        pcrs=MappingProxyType({"sha256": accepted}),
        events=(),
    )


if __name__ == "__main__":
    for figure in run():
        print(figure)
