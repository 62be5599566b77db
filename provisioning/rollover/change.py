"""The two steps that change who signs, and what must be so before: activate and retire.

Each is one transaction with its leaf: a crash leaves the step undone or done. What follows (files, TLS contexts, the
broker, the service's own certificate, CRLs) is made out of the table by whoever is concerned, and made again.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from sqlalchemy import Connection

from provisioning import outbox
from provisioning.authorities import ISSUING, RESULTS, ROOT, TRUST, State, certificates_in, chain_text
from provisioning.db import authorities, leaves, revocations
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import ChangeNotReached, Finding, NotFound, StillInUse, WrongStep
from provisioning.rollover.bundles import authorities_root, newest_names, versions_naming
from provisioning.rollover.lifecycle import Step, after
from provisioning.service import Service

NAMED_MOST = 100
"""Devices that a refusal names; `muster ca status NAME` names all of them."""
ROTATIONS_MOST = 10_000


async def activate(service: Service, name: str, *, force: bool, by: str) -> Record:
    """It signs from now on; the one before it retires. `force`: although devices do not know it yet.

    Raises: NotFound, WrongStep, ChangeNotReached, with the devices that would not accept what it signs.
    """
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "authority", now, name=name, step="activate", force=force, by=by)

    def write(tx: Connection) -> Record:
        row = _known(tx, name)
        if row.state == State.ACTIVE:
            return row
        following = after(name, row.state, Step.ACTIVATE)
        _verify_ready(tx, row)
        if not force:
            _verify_reached(tx, row)
        _succeed(tx, row.kind)
        authorities.change(tx, name, state=following.value, activated_at=at)
        if row.kind == ROOT:
            _chain_anew(tx, row)
        if row.kind == ISSUING:
            _activate_root_of(tx, row, at)
        leaves.add(tx, entry)
        return _known(tx, name)

    done = await service.ledger.write(write)
    await service.authorities.refresh(service.store)
    return done


async def retire(service: Service, name: str, *, force: bool, by: str) -> Record:
    """It signs nothing any more, and the next trust bundle does not name it. Final.

    Raises: NotFound, WrongStep, StillInUse, with the devices that break.
    """
    now = service.clock()
    at = int(now.timestamp())
    entry = leaf(service, "authority", now, name=name, step="retire", force=force, by=by)

    def write(tx: Connection) -> Record:
        row = _known(tx, name)
        if row.state == State.RETIRED:
            return row
        following = after(name, row.state, Step.RETIRE)
        _verify_nothing_below(tx, row)
        if not force and row.state != State.PREPARED:
            _verify_unused(tx, row, at)
            _verify_results_over(tx, row, at - service.config.lifetimes.result_seconds)
        authorities.change(tx, name, state=following.value, retired_at=at)
        leaves.add(tx, entry)
        return _known(tx, name)

    done = await service.ledger.write(write)
    await service.authorities.refresh(service.store)
    return done


async def rotate(service: Service, name: str, most: int, *, by: str) -> int:
    """Order a rotation of at most so many devices whose certificate is of that authority; how many there were.

    Raises: NotFound, WrongStep.
    """
    now = service.clock()
    at = int(now.timestamp())

    def write(tx: Connection) -> int:
        row = _known(tx, name)
        if row.kind != ISSUING or row.state != State.RETIRING:
            raise WrongStep(expected=f"{name} to be an issuing CA that is retiring", actual=f"{row.kind}, {row.state}")
        ids = authorities.devices_with_certificate_of(tx, name, at, min(most, ROTATIONS_MOST))
        for device_id in ids:
            outbox.put(tx, service, outbox.Order("rotate", device_id, by))
        if ids:
            leaves.add(tx, leaf(service, "authority", now, name=name, step="rotate", devices=len(ids), by=by))
        return len(ids)

    return await service.ledger.write(write)


def _known(tx: Connection, name: str) -> Record:
    row = authorities.named(tx, name)
    if row is None:
        raise NotFound(expected="an authority or key of muster ca status", actual=name)
    return row


def _verify_ready(tx: Connection, row: Record) -> None:
    """Has it all that it signs with? That is not a thing to be forced. Raises: WrongStep."""
    if row.kind in (ROOT, ISSUING) and not row.certificate:
        raise WrongStep(expected=f"{row.name} with its certificate", actual="none yet: muster ca prepare, or ca import")
    if not row.public_key:
        raise WrongStep(expected=f"{row.name} with its key", actual="none yet: muster ca prepare")
    if row.kind == ISSUING and revocations.crl_head(tx, row.name) is None:
        raise WrongStep(expected=f"a CRL of {row.name}: the broker asks for it", actual="none yet: start the service")
    if row.kind == ROOT:
        missing = [
            one.name
            for one in authorities.of_kind(tx, ISSUING, State.ACTIVE.value, State.RETIRING.value)
            if _under(one, row) is None
        ]
        if missing and row.key:
            wanted = f"{', '.join(missing)} with a certificate by {row.name}"
            raise WrongStep(expected=wanted, actual="none yet: muster ca prepare root")


def _verify_reached(tx: Connection, row: Record) -> None:
    """Does every active device hold a bundle that names it? Raises: ChangeNotReached."""
    if row.kind in (TRUST, RESULTS):
        return
    if not newest_names(tx, row):
        raise ChangeNotReached(
            expected=f"{row.name} in the published trust bundle", actual="not in it: muster ca publish"
        )
    versions = versions_naming(tx, row)
    if lacking := authorities.count_without_bundle(tx, versions):
        raise ChangeNotReached(
            expected=f"a trust bundle that names {row.name} with every active device",
            actual=f"{lacking} devices without",
            findings=_lacking(tx, versions, f"version {versions[-1]}"),
        )


def _lacking(tx: Connection, versions: list[int], wanted: str) -> tuple[Finding, ...]:
    rows = authorities.without_bundle(tx, versions, "", NAMED_MOST)
    return tuple(Finding(row.id, wanted, f"version {row.trust_version}") for row in rows)


def _succeed(tx: Connection, kind: str) -> None:
    for before in authorities.of_kind(tx, kind, State.ACTIVE.value):
        authorities.change(tx, before.name, state=after(before.name, before.state, Step.SUCCEED).value)


def _under(issuing: Record, root: Record) -> tuple[bytes, ...] | None:
    """The issuing CA's chain that ends at that root, from itself on; None where it has none."""
    for der in (issuing.certificate, *certificates_in(issuing.others)):
        if _is_by(der, root.certificate):
            return (der, root.certificate)
    chain = (issuing.certificate, *certificates_in(issuing.chain))
    return chain if root.certificate in chain else None


def _is_by(der: bytes, issuer: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(der).verify_directly_issued_by(x509.load_der_x509_certificate(issuer))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _chain_anew(tx: Connection, root: Record) -> None:
    """Every issuing CA that signs or did goes by its chain to this root; the other certificate stays with it."""
    for one in authorities.of_kind(tx, ISSUING):
        chain = _under(one, root)
        if one.state == State.RETIRED or chain is None or chain[0] == one.certificate:
            continue
        others = [der for der in certificates_in(one.others) if der != chain[0]]
        columns = {"certificate": chain[0], "chain": chain_text(chain[1:])}
        authorities.change(tx, one.name, others=chain_text((*others, one.certificate)), **columns)


def _activate_root_of(tx: Connection, issuing: Record, at: int) -> None:
    """An issuing CA of an outside root brings that root with it."""
    wanted = authorities_root(issuing)
    for root in authorities.of_kind(tx, ROOT):
        if root.certificate == wanted and root.state != State.ACTIVE:
            following = after(root.name, root.state, Step.ACTIVATE)
            _succeed(tx, ROOT)
            authorities.change(tx, root.name, state=following.value, activated_at=at)


def _verify_nothing_below(tx: Connection, row: Record) -> None:
    """A root is not retired under a CA that goes by it. Not to be forced. Raises: WrongStep."""
    if row.kind != ROOT:
        return
    below = [
        one.name
        for one in authorities.of_kind(tx, ISSUING)
        if one.state != State.RETIRED and one.certificate and authorities_root(one) == row.certificate
    ]
    if below:
        raise WrongStep(expected=f"no CA whose chain ends at {row.name}", actual=", ".join(below))


def _verify_unused(tx: Connection, row: Record, at: int) -> None:
    """Does nobody depend on it any more? Raises: StillInUse."""
    findings: list[Finding] = []
    use = use_of(tx, row, at)
    if use.certificates:
        found = authorities.with_certificate_of(tx, row.name, at, "", NAMED_MOST)
        findings += [Finding(one.device_id or one.subject, "a certificate of another CA", one.serial) for one in found]
    if use.without_successor:
        findings += _lacking(tx, use.versions, "a trust bundle that names its successor")
    if findings:
        raise StillInUse(
            expected=f"nobody who depends on {row.name}",
            actual=f"{use.certificates} certificates of it in use, {use.without_successor} devices with an old bundle",
            findings=tuple(findings),
        )


def _verify_results_over(tx: Connection, row: Record, since: int) -> None:
    """Have all attestation results ended that it signed? Relying parties still look for its key. Raises: StillInUse."""
    after_it = authorities.of_kind(tx, RESULTS, State.ACTIVE.value) if row.kind == RESULTS else []
    if after_it and after_it[0].activated_at >= since:
        actual = f"the last of them ends in {after_it[0].activated_at - since + 1} s"
        raise StillInUse(expected=f"no result by {row.name} that is still good", actual=actual)


@dataclass(frozen=True, slots=True)
class Use:
    """Who still depends on one that retires. `versions`: the trust bundles with which a device can do without it."""

    certificates: int
    last_ends_at: int | None
    without_successor: int
    versions: list[int]


def use_of(tx: Connection, row: Record, at: int) -> Use:
    """Certificates of it that are in use, and devices that do not know its successor."""
    live, last = authorities.live_certificates(tx, row.name, at) if row.kind == ISSUING else (0, None)
    active = authorities.of_kind(tx, row.kind, State.ACTIVE.value)
    if row.kind in (TRUST, RESULTS) or not active:
        return Use(live, last, 0, [])
    versions = versions_naming(tx, active[0])
    return Use(live, last, authorities.count_without_bundle(tx, versions), versions)
