"""The partner that verifies: a process of its own, pure functions over what strangers sent. It holds no key and no PIN.

The worker's side is `PartnerVerifier`. What a partner refuses comes back as the refusal that it is, by its code; a
request that ends the partner gets a 503 like all that were with it, and the worker goes on.
"""

import argparse
import gc
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from functools import cache

from provisioning import refusals
from provisioning.app.logging import configure_logging
from provisioning.app.partner import (
    ANSWERED,
    OPENING,
    READ_OCTETS,
    REFUSED,
    Partner,
    PartnerLost,
    PartnerRefused,
    Work,
    frame,
    frames,
)
from provisioning.config import ConfigurationRefused
from provisioning.issuance.algorithms import verify_by_spki
from provisioning.issuance.csr import verify_possession
from provisioning.refusals import Finding, Refusal, VerifierUnavailable

POSSESSION, SIGNATURE = 1, 2
YOUNG_MOST = 20_000
"""Objects that are made before the youngest are looked at for cycles."""
ANSWERS_AT_ONCE = 8
"""So many answers go together: the worker goes on with these, and the partner with the rest."""
_LENGTHS = struct.Struct("<HH")


class PartnerVerifier:
    """`verifier.Verifier` by a partner. Made on the main thread, before the event loop that it serves."""

    def __init__(self, core: int | None) -> None:
        """Start it on that core; `ready` waits for it."""
        arguments = [] if core is None else ["--core", str(core)]
        self._partner = Partner(Work("verifier", "provisioning.app.verifying", arguments), lambda _: None)
        self._partner.start()

    def ready(self) -> None:
        """Wait until it serves. Raises: ConfigurationRefused."""
        try:
            self._partner.ready()
        except (PartnerLost, PartnerRefused) as failure:
            raise ConfigurationRefused(str(failure)) from failure

    async def possession(self, csr: bytes) -> bytes:
        """See `Verifier`."""
        return await self._asked(POSSESSION, csr)

    async def signature(self, spki: bytes, message: bytes, signature: bytes) -> None:
        """See `Verifier`."""
        await self._asked(SIGNATURE, _LENGTHS.pack(len(spki), len(signature)) + spki + signature + message)

    def close(self) -> None:
        """It ends."""
        self._partner.close()

    async def _asked(self, kind: int, content: bytes) -> bytes:
        try:
            return await self._partner.ask(kind, content)
        except PartnerRefused as told:
            raise refusal_of(str(told)) from told
        except PartnerLost as lost:
            raise VerifierUnavailable(expected="a verdict", actual=lost) from lost


def told(refusal: Refusal) -> bytes:
    """A refusal as it goes over the socket."""
    findings = [[one.what, one.expected, one.actual, one.cure, one.refused] for one in refusal.findings]
    return json.dumps([refusal.code, refusal.expected, refusal.actual, findings]).encode()


def refusal_of(text: str) -> Refusal:
    """The inverse of `told`. Raises: KeyError, ValueError, where no partner of this version said it."""
    code, expected, actual, findings = json.loads(text)
    return _by_code()[code](expected=expected, actual=actual, findings=tuple(Finding(*one) for one in findings))


@cache
def _by_code() -> dict[str, type[Refusal]]:
    kinds = (kind for kind in vars(refusals).values() if isinstance(kind, type) and issubclass(kind, Refusal))
    return {kind.code: kind for kind in kinds if kind is not Refusal}


# --- the partner ------------------------------------------------------------------------------------------------------


def _possession(content: bytes) -> bytes:
    return verify_possession(content).spki


def _signature(content: bytes) -> bytes:
    of_key, of_signature = _LENGTHS.unpack_from(content)
    key_end = _LENGTHS.size + of_key
    end = key_end + of_signature
    verify_by_spki(content[_LENGTHS.size : key_end], content[end:], content[key_end:end])
    return b""


_WORK: dict[int, Callable[[bytes], bytes]] = {POSSESSION: _possession, SIGNATURE: _signature}


def _serve(connection: socket.socket) -> None:
    """Until the worker closes its end, one request after another."""
    got = bytearray()
    connection.sendall(frame(OPENING, ANSWERED, b""))
    while data := connection.recv(READ_OCTETS):
        got += data
        answers: list[bytes] = []
        for number, kind, content in frames(got):
            if number == OPENING:
                continue
            try:
                answers.append(frame(number, ANSWERED, _WORK[kind](content)))
            except Refusal as refusal:
                answers.append(frame(number, REFUSED, told(refusal)))
            if len(answers) >= ANSWERS_AT_ONCE:
                connection.sendall(b"".join(answers))
                answers = []
        if answers:
            connection.sendall(b"".join(answers))


def main(argv: list[str] | None = None) -> int:
    """The child's entry."""
    parser = argparse.ArgumentParser(description="A partner of a worker of muster serve; not for people.")
    parser.add_argument("--core", type=int)
    parser.add_argument("--descriptor", type=int, required=True)
    given = parser.parse_args(argv)
    os.umask(0o077)
    configure_logging()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MOST, 20, 20)
    with socket.socket(fileno=given.descriptor) as connection:
        try:
            _serve(connection)
        except ConnectionError:  # the worker ended in the middle
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
