"""Sessions of devices: which one the service speaks to, and whether two agents share one identity.

A session is one run of an agent. What decides is `monitoring.standing_of`; here it is asked, carried out and recorded.
"""

from sqlalchemy import Connection

from provisioning import findings, outbox, reattesting
from provisioning.db import commands, devices, sessions
from provisioning.db.devices import Record
from provisioning.findings import Noticed
from provisioning.monitoring import (
    ACCEPTED,
    TWO_AGENTS,
    Current,
    Kind,
    Said,
    Standing,
    Trace,
    displace,
    question,
    standing_of,
)
from provisioning.refusals import MessageOutOfOrder, RequestMalformed
from provisioning.service import Service
from wire.codec import encode
from wire.messages import Hello

SEQUENCE_MOST = 2**62
"""The service counts on from what a device reports: there must be room above it in 64 bits."""
STEP_BYTES = 4
"""How far a question's sequence is above all that a session has seen: random, and never used for anything else."""


async def greet(service: Service, hello: Hello, signer: Record) -> None:
    """A session begins, or goes on after a reconnect: what waits for this device is due now.

    A hello of another session than the current one is refused, and that session is asked whether it is alive.
    Raises: RequestMalformed, MessageOutOfOrder.
    """
    now = service.clock()
    at = int(now.timestamp())
    if not 0 <= hello.last_sequence <= SEQUENCE_MOST:
        raise RequestMalformed(expected=f"a sequence from 0 to {SEQUENCE_MOST}", actual=hello.last_sequence)
    said = Said(hello.session, hello.session_number, hello.sequence, hello.last_sequence, hello.message_id)

    def write(tx: Connection) -> tuple[Standing, Record | None]:
        known = commands.session_of(tx, hello.device)
        trace = sessions.trace_of(tx, hello.device)
        standing = standing_of(said, _current(known), trace)
        if standing in TWO_AGENTS and known is not None:
            _notice(tx, service, hello, signer, known, standing)
        if standing is Standing.QUESTIONED:
            _ask(tx, service, hello, said, trace, at)
        if standing in ACCEPTED:
            _accept(tx, service, hello, signer, known, trace, at)
        return standing, known

    standing, known = await service.ledger.write(write)
    if standing not in ACCEPTED and known is not None:
        expected = f"session {known.session}, a sequence above {known.up_sequence}"
        raise MessageOutOfOrder(expected=expected, actual=f"{standing}: session {said.session}, {said.sequence}")


def _accept(
    tx: Connection, service: Service, hello: Hello, signer: Record, known: Record | None, trace: Trace, at: int
) -> None:
    same = known is not None and known.session == hello.session
    values = {
        "session": hello.session,
        "session_number": max(hello.session_number, 0 if known is None else known.session_number),
        "up_sequence": hello.sequence,
        "down_sequence": max(known.down_sequence, hello.last_sequence) if known and same else hello.last_sequence,
        "trust_version": hello.trust_version,
        "certificate_serial": signer.serial,
        "at": at,
        "hello_id": hello.message_id,
        "hello_sequence": hello.sequence,
    }
    commands.put_session(tx, hello.device, values)
    if not same:
        sessions.put_trace(tx, hello.device, displace(trace, _current(known), hello.session))
    devices.change(tx, hello.device, last_seen_at=at, trust_version=hello.trust_version)
    if hello.trust_version < service.authorities.bundle_version:  # it was away when the others were told
        outbox.put(tx, service, outbox.Order("refresh-trust", hello.device, "service"))
    commands.hurry(tx, hello.device, at)
    if not same and (device := devices.by_id(tx, hello.device)) is not None:
        reattesting.agent_started(tx, service, device, known, at)
    outbox.put(tx, service, outbox.Order("welcome", hello.device, "service", encode(_welcome(tx, hello))))


def _ask(tx: Connection, service: Service, hello: Hello, said: Said, trace: Trace, at: int) -> None:
    """Have the session of this hello, and none but it, say hello once more."""
    step = 1 + int.from_bytes(service.entropy(STEP_BYTES), "big")
    asked = question(trace, said, at, step)
    if asked is None or asked.probe_sequence > SEQUENCE_MOST:
        return
    sessions.put_trace(tx, hello.device, asked)
    place = {"session": said.session, "sequence": asked.probe_sequence}
    body = encode({**_welcome(tx, hello), "greet_again": True, "place": place})
    outbox.put(tx, service, outbox.Order("probe", hello.device, "service", body))


def _notice(tx: Connection, service: Service, hello: Hello, signer: Record, known: Record, standing: Standing) -> None:
    detail = {
        "how": "one session, one sequence, two messages"
        if standing is Standing.FORKED
        else "a displaced session lives",
        "session": hello.session,
        "signed_with": signer.serial,
        "other_session": known.session,
        "other_signed_with": known.certificate_serial,
    }
    findings.notice(tx, service, Noticed(hello.device, Kind.TWO_SESSIONS, detail))


def _welcome(tx: Connection, hello: Hello) -> dict[str, object]:
    device = devices.by_id(tx, hello.device)
    return {"in_reply_to": hello.message_id, "release_floor": 0 if device is None else device.release_counter}


def _current(known: Record | None) -> Current | None:
    if known is None:
        return None
    return Current(known.session, known.session_number, known.up_sequence, known.hello_id, known.hello_sequence)
