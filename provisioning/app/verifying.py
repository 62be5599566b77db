"""The partner that verifies: a process of its own, pure functions over what strangers sent. It holds no key and no PIN.

The worker's side is `PartnerVerifier`. What a partner refuses comes back as the refusal that it is, by its code; a
request that ends the partner gets a 503 like all that were with it, and the worker goes on.
"""

import argparse
import copyreg
import json
import pickle
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import cache
from types import MappingProxyType

import structlog

from provisioning import refusals
from provisioning.app.partner import (
    ANSWERED,
    FAILED,
    OPENING,
    READ_OCTETS,
    REFUSED,
    Partner,
    PartnerLost,
    PartnerRefused,
    Work,
    begin,
    frame,
    frames,
    settle_memory,
)
from provisioning.attestation.evidence import ActivatedChallenge, context_of, verify_attestation_key
from provisioning.attestation.policy import Policy
from provisioning.attestation.quote import TpmState, VerifiedPcrs
from provisioning.config import ConfigurationRefused
from provisioning.issuance.algorithms import verify_by_spki
from provisioning.issuance.csr import verify_possession
from provisioning.refusals import Finding, Refusal, VerifierUnavailable
from provisioning.verifier import Accepted, Shown, accept

POSSESSION, SIGNATURE, EVIDENCE = 1, 2, 3
"""What a verifier is asked for. A policy goes with the first evidence that is judged by it, once."""
POLICIES_MOST = 64
"""More are not kept: all are forgotten, and told again with the next evidence."""
ANSWERS_AT_ONCE = 8
"""So many answers go together: the worker goes on with these, and the partner with the rest."""
_LENGTHS = struct.Struct("<HH")

_log = structlog.get_logger()


class PartnerVerifier:
    """`verifier.Verifier` by a partner. Made on the main thread, before the event loop that it serves."""

    def __init__(self, core: int | None) -> None:
        """Start it on that core; `ready` waits for it."""
        arguments = [] if core is None else ["--core", str(core)]
        self._told: set[tuple[int, str]] = set()
        """The policies that it has, or gets with what was sent already."""
        self._partner = Partner(Work("verifier", "provisioning.app.verifying", arguments), lambda _: self._told.clear())
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

    async def evidence(self, shown: Shown) -> Accepted:
        """See `Verifier`."""
        if shown.policy.ima is not None or shown.ima_log is not None:  # it holds keys, which do not travel
            return accept(shown)
        at = shown.policy_id, shown.policy.mode
        if len(self._told) >= POLICIES_MOST:
            self._told.clear()
        is_first, policy = not self._told, None
        if at not in self._told:
            policy = replace(shown.policy, ek_roots=(), identity_roots=(), crls=())
        content = pickle.dumps(
            (
                *(is_first, at, policy),
                shown.evidence,
                shown.boot_log,
                replace(shown.activated.challenge, secret=b""),
                shown.activated.csr,
                *(shown.previous, shown.release_values, shown.device),
            )
        )
        self._told.add(at)  # it is in this very request, and requests are done in their order
        return accepted(await self._asked(EVIDENCE, content))

    def close(self) -> None:
        """It ends."""
        self._partner.close()

    async def _asked(self, kind: int, content: bytes) -> bytes:
        try:
            return await self._partner.ask(kind, content)
        except PartnerRefused as told:
            raise refusal_of(str(told)) from told
        except PartnerLost as lost:
            self._told.clear()  # what was sent with this request did not arrive, as far as is known
            raise VerifierUnavailable(expected="a verdict", actual=lost) from lost


def told(refusal: Refusal) -> bytes:
    """A refusal as it goes over the socket."""
    return json.dumps([refusal.code, refusal.expected, refusal.actual, _plain(refusal.findings)]).encode()


def refusal_of(text: str) -> Refusal:
    """The inverse of `told`. Raises: KeyError, ValueError, where no partner of this version said it."""
    code, expected, actual, findings = json.loads(text)
    return _by_code()[code](expected=expected, actual=actual, findings=tuple(Finding(*one) for one in findings))


def proven(accepted: Accepted) -> bytes:
    """What evidence proved, as it goes over the socket: plain values, which can only be what they are."""
    values = {str(pcr): value.hex() for pcr, value in accepted.pcrs.values.items()}
    return json.dumps(
        [accepted.pcrs.bank, values, astuple(accepted.pcrs.tpm), _plain(accepted.findings), accepted.spki.hex()]
    ).encode()


def accepted(content: bytes) -> Accepted:
    """The inverse of `proven`."""
    bank, values, tpm, findings, spki = json.loads(content)
    pcrs = MappingProxyType({int(pcr): bytes.fromhex(value) for pcr, value in values.items()})
    verified = VerifiedPcrs(bank, pcrs, TpmState(*tpm))
    return Accepted(verified, tuple(Finding(*one) for one in findings), bytes.fromhex(spki))


def _plain(findings: Sequence[Finding]) -> list[list[object]]:
    return [[one.what, one.expected, one.actual, one.cure, one.refused] for one in findings]


@cache
def _by_code() -> dict[str, type[Refusal]]:
    kinds = (kind for kind in vars(refusals).values() if isinstance(kind, type) and issubclass(kind, Refusal))
    return {kind.code: kind for kind in kinds if kind is not Refusal}


def _view(values: dict[object, object]) -> MappingProxyType[object, object]:
    return MappingProxyType(values)


copyreg.pickle(MappingProxyType, lambda view: (_view, (dict(view),)))  # it has no way to travel of its own

# --- the partner ------------------------------------------------------------------------------------------------------


def _possession(content: bytes) -> bytes:
    return verify_possession(content).spki


def _signature(content: bytes) -> bytes:
    of_key, of_signature = _LENGTHS.unpack_from(content)
    key_end = _LENGTHS.size + of_key
    end = key_end + of_signature
    verify_by_spki(content[_LENGTHS.size : key_end], content[end:], content[key_end:end])
    return b""


_policies: dict[tuple[int, str], Policy] = {}


def _evidence(content: bytes) -> bytes:
    given = pickle.loads(content)  # noqa: S301  by the worker, over a socket of its own
    is_first, at, policy, evidence, log, challenge, csr, *rest = given
    if is_first:
        _policies.clear()
    if policy is not None:
        _policies[at] = policy
    ak = verify_attestation_key(challenge.ak_public)
    activated = ActivatedChallenge(challenge, ak, csr, context_of(challenge, ak, csr))
    return proven(accept(Shown(evidence, log, None, activated, at[0], _policies[at], *rest)))


_WORK: dict[int, Callable[[bytes], bytes]] = {
    POSSESSION: _possession,
    SIGNATURE: _signature,
    EVIDENCE: _evidence,
}


def _answer(kind: int, content: bytes) -> tuple[int, bytes]:
    try:
        return ANSWERED, _WORK[kind](content)
    except Refusal as refusal:
        return REFUSED, told(refusal)
    except BaseException as error:  # noqa: BLE001  the outer edge: what a stranger sent must not end it for all others
        _log.exception("verifier.failed", kind=kind)  # a panic of a library in Rust is no Exception
        return FAILED, type(error).__name__.encode()


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
            answers.append(frame(number, *_answer(kind, content)))
            if len(answers) >= ANSWERS_AT_ONCE:
                connection.sendall(b"".join(answers))
                answers = []
        if answers:
            connection.sendall(b"".join(answers))


def main(argv: list[str] | None = None) -> int:
    """The child's entry."""
    parser = argparse.ArgumentParser(description="A partner of a worker of muster serve; not for people.")
    given = begin("verifier", parser, argv)
    settle_memory()
    with socket.socket(fileno=given.descriptor) as connection:
        try:
            _serve(connection)
        except ConnectionError:  # the worker ended in the middle
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
