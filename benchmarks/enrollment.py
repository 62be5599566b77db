"""Attested enrollments a second: both round trips, every check, a SoftHSM2 signature, durable rows, TLS, one worker.

Light devices (`lab.light`) make the load from processes of their own, which first shows that it could do twice as
much. `limit` is what the primitives alone allow on one core, in the same run: what an enrollment cannot do without of
RSA, ECDSA, the token and durable inserts, and nothing around them. The worker has one core, its partners another one.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from benchmarks.primitives import each, row_each
from benchmarks.stack import BIN, FOLDER, STATION, Stack, running_stack
from hsm.softhsm import create_token, settings
from hsm.token import Token
from lab.light_fleet import FleetFiles, make_fleet

KEEP_ALIVE = 2000
NEW_TLS = 1000
CONNECTIONS = "128"
"""At once. Fewer make smaller groups, which cost more each: 32 give a quarter less."""
ECDSA_VERIFICATIONS = 5
"""EK certificate, quote, certification, CSR, and the CA's own signature before it leaves."""
ROWS = 4
"""Challenge, certificate, attestation, leaf."""
SHA256 = ec.ECDSA(hashes.SHA256())
PIN = "benchmark"


def keep_alive() -> Iterator[dict[str, str | float]]:
    """Both requests of each device on a connection that many devices share, as behind a gateway."""
    yield _measured("attested_enrollment", KEEP_ALIVE)


def new_tls() -> Iterator[dict[str, str | float]]:
    """A new TLS connection for each device, as devices do."""
    yield _measured("attested_enrollment_new_tls", NEW_TLS, "--new-tls")


def _measured(name: str, devices: int, *options: str) -> dict[str, str | float]:
    with running_stack() as stack:
        fleet = make_fleet(stack.directory.parent / "fleet", devices)
        stack.muster("policy", "set", fleet.policy)
        for rows in fleet.registrations:
            stack.muster("factory", "register", rows, "--station", STATION)
        limit = 1 / _primitives_seconds()
        value = _load(stack, fleet, devices, *options)
    return {
        "name": name,
        "value": round(value),
        "unit": "enrollments/s",
        "limit": round(limit),
        "ratio": round(value / limit, 2),
    }


def _load(stack: Stack, fleet: FleetFiles, devices: int, *options: str) -> float:
    """Enrollments a second. Raises: RuntimeError, where devices were lost or the generator was the limit."""
    where = ("--url", stack.device, "--ca", str(stack.root), "--devices", str(devices))
    argv = [BIN / "python", "-m", "lab.light", "load", fleet.directory, *where, "--connections", CONNECTIONS, *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    print(done.stdout.strip(), file=sys.stderr)  # latencies and the generator's ceiling
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(json.loads(done.stdout)["enrollments_per_second"])


def _primitives_seconds() -> float:
    """RSA-OAEP for the credential, ECDSA verifications, one signature in the token, the rows in grouped commits."""
    ek = rsa.generate_private_key(65537, 2048).public_key()
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
    key, message = ec.generate_private_key(ec.SECP256R1()), bytes(300)
    signature, public = key.sign(message, SHA256), key.public_key()
    rsa_each = each(lambda: ek.encrypt(bytes(32), oaep))
    ecdsa_each = each(lambda: public.verify(signature, message, SHA256))
    return rsa_each + ECDSA_VERIFICATIONS * ecdsa_each + _token_each() + ROWS * row_each(FOLDER)


def _token_each() -> float:
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        create_token(Path(name), "bench", PIN, PIN)
        with Token(settings(Path(name)), "bench", lambda: PIN) as token:
            key = token.generate_ec_key("bench")
            return each(lambda: key.sign(bytes(300), SHA256))
