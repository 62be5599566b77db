"""Signatures a second in a SoftHSM2 token, P-256: through `HsmEcKey` as the service signs, and by C_Sign alone.

`limit` is what python-pkcs11 reaches with one session, one thread and no pool around it, in the same run.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Mechanism, ObjectClass

from hsm.objects import find_keys
from hsm.softhsm import create_token, settings
from hsm.token import Token

SIGNATURES = 20_000
PIN = "benchmark"
SHA256 = ec.ECDSA(hashes.SHA256())


def rate(work: Callable[[], object], threads: int = 1) -> float:
    """How often a second `work` ran, over all threads."""

    def run() -> None:
        for _ in range(SIGNATURES // threads):
            work()

    running = [threading.Thread(target=run) for _ in range(threads)]
    start = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return SIGNATURES // threads * threads / (time.perf_counter() - start)


def figures() -> Iterator[dict[str, str | float]]:
    """One figure a dictionary: name, value, unit, limit, ratio."""
    with tempfile.TemporaryDirectory() as name:
        create_token(Path(name), "bench", PIN, PIN)
        with Token(settings(Path(name)), "bench", lambda: PIN) as token:
            key = token.generate_ec_key("bench")
            with token._sessions._login.token.open() as session:  # noqa: SLF001 (the primitive alone)
                (bare,) = find_keys(session, ObjectClass.PRIVATE_KEY, label="bench")
                limit = rate(lambda: bare.sign(bytes(32), mechanism=Mechanism.ECDSA))
            for label, threads in (("hsm_sign", 1), ("hsm_sign_8_threads", 8)):
                value = rate(lambda: key.sign(b"to be signed", SHA256), threads)
                yield {
                    "name": label,
                    "value": round(value),
                    "unit": "signatures/s",
                    "limit": round(limit),
                    "ratio": round(value / limit, 2),
                }


if __name__ == "__main__":
    for figure in figures():
        print(figure)
