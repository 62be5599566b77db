"""OCSP (RFC 6960, RFC 5019): what is answered about a certificate, who signs that, and which answers are kept ready.

A request without nonce gets an answer that was signed before, as long as it is young and nothing changed. Every worker
keeps its own; what changed is read from the database, so that no answer is older than `FOLLOW_SECONDS` behind it. What
a stranger can have signed at will (with a nonce, about serials that were never issued) is limited.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import Counter
from sqlalchemy import Connection

from provisioning.access.rates import GLOBAL, Rate, RateTable, retry_after
from provisioning.authorities import ISSUING, Authority, State
from provisioning.db import revocations
from provisioning.db.devices import Record
from provisioning.issuance import der
from provisioning.issuance.algorithms import CaPublicKey, SignatureAlgorithm, algorithm_of, verify
from provisioning.issuance.keys import subject_key
from provisioning.issuance.ocsp import (
    UNAUTHORIZED,
    CertId,
    OcspRequest,
    Standing,
    assemble_response,
    build_response,
    check_response,
    issuer_ids,
    parse_request,
)
from provisioning.issuance.profile import OcspResponder, responder_name
from provisioning.issuance.revocation import REASONS
from provisioning.issuance.tbs import assemble, serial_text
from provisioning.issuing import Order, issue
from provisioning.refusals import Refusal, SigningUnavailable, TooManyRequests
from provisioning.service import Service
from wire.binding import key_id

KEY = "ocsp"
"""The responder's key in the service's token: one for all authorities, with a certificate of each."""
KEPT_MOST = 16_384
"""Answers that one worker keeps ready; about 2 KiB each."""
FOLLOW_SECONDS = 0.25
SIGNER_SECONDS = 5.0
"""How long a worker remembers which certificate the responder has."""

ANSWERS = Counter("muster_ocsp_answers", "OCSP answers by how they came about", ["kind"])
_KEPT = ANSWERS.labels("kept")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """An OCSPResponse in DER. `etag` is None where nobody may keep it: it holds a nonce, or says nothing."""

    der: bytes
    etag: str | None = None
    this_update: datetime | None = None
    next_update: datetime | None = None
    serial: str = ""
    renew_at: float = 0.0
    """Unix seconds: from then on the next one is made while this one is still given."""
    ends_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Signer:
    """The responder as one authority's delegate: its key, with that authority's certificate for it."""

    key: str
    public_key: CaPublicKey
    algorithm: SignatureAlgorithm
    key_hash: bytes
    certificate: bytes
    not_after: datetime


_NOT_OURS = Answer(UNAUTHORIZED)


class Responder:
    """One worker's answers. From the event loop only."""

    def __init__(self, service: Service) -> None:
        limits = service.config.limits
        self._service = service
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()
        self._by_serial: dict[str, set[bytes]] = {}
        self._seen = -1
        self._followed = float("-inf")
        self._following: asyncio.Task[None] | None = None
        self._renewing: dict[bytes, asyncio.Task[None]] = {}
        self._known: tuple[Authority, ...] = ()
        self._issuers: dict[bytes, Authority] = {}
        self._signers: dict[str, tuple[float, _Signer]] = {}
        each, every = limits.ocsp_signatures_per_second_per_address, limits.ocsp_signatures_per_second
        self._each, self._all = RateTable(Rate(each, each * 2)), RateTable(Rate(every, every * 2))

    def kept(self, request: bytes, now: datetime) -> Answer | None:
        """The answer that is ready for exactly these bytes, if it is young and nothing changed since."""
        answer = self._kept.get(request)
        if answer is None or monotonic() - self._followed > FOLLOW_SECONDS:
            return None
        at = now.timestamp()
        if at >= answer.renew_at:
            if at >= answer.ends_at:
                return None
            self._renew(request, now)
        self._kept.move_to_end(request)
        _KEPT.inc()
        return answer

    async def answer(self, data: bytes, source: str, now: datetime) -> Answer:
        """The answer to a request. `source` is who asks, as limits count it.

        Raises: OcspRequestMalformed, TooManyRequests, SigningUnavailable, StorageUnavailable.
        """
        await self._follow()
        if (ready := self.kept(data, now)) is not None:
            return ready
        request = parse_request(data)
        authority = self._authority_of(request.asked)
        if authority is None:
            ANSWERS.labels("unauthorized").inc()
            return _NOT_OURS
        plain = _plain(request)
        if plain is not None and plain != data and (ready := self.kept(plain, now)) is not None:
            return ready
        return await self._signed(request, plain, authority, source, now)

    async def stop(self) -> None:
        """Let go of what is being made."""
        tasks = [*self._renewing.values(), *([] if self._following is None else [self._following])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _signed(
        self, request: OcspRequest, plain: bytes | None, authority: Authority, source: str | None, now: datetime
    ) -> Answer:
        """A fresh answer, kept where it may be. `source` is None for one that was known and is made anew."""

        def read(tx: Connection) -> tuple[int, list[Record | None]]:
            serials = [serial_text(asked.serial) if asked.serial >= 0 else "" for asked in request.asked]
            return revocations.newest(tx), [revocations.standing(tx, authority.name, serial) for serial in serials]

        as_of, rows = await self._service.store.read(read)
        standings = [_standing(row) for row in rows]
        lasting = plain is not None and standings[0].known
        if not lasting and source is not None:
            self._limit(source)
        signer = await self._signer(authority, now)
        answers = tuple(zip(request.asked, standings, strict=True))
        until = min(now + timedelta(seconds=self._service.config.lifetimes.ocsp_seconds), signer.not_after)
        tbs = build_response(answers, signer.key_hash, this_update=now, next_update=until, nonce=request.nonce)
        check_response(tbs, signer.algorithm)
        signature = await self._service.keys.sign(signer.key, tbs.der)
        verify(signer.public_key, tbs.der, signature)
        made = assemble_response(tbs.der, signer.algorithm, signature, signer.certificate)
        ANSWERS.labels("signed").inc()
        if plain is None or not lasting:
            return Answer(made)
        answer = Answer(
            made,
            f'"{hashlib.sha256(made).hexdigest()[:32]}"',
            tbs.this_update,
            tbs.next_update,
            serial_text(request.asked[0].serial),
            (tbs.this_update + (tbs.next_update - tbs.this_update) / 2).timestamp(),
            tbs.next_update.timestamp(),
        )
        if self._seen <= as_of:  # else a change came while it was made: it is true of a moment ago, and not kept
            self._keep(plain, answer)
        return answer

    def _keep(self, request: bytes, answer: Answer) -> None:
        self._kept[request] = answer
        self._kept.move_to_end(request)
        self._by_serial.setdefault(answer.serial, set()).add(request)
        if len(self._kept) > KEPT_MOST:
            self._forget(next(iter(self._kept)))

    def _forget(self, request: bytes) -> None:
        answer = self._kept.pop(request)
        same = self._by_serial[answer.serial]
        same.discard(request)
        if not same:
            del self._by_serial[answer.serial]

    def _renew(self, request: bytes, now: datetime) -> None:
        """Make the next answer while the old one is given: nobody waits, and an HSM that is away hurts nobody yet."""
        if request not in self._renewing:
            task = asyncio.get_running_loop().create_task(self._make_next(request, now))
            self._renewing[request] = task
            task.add_done_callback(lambda _: self._renewing.pop(request, None))

    async def _make_next(self, data: bytes, now: datetime) -> None:
        request = parse_request(data)
        authority = self._authority_of(request.asked)
        try:
            if authority is not None:
                await self._signed(request, data, authority, None, now)
        except Refusal as refusal:
            _log.warning("ocsp.not_renewed", code=refusal.code, actual=refusal.actual)

    async def _follow(self) -> None:
        """Know every change that was committed `FOLLOW_SECONDS` ago. Raises: StorageUnavailable."""
        if monotonic() - self._followed <= FOLLOW_SECONDS:
            return
        if self._following is None:
            self._following = asyncio.get_running_loop().create_task(self._read_changes())
            self._following.add_done_callback(self._read)
        await asyncio.shield(self._following)

    def _read(self, task: "asyncio.Task[None]") -> None:
        self._following = None
        if not task.cancelled():
            task.exception()  # each who waited has it

    async def _read_changes(self) -> None:
        started = monotonic()

        def read(tx: Connection) -> tuple[int, Sequence[Record]]:
            newest = revocations.newest(tx)
            return newest, [] if self._seen in (newest, -1) else revocations.since(tx, self._seen)

        newest, changes = await self._service.store.read(read)
        if newest < self._seen:  # another database took its place
            self._kept.clear()
            self._by_serial.clear()
        for change in changes:
            for request in list(self._by_serial.get(change.serial, ())):
                self._forget(request)
        self._seen, self._followed = newest, started

    def _authority_of(self, asked: Sequence[CertId]) -> Authority | None:
        """The authority that all of them name; None where there is none that is answered for here."""
        if self._known is not self._service.authorities.all:
            self._known = self._service.authorities.all
            in_use = self._service.authorities.of_kind(ISSUING, State.ACTIVE, State.RETIRING)
            answering = [one for one in in_use if one.key]
            self._issuers = {way: one for one in answering for way in issuer_ids(*_names_of(one))}
            self._signers.clear()
        first = self._issuers.get(asked[0].issuer)
        return first if all(self._issuers.get(one.issuer) is first for one in asked) else None

    async def _signer(self, authority: Authority, now: datetime) -> _Signer:
        known = self._signers.get(authority.name)
        if known is not None and monotonic() < known[0] and now < known[1].not_after:
            return known[1]
        found = await responder_of(self._service, authority, now)
        if found is None:  # it was activated a moment ago, or could not sign one for a week
            raise SigningUnavailable(expected=f"a responder's certificate of {authority.name}", actual="none in force")
        key = await self._service.keys.adopt(KEY)
        signer = _Signer(
            KEY,
            key,
            algorithm_of(key),
            x509.SubjectKeyIdentifier.from_public_key(key).digest,
            assemble(found.tbs, found.signature),
            datetime.fromtimestamp(found.not_after, UTC),
        )
        self._signers[authority.name] = (monotonic() + SIGNER_SECONDS, signer)
        return signer

    def _limit(self, source: str) -> None:
        now = monotonic()
        if wait := self._each.wait_seconds(source, now) or self._all.wait_seconds(GLOBAL, now):
            refusal = TooManyRequests(expected="fewer answers that must be signed for this request", actual=source)
            refusal.retry_after_seconds = retry_after(wait)
            raise refusal


async def responder_of(service: Service, authority: Authority, now: datetime) -> Record | None:
    """The certificate in force of the responder for that authority. Raises: SigningUnavailable, StorageUnavailable."""
    key = await service.keys.adopt(KEY)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    at = int(now.timestamp())
    return await service.store.read(lambda tx: revocations.responder(tx, key_id(spki), authority.name, at))


async def renew_responder(service: Service) -> None:
    """A certificate for the responder of each authority, where half of the last one's life is over.

    The CA's own keys sign no answer: what strangers ask for never reaches them.
    """
    now, failed = service.clock(), None
    key = await service.keys.adopt(KEY)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for authority in service.authorities.of_kind(ISSUING, State.ACTIVE, State.RETIRING):
        last = await responder_of(service, authority, now)
        if last is not None and now.timestamp() < (last.not_before + last.not_after) / 2:
            continue
        order = Order(OcspResponder(authority.name, service.config.service_name, spki), responder_name(authority.name))
        try:
            issued = await issue(service, order, lambda _tx, _certificate: None)
        except Refusal as refusal:  # the others' keys may be there
            failed = failed or refusal
        else:
            _log.info("ocsp.responder", authority=issued.issuer, serial=issued.serial)
    if failed is not None:
        raise failed


def _plain(request: OcspRequest) -> bytes | None:
    """The request for the same answer with nothing else in it; None where the answer depends on more."""
    if len(request.asked) != 1 or request.nonce is not None:
        return None
    return der.sequence(der.sequence(der.sequence(der.sequence(request.asked[0].der))))


def _standing(row: Record | None) -> Standing:
    if row is None or (row.signature is None and row.state != "revoked"):  # reserved: it may never be issued
        return Standing(known=False)
    if row.state != "revoked":
        return Standing()
    return Standing(at=datetime.fromtimestamp(row.revoked_at, UTC), reason=REASONS[row.reason])


def _names_of(authority: Authority) -> tuple[bytes, bytes]:
    """What the hashes in a CertID are over: name and key, the latter without the number of unused bits."""
    spki = authority.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    known = subject_key(spki)
    if known is None:
        raise ValueError("a key of a kind that no authority here has")
    return authority.certificate.subject.public_bytes(), known.content
